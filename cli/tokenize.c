#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/report.h"
#include "coordinator/token.h"
#include "model/config.h"

static const struct esp_command_help help = {
    .name = "tokenize",
    .synopsis = "--model DIR [--prompt] [--json] [--] TEXT | --decode ID,...",
    .about =
        "Shows the ids that a text becomes, one a line with its piece, or the text that ids stand for.\n",
    .examples = "  espalier tokenize --model DIR \"caption en\"\n"
                "  espalier tokenize --model DIR --prompt --json \"caption en\"\n"
                "  espalier tokenize --model DIR --decode 1105,1359,527\n",
};

struct tokenize {
    const char *model;
    bool prompt, json;
    struct esp_ids decode;
};

static esp_status print_ids(const struct tokenize *t, const struct esp_tokenizer *tok, const uint32_t *ids,
                            size_t n, struct esp_err *err)
{
    if (t->json)
        return esp_report_print(esp_json_ids(ids, n), err);
    for (size_t i = 0; i < n; i++) {
        size_t n_piece = 0;
        const char *piece = esp_tokenizer_piece(tok, ids[i], &n_piece);
        printf("%u\t", ids[i]);
        for (size_t k = 0; piece && k < n_piece; k++) { /* one line a piece, also for runs of newlines */
            if (piece[k] == '\n')
                fputs("\\n", stdout);
            else
                putchar(piece[k]);
        }
        putchar('\n');
    }
    return fflush(stdout) == 0 ? ESP_OK : esp_fail(err, ESP_E_IO, "standard output cannot be written");
}

static esp_status encode(const struct tokenize *t, const struct esp_tokenizer *tok, const char *text,
                         struct esp_err *err)
{
    esp_status st = ESP_OK;
    struct esp_config config;
    uint32_t *ids = NULL;
    size_t n = 0;

    if (t->prompt) {
        st = esp_config_load(&config, t->model, err);
        if (st == ESP_OK)
            st = esp_prompt_ids(tok, &ids, &n, config.bos, text, strlen(text), err);
    } else {
        st = esp_tokenizer_encode(tok, &ids, &n, text, strlen(text), err);
    }
    if (st == ESP_OK)
        st = print_ids(t, tok, ids, n, err);
    free(ids);
    return st;
}

static esp_status decode(const struct tokenize *t, const struct esp_tokenizer *tok, struct esp_err *err)
{
    char *text;
    size_t n;
    esp_status st = esp_tokenizer_decode(tok, &text, &n, t->decode.at, t->decode.n, err);

    if (st)
        return st;
    if (t->json) {
        st = esp_report_print(json_stringn(text, n), err);
    } else {
        fwrite(text, 1, n, stdout);
        putchar('\n');
        if (fflush(stdout) != 0)
            st = esp_fail(err, ESP_E_IO, "standard output cannot be written");
    }
    free(text);
    return st;
}

static esp_status tokenize(const struct tokenize *t, const char *text, struct esp_err *err)
{
    esp_status st;
    struct esp_tokenizer *tok = NULL;
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/tokenizer.model", t->model);

    if (n < 0 || (size_t)n >= sizeof path)
        return esp_fail(err, ESP_E_ARG, "--model: the path is too long");
    st = esp_tokenizer_create(&tok, path, err);
    if (st == ESP_OK)
        st = text ? encode(t, tok, text, err) : decode(t, tok, err);
    esp_tokenizer_destroy(&tok);
    return st;
}

int esp_command_tokenize(int argc, char **argv)
{
    struct tokenize t = {0};
    struct esp_arg options[] = {
        {"model", 'm', ESP_ARG_TEXT, "DIR",
         "The checkpoint whose tokenizer.model is used. Default: $ESPALIER_MODEL.", &t.model, 0, 0, false,
         NULL},
        {"prompt", 0, ESP_ARG_FLAG, NULL, "As the model gets a prompt: BOS, the text, the separator.",
         &t.prompt, 0, 0, false, NULL},
        {"decode", 0, ESP_ARG_IDS, "ID,...", "The way back: the text of these ids.", &t.decode, 0, UINT32_MAX,
         false, NULL},
        {"json", 0, ESP_ARG_FLAG, NULL, "A JSON array of ids, or with --decode a JSON string.", &t.json, 0, 0,
         false, NULL},
    };
    const struct esp_arg_group groups[] = {{"Options", options, sizeof options / sizeof options[0]},
                                           {NULL, NULL, 0}};
    struct esp_term term;
    struct esp_err err = {0};
    char **rest;
    int n_rest, r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);

    if (r == ESP_ARGS_GO_ON) {
        struct esp_where where = {.model = t.model};
        if (n_rest != (t.decode.n == 0))
            r = esp_args_bad(&help, t.decode.n ? "--decode takes no text besides"
                                               : "one text is needed; quote it if it has spaces");
        else if (t.decode.n && t.prompt)
            r = esp_args_bad(&help, "--prompt and --decode exclude each other");
        else
            r = esp_where_check(&help, &where);
        t.model = where.model;
    }
    if (r == ESP_ARGS_GO_ON) {
        esp_term_init(&term);
        r = tokenize(&t, t.decode.n ? NULL : rest[0], &err) ? esp_ask_failed(&term, help.name, &err) : 0;
    }
    esp_args_free(groups);
    return r;
}
