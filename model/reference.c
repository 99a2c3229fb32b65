#include "model/reference.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

/* Small cases stay on the caller's thread: starting another costs more than they do. */
#define MIN_PARALLEL_MACS 1000000.0

/* The blocks of matmul. A panel of COLS weight rows by DEPTH, as doubles, is 32 KiB: the first-level cache.
 */
enum { COLS = 8, DEPTH = 512 };

/* A loop over [lo, hi), every index of which writes its own part of the output. */
typedef void (*range_fn)(const void *arg, size_t lo, size_t hi);

struct range_job {
    range_fn fn;
    const void *arg;
    size_t lo, hi;
};

static void *range_main(void *p)
{
    const struct range_job *job = p;
    job->fn(job->arg, job->lo, job->hi);
    return NULL;
}

/* fn over [0, n), in two halves on two threads if there is work enough. */
static void in_two(range_fn fn, const void *arg, size_t n, double n_mac)
{
    pthread_t thread;
    struct range_job upper = {fn, arg, n / 2, n};
    if (n < 2 || n_mac < MIN_PARALLEL_MACS || pthread_create(&thread, NULL, range_main, &upper) != 0) {
        fn(arg, 0, n);
        return;
    }
    fn(arg, 0, n / 2);
    pthread_join(thread, NULL);
}

void esp_ref_layernorm(double *out, const float *x, const float *weight, const float *bias, size_t n_tok,
                       size_t width, double eps)
{
    for (size_t t = 0; t < n_tok; t++) {
        const float *row = x + t * width;
        double sum = 0, square = 0;
        for (size_t d = 0; d < width; d++)
            sum += row[d];
        const double mean = sum / (double)width;
        for (size_t d = 0; d < width; d++)
            square += (row[d] - mean) * (row[d] - mean);
        const double root = sqrt(square / (double)width + eps);
        for (size_t d = 0; d < width; d++)
            out[t * width + d] = (row[d] - mean) / root * weight[d] + bias[d];
    }
}

void esp_ref_rmsnorm(double *out, const float *x, const float *weight, size_t n_tok, size_t width, double eps)
{
    for (size_t t = 0; t < n_tok; t++) {
        const float *row = x + t * width;
        double square = 0;
        for (size_t d = 0; d < width; d++)
            square += (double)row[d] * row[d];
        const double root = sqrt(square / (double)width + eps);
        for (size_t d = 0; d < width; d++)
            out[t * width + d] = row[d] / root * (1.0 + weight[d]);
    }
}

struct matmul {
    double *out;
    const float *x, *w, *bias;
    size_t n_tok, n_out, n_in;
};

/* acc[c] += sum_k x[k] * panel[k][c], k in order. */
static void dot_panel(double acc[COLS], const float *x, double (*panel)[COLS], size_t depth)
{
    double a[COLS];
    memcpy(a, acc, sizeof a);
    for (size_t k = 0; k < depth; k++) {
        const double xk = x[k];
        for (size_t c = 0; c < COLS; c++)
            a[c] += xk * panel[k][c];
    }
    memcpy(acc, a, sizeof a);
}

/* Output columns [lo, hi): panel by panel, so that a weight is widened once for all rows. */
static void matmul_columns(const void *arg, size_t lo, size_t hi)
{
    const struct matmul *m = arg;
    double panel[DEPTH][COLS];

    for (size_t n0 = lo; n0 < hi; n0 += COLS) {
        const size_t cols = hi - n0 < COLS ? hi - n0 : COLS;
        for (size_t t = 0; t < m->n_tok; t++)
            for (size_t c = 0; c < cols; c++)
                m->out[t * m->n_out + n0 + c] = 0;
        for (size_t k0 = 0; k0 < m->n_in; k0 += DEPTH) {
            const size_t depth = m->n_in - k0 < DEPTH ? m->n_in - k0 : DEPTH;
            for (size_t c = 0; c < COLS; c++) /* columns past the end are computed with zeros and dropped */
                for (size_t k = 0; k < depth; k++)
                    panel[k][c] = c < cols ? m->w[(n0 + c) * m->n_in + k0 + k] : 0;
            for (size_t t = 0; t < m->n_tok; t++) {
                double *o = m->out + t * m->n_out + n0;
                double acc[COLS] = {0};
                memcpy(acc, o, cols * sizeof *o);
                dot_panel(acc, m->x + t * m->n_in + k0, panel, depth);
                memcpy(o, acc, cols * sizeof *o);
            }
        }
        for (size_t t = 0; m->bias && t < m->n_tok; t++)
            for (size_t c = 0; c < cols; c++)
                m->out[t * m->n_out + n0 + c] += m->bias[n0 + c];
    }
}

