#include "worker/bench.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/shape.h"
#include "proto/clock.h"
#include "shaders/push.h"
#include "worker/bench_work.h"
#include "worker/ceiling.h"
#include "worker/kv.h"
#include "worker/piece.h"
#include "worker/profile.h"
#include "worker/shelf.h"
#include "worker/stage.h"

#define MAX_BATCHES 16
#define IMAGE       1u /* the one picture's id */
#define PROFILED    3u /* repeats of the profiled run at most: kernels repeat themselves within each */

/* json_object_set_new takes a NULL value for an error, so a chain of these needs one look at the end. */
#define SET(object, key, value) (ok &= json_object_set_new((object), (key), (value)) == 0)

struct what {
    bool encode, prefill, profile;
    uint32_t n_batch, batch[MAX_BATCHES];
    uint32_t layers[2]; /* 0: all */
    enum esp_wtype weights;
    uint32_t prompt, repeats, warm_up, steps;
};

struct bench {
    struct what what;
    FILE *out;
    struct esp_checkpoint *ck;
    const struct esp_config *c;
    struct esp_vk *vk;
    struct esp_shelf *shelf;
    struct esp_stage *stage;
    struct esp_stage_spec spec;
    uint32_t of_layers[2], prefix;
    float *pixels, *features;
    int32_t *ids;
    uint64_t last_seq, last_step, random;
    uint32_t n_done, n_total; /* phases, for progress */
    double load_seconds;
    uint64_t load_bytes;
    struct esp_ceilings ceilings;
    json_t *phases;
};

/* ---- what to run ---- */

static esp_status bad_what(struct esp_err *err, const char *key, const char *takes)
{
    return esp_fail(err, ESP_E_ARG, "--bench: %s: takes %s", key, takes);
}

static bool number(uint32_t *out, const json_t *v, uint32_t min, uint32_t max)
{
    const json_int_t n = json_integer_value(v);

    if (!json_is_integer(v) || n < min || n > max)
        return false;
    *out = (uint32_t)n;
    return true;
}

static bool numbers(uint32_t *out, uint32_t *n_out, const json_t *v, size_t n_max, uint32_t min, uint32_t max)
{
    if (!json_is_array(v) || json_array_size(v) > n_max)
        return false;
    *n_out = (uint32_t)json_array_size(v);
    for (uint32_t i = 0; i < *n_out; i++)
        if (!number(&out[i], json_array_get(v, i), min, max))
            return false;
    return true;
}

static esp_status what_take(struct what *w, const char *key, const json_t *v, struct esp_err *err)
{
    uint32_t n;

    if (strcmp(key, "encode") == 0 || strcmp(key, "prefill") == 0 || strcmp(key, "profile") == 0) {
        if (!json_is_boolean(v))
            return bad_what(err, key, "true or false");
        *(key[0] == 'e'                 ? &w->encode
          : strcmp(key, "prefill") == 0 ? &w->prefill
                                        : &w->profile) = json_is_true(v);
    } else if (strcmp(key, "batch") == 0) {
        if (!numbers(w->batch, &w->n_batch, v, MAX_BATCHES, 1, 256))
            return bad_what(err, key, "a list of at most 16 numbers of 1 to 256");
    } else if (strcmp(key, "weights") == 0) {
        if (!json_is_string(v) || !esp_wtype_parse(&w->weights, json_string_value(v)))
            return bad_what(err, key, "stored, bf16, f16, f32, q8 or q4");
    } else if (strcmp(key, "layers") == 0) {
        if (!numbers(w->layers, &n, v, 2, 1, ESP_MAX_LAYERS) || n != 2)
            return bad_what(err, key, "two numbers, of encoder and decoder layers, each at least 1");
    } else if (strcmp(key, "prompt") == 0) {
        return number(&w->prompt, v, 1, 32768) ? ESP_OK : bad_what(err, key, "1 to 32768");
    } else if (strcmp(key, "repeats") == 0) {
        return number(&w->repeats, v, 1, 1000) ? ESP_OK : bad_what(err, key, "1 to 1000");
    } else if (strcmp(key, "warm_up") == 0) {
        return number(&w->warm_up, v, 0, 100) ? ESP_OK : bad_what(err, key, "0 to 100");
    } else if (strcmp(key, "steps") == 0) {
        return number(&w->steps, v, 1, 10000) ? ESP_OK : bad_what(err, key, "1 to 10000");
    } else {
        return esp_fail(err, ESP_E_ARG, "--bench: %s: no such field", key);
    }
    return ESP_OK;
}

