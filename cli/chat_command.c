/* The lines of a chat that begin with a slash. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/chat.h"
#include "cli/cluster.h"
#include "cli/figures.h"

#define STATUS_MS 5000

/* What /set sets, in the order in which it shows them. */
static const char *const settings[] = {"temperature", "top-k", "top-p", "max-tokens", "seed", "beams"};

#define N_SETTINGS (sizeof settings / sizeof settings[0])

/* ---- words ---- */

struct words {
    char *text; /* the words, NUL-terminated one behind the other */
    char *at[ESP_MAX_BLOBS + 1];
    uint32_t n;
};

/* One word of *p, unquoted to *to: spaces end it, unless between quotes or behind a backslash. */
static esp_status take_word(const char **p, char **to, struct esp_err *err)
{
    char quote = 0;

    for (; **p && (quote || !isspace((unsigned char)**p)); ++*p) {
        if (quote ? **p == quote : **p == '"' || **p == '\'')
            quote = quote ? 0 : **p;
        else if (**p == '\\' && quote != '\'' && (*p)[1])
            *(*to)++ = *++*p;
        else
            *(*to)++ = **p;
    }
    *(*to)++ = '\0';
    return quote ? esp_fail(err, ESP_E_ARG, "a quote (%c) is not closed", quote) : ESP_OK;
}

/* File names: "~/" is the home directory. */
static esp_status split(struct words *out, const char *args, struct esp_err *err)
{
    const char *home = getenv("HOME");
    const size_t n_home = home ? strlen(home) : 0;
    esp_status st = ESP_OK;
    char *to;

    memset(out, 0, sizeof *out);
    out->text = to = malloc(strlen(args) + 1 + (n_home + 1) * (ESP_MAX_BLOBS + 1));
    if (!to)
        return esp_fail(err, ESP_E_NOMEM, "out of memory");
    while (st == ESP_OK && *(args += strspn(args, " \t"))) {
        if (out->n == ESP_MAX_BLOBS) {
            st = esp_fail(err, ESP_E_LIMIT, "more than %d files", ESP_MAX_BLOBS);
            break;
        }
        out->at[out->n++] = to;
        if (home && args[0] == '~' && args[1] == '/') {
            memcpy(to, home, n_home);
            to += n_home;
            args++;
        }
        st = take_word(&args, &to, err);
    }
    if (st)
        free(out->text);
    return st;
}

/* ---- pictures ---- */

