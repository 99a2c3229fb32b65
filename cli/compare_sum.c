#include "cli/compare_sum.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/report_json.h"

#define LOGITS     "prefill.logits"
#define MAX_LAYERS 1024

struct layer {
    char name[64];
    double off, all; /* squares */
};

struct esp_compare_sum {
    uint32_t n_examples, n_layers, n_same;
    struct layer layer[MAX_LAYERS];
    double *kl; /* of each token, n_kl of them */
    size_t n_kl, cap;
};

struct esp_compare_sum *esp_compare_sum_create(void)
{
    return calloc(1, sizeof(struct esp_compare_sum));
}

void esp_compare_sum_destroy(struct esp_compare_sum **sum)
{
    if (*sum)
        free((*sum)->kl);
    free(*sum);
    *sum = NULL;
}

/* ---- keeping ---- */

/* What stands before a value in the file; its floats follow. */
struct head {
    char name[64];
    uint32_t rows, width;
};

static const struct esp_msg *trace_of(const struct esp_reply *reply, const char *name)
{
    for (uint32_t i = 0; i < reply->n_traces; i++)
        if (strcmp(reply->traces[i]->trace.name, name) == 0)
            return reply->traces[i];
    return NULL;
}

/* The rows of a value that count: of the logits those that say something of the answer, from the prompt's last one on. */
static esp_status view(struct head *out, const char **data, const struct esp_msg *m,
                       const struct esp_reply *reply, struct esp_err *err)
{
    const struct esp_msg_accepted *acc = &reply->accepted->accepted;
    const size_t begun = (size_t)acc->image_tokens + acc->n_prompt_ids, n = reply->done->done.best.n_logprobs;

    *out = (struct head){.rows = m->trace.rows, .width = m->trace.width};
    snprintf(out->name, sizeof out->name, "%s", m->trace.name);
    *data = m->blob[0].data;
    if (strcmp(out->name, LOGITS) != 0)
        return ESP_OK;
    if (begun == 0 || begun - 1 + n > out->rows)
        return esp_fail(err, ESP_E_LIMIT, "%zu tokens of an answer in %u rows of logits behind %zu", n,
                        out->rows, begun);
    *data += (begun - 1) * out->width * sizeof(float);
    out->rows = (uint32_t)n;
    return ESP_OK;
}

esp_status esp_compare_keep(const struct esp_reply *reply, FILE *file, struct esp_err *err)
{
    if (!trace_of(reply, LOGITS))
        return esp_fail(err, ESP_E_LIMIT,
                        "picture, prompt and answer have too many tokens for the logits of all of them");
    if (fwrite(&reply->n_traces, sizeof reply->n_traces, 1, file) != 1)
        return esp_fail(err, ESP_E_IO, "what the first one said cannot be kept: %s", strerror(errno));
    for (uint32_t i = 0; i < reply->n_traces; i++) {
        struct head h;
        const char *data;
        const esp_status st = view(&h, &data, reply->traces[i], reply, err);

        if (st)
            return st;
        if (fwrite(&h, sizeof h, 1, file) != 1 ||
            fwrite(data, (size_t)h.width * sizeof(float), h.rows, file) != h.rows)
            return esp_fail(err, ESP_E_IO, "what the first one said cannot be kept: %s", strerror(errno));
    }
    return ESP_OK;
}

/* ---- comparing ---- */

static double log_sum_exp(const float *x, size_t n)
{
    double most = -INFINITY, sum = 0;

    for (size_t i = 0; i < n; i++)
        most = x[i] > most ? (double)x[i] : most;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - most);
    return most + log(sum);
}

double esp_compare_kl(const float *a, const float *b, size_t n)
{
    const double la = log_sum_exp(a, n), lb = log_sum_exp(b, n);
    double kl = 0;

    for (size_t i = 0; i < n; i++) {
        const double log_p = (double)a[i] - la;
        kl += exp(log_p) * (log_p - ((double)b[i] - lb));
    }
    return kl > 0 || kl != kl ? kl : 0; /* what rounding leaves of equal ones may be below zero */
}