static esp_status what_parse(struct what *w, const char *text, struct esp_err *err)
{
    json_error_t why;
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, &why), *v;
    const char *key;
    esp_status st = ESP_OK;

    *w = (struct what){.encode = true,
                       .prefill = true,
                       .n_batch = 5,
                       .batch = {1, 2, 4, 8, 16},
                       .prompt = 4,
                       .repeats = 5,
                       .warm_up = 1,
                       .steps = 32};
    if (!json_is_object(o)) {
        json_decref(o);
        return esp_fail(err, ESP_E_ARG, "--bench: takes a JSON object");
    }
    json_object_foreach(o, key, v)
    {
        st = what_take(w, key, v, err);
        if (st)
            break;
    }
    json_decref(o);
    if (!st && !w->encode && !w->prefill && w->n_batch == 0)
        st = esp_fail(err, ESP_E_ARG, "--bench: nothing to run");
    return st;
}

static bool decodes(const struct bench *b)
{
    return b->what.prefill || b->what.n_batch > 0;
}

static uint32_t max_batch(const struct bench *b)
{
    uint32_t most = 1;

    for (uint32_t i = 0; i < b->what.n_batch; i++)
        most = b->what.batch[i] > most ? b->what.batch[i] : most;
    return most;
}

/* Steps that warm decoding up: one more, since the first one of a batch records its program. */
static uint32_t warm_steps(const struct bench *b)
{
    return b->what.warm_up + 1;
}

/* ---- telling ---- */

static esp_status print_line(FILE *out, json_t *o, bool ok, struct esp_err *err)
{
    char *text = o && ok ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    esp_status st = ESP_OK;

    if (!text)
        st = esp_fail(err, ESP_E_NOMEM, "results");
    else if (fprintf(out, "%s\n", text) < 0 || fflush(out) != 0)
        st = esp_fail(err, ESP_E_IO, "standard output cannot be written");
    free(text);
    json_decref(o);
    return st;
}

static esp_status tell(const struct bench *b, const char *what, uint64_t done, uint64_t total,
                       struct esp_err *err)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "progress", json_string(what));
    SET(o, "done", json_integer((json_int_t)done));
    SET(o, "total", json_integer((json_int_t)total));
    return print_line(b->out, o, ok, err);
}

static bool on_load(void *arg, uint64_t done, uint64_t total)
{
    const struct bench *b = arg;

    return tell(b, "loading weights, bytes", done, total, NULL) == ESP_OK;
}

/* ---- a phase ---- */

/* What is timed. Both leave the stage as it was, but for decoding's positions. */
struct phase {
    enum esp_bench_phase kind;
    uint32_t batch, n_repeat, n_warm;
    uint64_t seq[256]; /* decode: the sequences, and the position that comes next in each */
    uint32_t pos;
};

static uint32_t draw(struct bench *b, uint32_t below)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(b->random >> 33) % below;
}

static esp_status run_encode(struct bench *b, struct esp_err *err)
{
    const struct esp_vision_config *v = &b->c->vision;
    const struct esp_msg_encode msg = {.epoch = 1,
                                       .image = IMAGE,
                                       .payload = ESP_PAYLOAD_PIXELS,
                                       .rows = v->n_channel * v->image_size,
                                       .width = v->image_size};
    struct esp_stage_out out = {0};
    esp_status st = esp_stage_encode(b->stage, &msg, b->pixels, &out, err);

    esp_stage_out_finish(&out);
    return st;
}

/* A step over n_tok rows of each of n sequences. */
static esp_status run_step(struct bench *b, const uint64_t *seqs, uint32_t n, uint32_t pos, uint32_t n_tok,
                           struct esp_err *err)
{
    const uint64_t image = IMAGE;
    struct esp_seq_rows rows[256];
    struct esp_want wants[256];
    const struct esp_msg_step msg = {.epoch = 1,
                                     .id = ++b->last_step,
                                     .payload = ESP_PAYLOAD_TOKENS,
                                     .rows = n * n_tok,
                                     .width = 1,
                                     .n_seqs = n,
                                     .seqs = rows,
                                     .n_wants = n,
                                     .wants = wants};
    struct esp_stage_out out = {0};
    esp_status st;

    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (struct esp_seq_rows){.seq = seqs[i], .pos = pos, .n_tok = n_tok, .n_prefix = b->prefix};
        if (pos == 0) {
            rows[i].n_images = 1;
            rows[i].images = &image;
        }
        wants[i] = (struct esp_want){.row = (i + 1) * n_tok - 1, .k = 1};
    }
    for (uint32_t i = 0; i < n * n_tok; i++)
        b->ids[i] = (int32_t)draw(b, b->c->text.vocab);
    st = esp_stage_step(b->stage, &msg, b->ids, &out, err);
    esp_stage_out_finish(&out);
    return st;
}

