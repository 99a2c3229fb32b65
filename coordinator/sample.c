#include "coordinator/sample.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static bool top_p_on(const struct esp_sample_params *params)
{
    return params->top_p > 0.0 && params->top_p < 1.0;
}

esp_status esp_sample_params_check(const struct esp_sample_params *params, uint32_t vocab,
                                   struct esp_err *err)
{
    if (!isfinite(params->temperature) || params->temperature < 0.0)
        return esp_fail(err, ESP_E_ARG, "--temperature must be a number >= 0 (0: greedy), not %g",
                        params->temperature);
    if (!(params->top_p >= 0.0 && params->top_p <= 1.0))
        return esp_fail(err, ESP_E_ARG, "--top-p must be from 0 to 1 (0 and 1: off), not %g", params->top_p);
    if (params->n_ban && !params->ban)
        return esp_fail(err, ESP_E_ARG, "--ban: %" PRIu32 " ids announced, none given", params->n_ban);
    for (uint32_t i = 0; i < params->n_ban; i++)
        if (params->ban[i] >= vocab)
            return esp_fail(err, ESP_E_ARG, "--ban: id %" PRIu32 " is outside of the vocabulary of %" PRIu32,
                            params->ban[i], vocab);
    return ESP_OK;
}

void esp_sample_need(const struct esp_sample_params *params, uint32_t *k, bool *need_full)
{
    uint64_t want = params->temperature == 0.0 ? 1 : params->top_k;

    /* The worst case is that every forbidden token ranks above the ones we want. */
    *need_full = want == 0 || want + params->n_ban > ESP_CAND_MAX;
    *k = *need_full ? 0 : (uint32_t)(want + params->n_ban);
}

double esp_cand_logprob(const struct esp_cand_row *row, float logit)
{
    double logprob = (double)logit - (double)row->lse;
    return logprob < 0.0 ? logprob : 0.0;
}

esp_status esp_cand_row_check(const struct esp_cand_row *row, struct esp_err *err)
{
    float best = 0.0f;

    if (!isfinite(row->lse))
        return esp_fail(err, ESP_E_DEVICE, "log-sum-exp of the logits is %g", (double)row->lse);
    if (row->has_target && !isfinite(row->target_logit))
        return esp_fail(err, ESP_E_DEVICE, "logit of token %" PRIu32 " is %g", row->target,
                        (double)row->target_logit);
    if (row->full) {
        for (uint32_t i = 0; i < row->vocab; i++) {
            if (!isfinite(row->full[i]))
                return esp_fail(err, ESP_E_DEVICE, "logit of token %" PRIu32 " is %g", i,
                                (double)row->full[i]);
            if (i == 0 || row->full[i] > best)
                best = row->full[i];
        }
    } else {
        for (uint32_t i = 0; i < row->n; i++) {
            float x = row->logits[i];
            if (row->ids[i] >= row->vocab)
                return esp_fail(err, ESP_E_DEVICE,
                                "candidate %" PRIu32 " is token %" PRIu32 ", the vocabulary has %" PRIu32, i,
                                row->ids[i], row->vocab);
            if (!isfinite(x))
                return esp_fail(err, ESP_E_DEVICE, "logit of token %" PRIu32 " is %g", row->ids[i],
                                (double)x);
            if (i > 0 &&
                !(row->logits[i - 1] > x || (row->logits[i - 1] == x && row->ids[i - 1] < row->ids[i])))
                return esp_fail(err, ESP_E_DEVICE,
                                "candidates out of order: token %" PRIu32 " (%g) before %" PRIu32 " (%g)",
                                row->ids[i - 1], (double)row->logits[i - 1], row->ids[i], (double)x);
        }
        if (row->n)
            best = row->logits[0];
    }
    if ((row->full && row->vocab) || row->n) {
        /* An lse is at least its largest term; a float32 sum over the vocabulary may round below it. */
        double slack = 1e-3 + 1e-5 * fabs((double)best);
        if ((double)row->lse < (double)best - slack)
            return esp_fail(err, ESP_E_DEVICE, "log-sum-exp %g is below the best logit %g", (double)row->lse,
                            (double)best);
    }
    return ESP_OK;
}

void esp_philox(uint32_t out[4], const uint32_t ctr[4], const uint32_t key[2])
{
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3], k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