static size_t top_of(const float *x, size_t n)
{
    size_t best = 0;

    for (size_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static struct layer *layer_of(struct esp_compare_sum *sum, const char *name)
{
    for (uint32_t i = 0; i < sum->n_layers; i++)
        if (strcmp(sum->layer[i].name, name) == 0)
            return &sum->layer[i];
    if (sum->n_layers == MAX_LAYERS)
        return NULL;
    snprintf(sum->layer[sum->n_layers].name, sizeof sum->layer[0].name, "%s", name);
    return &sum->layer[sum->n_layers++];
}

/* The answer's logits, f32[n, vocab]. */
static esp_status add_tokens(struct esp_compare_sum *sum, const float *a, const float *b, size_t n,
                             size_t vocab, struct esp_err *err)
{
    if (sum->n_kl + n > sum->cap) {
        const size_t cap = 2 * (sum->n_kl + n);
        double *more = realloc(sum->kl, cap * sizeof *more);
        if (!more)
            return esp_fail(err, ESP_E_NOMEM, "out of memory");
        sum->kl = more;
        sum->cap = cap;
    }
    for (size_t i = 0; i < n; i++) {
        const float *x = a + i * vocab, *y = b + i * vocab;

        sum->kl[sum->n_kl++] = esp_compare_kl(x, y, vocab);
        sum->n_same += top_of(x, vocab) == top_of(y, vocab);
    }
    return ESP_OK;
}

static esp_status add_layer(struct esp_compare_sum *sum, const char *name, const float *a, const float *b,
                            size_t n, struct esp_err *err)
{
    struct layer *l = layer_of(sum, name);

    if (!l)
        return esp_fail(err, ESP_E_LIMIT, "more than %d layers", MAX_LAYERS);
    for (size_t i = 0; i < n; i++) {
        const double off = (double)b[i] - a[i];
        l->off += off * off;
        l->all += (double)a[i] * a[i];
    }
    return ESP_OK;
}

static esp_status io(FILE *file, struct esp_err *err)
{
    return esp_fail(err, ESP_E_IO, "what the first one said cannot be read again: %s",
                    ferror(file) ? strerror(errno) : "its file ends early");
}

/* One value: the first run's, next in the file, and the second one's. */
static esp_status compare_value(struct esp_compare_sum *sum, const struct esp_reply *reply, FILE *file,
                                struct esp_err *err)
{
    const struct esp_msg *m;
    struct head h, now_h;
    const char *data = NULL;
    float *kept, *now;
    size_t n;
    esp_status st;

    if (fread(&h, sizeof h, 1, file) != 1)
        return io(file, err);
    n = (size_t)h.rows * h.width;
    kept = malloc((n + 1) * sizeof *kept);
    now = malloc((n + 1) * sizeof *now); /* a frame has no alignment */
    m = trace_of(reply, h.name);
    if (!kept || !now)
        st = esp_fail(err, ESP_E_NOMEM, "%s: out of memory", h.name);
    else if (fread(kept, sizeof *kept, n, file) != n)
        st = io(file, err);
    else
        st = m ? view(&now_h, &data, m, reply, err) : ESP_OK;
    if (!st && (!m || now_h.rows != h.rows || now_h.width != h.width))
        st = esp_fail(err, ESP_E_ARG, "%s is not the same shape in both: these are no two forms of one model",
                      h.name);
    if (!st) {
        memcpy(now, data, n * sizeof *now);
        st = add_layer(sum, h.name, kept, now, n, err);
    }
    if (!st && strcmp(h.name, LOGITS) == 0)
        st = add_tokens(sum, kept, now, h.rows, h.width, err);
    free(kept);
    free(now);
    return st;
}

esp_status esp_compare_with(struct esp_compare_sum *sum, const struct esp_reply *reply, FILE *file,
                            struct esp_err *err)
{
    esp_status st = ESP_OK;
    uint32_t n;

    if (fread(&n, sizeof n, 1, file) != 1)
        return io(file, err);
    for (uint32_t i = 0; !st && i < n; i++)
        st = compare_value(sum, reply, file, err);
    sum->n_examples += !st;
    return st;
}

/* ---- telling ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

struct figures {
    double mean, median, p99, most;
};

static struct figures figures_of(const struct esp_compare_sum *sum)
{
    struct figures f = {NAN, NAN, NAN, NAN};
    double *sorted = malloc((sum->n_kl + 1) * sizeof *sorted), all = 0;

    if (sorted && sum->n_kl > 0) {
        memcpy(sorted, sum->kl, sum->n_kl * sizeof *sorted);
        qsort(sorted, sum->n_kl, sizeof *sorted, by_value);
        for (size_t i = 0; i < sum->n_kl; i++)
            all += sorted[i];
        f = (struct figures){all / (double)sum->n_kl, sorted[sum->n_kl / 2],
                             sorted[(sum->n_kl - 1) * 99 / 100], sorted[sum->n_kl - 1]};
    }
    free(sorted);
    return f;
}

/* 0 of nothing but zeros. */
static double error_of(const struct layer *l)
{
    return l->off > 0 ? sqrt(l->off / l->all) : 0;
}

void esp_compare_sum_print(const struct esp_compare_sum *sum, FILE *out)
{
    const struct figures f = figures_of(sum);

    fprintf(out, "%-28s %s\n", "value", "relative L2 error");
    for (uint32_t i = 0; i < sum->n_layers; i++)
        fprintf(out, "%-28s %.6f\n", sum->layer[i].name, error_of(&sum->layer[i]));
    fprintf(out, "%zu tokens of %u answers: KL mean %.3g, median %.3g, 99 %% below %.3g, largest %.3g nats\n",
            sum->n_kl, sum->n_examples, f.mean, f.median, f.p99, f.most);
    fprintf(out, "same most likely token: %.2f %%\n",
            sum->n_kl ? 100.0 * sum->n_same / (double)sum->n_kl : 0);
}

json_t *esp_compare_sum_json(const struct esp_compare_sum *sum)
{
    const struct figures f = figures_of(sum);
    json_t *o = json_object(), *layers = json_object();
    bool ok = o && layers;

    for (uint32_t i = 0; ok && i < sum->n_layers; i++)
        SET(layers, sum->layer[i].name, esp_json_number(error_of(&sum->layer[i])));
    if (ok)
        SET(o, "layers", layers); /* which is o's now, whatever comes of it */
    else
        json_decref(layers);
    if (ok) {
        SET(o, "examples", json_integer(sum->n_examples));
        SET(o, "tokens", json_integer((json_int_t)sum->n_kl));
        SET(o, "kl_mean", esp_json_number(f.mean));
        SET(o, "kl_median", esp_json_number(f.median));
        SET(o, "kl_p99", esp_json_number(f.p99));
        SET(o, "kl_max", esp_json_number(f.most));
        SET(o, "same_token", esp_json_number(sum->n_kl ? sum->n_same / (double)sum->n_kl : 0));
    }
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}
