/* make-checkpoint: a random checkpoint of any config, from the command line. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/file.h"
#include "model/preset.h"
#include "proto/clock.h"
#include "tests/support/checkpoint_writer.h"

static void print_help(FILE *f)
{
    fprintf(
        f,
        "usage: make-checkpoint (--preset NAME | --config FILE.json) --out DIR [options]\n\n"
        "Writes a PaliGemma checkpoint with random weights into DIR: config.json, preprocessor_config.json,\n"
        "generation_config.json, tokenizer.model and safetensors files. The weights are scaled so that\n"
        "activations stay finite; what the model says is noise. The same options give the same bytes.\n\n"
        "  --preset NAME      the dimensions of a published model:\n");
    for (size_t i = 0; esp_checkpoint_preset_name(i); i++)
        fprintf(f, "%s%s%s", i % 3 ? "  " : "                     ", esp_checkpoint_preset_name(i),
                i % 3 == 2 || !esp_checkpoint_preset_name(i + 1) ? "\n" : "");
    fprintf(f, "  --config FILE      any other config.json; copied as it is\n"
               "  --out DIR          where to write; made if missing, former weights in it are replaced\n"
               "  --seed N           0 to 2^64-1; default 0\n"
               "  --dtype TYPE       bf16 (default), f16 or f32; the same numbers in each, those of bf16\n"
               "  --layout NAME      tensor names: published (default), v4.52, v5-memory or v5-saved\n"
               "  --shards N         1: model.safetensors; more: that many at most, with an index.\n"
               "                     Default: one each 2.5 GB\n"
               "  --tokenizer FILE   copied as tokenizer.model; \"\" for none. Default: the golden one (5534 "
               "pieces,\n"
               "                     fewer than a published model's 257152: further ids have no text)\n"
               "  --help             this text\n\n"
               "Exit status: 0 done, 1 failed, 2 bad usage.\n");
}

static void show_progress(void *user, uint64_t n_done, uint64_t n_total)
{
    fprintf(stderr, "\r%.2f of %.2f GB%s", (double)n_done / 1e9, (double)n_total / 1e9,
            n_done == n_total ? "\n" : "");
}

static bool parse_u64(uint64_t *out, const char *text, uint64_t max)
{
    char *end;
    unsigned long long v;

    if (*text < '0' || *text > '9')
        return false;
    v = strtoull(text, &end, 0);
    *out = v;
    return *end == '\0' && v <= max && (v < UINT64_MAX || strcmp(text, "18446744073709551615") == 0);
}

static int usage(const char *what, const char *value)
{
    fprintf(stderr, "make-checkpoint: %s%s%s (--help tells more)\n", what, value ? ": " : "",
            value ? value : "");
    return 2;
}

struct options {
    const char *preset, *config, *dtype, *layout;
    struct esp_checkpoint_spec spec;
};

/* 0, or an exit status plus one */
static int parse_options(struct options *o, int argc, char **argv)
{
    static const struct option known[] = {
        {"preset", required_argument, NULL, 'p'}, {"config", required_argument, NULL, 'c'},
        {"out", required_argument, NULL, 'o'},    {"seed", required_argument, NULL, 's'},
        {"dtype", required_argument, NULL, 'd'},  {"layout", required_argument, NULL, 'l'},
        {"shards", required_argument, NULL, 'n'}, {"tokenizer", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
    };
    uint64_t n;
    int opt;

    while ((opt = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (opt) {
        case 'p':
            o->preset = optarg;
            break;
        case 'c':
            o->config = optarg;
            break;
        case 'o':
            o->spec.dir = optarg;
            break;
        case 's':
            if (!parse_u64(&o->spec.seed, optarg, UINT64_MAX))
                return 1 + usage("--seed takes a whole number", optarg);
            break;
        case 'd':
            o->spec.dtype = ESP_DTYPE_UNSET;
            for (int d = ESP_F32; d <= ESP_BF16; d++) {
                if (strcmp(optarg, esp_dtype_name((enum esp_dtype)d)) == 0)
                    o->spec.dtype = (enum esp_dtype)d;
            }
            if (o->spec.dtype == ESP_DTYPE_UNSET)
                return 1 + usage("--dtype takes bf16, f16 or f32", optarg);
            break;
        case 'l':
            o->spec.layout = ESP_N_LAYOUT;
            for (int l = 0; l < ESP_N_LAYOUT; l++) {
                if (strcmp(optarg, esp_layout_name((enum esp_layout)l)) == 0)
                    o->spec.layout = (enum esp_layout)l;
            }
            if (o->spec.layout == ESP_N_LAYOUT)
                return 1 + usage("--layout takes published, v4.52, v5-memory or v5-saved", optarg);
            break;
        case 'n':
            if (!parse_u64(&n, optarg, 1000) || n == 0)
                return 1 + usage("--shards takes 1 to 1000", optarg);
            o->spec.n_shard = (uint32_t)n;
            break;
        case 't':
            o->spec.tokenizer = *optarg ? optarg : NULL;
            break;
        case 'h':
            print_help(stdout);
            return 1 + 0;
        default:
            return 1 + 2;
        }
    }
    if (optind < argc)
        return 1 + usage("no argument expected", argv[optind]);
    if (!o->spec.dir)
        return 1 + usage("--out is missing", NULL);
    if (!o->preset == !o->config)
        return 1 + usage("exactly one of --preset and --config is needed", NULL);
    return 0;
}

int main(int argc, char **argv)
{
    struct options o = {.spec = {.dtype = ESP_BF16, .layout = ESP_LAYOUT_PUBLISHED}};
    struct esp_err err;
    double begun;
    char *config;
    int rc;

    if (esp_file_exists(ESP_GOLDEN_TOKENIZER))
        o.spec.tokenizer = ESP_GOLDEN_TOKENIZER;
    rc = parse_options(&o, argc, argv);
    if (rc)
        return rc - 1;
    if (o.preset) {
        config = esp_checkpoint_preset(o.preset);
        if (!config)
            return usage("no such preset", o.preset);
        o.spec.n_config = strlen(config);
    } else if (esp_file_read(&config, &o.spec.n_config, o.config, 1u << 20, &err)) {
        fprintf(stderr, "make-checkpoint: %s\n", err.text);
        return 1;
    }
    o.spec.config_json = config;
    if (isatty(STDERR_FILENO))
        o.spec.progress = show_progress;
    begun = esp_now_seconds();
    if (esp_checkpoint_write(&o.spec, &err)) {
        fprintf(stderr, "make-checkpoint: %s\n", err.text);
        free(config);
        return 1;
    }
    printf("%s: written in %.1f s\n", o.spec.dir, esp_now_seconds() - begun);
    free(config);
    return 0;
}
