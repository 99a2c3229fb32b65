/**
 * The model's operations in float64: what every device is held against, in tests and by `espalier verify`.
 *
 * Written to be read next to the formulas, with a loop for each sum, not to be fast; only matmul and
 * attention are blocked and run on two threads, so that the shapes of the published models can be afforded.
 * Inputs are the float32 numbers a shader sees (weights as the float32 values of their bf16 or f16 bits), so
 * that a difference is the shader's own error. No function rounds anything in between.
 *
 * Common to all: arrays are row-major and the caller's, inputs borrowed, outputs apart from inputs unless
 * said otherwise; any count may be 0 unless said otherwise. Nothing here can fail or allocates: that shapes fit is
 * the caller's to know. Safe from any thread; results do not depend on the number of threads.
 *
 * Letters: T rows, S cached positions, N query heads, K KV heads (in matmul: the inner axis), H head_dim, D
 * width, V vocabulary.
 */
#ifndef ESP_MODEL_REFERENCE_H
#define ESP_MODEL_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

/** Cached positions [lo, hi) that a query row attends to. */
struct esp_ref_span {
    uint32_t lo, hi;
};

/** One candidate of a top-k. */
struct esp_ref_top {
    uint32_t id;
    float logit;
};

/**
 * LayerNorm along the last axis.
 *
 *   mean = mean_d(x[t,d]); var = mean_d((x[t,d] - mean)^2)
 *   out[t,d] = (x[t,d] - mean) / sqrt(var + eps) * weight[d] + bias[d]
 *
 * Source: arXiv 1607.06450; SigLIP's blocks, eps 1e-6.
 *
 * @param out           f64[T,D]
 * @param x             f32[T,D]
 * @param weight, bias  f32[D], as stored
 * @param width         D, at least 1
 * @param eps           added to the variance
 */
void esp_ref_layernorm(double *out, const float *x, const float *weight, const float *bias, size_t n_tok,
                       size_t width, double eps);

/**
 * Gemma's RMSNorm along the last axis.
 *
 *   out[t,d] = x[t,d] / sqrt(mean_d(x[t,d]^2) + eps) * (1 + weight[d])
 *
 * Source: big_vision models/ppp/gemma.py RMSNorm, eps 1e-6. Unlike Llama's, weight is an offset from one.
 *
 * @param out     f64[T,D]
 * @param x       f32[T,D]
 * @param weight  f32[D], as stored
 * @param width   D, at least 1
 * @param eps     added to the mean square
 */
void esp_ref_rmsnorm(double *out, const float *x, const float *weight, size_t n_tok, size_t width,
                     double eps);

/**
 * A linear layer.
 *
 *   out[t,n] = sum_k(x[t,k] * w[n,k]) + bias[n]
 *
 * Source: y = x W^T + b with W stored [out, in], as PyTorch's Linear has it. Each sum runs over k in order.
 *
 * @param out   f64[T,N]
 * @param x     f32[T,K]
 * @param w     f32[N,K]
 * @param bias  f32[N] or NULL
 */
void esp_ref_matmul(double *out, const float *x, const float *w, const float *bias, size_t n_tok,
                    size_t n_out, size_t n_in);

/**
 * GELU in its tanh form, of one number.
 *
 *   gelu(x) = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))
 *
 * Source: arXiv 1606.08415, section 2; both SigLIP and Gemma use it ("gelu_pytorch_tanh"), not the erf form.
 */
double esp_ref_gelu(double x);

/** out[i] = gelu(x[i]), the tanh form above. f64[n], f32[n]. */
void esp_ref_gelu_tanh(double *out, const float *x, size_t n);

/**
 * The gate of Gemma's MLP: out[i] = gelu(gate[i]) * up[i], the tanh form above.
 *
 * Source: GeGLU, arXiv 2002.05202; big_vision models/ppp/gemma.py FeedForward. f64[n], f32[n], f32[n].
 */
void esp_ref_geglu(double *out, const float *gate, const float *up, size_t n);

/**
 * Rotary position embedding, in the form that rotates halves: pairs are (j, j + H/2), not neighbours.
 *
 *   a = pos[t] * theta^(-2j/H), 0 <= j < H/2
 *   out[t,n,j]       = x[t,n,j] cos(a) - x[t,n,j+H/2] sin(a)
 *   out[t,n,j+H/2]   = x[t,n,j+H/2] cos(a) + x[t,n,j] sin(a)
 *
 * Source: arXiv 2104.09864; the pairing of big_vision models/ppp/gemma.py _apply_rope. The angle is taken in
 * float64: float32 angles at position 8192 are off by up to 5e-4, which is the shader's to answer for.
 *
 * @param out     f64[T,N,H]
 * @param x       f32[T,N,H]
 * @param pos     u32[T]
 * @param head_dim  H, even
 * @param theta   the base, 10000
 */
