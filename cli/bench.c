/* espalier bench: options, and which of the two forms it is. */
#include "cli/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/report.h"
#include "cli/report_json.h"
#include "model/shape.h"

#define DEFAULT_SHAPE "paligemma-3b-224"

static const struct esp_command_help help = {
    .name = "bench",
    .synopsis = "[--shape NAME | --model DIR] [options]",
    .about =
        "Measures how long a device takes for the phases of a model's work, and how that compares with what "
        "the\n"
        "device can do at all: encoding a picture, prefill of picture and prompt, decoding with 1 to 16 "
        "sequences\n"
        "at once. Without --model by a published model's shape, with random weights: no checkpoint is "
        "needed.\n"
        "With --workers or --connect a cluster instead: time to the first token, tokens per second of many\n"
        "sessions, time and bytes of each hop.\n",
    .examples = "  espalier bench --device 0,1 --profile --plot bench.png\n"
                "  espalier bench --shape paligemma-3b-896 --layers 3/2 --batch 1 --json\n"
                "  espalier bench --shape paligemma-3b-224 --workers 2\n"
                "  espalier bench --connect tcp://10.0.0.5:5550 --keys keys\n",
};

/* "3/2" */
static bool parse_layers(struct esp_bench *b)
{
    return esp_shape_layers(b->n_layers, b->layers);
}

static bool take_phases(struct esp_bench *b, const char **bad)
{
    b->encode = b->prefill = b->decode = b->phases.n == 0;
    for (uint32_t i = 0; i < b->phases.n; i++) {
        const char *p = b->phases.at[i];
        bool *which = strcmp(p, "encode") == 0    ? &b->encode
                      : strcmp(p, "prefill") == 0 ? &b->prefill
                      : strcmp(p, "decode") == 0  ? &b->decode
                                                  : NULL;
        if (!which) {
            *bad = p;
            return false;
        }
        *which = true;
    }
    return true;
}

static bool is_cluster(const struct esp_bench *b)
{
    return b->ask.where.workers_given || b->ask.where.connect || b->ask.where.split;
}

/* Whichever of --shape, --model and the environment holds, as where.model. */
static int settle_model(struct esp_bench *b)
{
    const char *env = getenv("ESPALIER_MODEL");
    const bool cut = is_cluster(b) && b->layers; /* a device's worker cuts it, and tells what it had in all */
    int n;

    if (b->shape && b->ask.where.model)
        return esp_args_bad(&help, "--shape and --model are two models; give one");
    if (b->ask.where.connect) {
        if (b->shape || b->layers)
            return esp_args_bad(&help,
                                "--%s is for what is started here; the cluster at --connect has its model",
                                b->shape ? "shape" : "layers");
        return ESP_ARGS_GO_ON;
    }
    if (!b->shape && !b->ask.where.model && env && *env)
        b->ask.where.model = env;
    if (b->ask.where.model && !esp_shape_named(b->ask.where.model))
        return ESP_ARGS_GO_ON;
    if (b->ask.where.model)
        b->shape = b->ask.where.model + strlen(ESP_SHAPE_PREFIX);
    else if (!b->shape)
        b->shape = DEFAULT_SHAPE;
    n = snprintf(b->model, sizeof b->model, ESP_SHAPE_PREFIX "%s%s%s", b->shape, cut ? "," : "",
                 cut ? b->layers : "");
    if (n >= (int)sizeof b->model)
        return esp_args_bad(&help, "--shape %s: no such shape", b->shape);
    b->ask.where.model = b->model;
    return ESP_ARGS_GO_ON;
}

static int check(struct esp_bench *b)
{
    static const uint32_t usual[] = {1, 2, 4, 8, 16};
    const char *bad = NULL;
    struct esp_err err;
    enum esp_wtype weights;
    int r;

    if (!take_phases(b, &bad))
        return esp_args_bad(&help, "--phases %s: takes encode, prefill and decode", bad);
    if (b->layers && !parse_layers(b))
        return esp_args_bad(&help, "--layers %s: takes V/T, encoder and decoder layers, each at least 1",
                            b->layers);
    if (b->batch.n == 0) {
        b->batch.at = malloc(sizeof usual);
        if (!b->batch.at)
            return esp_args_bad(&help, "out of memory");
        memcpy(b->batch.at, usual, sizeof usual);
        b->batch.n = sizeof usual / sizeof usual[0];
    }
    if (b->batch.n > 16)
        return esp_args_bad(&help, "--batch: at most 16 numbers");
    if (b->ask.where.weights && !esp_wtype_parse(&weights, b->ask.where.weights))
        return esp_args_bad(&help, "--weights: '%s', takes stored, bf16, f16, f32, q8 or q4",
                            b->ask.where.weights);
    if ((r = settle_model(b)) != ESP_ARGS_GO_ON)
        return r;
    if (b->plot && esp_ask_check_writable(b->plot, &err)) {
        fprintf(stderr, "espalier bench: %s\n", err.text);
        return ESP_EXIT_FAILED;
    }
    if (!is_cluster(b))
        return b->ask.where.keys ? esp_args_bad(&help, "--keys goes with --connect") : ESP_ARGS_GO_ON;
    if (b->profile)
        return esp_args_bad(&help, "--profile is of a device alone, without --workers and --connect");
    if (b->layers && !b->shape)
        return esp_args_bad(
            &help, "--layers cuts a --shape, or the model of a device alone; a cluster serves whole ones");
    return esp_ask_check(&help, &b->ask);
}

