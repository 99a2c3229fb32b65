#include "objects/codec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/file.h"
#include "objects/npz.h"

/* Activations lie pixel by pixel, the channels of one side by side and padded with zeros to whole lanes; weights likewise,
 * so that the innermost loop is one input times LANES weights, of a length that every compiler turns into vectors.
 * Inputs of zero, which relu makes of half of them, are passed over. */
#define LANES 16u

#define MAX_FILE     (64u << 20)
#define MAX_CHANNELS 512u
#define MAX_ELEM     ((size_t)MAX_CHANNELS * MAX_CHANNELS * 16) /* of one array */
#define N_HALVINGS   4                                          /* 64 pixels to 4 */
#define N_RES        2

enum kind { PLAIN, HALVE, DOUBLE };

/* A convolution of stride 1 (PLAIN) or 2 (HALVE), or a transposed one of stride 2 (DOUBLE). */
struct conv {
    enum kind kind;
    uint32_t n_in, n_out, kernel, pad;
    float *weight; /* [out block][y][x][n_in][LANES] */
    float *bias;   /* [out blocks * LANES] */
};

struct res {
    struct conv conv[3];
};

struct esp_codec {
    uint32_t code_dim;
    float *codebook; /* [128, E] */
    struct conv decode_in, up[N_HALVINGS], decode_out;
    struct res decode_res[N_RES];
    bool has_encoder;
    struct conv down[N_HALVINGS], encode_out;
    struct res encode_res[N_RES];
};

static uint32_t padded(uint32_t n)
{
    return (uint32_t)esp_round_up(n, LANES);
}

static esp_status wrong_shape(const struct esp_npz_array *a, const char *file, const char *name,
                              const char *want, struct esp_err *err)
{
    char have[256] = "";
    size_t n = 0;

    for (uint32_t i = 0; i < a->n_dim; i++) /* at most 8 times 22 characters */
        n += (size_t)snprintf(have + n, sizeof have - n, "%s%zu", i ? ", " : "", a->shape[i]);
    return esp_fail(err, ESP_E_FORMAT, "%s: array %s: shape [%s], expected %s", file, name, have, want);
}

static esp_status read_finite(struct esp_npz_array *out, const struct esp_npz *npz, const char *file,
                              const char *name, struct esp_err *err)
{
    esp_status st = esp_npz_read(out, npz, name, MAX_ELEM, err);

    for (size_t i = 0; !st && i < out->n_elem; i++) {
        if (!isfinite(out->values[i])) {
            st = esp_fail(err, ESP_E_FORMAT, "%s: array %s: element %zu is no finite number", file, name, i);
            esp_npz_array_finish(out);
        }
    }
    return st;
}

/* What a layer must look like. */
struct layer {
    const char *name;
    enum kind kind;
    uint32_t n_in, n_out; /* n_out 0: as many as the file has */
};

static bool fits(const struct esp_npz_array *w, const struct layer *l)
{
    size_t n_out = w->shape[l->kind == DOUBLE ? 1 : 0], n_in = w->shape[l->kind == DOUBLE ? 0 : 1];
    size_t side = w->shape[2];

    return w->n_dim == 4 && n_in == l->n_in && (l->n_out ? n_out == l->n_out : n_out >= 1) &&
           n_out <= MAX_CHANNELS && w->shape[3] == side &&
           (l->kind == PLAIN ? side == 1 || side == 3 : side == 4);
}

static void pack(struct conv *c, const float *w)
{
    size_t at = 0;

    for (uint32_t block = 0; block < padded(c->n_out); block += LANES)
        for (uint32_t tap = 0; tap < c->kernel * c->kernel; tap++)
            for (uint32_t i = 0; i < c->n_in; i++)
                for (uint32_t o = block; o < block + LANES; o++, at++) {
                    size_t row = c->kind == DOUBLE ? (size_t)i * c->n_out + o : (size_t)o * c->n_in + i;
                    c->weight[at] = o < c->n_out ? w[row * c->kernel * c->kernel + tap] : 0.0f;
                }
}

