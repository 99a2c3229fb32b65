#include "tests/support/ref_codec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/file.h"
#include "tests/support/rand.h"

const struct esp_ref_codec_dims esp_ref_codec_published = {
    .down = {16, 32, 64, 128}, .in = 128, .up = {128, 64, 32, 16}, .code_dim = 512};

static void *take(size_t n, size_t each)
{
    void *p = calloc(n, each);

    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

/* ---- arrays ---- */

static struct esp_npz_array *add(struct esp_ref_codec *c, const char *name, size_t n_dim, const size_t *shape)
{
    struct esp_npz_array *a = &c->array[c->n];

    snprintf(c->name[c->n++], sizeof c->name[0], "%s", name);
    *a = (struct esp_npz_array){.n_dim = (uint32_t)n_dim, .n_elem = 1};
    for (size_t i = 0; i < n_dim; i++) {
        a->shape[i] = shape[i];
        a->n_elem *= shape[i];
    }
    a->values = take(a->n_elem, sizeof *a->values);
    return a;
}

/* Normal halves, none of them so small that it would be subnormal. */
static void fill(struct esp_npz_array *a, struct esp_rand *r, double std)
{
    esp_rand_weights_f16(r, a->values, NULL, a->n_elem, std);
    for (size_t i = 0; i < a->n_elem; i++)
        if (fabsf(a->values[i]) < 0x1p-14f)
            a->values[i] = 0.0f;
}

/* One layer; n_seen inputs reach an output. */
static void layer(struct esp_ref_codec *c, struct esp_rand *r, const char *name, size_t rows, size_t cols,
                  size_t kernel, size_t n_out, double n_seen, double gain)
{
    char full[64];

    snprintf(full, sizeof full, "%s.weight", name);
    fill(add(c, full, 4, (const size_t[]){rows, cols, kernel, kernel}), r, gain / sqrt(n_seen));
    snprintf(full, sizeof full, "%s.bias", name);
    fill(add(c, full, 1, &n_out), r, 0.05);
}

static void res(struct esp_ref_codec *c, struct esp_rand *r, const char *name, size_t n)
{
    char full[64];

    for (int i = 0; i < 3; i++) {
        size_t k = i < 2 ? 3 : 1;
        snprintf(full, sizeof full, "%s.net.%d", name, 2 * i);
        layer(c, r, full, n, n, k, n, (double)(n * k * k), i < 2 ? M_SQRT2 : 0.5);
    }
}

void esp_ref_codec_random(struct esp_ref_codec *c, const struct esp_ref_codec_dims *d, bool encoder,
                          uint64_t seed)
{
    struct esp_rand r;
    size_t n;
    char name[64];

    c->n = 0;
    esp_rand_init(&r, seed);
    fill(add(c, "_vq_vae._embedding", 2, (const size_t[]){128, d->code_dim}), &r, 1.0);
    layer(c, &r, "decoder.0", d->in, d->code_dim, 1, d->in, (double)d->code_dim, M_SQRT2);
    res(c, &r, "decoder.2", d->in);
    res(c, &r, "decoder.3", d->in);
    n = d->in;
    for (size_t i = 0; i < 4; n = d->up[i++]) {
        snprintf(name, sizeof name, "decoder.%zu", 4 + 2 * i);
        layer(c, &r, name, n, d->up[i], 4, d->up[i], (double)n * 4, M_SQRT2);
    }
    layer(c, &r, "decoder.12", 1, n, 1, 1, (double)n, 0.3);
    if (!encoder)
        return;
    n = 1;
    for (size_t i = 0; i < 4; n = d->down[i++]) {
        snprintf(name, sizeof name, "encoder.%zu", 2 * i);
        layer(c, &r, name, d->down[i], n, 4, d->down[i], (double)n * 16, M_SQRT2);
    }
    res(c, &r, "encoder.8", n);
    res(c, &r, "encoder.9", n);
    layer(c, &r, "encoder.10", d->code_dim, n, 1, d->code_dim, (double)n, 3.0);
}

void esp_ref_codec_read(struct esp_ref_codec *c, const char *path)
{
    struct esp_npz *npz;
    struct esp_err err;
    size_t n_bytes;
    uint8_t *bytes = esp_slurp(&n_bytes, "%s", path);
    esp_status st = esp_npz_parse(&npz, bytes, n_bytes, path, &err);

    c->n = 0;
    for (size_t i = 0; !st && i < esp_npz_n_arrays(npz); i++) {
        if (c->n == ESP_REF_CODEC_MAX) {
            fprintf(stderr, "%s: too many arrays\n", path);
            exit(1);
        }
        snprintf(c->name[c->n], sizeof c->name[0], "%s", esp_npz_name(npz, i));
        st = esp_npz_read(&c->array[c->n++], npz, esp_npz_name(npz, i), 1u << 24, &err);
    }
    if (st) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    esp_npz_destroy(&npz);
    free(bytes);
}

void esp_ref_codec_finish(struct esp_ref_codec *c)
{
    for (size_t i = 0; i < c->n; i++)
        esp_npz_array_finish(&c->array[i]);
    c->n = 0;
}

struct esp_npz_array *esp_ref_codec_find(struct esp_ref_codec *c, const char *name)
{
    for (size_t i = 0; i < c->n; i++)
        if (strcmp(c->name[i], name) == 0)
            return &c->array[i];
    return NULL;
}

void esp_ref_codec_write(struct esp_npz_out *z, const struct esp_ref_codec *c, bool half, bool deflated)
{
    *z = (struct esp_npz_out){0};
    for (size_t i = 0; i < c->n; i++)
        esp_npz_out_array(z, c->name[i], c->array[i].values, c->array[i].shape, c->array[i].n_dim, half,
                          deflated);
    esp_npz_out_end(z);
}

/* ---- arithmetic: planes f64[C, side, side] ---- */

struct planes {
    size_t n, side;
    double *at;
};

static struct planes planes_of(size_t n, size_t side)
{
    return (struct planes){n, side, take(n * side * side, sizeof(double))};
}

static const struct esp_npz_array *part(struct esp_ref_codec *c, const char *layer_name, const char *what)
{
    char name[64];
    const struct esp_npz_array *a;

    snprintf(name, sizeof name, "%s.%s", layer_name, what);
    a = esp_ref_codec_find(c, name);
    if (!a) {
        fprintf(stderr, "no array %s\n", name);
        exit(1);
    }
    return a;
}

static void relu(struct planes *p)
{
    for (size_t i = 0; i < p->n * p->side * p->side; i++)
        p->at[i] = fmax(p->at[i], 0.0);
}

/* Convolution of stride 1 or 2 over a border of zeros; frees x. */
static struct planes conv(struct esp_ref_codec *c, const char *name, struct planes x, size_t stride)
{
    const struct esp_npz_array *w = part(c, name, "weight"), *b = part(c, name, "bias");
    long k = (long)w->shape[2], pad = (k - 1) / 2, side = (long)x.side;
    struct planes y = planes_of(w->shape[0], x.side / stride);

    for (size_t o = 0; o < y.n; o++)
        for (long r = 0; r < (long)y.side; r++)
            for (long s = 0; s < (long)y.side; s++) {
                double sum = b->values[o];
                for (size_t i = 0; i < x.n; i++)
                    for (long u = 0; u < k; u++)
                        for (long v = 0; v < k; v++) {
                            long yy = r * (long)stride + u - pad, xx = s * (long)stride + v - pad;
                            if (yy >= 0 && yy < side && xx >= 0 && xx < side)
                                sum += w->values[((o * x.n + i) * (size_t)k + (size_t)u) * (size_t)k +
                                                 (size_t)v] *
                                       x.at[(i * x.side + (size_t)yy) * x.side + (size_t)xx];
                        }
                y.at[(o * y.side + (size_t)r) * y.side + (size_t)s] = sum;
            }
    free(x.at);
    return y;
}

/* Transposed convolution, 4x4, stride 2, padding 1: every input is strewn over the outputs. Frees x. */
static struct planes grow(struct esp_ref_codec *c, const char *name, struct planes x)
{
    const struct esp_npz_array *w = part(c, name, "weight"), *b = part(c, name, "bias");
    struct planes y = planes_of(w->shape[1], x.side * 2);

    for (size_t o = 0; o < y.n; o++)
        for (size_t i = 0; i < y.side * y.side; i++)
            y.at[o * y.side * y.side + i] = b->values[o];
    for (size_t i = 0; i < x.n; i++)
        for (size_t r = 0; r < x.side; r++)
            for (size_t s = 0; s < x.side; s++)
                for (size_t o = 0; o < y.n; o++)
                    for (size_t u = 0; u < 4; u++)
                        for (size_t v = 0; v < 4; v++) {
                            size_t yy = 2 * r + u, xx = 2 * s + v; /* one too far */
                            if (yy >= 1 && yy <= y.side && xx >= 1 && xx <= y.side)
                                y.at[(o * y.side + yy - 1) * y.side + xx - 1] +=
                                    x.at[(i * x.side + r) * x.side + s] *
                                    w->values[((i * y.n + o) * 4 + u) * 4 + v];
                        }
    free(x.at);
    return y;
}

static struct planes residual(struct esp_ref_codec *c, const char *name, struct planes x)
{
    struct planes y = planes_of(x.n, x.side);
    char full[64];

    memcpy(y.at, x.at, x.n * x.side * x.side * sizeof *x.at);
    for (int i = 0; i < 3; i++) {
        snprintf(full, sizeof full, "%s.net.%d", name, 2 * i);
        y = conv(c, full, y, 1);
        if (i < 2)
            relu(&y);
    }
    for (size_t i = 0; i < x.n * x.side * x.side; i++)
        y.at[i] += x.at[i];
    free(x.at);
    return y;
}

void esp_ref_codec_decode(double *out, struct esp_ref_codec *c, const int32_t codes[16])
{
    const struct esp_npz_array *book = esp_ref_codec_find(c, "_vq_vae._embedding");
    size_t dim = book->shape[1];
    struct planes x = planes_of(dim, 4);
    char name[32];

    for (size_t t = 0; t < 16; t++)
        for (size_t i = 0; i < dim; i++)
            x.at[i * 16 + t] = book->values[(size_t)codes[t] * dim + i];
    x = conv(c, "decoder.0", x, 1);
    relu(&x);
    x = residual(c, "decoder.2", x);
    x = residual(c, "decoder.3", x);
    for (int i = 4; i <= 10; i += 2) {
        snprintf(name, sizeof name, "decoder.%d", i);
        x = grow(c, name, x);
        relu(&x);
    }
    x = conv(c, "decoder.12", x, 1);
    memcpy(out, x.at, 64 * 64 * sizeof *out);
    free(x.at);
}

void esp_ref_codec_encode(double *features, double *distances, struct esp_ref_codec *c,
                          const uint8_t mask[64 * 64])
{
    const struct esp_npz_array *book = esp_ref_codec_find(c, "_vq_vae._embedding");
    size_t dim = book->shape[1];
    struct planes x = planes_of(1, 64);
    char name[32];

    for (size_t i = 0; i < 64 * 64; i++)
        x.at[i] = 2.0 * mask[i] / 255.0 - 1.0;
    for (int i = 0; i <= 6; i += 2) {
        snprintf(name, sizeof name, "encoder.%d", i);
        x = conv(c, name, x, 2);
        relu(&x);
    }
    x = residual(c, "encoder.8", x);
    x = residual(c, "encoder.9", x);
    x = conv(c, "encoder.10", x, 1);
    for (size_t t = 0; t < 16; t++) {
        for (size_t i = 0; features && i < dim; i++)
            features[t * dim + i] = x.at[i * 16 + t];
        for (size_t k = 0; distances && k < 128; k++) {
            double far = 0.0;
            for (size_t i = 0; i < dim; i++)
                far += pow(x.at[i * 16 + t] - book->values[k * dim + i], 2);
            distances[t * 128 + k] = far;
        }
    }
    free(x.at);
}
