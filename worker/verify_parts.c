/* The second half of a check: each layer's output against the reference, on any thread. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/reference_layer.h"
#include "worker/verify_state.h"

#define CHECKED_ROWS 16   /* of an encoder layer's output */
#define STREAM_FLOOR 1e-3 /* of |reference| counts as what a layer adds, at least */

/* What is compared: rows of a width, and what they were made of, which counts as no error's measure (NULL: all does). */
struct rows {
    const float *got, *base;
    const double *want;
    size_t n, width;
};

/* The worst row's error. */
static double worst(const struct rows *r)
{
    double most = 0;

    for (size_t t = 0; t < r->n; t++) {
        const float *got = r->got + t * r->width, *base = r->base ? r->base + t * r->width : NULL;
        const double *want = r->want + t * r->width;
        double off = 0, whole = 0, added = 0, by, error;

        for (size_t d = 0; d < r->width; d++) {
            const double plus = want[d] - (base ? base[d] : 0);

            off += (got[d] - want[d]) * (got[d] - want[d]);
            whole += want[d] * want[d];
            added += plus * plus;
        }
        by = fmax(sqrt(added), STREAM_FLOOR * sqrt(whole));
        error = off == 0 ? 0 : sqrt(off) / by;
        if (!(error < ESP_VERIFY_NO_NUMBER)) /* NaN too */
            return ESP_VERIFY_NO_NUMBER;
        most = fmax(most, error);
    }
    return most;
}

static const struct esp_stage_trace *trace_of(const struct esp_stage_out *out, const char *name)
{
    for (uint32_t i = 0; i < out->n_traces; i++)
        if (strcmp(out->traces[i].name, name) == 0)
            return &out->traces[i];
    return NULL;
}

static esp_status missing(const char *name, struct esp_err *err)
{
    return esp_fail(err, ESP_E_INTERNAL, "the device's run has no %s", name);
}

static esp_status no_memory(struct esp_err *err)
{
    return esp_fail(err, ESP_E_NOMEM, "a layer's check");
}

/* What the encoder had before a part: the input, or the value of this name. */
static esp_status vision_input(const struct esp_verify *v, const struct esp_part *p, const float **out,
                               struct esp_err *err)
{
    char name[64] = "vision.embeddings";
    const struct esp_stage_trace *t;

    *out = v->patches;
    if (p->kind == ESP_PART_PATCHES ||
        (p->kind == ESP_PART_VISION_LAYER && p->layer == v->spec.enc_lo && !v->spec.patch))
        return ESP_OK;
    if (p->kind == ESP_PART_POSITIONS)
        snprintf(name, sizeof name, "vision.patch_embeddings");
    else if (p->kind == ESP_PART_PROJECTOR)
        snprintf(name, sizeof name, "vision.post_layernorm");
    else if (p->kind == ESP_PART_POST)
        snprintf(name, sizeof name, "vision.layer.%u", v->spec.enc_hi - 1);
    else if (p->layer > v->spec.enc_lo)
        snprintf(name, sizeof name, "vision.layer.%u", p->layer - 1);
    t = trace_of(&v->vision, name);
    if (!t || t->rows != v->n_patch || t->width != v->c->vision.width)
        return missing(name, err);
    *out = t->data;
    return ESP_OK;
}

static esp_status vision_layer(const struct esp_verify *v, const struct esp_ref_source *src,
                               const struct esp_part *p, const float *x, const float *got, double *error,
                               struct esp_err *err)
{
    const size_t width = v->c->vision.width;
    const uint32_t n = v->n_patch < CHECKED_ROWS ? v->n_patch : CHECKED_ROWS;
    double *want = malloc(n * width * sizeof *want);
    float *some = malloc(2 * n * width * sizeof *some); /* of the output, then of the input */
    uint32_t rows[CHECKED_ROWS];
    esp_status st = want && some ? ESP_OK : no_memory(err);

    for (uint32_t i = 0; !st && i < n; i++) {
        rows[i] = n > 1 ? i * (v->n_patch - 1) / (n - 1) : 0;
        memcpy(some + i * width, got + rows[i] * width, width * sizeof *some);
        memcpy(some + (n + i) * width, x + rows[i] * width, width * sizeof *some);
    }
    if (!st)
        st = esp_ref_vision_layer(want, src, p->layer, x, v->n_patch, rows, n, err);
    if (!st)
        *error = worst(&(struct rows){some, some + n * width, want, n, width});
    free(want);
    free(some);
    return st;
}

