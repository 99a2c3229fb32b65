/*
 * Rotary positions and the way into the KV cache against float64, and whole blocks copied in it. Where keys and
 * values must lie is written here from shaders/push.h.
 */
#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/compare.h"
#include "tests/support/ref.h"

#define THETA 10000.0

struct rope_case {
    uint32_t rows, n_head, n_kv, head_dim;
    uint32_t max_pos; /* positions are drawn below this, the last one among them */
    bool rotate;
    uint32_t outliers;
};

/* Two products and a sum of table values that are within 2^-25 of the true cosine: 2^-24 * 3, and one element 8 times
 * as much, or sqrt(H) times where an outlier's own error stands out of its row. Values and unrotated keys are copied. */
#define TOLERANCE (0x1p-24 * 3)

static const struct rope_case cases[] = {
    /* rows, heads, KV heads, head_dim, positions, rotate, outliers */
    {1, 1, 1, 2, 3, true, 0},        {9, 4, 4, 20, 100, true, 0},    {9, 4, 4, 36, 100, false, 0},
    {33, 4, 2, 36, 300, true, 0},    {17, 6, 2, 32, 300, true, 0},   {5, 12, 1, 8, 300, true, 2},
    {40, 16, 16, 72, 256, false, 3}, {40, 8, 1, 256, 8192, true, 0}, {40, 8, 1, 256, 8192, true, 3},
    {65, 8, 4, 256, 4100, true, 3},
};

struct scene {
    uint32_t hp; /* padded head_dim */
    uint32_t block_texels, n_slot;
    uint32_t *pos, *slot;
    struct esp_attn_how how;
};

static uint32_t table_at(uint32_t n_pos, uint32_t head_dim, double (*f)(double))
{
    const uint32_t half = head_dim / 2, half_p = esp_pack_head_dim(head_dim) / 2;
    float *table = esp_rig_alloc((size_t)n_pos * half_p, sizeof *table);
    uint32_t at;

    for (uint32_t pos = 0; pos < n_pos; pos++)
        for (uint32_t j = 0; j < half; j++)
            table[(size_t)pos * half_p + j] = (float)f(pos * pow(THETA, -2.0 * j / head_dim));
    at = esp_rig_vec(table, n_pos * half_p);
    free(table);
    return at;
}

/* Distinct slots, in no order, and positions, the last one among them. */
static void draw_places(struct scene *s, const struct rope_case *c, struct esp_rand *r)
{
    const uint32_t n_block = c->rows / ESP_KV_BLOCK + 3;
    uint32_t *all = esp_rig_alloc(n_block * ESP_KV_BLOCK, sizeof *all);

    s->n_slot = n_block * ESP_KV_BLOCK;
    s->pos = esp_rig_alloc(c->rows, sizeof *s->pos);
    s->slot = esp_rig_alloc(c->rows, sizeof *s->slot);
    for (uint32_t i = 0; i < s->n_slot; i++)
        all[i] = i;
    for (uint32_t i = 0; i < c->rows; i++) {
        const uint32_t j = i + esp_rand_below(r, s->n_slot - i), t = all[i];
        s->slot[i] = all[j];
        all[j] = t;
        s->pos[i] = i == 0 ? c->max_pos - 1 : esp_rand_below(r, c->max_pos);
    }
    free(all);
}

static const float *key_of(const struct scene *s, uint32_t slot, uint32_t n, uint32_t d)
{
    const uint32_t h4 = s->hp / 4, token = slot % ESP_KV_BLOCK;
    const float *block = esp_rig.kv.at + ((size_t)s->how.kv_at + slot / ESP_KV_BLOCK * s->block_texels) * 4;
    return block + (((n * (ESP_KV_BLOCK / 8) + token / 8) * h4 + d / 4) * 8 + token % 8) * 4 + d % 4;
}

static const float *value_of(const struct scene *s, uint32_t slot, uint32_t n, uint32_t d)
{
    const uint32_t h4 = s->hp / 4;
    const float *block = esp_rig.kv.at + ((size_t)s->how.kv_at + slot / ESP_KV_BLOCK * s->block_texels) * 4;
    return block + ((s->how.n_kv * ESP_KV_BLOCK + n * ESP_KV_BLOCK + slot % ESP_KV_BLOCK) * h4 + d / 4) * 4 +
           d % 4;
}

/* Keys and values of every row, without padding. */
static void take_out(const struct scene *s, const struct rope_case *c, float *k, float *v)
{
    const uint32_t h = c->head_dim;

    for (uint32_t t = 0; t < c->rows; t++)
        for (uint32_t n = 0; n < c->n_kv; n++)
            for (uint32_t d = 0; d < h; d++) {
                k[((size_t)t * c->n_kv + n) * h + d] = *key_of(s, s->slot[t], n, esp_head_place(d, h));
                v[((size_t)t * c->n_kv + n) * h + d] = *value_of(s, s->slot[t], n, esp_head_place(d, h));
            }
}

