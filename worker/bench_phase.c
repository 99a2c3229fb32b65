/* The phases of espalier-worker --bench: each repeated, timed, and profiled. */
#include <stdio.h>

#include "worker/bench_state.h"
#include "proto/clock.h"
#include "worker/profile.h"

#define TELL_SECONDS     0.5
#define PROFILED_REPEATS 3u  /* at most: kernels repeat themselves within each */
#define PROFILED_SECONDS 2.0 /* and no more of them than fit, but one */

/* What is timed. All leave the stage as it was, but for decoding's positions. */
struct phase {
    enum esp_bench_phase kind;
    uint32_t batch, n_repeat, n_warm;
    uint64_t seq[256]; /* decode: the sequences, and the position that comes next in each */
    uint32_t pos;
};

uint32_t esp_bench_warm_steps(const struct esp_bench_what *w)
{
    return w->warm_up + 1;
}

uint32_t esp_bench_n_phase(const struct esp_bench_what *w)
{
    return w->encode + w->prefill + w->n_batch;
}

uint32_t esp_bench_draw(struct esp_bench *b, uint32_t below)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(b->random >> 33) % below;
}

/* ---- a repeat ---- */

static esp_status run_encode(struct esp_bench *b, struct esp_err *err)
{
    const struct esp_vision_config *v = &b->c->vision;
    const struct esp_msg_encode msg = {.epoch = 1,
                                       .image = ESP_BENCH_IMAGE,
                                       .payload = ESP_PAYLOAD_PIXELS,
                                       .rows = v->n_channel * v->image_size,
                                       .width = v->image_size};
    struct esp_stage_out out = {0};
    esp_status st = esp_stage_encode(b->stage, &msg, b->pixels, &out, err);

    esp_stage_out_finish(&out);
    return st;
}

/* A step over n_tok rows of each of n sequences. @param from  they are forks of this one, made now; 0: they are not */
static esp_status run_step(struct esp_bench *b, const uint64_t *seqs, uint32_t n, uint32_t pos,
                           uint32_t n_tok, uint64_t from, struct esp_err *err)
{
    const uint64_t image = ESP_BENCH_IMAGE;
    struct esp_seq_rows rows[256];
    struct esp_want wants[256];
    struct esp_fork forks[256];
    const struct esp_msg_step msg = {.epoch = 1,
                                     .id = ++b->last_step,
                                     .payload = ESP_PAYLOAD_TOKENS,
                                     .rows = n * n_tok,
                                     .width = 1,
                                     .n_seqs = n,
                                     .seqs = rows,
                                     .n_wants = n,
                                     .wants = wants,
                                     .n_forks = from ? n : 0,
                                     .forks = forks};
    struct esp_stage_out out = {0};
    esp_status st;

    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (struct esp_seq_rows){.seq = seqs[i], .pos = pos, .n_tok = n_tok, .n_prefix = b->prefix};
        if (pos == 0) {
            rows[i].n_images = 1;
            rows[i].images = &image;
        }
        wants[i] = (struct esp_want){.row = (i + 1) * n_tok - 1, .k = 1};
        forks[i] = (struct esp_fork){.seq = seqs[i], .from = from};
    }
    for (uint32_t i = 0; i < n * n_tok; i++)
        b->ids[i] = (int32_t)esp_bench_draw(b, b->c->text.vocab);
    st = esp_stage_step(b->stage, &msg, b->ids, &out, err);
    esp_stage_out_finish(&out);
    return st;
}

static void forget(struct esp_bench *b, const uint64_t *seqs, uint32_t n)
{
    const struct esp_msg_release msg = {.epoch = 1, .n_seqs = n, .seqs = seqs};

    esp_stage_release(b->stage, &msg);
}

static void forget_prompt(struct esp_bench *b)
{
    if (b->prompt)
        forget(b, &b->prompt, 1);
    b->prompt = 0;
}