void esp_ref_matmul(double *out, const float *x, const float *w, const float *bias, size_t n_tok,
                    size_t n_out, size_t n_in)
{
    const struct matmul m = {out, x, w, bias, n_tok, n_out, n_in};
    in_two(matmul_columns, &m, n_out, (double)n_tok * (double)n_out * (double)n_in);
}

double esp_ref_gelu(double x)
{
    const double sqrt_2_over_pi = 0.79788456080286535588;
    return 0.5 * x * (1.0 + tanh(sqrt_2_over_pi * (x + 0.044715 * x * x * x)));
}

void esp_ref_gelu_tanh(double *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = esp_ref_gelu(x[i]);
}

void esp_ref_geglu(double *out, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = esp_ref_gelu(gate[i]) * up[i];
}

void esp_ref_rope_f64(double *x, const uint32_t *pos, size_t n_tok, size_t n_head, size_t head_dim,
                      double theta)
{
    const size_t half = head_dim / 2;
    for (size_t t = 0; t < n_tok; t++) {
        for (size_t j = 0; j < half; j++) {
            const double angle = pos[t] * pow(theta, -2.0 * (double)j / (double)head_dim);
            const double c = cos(angle), s = sin(angle);
            for (size_t n = 0; n < n_head; n++) {
                double *head = x + (t * n_head + n) * head_dim;
                const double a = head[j], b = head[j + half];
                head[j] = a * c - b * s;
                head[j + half] = b * c + a * s;
            }
        }
    }
}

void esp_ref_rope(double *out, const float *x, const uint32_t *pos, size_t n_tok, size_t n_head,
                  size_t head_dim, double theta)
{
    for (size_t i = 0; i < n_tok * n_head * head_dim; i++)
        out[i] = x[i];
    esp_ref_rope_f64(out, pos, n_tok, n_head, head_dim, theta);
}

struct attention {
    double *out;
    const float *q, *k, *v;
    const struct esp_ref_span *span;
    size_t n_head, n_kv_head, head_dim;
    double scale, softcap;
};

/* Query rows [lo, hi), every head of each. */
/* The score of a query row and a key, capped. */
static double score(const struct attention *a, const float *q, const float *k)
{
    double s = 0;
    for (size_t h = 0; h < a->head_dim; h++)
        s += (double)q[h] * k[h];
    s *= a->scale;
    return a->softcap > 0 ? a->softcap * tanh(s / a->softcap) : s;
}

/* Scores are computed twice, for the maximum and for the weights: nothing needs to be kept. */
static void attention_rows(const void *arg, size_t lo, size_t hi)
{
    const struct attention *a = arg;
    const size_t group = a->n_head / a->n_kv_head, kv_stride = a->n_kv_head * a->head_dim;

    for (size_t t = lo; t < hi; t++) {
        const struct esp_ref_span span = a->span[t];
        for (size_t n = 0; n < a->n_head; n++) {
            const float *q = a->q + (t * a->n_head + n) * a->head_dim;
            const float *k = a->k + n / group * a->head_dim;
            const float *v = a->v + n / group * a->head_dim;
            double *out = a->out + (t * a->n_head + n) * a->head_dim;
            double max = -INFINITY, sum = 0;

            for (size_t h = 0; h < a->head_dim; h++)
                out[h] = 0;
            for (size_t j = span.lo; j < span.hi; j++) {
                const double s = score(a, q, k + j * kv_stride);
                if (s > max)
                    max = s;
            }
            for (size_t j = span.lo; j < span.hi; j++) {
                const double p = exp(score(a, q, k + j * kv_stride) - max);
                sum += p;
                for (size_t h = 0; h < a->head_dim; h++)
                    out[h] += p * v[j * kv_stride + h];
            }
            for (size_t h = 0; span.hi > span.lo && h < a->head_dim; h++)
                out[h] /= sum;
        }
    }
}

