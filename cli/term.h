/**
 * What people see: lines on stderr, a progress line where stderr is a terminal, the answer's text on stdout.
 */
#ifndef ESP_CLI_TERM_H
#define ESP_CLI_TERM_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

struct esp_term {
    bool progress;   /* stderr is a terminal that can erase a line */
    bool shown;      /* a progress line stands there now */
    int64_t last_ms; /* when it was last drawn */
    bool screen;     /* stdout is a terminal: control characters of an answer are not passed on */
    bool at_start;   /* stdout's cursor is at the start of a line */
    void (*aside)(
        bool begin); /* what to do before and after a line, where something else stands; NULL: nothing */
};

void esp_term_init(struct esp_term *term);

/** Draws or replaces the progress line; at most some ten times a second. Nothing without a terminal. */
void esp_term_progress(struct esp_term *term, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/** Erases the progress line, if any. */
void esp_term_clear(struct esp_term *term);

/** A line on stderr, in place of the progress line. */
void esp_term_line(struct esp_term *term, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/** Text of an answer on stdout, flushed. On a terminal its control characters but \n and \t become '?'. */
esp_status esp_term_text(struct esp_term *term, const char *text, struct esp_err *err);

/** Ends the answer's last line and flushes; also where nothing was printed. */
esp_status esp_term_end(struct esp_term *term, struct esp_err *err);

#endif
