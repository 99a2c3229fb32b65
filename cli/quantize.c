/*
 * A checkpoint with quantised matrices, from one with others: what workers would make of it with --weights, once and for all.
 * The directory opens like any other; model/quant.h tells what is in its file.
 */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/args.h"
#include "cli/ask.h"
#include "cli/command.h"
#include "cli/figures.h"
#include "cli/quantize_rows.h"
#include "cli/report.h"
#include "cli/report_json.h"
#include "model/file.h"
#include "model/roles.h"

#define MODEL_FILE "model.safetensors"
#define MAX_PATH   4096
#define MAX_COPY   ((size_t)256 << 20) /* of a file beside the weights */

static const struct esp_command_help help = {
    .name = "quantize",
    .synopsis = "--model DIR --out DIR --weights q8|q4 [options]",
    .about = "Writes a checkpoint whose matrices are quantised: 8.5 bits a weight, or 4.5 in most of the "
             "decoder,\n"
             "in blocks of 32 with a scale.\n"
             "It serves everywhere a checkpoint does, loads faster, and gives the same answers as the "
             "original with\n"
             "--weights of that type. Prints the relative error that each layer's weights have then.\n",
    .examples =
        "  espalier quantize --model paligemma-3b-mix-224 --out paligemma-3b-mix-224-q8 --weights q8\n"
        "  espalier compare --model DIR --other-model DIR-q4 --data scenes.jsonl\n",
};

struct entry {
    enum esp_role role;
    uint32_t layer;
    const struct esp_tensor *from;
    enum esp_wtype type; /* ESP_W_STORED: as it is */
    uint64_t n_bytes;
    double off, all; /* squares of errors and weights */
};

struct quantize {
    const char *model, *out, *weights;
    uint32_t threads;
    bool json;
    enum esp_wtype type;
    struct esp_term term;
    struct esp_checkpoint *ck;
    struct entry *entry;
    uint32_t n_entry;
};

/* ---- what goes in ---- */

static esp_status plan(struct quantize *q, struct esp_err *err)
{
    const struct esp_config *c = esp_checkpoint_config(q->ck);
    uint32_t n = 0;

    for (int role = 0; role < ESP_N_ROLE; role++)
        n += esp_role_count(c, (enum esp_role)role);
    q->entry = calloc((size_t)n + 1, sizeof *q->entry);
    if (!q->entry)
        return esp_fail(err, ESP_E_NOMEM, "%u tensors: out of memory", n);
    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t layer = 0; layer < esp_role_count(c, (enum esp_role)role); layer++) {
            struct entry *e = &q->entry[q->n_entry++];
            struct esp_tensor as;

            *e = (struct entry){.role = (enum esp_role)role,
                                .layer = layer,
                                .from = esp_checkpoint_tensor(q->ck, (enum esp_role)role, layer),
                                .type = esp_role_wtype(c, (enum esp_role)role, q->type)};
            as = *e->from;
            if (esp_wtype_quantised(esp_wtype_of(as.dtype)))
                return esp_fail(err, ESP_E_ARG, "%s: tensor %s is quantised already; begin with the original",
                                as.file, as.name);
            if (e->type != ESP_W_STORED)
                as.dtype = e->type == ESP_W_Q8 ? ESP_Q8 : ESP_Q4;
            e->n_bytes = as.n_dim == 0 ? as.n_bytes : as.shape[0] * esp_tensor_row_bytes(&as);
        }
    }
    return ESP_OK;
}

static esp_status header(char **out, const struct quantize *q, struct esp_err *err)
{
    json_t *root =
        json_pack("{s:{s:s, s:s}}", "__metadata__", "format", "pt", ESP_QUANT_MARK, ESP_QUANT_LAYOUT);
    bool ok = root != NULL;
    uint64_t at = 0;
    char *text = NULL, name[ESP_TENSOR_NAME_MAX];

    for (uint32_t i = 0; ok && i < q->n_entry; i++) {
        const struct entry *e = &q->entry[i];
        json_t *shape = json_array(), *tensor;

        if (e->type == ESP_W_STORED) {
            for (uint32_t d = 0; ok && d < e->from->n_dim; d++)
                ok = json_array_append_new(shape, json_integer((json_int_t)e->from->shape[d])) == 0;
        } else {
            ok =
                json_array_append_new(shape, json_integer((json_int_t)e->from->shape[0])) == 0 &&
                json_array_append_new(shape, json_integer((json_int_t)(e->n_bytes / e->from->shape[0]))) == 0;
        }
        tensor =
            json_pack("{s:s, s:o, s:[I,I]}", "dtype", e->type == ESP_W_STORED ? e->from->stored_dtype : "U8",
                      "shape", shape, "data_offsets", (json_int_t)at, (json_int_t)(at + e->n_bytes));
        esp_role_name(name, ESP_LAYOUT_PUBLISHED, esp_checkpoint_config(q->ck), e->role, e->layer);
        ok = ok && tensor && json_object_set_new(root, name, tensor) == 0;
        at += e->n_bytes;
    }
    if (ok)
        text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    *out = text;
    return text ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "header: out of memory");
}