void esp_ref_attention(double *out, const float *q, const float *k, const float *v,
                       const struct esp_ref_span *span, size_t n_tok, size_t n_head, size_t n_kv_head,
                       size_t head_dim, double scale, double softcap)
{
    const struct attention a = {out, q, k, v, span, n_head, n_kv_head, head_dim, scale, softcap};
    double n_mac = 0;
    for (size_t t = 0; t < n_tok; t++) {
        if (span[t].hi > span[t].lo)
            n_mac += 2.0 * (double)n_head * (double)head_dim * (span[t].hi - span[t].lo);
    }
    in_two(attention_rows, &a, n_tok, n_mac);
}

void esp_ref_prefix_lm(struct esp_ref_span *out, size_t n_tok, uint32_t pos0, uint32_t n_prefix,
                       uint32_t window)
{
    for (size_t t = 0; t < n_tok; t++) {
        const uint32_t pos = pos0 + (uint32_t)t;
        if (pos < n_prefix) {
            out[t] = (struct esp_ref_span){0, n_prefix};
        } else {
            out[t] = (struct esp_ref_span){0, pos + 1};
            if (window > 0 && pos + 1 > window)
                out[t].lo = pos + 1 - window;
        }
    }
}

void esp_ref_patches(float *out, const float *pixels, size_t n, size_t n_channel, size_t image_size,
                     size_t patch_size)
{
    const size_t grid = image_size / patch_size;

    for (size_t i = 0; i < n; i++) {
        const size_t top = i / grid * patch_size, left = i % grid * patch_size;
        for (size_t c = 0; c < n_channel; c++) {
            for (size_t y = 0; y < patch_size; y++) {
                for (size_t x = 0; x < patch_size; x++)
                    *out++ = pixels[(c * image_size + top + y) * image_size + left + x];
            }
        }
    }
}

void esp_ref_embed(double *out, const float *table, const uint32_t *id, size_t n_tok, size_t width,
                   double scale)
{
    for (size_t t = 0; t < n_tok; t++) {
        for (size_t d = 0; d < width; d++)
            out[t * width + d] = table[id[t] * width + d] * scale;
    }
}

void esp_ref_softcap(double *out, const float *x, size_t n, double cap)
{
    for (size_t i = 0; i < n; i++)
        out[i] = cap > 0 ? cap * tanh(x[i] / cap) : x[i];
}

double esp_ref_logsumexp(const float *x, size_t n)
{
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i]))
            return NAN;
        if (x[i] > max)
            max = x[i];
    }
    if (isinf(max)) /* inf - inf below would be NaN */
        return max;
    for (size_t i = 0; i < n; i++)
        sum += exp(x[i] - max);
    return max + log(sum);
}

/* Does a come before b? */
static bool ranks_before(struct esp_ref_top a, struct esp_ref_top b)
{
    if (isnan(a.logit) != isnan(b.logit))
        return isnan(b.logit);
    if (!isnan(a.logit) && a.logit != b.logit)
        return a.logit > b.logit;
    return a.id < b.id;
}

size_t esp_ref_topk(struct esp_ref_top *out, const float *x, size_t n, size_t k)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n && k > 0; i++) { /* insertion into a sorted list */
        const struct esp_ref_top it = {(uint32_t)i, x[i]};
        if (n_out == k && !ranks_before(it, out[k - 1]))
            continue;
        size_t at = n_out < k ? n_out++ : k - 1;
        for (; at > 0 && ranks_before(it, out[at - 1]); at--)
            out[at] = out[at - 1];
        out[at] = it;
    }
    return n_out;
}

void esp_ref_narrow(float *out, const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)x[i];
}