/* Padded dimensions of what was written are zero, what was not written is as it was. */
static void check_rest(const struct scene *s, const struct rope_case *c, float fill)
{
    char *mine = esp_rig_alloc(s->n_slot, 1), *used = esp_rig_alloc(s->hp, 1);

    for (uint32_t t = 0; t < c->rows; t++)
        mine[s->slot[t]] = 1;
    for (uint32_t d = 0; d < c->head_dim; d++)
        used[esp_head_place(d, c->head_dim)] = 1;
    for (uint32_t slot = 0; slot < s->n_slot; slot++)
        for (uint32_t n = 0; n < c->n_kv; n++)
            for (uint32_t d = 0; d < s->hp; d++) {
                const float k = *key_of(s, slot, n, d), v = *value_of(s, slot, n, d);
                if (mine[slot] ? !used[d] && (k != 0 || v != 0) : k != fill || v != fill)
                    fail_msg("slot %u, KV head %u, dimension %u: %g and %g", slot, n, d, (double)k,
                             (double)v);
            }
    free(mine);
    free(used);
}

static bool run_case(const struct rope_case *c, uint64_t seed)
{
    const uint32_t h = c->head_dim, n_all = c->n_head + 2 * c->n_kv;
    const size_t n_q = (size_t)c->rows * c->n_head * h, n_k = (size_t)c->rows * c->n_kv * h;
    const float fill = -5, q_scale = 0.0721687824f;
    struct scene s = {.hp = esp_pack_head_dim(h)};
    struct esp_rand r;
    struct esp_rows rows;
    float *q = esp_rig_alloc(n_q, sizeof *q), *k = esp_rig_alloc(n_k, sizeof *k),
          *v = esp_rig_alloc(n_k, sizeof *v);
    float *got_q = esp_rig_alloc(n_q, sizeof *q), *got_k = esp_rig_alloc(n_k, sizeof *k);
    float *got_v = esp_rig_alloc(n_k, sizeof *v);
    float *x = esp_rig_alloc((size_t)c->rows * n_all * s.hp, sizeof *x);
    double *want_q = esp_rig_alloc(n_q, sizeof *want_q), *want_k = esp_rig_alloc(n_k, sizeof *want_k);
    const double tol = TOLERANCE, row_tol = tol * (c->outliers ? 8 * sqrt(h * c->n_head) : 8);
    char what[128];
    bool ok;

    esp_rand_init(&r, seed);
    esp_rand_fill_outliers(&r, q, c->rows, (size_t)c->n_head * h, 1, c->outliers, 1e4);
    esp_rand_fill_outliers(&r, k, c->rows, (size_t)c->n_kv * h, 1, c->outliers, 1e4);
    esp_rand_fill(&r, v, n_k, 1);
    draw_places(&s, c, &r);
    for (uint32_t t = 0; t < c->rows; t++)
        for (uint32_t n = 0; n < n_all; n++)
            for (uint32_t d = 0; d < h; d++) {
                const float *from = n < c->n_head ? q + ((size_t)t * c->n_head + n) * h
                                    : n < c->n_head + c->n_kv
                                        ? k + ((size_t)t * c->n_kv + n - c->n_head) * h
                                        : v + ((size_t)t * c->n_kv + n - c->n_head - c->n_kv) * h;
                x[((size_t)t * n_all + n) * s.hp + esp_head_place(d, h)] = from[d];
            }
    esp_rig_begin(c->rows, 0, 0);
    rows = esp_rig_rows(c->rows, n_all * s.hp, x);
    s.block_texels = 2 * c->n_kv * ESP_KV_BLOCK * s.hp / 4;
    esp_rig_kv(7, fill); /* a layer before */
    s.how = (struct esp_attn_how){.n_head = c->n_head,
                                  .n_kv = c->n_kv,
                                  .head_dim = s.hp,
                                  .block_stride = s.block_texels,
                                  .rotate = c->rotate,
                                  .q_scale = q_scale};
    s.how.kv_at = esp_rig_kv(s.n_slot / ESP_KV_BLOCK * s.block_texels, fill);
    if (c->rotate) {
        s.how.table = table_at(c->max_pos, h, cos);
        s.how.table_sin = table_at(c->max_pos, h, sin);
    }
    esp_rig_ready();
    esp_op_rope_kv(&esp_rig.rec, rows, &s.how);
    for (uint32_t t = 0; t < c->rows; t++)
        esp_batch_row(&esp_rig.batch, 0, s.pos[t], 0, 0, s.slot[t]);
    esp_rig_run();
    for (uint32_t i = 0; i < 7 * 4; i++)
        assert_true(esp_rig.kv.at[i] == fill);
    esp_rig_get(x, rows, c->rows, n_all * s.hp);
    esp_rig_end();

    for (uint32_t t = 0; t < c->rows; t++)
        for (uint32_t n = 0; n < c->n_head; n++)
            for (uint32_t d = 0; d < h; d++)
                got_q[((size_t)t * c->n_head + n) * h + d] =
                    x[((size_t)t * n_all + n) * s.hp + esp_head_place(d, h)];
    take_out(&s, c, got_k, got_v);
    check_rest(&s, c, fill);
    for (size_t i = 0; i < n_q; i++)
        want_q[i] = q[i];
    for (size_t i = 0; i < n_k; i++)
        want_k[i] = k[i];
    if (c->rotate) {
        esp_ref_rope_f64(want_q, s.pos, c->rows, c->n_head, h, THETA);
        esp_ref_rope_f64(want_k, s.pos, c->rows, c->n_kv, h, THETA);
    }
    for (size_t i = 0; i < n_q; i++)
        want_q[i] *= (double)q_scale;
    snprintf(what, sizeof what, "q of rows=%u heads=%u/%u head_dim=%u positions=%u rotate=%d outliers=%u",
             c->rows, c->n_head, c->n_kv, h, c->max_pos, c->rotate, c->outliers);
    ok = esp_check_close(what, got_q, want_q, c->rows, (size_t)c->n_head * h, tol, row_tol);
    what[0] = 'k';
    ok &= esp_check_close(what, got_k, want_k, c->rows, (size_t)c->n_kv * h, c->rotate ? tol : 0,
                          c->rotate ? row_tol : 0);
    assert_memory_equal(got_v, v, n_k * sizeof *v);
    free(q);
    free(k);
    free(v);
    free(got_q);
    free(got_k);
    free(got_v);
    free(x);
    free(want_q);
    free(want_k);
    free(s.pos);
    free(s.slot);
    return ok;
}

