/**
 * How an answer's tokens are chosen: the options that run and chat have in common, and the rules between them.
 */
#ifndef ESP_CLI_DECODING_H
#define ESP_CLI_DECODING_H

#include "cli/args.h"
#include "proto/status.h"
#include "proto/wire.h"

#define ESP_N_DECODING_ARGS 12

struct esp_decoding {
    struct esp_msg_sampling sampling; /* without bans */
    struct esp_ids ban;
    const char *suffix;
    uint32_t max_tokens;
};

/** Fills the table of options, and *d with their defaults. @param d  zeroed before */
void esp_decoding_args(struct esp_decoding *d, struct esp_arg args[ESP_N_DECODING_ARGS]);

/** ESP_E_ARG for options that do not go together, and why. */
esp_status esp_decoding_check(const struct esp_decoding *d, struct esp_err *err);

/** Puts them into a request, which borrows from *d. */
void esp_decoding_fill(struct esp_msg_request *request, const struct esp_decoding *d);

/** Whether several answers compete, so that none can be shown as it comes. */
bool esp_decoding_several(const struct esp_decoding *d);

#endif
