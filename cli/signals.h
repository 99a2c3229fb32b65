/**
 * Signals as something a loop can wait for.
 *
 * The first SIGINT, SIGTERM or SIGHUP is a request to end: it makes esp_signals_fd() readable. The second one
 * ends the process at once, from the handler, after the function given to esp_signals_at_once has run.
 * SIGCHLD makes the descriptor readable too. SIGPIPE is ignored: a closed stdout is a write error, which
 * cleans up.
 */
#ifndef ESP_CLI_SIGNALS_H
#define ESP_CLI_SIGNALS_H

#include "proto/status.h"

/** Installs the handlers; once a process. Before it, signals have their usual effect. */
esp_status esp_signals_install(struct esp_err *err);

/** Readable once a signal came; esp_signals_drain empties it. -1 before esp_signals_install. */
int esp_signals_fd(void);
void esp_signals_drain(void);

/** The signal that asked for the end; 0: none so far. */
int esp_signals_stop(void);

/**
 * For a program that goes on after Ctrl-C: from here on SIGINT only ever asks, however often it comes, and
 * esp_signals_forgive takes the question back. Other signals end it as before.
 */
void esp_signals_keep_on(void);
void esp_signals_forgive(void);

/** What to do before a second signal's _exit: async-signal-safe. NULL: nothing. */
void esp_signals_at_once(void (*clean_up)(void));

/** In a child, between fork and exec: everything as it was. */
void esp_signals_reset(void);

#endif
