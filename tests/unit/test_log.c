/*
 * Log lines: their form, their levels, and that a stranger's words stay within one line.
 */
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "proto/log.h"

static int ends[2]; /* of the pipe that the log writes to */

static int setup(void **state)
{
    return pipe(ends);
}

static int teardown(void **state)
{
    return close(ends[0]) || close(ends[1]);
}

static struct esp_log log_to_pipe(const char *who)
{
    struct esp_log log;

    esp_log_init(&log, who);
    assert_int_equal(log.fd, STDERR_FILENO);
    assert_int_equal(log.level, ESP_LOG_INFO);
    log.fd = ends[1];
    return log;
}

/* What has been written, as a string. */
static const char *written(void)
{
    static char text[8192];
    ssize_t n;

    assert_int_equal(write(ends[1], "", 1), 1); /* so that there is something to read */
    n = read(ends[0], text, sizeof text);
    assert_true(n > 0 && text[n - 1] == '\0');
    return text;
}

static void test_form(void **state)
{
    struct esp_log log = log_to_pipe("w2");
    const char *line;
    regex_t form;

    esp_log(&log, ESP_LOG_WARN, "seq=%d peer_timeout last_ms=%d", 14, 5012);
    line = written();
    assert_int_equal(
        regcomp(&form,
                "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z warn w2 seq=14 "
                "peer_timeout last_ms=5012\n$",
                REG_EXTENDED | REG_NOSUB),
        0);
    if (regexec(&form, line, 0, NULL, 0) != 0)
        fail_msg("\"%s\"", line);
    regfree(&form);
}

static void test_levels(void **state)
{
    static const char *const names[] = {"error", "warn", "info", "debug", "trace"};
    struct esp_log log = log_to_pipe("c");
    enum esp_log_level level;

    for (int limit = ESP_LOG_ERROR; limit <= ESP_LOG_TRACE; limit++) {
        assert_true(esp_log_level_parse(&level, names[limit]));
        assert_int_equal(level, limit);
        log.level = level;
        for (int l = ESP_LOG_ERROR; l <= ESP_LOG_TRACE; l++) {
            char part[32];
            const char *line;
            esp_log(&log, (enum esp_log_level)l, "x");
            line = written();
            snprintf(part, sizeof part, " %s c x\n", names[l]);
            assert_int_equal(strstr(line, part) != NULL, l <= limit);
            assert_int_equal(*line != '\0', l <= limit);
        }
    }
    assert_false(esp_log_level_parse(&level, "loud"));
    assert_false(esp_log_level_parse(&level, ""));
    assert_int_equal(level, ESP_LOG_TRACE); /* as it was */
    esp_log(NULL, ESP_LOG_ERROR, "nobody listens");
}

static void test_one_line(void **state)
{
    struct esp_log log = log_to_pipe("a b\n\xff-_.9");
    char long_text[5000];
    const char *line;

    assert_string_equal(log.who, "a_b__-_.9");
    esp_log(&log, ESP_LOG_INFO, "peer said \"%s\"", "a\nerror c fake\r\x1b[2J\x7f");
    line = written();
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    assert_non_null(strstr(line, "peer said \"a?error c fake??[2J?\""));

    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    esp_log(&log, ESP_LOG_INFO, "%s", long_text); /* cut, and still one whole line */
    line = written();
    assert_true(strlen(line) < 2100);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    esp_log_init(&log, long_text);
    assert_int_equal(strlen(log.who), sizeof log.who - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_form, setup, teardown),
        cmocka_unit_test_setup_teardown(test_levels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_line, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