static esp_status load_conv(struct conv *c, const struct esp_npz *npz, const char *file, struct layer l,
                            struct esp_err *err)
{
    struct esp_npz_array weight = {0}, bias = {0};
    char name[64], want[128], n_out[16];
    esp_status st;

    snprintf(name, sizeof name, "%s.weight", l.name);
    st = read_finite(&weight, npz, file, name, err);
    if (st)
        goto done;
    if (!fits(&weight, &l)) {
        snprintf(n_out, sizeof n_out, l.n_out ? "%u" : "1 to %u", l.n_out ? l.n_out : MAX_CHANNELS);
        if (l.kind == DOUBLE)
            snprintf(want, sizeof want, "[%u, %s, 4, 4]", l.n_in, n_out);
        else
            snprintf(want, sizeof want, "[%s, %u, %s]", n_out, l.n_in,
                     l.kind == HALVE ? "4, 4" : "1, 1] or [.., 3, 3");
        st = wrong_shape(&weight, file, name, want, err);
        goto done;
    }
    c->kind = l.kind;
    c->n_in = l.n_in;
    c->n_out = (uint32_t)weight.shape[l.kind == DOUBLE ? 1 : 0];
    c->kernel = (uint32_t)weight.shape[2];
    c->pad = (c->kernel - 1) / 2;
    snprintf(name, sizeof name, "%s.bias", l.name);
    st = read_finite(&bias, npz, file, name, err);
    if (st)
        goto done;
    if (bias.n_dim != 1 || bias.shape[0] != c->n_out) {
        snprintf(want, sizeof want, "[%u]", c->n_out);
        st = wrong_shape(&bias, file, name, want, err);
        goto done;
    }
    c->weight = calloc((size_t)padded(c->n_out) * c->n_in * c->kernel * c->kernel, sizeof *c->weight);
    c->bias = calloc(padded(c->n_out), sizeof *c->bias);
    if (!c->weight || !c->bias) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: %s", file, l.name);
        goto done;
    }
    pack(c, weight.values);
    memcpy(c->bias, bias.values, c->n_out * sizeof *c->bias);
done:
    esp_npz_array_finish(&weight);
    esp_npz_array_finish(&bias);
    return st;
}

static esp_status load_res(struct res *r, const struct esp_npz *npz, const char *file, const char *block,
                           uint32_t width, struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (int i = 0; i < 3 && !st; i++) {
        char name[48];

        snprintf(name, sizeof name, "%s.net.%d", block, 2 * i);
        st = load_conv(&r->conv[i], npz, file, (struct layer){name, PLAIN, width, width}, err);
    }
    return st;
}

static esp_status load_decoder(struct esp_codec *c, const struct esp_npz *npz, const char *file,
                               struct esp_err *err)
{
    static const char *const up[N_HALVINGS] = {"decoder.4", "decoder.6", "decoder.8", "decoder.10"};
    struct conv *last = &c->decode_in;
    esp_status st = load_conv(last, npz, file, (struct layer){"decoder.0", PLAIN, c->code_dim, 0}, err);

    if (!st)
        st = load_res(&c->decode_res[0], npz, file, "decoder.2", last->n_out, err);
    if (!st)
        st = load_res(&c->decode_res[1], npz, file, "decoder.3", last->n_out, err);
    for (int i = 0; i < N_HALVINGS && !st; last = &c->up[i++])
        st = load_conv(&c->up[i], npz, file, (struct layer){up[i], DOUBLE, last->n_out, 0}, err);
    if (!st)
        st = load_conv(&c->decode_out, npz, file, (struct layer){"decoder.12", PLAIN, last->n_out, 1}, err);
    return st;
}

static esp_status load_encoder(struct esp_codec *c, const struct esp_npz *npz, const char *file,
                               struct esp_err *err)
{
    static const char *const down[N_HALVINGS] = {"encoder.0", "encoder.2", "encoder.4", "encoder.6"};
    uint32_t width = 1;
    esp_status st = ESP_OK;

