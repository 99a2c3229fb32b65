#include "worker/verify.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/reference_layer.h"

#define CHECKED_ROWS 16   /* of an encoder layer's output */
#define PREFIX       4    /* rows that see each other both ways */
#define PREFILL      6    /* rows of the first step */
#define MAX_ROWS     21   /* of the sequence: within one KV block of the engine's */
#define TOP_K        8    /* candidates asked for */
#define STREAM_FLOOR 1e-3 /* of |reference| counts as what a layer adds, at least */

/* Rows of the steps: a prefill, then one for every width of the matrix-vector kernels. */
static const uint32_t step_rows[] = {PREFILL, 1, 2, 4, 8};
#define N_STEP (sizeof step_rows / sizeof step_rows[0])

enum part_kind {
    PATCHES,
    POSITIONS,
    VISION_LAYER,
    POST,
    PROJECTOR,
    EMBED,
    TEXT_LAYER,
    NORM,
    LOGITS,
    CANDIDATES
};

struct part {
    enum part_kind kind;
    uint32_t layer;
    bool decode; /* rows of the later steps */
};

struct esp_verify {
    const struct esp_checkpoint *ck;
    const struct esp_config *c;
    struct esp_stage_spec spec;
    bool planned, encoded;

    uint32_t n_patch;
    float *patches; /* input: f32[C,S,S], or f32[n_patch,D] */
    struct esp_stage_out vision;

    uint32_t n_row; /* of all steps that ran */
    int32_t ids[MAX_ROWS];
    float *rows;     /* input of a stage in the middle, f32[MAX_ROWS,D] */
    uint32_t n_step; /* that ran: the last one may have had results that are no numbers */
    struct esp_stage_out step[N_STEP];

    double *want; /* of the last part with rows of the decoder: f64[n_row,D] */
    bool wanted;  /* it is this layer's: */
    uint32_t wanted_layer;

    uint32_t n_part;
    struct part part[2 * ESP_MAX_LAYERS + ESP_MAX_LAYERS + 16];
};

esp_status esp_verify_create(struct esp_verify **out, struct esp_err *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "the check's books");
}

void esp_verify_destroy(struct esp_verify **verify)
{
    struct esp_verify *v = *verify;

    if (!v)
        return;
    esp_stage_out_finish(&v->vision);
    for (size_t i = 0; i < N_STEP; i++)
        esp_stage_out_finish(&v->step[i]);
    free(v->patches);
    free(v->rows);
    free(v->want);
    free(v);
    *verify = NULL;
}

/* ---- the input ---- */