static esp_status vision_part(const struct esp_verify *v, const struct esp_ref_source *src,
                              const struct esp_part *p, const char *name, double *error, struct esp_err *err)
{
    const struct esp_stage_trace *got = trace_of(&v->vision, name);
    const size_t n = v->n_patch;
    const uint32_t width = p->kind == ESP_PART_PROJECTOR ? v->c->text.width : v->c->vision.width;
    const float *x;
    double *want;
    esp_status st = vision_input(v, p, &x, err);

    if (!st && (!got || got->rows != n || got->width != width))
        st = missing(name, err);
    if (st)
        return st;
    if (p->kind == ESP_PART_VISION_LAYER)
        return vision_layer(v, src, p, x, got->data, error, err);
    want = malloc(n * width * sizeof *want);
    if (!want)
        return no_memory(err);
    if (p->kind == ESP_PART_PATCHES)
        st = esp_ref_vision_patches(want, src, x, n, err);
    else if (p->kind == ESP_PART_POSITIONS)
        st = esp_ref_vision_positions(want, src, x, n, err);
    else if (p->kind == ESP_PART_POST)
        st = esp_ref_vision_post(want, src, x, n, err);
    else
        st = esp_ref_projector(want, src, x, n, err);
    if (!st)
        *error = worst(&(struct rows){got->data, NULL, want, n, width});
    free(want);
    return st;
}

/* A value of all steps' rows, f32[n_row, D], malloc'ed. */
static esp_status text_rows(const struct esp_verify *v, const char *name, float **out, struct esp_err *err)
{
    const size_t width = v->c->text.width;
    size_t row = 0;

    *out = malloc(v->n_row * width * sizeof **out);
    if (!*out)
        return no_memory(err);
    for (uint32_t i = 0; i < v->n_step; i++) {
        const struct esp_stage_trace *t = trace_of(&v->step[i], name);

        if (!t || t->width != width || row + t->rows > v->n_row) {
            free(*out);
            *out = NULL;
            return missing(name, err);
        }
        memcpy(*out + row * width, t->data, t->rows * width * sizeof **out);
        row += t->rows;
    }
    return ESP_OK;
}

static esp_status text_input(const struct esp_verify *v, uint32_t layer, float **out, struct esp_err *err)
{
    const size_t n = v->n_row * (size_t)v->c->text.width;
    char name[64] = "prefill.inputs_embeds";

    if (layer > v->spec.dec_lo)
        snprintf(name, sizeof name, "prefill.layer.%u", layer - 1);
    else if (!v->spec.embed) {
        *out = malloc(n * sizeof **out);
        if (!*out)
            return no_memory(err);
        memcpy(*out, v->rows, n * sizeof **out);
        return ESP_OK;
    }
    return text_rows(v, name, out, err);
}

/* What all rows of the sequence should be after the embedding, a layer or the norm, f64[n_row, D]. x: before it. */
static esp_status text_wanted(const struct esp_verify *v, const struct esp_ref_source *src,
                              const struct esp_part *p, const float *x, double *want, struct esp_err *err)
{
    const uint32_t n_first = v->n_row < ESP_VERIFY_PREFILL ? v->n_row : ESP_VERIFY_PREFILL;

    if (p->kind == ESP_PART_EMBED)
        return esp_ref_text_embed(want, src, v->ids, v->n_row, err);
    if (p->kind == ESP_PART_NORM)
        return esp_ref_text_norm(want, src, x, v->n_row, err);
    return esp_ref_text_layer(want, src, p->layer, x, v->n_row,
                              n_first < ESP_VERIFY_PREFIX ? n_first : ESP_VERIFY_PREFIX, err);
}

/* Compared are the rows that went through a part's kernels. A layer's two parts share what was computed again. */
static esp_status text_part(struct esp_verify *v, const struct esp_ref_source *src, const struct esp_part *p,
                            double *error, struct esp_err *err)
{
    const size_t width = v->c->text.width,
                 n_first = v->n_row < ESP_VERIFY_PREFILL ? v->n_row : ESP_VERIFY_PREFILL;
    const bool layer = p->kind == ESP_PART_TEXT_LAYER;
    const size_t from = layer && p->decode ? n_first : 0, to = layer && !p->decode ? n_first : v->n_row;
    char name[64] = "prefill.inputs_embeds";
    float *x = NULL, *got = NULL;
    esp_status st;

    if (layer)
        snprintf(name, sizeof name, "prefill.layer.%u", p->layer);
    else if (p->kind == ESP_PART_NORM)
        snprintf(name, sizeof name, "prefill.norm");
    st = text_rows(v, name, &got, err);
    if (!st && p->kind != ESP_PART_EMBED)
        st = text_input(v, p->kind == ESP_PART_NORM ? v->spec.dec_hi : p->layer, &x, err);
    if (!st && !v->want) {
        v->want = malloc(v->n_row * width * sizeof *v->want);
        if (!v->want)
            st = no_memory(err);
    }
    if (!st && !(layer && v->wanted && v->wanted_layer == p->layer)) {
        v->wanted = false;
        st = text_wanted(v, src, p, x, v->want, err);
        v->wanted = !st && layer;
        v->wanted_layer = p->layer;
    }
    if (!st)
        *error = worst(&(struct rows){got + from * width, layer ? x + from * width : NULL,
                                      v->want + from * width, to - from, width});
    free(got);
    free(x);
    return st;
}

/* Steps whose logits a part is about, [*lo, *hi). */
static void logit_steps(const struct esp_verify *v, const struct esp_part *p, uint32_t *lo, uint32_t *hi)
{
    *lo = p->decode ? 1 : 0;
    *hi = p->decode ? v->n_step : 1;
}