static void forget(struct bench *b, const uint64_t *seqs, uint32_t n)
{
    const struct esp_msg_release msg = {.epoch = 1, .n_seqs = n, .seqs = seqs};

    esp_stage_release(b->stage, &msg);
}

static esp_status run_prefill(struct bench *b, uint64_t *seq, struct esp_err *err)
{
    *seq = ++b->last_seq;
    return run_step(b, seq, 1, 0, b->prefix, err);
}

/* One repeat, timed. */
static esp_status run_once(struct bench *b, struct phase *p, double *taken, struct esp_err *err)
{
    double t0 = esp_now_seconds();
    uint64_t seq = 0;
    esp_status st;

    switch (p->kind) {
    case ESP_BENCH_ENCODE:
        st = run_encode(b, err);
        break;
    case ESP_BENCH_PREFILL:
        st = run_prefill(b, &seq, err);
        break;
    default:
        st = run_step(b, p->seq, p->batch, p->pos, 1, err);
        p->pos++;
        break;
    }
    *taken = esp_now_seconds() - t0;
    if (p->kind == ESP_BENCH_PREFILL)
        forget(b, &seq, 1);
    return st;
}

/* Decode: a prompt, and forks of it as beams are, which share its keys and values but not their own. */
static esp_status phase_open(struct bench *b, struct phase *p, struct esp_err *err)
{
    struct esp_fork fork[256];
    struct esp_msg_step msg = {.epoch = 1, .payload = ESP_PAYLOAD_TOKENS, .width = 1, .forks = fork};
    struct esp_seq_rows row;
    struct esp_stage_out out = {0};
    esp_status st;

    if (p->kind != ESP_BENCH_DECODE)
        return ESP_OK;
    st = run_prefill(b, &p->seq[0], err);
    p->pos = b->prefix;
    if (st || p->batch == 1)
        return st;
    for (uint32_t i = 1; i < p->batch; i++) {
        p->seq[i] = ++b->last_seq;
        fork[i - 1] = (struct esp_fork){.seq = p->seq[i], .from = p->seq[0]};
    }
    msg.n_forks = p->batch - 1;
    /* A step has a row: the first sequence's, which all others then follow in a step of their own. */
    row = (struct esp_seq_rows){.seq = p->seq[0], .pos = p->pos, .n_tok = 1, .n_prefix = b->prefix};
    msg.id = ++b->last_step;
    msg.rows = msg.n_seqs = 1;
    msg.seqs = &row;
    b->ids[0] = 1;
    st = esp_stage_step(b->stage, &msg, b->ids, &out, err);
    esp_stage_out_finish(&out);
    if (!st)
        st = run_step(b, p->seq + 1, p->batch - 1, p->pos, 1, err);
    p->pos++;
    return st;
}

static void phase_close(struct bench *b, const struct phase *p)
{
    if (p->kind == ESP_BENCH_DECODE)
        forget(b, p->seq, p->batch);
}

static const char *phase_name(enum esp_bench_phase kind)
{
    return kind == ESP_BENCH_ENCODE ? "encode" : kind == ESP_BENCH_PREFILL ? "prefill" : "decode";
}

/* "decode, 4 at once" */
static void phase_title(char out[64], const struct phase *p, const char *more)
{
    if (p->kind == ESP_BENCH_DECODE)
        snprintf(out, 64, "decode, %u at once%s", p->batch, more);
    else
        snprintf(out, 64, "%s%s", phase_name(p->kind), more);
}

