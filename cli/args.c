#include "cli/args.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HELP_COLUMN 28
#define HELP_WIDTH  100

int esp_args_bad(const struct esp_command_help *command, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "espalier %s: ", command->name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nTry 'espalier %s --help'.\n", command->name);
    return ESP_EXIT_USAGE;
}

void esp_args_drop(struct esp_arg *args, size_t n, const char *name)
{
    size_t i = 0;

    while (i < n && strcmp(args[i].name, name) != 0)
        i++;
    assert(i < n);
    memmove(args + i, args + i + 1, (n - i - 1) * sizeof *args);
}

void esp_args_free(const struct esp_arg_group *groups)
{
    for (; groups->title; groups++) {
        for (size_t i = 0; i < groups->n; i++) {
            const struct esp_arg *a = &groups->args[i];

            if (a->kind == ESP_ARG_TEXTS || a->kind == ESP_ARG_LIST) {
                struct esp_texts *t = a->out;
                free(t->at);
                free(t->copy);
                memset(t, 0, sizeof *t);
            } else if (a->kind == ESP_ARG_IDS) {
                struct esp_ids *ids = a->out;
                free(ids->at);
                memset(ids, 0, sizeof *ids);
            }
        }
    }
}

/* ---- values ---- */

static int bad_range(const struct esp_command_help *command, const struct esp_arg *a, const char *text)
{
    const char *what = a->kind == ESP_ARG_REAL ? "a number" : "a whole number";
    if (a->above_min)
        return esp_args_bad(command, "--%s %s: expected %s above %.15g, at most %.15g", a->name, text, what,
                            a->min, a->max);
    return esp_args_bad(command, "--%s %s: expected %s from %.15g to %.15g", a->name, text, what, a->min,
                        a->max);
}

/* Digits only: strtoull would take signs and leading spaces. */
static bool parse_u64(uint64_t *out, const char *text, size_t n)
{
    uint64_t v = 0;

    if (n == 0)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        if (__builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(text[i] - '0'), &v))
            return false;
    }
    *out = v;
    return true;
}

static bool parse_u32(uint32_t *out, const struct esp_arg *a, const char *text, size_t n)
{
    uint64_t v;

    if (!parse_u64(&v, text, n) || v > UINT32_MAX || (double)v < a->min || (double)v > a->max)
        return false;
    *out = (uint32_t)v;
    return true;
}

static bool parse_real(double *out, const struct esp_arg *a, const char *text)
{
    char *end;
    double v;

    if (!*text || strspn(text, "0123456789+-.eE") != strlen(text)) /* no "inf", no "0x", no spaces */
        return false;
    v = strtod(text, &end);
    if (*end || !isfinite(v) || v < a->min || v > a->max || (a->above_min && v <= a->min))
        return false;
    *out = v;
    return true;
}

bool esp_arg_set(const struct esp_arg *a, const char *text)
{
    switch (a->kind) {
    case ESP_ARG_U32:
    case ESP_ARG_U32_OPT:
        return parse_u32(a->out, a, text, strlen(text));
    case ESP_ARG_U64:
        return parse_u64(a->out, text, strlen(text));
    case ESP_ARG_REAL:
        return parse_real(a->out, a, text);
    default:
        return false;
    }
}

static int no_memory(const struct esp_command_help *command)
{
    fprintf(stderr, "espalier %s: out of memory\n", command->name);
    return ESP_EXIT_FAILED;
}

static int take_ids(const struct esp_command_help *command, const struct esp_arg *a, const char *text)
{
    struct esp_ids *ids = a->out;
    size_t n = 1;

    for (const char *p = text; *p; p++)
        n += *p == ',';
    free(ids->at);
    ids->n = 0;
    ids->at = calloc(n, sizeof *ids->at);
    if (!ids->at)
        return no_memory(command);
    for (const char *p = text;; p++) {
        size_t n_item = strcspn(p, ",");
        if (!parse_u32(&ids->at[ids->n], a, p, n_item))
            return esp_args_bad(command, "--%s: '%.*s' is not a whole number from %.15g to %.15g", a->name,
                                (int)n_item, p, a->min, a->max);
        ids->n++;
        p += n_item;
        if (!*p)
            return ESP_ARGS_GO_ON;
    }
}