double esp_draw(uint64_t seed, uint64_t sequence, uint64_t position)
{
    const uint32_t ctr[4] = {(uint32_t)position, (uint32_t)(position >> 32), (uint32_t)sequence,
                             (uint32_t)(sequence >> 32)};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t r[4];
    uint64_t bits;

    esp_philox(r, ctr, key);
    bits = ((uint64_t)r[1] << 32 | r[0]) >> 11;
    return (double)bits * 0x1p-53;
}

/* ---- the tokens that may be drawn, best first ---- */

/* Before: a outranks b. */
static bool before(const float *logits, uint32_t a, uint32_t b)
{
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

/* A binary heap of ids, best on top: top-p mostly ends after a few of V tokens, so that sorting all would
 * waste. */
static void heap_sink(uint32_t *heap, uint32_t n, uint32_t at, const float *logits)
{
    uint32_t id = heap[at];

    while (at < n / 2) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < n && before(logits, heap[child + 1], heap[child]))
            child++;
        if (before(logits, id, heap[child]))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

/* Takes the best id off; it ends up just behind the heap, at heap[n - 1]. */
static uint32_t heap_pop(uint32_t *heap, uint32_t n, const float *logits)
{
    uint32_t best = heap[0];

    heap[0] = heap[n - 1];
    heap_sink(heap, n - 1, 0, logits);
    heap[n - 1] = best;
    return best;
}

/* Whether id is forbidden, by search: candidates are few. Full rows use a bitset. */
static bool is_banned(const struct esp_sample_params *params, uint32_t id)
{
    for (uint32_t i = 0; i < params->n_ban; i++)
        if (params->ban[i] == id)
            return true;
    return false;
}

static esp_status all_banned(uint32_t n, struct esp_err *err)
{
    return esp_fail(err, ESP_E_ARG, "--ban: all of the %" PRIu32 " tokens to choose from are forbidden", n);
}

/* Index into w[0..n) where the walk passes u * total. Rounding may leave the walk short: then the last
 * positive one. */
static uint32_t walk(const double *w, uint32_t n, double total, double u)
{
    double sum = 0.0, stop = u * total;
    uint32_t last = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (w[i] > 0.0)
            last = i;
        sum += w[i];
        if (sum > stop)
            return i;
    }
    return last;
}

/* How many of the n weights, by falling weight, make up top_p of their sum; the one that crosses it counts.
 */
static uint32_t nucleus(const double *w, uint32_t n, double total, double top_p, double *kept)
{
    double sum = 0.0;
    uint32_t i = 0;

    while (i < n && (i == 0 || sum < top_p * total))
        sum += w[i++];
    *kept = sum;
    return i;
}

/* The row's candidates suffice: top_k, or greedy. */
static esp_status sample_cands(uint32_t *at, const struct esp_cand_row *row,
                               const struct esp_sample_params *params, double u, struct esp_err *err)
{
    uint32_t need, kept[ESP_CAND_MAX], n = 0, want;
    double w[ESP_CAND_MAX], total = 0.0;
    bool need_full;

    esp_sample_need(params, &need, &need_full);
    if (need_full || row->n > ESP_CAND_MAX)
        return esp_fail(err, ESP_E_ARG,
                        "%" PRIu32 " candidates given where all %" PRIu32 " logits are needed", row->n,
                        row->vocab);
    if (row->n < need && row->n < row->vocab)
        return esp_fail(err, ESP_E_ARG, "%" PRIu32 " candidates given, %" PRIu32 " are needed", row->n, need);
    want = params->temperature == 0.0 ? 1 : params->top_k;
    for (uint32_t i = 0; i < row->n && n < want; i++)
        if (!is_banned(params, row->ids[i]))
            kept[n++] = i;
    if (n == 0)
        return all_banned(row->n, err);
    if (params->temperature == 0.0) {
        *at = kept[0];
        return ESP_OK;
    }
    for (uint32_t i = 0; i < n; i++) {
        w[i] = exp(((double)row->logits[kept[i]] - (double)row->logits[kept[0]]) / params->temperature);
        total += w[i];
    }
    if (top_p_on(params))
        n = nucleus(w, n, total, params->top_p, &total);
    *at = kept[walk(w, n, total, u)];
    return ESP_OK;
}