static esp_status repeat(struct bench *b, struct phase *p, uint32_t n_warm, uint32_t n, const char *more,
                         json_t *times, struct esp_err *err)
{
    char title[64];
    double told = esp_now_seconds(), taken;
    esp_status st = ESP_OK;

    phase_title(title, p, more);
    for (uint32_t i = 0; !st && i < n_warm + n; i++) {
        st = run_once(b, p, &taken, err);
        if (!st && i >= n_warm && times && json_array_append_new(times, json_real(taken)) != 0)
            st = esp_fail(err, ESP_E_NOMEM, "results");
        if (!st && i + 1 == n_warm) /* what warms up is nobody's kernel */
            esp_profile_clear(esp_stage_profile(b->stage));
        if (!st && esp_now_seconds() - told > 0.5) {
            told = esp_now_seconds();
            st = tell(b, title, i + 1, n_warm + n, err);
        }
    }
    return st;
}

/* The phase's entry of the results, and what it must do at least. */
static esp_status describe(struct bench *b, const struct phase *p, json_t *o, struct esp_err *err)
{
    const uint32_t rows = p->kind == ESP_BENCH_ENCODE    ? b->c->vision.n_token
                          : p->kind == ESP_BENCH_PREFILL ? b->prefix
                                                         : p->batch;
    /* decoding attends to one position more with each step: what counts is the middle one */
    const double ctx = p->kind == ESP_BENCH_DECODE
                           ? (double)b->prefix + (p->batch > 1) + warm_steps(b) + 0.5 * (b->what.steps + 1)
                           : rows;
    struct esp_bench_work work;
    esp_status st = esp_bench_work(&work, b->shelf, &b->spec, p->kind, p->batch, ctx, err);
    bool ok = true;

    if (st)
        return st;
    SET(o, "phase", json_string(phase_name(p->kind)));
    SET(o, "batch", json_integer(p->batch));
    SET(o, "rows", json_integer(rows));
    SET(o, "bytes", json_real(work.bytes));
    SET(o, "flop", json_real(work.flop));
    return ok ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "results");
}

static esp_status measure_phase(struct bench *b, struct phase *p, json_t *o, struct esp_err *err)
{
    json_t *times = json_array();
    char title[64];
    esp_status st;

    phase_title(title, p, "");
    st = tell(b, title, 0, p->n_repeat, err);
    if (!st)
        st = phase_open(b, p, err);
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

static esp_status profile_phase(struct bench *b, struct phase *p, json_t *o, struct esp_err *err)
{
    const uint32_t n = p->n_repeat < PROFILED ? p->n_repeat : PROFILED;
    json_t *kernels = json_array();
    struct esp_profile_sum sum;
    bool ok = kernels != NULL;
    esp_status st = phase_open(b, p, err);

    if (!st)
        st = repeat(b, p, 1, n, ", profiled", NULL, err);
    for (uint32_t i = 0; !st && ok && esp_profile_at(esp_stage_profile(b->stage), i, &sum); i++)
        if (sum.n_call > 0)
            ok = json_array_append_new(kernels, kernel_json(&sum)) == 0;
    phase_close(b, p);
    SET(o, "kernels", kernels);
    SET(o, "profiled", json_integer(n));
    return st ? st : ok ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "results");
}

/* All phases, measured or profiled. */
static esp_status run_phases(struct bench *b, bool profile, struct esp_err *err)
{
    struct phase p;
    esp_status st = ESP_OK;
    size_t at = 0;

    for (uint32_t i = 0; !st && i < 2 + b->what.n_batch; i++) {
        json_t *o;

        p = (struct phase){.kind = i == 0   ? ESP_BENCH_ENCODE
                                   : i == 1 ? ESP_BENCH_PREFILL
                                            : ESP_BENCH_DECODE,
                           .batch = i < 2 ? 1 : b->what.batch[i - 2],
                           .n_repeat = i < 2 ? b->what.repeats : b->what.steps,
                           .n_warm = i < 2 ? b->what.warm_up : warm_steps(b)};
        if ((i == 0 && !b->what.encode) || (i == 1 && !b->what.prefill))
            continue;
        if (!profile && json_array_append_new(b->phases, json_object()) != 0)
            return esp_fail(err, ESP_E_NOMEM, "results");
        o = json_array_get(b->phases, at++);
        st = profile ? profile_phase(b, &p, o, err) : measure_phase(b, &p, o, err);
    }
    return st;
}

/* ---- the stage ---- */

