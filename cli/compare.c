/*
 * What another type of weights, or another checkpoint, does to a model: its next-token distributions and the values of its
 * layers, example by example, against those of the first way. Expected answers are fed in both times (a trace of
 * their score), so that the two are asked the same at every token. One cluster runs after the other, for together they might not
 * fit; what the first one said waits in a temporary file.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/compare_sum.h"
#include "cli/eval_data.h"
#include "cli/input.h"
#include "cli/report.h"
#include "cli/report_json.h"

#define DEFAULT_LIMIT 100

static const struct esp_command_help help = {
    .name = "compare",
    .synopsis = "--model DIR --data FILE --weights TYPE [options]",
    .about = "Measures how far a model with other weights is from the model as it is stored, on a set of "
             "examples\n"
             "as eval takes them: the Kullback-Leibler divergence of its next-token distributions, how often "
             "both\n"
             "would choose the same token, and the relative error of each layer's output. The expected "
             "answers are fed\n"
             "to both.\n",
    .examples = "  espalier compare --model DIR --data scenes.jsonl --weights q4\n"
                "  espalier compare --model DIR --data scenes.jsonl --other-model DIR-q8 --limit 50 --json\n",
};

struct compare {
    struct esp_ask ask;
    const char *data_path, *other_model, *base;
    uint32_t limit;
    struct esp_eval_data data;
    uint32_t n; /* examples that are asked */
    FILE *kept; /* what the first one said */
    struct esp_compare_sum *sum;
};

static void on_waiting(void *self, const struct esp_msg_waiting *waiting)
{
    struct compare *c = self;
    esp_ask_waiting(&c->ask, waiting);
}

/* The traces of an example's prompt and expected answer. */
static esp_status ask_one(struct esp_reply *reply, struct compare *c, uint32_t i, struct esp_err *err)
{
    const struct esp_eval_example *e = &c->data.examples[i];
    const char *path = c->data.pictures[e->picture].path;
    const struct esp_client_hooks hooks = {.self = c, .waiting = on_waiting};
    char *name = esp_input_wire_name(path, false);
    struct esp_msg *request = calloc(1, sizeof *request);
    void *bytes = NULL;
    size_t n_bytes = 0;
    esp_status st = name && request ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "%s: out of memory", path);

    if (!st)
        st = esp_input_picture(&bytes, &n_bytes, path, err);
    if (!st) {
        request->kind = ESP_MSG_REQUEST;
        request->request.score = request->request.trace = true;
        request->request.max_tokens = 1;
        request->request.prompt = e->prompt;
        request->request.suffix = e->answer;
        request->request.n_images = request->n_blobs = 1;
        request->request.image_names = (const char *const *)&name;
        request->blob[0] = (struct esp_blob){.data = bytes, .n_bytes = n_bytes};
        if (!c->ask.client)
            st = esp_ask_connect(&c->ask, &request->request, err);
    }
    if (!st)
        st = esp_client_ask(reply, c->ask.client, request, &hooks, err);
    if (st)
        esp_err_prefix(err, "%s:%u: ", c->data_path, e->line);
    free(request);
    free(bytes);
    free(name);
    return st;
}

/* All examples through one cluster: kept, or (second) compared with what was. */
static esp_status pass(struct compare *c, bool second, struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (uint32_t i = 0; !st && i < c->n; i++) {
        struct esp_reply reply = {0};

        st = ask_one(&reply, c, i, err);
        if (!st)
            st = second ? esp_compare_with(c->sum, &reply, c->kept, err)
                        : esp_compare_keep(&reply, c->kept, err);
        esp_reply_finish(&reply);
        esp_term_progress(&c->ask.term, "%s: %u of %u examples", second ? "compared" : "as it is", i + 1,
                          c->n);
    }
    esp_ask_close(&c->ask);
    return st;
}

