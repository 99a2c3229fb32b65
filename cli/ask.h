/**
 * What run, score, chat and verify share: where the cluster is, the pictures, the way from a request to its reply.
 */
#ifndef ESP_CLI_ASK_H
#define ESP_CLI_ASK_H

#include "cli/args.h"
#include "cli/client.h"
#include "cli/embed.h"
#include "cli/term.h"
#include "model/config.h"
#include "model/wtype.h"
#include "proto/wire.h"

#define ESP_DEFAULT_WORKERS 2 /* so that the cluster's path is what everyone uses */
#define ESP_N_CLUSTER_ARGS  12
#define ESP_N_INPUT_ARGS    1
#define ESP_N_OUTPUT_ARGS   3

/** Which cluster: the options, their defaults, what was given. Zero it first. */
struct esp_where {
    const char *model, *connect, *split, *keys, *weights;
    struct esp_texts devices;
    uint32_t workers, context, kv_tokens, memory_mib;
    uint32_t patience; /* seconds */
    bool final_softcap;
    bool workers_given, context_given, patience_given;
};

struct esp_ask {
    struct esp_where where;
    struct esp_texts images;
    bool json;
    unsigned verbose;
    uint32_t at_once;  /* requests under way at once: a cluster started here has room for so many; 0: one */
    const char *trace; /* file to write intermediate values to; NULL: none */
    const char *prompt;
    char *prompt_read; /* the prompt, when it came from stdin */

    struct esp_term term;
    bool has_config; /* a model directory was given and its config read */
    struct esp_config config;
    struct esp_embed *embed;
    struct esp_client *client;
    uint32_t n_blobs;
    void *blob[ESP_MAX_BLOBS]; /* image files, read */
    char *image_name[ESP_MAX_BLOBS];
};

/** Fills the tables of options; the targets are in *where and *ask. */
void esp_where_args(struct esp_where *where, struct esp_arg args[ESP_N_CLUSTER_ARGS]);
void esp_input_args(struct esp_ask *ask, struct esp_arg args[ESP_N_INPUT_ARGS]);
void esp_output_args(struct esp_ask *ask, struct esp_arg args[ESP_N_OUTPUT_ARGS]);

/** Rules between the options; takes $ESPALIER_MODEL where no model was given. An exit status, or
 * ESP_ARGS_GO_ON. */
int esp_where_check(const struct esp_command_help *command, struct esp_where *where);
int esp_ask_check(const struct esp_command_help *command, struct esp_ask *ask);

/**
 * What a model directory's own checks say, without starting anything.
 * @param option  that names it, "--model": for the cause
 * @param config  may be NULL
 */
esp_status esp_ask_check_model(const char *option, const char *dir, struct esp_config *config,
                               struct esp_err *err);

/** Options of an embedded cluster as *where has them. */
void esp_where_embed_options(const struct esp_where *where, unsigned verbose, struct esp_embed_options *out);

/** Whether a file can be written there, before anything is computed for it. Leaves what was there, and nothing else. */
esp_status esp_ask_check_writable(const char *path, struct esp_err *err);

/**
 * Reads prompt and pictures, puts them into the request (ESP_MSG_REQUEST, otherwise filled), starts or dials
 * the cluster. Whatever comes of it, esp_ask_close follows.
 */
esp_status esp_ask_open(struct esp_ask *ask, struct esp_msg *request, struct esp_err *err);

/**
 * The cluster alone: opens the model where one is named, starts or dials the cluster.
 * @param largest  a cluster started here has room for such a request; NULL: for what a coordinator takes to be usual
 */
esp_status esp_ask_connect(struct esp_ask *ask, const struct esp_msg_request *largest, struct esp_err *err);

/** Ends the embedded cluster, if any, and frees everything but the options. */
void esp_ask_close(struct esp_ask *ask);

/** Progress of a request on the terminal: hooks of esp_client_ask, `ask` is their self. */
void esp_ask_waiting(struct esp_ask *ask, const struct esp_msg_waiting *waiting);

/** One line a stage on stderr, and a word about software drivers; with --json only if it is to be verbose. */
void esp_ask_tell_stages(struct esp_ask *ask, const struct esp_msg_accepted *accepted);

/** Says on stderr why the command failed and returns its exit status. */
int esp_ask_failed(struct esp_term *term, const char *command, const struct esp_err *err);

#endif
