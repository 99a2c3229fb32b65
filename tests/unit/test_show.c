/* Pictures in a terminal: a pseudo-terminal of known size takes what is drawn for terminals of several kinds. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/show.h"

#define COLUMNS 40
#define ROWS    20

/* What a terminal's kind is taken from; all but the two that a case sets are cleared. */
static const char *const variables[] = {
    "TERM", "COLORTERM", "TERM_PROGRAM",  "TERM_PROGRAM_VERSION", "KITTY_PID", "VTE_VERSION",
    "TMUX", "STY",       "XTERM_VERSION", "LC_TERMINAL",          "LC_ALL"};

static void environment(const char *term, const char *colours, const char *locale)
{
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
        unsetenv(variables[i]);
    if (term)
        setenv("TERM", term, 1);
    if (colours)
        setenv("COLORTERM", colours, 1);
    setenv("LC_ALL", locale, 1);
}

/* A picture that is red above and blue below. */
static struct esp_image picture(uint32_t width, uint32_t height)
{
    struct esp_image image = {width, height, calloc((size_t)width * height, 3)};

    assert_non_null(image.rgb);
    for (size_t i = 0; i < (size_t)width * height; i++)
        image.rgb[3 * i + (i / width < height / 2 ? 0 : 2)] = 255;
    return image;
}

/* The terminal's side: takes what comes until nobody is left who could write. */
struct screen {
    int master;
    size_t n;
    char text[1 << 20];
};

static void *watch(void *self)
{
    struct screen *s = self;
    ssize_t r;

    while (s->n < sizeof s->text - 1 && (r = read(s->master, s->text + s->n, sizeof s->text - 1 - s->n)) > 0)
        s->n += (size_t)r;
    s->text[s->n] = '\0';
    return NULL;
}

/* What esp_show writes to a terminal. */
static const char *shown(const struct esp_image *image, esp_status want, struct esp_err *err)
{
    const struct winsize size = {.ws_col = COLUMNS, .ws_row = ROWS};
    static struct screen screen;
    pthread_t watcher;
    FILE *to;
    int slave;

    screen.n = 0;
    screen.master = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(screen.master >= 0 && grantpt(screen.master) == 0 && unlockpt(screen.master) == 0);
    slave = open(ptsname(screen.master), O_RDWR | O_NOCTTY);
    assert_true(slave >= 0 && ioctl(slave, TIOCSWINSZ, &size) == 0);
    to = fdopen(slave, "w");
    assert_non_null(to);
    assert_int_equal(pthread_create(&watcher, NULL, watch, &screen), 0);
    assert_int_equal(esp_show(to, image, err), want);
    fclose(to);
    assert_int_equal(pthread_join(watcher, NULL), 0);
    close(screen.master);
    return screen.text;
}

static void test_kinds(void **state)
{
    static const struct {
        const char *term, *colours, *locale, *part, *other; /* what is there, and NULL or what is not */
    } cases[] = {
        {"xterm-kitty", NULL, "C.UTF-8", "\x1b_G", "\xe2\x96"},
        {"mlterm", NULL, "C.UTF-8", "\x1bP", "\xe2\x96"},
        {"xterm", NULL, "C.UTF-8", "\x1b[38;", "\x1bP"}, /* 256 colours or all of them, by version */
        {"xterm-256color", "truecolor", "C.UTF-8", ";2;", "\x1b_G"},
        {"xterm-256color", "truecolor", "C", ";2;", "\xe2"}, /* nothing but ASCII */
    };
    struct esp_image image = picture(64, 48);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *text;

        environment(cases[i].term, cases[i].colours, cases[i].locale);
        text = shown(&image, ESP_OK, NULL);
        if (!strstr(text, cases[i].part) || strstr(text, cases[i].other))
            fail_msg("%s, %s: %s", cases[i].term, cases[i].locale, text);
        assert_int_equal(text[strlen(text) - 1], '\n');
    }
    esp_image_finish(&image);
}

/* Both colours are there, red first; and no line is longer, nor are there more, than the window takes. */
static void test_size(void **state)
{
    static const uint32_t sizes[][2] = {{64, 48}, {1, 1}, {3000, 20}, {20, 3000}, {65535, 1}};

    environment("xterm-256color", "truecolor", "C");
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct esp_image image = picture(sizes[i][0], sizes[i][1]);
        const char *text = shown(&image, ESP_OK, NULL), *red = strstr(text, "255;0;0"),
                   *blue = strstr(text, "0;0;255");
        int columns = 0, rows = 0;

        assert_true(i > 0 || (red && blue && red < blue)); /* the others may mix them */
        for (const char *p = text; *p; p++) {
            if (*p == '\x1b') {
                while (*p && !strchr("mhl", *p)) /* the sequences that colours take, and hiding the cursor */
                    p++;
            } else if (*p == '\n') {
                columns = 0;
                rows++;
            } else if (*p != '\r') {
                columns++;
            }
            assert_true(columns <= COLUMNS);
        }
        assert_true(rows >= 1 && rows < ROWS);
        esp_image_finish(&image);
    }
}

static void test_no_terminal(void **state)
{
    static const char *const terms[] = {"dumb", "", NULL};
    struct esp_image image = picture(4, 4);
    struct esp_err err;
    FILE *file = tmpfile();

    assert_non_null(file);
    environment("xterm", NULL, "C");
    assert_int_equal(esp_show(file, &image, &err), ESP_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "no terminal"));
    assert_int_equal(ftell(file), 0);
    fclose(file);
    for (size_t i = 0; i < sizeof terms / sizeof terms[0]; i++) {
        environment(terms[i], NULL, "C");
        assert_string_equal(shown(&image, ESP_E_UNSUPPORTED, &err), "");
        assert_non_null(strstr(err.text, "shows no pictures"));
    }
    esp_image_finish(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_size),
        cmocka_unit_test(test_no_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