/* One repeat, timed. Prefill leaves its sequence behind, so that decoding need not make another one. */
static esp_status run_once(struct esp_bench *b, struct phase *p, double *taken, struct esp_err *err)
{
    double t0;
    esp_status st;

    if (p->kind == ESP_BENCH_PREFILL)
        forget_prompt(b);
    t0 = esp_now_seconds();
    switch (p->kind) {
    case ESP_BENCH_ENCODE:
        st = run_encode(b, err);
        break;
    case ESP_BENCH_PREFILL:
        b->prompt = ++b->last_seq;
        st = run_step(b, &b->prompt, 1, 0, b->prefix, 0, err);
        break;
    default:
        st = run_step(b, p->seq, p->batch, p->pos, 1, 0, err);
        p->pos++;
        break;
    }
    *taken = esp_now_seconds() - t0;
    return st;
}

/* ---- a phase ---- */

/* "decode, 4 at once" */
static void phase_title(char out[64], const struct phase *p, const char *more)
{
    if (p->kind == ESP_BENCH_DECODE)
        snprintf(out, 64, "decode, %u at once%s", p->batch, more);
    else
        snprintf(out, 64, "%s%s", p->kind == ESP_BENCH_ENCODE ? "encode" : "prefill", more);
}

/* Decode: forks of one prompt as beams are, which share its keys and values but not their own. */
static esp_status phase_open(struct esp_bench *b, struct phase *p, struct esp_err *err)
{
    esp_status st = ESP_OK;

    if (p->kind != ESP_BENCH_DECODE)
        return ESP_OK;
    if (!b->prompt) {
        struct phase prefill = {.kind = ESP_BENCH_PREFILL};
        double taken;

        st = esp_bench_tell(b, "prefill of the prompt that is decoded from", 0, 0, err);
        if (!st)
            st = run_once(b, &prefill, &taken, err);
    }
    for (uint32_t i = 0; i < p->batch; i++)
        p->seq[i] = ++b->last_seq;
    p->pos = b->prefix;
    if (!st)
        st = run_step(b, p->seq, p->batch, p->pos, 1, b->prompt, err);
    p->pos++;
    return st;
}

static void phase_close(struct esp_bench *b, const struct phase *p)
{
    if (p->kind == ESP_BENCH_DECODE)
        forget(b, p->seq, p->batch);
}

static esp_status repeat(struct esp_bench *b, struct phase *p, uint32_t n_warm, uint32_t n, const char *more,
                         json_t *times, struct esp_err *err)
{
    char title[64], warming[64];
    double told = esp_now_seconds(), taken;
    esp_status st;

    phase_title(title, p, more);
    phase_title(warming, p, ", warming up");
    st = esp_bench_tell(b, n_warm ? warming : title, 0, n_warm ? n_warm : n, err);
    for (uint32_t i = 0; !st && i < n_warm + n; i++) {
        const bool warm = i + 1 < n_warm;

        st = run_once(b, p, &taken, err);
        if (!st && i >= n_warm && times && json_array_append_new(times, json_real(taken)) != 0)
            st = esp_fail(err, ESP_E_NOMEM, "results");
        if (!st && i + 1 == n_warm) /* what warms up is nobody's kernel */
            esp_profile_clear(esp_stage_profile(b->stage));
        if (!st && (i + 1 == n_warm || esp_now_seconds() - told > TELL_SECONDS)) {
            told = esp_now_seconds();
            st = esp_bench_tell(b, warm ? warming : title, warm ? i + 1 : i + 1 - n_warm, warm ? n_warm : n,
                                err);
        }
    }
    return st;
}

/* The phase's entry of the results, and what it must do at least. */
static esp_status describe(struct esp_bench *b, const struct phase *p, json_t *o, struct esp_err *err)
{
    static const char *const names[] = {
        [ESP_BENCH_ENCODE] = "encode", [ESP_BENCH_PREFILL] = "prefill", [ESP_BENCH_DECODE] = "decode"};
    const uint32_t rows = p->kind == ESP_BENCH_ENCODE    ? b->c->vision.n_token
                          : p->kind == ESP_BENCH_PREFILL ? b->prefix
                                                         : p->batch;
    /* decoding attends to one position more with each step, the first of which made the forks: the middle one counts */
    const double ctx = p->kind == ESP_BENCH_DECODE ? (double)b->prefix + 1 + esp_bench_warm_steps(&b->what) +
                                                         0.5 * (b->what.steps + 1)
                                                   : rows;
    struct esp_bench_work work;
    esp_status st = esp_bench_work(&work, b->shelf, &b->spec, p->kind, p->batch, ctx, err);
    bool ok = true;

    if (st)
        return st;
    SET(o, "phase", json_string(names[p->kind]));
    SET(o, "batch", json_integer(p->batch));
    SET(o, "rows", json_integer(rows));
    SET(o, "bytes", json_real(work.bytes));
    SET(o, "flop", json_real(work.flop));
    return ok ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "results");
}

