/**
 * The embedded cluster: a coordinator and workers as child processes of ours.
 *
 * They talk over ipc:// sockets in a private directory (mode 0700, in $XDG_RUNTIME_DIR or /tmp). Each child
 * is in a process group of its own, so that the terminal's Ctrl-C reaches only us and the end has an order;
 * each dies with us whatever ends us. Their stderr comes through a pipe: it is passed on line by line, and
 * the last line is kept to say why a child ended. One such cluster a process.
 */
#ifndef ESP_CLI_EMBED_H
#define ESP_CLI_EMBED_H

#include "cli/args.h"
#include "cli/term.h"
#include "proto/link.h"
#include "proto/status.h"

#define ESP_EMBED_MAX_WORKERS 64
#define ESP_EMBED_MAX_WAITS   (ESP_EMBED_MAX_WORKERS + 1)

struct esp_embed;

struct esp_embed_options {
    const char *model;
    uint32_t n_workers;              /* 1 .. ESP_EMBED_MAX_WORKERS */
    const struct esp_texts *devices; /* worker i gets number i modulo n; n 0: each chooses for itself */
    const char *bind;                /* the coordinator's endpoint; NULL: in the private directory */
    const char *split;               /* passed on to the coordinator; NULL: placed by measurement */
    uint32_t context, kv_tokens;     /* tokens; 0: the coordinator's default */
    uint32_t memory_mib;             /* of each worker; 0: what its device offers */
    bool final_softcap, insecure;
    const char *weights; /* passed on; NULL: as stored */
    const char *keys; /* what keygen made, whole: coordinator/ and workers/w0, w1, ... are used; NULL: none */
    unsigned verbose; /* children's log: 0 warn, 1 info, 2 debug, 3 trace */
};

/**
 * Starts the processes; does not wait until they are ready. esp_signals_install comes first.
 * @param term  children's lines are printed through it; borrowed
 * Errors: ESP_E_IO (program, directory or process could not be had), ESP_E_ARG (endpoint), ESP_E_NOMEM.
 */
esp_status esp_embed_start(struct esp_embed **out, const struct esp_embed_options *options,
                           struct esp_term *term, struct esp_err *err);

/** Where to connect to. */
const char *esp_embed_endpoint(const struct esp_embed *embed);

/** Workers that still run. */
uint32_t esp_embed_n_alive(const struct esp_embed *embed);

/** What a loop has to wait for: at most ESP_EMBED_MAX_WAITS entries; returns how many. NULL has none. */
uint32_t esp_embed_waits(const struct esp_embed *embed, struct esp_wait *waits);

/**
 * Passes on what the children wrote and looks who has ended; never blocks. NULL is fine.
 * Errors: ESP_E_CLOSED once for each child that has ended, with its name, how it ended and its last words.
 */
esp_status esp_embed_pump(struct esp_embed *embed, struct esp_err *err);

/** True when the coordinator has ended. */
bool esp_embed_headless(const struct esp_embed *embed);

/** Ends the children (SIGTERM, 2 s, SIGKILL), waits for them, removes the directory. */
void esp_embed_stop(struct esp_embed **embed);

/**
 * Path of one of our programs: beside the running one, else what $PATH finds.
 * @param out  n_out bytes
 * Errors: ESP_E_IO: nowhere.
 */
esp_status esp_program_path(char *out, size_t n_out, const char *name, struct esp_err *err);

#endif