static int take_list(const struct esp_command_help *command, const struct esp_arg *a, const char *text)
{
    struct esp_texts *t = a->out;
    size_t n = 1;

    for (const char *p = text; *p; p++)
        n += *p == ',';
    free(t->at);
    free(t->copy);
    t->n = 0;
    t->at = calloc(n, sizeof *t->at);
    t->copy = strdup(text);
    if (!t->at || !t->copy)
        return no_memory(command);
    for (char *p = t->copy;; p++) {
        size_t n_item = strcspn(p, ",");
        bool last = p[n_item] == '\0';
        if (n_item == 0)
            return esp_args_bad(command, "--%s %s: an item of the list is empty", a->name, text);
        t->at[t->n++] = p;
        p += n_item;
        *p = '\0';
        if (last)
            return ESP_ARGS_GO_ON;
    }
}

static int take_text(const struct esp_command_help *command, const struct esp_arg *a, char *text)
{
    struct esp_texts *t = a->out;
    char **grown = realloc(t->at, (t->n + 1) * sizeof *grown);

    if (!grown)
        return no_memory(command);
    t->at = grown;
    t->at[t->n++] = text;
    return ESP_ARGS_GO_ON;
}

static int take(const struct esp_command_help *command, const struct esp_arg *a, char *text)
{
    if (a->given)
        *a->given = true;
    switch (a->kind) {
    case ESP_ARG_FLAG:
        *(bool *)a->out = true;
        return ESP_ARGS_GO_ON;
    case ESP_ARG_COUNT:
        ++*(unsigned *)a->out;
        return ESP_ARGS_GO_ON;
    case ESP_ARG_TEXT:
        *(const char **)a->out = text;
        return ESP_ARGS_GO_ON;
    case ESP_ARG_TEXTS:
        return take_text(command, a, text);
    case ESP_ARG_LIST:
        return take_list(command, a, text);
    case ESP_ARG_IDS:
        return take_ids(command, a, text);
    case ESP_ARG_U32_OPT:
        if (!text)
            return ESP_ARGS_GO_ON;
        /* fallthrough */
    case ESP_ARG_U32:
    case ESP_ARG_REAL:
        return esp_arg_set(a, text) ? ESP_ARGS_GO_ON : bad_range(command, a, text);
    case ESP_ARG_U64:
        if (esp_arg_set(a, text))
            return ESP_ARGS_GO_ON;
        return esp_args_bad(command, "--%s %s: expected a whole number from 0 to %llu", a->name, text,
                            (unsigned long long)UINT64_MAX);
    }
    return ESP_ARGS_GO_ON;
}

/* ---- help ---- */