static esp_status logits_part(const struct esp_verify *v, const struct esp_ref_source *src,
                              const struct esp_part *p, double *error, struct esp_err *err)
{
    const size_t width = v->c->text.width, vocab = v->c->text.vocab;
    const double cap = v->spec.final_softcap ? v->c->text.final_softcap : 0;
    size_t n = 0;
    uint32_t lo, hi;
    float *x = malloc(ESP_VERIFY_MAX_ROWS * width * sizeof *x),
          *got = malloc(ESP_VERIFY_MAX_ROWS * vocab * sizeof *got);
    double *want = malloc(ESP_VERIFY_MAX_ROWS * vocab * sizeof *want);
    esp_status st = x && got && want ? ESP_OK : no_memory(err);

    logit_steps(v, p, &lo, &hi);
    for (uint32_t i = lo; !st && i < hi; i++) {
        const struct esp_stage_out *o = &v->step[i];
        const struct esp_stage_trace *t = trace_of(o, "prefill.norm");

        if (o->n_full == 0 || o->vocab != vocab) { /* the step ended for them */
            *error = ESP_VERIFY_NO_NUMBER;
            goto done;
        }
        if (!t || t->rows < o->n_full || n + o->n_full > ESP_VERIFY_MAX_ROWS) {
            st = missing("prefill.norm", err);
            break;
        }
        memcpy(x + n * width, t->data + (t->rows - o->n_full) * width, o->n_full * width * sizeof *x);
        memcpy(got + n * vocab, o->full, o->n_full * vocab * sizeof *got);
        n += o->n_full;
    }
    if (!st)
        st = esp_ref_text_logits(want, src, x, n, err);
    for (size_t i = 0; !st && cap > 0 && i < n * vocab; i++)
        want[i] = cap * tanh(want[i] / cap);
    if (!st)
        *error = worst(&(struct rows){got, NULL, want, n, vocab});
done:
    free(x);
    free(got);
    free(want);
    return st;
}

/* Candidates against the device's own logits: their order and values are exact, the log-sum-exp is a sum. */
static void candidates_part(const struct esp_verify *v, const struct esp_part *p, double *error)
{
    struct esp_ref_top top[ESP_VERIFY_TOP_K];
    uint32_t lo, hi;

    *error = 0;
    logit_steps(v, p, &lo, &hi);
    for (uint32_t i = lo; i < hi; i++) {
        const struct esp_stage_out *o = &v->step[i];

        if (o->n_full == 0 || o->n_full != o->n_results)
            *error = ESP_VERIFY_NO_NUMBER;
        for (uint32_t r = 0; r < o->n_full && r < o->n_results; r++) {
            const struct esp_row_result *res = &o->results[r];
            const float *logits = o->full + (size_t)r * o->vocab;
            const double lse = esp_ref_logsumexp(logits, o->vocab),
                         off = fabs(res->lse - lse) / fmax(1, fabs(lse));
            const size_t n = esp_ref_topk(top, logits, o->vocab, ESP_VERIFY_TOP_K);
            bool same = n == res->n && res->target_logit == logits[v->ids[res->row]];

            for (size_t k = 0; same && k < n; k++)
                same = top[k].id == res->ids[k] && top[k].logit == res->logits[k];
            if (!(off < ESP_VERIFY_NO_NUMBER))
                *error = ESP_VERIFY_NO_NUMBER;
            else
                *error = fmax(*error, same ? off : 1);
        }
    }
}

esp_status esp_verify_part(struct esp_verify *v, uint32_t i, bool (*stop)(void *arg), void *arg,
                           struct esp_verify_result *out, struct esp_err *err)
{
    static const char *const names[] = {"vision.patch_embeddings",
                                        "vision.embeddings",
                                        "vision.layer",
                                        "vision.post_layernorm",
                                        "vision.projector",
                                        "inputs_embeds",
                                        "layer",
                                        "norm",
                                        "logits",
                                        "candidates"};
    const struct esp_part *p = &v->part[i];
    const struct esp_ref_source src = {.ck = v->ck, .stop = stop, .arg = arg, .weights = v->spec.weights};
    const char *phase = p->kind < ESP_PART_EMBED ? "" : p->decode ? "decode." : "prefill.";

    if (p->kind == ESP_PART_VISION_LAYER || p->kind == ESP_PART_TEXT_LAYER)
        snprintf(out->layer, sizeof out->layer, "%s%s.%u", phase, names[p->kind], p->layer);
    else
        snprintf(out->layer, sizeof out->layer, "%s%s", phase, names[p->kind]);
    out->limit = ESP_VERIFY_LIMIT;
    if (v->few_rounded && (p->decode || p->kind == ESP_PART_LOGITS))
        out->limit = ESP_VERIFY_ROUNDED;
    if (p->kind < ESP_PART_EMBED)
        return vision_part(v, &src, p, out->layer, &out->error, err);
    if (p->kind == ESP_PART_LOGITS)
        return logits_part(v, &src, p, &out->error, err);
    if (p->kind != ESP_PART_CANDIDATES)
        return text_part(v, &src, p, &out->error, err);
    candidates_part(v, p, &out->error);
    return ESP_OK;
}
