#include "worker/verify_state.h"

#include <math.h>
#include <stdlib.h>

/* Rows of the steps: a prefill, then one for every width of the matrix-vector kernels. */
static const uint32_t step_rows[ESP_VERIFY_STEPS] = {ESP_VERIFY_PREFILL, 1, 2, 4, 8};

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
    for (size_t i = 0; i < ESP_VERIFY_STEPS; i++)
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
    struct esp_stage_info_out info;
    uint64_t seed = 7;

    esp_stage_info(stage, &info);
    v->few_rounded = info.few_rounded;
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
    for (uint32_t i = 0; i < ESP_VERIFY_MAX_ROWS; i++)
        v->ids[i] = (int32_t)(uniform(&seed) * v->c->text.vocab);
    if (dec && !v->spec.embed) {
        v->rows = pseudo_rows(ESP_VERIFY_MAX_ROWS, v->c->text.width, 13);
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
    const struct esp_seq_rows seq = {.seq = ESP_SEQ_VERIFY,
                                     .pos = v->n_row,
                                     .n_tok = n,
                                     .n_prefix = v->n_row || n > ESP_VERIFY_PREFIX ? ESP_VERIFY_PREFIX : n};
    struct esp_want wants[ESP_VERIFY_MAX_ROWS];
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
            wants[msg.n_wants++] = (struct esp_want){.row = i,
                                                     .k = ESP_VERIFY_TOP_K,
                                                     .has_target = true,
                                                     .target = (uint32_t)v->ids[i],
                                                     .full = true};
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

    for (uint32_t i = 0; !st && i < ESP_VERIFY_STEPS; i++) {
        const uint32_t left = v->spec.max_rows - v->n_row;
        const uint32_t n = i == 0 && left < step_rows[0] ? left : step_rows[i];

        if (n > left) /* longer than this placement's sequences may be */
            break;
        st = step(v, stage, n, err);
    }
    esp_stage_release(stage, &(struct esp_msg_release){.n_seqs = 1, .seqs = &seq});
    return st == ESP_E_NUMBERS ? ESP_OK : st;
}

static void add_part(struct esp_verify *v, enum esp_part_kind kind, uint32_t layer, bool decode)
{
    v->part[v->n_part++] = (struct esp_part){kind, layer, decode};
}

/* In the order in which values pass: the first that is wrong is where it begins. */
static void list_parts(struct esp_verify *v)
{
    const bool enc = v->spec.enc_lo < v->spec.enc_hi;
    const bool decode = v->n_step > 1;

    if (enc && v->spec.patch) {
        add_part(v, ESP_PART_PATCHES, 0, false);
        add_part(v, ESP_PART_POSITIONS, 0, false);
    }
    for (uint32_t l = v->spec.enc_lo; l < v->spec.enc_hi; l++)
        add_part(v, ESP_PART_VISION_LAYER, l, false);
    if (enc && v->spec.projector) {
        add_part(v, ESP_PART_POST, 0, false);
        add_part(v, ESP_PART_PROJECTOR, 0, false);
    }
    if (v->n_step == 0)
        return;
    if (v->spec.embed)
        add_part(v, ESP_PART_EMBED, 0, false);
    for (uint32_t l = v->spec.dec_lo; l < v->spec.dec_hi; l++) {
        add_part(v, ESP_PART_TEXT_LAYER, l, false);
        if (decode)
            add_part(v, ESP_PART_TEXT_LAYER, l, true);
    }
    for (int i = 0; v->spec.head && i <= decode; i++) {
        if (i == 0)
            add_part(v, ESP_PART_NORM, 0, false);
        add_part(v, ESP_PART_LOGITS, 0, i == 1);
        add_part(v, ESP_PART_CANDIDATES, 0, i == 1);
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