static void test_rope_kv(void **state)
{
    uint32_t n_bad = 0;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        n_bad += !run_case(&cases[i], 4000 + i);
    assert_int_equal(n_bad, 0);
}

/* Blocks copied in every layer, blocks beside them untouched; no pair is no work. */
static void test_kv_copy(void **state)
{
    static const struct {
        uint32_t block_texels, n_layer, n_block, n_pair;
        uint32_t pair[3][2];
    } copies[] = {
        {64, 1, 3, 1, {{0, 2}}},
        {96, 3, 5, 2, {{4, 1}, {4, 0}}},
        {4096, 2, 4, 3, {{0, 1}, {0, 2}, {0, 3}}},
        {2048, 18, 3, 0, {{0, 0}}},
        {5, 2, 3, 1, {{1, 2}}},
    };

    for (size_t i = 0; i < sizeof copies / sizeof copies[0]; i++) {
        const uint32_t layer = copies[i].n_block * copies[i].block_texels;
        const size_t n = (size_t)copies[i].n_layer * layer * 4, block = (size_t)copies[i].block_texels * 4;
        struct esp_rand r;
        float *want;
        esp_rig_begin(1, 4, 0);
        esp_rig_kv(copies[i].n_layer * layer, 0);
        esp_rand_init(&r, 4100 + i);
        esp_rand_fill(&r, esp_rig.kv.at, n, 1);
        want = esp_rig_alloc(n, sizeof *want);
        memcpy(want, esp_rig.kv.at, n * sizeof *want);
        esp_rig_ready();
        esp_op_kv_copy(&esp_rig.rec, copies[i].block_texels, layer, copies[i].n_layer);
        for (uint32_t p = 0; p < copies[i].n_pair; p++) {
            esp_batch_copy(&esp_rig.batch, copies[i].pair[p][0], copies[i].pair[p][1]);
            for (uint32_t l = 0; l < copies[i].n_layer; l++)
                memcpy(want + (size_t)l * layer * 4 + copies[i].pair[p][1] * block,
                       want + (size_t)l * layer * 4 + copies[i].pair[p][0] * block, block * sizeof *want);
        }
        esp_rig_run();
        assert_memory_equal(esp_rig.kv.at, want, n * sizeof *want);
        esp_rig_end();
        free(want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope_kv), cmocka_unit_test(test_kv_copy)};
    return esp_rig_main("rope_kv", tests, sizeof tests / sizeof tests[0]);
}
