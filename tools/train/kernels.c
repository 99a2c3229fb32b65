/*
 * The elementwise work of a training step that torch does slowly on a CPU: tanh GELU and its derivative (torch's
 * backward takes three times as long as the matrix product beside it), the gated form of Gemma, RMSNorm, RoPE.
 *
 * Built by kernels.py with `cc -O3 -march=native -ffast-math -fopenmp -shared`, called through ctypes on contiguous float
 * rows; kernels.py says the same in torch for where there is no compiler. Rows are shared among the threads of OpenMP,
 * which are torch's.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* gelu(x) = x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3)): the tanh form, written with one exp. */
#define GELU_A 1.5957691216057308f
#define GELU_B (1.5957691216057308f * 0.044715f)

static inline float gate_of(float x)
{
    const float z = -x * (GELU_A + GELU_B * x * x);

    return 1.0f /
           (1.0f + expf(z < 60.0f ? z : 60.0f)); /* no infinity: -ffast-math promises that there is none */
}

static inline float slope_of(float x, float s)
{
    return s + x * s * (1.0f - s) * (GELU_A + 3.0f * GELU_B * x * x);
}

/** out[i] = gelu(x[i]), i < n. out may be x. */
void gelu_forward(float *out, const float *x, int64_t n)
{
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) {
        out[i] = x[i] * gate_of(x[i]);
    }
}

/** grad[t,f] *= gelu'(x[t,f]) in place, and bias_grad[f] += its sum over t. */
void gelu_backward(float *grad, float *bias_grad, const float *x, int64_t n_rows, int64_t width)
{
#pragma omp parallel for reduction(+ : bias_grad[:width])
    for (int64_t t = 0; t < n_rows; t++) {
        float *g = grad + t * width;
        const float *row = x + t * width;

        for (int64_t f = 0; f < width; f++) {
            g[f] *= slope_of(row[f], gate_of(row[f]));
            bias_grad[f] += g[f];
        }
    }
}

/** out[t,f] = gelu(both[t,f]) * both[t,width+f]; both is f32[T,2*width]. */
void gated_forward(float *out, const float *both, int64_t n_rows, int64_t width)
{
#pragma omp parallel for
    for (int64_t t = 0; t < n_rows; t++) {
        const float *x = both + 2 * t * width;
        const float *up = x + width;
        float *o = out + t * width;

        for (int64_t f = 0; f < width; f++) {
            o[f] = x[f] * gate_of(x[f]) * up[f];
        }
    }
}

/** both_grad f32[T,2*width] from grad f32[T,width]. */
void gated_backward(float *both_grad, const float *grad, const float *both, int64_t n_rows, int64_t width)
{
#pragma omp parallel for
    for (int64_t t = 0; t < n_rows; t++) {
        const float *x = both + 2 * t * width;
        const float *up = x + width;
        const float *g = grad + t * width;
        float *gx = both_grad + 2 * t * width;
        float *gu = gx + width;

        for (int64_t f = 0; f < width; f++) {
            const float s = gate_of(x[f]);

            gu[f] = g[f] * x[f] * s;
            gx[f] = g[f] * up[f] * slope_of(x[f], s);
        }
    }
}

/** out[t,d] = x[t,d] * r[t] * (1 + w[d]), r[t] = 1/sqrt(mean x^2 + eps); r is kept for the way back. */
void rms_forward(float *out, float *r, const float *x, const float *w, int64_t n_rows, int64_t width,
                 float eps)
{
#pragma omp parallel for
    for (int64_t t = 0; t < n_rows; t++) {
        const float *row = x + t * width;
        float *o = out + t * width;
        float sum = 0.0f;

        for (int64_t d = 0; d < width; d++) {
            sum += row[d] * row[d];
        }
        const float scale = 1.0f / sqrtf(sum / (float)width + eps);
        r[t] = scale;
        for (int64_t d = 0; d < width; d++) {
            o[d] = row[d] * scale * (1.0f + w[d]);
        }
    }
}

/** x_grad is written, w_grad is added to. */
void rms_backward(float *x_grad, float *w_grad, const float *grad, const float *x, const float *w,
                  const float *r, int64_t n_rows, int64_t width)
{
#pragma omp parallel for reduction(+ : w_grad[:width])
    for (int64_t t = 0; t < n_rows; t++) {
        const float *row = x + t * width;
        const float *g = grad + t * width;
        float *o = x_grad + t * width;
        float dot = 0.0f;

        for (int64_t d = 0; d < width; d++) {
            dot += g[d] * (1.0f + w[d]) * row[d];
        }
        const float scale = r[t];
        const float back = dot * scale * scale * scale / (float)width;
        for (int64_t d = 0; d < width; d++) {
            w_grad[d] += g[d] * row[d] * scale;
            o[d] = g[d] * (1.0f + w[d]) * scale - row[d] * back;
        }
    }
}

/** Rotates (j, j + half) of every head of every row by the row's angles; sign -1 rotates back. In place. */
void rope_rotate(float *x, const float *cosine, const float *sine, int64_t n_rows, int64_t n_heads,
                 int64_t half, float sign)
{
#pragma omp parallel for
    for (int64_t t = 0; t < n_rows; t++) {
        const float *c = cosine + t * half;
        const float *s = sine + t * half;

        for (int64_t h = 0; h < n_heads; h++) {
            float *a = x + (t * n_heads + h) * 2 * half;
            float *b = a + half;

            for (int64_t j = 0; j < half; j++) {
                const float p = a[j];
                const float q = b[j];

                a[j] = p * c[j] - sign * q * s[j];
                b[j] = q * c[j] + sign * p * s[j];
            }
        }
    }
}

/** Softmax over s of scores[t,h,s] + bias[t,s], in place: T rows of queries, H heads, S keys. */
void masked_softmax(float *scores, const float *bias, int64_t n_rows, int64_t n_heads, int64_t n_keys)
{
#pragma omp parallel for
    for (int64_t t = 0; t < n_rows; t++) {
        const float *m = bias + t * n_keys;

        for (int64_t h = 0; h < n_heads; h++) {
            float *p = scores + (t * n_heads + h) * n_keys;
            float top = -3.0e38f;
            float sum = 0.0f;

            for (int64_t s = 0; s < n_keys; s++) {
                p[s] += m[s];
                top = p[s] > top ? p[s] : top;
            }
            for (int64_t s = 0; s < n_keys; s++) {
                p[s] = expf(p[s] - top);
                sum += p[s];
            }
            const float scale = 1.0f / sum;
            for (int64_t s = 0; s < n_keys; s++) {
                p[s] *= scale;
            }
        }
    }
}

/** grad[r,s] = (grad[r,s] - sum_s grad p) * p * scale, in place. */
void softmax_backward(float *grad, const float *p, int64_t n_rows, int64_t n_keys, float scale)
{
#pragma omp parallel for
    for (int64_t r = 0; r < n_rows; r++) {
        float *g = grad + r * n_keys;
        const float *row = p + r * n_keys;
        float dot = 0.0f;

        for (int64_t s = 0; s < n_keys; s++) {
            dot += g[s] * row[s];
        }
        for (int64_t s = 0; s < n_keys; s++) {
            g[s] = (g[s] - dot) * row[s] * scale;
        }
    }
}