/* ---- writing ---- */

static esp_status cannot_write(const char *path, struct esp_err *err)
{
    return esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
}

static esp_status write_weights(struct quantize *q, const char *path, struct esp_err *err)
{
    char *text = NULL;
    unsigned char length[8];
    uint64_t done = 0, total = 0;
    FILE *f = NULL;
    esp_status st = header(&text, q, err);

    if (st)
        return st;
    for (uint32_t i = 0; i < q->n_entry; i++)
        total += q->entry[i].n_bytes;
    for (int b = 0; b < 8; b++)
        length[b] = (unsigned char)((uint64_t)strlen(text) >> 8 * b);
    f = fopen(path, "wbe");
    if (!f || fwrite(length, 1, 8, f) != 8 || fputs(text, f) < 0)
        st = cannot_write(path, err);
    free(text);
    for (uint32_t i = 0; !st && i < q->n_entry; i++) {
        struct entry *e = &q->entry[i];

        if (e->type == ESP_W_STORED && fwrite(e->from->data, 1, e->n_bytes, f) != e->n_bytes)
            st = cannot_write(path, err);
        else if (e->type != ESP_W_STORED)
            st = esp_quantize_rows(f, path, e->from, e->type, q->threads, &e->off, &e->all, err);
        esp_tensor_done(e->from);
        done += e->n_bytes;
        esp_term_progress(&q->term, "quantising: %.0f %%", 100.0 * (double)done / (double)total);
    }
    if (!st && fflush(f) == 0 && fsync(fileno(f)) != 0)
        st = cannot_write(path, err);
    if (f && fclose(f) != 0 && !st)
        st = cannot_write(path, err);
    return st;
}

/* Everything beside the weights that a checkpoint may have: configs, tokenizers, a codec of masks. */
static bool goes_along(const char *name)
{
    const char *dot = strrchr(name, '.');

    return name[0] != '.' && dot && strcmp(name, MODEL_FILE ".index.json") != 0 &&
           (strcmp(dot, ".json") == 0 || strcmp(dot, ".model") == 0 || strcmp(dot, ".npz") == 0);
}

static esp_status copy(const struct quantize *q, const char *name, struct esp_err *err)
{
    char from[MAX_PATH], to[MAX_PATH], *bytes;
    size_t n;
    FILE *f;
    esp_status st;

    if (snprintf(from, sizeof from, "%s/%s", q->model, name) >= (int)sizeof from ||
        snprintf(to, sizeof to, "%s/%s", q->out, name) >= (int)sizeof to)
        return esp_fail(err, ESP_E_ARG, "%s: the path is too long", name);
    st = esp_file_read(&bytes, &n, from, MAX_COPY, err);
    if (st)
        return st;
    f = fopen(to, "wbe");
    if (!f || fwrite(bytes, 1, n, f) != n)
        st = cannot_write(to, err);
    if (f && fclose(f) != 0 && !st)
        st = cannot_write(to, err);
    free(bytes);
    return st;
}

static esp_status copy_others(const struct quantize *q, struct esp_err *err)
{
    DIR *dir = opendir(q->model);
    const struct dirent *d;
    esp_status st = dir ? ESP_OK : cannot_write(q->model, err);

    while (!st && (d = readdir(dir)))
        if (goes_along(d->d_name))
            st = copy(q, d->d_name, err);
    if (dir)
        closedir(dir);
    return st;
}

static esp_status quantize(struct quantize *q, struct esp_err *err)
{
    char path[MAX_PATH], part[MAX_PATH];
    esp_status st;

    if (snprintf(path, sizeof path, "%s/" MODEL_FILE, q->out) >= (int)sizeof path ||
        snprintf(part, sizeof part, "%s/" MODEL_FILE ".part", q->out) >= (int)sizeof part)
        return esp_fail(err, ESP_E_ARG, "--out: the path is too long");
    st = esp_checkpoint_open(&q->ck, q->model, err);
    if (!st)
        st = plan(q, err);
    if (st)
        return st;
    if (mkdir(q->out, 0777) != 0 && errno != EEXIST)
        return cannot_write(q->out, err);
    if (esp_file_exists(path))
        return esp_fail(err, ESP_E_ARG, "%s is there already; name another folder with --out", path);
    st = write_weights(q, part, err);
    if (!st)
        st = copy_others(q, err);
    if (!st && rename(part, path) != 0) /* last: a folder with this file is whole */
        st = cannot_write(path, err);
    if (st)
        unlink(part);
    return st;
}

/* ---- telling ---- */

static double error_of(double off, double all)
{
    return off > 0 ? sqrt(off / all) : 0;
}