    for (int i = 0; i < N_HALVINGS && !st; width = c->down[i++].n_out)
        st = load_conv(&c->down[i], npz, file, (struct layer){down[i], HALVE, width, 0}, err);
    if (!st)
        st = load_res(&c->encode_res[0], npz, file, "encoder.8", width, err);
    if (!st)
        st = load_res(&c->encode_res[1], npz, file, "encoder.9", width, err);
    if (!st)
        st = load_conv(&c->encode_out, npz, file, (struct layer){"encoder.10", PLAIN, width, c->code_dim},
                       err);
    return st;
}

static esp_status load_codebook(struct esp_codec *c, const struct esp_npz *npz, const char *file,
                                struct esp_err *err)
{
    static const char name[] = "_vq_vae._embedding";
    struct esp_npz_array a;
    esp_status st = read_finite(&a, npz, file, name, err);

    if (st)
        return st;
    if (a.n_dim != 2 || a.shape[0] != ESP_CODEC_N_CODES || a.shape[1] < 1 || a.shape[1] > MAX_CHANNELS) {
        st = wrong_shape(&a, file, name, "[128, 1 to 512]", err);
        esp_npz_array_finish(&a);
        return st;
    }
    c->code_dim = (uint32_t)a.shape[1];
    c->codebook = a.values; /* now the codec's */
    return ESP_OK;
}

esp_status esp_codec_parse(struct esp_codec **out, const void *bytes, size_t n_bytes, const char *file,
                           struct esp_err *err)
{
    struct esp_npz *npz = NULL;
    struct esp_codec *c = NULL;
    esp_status st;

    *out = NULL;
    st = esp_npz_parse(&npz, bytes, n_bytes, file, err);
    if (st)
        goto done;
    c = calloc(1, sizeof *c);
    if (!c) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: a codec", file);
        goto done;
    }
    st = load_codebook(c, npz, file, err);
    if (!st)
        st = load_decoder(c, npz, file, err);
    /* Any array of it, and all of it must be there. */
    for (size_t i = 0; i < esp_npz_n_arrays(npz); i++)
        c->has_encoder |= strncmp(esp_npz_name(npz, i), "encoder.", 8) == 0;
    if (!st && c->has_encoder)
        st = load_encoder(c, npz, file, err);
    if (st)
        goto done;
    *out = c;
    c = NULL;
done:
    esp_codec_destroy(&c);
    esp_npz_destroy(&npz);
    return st;
}

esp_status esp_codec_open(struct esp_codec **out, const char *path, struct esp_err *err)
{
    char *bytes;
    size_t n_bytes;
    esp_status st;

    *out = NULL;
    st = esp_file_read(&bytes, &n_bytes, path, MAX_FILE, err);
    if (st)
        return st;
    st = esp_codec_parse(out, bytes, n_bytes, path, err);
    free(bytes);
    return st;
}

static void free_conv(struct conv *c)
{
    free(c->weight);
    free(c->bias);
}

static void free_res(struct res *r)
{
    for (int i = 0; i < 3; i++)
        free_conv(&r->conv[i]);
}

void esp_codec_destroy(struct esp_codec **codec)
{
    struct esp_codec *c = *codec;

    *codec = NULL;
    if (!c)
        return;
    for (int i = 0; i < N_HALVINGS; i++) {
        free_conv(&c->up[i]);
        free_conv(&c->down[i]);
    }
    for (int i = 0; i < N_RES; i++) {
        free_res(&c->decode_res[i]);
        free_res(&c->encode_res[i]);
    }
    free_conv(&c->decode_in);
    free_conv(&c->decode_out);
    free_conv(&c->encode_out);
    free(c->codebook);
    free(c);
}

bool esp_codec_can_encode(const struct esp_codec *codec)
{
    return codec->has_encoder;
}

