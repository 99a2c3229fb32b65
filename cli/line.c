#include "cli/line.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <readline/history.h>
#include <readline/readline.h>

#include "cli/signals.h"

#define MAX_HISTORY 1000 /* lines kept */
#define MAX_PATH    4096

struct esp_line {
    struct esp_line_options opt;
    bool interactive;
    /* A terminal's. */
    char history[MAX_PATH]; /* its file; "": none */
    char *typed;            /* the line that readline has handed over */
    bool has_typed;
    /* A pipe's. */
    char *buf;
    size_t n, begin; /* bytes in buf, and where the next line begins */
    bool end, skipping;
};

static struct esp_line *the_line; /* readline calls back without any argument of ours */

/* ---- history ---- */

/* Makes the directories of a path, each for its owner alone. */
static bool make_parents(char *path)
{
    for (char *p = path + 1; *p; p++) {
        bool made;

        if (*p != '/')
            continue;
        *p = '\0';
        made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *p = '/';
        if (!made)
            return false;
    }
    return true;
}

/* Where the history is kept: prompts are private, so nobody else may read it. */
static void open_history(struct esp_line *l)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int n, fd = -1;

    if (state && state[0] == '/')
        n = snprintf(l->history, sizeof l->history, "%s/espalier/history", state);
    else
        n = home && home[0] == '/'
                ? snprintf(l->history, sizeof l->history, "%s/.local/state/espalier/history", home)
                : 0;
    if (n > 0 && (size_t)n < sizeof l->history && make_parents(l->history))
        fd = open(l->history, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || fchmod(fd, 0600) != 0)
        l->history[0] = '\0'; /* forgotten at the end, then */
    else if (read_history(l->history) == 0)
        history_set_pos(history_length);
    if (fd >= 0)
        close(fd);
    stifle_history(MAX_HISTORY);
}

static void remember(struct esp_line *l, const char *line)
{
    const HIST_ENTRY *last = history_length > 0 ? history_get(history_base + history_length - 1) : NULL;

    if (line[strspn(line, " \t")] == '\0' || (last && strcmp(last->line, line) == 0))
        return;
    add_history(line);
    if (l->history[0])
        (void)append_history(1, l->history);
}

/* ---- readline ---- */

static void on_line(char *typed)
{
    the_line->typed = typed;
    the_line->has_typed = true;
    rl_callback_handler_remove(); /* the terminal is an ordinary one while the line is dealt with */
}

static char *next_word(const char *word, int state)
{
    static uint32_t i;
    char before[1024];
    const char *candidate;

    snprintf(before, sizeof before, "%.*s", rl_point - (int)strlen(word), rl_line_buffer);
    if (state == 0)
        i = 0;
    while ((candidate = the_line->opt.word(before, i)) != NULL) {
        i++;
        if (strncmp(candidate, word, strlen(word)) == 0)
            return strdup(candidate);
    }
    return NULL;
}

static char **complete(const char *word, int start, int end)
{
    char before[1024];

    snprintf(before, sizeof before, "%.*s", start, rl_line_buffer);
    switch (the_line->opt.kind(before)) {
    case ESP_LINE_LISTED:
        rl_attempted_completion_over = 1;
        return rl_completion_matches(word, next_word);
    case ESP_LINE_FILES:
        return NULL; /* readline's own */
    case ESP_LINE_NONE:
        break;
    }
    rl_attempted_completion_over = 1;
    return NULL;
}

/* Makes room for a line of somebody else's, and draws what stood there again below it. */
static void aside(bool begin)
{
    if (!RL_ISSTATE(RL_STATE_CALLBACK))
        return;
    if (begin) {
        fputs("\r\033[K", rl_outstream);
        fflush(rl_outstream);
    } else {
        rl_forced_update_display();
    }
}

static void begin_typing(struct esp_line *l)
{
    l->has_typed = false;
    l->typed = NULL;
    rl_callback_handler_install(l->opt.prompt, on_line);
    l->opt.term->aside = aside;
}

static void end_typing(struct esp_line *l)
{
    l->opt.term->aside = NULL;
    if (!l->has_typed)
        rl_callback_handler_remove();
}

static void drop_typed(void)
{
    rl_callback_sigcleanup();
    rl_replace_line("", 1);
    rl_point = rl_end = 0;
    fputs("^C\n", rl_outstream);
    rl_on_new_line();
    rl_redisplay();
}

static void init_readline(struct esp_line *l)
{
    rl_readline_name = "espalier";
    rl_catch_signals = 0; /* they are ours */
    rl_outstream = isatty(STDOUT_FILENO) ? stdout : stderr;
    rl_attempted_completion_function = complete;
    rl_basic_word_break_characters = " \t";
    rl_completer_quote_characters = "\"'";
    rl_filename_quote_characters = " \t\"'\\";
    rl_variable_bind("enable-bracketed-paste", "off"); /* a pasted picture's name, and nothing around it */
    open_history(l);
}

/* ---- a pipe ---- */

static esp_status take_line(struct esp_line *l, size_t n, char **out, struct esp_err *err)
{
    esp_status st = ESP_OK;
    char *line = l->buf + l->begin;

    if (n > 0 && line[n - 1] == '\r')
        n--;
    if (memchr(line, '\0', n)) {
        st = esp_fail(err, ESP_E_FORMAT, "a line with a NUL character");
    } else {
        *out = strndup(line, n);
        if (!*out)
            st = esp_fail(err, ESP_E_NOMEM, "out of memory");
    }
    return st;
}