static esp_status compare(struct compare *c, struct esp_err *err)
{
    const char *weights = c->ask.where.weights;
    esp_status st = esp_eval_data_read(&c->data, c->data_path, &c->ask.term, err);

    if (st)
        return st;
    c->n = c->data.n_examples < c->limit ? c->data.n_examples : c->limit;
    if (c->n == 0)
        return esp_fail(err, ESP_E_ARG, "%s: no examples", c->data_path);
    c->sum = esp_compare_sum_create();
    c->kept = tmpfile();
    if (!c->sum || !c->kept)
        return esp_fail(err, c->sum ? ESP_E_IO : ESP_E_NOMEM, "a temporary file: %s", strerror(errno));
    c->ask.where.weights = c->base;
    st = pass(c, false, err);
    if (st)
        return st;
    rewind(c->kept);
    c->ask.where.weights = weights;
    if (c->other_model)
        c->ask.where.model = c->other_model;
    return pass(c, true, err);
}

static esp_status report(const struct compare *c, struct esp_err *err)
{
    if (c->ask.json)
        return esp_report_print(esp_compare_sum_json(c->sum), err);
    esp_compare_sum_print(c->sum, stdout);
    return fflush(stdout) ? esp_fail(err, ESP_E_IO, "standard output cannot be written") : ESP_OK;
}

static int check(struct compare *c)
{
    enum esp_wtype type;

    if (!c->data_path)
        return esp_args_bad(&help, "no examples: give --data FILE, JSON lines with image, prompt and answer");
    if (c->ask.where.connect)
        return esp_args_bad(&help,
                            "both are started here, one after the other: --connect does not go with it");
    if (!c->ask.where.weights && !c->other_model)
        return esp_args_bad(&help, "compare with what? Give --weights TYPE, --other-model DIR, or both");
    if (c->base && !esp_wtype_parse(&type, c->base))
        return esp_args_bad(&help, "--base: '%s', takes stored, bf16, f16, f32, q8 or q4", c->base);
    return esp_ask_check(&help, &c->ask);
}

int esp_command_compare(int argc, char **argv)
{
    static struct compare c = {.limit = DEFAULT_LIMIT};
    struct esp_arg where[ESP_N_CLUSTER_ARGS], output[ESP_N_OUTPUT_ARGS];
    struct esp_arg set[] = {
        {"data", 0, ESP_ARG_TEXT, "FILE",
         "The examples: JSON lines with image, prompt and answer, as for eval.", &c.data_path, 0, 0, false,
         NULL},
        {"limit", 0, ESP_ARG_U32, "N", "Only the first N examples. Default: 100.", &c.limit, 1, UINT32_MAX,
         false, NULL},
        {"base", 0, ESP_ARG_TEXT, "TYPE",
         "Weights of what is compared with: a type as for --weights. Default: stored.", &c.base, 0, 0, false,
         NULL},
        {"other-model", 0, ESP_ARG_TEXT, "DIR",
         "Compare this checkpoint with --model's, as one that 'quantize' made.", &c.other_model, 0, 0, false,
         NULL},
    };
    const struct esp_arg_group groups[] = {{"Examples", set, sizeof set / sizeof set[0]},
                                           {"Output", output, ESP_N_OUTPUT_ARGS - 1},
                                           {"Where", where, ESP_N_CLUSTER_ARGS},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    esp_where_args(&c.ask.where, where);
    esp_output_args(&c.ask, output);
    esp_args_drop(output, ESP_N_OUTPUT_ARGS, "trace");
    r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    if (r == ESP_ARGS_GO_ON && n_rest > 0)
        r = esp_args_bad(&help, "what is '%s'? The examples come with --data FILE", rest[0]);
    if (r == ESP_ARGS_GO_ON)
        r = check(&c);
    if (r == ESP_ARGS_GO_ON) {
        esp_status st;

        esp_term_init(&c.ask.term);
        st = compare(&c, &err);
        esp_ask_close(&c.ask);
        esp_term_clear(&c.ask.term);
        if (!st)
            st = report(&c, &err);
        if (st)
            r = esp_ask_failed(&c.ask.term, help.name, &err);
        else
            r = 0;
        esp_compare_sum_destroy(&c.sum);
        if (c.kept)
            fclose(c.kept);
        esp_eval_data_finish(&c.data);
    }
    esp_args_free(groups);
    return r;
}
