#include "cli/term.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "proto/clock.h"

#define REDRAW_MS 80

void esp_term_init(struct esp_term *term)
{
    const char *kind = getenv("TERM");

    memset(term, 0, sizeof *term);
    term->progress = isatty(STDERR_FILENO) && kind && *kind && strcmp(kind, "dumb") != 0;
    term->screen = isatty(STDOUT_FILENO);
    term->at_start = true;
}

void esp_term_progress(struct esp_term *term, const char *fmt, ...)
{
    char line[512];
    struct winsize size;
    int64_t now = esp_now_ms();
    va_list ap;
    int n;

    if (!term->progress || (term->shown && now - term->last_ms < REDRAW_MS))
        return;
    va_start(ap, fmt);
    n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 && size.ws_col <= sizeof line)
        line[size.ws_col - 1] = '\0'; /* a line that wraps could not be erased */
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    term->shown = true;
    term->last_ms = now;
}

void esp_term_clear(struct esp_term *term)
{
    if (!term->shown)
        return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    term->shown = false;
}

void esp_term_line(struct esp_term *term, const char *fmt, ...)
{
    char line[4096];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    for (char *p = line; *p; p++) { /* part of it may be a peer's words */
        if (((unsigned char)*p < 0x20 && *p != '\t' && *p != '\n') || *p == 0x7f)
            *p = '?';
    }
    esp_term_clear(term);
    if (term->aside)
        term->aside(true);
    fprintf(stderr, "%s\n", line);
    if (term->aside)
        term->aside(false);
}

static esp_status flush_stdout(struct esp_err *err)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        return esp_fail(err, ESP_E_IO, "standard output: %s", strerror(errno));
    return ESP_OK;
}

esp_status esp_term_text(struct esp_term *term, const char *text, struct esp_err *err)
{
    if (!*text)
        return ESP_OK;
    esp_term_clear(term);
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;

        if (c == 0xc2 && (unsigned char)p[1] >= 0x80 && (unsigned char)p[1] < 0xa0) { /* C1, in UTF-8 */
            control = true;
            p += term->screen;
        }
        putchar(control && term->screen ? '?' : c);
        term->at_start = c == '\n';
    }
    return flush_stdout(err);
}

esp_status esp_term_end(struct esp_term *term, struct esp_err *err)
{
    esp_term_clear(term);
    putchar('\n');
    term->at_start = true;
    return flush_stdout(err);
}