static esp_status measure_phase(struct esp_bench *b, struct phase *p, json_t *o, struct esp_err *err)
{
    json_t *times = json_array();
    esp_status st = phase_open(b, p, err);

    if (!st)
        st = repeat(b, p, p->n_warm, p->n_repeat, "", times, err);
    if (!st)
        st = describe(b, p, o, err);
    phase_close(b, p);
    if (json_object_set_new(o, "seconds", times) != 0 && !st)
        st = esp_fail(err, ESP_E_NOMEM, "results");
    return st;
}

static json_t *kernel_json(const struct esp_profile_sum *sum)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "name", json_string(sum->name));
    SET(o, "n", json_integer(sum->n));
    SET(o, "k", json_integer(sum->k));
    SET(o, "calls", json_integer((json_int_t)sum->n_call));
    SET(o, "seconds", json_real(sum->seconds));
    SET(o, "bytes", json_real(sum->bytes));
    SET(o, "flop", json_real(sum->flop));
    if (!ok)
        json_decref(o);
    return ok ? o : NULL;
}

/* Repeats that are profiled of a phase that was measured. */
static uint32_t n_profiled(const struct phase *p, const json_t *o)
{
    const double one = json_real_value(json_array_get(json_object_get(o, "seconds"), 0));
    uint32_t n = p->n_repeat < PROFILED_REPEATS ? p->n_repeat : PROFILED_REPEATS;

    while (n > 1 && n * one > PROFILED_SECONDS)
        n--;
    return n;
}

static esp_status profile_phase(struct esp_bench *b, struct phase *p, json_t *o, struct esp_err *err)
{
    const uint32_t n = n_profiled(p, o);
    json_t *kernels = json_array();
    struct esp_profile_sum sum;
    bool ok = kernels != NULL;
    esp_status st = phase_open(b, p, err);

    esp_profile_clear(esp_stage_profile(b->stage));
    if (!st) /* what takes long is warm already: everything has run before */
        st = repeat(b, p, n > 1 ? 1 : 0, n, ", profiled", NULL, err);
    for (uint32_t i = 0; !st && ok && esp_profile_at(esp_stage_profile(b->stage), i, &sum); i++)
        if (sum.n_call > 0)
            ok = json_array_append_new(kernels, kernel_json(&sum)) == 0;
    phase_close(b, p);
    SET(o, "kernels", kernels);
    SET(o, "profiled", json_integer(n));
    return st ? st : ok ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "results");
}

esp_status esp_bench_phases(struct esp_bench *b, bool profile, struct esp_err *err)
{
    struct phase p;
    esp_status st = ESP_OK;
    size_t at = 0;

    b->prompt = 0; /* it was another stage's */
    for (uint32_t i = 0; !st && i < 2 + b->what.n_batch; i++) {
        json_t *o;

        p = (struct phase){.kind = i == 0   ? ESP_BENCH_ENCODE
                                   : i == 1 ? ESP_BENCH_PREFILL
                                            : ESP_BENCH_DECODE,
                           .batch = i < 2 ? 1 : b->what.batch[i - 2],
                           .n_repeat = i < 2 ? b->what.repeats : b->what.steps,
                           .n_warm = i < 2 ? b->what.warm_up : esp_bench_warm_steps(&b->what)};
        if ((i == 0 && !b->what.encode) || (i == 1 && !b->what.prefill))
            continue;
        b->part++;
        if (!profile && json_array_append_new(b->phases, json_object()) != 0)
            return esp_fail(err, ESP_E_NOMEM, "results");
        o = json_array_get(b->phases, at++);
        st = profile ? profile_phase(b, &p, o, err) : measure_phase(b, &p, o, err);
    }
    forget_prompt(b);
    return st;
}