/* splitmix64: the same numbers everywhere. */
static double uniform(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* Rows of about unit scale; every 97th column is 30 times as large, and so is the whole first row. */
static float *pseudo_rows(uint32_t n, uint32_t width, uint64_t seed)
{
    float *x = malloc((size_t)n * width * sizeof *x);

    for (size_t i = 0; x && i < (size_t)n * width; i++) {
        const double sum = uniform(&seed) + uniform(&seed) + uniform(&seed) + uniform(&seed);

        x[i] = (float)((sum - 2) * 1.7 * (i % width % 97 == 7 ? 30 : 1) * (i < width ? 30 : 1));
    }
    return x;
}

/* A disc and stripes on a slope, in -1 .. 1: smooth parts, edges, and something in every patch. */
static float *drawn_picture(const struct esp_vision_config *c)
{
    const uint32_t s = c->image_size;
    float *pixels = malloc((size_t)c->n_channel * s * s * sizeof *pixels);

    for (uint32_t ch = 0; pixels && ch < c->n_channel; ch++) {
        for (uint32_t y = 0; y < s; y++) {
            for (uint32_t x = 0; x < s; x++) {
                const double u = (x + 0.5) / s, v = (y + 0.5) / s;
                const double from = hypot(u - 0.4, v - 0.5 - 0.1 * ch);
                double p = u - v * 0.5 * (ch + 1) / c->n_channel;

                if (from < 0.3)
                    p = 0.9 - 2 * from;
                else if ((x + 3 * y) / 5 % 7 < 2)
                    p = -p;
                pixels[((size_t)ch * s + y) * s + x] = (float)fmax(-1, fmin(1, p));
            }
        }
    }
    return pixels;
}

static esp_status plan(struct esp_verify *v, const struct esp_stage *stage, struct esp_err *err)
{
    const bool enc = esp_stage_spec(stage)->enc_lo < esp_stage_spec(stage)->enc_hi;
    const bool dec = esp_stage_spec(stage)->dec_lo < esp_stage_spec(stage)->dec_hi;
    uint64_t seed = 7;

    v->ck = esp_stage_checkpoint(stage);
    v->c = esp_checkpoint_config(v->ck);
    v->spec = *esp_stage_spec(stage);
    if (!enc && !dec)
        return esp_fail(err, ESP_E_ARG, "there are no layers here to check");
    if (enc) {
        v->n_patch = v->c->vision.n_token < ESP_VERIFY_PATCHES ? v->c->vision.n_token : ESP_VERIFY_PATCHES;
        v->patches =
            v->spec.patch ? drawn_picture(&v->c->vision) : pseudo_rows(v->n_patch, v->c->vision.width, 11);
        if (!v->patches)
            return esp_fail(err, ESP_E_NOMEM, "the check's picture");
    }
    for (uint32_t i = 0; i < MAX_ROWS; i++)
        v->ids[i] = (int32_t)(uniform(&seed) * v->c->text.vocab);
    if (dec && !v->spec.embed) {
        v->rows = pseudo_rows(MAX_ROWS, v->c->text.width, 13);
        if (!v->rows)
            return esp_fail(err, ESP_E_NOMEM, "the check's rows");
    }
    v->encoded = !enc;
    v->planned = true;
    return ESP_OK;
}

/* ---- on the device ---- */

static esp_status step(struct esp_verify *v, struct esp_stage *stage, uint32_t n, struct esp_err *err)
{
    const struct esp_seq_rows seq = {
        .seq = ESP_SEQ_VERIFY, .pos = v->n_row, .n_tok = n, .n_prefix = v->n_row || n > PREFIX ? PREFIX : n};
    struct esp_want wants[MAX_ROWS];
    struct esp_msg_step msg = {.epoch = 1,
                               .id = v->n_step + 1,
                               .payload = v->spec.embed ? ESP_PAYLOAD_TOKENS : ESP_PAYLOAD_ROWS,
                               .rows = n,
                               .width = v->spec.embed ? 1 : v->c->text.width,
                               .n_seqs = 1,
                               .seqs = &seq,
                               .wants = wants,
                               .trace = true};
    const void *data = v->spec.embed ? (const void *)(v->ids + v->n_row)
                                     : (const void *)(v->rows + (size_t)v->n_row * v->c->text.width);
    esp_status st;

    if (v->spec
            .head) /* of a prefill one row, as ever; then all, so that the logits' kernels have each width too */
        for (uint32_t i = v->n_row ? 0 : n - 1; i < n; i++)
            wants[msg.n_wants++] = (struct esp_want){
                .row = i, .k = TOP_K, .has_target = true, .target = (uint32_t)v->ids[i], .full = true};
    st = esp_stage_step(stage, &msg, data, &v->step[v->n_step], err);
    if (st && st != ESP_E_NUMBERS)
        return st;
    v->n_step++;
    v->n_row += n;
    return st;
}

static esp_status run_decoder(struct esp_verify *v, struct esp_stage *stage, struct esp_err *err)
{
    const uint64_t seq = ESP_SEQ_VERIFY;
    esp_status st = ESP_OK;

    for (uint32_t i = 0; !st && i < N_STEP; i++) {
        const uint32_t left = v->spec.max_rows - v->n_row;
        const uint32_t n = i == 0 && left < step_rows[0] ? left : step_rows[i];

        if (n > left) /* longer than this placement's sequences may be */
            break;
        st = step(v, stage, n, err);
    }
    esp_stage_release(stage, &(struct esp_msg_release){.n_seqs = 1, .seqs = &seq});
    return st == ESP_E_NUMBERS ? ESP_OK : st;
}

static void add_part(struct esp_verify *v, enum part_kind kind, uint32_t layer, bool decode)
{
    v->part[v->n_part++] = (struct part){kind, layer, decode};
}

/* In the order in which values pass: the first that is wrong is where it begins. */
static void list_parts(struct esp_verify *v)
{
    const bool enc = v->spec.enc_lo<v->spec.enc_hi, decode = v->n_step> 1;

    if (enc && v->spec.patch) {
        add_part(v, PATCHES, 0, false);
        add_part(v, POSITIONS, 0, false);
    }
    for (uint32_t l = v->spec.enc_lo; l < v->spec.enc_hi; l++)
        add_part(v, VISION_LAYER, l, false);
    if (enc && v->spec.projector) {
        add_part(v, POST, 0, false);
        add_part(v, PROJECTOR, 0, false);
    }
    if (v->n_step == 0)
        return;
    if (v->spec.embed)
        add_part(v, EMBED, 0, false);
    for (uint32_t l = v->spec.dec_lo; l < v->spec.dec_hi; l++) {
        add_part(v, TEXT_LAYER, l, false);
        if (decode)
            add_part(v, TEXT_LAYER, l, true);
    }
    for (int i = 0; v->spec.head && i <= decode; i++) {
        if (i == 0)
            add_part(v, NORM, 0, false);
        add_part(v, LOGITS, 0, i == 1);
        add_part(v, CANDIDATES, 0, i == 1);
    }
}

esp_status esp_verify_run(struct esp_verify *v, struct esp_stage *stage, bool *more, struct esp_err *err)
{
    esp_status st = v->planned ? ESP_OK : plan(v, stage, err);

    *more = false;
    if (st)
        return st;
    if (!v->encoded) {
        st = esp_stage_encode_part(stage, v->n_patch, v->patches, &v->vision, err);
        if (st && st != ESP_E_NUMBERS)
            return st;
        v->encoded = true;
        if (v->spec.dec_lo < v->spec.dec_hi) {
            *more = true;
            return ESP_OK;
        }
    } else {
        st = run_decoder(v, stage, err);
        if (st)
            return st;
    }
    list_parts(v);
    return ESP_OK;
}

uint32_t esp_verify_n_parts(const struct esp_verify *v)
{
    return v->n_part;
}

/* ---- against the reference ---- */

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
static esp_status vision_input(const struct esp_verify *v, const struct part *p, const float **out,
                               struct esp_err *err)
{
    char name[64] = "vision.embeddings";
    const struct esp_stage_trace *t;

    *out = v->patches;
    if (p->kind == PATCHES || (p->kind == VISION_LAYER && p->layer == v->spec.enc_lo && !v->spec.patch))
        return ESP_OK;
    if (p->kind == POSITIONS)
        snprintf(name, sizeof name, "vision.patch_embeddings");
    else if (p->kind == PROJECTOR)
        snprintf(name, sizeof name, "vision.post_layernorm");
    else if (p->kind == POST)
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
                               const struct part *p, const float *x, const float *got, double *error,
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
                              const struct part *p, const char *name, double *error, struct esp_err *err)
{
    const struct esp_stage_trace *got = trace_of(&v->vision, name);
    const size_t n = v->n_patch;
    const uint32_t width = p->kind == PROJECTOR ? v->c->text.width : v->c->vision.width;
    const float *x;
    double *want;
    esp_status st = vision_input(v, p, &x, err);

    if (!st && (!got || got->rows != n || got->width != width))
        st = missing(name, err);
    if (st)
        return st;
    if (p->kind == VISION_LAYER)
        return vision_layer(v, src, p, x, got->data, error, err);
    want = malloc(n * width * sizeof *want);
    if (!want)
        return no_memory(err);
    if (p->kind == PATCHES)
        st = esp_ref_vision_patches(want, src, x, n, err);
    else if (p->kind == POSITIONS)
        st = esp_ref_vision_positions(want, src, x, n, err);
    else if (p->kind == POST)
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
                              const struct part *p, const float *x, double *want, struct esp_err *err)
{
    const uint32_t n_first = v->n_row < PREFILL ? v->n_row : PREFILL;

    if (p->kind == EMBED)
        return esp_ref_text_embed(want, src, v->ids, v->n_row, err);
    if (p->kind == NORM)
        return esp_ref_text_norm(want, src, x, v->n_row, err);
    return esp_ref_text_layer(want, src, p->layer, x, v->n_row, n_first < PREFIX ? n_first : PREFIX, err);
}

/* Compared are the rows that went through a part's kernels. A layer's two parts share what was computed again. */
static esp_status text_part(struct esp_verify *v, const struct esp_ref_source *src, const struct part *p,
                            double *error, struct esp_err *err)
{
    const size_t width = v->c->text.width, n_first = v->n_row < PREFILL ? v->n_row : PREFILL;
    const bool layer = p->kind == TEXT_LAYER;
    const size_t from = layer && p->decode ? n_first : 0, to = layer && !p->decode ? n_first : v->n_row;
    char name[64] = "prefill.inputs_embeds";
    float *x = NULL, *got = NULL;
    esp_status st;

    if (layer)
        snprintf(name, sizeof name, "prefill.layer.%u", p->layer);
    else if (p->kind == NORM)
        snprintf(name, sizeof name, "prefill.norm");
    st = text_rows(v, name, &got, err);
    if (!st && p->kind != EMBED)
        st = text_input(v, p->kind == NORM ? v->spec.dec_hi : p->layer, &x, err);
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
static void logit_steps(const struct esp_verify *v, const struct part *p, uint32_t *lo, uint32_t *hi)
{
    *lo = p->decode ? 1 : 0;
    *hi = p->decode ? v->n_step : 1;
}

static esp_status logits_part(const struct esp_verify *v, const struct esp_ref_source *src,
                              const struct part *p, double *error, struct esp_err *err)
{
    const size_t width = v->c->text.width, vocab = v->c->text.vocab;
    const double cap = v->spec.final_softcap ? v->c->text.final_softcap : 0;
    size_t n = 0;
    uint32_t lo, hi;
    float *x = malloc(MAX_ROWS * width * sizeof *x), *got = malloc(MAX_ROWS * vocab * sizeof *got);
    double *want = malloc(MAX_ROWS * vocab * sizeof *want);
    esp_status st = x && got && want ? ESP_OK : no_memory(err);

    logit_steps(v, p, &lo, &hi);
    for (uint32_t i = lo; !st && i < hi; i++) {
        const struct esp_stage_out *o = &v->step[i];
        const struct esp_stage_trace *t = trace_of(o, "prefill.norm");

        if (o->n_full == 0 || o->vocab != vocab) { /* the step ended for them */
            *error = ESP_VERIFY_NO_NUMBER;
            goto done;
        }
        if (!t || t->rows < o->n_full || n + o->n_full > MAX_ROWS) {
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
static void candidates_part(const struct esp_verify *v, const struct part *p, double *error)
{
    struct esp_ref_top top[TOP_K];
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
            const size_t n = esp_ref_topk(top, logits, o->vocab, TOP_K);
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
    const struct part *p = &v->part[i];
    const struct esp_ref_source src = {.ck = v->ck, .stop = stop, .arg = arg, .weights = v->spec.weights};
    const char *phase = p->kind < EMBED ? "" : p->decode ? "decode." : "prefill.";

    if (p->kind == VISION_LAYER || p->kind == TEXT_LAYER)
        snprintf(out->layer, sizeof out->layer, "%s%s.%u", phase, names[p->kind], p->layer);
    else
        snprintf(out->layer, sizeof out->layer, "%s%s", phase, names[p->kind]);
    out->limit = ESP_VERIFY_LIMIT;
    if (p->kind < EMBED)
        return vision_part(v, &src, p, out->layer, &out->error, err);
    if (p->kind == LOGITS)
        return logits_part(v, &src, p, &out->error, err);
    if (p->kind != CANDIDATES)
        return text_part(v, &src, p, &out->error, err);
    candidates_part(v, p, &out->error);
    return ESP_OK;
}