/* Prints text from `column` on, broken at spaces before HELP_WIDTH; `at` is where the cursor stands. */
static void print_wrapped(const char *text, int column, int at)
{
    if (at + 1 > column - 1) {
        putchar('\n');
        at = 0;
    }
    while (*text) {
        size_t n = strcspn(text, " ");
        if (at > column && at + 1 + (int)n > HELP_WIDTH) {
            putchar('\n');
            at = 0;
        }
        if (at <= column)
            at += printf("%*s", column - at, "");
        else
            at += printf(" ");
        at += printf("%.*s", (int)n, text);
        text += n;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_help(const struct esp_command_help *command, const struct esp_arg_group *groups)
{
    printf("Usage: espalier %s %s\n\n%s", command->name, command->synopsis, command->about);
    for (; groups->title; groups++) {
        printf("\n%s\n", groups->title);
        for (size_t i = 0; i < groups->n; i++) {
            const struct esp_arg *a = &groups->args[i];
            int at = a->letter ? printf("  -%c, --%s", a->letter, a->name) : printf("  --%s", a->name);
            if (a->value)
                at += printf(" %s", a->value);
            print_wrapped(a->help, HELP_COLUMN, at);
        }
    }
    printf("\nOther\n");
    print_wrapped("This text.", HELP_COLUMN, printf("  -h, --help"));
    printf("\nExamples\n%s", command->examples);
}

/* ---- the command line ---- */

static const struct esp_arg *by_name(const struct esp_arg_group *groups, const char *name, size_t n)
{
    for (; groups->title; groups++) {
        for (size_t i = 0; i < groups->n; i++) {
            if (strlen(groups->args[i].name) == n && memcmp(groups->args[i].name, name, n) == 0)
                return &groups->args[i];
        }
    }
    return NULL;
}

static const struct esp_arg *by_letter(const struct esp_arg_group *groups, char letter)
{
    for (; groups->title; groups++) {
        for (size_t i = 0; i < groups->n; i++) {
            if (groups->args[i].letter == letter)
                return &groups->args[i];
        }
    }
    return NULL;
}

static bool takes_value(const struct esp_arg *a)
{
    return a->kind != ESP_ARG_FLAG && a->kind != ESP_ARG_COUNT;
}

/* The argument behind an option, where it is that option's value; NULL: it has none. */
static char *value_behind(const struct esp_arg *a, char **argv, int argc, int *i)
{
    if (*i + 1 >= argc || (a->kind == ESP_ARG_U32_OPT && !isdigit((unsigned char)argv[*i + 1][0])))
        return NULL;
    return argv[++*i];
}

int esp_args_parse(const struct esp_command_help *command, const struct esp_arg_group *groups, int argc,
                   char **argv, char ***rest, int *n_rest)
{
    int n = 0; /* plain arguments are moved to argv[1 ..] as they are met: never past what is still unread */

    for (int i = 1; i < argc; i++) {
        char *arg = argv[i];
        const struct esp_arg *a;
        int r;

        if (arg[0] != '-' || arg[1] == '\0') {
            argv[1 + n++] = arg;
        } else if (strcmp(arg, "--") == 0) {
            for (i++; i < argc; i++)
                argv[1 + n++] = argv[i];
        } else if (strcmp(arg, "--help") == 0) {
            print_help(command, groups);
            return fflush(stdout) == 0 ? 0 : ESP_EXIT_FAILED;
        } else if (arg[1] == '-') {
            char *name = arg + 2;
            size_t n_name = strcspn(name, "=");
            char *value = name[n_name] == '=' ? name + n_name + 1 : NULL;

            a = by_name(groups, name, n_name);
            if (!a)
                return esp_args_bad(command, "there is no option --%.*s", (int)n_name, name);
            if (!takes_value(a) && value)
                return esp_args_bad(command, "--%s takes no value", a->name);
            if (takes_value(a) && !value) {
                value = value_behind(a, argv, argc, &i);
                if (!value && a->kind != ESP_ARG_U32_OPT)
                    return esp_args_bad(command, "--%s needs a value: --%s %s", a->name, a->name, a->value);
            }
            r = take(command, a, value);
            if (r != ESP_ARGS_GO_ON)
                return r;
        } else {
            for (char *p = arg + 1; *p; p++) {
                char *value = NULL;

                if (*p == 'h') {
                    print_help(command, groups);
                    return fflush(stdout) == 0 ? 0 : ESP_EXIT_FAILED;
                }
                a = by_letter(groups, *p);
                if (!a)
                    return esp_args_bad(command, "there is no option -%c", *p);
                if (takes_value(a)) {
                    value = p[1] ? p + 1 : value_behind(a, argv, argc, &i);
                    if (!value && a->kind != ESP_ARG_U32_OPT)
                        return esp_args_bad(command, "-%c needs a value: -%c %s", *p, *p, a->value);
                }
                r = take(command, a, value);
                if (r != ESP_ARGS_GO_ON)
                    return r;
                if (value)
                    break;
            }
        }
    }
    *rest = argv + 1;
    *n_rest = n;
    return ESP_ARGS_GO_ON;
}