/* Encoder layers, decoder layers, and what is once only, by its name. */
static esp_status report(const struct quantize *q, struct esp_err *err)
{
    json_t *o = json_object(), *layers = json_object();
    bool ok = o && layers;
    double off = 0, all = 0;
    uint64_t n_bytes = 0;
    esp_status st;

    for (uint32_t i = 0; ok && i < q->n_entry; i++) {
        const struct entry *e = &q->entry[i];
        const bool vision = e->role < ESP_P_W;
        double layer_off = 0, layer_all = 0;
        char name[ESP_TENSOR_NAME_MAX];

        off += e->off;
        all += e->all;
        n_bytes += e->n_bytes;
        if (e->type == ESP_W_STORED)
            continue;
        if (esp_role_has_layers(e->role))
            snprintf(name, sizeof name, "%s.layer.%u", vision ? "encoder" : "decoder", e->layer);
        else
            snprintf(name, sizeof name, "%s",
                     e->role == ESP_V_PATCH_W ? "encoder.patches"
                     : e->role == ESP_P_W     ? "projector"
                                              : "decoder.embedding");
        if (json_object_get(layers, name))
            continue;
        for (uint32_t k = i; k < q->n_entry; k++) {
            const struct entry *other = &q->entry[k];
            const bool same =
                other->role == e->role || (esp_role_has_layers(e->role) && esp_role_has_layers(other->role) &&
                                           (other->role < ESP_P_W) == vision);
            if (same && other->layer == e->layer) {
                layer_off += other->off;
                layer_all += other->all;
            }
        }
        SET(layers, name, esp_json_number(error_of(layer_off, layer_all)));
        if (!q->json)
            printf("%-20s %.5f\n", name, error_of(layer_off, layer_all));
    }
    if (q->json) {
        if (ok)
            SET(o, "layers", json_incref(layers));
        SET(o, "error", esp_json_number(error_of(off, all)));
        SET(o, "bytes", json_integer((json_int_t)n_bytes));
        SET(o, "weights", json_string(esp_wtype_name(q->type)));
        st = esp_report_print(ok ? json_incref(o) : NULL, err);
    } else {
        printf("relative L2 error of all weights %.5f, %s in %s\n", error_of(off, all),
               esp_figure_bytes((double)n_bytes).s, q->out);
        st = fflush(stdout) ? esp_fail(err, ESP_E_IO, "standard output cannot be written") : ESP_OK;
    }
    json_decref(layers);
    json_decref(o);
    return st;
}

static int check(struct quantize *q)
{
    const char *env = getenv("ESPALIER_MODEL");

    if (!q->model && env && *env)
        q->model = env;
    if (!q->model || !q->out || !q->weights)
        return esp_args_bad(&help, "--model DIR, --out DIR and --weights q8 or q4 are needed");
    if (!esp_wtype_parse(&q->type, q->weights) || !esp_wtype_quantised(q->type))
        return esp_args_bad(&help, "--weights: '%s', takes q8 or q4", q->weights);
    return ESP_ARGS_GO_ON;
}

int esp_command_quantize(int argc, char **argv)
{
    static struct quantize q;
    struct esp_arg set[] = {
        {"model", 'm', ESP_ARG_TEXT, "DIR", "The checkpoint, a Hugging Face directory.", &q.model, 0, 0,
         false, NULL},
        {"out", 'o', ESP_ARG_TEXT, "DIR", "Where the new one goes; made if need be.", &q.out, 0, 0, false,
         NULL},
        {"weights", 0, ESP_ARG_TEXT, "TYPE", "q8 or q4.", &q.weights, 0, 0, false, NULL},
        {"threads", 0, ESP_ARG_U32, "N", "Threads, 1 to 64. Default: one for each processor.", &q.threads, 1,
         64, false, NULL},
        {"json", 0, ESP_ARG_FLAG, NULL, "One JSON object on standard output.", &q.json, 0, 0, false, NULL},
    };
    const struct esp_arg_group groups[] = {{"Options", set, sizeof set / sizeof set[0]}, {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);

    if (r == ESP_ARGS_GO_ON && n_rest > 0)
        r = esp_args_bad(&help, "what is '%s'?", rest[0]);
    if (r == ESP_ARGS_GO_ON)
        r = check(&q);
    if (r == ESP_ARGS_GO_ON) {
        esp_status st;
        const long n = sysconf(_SC_NPROCESSORS_ONLN);

        if (q.threads == 0)
            q.threads = n < 1 ? 1 : n > 64 ? 64 : (uint32_t)n;
        esp_term_init(&q.term);
        st = quantize(&q, &err);
        esp_term_clear(&q.term);
        if (!st)
            st = report(&q, &err);
        r = st ? esp_ask_failed(&q.term, help.name, &err) : 0;
        esp_checkpoint_destroy(&q.ck);
        free(q.entry);
        memset(&q, 0, sizeof q);
    }
    esp_args_free(groups);
    return r;
}