/* Which input row (or column) tap k of output o reads; false where there is none. */
static bool source(uint32_t *out, const struct conv *c, uint32_t o, uint32_t k, uint32_t side)
{
    int32_t at;

    if (c->kind == DOUBLE) { /* output 2 i - pad + k gets input i */
        at = (int32_t)(o + c->pad) - (int32_t)k;
        if (at % 2 != 0)
            return false;
        at /= 2;
    } else {
        at = (int32_t)(c->kind == HALVE ? 2 * o : o) + (int32_t)k - (int32_t)c->pad;
    }
    *out = (uint32_t)at;
    return at >= 0 && at < (int32_t)side;
}

static void add_scaled(float sum[restrict LANES], const float *restrict x, const float *restrict w,
                       uint32_t n)
{
    for (uint32_t i = 0; i < n; i++, w += LANES) {
        if (x[i] == 0.0f)
            continue;
        for (uint32_t l = 0; l < LANES; l++)
            sum[l] += x[i] * w[l];
    }
}

/* f32[side, side, padded n_in] to out f32[.., .., padded n_out], not in place; returns the new side. */
static uint32_t convolve(float *out, const struct conv *c, const float *in, uint32_t side, bool relu)
{
    uint32_t n_side = c->kind == HALVE ? side / 2 : c->kind == DOUBLE ? side * 2 : side;
    uint32_t in_step = padded(c->n_in), out_step = padded(c->n_out);
    size_t tap_step = (size_t)c->n_in * LANES;

    for (uint32_t y = 0; y < n_side; y++)
        for (uint32_t x = 0; x < n_side; x++)
            for (uint32_t block = 0; block < out_step; block += LANES) {
                const float *w = c->weight + block * tap_step / LANES * c->kernel * c->kernel;
                float sum[LANES];
                uint32_t sy, sx;

                memcpy(sum, c->bias + block, sizeof sum);
                for (uint32_t ky = 0; ky < c->kernel; ky++)
                    for (uint32_t kx = 0; kx < c->kernel; kx++)
                        if (source(&sy, c, y, ky, side) && source(&sx, c, x, kx, side))
                            add_scaled(sum, in + ((size_t)sy * side + sx) * in_step,
                                       w + (ky * c->kernel + kx) * tap_step, c->n_in);
                for (uint32_t l = 0; relu && l < LANES; l++)
                    sum[l] = sum[l] < 0.0f ? 0.0f : sum[l]; /* NaN stays, to be seen in the end */
                memcpy(out + ((size_t)y * n_side + x) * out_step + block, sum, sizeof sum);
            }
    return n_side;
}

/* x + net(x) into x, f32[4, 4, padded width]; a and b hold as much. */
static void residual(float *x, const struct res *r, float *a, float *b)
{
    convolve(a, &r->conv[0], x, ESP_CODEC_GRID, true);
    convolve(b, &r->conv[1], a, ESP_CODEC_GRID, true);
    convolve(a, &r->conv[2], b, ESP_CODEC_GRID, false);
    for (size_t i = 0; i < (size_t)ESP_CODEC_N_TOK * padded(r->conv[0].n_in); i++)
        x[i] += a[i];
}

static size_t largest(size_t so_far, size_t side, uint32_t n)
{
    size_t here = side * side * padded(n);
    return here > so_far ? here : so_far;
}

/* Three buffers, each for the largest activation of the codec. */
static esp_status take_scratch(float **out, size_t *n_each, const struct esp_codec *c, struct esp_err *err)
{
    size_t n = largest(0, ESP_CODEC_GRID, c->code_dim);

    n = largest(n, ESP_CODEC_GRID, c->decode_in.n_out);
    n = largest(n, ESP_CODEC_SIDE, 1);
    for (uint32_t i = 0; i < N_HALVINGS; i++) {
        n = largest(n, (size_t)ESP_CODEC_GRID << (i + 1), c->up[i].n_out);
        if (c->has_encoder)
            n = largest(n, (size_t)ESP_CODEC_SIDE >> (i + 1), c->down[i].n_out);
    }
    *n_each = n;
    *out = calloc(3 * n, sizeof **out); /* at most 3 * 64 * 64 * 512 */
    return *out ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "mask codec: %zu floats", 3 * n);
}

