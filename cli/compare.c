/*
 * What another type of weights, or another checkpoint, does to a model: its next-token distributions and the values of its
 * layers, example by example, against those of the first way. Expected answers are fed in both times (a trace of
 * their score), so that the two are asked the same at every token. One cluster runs after the other, for together they might not
 * fit; what the first one said waits in a temporary file, a tenth of a gigabyte an example of a 3B model.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/compare_sum.h"
#include "cli/eval_data.h"
#include "cli/input.h"
#include "cli/report.h"
#include "cli/report_json.h"

#define DEFAULT_LIMIT 100
#define N_ELSEWHERE   3 /* options */

static const struct esp_command_help help = {
    .name = "compare",
    .synopsis = "--model DIR --data FILE --weights TYPE [options]",
    .about = "Measures how far a model with other weights is from the model as it is stored, on a set of "
             "examples\n"
             "as eval takes them: the Kullback-Leibler divergence of its next-token distributions, how often "
             "both\n"
             "would choose the same token, and the relative error of each layer's output. The expected "
             "answers are fed\n"
             "to both. What the first one says waits in a file in $TMPDIR, else /tmp: 0.1 GB an example of a "
             "3B model.\n",
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

    esp_term_clear(&c->ask.term); /* so that the first sign of the cluster is drawn at once */
    for (uint32_t i = 0; !st && i < c->n; i++) {
        struct esp_reply reply = {0};

        st = ask_one(&reply, c, i, err);
        if (!st)
            st = second ? esp_compare_with(c->sum, &reply, c->kept, err)
                        : esp_compare_keep(&reply, c->kept, err);
        esp_reply_finish(&reply);
        if (!st)
            esp_term_progress(&c->ask.term, "%s: %u of %u examples", second ? "compared" : "first run", i + 1,
                              c->n);
    }
    esp_ask_close(&c->ask);
    return st;
}

/* A file without a name, which is gone with this process. */
static esp_status open_kept(struct compare *c, struct esp_err *err)
{
    const char *dir = getenv("TMPDIR");
    char path[4096];
    int fd;

    if (!dir || !*dir)
        dir = "/tmp";
    if (snprintf(path, sizeof path, "%s/espalier-compare-XXXXXX", dir) >= (int)sizeof path)
        return esp_fail(err, ESP_E_ARG, "TMPDIR: too long a path");
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "a temporary file in %.200s: %s; TMPDIR can name another folder", dir,
                        strerror(errno));
    unlink(path);
    c->kept = fdopen(fd, "w+b");
    if (c->kept)
        return ESP_OK;
    close(fd);
    return esp_fail(err, ESP_E_NOMEM, "a temporary file in %.200s: %s", dir, strerror(errno));
}

/* Both models open, and are of one shape: so much can be said before the first one is run. */
static esp_status check_models(const struct compare *c, struct esp_err *err)
{
    struct esp_config one, other;
    esp_status st = esp_ask_check_model("--model", c->ask.where.model, &one, err);

    if (st || !c->other_model)
        return st;
    st = esp_ask_check_model("--other-model", c->other_model, &other, err);
    if (!st && (one.vision.n_layer != other.vision.n_layer || one.vision.width != other.vision.width ||
                one.vision.n_token != other.vision.n_token || one.text.n_layer != other.text.n_layer ||
                one.text.width != other.text.width || one.text.vocab != other.text.vocab))
        st = esp_fail(err, ESP_E_ARG, "--other-model %.200s: not of the shape of %.200s", c->other_model,
                      c->ask.where.model);
    return st;
}

static esp_status compare(struct compare *c, struct esp_err *err)
{
    const char *weights = c->ask.where.weights;
    esp_status st = check_models(c, err);

    if (!st)
        st = esp_eval_data_read(&c->data, c->data_path, &c->ask.term, err);
    if (st)
        return st;
    c->n = c->data.n_examples < c->limit ? c->data.n_examples : c->limit;
    if (c->n == 0)
        return esp_fail(err, ESP_E_ARG, "%s: no examples", c->data_path);
    c->sum = esp_compare_sum_create();
    if (!c->sum)
        return esp_fail(err, ESP_E_NOMEM, "out of memory");
    st = open_kept(c, err);
    if (st)
        return st;
    c->ask.where.weights = c->base;
    st = pass(c, false, err);
    if (!st && fseek(c->kept, 0, SEEK_SET) != 0) /* writes what is left */
        st = esp_fail(err, ESP_E_IO, "what the first one said cannot be kept: %s", strerror(errno));
    if (st)
        return st;
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

/* Both are started here, one after the other: what goes with a cluster elsewhere is no option. */
static void local_args(struct compare *c, struct esp_arg where[ESP_N_CLUSTER_ARGS])
{
    static const char *const elsewhere[N_ELSEWHERE] = {"connect", "keys", "patience"};

    esp_where_args(&c->ask.where, where);
    for (size_t i = 0; i < N_ELSEWHERE; i++)
        esp_args_drop(where, ESP_N_CLUSTER_ARGS - i, elsewhere[i]);
}

static int check(struct compare *c)
{
    enum esp_wtype type;

    if (!c->data_path)
        return esp_args_bad(&help, "no examples: give --data FILE, JSON lines with image, prompt and answer");
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
                                           {"Where", where, ESP_N_CLUSTER_ARGS - N_ELSEWHERE},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    local_args(&c, where);
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
