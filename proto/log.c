#include "proto/log.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};

void esp_log_init(struct esp_log *log, const char *who)
{
    size_t n = 0;

    memset(log, 0, sizeof *log);
    log->level = ESP_LOG_INFO;
    log->fd = STDERR_FILENO;
    for (; *who && n + 1 < sizeof log->who; who++) {
        unsigned char c = (unsigned char)*who;
        log->who[n++] = isalnum(c) || c == '-' || c == '_' || c == '.' ? (char)c : '_';
    }
}

bool esp_log_level_parse(enum esp_log_level *out, const char *name)
{
    for (size_t i = 0; i < sizeof level_names / sizeof level_names[0]; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *out = (enum esp_log_level)i;
            return true;
        }
    }
    return false;
}

void esp_log(const struct esp_log *log, enum esp_log_level level, const char *fmt, ...)
{
    char line[2048];
    struct timespec now;
    struct tm tm;
    size_t n;
    int w;
    va_list ap;

    if (!log || level > log->level)
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    w = snprintf(line + n, sizeof line - n, ".%03ldZ %s %s ", now.tv_nsec / 1000000, level_names[level],
                 log->who);
    n += (size_t)w;
    va_start(ap, fmt);
    w = vsnprintf(line + n, sizeof line - n - 1, fmt, ap);
    va_end(ap);
    if (w < 0)
        return;
    for (size_t end = n; line[end]; end++) { /* one event, one line, whatever a peer put into it */
        unsigned char c = (unsigned char)line[end];
        if (c < 0x20 || c == 0x7f)
            line[end] = '?';
    }
    n = strlen(line);
    line[n++] = '\n';
    if (write(log->fd, line, n) < 0)
        return; /* nobody left to tell */
}