esp_status esp_codec_decode(float mask[ESP_CODEC_PIXELS], const struct esp_codec *codec,
                            const int32_t codes[ESP_CODEC_N_TOK], struct esp_err *err)
{
    uint32_t step = padded(codec->code_dim), side = ESP_CODEC_GRID;
    float *scratch, *x, *a, *b;
    size_t n_each;
    esp_status st;

    for (int i = 0; i < ESP_CODEC_N_TOK; i++)
        if (codes[i] < 0 || codes[i] >= ESP_CODEC_N_CODES)
            return esp_fail(err, ESP_E_ARG, "mask code %d is %d, takes 0 to %d", i, codes[i],
                            ESP_CODEC_N_CODES - 1);
    st = take_scratch(&scratch, &n_each, codec, err);
    if (st)
        return st;
    x = scratch;
    a = x + n_each;
    b = a + n_each;
    for (size_t i = 0; i < ESP_CODEC_N_TOK; i++)
        memcpy(a + i * step, codec->codebook + (size_t)codes[i] * codec->code_dim,
               codec->code_dim * sizeof *a);
    convolve(x, &codec->decode_in, a, side, true);
    for (int i = 0; i < N_RES; i++)
        residual(x, &codec->decode_res[i], a, b);
    for (int i = 0; i < N_HALVINGS; i++) {
        float *t = x;
        side = convolve(a, &codec->up[i], x, side, true);
        x = a;
        a = t;
    }
    convolve(a, &codec->decode_out, x, side, false);
    for (size_t i = 0; i < ESP_CODEC_PIXELS; i++) {
        float v = 0.5f * a[i * padded(1)] + 0.5f;

        if (!isfinite(v)) {
            st = esp_fail(err, ESP_E_NUMBERS, "mask codec: pixel %zu is no finite number", i);
            break;
        }
        mask[i] = v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v;
    }
    free(scratch);
    return st;
}

/* The code nearest to x f32[E]; -1 when no distance is a number. */
static int32_t nearest(const struct esp_codec *c, const float *x)
{
    double least = INFINITY;
    int32_t best = -1;

    for (int32_t k = 0; k < ESP_CODEC_N_CODES; k++) {
        const float *e = c->codebook + (size_t)k * c->code_dim;
        double far = 0.0;

        for (uint32_t i = 0; i < c->code_dim; i++)
            far += ((double)x[i] - e[i]) * ((double)x[i] - e[i]);
        if (far < least) {
            least = far;
            best = k;
        }
    }
    return best;
}

esp_status esp_codec_encode(int32_t codes[ESP_CODEC_N_TOK], const struct esp_codec *codec,
                            const uint8_t mask[ESP_CODEC_PIXELS], struct esp_err *err)
{
    uint32_t side = ESP_CODEC_SIDE;
    float *scratch, *x, *a, *b;
    size_t n_each;
    esp_status st;

    if (!codec->has_encoder)
        return esp_fail(err, ESP_E_UNSUPPORTED, "the mask codec's file has no encoder, only a decoder");
    st = take_scratch(&scratch, &n_each, codec, err);
    if (st)
        return st;
    x = scratch;
    a = x + n_each;
    b = a + n_each;
    for (size_t i = 0; i < ESP_CODEC_PIXELS; i++)
        x[i * padded(1)] = 2.0f * ((float)mask[i] / 255.0f) - 1.0f;
    for (int i = 0; i < N_HALVINGS; i++) {
        float *t = x;
        side = convolve(a, &codec->down[i], x, side, true);
        x = a;
        a = t;
    }
    for (int i = 0; i < N_RES; i++)
        residual(x, &codec->encode_res[i], a, b);
    convolve(a, &codec->encode_out, x, side, false);
    for (size_t i = 0; i < ESP_CODEC_N_TOK; i++) {
        codes[i] = nearest(codec, a + i * padded(codec->code_dim));
        if (codes[i] < 0) {
            st = esp_fail(err, ESP_E_NUMBERS, "mask codec: a feature is no finite number");
            break;
        }
    }
    free(scratch);
    return st;
}
