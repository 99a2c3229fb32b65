/**
 * Options of a subcommand: a table drives the parsing, the error texts and --help, so that they cannot drift
 * apart.
 *
 * Long options take their value as --name=value or as the next argument, whatever that looks like; one-letter
 * options may be run together (-vv). Options may stand before and after the other arguments; `--` ends them.
 * The value of an ESP_ARG_U32_OPT may be left out, and the next argument is taken for it only if it is a number.
 * A lone `-` is an ordinary argument. An option given twice: the last one holds, except where it collects.
 */
#ifndef ESP_CLI_ARGS_H
#define ESP_CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ESP_EXIT_FAILED 1
#define ESP_EXIT_USAGE  2

/** Strings that an option collected; the pointers are argv's or, for ESP_ARG_LIST, pieces of a copy. */
struct esp_texts {
    char **at;
    uint32_t n;
    char *copy;
};

/** Numbers that an option collected. */
struct esp_ids {
    uint32_t *at;
    uint32_t n;
};

/** What `out` points to. */
enum esp_arg_kind {
    ESP_ARG_FLAG,    /* bool: set to true */
    ESP_ARG_COUNT,   /* unsigned: one more each time */
    ESP_ARG_TEXT,    /* const char *, borrowed from argv */
    ESP_ARG_TEXTS,   /* struct esp_texts: one more each time */
    ESP_ARG_LIST,    /* struct esp_texts: a,b,c; none of them empty */
    ESP_ARG_U32,     /* uint32_t, min .. max */
    ESP_ARG_U32_OPT, /* the same; without a value it stays as it is */
    ESP_ARG_U64,     /* uint64_t, any */
    ESP_ARG_IDS,     /* struct esp_ids: 1,2,3, each min .. max */
    ESP_ARG_REAL     /* double, min .. max, finite */
};

struct esp_arg {
    const char *name; /* without the dashes */
    char letter;      /* -v; 0: none */
    enum esp_arg_kind kind;
    const char *value; /* what stands for the value in the help: "N"; NULL for flags */
    const char *help;  /* a sentence or two; wrapped by --help */
    void *out;
    double min, max;
    bool above_min; /* min itself is refused */
    bool *given;    /* set to true when the option appears; may be NULL */
};

struct esp_arg_group {
    const char *title;
    struct esp_arg *args;
    size_t n;
};

/** What a subcommand says of itself. `groups` end at the first with a NULL title. */
struct esp_command_help {
    const char *name;     /* "run": error lines start with "espalier run: " */
    const char *synopsis; /* after the name in the usage line */
    const char *about;    /* paragraphs, wrapped by hand */
    const char *examples; /* lines, each indented by two */
};

#define ESP_ARGS_GO_ON (-1)

/**
 * Reads argv[1 ..] (argv[0] is the subcommand) into the tables' targets.
 *
 * @param rest  what is left, in order: borrowed from argv, which is reordered; *n_rest of them
 * @return ESP_ARGS_GO_ON, or the exit status to end with: 0 after --help (printed on stdout), 2 after a bad
 *         option (said on stderr)
 */
int esp_args_parse(const struct esp_command_help *command, const struct esp_arg_group *groups, int argc,
                   char **argv, char ***rest, int *n_rest);

/** "espalier run: ..." on stderr with a pointer to --help; returns ESP_EXIT_USAGE. */
int esp_args_bad(const struct esp_command_help *command, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/** Sets a number's target from text; false, and nothing set, if it is no such number. */
bool esp_arg_set(const struct esp_arg *arg, const char *text);

/** Takes an option out of a table of n, which has n - 1 then: the command has no use for it. */
void esp_args_drop(struct esp_arg *args, size_t n, const char *name);

/** Frees what the collecting options of the groups gathered. */
void esp_args_free(const struct esp_arg_group *groups);

#endif