static esp_status measure_devices(struct esp_bench *b, json_t *devices, struct esp_err *err)
{
    const struct esp_texts *d = &b->ask.where.devices;
    esp_status st = ESP_OK;

    for (uint32_t i = 0; !st && i < (d->n ? d->n : 1); i++) {
        json_t *one;
        st = esp_bench_device(&one, b, d->n ? d->at[i] : NULL, err);
        if (!st && json_array_append_new(devices, one) != 0)
            st = esp_fail(err, ESP_E_NOMEM, "results");
        if (!st && !b->ask.json)
            st = esp_bench_print_device(one, err);
    }
    return st;
}

static esp_status run(struct esp_bench *b, struct esp_err *err)
{
    json_t *report = json_object(), *devices = json_array(), *cluster = NULL;
    bool ok = report && devices;
    esp_status st = ESP_OK;

    if (is_cluster(b)) {
        st = esp_bench_cluster(&cluster, b, err);
        esp_term_clear(&b->ask.term);
        if (!st && !b->ask.json)
            st = esp_bench_print_cluster(cluster, err);
    } else {
        st = measure_devices(b, devices, err);
    }
    SET(report, "devices", devices);
    SET(report, "cluster", cluster ? cluster : json_null());
    if (!st && !ok)
        st = esp_fail(err, ESP_E_NOMEM, "results");
    if (!st && b->plot)
        st = esp_bench_plot(report, b->plot, err);
    if (!st && b->ask.json)
        return esp_report_print(report, err);
    json_decref(report);
    return st;
}

int esp_command_bench(int argc, char **argv)
{
    static struct esp_bench b;
    struct esp_arg where[ESP_N_CLUSTER_ARGS];
    struct esp_arg what[] = {
        {"shape", 0, ESP_ARG_TEXT, "NAME",
         "A published model by its shape alone, with random weights: paligemma-3b-224, -448, -896, "
         "paligemma2-3b-..., "
         "-10b-..., -28b-..., or toy. Default: $ESPALIER_MODEL, else " DEFAULT_SHAPE ".",
         &b.shape, 0, 0, false, NULL},
        {"layers", 0, ESP_ARG_TEXT, "V/T",
         "Only the first V encoder and T decoder layers, where memory or time is short. Nothing is scaled up "
         "for it.",
         &b.layers, 0, 0, false, NULL},
        {"phases", 0, ESP_ARG_LIST, "P,...",
         "Of encode, prefill, decode; default: all. Weights that no phase needs are left out.", &b.phases, 0,
         0, false, NULL},
        {"batch", 0, ESP_ARG_IDS, "N,...", "Sequences that decode at once. Default: 1,2,4,8,16.", &b.batch, 1,
         256, false, NULL},
        {"prompt", 0, ESP_ARG_U32, "TOKENS", "Tokens of the prompt, behind the picture's. Default: 4.",
         &b.prompt, 1, 32768, false, NULL},
        {"steps", 0, ESP_ARG_U32, "N", "Decoding steps measured for each of --batch. Default: 32.", &b.steps,
         1, 10000, false, NULL},
        {"repeats", 0, ESP_ARG_U32, "N", "Measurements of encode and prefill. Default: 5.", &b.repeats, 1,
         1000, false, NULL},
        {"warm-up", 0, ESP_ARG_U32, "N", "Runs before the first measured one. Default: 1.", &b.warm_up, 0,
         100, false, NULL},
        {"profile", 0, ESP_ARG_FLAG, NULL, "Time by kernel, by the device's own clock, in a second run.",
         &b.profile, 0, 0, false, NULL},
    };
    struct esp_arg output[] = {
        {"json", 0, ESP_ARG_FLAG, NULL, "One JSON object on standard output, at the end.", &b.ask.json, 0, 0,
         false, NULL},
        {"plot", 0, ESP_ARG_TEXT, "FILE.png", "Bars of each phase against the device's ceilings.", &b.plot, 0,
         0, false, NULL},
        {"verbose", 'v', ESP_ARG_COUNT, NULL,
         "Pass on the info of what is started here; -vv and -vvv: debug and trace.", &b.ask.verbose, 0, 0,
         false, NULL},
    };
    const struct esp_arg_group groups[] = {{"What", what, sizeof what / sizeof what[0]},
                                           {"Output", output, sizeof output / sizeof output[0]},
                                           {"Where", where, ESP_N_CLUSTER_ARGS},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    b.prompt = 4;
    b.repeats = 5;
    b.warm_up = 1;
    b.steps = 32;
    esp_where_args(&b.ask.where, where);
    r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    if (r == ESP_ARGS_GO_ON && n_rest > 0)
        r = esp_args_bad(&help, "'%s': no such argument", rest[0]);
    if (r == ESP_ARGS_GO_ON)
        r = check(&b);
    if (r == ESP_ARGS_GO_ON) {
        esp_term_init(&b.ask.term);
        r = run(&b, &err) ? esp_ask_failed(&b.ask.term, help.name, &err) : 0;
        esp_ask_close(&b.ask);
    }
    esp_args_free(groups);
    return r;
}
