/* What chat.c and chat_command.c share: the session that a user sits in front of. */
#ifndef ESP_CLI_CHAT_H
#define ESP_CLI_CHAT_H

#include "cli/answer.h"
#include "cli/ask.h"
#include "cli/decoding.h"
#include "cli/findings.h"
#include "cli/line.h"

struct esp_chat_picture {
    void *bytes;
    size_t n_bytes;
    char *path;
    char *name; /* for messages that cross the wire */
};

/** Of the last answer: what /stats tells. */
struct esp_chat_last {
    bool any;
    double load, encode, prefill, decode, queue; /* seconds */
    uint32_t n_prompt, n_tokens, n_pictures, n_cached, n_rebuilds;
};

struct esp_chat {
    struct esp_ask ask; /* the cluster; its pictures are only those of the command line */
    struct esp_decoding decoding;
    struct esp_arg decoding_args[ESP_N_DECODING_ARGS]; /* their targets are in decoding */
    struct esp_answer answer;
    struct esp_finder finder;
    struct esp_loc_scores scores; /* of the answer that comes */
    struct esp_findings found;    /* of the last one, on the first of the present pictures */
    struct esp_line *line;
    uint32_t n_pictures;
    struct esp_chat_picture picture[ESP_MAX_BLOBS]; /* the present ones */
    struct esp_chat_last last;
    bool quit;
};

/** A question about the present pictures, answered on standard output. Errors: as esp_client_ask. */
esp_status esp_chat_ask(struct esp_chat *chat, const char *prompt, struct esp_err *err);

/** Adds pictures to the present ones, or takes their place. On failure everything stays as it was. */
esp_status esp_chat_pictures(struct esp_chat *chat, char *const *paths, uint32_t n, bool add,
                             struct esp_err *err);

/* ---- chat_findings.c ---- */

/** What the answer that has just come found on the first picture: kept, and told on a terminal. */
esp_status esp_chat_take_findings(struct esp_chat *chat, const char *text, struct esp_err *err);

/** /save and /show: the first picture with what the last answer found. */
esp_status esp_chat_save(struct esp_chat *chat, const char *path, struct esp_err *err);
esp_status esp_chat_show(struct esp_chat *chat, struct esp_err *err);

/* ---- chat_command.c ---- */

/** A line that begins with a slash. */
esp_status esp_chat_command(struct esp_chat *chat, const char *line, struct esp_err *err);

/** Completion: struct esp_line_options. */
enum esp_line_words esp_chat_kind(const char *before);
const char *esp_chat_word(const char *before, uint32_t i);

#endif