static esp_status inputs_make(struct bench *b, struct esp_err *err)
{
    const struct esp_vision_config *v = &b->c->vision;
    const size_t n_pixel = (size_t)v->n_channel * v->image_size * v->image_size;
    const size_t n_feature = (size_t)v->n_token * b->c->text.width;
    const size_t n_id = b->prefix > max_batch(b) ? b->prefix : max_batch(b);

    b->pixels = malloc(n_pixel * sizeof *b->pixels);
    b->features = malloc(n_feature * sizeof *b->features);
    b->ids = malloc(n_id * sizeof *b->ids);
    if (!b->pixels || !b->features || !b->ids)
        return esp_fail(err, ESP_E_NOMEM, "a picture of %u pixels a side", v->image_size);
    for (size_t i = 0; i < n_pixel; i++)
        b->pixels[i] = (float)draw(b, 65536) / 32768.0f - 1.0f;
    for (size_t i = 0; i < n_feature; i++)
        b->features[i] = (float)draw(b, 65536) / 32768.0f - 1.0f;
    return ESP_OK;
}

static void spec_make(struct bench *b)
{
    const uint32_t n_step = warm_steps(b) + b->what.steps + 2, most = max_batch(b);
    const bool enc = b->what.encode, dec = decodes(b);
    /* of its own each sequence has what it decodes and a copy of the block that it shares in part */
    const uint64_t own = ((n_step + ESP_KV_BLOCK - 1) / ESP_KV_BLOCK + 1) * ESP_KV_BLOCK;

    b->spec = (struct esp_stage_spec){.enc_hi = enc ? b->c->vision.n_layer : 0,
                                      .patch = enc,
                                      .projector = enc,
                                      .weights = b->what.weights,
                                      .dec_hi = dec ? b->c->text.n_layer : 0,
                                      .embed = dec,
                                      .head = dec};
    if (!dec)
        return;
    b->spec.max_rows = b->prefix + n_step > most ? b->prefix + n_step : most;
    b->spec.kv_tokens = (uint32_t)(b->prefix + ESP_KV_BLOCK + most * own);
    b->spec.max_seqs = most + 1;
    b->spec.max_images = 1;
}

/* The decoder has a picture, whether the encoder is here or not: any numbers of unit scale will do. */
static esp_status stage_open(struct bench *b, struct esp_err *err)
{
    const struct esp_msg_encode picture = {.epoch = 1,
                                           .image = IMAGE,
                                           .payload = ESP_PAYLOAD_FEATURES,
                                           .rows = b->c->vision.n_token,
                                           .width = b->c->text.width};
    const double t0 = esp_now_seconds();
    struct esp_stage_info_out info;
    esp_status st = esp_stage_create(&b->stage, b->shelf, &b->spec, NULL, on_load, b, err);

    if (st)
        return st;
    esp_stage_info(b->stage, &info);
    if (info.loaded_bytes > 0) {
        b->load_seconds = esp_now_seconds() - t0;
        b->load_bytes = info.loaded_bytes;
    }
    return decodes(b) ? esp_stage_store(b->stage, &picture, b->features, err) : ESP_OK;
}

static esp_status model_open(struct bench *b, const char *model, struct esp_err *err)
{
    esp_status st = esp_checkpoint_open(&b->ck, model, err);

    if (st)
        return st;
    b->c = esp_checkpoint_config(b->ck);
    b->of_layers[0] = b->c->vision.n_layer;
    b->of_layers[1] = b->c->text.n_layer;
    if (b->what.layers[0])
        st = esp_checkpoint_cut(b->ck, b->what.layers[0], b->what.layers[1], err);
    b->prefix = b->c->vision.n_token + b->what.prompt;
    return st;
}

/* ---- results ---- */

static json_t *pair(uint32_t a, uint32_t b)
{
    return json_pack("[i,i]", (int)a, (int)b);
}

static json_t *device_json(const struct esp_vk_report *r)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "name", json_string(r->name));
    SET(o, "driver", json_string(r->driver));
    SET(o, "variant", json_string(r->variant));
    SET(o, "type", json_integer(r->type));
    SET(o, "software", json_boolean(r->type == VK_PHYSICAL_DEVICE_TYPE_CPU));
    SET(o, "memory_bytes", json_integer((json_int_t)r->memory_bytes));
    if (!ok)
        json_decref(o);
    return ok ? o : NULL;
}