/* A line out of what has been read. @param whole  whether there was one: *out, or the failure */
static esp_status cut_line(struct esp_line *l, char **out, bool *whole, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const char *end = memchr(l->buf + l->begin, '\n', l->n - l->begin);
    size_t n = end ? (size_t)(end - (l->buf + l->begin)) : l->n - l->begin;

    *whole = end || (l->end && (n > 0 || l->skipping));
    if (*whole && l->skipping) {
        l->skipping = false;
        st = esp_fail(err, ESP_E_LIMIT, "a line of more than %d bytes", ESP_LINE_MAX);
    } else if (*whole) {
        st = take_line(l, n, out, err);
    }
    if (*whole) {
        l->begin += n + (end != NULL);
        return st;
    }
    memmove(l->buf, l->buf + l->begin, n);
    l->begin = 0;
    l->n = n;
    if (n == ESP_LINE_MAX) { /* its beginning is of no use */
        l->skipping = true;
        l->n = 0;
    }
    return ESP_OK;
}

static esp_status fill(struct esp_line *l, struct esp_err *err)
{
    const ssize_t n = read(STDIN_FILENO, l->buf + l->n, ESP_LINE_MAX - l->n);

    if (n < 0 && errno != EINTR && errno != EAGAIN)
        return esp_fail(err, ESP_E_IO, "standard input: %s", strerror(errno));
    if (n > 0)
        l->n += (size_t)n;
    l->end |= n == 0;
    return ESP_OK;
}

/* ---- both ---- */

/* Sleeps until there is something to read, or a signal, or the cluster has something to say, and sees to that. */
static esp_status wait_for_input(struct esp_line *l, bool *ready, struct esp_err *err)
{
    struct esp_wait waits[ESP_EMBED_MAX_WAITS + 2] = {{.fd = STDIN_FILENO}, {.fd = esp_signals_fd()}};
    const uint32_t n = 2 + esp_embed_waits(l->opt.embed, waits + 2);
    esp_status st = esp_link_wait(waits, n, -1, err);

    if (st)
        return st;
    *ready = waits[0].ready;
    esp_signals_drain();
    while ((st = esp_embed_pump(l->opt.embed, err)) == ESP_E_CLOSED) {
        if (esp_embed_headless(l->opt.embed) || esp_embed_n_alive(l->opt.embed) == 0)
            return st;
        esp_term_line(l->opt.term, "%s; %u workers are left", err->text, esp_embed_n_alive(l->opt.embed));
    }
    if (st)
        return st;
    if (esp_signals_stop() == SIGINT && l->interactive) {
        esp_signals_forgive();
        drop_typed();
    }
    return esp_signals_stop() ? esp_fail(err, ESP_E_CANCELLED, "cancelled") : ESP_OK;
}

static esp_status read_typed(struct esp_line *l, char **out, struct esp_err *err)
{
    esp_status st = ESP_OK;
    bool ready;

    begin_typing(l);
    while (st == ESP_OK && !l->has_typed) {
        st = wait_for_input(l, &ready, err);
        if (st == ESP_OK && ready)
            rl_callback_read_char();
    }
    end_typing(l);
    if (st)
        return st;
    if (!l->typed) {
        fputc('\n', rl_outstream);
        return ESP_OK;
    }
    if (strlen(l->typed) > ESP_LINE_MAX) {
        free(l->typed);
        return esp_fail(err, ESP_E_LIMIT, "a line of more than %d bytes", ESP_LINE_MAX);
    }
    remember(l, l->typed);
    *out = l->typed;
    return ESP_OK;
}

static esp_status read_piped(struct esp_line *l, char **out, struct esp_err *err)
{
    for (;;) {
        bool whole, ready = false;
        esp_status st = cut_line(l, out, &whole, err);

        if (st || whole || l->end)
            return st;
        st = wait_for_input(l, &ready, err);
        if (st == ESP_OK && ready)
            st = fill(l, err);
        if (st)
            return st;
    }
}

esp_status esp_line_read(struct esp_line *line, char **out, struct esp_err *err)
{
    *out = NULL;
    return line->interactive ? read_typed(line, out, err) : read_piped(line, out, err);
}

esp_status esp_line_open(struct esp_line **out, const struct esp_line_options *options, struct esp_err *err)
{
    struct esp_line *l = calloc(1, sizeof *l);

    *out = NULL;
    if (l)
        l->buf = malloc(ESP_LINE_MAX);
    if (!l || !l->buf) {
        free(l);
        return esp_fail(err, ESP_E_NOMEM, "out of memory");
    }
    l->opt = *options;
    l->interactive = isatty(STDIN_FILENO) && (isatty(STDOUT_FILENO) || isatty(STDERR_FILENO));
    the_line = l;
    if (l->interactive)
        init_readline(l);
    *out = l;
    return ESP_OK;
}

void esp_line_close(struct esp_line **line)
{
    struct esp_line *l = *line;

    if (!l)
        return;
    if (l->interactive && l->history[0])
        (void)history_truncate_file(l->history, MAX_HISTORY);
    clear_history();
    free(l->buf);
    free(l);
    the_line = NULL;
    *line = NULL;
}

bool esp_line_is_interactive(const struct esp_line *line)
{
    return line->interactive;
}