void esp_ref_rope(double *out, const float *x, const uint32_t *pos, size_t n_tok, size_t n_head,
                  size_t head_dim, double theta);

/** The same, in place, on f64[T,N,H]. */
void esp_ref_rope_f64(double *x, const uint32_t *pos, size_t n_tok, size_t n_head, size_t head_dim,
                      double theta);

/**
 * Attention of T query rows over S cached positions, with grouped heads.
 *
 *   c = n / (N/K), the KV head of query head n
 *   s[j] = cap(scale * sum_h(q[t,n,h] * k[j,c,h])),  lo <= j < hi of row t
 *   cap(s) = softcap * tanh(s / softcap), or s where softcap is 0
 *   out[t,n,h] = sum_j(p[j] * v[j,c,h]),  p = softmax(s)
 *
 * Source: arXiv 1706.03762; grouped heads arXiv 2305.13245; soft-cap before the mask: Gemma 2, arXiv
 * 2408.00118. An empty interval gives zeros.
 *
 * @param out        f64[T,N,H]
 * @param q          f32[T,N,H], position embedding already applied
 * @param k, v       f32[S,K,H]
 * @param span       [T], the positions each row attends to, hi at most S
 * @param n_head     N, a multiple of n_kv_head, which is at least 1
 * @param scale      multiplies the scores: H^-0.5 or what the checkpoint says
 * @param softcap    0: none
 */
void esp_ref_attention(double *out, const float *q, const float *k, const float *v,
                       const struct esp_ref_span *span, size_t n_tok, size_t n_head, size_t n_kv_head,
                       size_t head_dim, double scale, double softcap);

/**
 * The intervals of prefix-LM attention for rows at positions pos0 .. pos0 + T - 1 of one sequence.
 *
 * A row of the prefix (position below n_prefix) sees the whole prefix, in both directions; a later one sees
 * what is not after it, of which a sliding window keeps the last `window` positions, itself included.
 *
 * Source: arXiv 2407.07726, section 3.2.1 and figure 2; the window as transformers 5 applies it to PaliGemma
 * 2, outside of the prefix alone.
 *
 * @param out     [T]
 * @param window  0: none
 */
void esp_ref_prefix_lm(struct esp_ref_span *out, size_t n_tok, uint32_t pos0, uint32_t n_prefix,
                       uint32_t window);

/**
 * A picture's patches as rows, for SigLIP's patch embedding: a convolution of P x P with stride P is a product of them
 * with its weight [D, C*P*P].
 *
 *   g = image_size / P, rounded down; patch i stands at row i / g, column i % g
 *   out[i, (c*P + y)*P + x] = pixels[c, (i/g)P + y, (i%g)P + x]
 *
 * Source: arXiv 2010.11929; Conv2d without padding, so that a rest of image_size % P pixels is left out.
 *
 * @param out         f32[n, C*P*P]: the first n patches, n at most g*g
 * @param pixels      f32[C,S,S], S = image_size
 * @param patch_size  P, at least 1
 */
void esp_ref_patches(float *out, const float *pixels, size_t n, size_t n_channel, size_t image_size,
                     size_t patch_size);

/**
 * Rows of the embedding table: out[t,d] = table[id[t], d] * scale.
 *
 * Source: big_vision models/ppp/gemma.py Embedder.encode; scale is sqrt(D) for Gemma.
 *
 * @param out    f64[T,D]
 * @param table  f32[V,D], V above every id
 * @param id     u32[T]
 */
void esp_ref_embed(double *out, const float *table, const uint32_t *id, size_t n_tok, size_t width,
                   double scale);

/** Gemma 2's soft-cap of the logits: out[i] = cap * tanh(x[i] / cap); cap 0 copies. f64[n], f32[n]. */
void esp_ref_softcap(double *out, const float *x, size_t n, double cap);

/**
 * log(sum_i(exp(x[i]))), by way of the maximum m: m + log(sum_i(exp(x[i] - m))).
 *
 * -INFINITY for n = 0 and for a row of -INFINITY alone; INFINITY if one is; NaN if one is.
 */
double esp_ref_logsumexp(const float *x, size_t n);

/**
 * The k largest logits, by logit falling, then by id rising.
 *
 * @param out  room for k; what was found comes first
 * @param x    f32[n]; a NaN ranks behind everything, and 0 and -0 are equal
 * @return how many there are: the smaller of k and n
 */
size_t esp_ref_topk(struct esp_ref_top *out, const float *x, size_t n, size_t k);

/** float64 to float32, to nearest: what one op's reference hands to the next op as input. f32[n], f64[n]. */
void esp_ref_narrow(float *out, const double *x, size_t n);

#endif