/* The same over every logit. */
static esp_status sample_full(uint32_t *id, const struct esp_cand_row *row,
                              const struct esp_sample_params *params, double u, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const float *x = row->full;
    uint32_t n_word = row->vocab / 32 + 1, n_left = 0, n = 0, best = 0, *left = NULL, *banned = NULL;
    double *w = NULL, total = 0.0;

    banned = calloc(n_word, sizeof *banned);
    left = calloc((size_t)row->vocab + 1, sizeof *left);
    if (!banned || !left) {
        st = esp_fail(err, ESP_E_NOMEM, "sampling over %" PRIu32 " logits", row->vocab);
        goto done;
    }
    for (uint32_t i = 0; i < params->n_ban; i++)
        if (params->ban[i] < row->vocab)
            banned[params->ban[i] / 32] |= 1u << params->ban[i] % 32;
    for (uint32_t i = 0; i < row->vocab; i++) {
        if (banned[i / 32] >> i % 32 & 1)
            continue;
        if (n_left == 0 || x[i] > x[best])
            best = i;
        left[n_left++] = i;
    }
    if (n_left == 0) {
        st = all_banned(row->vocab, err);
        goto done;
    }
    if (params->temperature == 0.0) {
        *id = best;
        goto done;
    }
    w = calloc(n_left, sizeof *w);
    if (!w) {
        st = esp_fail(err, ESP_E_NOMEM, "sampling over %" PRIu32 " logits", row->vocab);
        goto done;
    }
    if (params->top_k == 0 && !top_p_on(params)) { /* no order needed: walk by id */
        for (n = 0; n < n_left; n++) {
            w[n] = exp(((double)x[left[n]] - (double)x[best]) / params->temperature);
            total += w[n];
        }
        *id = left[walk(w, n, total, u)];
        goto done;
    }
    if (params->top_k == 0) /* top-p is of the mass of all that is left; with top-k, of the k's */
        for (uint32_t i = 0; i < n_left; i++)
            total += exp(((double)x[left[i]] - (double)x[best]) / params->temperature);
    for (uint32_t i = n_left / 2; i-- > 0;)
        heap_sink(left, n_left, i, x);
    double sum = 0.0;
    while (n < n_left) {
        if (params->top_k ? n == params->top_k : n > 0 && sum >= params->top_p * total)
            break;
        uint32_t top = heap_pop(left, n_left - n, x); /* the n-th best now lies at left[n_left - 1 - n] */
        w[n] = exp(((double)x[top] - (double)x[best]) / params->temperature);
        sum += w[n++];
    }
    if (params->top_k && top_p_on(params))
        n = nucleus(w, n, sum, params->top_p, &sum);
    *id = left[n_left - 1 - walk(w, n, sum, u)];
done:
    free(banned);
    free(left);
    free(w);
    return st;
}

esp_status esp_sample(uint32_t *id, double *logprob, const struct esp_cand_row *row,
                      const struct esp_sample_params *params, uint64_t sequence, uint64_t position,
                      struct esp_err *err)
{
    double u = params->temperature == 0.0 ? 0.0 : esp_draw(params->seed, sequence, position);
    uint32_t at;
    esp_status st;

    *id = 0;
    st = esp_sample_params_check(params, row->vocab, err);
    if (!st)
        st = esp_cand_row_check(row, err);
    if (st)
        return st;
    if (row->full) {
        st = sample_full(id, row, params, u, err);
        if (!st && logprob)
            *logprob = esp_cand_logprob(row, row->full[*id]);
        return st;
    }
    st = sample_cands(&at, row, params, u, err);
    if (st)
        return st;
    *id = row->ids[at];
    if (logprob)
        *logprob = esp_cand_logprob(row, row->logits[at]);
    return ESP_OK;
}

uint32_t esp_best_of(const struct esp_sampled *samples, uint32_t n, enum esp_best_by by)
{
    uint32_t best = 0;
    double best_score = -INFINITY;

    for (uint32_t i = 0; i < n; i++) {
        double score = -INFINITY;
        if (samples[i].n > 0) {
            score = 0.0;
            for (uint32_t t = 0; t < samples[i].n; t++)
                score += samples[i].logprobs[t];
            if (by == ESP_BEST_MEAN)
                score /= samples[i].n;
        }
        if (score > best_score) {
            best_score = score;
            best = i;
        }
    }
    return best;
}
