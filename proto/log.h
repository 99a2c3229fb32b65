/**
 * The log: levels and one sink a process. One greppable line a decision, on stderr by default:
 *
 *   2026-11-23T09:00:01.123Z warn w2 seq=14 epoch=3 peer_timeout last_ms=5012 action=replace
 *
 * error  a request or node is lost      warn   we went on       info  a few lines a run
 * debug  one a request                  trace  one an op        No prompt and no picture at info.
 *
 * A logger is passed to whom it serves; NULL is silent. Safe from any thread: a line is one write().
 */
#ifndef ESP_PROTO_LOG_H
#define ESP_PROTO_LOG_H

#include <stdbool.h>

enum esp_log_level { ESP_LOG_ERROR, ESP_LOG_WARN, ESP_LOG_INFO, ESP_LOG_DEBUG, ESP_LOG_TRACE };

struct esp_log {
    enum esp_log_level level; /* lines above it are dropped */
    int fd;                   /* where lines go */
    char who[64];             /* "coordinator", "w2": the second word of each line after the level */
};

/** Fills *log: fd 2, level info, the given name (cut to fit; letters, digits, '-', '_' and '.' only). */
void esp_log_init(struct esp_log *log, const char *who);

/** Level from its name; false, leaving *out, when there is no such level. */
bool esp_log_level_parse(enum esp_log_level *out, const char *name);

/** Writes a line; text from outside has its control characters replaced by '?'. */
void esp_log(const struct esp_log *log, enum esp_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