static esp_status print_results(struct bench *b, const char *model, const struct esp_stage_info_out *info,
                                struct esp_err *err)
{
    const struct esp_piece *layer; /* the first one that is here: all matrices are of its type */
    const uint32_t piece = ESP_N_PIECE_END + (decodes(b) ? b->c->vision.n_layer : 0);
    json_t *o;
    bool ok;
    esp_status st = esp_shelf_piece(&layer, b->shelf, piece, err);

    if (st)
        return st;
    o = json_object();
    ok = o != NULL;

    SET(o, "model", json_string(model));
    SET(o, "made", json_boolean(esp_shape_named(model)));
    SET(o, "layers", pair(b->what.encode ? b->c->vision.n_layer : 0, decodes(b) ? b->c->text.n_layer : 0));
    SET(o, "of_layers", pair(b->of_layers[0], b->of_layers[1]));
    SET(o, "device", device_json(esp_vk_report(b->vk)));
    SET(o, "weights", json_string(esp_wtype_name(layer->mat[0].mat.wtype)));
    SET(o, "image_tokens", json_integer(b->c->vision.n_token));
    SET(o, "prefix", json_integer(b->prefix));
    SET(o, "ceilings",
        json_pack("{s:f,s:f,s:I}", "read_rate", b->ceilings.read_rate, "flop_rate", b->ceilings.flop_rate,
                  "read_bytes", (json_int_t)b->ceilings.read_bytes));
    SET(o, "load", json_pack("{s:f,s:I}", "seconds", b->load_seconds, "bytes", (json_int_t)b->load_bytes));
    SET(o, "weight_bytes", json_integer((json_int_t)info->weight_bytes));
    SET(o, "kv_bytes", json_integer((json_int_t)info->kv_bytes));
    SET(o, "scratch_bytes", json_integer((json_int_t)info->scratch_bytes));
    SET(o, "phases", b->phases);
    b->phases = NULL;
    return print_line(b->out, o, ok, err);
}

/* Measured again: on a machine that has other work too the better of two says more of the device. What was measured
 * first stands where there is no room any more. */
static void ceilings_again(struct bench *b)
{
    struct esp_ceilings c;

    if (esp_vk_ceilings(&c, b->vk, NULL) != ESP_OK)
        return;
    if (c.read_rate > b->ceilings.read_rate)
        b->ceilings.read_rate = c.read_rate;
    if (c.flop_rate > b->ceilings.flop_rate)
        b->ceilings.flop_rate = c.flop_rate;
}

esp_status esp_bench_run(const struct esp_bench_options *options, FILE *out, const struct esp_log *log,
                         struct esp_err *err)
{
    const struct esp_vk_options vk_options = {.memory_limit_bytes = options->memory_bytes, .force_class = -1};
    struct bench b = {.out = out, .random = 1};
    struct esp_stage_info_out info = {0};
    esp_status st = what_parse(&b.what, options->what, err);

    if (!st)
        st = model_open(&b, options->model, err);
    if (!st)
        st = esp_vk_open(&b.vk, options->device, &vk_options, log, err);
    if (st)
        goto done;
    b.phases = json_array();
    if (!b.phases) {
        st = esp_fail(err, ESP_E_NOMEM, "results");
        goto done;
    }
    if ((st = tell(&b, "measuring what the device can do", 0, 0, err)) ||
        (st = esp_vk_ceilings(&b.ceilings, b.vk, err)) || (st = inputs_make(&b, err)) ||
        (st = esp_shelf_create(&b.shelf, b.vk, b.ck, NULL, NULL, err)))
        goto done;
    spec_make(&b);
    st = stage_open(&b, err);
    if (st)
        goto done;
    esp_stage_info(b.stage, &info);
    st = run_phases(&b, false, err);
    if (!st && b.what.profile) { /* timestamps cost time, so those runs are others; the weights stay */
        esp_stage_destroy(&b.stage);
        st = esp_vk_set_profile(b.vk, true, err);
        if (!st)
            st = stage_open(&b, err);
        if (!st)
            st = run_phases(&b, true, err);
    }
    if (!st && !(st = tell(&b, "measuring what the device can do", 0, 0, err)))
        ceilings_again(&b);
    if (!st)
        st = print_results(&b, options->model, &info, err);
done:
    esp_stage_destroy(&b.stage);
    esp_shelf_destroy(&b.shelf);
    esp_vk_close(&b.vk);
    esp_checkpoint_destroy(&b.ck);
    json_decref(b.phases);
    free(b.pixels);
    free(b.features);
    free(b.ids);
    return st;
}
