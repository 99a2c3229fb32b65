/**
 * An answer on standard output: as it comes, where it comes token by token, and whole.
 */
#ifndef ESP_CLI_ANSWER_H
#define ESP_CLI_ANSWER_H

#include "cli/client.h"
#include "cli/term.h"
#include "proto/status.h"

/** Zero it before each answer but for the terminal. */
struct esp_answer {
    struct esp_term *term;
    bool streamed; /* text went out already */
    char sent[ESP_MAX_TEXT + 1];
    size_t n_sent; /* of the text; more than fits: not comparable */
};

/** Text that came with a token. */
esp_status esp_answer_token(struct esp_answer *answer, const char *text, struct esp_err *err);

/** The whole text: what the stream did not hold, everything (beams) or a last character that was incomplete. */
esp_status esp_answer_end(struct esp_answer *answer, const char *text, struct esp_err *err);

/** It ends here: what is said next starts on a line of its own. */
void esp_answer_break(struct esp_answer *answer);

/** A few lines on stderr: seconds of each phase, what was spared, tokens a second. */
void esp_answer_tell_timing(struct esp_term *term, const struct esp_reply *reply);

#endif