static esp_status show_pictures(const struct esp_chat *chat, struct esp_err *err)
{
    if (chat->n_pictures == 0)
        printf("no picture: /image FILE\n");
    for (uint32_t i = 0; i < chat->n_pictures; i++)
        printf("%u: %s (%s)\n", i + 1, chat->picture[i].path,
               esp_figure_bytes((double)chat->picture[i].n_bytes).s);
    if (fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

static esp_status take_pictures(struct esp_chat *chat, const char *args, bool add, struct esp_err *err)
{
    struct words words;
    esp_status st = split(&words, args, err);

    if (st)
        return st;
    st = words.n > 0 ? esp_chat_pictures(chat, words.at, words.n, add, err) : show_pictures(chat, err);
    free(words.text);
    return st;
}

static esp_status do_image(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    return take_pictures(chat, args, false, err);
}

static esp_status do_add(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    if (!*args)
        return esp_fail(err, ESP_E_ARG, "/add FILE: which?");
    return take_pictures(chat, args, true, err);
}

/* ---- questions ---- */

static esp_status ask_about(struct esp_chat *chat, const char *before, const char *args, struct esp_err *err)
{
    const size_t n = strlen(before) + strlen(args) + 1;
    char *prompt = malloc(n);
    esp_status st;

    if (!prompt)
        return esp_fail(err, ESP_E_NOMEM, "out of memory");
    snprintf(prompt, n, "%s%s", before, args);
    st = esp_chat_ask(chat, prompt, err);
    free(prompt);
    return st;
}

static esp_status do_detect(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    if (!*args)
        return esp_fail(err, ESP_E_ARG, "/detect THINGS: which? Several are parted by ';'");
    return ask_about(chat, "detect ", args, err);
}

static esp_status do_segment(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    if (!*args)
        return esp_fail(err, ESP_E_ARG, "/segment THING: which?");
    return ask_about(chat, "segment ", args, err);
}

static esp_status do_caption(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    return ask_about(chat, "caption ", *args ? args : "en", err);
}

static esp_status do_ocr(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    if (*args)
        return esp_fail(err, ESP_E_ARG, "/ocr takes nothing behind it");
    return esp_chat_ask(chat, "ocr", err);
}

static esp_status do_ask(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    if (!*args)
        return esp_fail(err, ESP_E_ARG, "/ask QUESTION: which?");
    return ask_about(chat, "answer en ", args, err);
}

static esp_status do_save(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    struct words words;
    esp_status st = split(&words, args, err);

    if (st)
        return st;
    st = words.n == 1 ? esp_chat_save(chat, words.at[0], err)
                      : esp_fail(err, ESP_E_ARG, "/save FILE.png: %s", words.n ? "one file" : "where?");
    free(words.text);
    return st;
}

static esp_status do_show(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    if (*args)
        return esp_fail(err, ESP_E_ARG, "/show takes nothing behind it");
    return esp_chat_show(chat, err);
}

/* ---- settings ---- */

static const struct esp_arg *setting(const struct esp_chat *chat, const char *name, size_t n)
{
    for (size_t s = 0; s < N_SETTINGS; s++)
        if (strlen(settings[s]) == n && memcmp(settings[s], name, n) == 0)
            for (size_t i = 0; i < ESP_N_DECODING_ARGS; i++)
                if (strcmp(chat->decoding_args[i].name, settings[s]) == 0)
                    return &chat->decoding_args[i];
    return NULL;
}

static void print_setting(const struct esp_arg *a)
{
    printf("%-12s", a->name);
    if (a->kind == ESP_ARG_REAL)
        printf("%.15g\n", *(const double *)a->out);
    else if (a->kind == ESP_ARG_U64)
        printf("%llu\n", (unsigned long long)*(const uint64_t *)a->out);
    else
        printf("%u\n", *(const uint32_t *)a->out);
}

static esp_status show_settings(const struct esp_chat *chat, struct esp_err *err)
{
    for (size_t s = 0; s < N_SETTINGS; s++)
        print_setting(setting(chat, settings[s], strlen(settings[s])));
    if (fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

static esp_status do_set(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    const struct esp_decoding before = chat->decoding;
    const size_t n = strcspn(args, " \t");
    const char *value = args + n + strspn(args + n, " \t");
    const struct esp_arg *a;
    esp_status st;

    if (!*args)
        return show_settings(chat, err);
    a = setting(chat, args, n);
    if (!a)
        return esp_fail(err, ESP_E_ARG,
                        "/set %.*s: there are temperature, top-k, top-p, max-tokens, seed and beams", (int)n,
                        args);
    if (!esp_arg_set(a, value))
        return a->kind == ESP_ARG_U64
                   ? esp_fail(err, ESP_E_ARG, "/set %s %s: expected a whole number", a->name, value)
                   : esp_fail(err, ESP_E_ARG, "/set %s %s: expected a %snumber from %.15g to %.15g", a->name,
                              value, a->kind == ESP_ARG_REAL ? "" : "whole ", a->min, a->max);
    st = esp_decoding_check(&chat->decoding, err);
    if (st)
        chat->decoding = before;
    return st;
}

/* ---- stats ---- */

static void print_last(const struct esp_chat_last *l)
{
    if (!l->any)
        return;
    printf("\nthe last answer: %u tokens behind a prompt of %u\n", l->n_tokens, l->n_prompt);
    printf("  load %.2f s, queue %.2f s, encode %.2f s, prefill %.2f s, decode %.2f s", l->load, l->queue,
           l->encode, l->prefill, l->decode);
    if (l->n_tokens > 1 && l->decode > 0) /* the first token is the prefill's */
        printf(" (%.2f tokens/s)", (l->n_tokens - 1) / l->decode);
    printf("\n  pictures: %u of %u from the cache\n", l->n_cached, l->n_pictures);
    if (l->n_rebuilds > 0)
        printf("  rebuilt %u time%s after the loss of a worker\n", l->n_rebuilds,
               l->n_rebuilds > 1 ? "s" : "");
}

static esp_status do_stats(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    struct esp_msg msg;
    esp_status st;

    if (*args)
        return esp_fail(err, ESP_E_ARG, "/stats takes nothing behind it");
    st = esp_client_status(&msg, chat->ask.client, STATUS_MS, err);
    if (st)
        return st;
    esp_cluster_print_status(stdout, &msg.status);
    esp_msg_finish(&msg);
    print_last(&chat->last);
    if (fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

/* ---- the table ---- */

static esp_status do_help(struct esp_chat *chat, const char *args, struct esp_err *err);

static esp_status do_quit(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    chat->quit = true;
    return ESP_OK;
}

static const struct {
    const char *name, *args, *about;
    esp_status (*run)(struct esp_chat *chat, const char *args, struct esp_err *err);
    enum esp_line_words follow;
} commands[] = {
    {"/image", "FILE...", "the pictures to talk about from here on; alone: which they are", do_image,
     ESP_LINE_FILES},
    {"/add", "FILE...", "more pictures, behind those", do_add, ESP_LINE_FILES},
    {"/caption", "[LANGUAGE]", "the prompt \"caption en\", or in that language", do_caption, ESP_LINE_NONE},
    {"/ask", "QUESTION", "the prompt \"answer en QUESTION\"", do_ask, ESP_LINE_NONE},
    {"/detect", "THING ; ...",
     "the prompt \"detect THING ; ...\": places come as <loc....> tokens, and as pixels", do_detect,
     ESP_LINE_NONE},
    {"/segment", "THING", "the prompt \"segment THING\": outlines come as <seg...> tokens", do_segment,
     ESP_LINE_NONE},
    {"/ocr", "", "the prompt \"ocr\"", do_ocr, ESP_LINE_NONE},
    {"/save", "FILE.png", "the first picture with what the last answer found on it; its masks beside it",
     do_save, ESP_LINE_FILES},
    {"/show", "", "the same in the terminal", do_show, ESP_LINE_NONE},
    {"/set", "[NAME VALUE]", "temperature, top-k, top-p, max-tokens, seed, beams; alone: what they are",
     do_set, ESP_LINE_LISTED},
    {"/stats", "", "how the cluster is, and how long the last answer took", do_stats, ESP_LINE_NONE},
    {"/help", "", "this", do_help, ESP_LINE_NONE},
    {"/quit", "", "end, as Ctrl-D does", do_quit, ESP_LINE_NONE},
};

#define N_COMMANDS (sizeof commands / sizeof commands[0])

static esp_status do_help(struct esp_chat *chat, const char *args, struct esp_err *err)
{
    printf("Any other line is a prompt about the pictures: caption en, answer en how many dogs, ...\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        printf("  %-8s %-13s %s\n", commands[i].name, commands[i].args, commands[i].about);
    printf("Ctrl-C ends an answer, Tab completes commands and file names.\n");
    if (fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

esp_status esp_chat_command(struct esp_chat *chat, const char *line, struct esp_err *err)
{
    const size_t n = strcspn(line, " \t");
    const char *rest = line + n + strspn(line + n, " \t");
    size_t n_rest = strlen(rest);
    esp_status st = ESP_OK;
    char *args;

    while (n_rest > 0 && isspace((unsigned char)rest[n_rest - 1]))
        n_rest--;
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strlen(commands[i].name) != n || memcmp(commands[i].name, line, n) != 0)
            continue;
        args = strndup(rest, n_rest);
        st = args ? commands[i].run(chat, args, err) : esp_fail(err, ESP_E_NOMEM, "out of memory");
        free(args);
        return st;
    }
    return esp_fail(err, ESP_E_ARG, "there is no %.*s; /help lists what there is", (int)n, line);
}

/* ---- completion ---- */

enum esp_line_words esp_chat_kind(const char *before)
{
    const char *start = before + strspn(before, " \t");
    const size_t n = strcspn(start, " \t");

    if (!*start)
        return ESP_LINE_LISTED;
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strlen(commands[i].name) == n && memcmp(commands[i].name, start, n) == 0) {
            const char *behind = start + n + strspn(start + n, " \t");

            return commands[i].follow == ESP_LINE_LISTED && *behind ? ESP_LINE_NONE : commands[i].follow;
        }
    return ESP_LINE_NONE;
}

const char *esp_chat_word(const char *before, uint32_t i)
{
    if (before[strspn(before, " \t")] == '\0')
        return i < N_COMMANDS ? commands[i].name : NULL;
    return i < N_SETTINGS ? settings[i] : NULL;
}
