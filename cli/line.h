/**
 * Lines that somebody types, or that a file or pipe holds. The one place that sees readline.
 *
 * On a terminal: a prompt, editing, completion and a history that is kept in a file. Else: lines as they are, and no
 * prompt. While it waits it passes on what an embedded cluster writes. Readline has one terminal, so there is one of
 * these a process.
 */
#ifndef ESP_CLI_LINE_H
#define ESP_CLI_LINE_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/embed.h"
#include "cli/term.h"
#include "proto/status.h"

#define ESP_LINE_MAX (65536 + 256) /* bytes; the longest prompt and a command before it */

struct esp_line;

/** What a word could be; NULL behind the last. */
enum esp_line_words { ESP_LINE_NONE, ESP_LINE_LISTED, ESP_LINE_FILES };

struct esp_line_options {
    const char *prompt;
    struct esp_embed *embed; /* NULL: none */
    struct esp_term *term;
    /** What may follow `before`, the line up to the word that is being typed. LISTED: number i of them, NULL: no more. */
    enum esp_line_words (*kind)(const char *before);
    const char *(*word)(const char *before, uint32_t i);
};

/**
 * @param options  borrowed for the line's life, but for the struct itself
 * Errors: ESP_E_NOMEM. A history that cannot be read or written is no error.
 */
esp_status esp_line_open(struct esp_line **out, const struct esp_line_options *options, struct esp_err *err);

/** Keeps the history, and leaves the terminal as it was. */
void esp_line_close(struct esp_line **line);

bool esp_line_is_interactive(const struct esp_line *line);

/**
 * The next line, without its end.
 *
 * @param out  free() it; NULL at the end of input (Ctrl-D)
 * Errors: ESP_E_LIMIT (more than ESP_LINE_MAX bytes) and ESP_E_FORMAT (a NUL): that line is skipped. ESP_E_CANCELLED: a
 * signal; on a terminal SIGINT only clears what was typed. ESP_E_CLOSED: the embedded cluster's coordinator has ended, or
 * all its workers. ESP_E_IO, ESP_E_NOMEM.
 */
esp_status esp_line_read(struct esp_line *line, char **out, struct esp_err *err);

#endif
