#include "cli/eval_boxes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_CODES 1024

/* ---- pairs ---- */

struct pair {
    double overlap;
    size_t wanted, got;
};

static int by_overlap(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;

    if (x->overlap != y->overlap)
        return x->overlap > y->overlap ? -1 : 1;
    if (x->wanted != y->wanted)
        return x->wanted < y->wanted ? -1 : 1;
    return (x->got > y->got) - (x->got < y->got);
}

esp_status esp_pair_up(double *best, const double *overlap, size_t n_wanted, size_t n_got,
                       struct esp_err *err)
{
    size_t n = 0, n_all;
    struct pair *pairs = NULL;
    bool *taken = calloc(n_got ? n_got : 1, sizeof *taken);

    for (size_t i = 0; i < n_wanted; i++)
        best[i] = 0;
    if (esp_mul(&n_all, n_wanted, n_got) && n_all < SIZE_MAX)
        pairs = calloc(n_all + 1, sizeof *pairs);
    if (!pairs || !taken) {
        free(pairs);
        free(taken);
        return esp_fail(err, ESP_E_NOMEM, "pairs of %zu and %zu things: out of memory", n_wanted, n_got);
    }
    for (size_t i = 0; i < n_wanted; i++)
        for (size_t j = 0; j < n_got; j++)
            if (overlap[i * n_got + j] > 0)
                pairs[n++] = (struct pair){overlap[i * n_got + j], i, j};
    qsort(pairs, n, sizeof *pairs, by_overlap);
    for (size_t k = 0; k < n; k++) {
        if (best[pairs[k].wanted] > 0 || taken[pairs[k].got])
            continue;
        best[pairs[k].wanted] = pairs[k].overlap;
        taken[pairs[k].got] = true;
    }
    free(pairs);
    free(taken);
    return ESP_OK;
}

struct ranked {
    double score;
    size_t i;
};

static int by_score(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return (x->i > y->i) - (x->i < y->i);
}

esp_status esp_claim(bool *hit, const double *overlap, const double *score, size_t n_wanted, size_t n_got,
                     double threshold, struct esp_err *err)
{
    struct ranked *rank = calloc(n_got ? n_got : 1, sizeof *rank);
    bool *taken = calloc(n_wanted ? n_wanted : 1, sizeof *taken);

    if (!rank || !taken) {
        free(rank);
        free(taken);
        return esp_fail(err, ESP_E_NOMEM, "%zu things found: out of memory", n_got);
    }
    for (size_t j = 0; j < n_got; j++)
        rank[j] = (struct ranked){score[j], j};
    qsort(rank, n_got, sizeof *rank, by_score);
    for (size_t k = 0; k < n_got; k++) {
        const size_t j = rank[k].i;
        size_t best = n_wanted;

        for (size_t i = 0; i < n_wanted; i++)
            if (!taken[i] && overlap[i * n_got + j] >= threshold && overlap[i * n_got + j] > 0 &&
                (best == n_wanted || overlap[i * n_got + j] > overlap[best * n_got + j]))
                best = i;
        hit[j] = best < n_wanted;
        if (hit[j])
            taken[best] = true;
    }
    free(rank);
    free(taken);
    return ESP_OK;
}

/* ---- average precision ---- */

struct entry {
    struct esp_found found;
    size_t i; /* its place before */
};

static int by_rank(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->found.score != y->found.score)
        return x->found.score > y->found.score ? -1 : 1;
    return (x->i > y->i) - (x->i < y->i);
}

static int by_label(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    const int c = strcmp(x->found.label, y->found.label);

    return c ? c : by_rank(a, b);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Of n found, by falling score. From the back, so that the best precision at this recall or a higher one is known. */
static double area(const struct entry *found, size_t n, size_t n_wanted)
{
    size_t n_hits = 0;
    double best = 0, sum = 0;

    for (size_t i = 0; i < n; i++)
        n_hits += found[i].found.hit;
    for (size_t i = n; i-- > 0;) {
        best = fmax(best, (double)n_hits / (double)(i + 1));
        if (found[i].found.hit) {
            sum += best;
            n_hits--;
        }
    }
    return sum / (double)n_wanted;
}

esp_status esp_average_precision(struct esp_ap *out, const struct esp_found *found, size_t n_found,
                                 const char **wanted, size_t n_wanted, struct esp_err *err)
{
    struct entry *entries = calloc(n_found ? n_found : 1, sizeof *entries);
    size_t n_labels = 0, j = 0;
    double sum = 0;

    out->mean = out->micro = NAN;
    if (!entries)
        return esp_fail(err, ESP_E_NOMEM, "%zu things found: out of memory", n_found);
    for (size_t i = 0; i < n_found; i++)
        entries[i] = (struct entry){found[i], i};
    if (n_wanted > 0) {
        qsort(entries, n_found, sizeof *entries, by_rank);
        out->micro = area(entries, n_found, n_wanted);
        qsort(entries, n_found, sizeof *entries, by_label);
        qsort(wanted, n_wanted, sizeof *wanted, by_text);
    }
    for (size_t i = 0, end; i < n_wanted; i = end, n_labels++) {
        size_t last;

        for (end = i + 1; end < n_wanted && strcmp(wanted[end], wanted[i]) == 0;)
            end++;
        while (j < n_found && strcmp(entries[j].found.label, wanted[i]) < 0)
            j++;
        for (last = j; last < n_found && strcmp(entries[last].found.label, wanted[i]) == 0;)
            last++;
        sum += area(entries + j, last - j, end - i);
        j = last;
    }
    if (n_labels > 0)
        out->mean = sum / (double)n_labels;
    free(entries);
    return ESP_OK;
}

/* ---- how sure ---- */

/* Whether the ids from base on, and no others of that range, are those of the codes. */
static bool fits(double *logprob, const uint16_t *codes, size_t n_codes, const uint32_t *ids,
                 const double *logprobs, size_t n_ids, uint32_t base)
{
    size_t n = 0;

    for (size_t i = 0; i < n_ids; i++) {
        if (ids[i] < base || ids[i] - base >= N_CODES)
            continue;
        if (n == n_codes || ids[i] - base != codes[n])
            return false;
        logprob[n++] = logprobs[i];
    }
    return n == n_codes;
}

bool esp_loc_logprobs(double *logprob, const uint16_t *codes, size_t n_codes, const uint32_t *ids,
                      const double *logprobs, size_t n_ids)
{
    if (n_codes == 0)
        return true;
    for (size_t i = 0; i + n_codes <= n_ids; i++)
        if (ids[i] >= codes[0] && fits(logprob, codes, n_codes, ids, logprobs, n_ids, ids[i] - codes[0]))
            return true;
    return false;
}
