/*
 * Attention over paged keys and values against float64: bidirectional, prefix-LM, causal, sliding window, soft-cap,
 * decode rows; every way that heads share a tile; shuffled blocks; several sequences in one batch; the published
 * shapes. And that a row's bits are its own affair, whoever shares its tile.
 *
 * Keys and values are laid out here by what shaders/push.h says, not by rope_kv.comp.
 */
#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/compare.h"
#include "tests/support/ref.h"

#define MAX_SEQS 4

/* A sequence: rows at positions [pos0, pos0 + n_row), of which those below n_prefix see the whole prefix. */
struct seq {
    uint32_t pos0, n_row, n_prefix;
};

struct attn_case {
    uint32_t n_head, n_kv, head_dim;
    uint32_t window; /* 0: none */
    float softcap;   /* 0: none */
    double q_std;    /* of scaled queries: scores have q_std * sqrt(head_dim) */
    uint32_t outliers;
    struct seq seqs[MAX_SEQS];
};

/*
 * Scores of a few units are off by 2^-24 times themselves and the walk of their sum, and the weight exp(score) by as
 * much relatively; a weighted sum of S values is a walk of its own, of about 0.25 * 2^-24 * sqrt(S). Tolerated: three
 * times that and 2^-24 * 16 for scores of ordinary size, growing with the scores where queries have outliers: there a
 * score of 100 is off by 1e-5, and its weight by as much. One element: 10 times, and 60 where a few channels of the
 * values, 1e4 times as large, stand above the scale of their row.
 */
static double tolerance(const struct attn_case *c, uint32_t n_pos)
{
    const double score = c->q_std * sqrt(c->head_dim);
    return 0x1p-24 * (16 + 0.75 * sqrt(n_pos) + 4 * (c->outliers ? 30 * score : score));
}

/* A driver compiles a kernel for each head_dim, heads that share a KV head, window and soft-cap: few of each here. */
static const struct attn_case cases[] = {
    /* heads, KV heads, head_dim, window, softcap, std of q, outliers, {first position, rows, prefix} ... */
    /* bidirectional, as SigLIP's: less than a block of positions, a ragged one, several; So400m's heads, 256 positions */
    {4, 4, 36, 0, 0, 0.2, 0, {{0, 16, 16}}},
    {4, 4, 36, 0, 0, 0.2, 0, {{0, 36, 36}}},
    {2, 2, 36, 0, 0, 0.2, 0, {{0, 64, 64}}},
    {16, 16, 72, 0, 0, 0.12, 0, {{0, 256, 256}}},
    {3, 3, 72, 0, 0, 0.12, 0, {{0, 100, 100}}},
    /* the smallest heads */
    {1, 1, 2, 0, 0, 1, 0, {{0, 9, 9}}},
    {3, 3, 8, 0, 0, 0.5, 0, {{0, 33, 7}}},
    /* grouped heads: two, three (no divisor of the tile), eight, twelve (more than a tile) that share a KV head */
    {4, 2, 32, 0, 0, 0.2, 0, {{0, 37, 20}}},
    {6, 2, 32, 0, 0, 0.2, 0, {{0, 37, 20}}},
    {8, 1, 256, 0, 0, 0.0625, 0, {{0, 66, 40}}},
    {24, 2, 32, 0, 0, 0.2, 0, {{0, 13, 5}}},
    /* causal; decode rows after a prefix; the suffix of a scored one */
    {8, 1, 256, 0, 0, 0.0625, 0, {{0, 70, 1}}},
    {8, 1, 256, 0, 0, 0.0625, 0, {{276, 1, 270}}},
    {4, 2, 32, 0, 0, 0.2, 0, {{100, 1, 40}}},
    {8, 1, 256, 0, 0, 0.0625, 0, {{260, 12, 262}}},
    /* several sequences at once */
    {8, 1, 256, 0, 0, 0.0625, 0, {{31, 1, 20}, {32, 1, 20}, {63, 1, 5}, {64, 1, 64}}},
    {4, 2, 32, 0, 0, 0.2, 0, {{0, 40, 30}, {77, 1, 60}, {0, 5, 5}, {33, 9, 20}}},
    {4, 4, 36, 0, 0, 0.2, 0, {{0, 11, 11}, {0, 3, 3}, {0, 9, 9}}},
    {12, 1, 32, 0, 0, 0.2, 0, {{9, 2, 5}, {0, 3, 3}, {70, 3, 60}}},
    /* soft-cap and window, as Gemma 2's */
    {8, 4, 256, 4096, 50, 0.5, 0, {{0, 70, 30}}},
    {8, 4, 256, 40, 50, 0.5, 0, {{100, 20, 30}, {130, 1, 64}}},
    {4, 2, 32, 0, 5, 1, 0, {{0, 70, 30}, {64, 1, 20}}},
    {4, 2, 32, 16, 0, 0.2, 0, {{0, 70, 30}}},
    {4, 2, 32, 1, 0, 0.2, 0, {{64, 3, 2}}},
    {4, 2, 32, 7, 5, 1, 0, {{0, 70, 30}, {99, 1, 20}, {31, 3, 2}}},
    /* long: 1024 image tokens and what follows; 4096 */
    {8, 1, 256, 0, 0, 0.0625, 0, {{1040, 9, 1033}}},
    {16, 16, 72, 0, 0, 0.12, 0, {{0, 3, 1024}}},
    {2, 2, 72, 0, 0, 0.12, 0, {{4090, 2, 4096}}},
    /* outliers: scores far apart, where all but one weight is 0; values 1e4 times as large */
    {4, 2, 32, 0, 0, 0.2, 2, {{0, 70, 30}}},
    {16, 16, 72, 0, 0, 0.12, 3, {{0, 40, 40}}},
    {8, 1, 256, 0, 0, 0.0625, 3, {{0, 40, 30}, {90, 1, 60}}},
    {8, 4, 256, 40, 50, 0.5, 2, {{0, 70, 30}}},
};

/* How rows go through: as those of a prefill; as decode rows; as decode rows of a step that is too large to split. Devices
 * that make no difference get the first one alone. */
enum mode { MANY, FEW, WHOLE, N_MODE };

static const char *const mode_names[N_MODE] = {"many", "few", "whole"};

/* A case's numbers. */
struct scene {
    const struct attn_case *c;
    enum mode mode;
    uint32_t n_seq, n_rows, n_blocks, n_pos[MAX_SEQS];
    float *q;           /* f32[rows, N, H] of all sequences */
    float *k[MAX_SEQS]; /* f32[positions, K, H] */
    float *v[MAX_SEQS];
    uint32_t *blocks; /* of all sequences, one after the other: where each block of positions lies */
    struct esp_rows rq, ry;
    struct esp_attn_how how;
};

static uint32_t hi_of(const struct seq *s, uint32_t pos)
{
    return pos < s->n_prefix ? s->n_prefix : pos + 1;
}

static uint32_t lo_of(const struct seq *s, uint32_t pos, uint32_t window)
{
    return pos >= s->n_prefix && window && pos + 1 > window ? pos + 1 - window : 0;
}

static enum mode last_mode(const struct attn_case *c)
{
    return esp_attn_part_texels(esp_rig.vk, c->n_head, c->n_kv, esp_pack_head_dim(c->head_dim)) ? WHOLE
                                                                                                : MANY;
}

static uint32_t tile_rows(const struct scene *s)
{
    return esp_attn_tile_rows(esp_rig.vk, s->mode != MANY, s->c->n_head, s->c->n_kv,
                              esp_pack_head_dim(s->c->head_dim));
}

static void scene_make(struct scene *s, const struct attn_case *c, enum mode mode, uint64_t seed)
{
    const size_t row = (size_t)c->n_kv * c->head_dim;
    struct esp_rand r;

    memset(s, 0, sizeof *s);
    s->c = c;
    s->mode = mode;
    esp_rand_init(&r, seed);
    for (; s->n_seq < MAX_SEQS && c->seqs[s->n_seq].n_row; s->n_seq++) {
        const struct seq *q = &c->seqs[s->n_seq];
        uint32_t n = hi_of(q, q->pos0 + q->n_row - 1);
        n = n > q->n_prefix ? n : q->n_prefix;
        s->n_pos[s->n_seq] = n;
        s->n_rows += q->n_row;
        s->n_blocks += (n + ESP_KV_BLOCK - 1) / ESP_KV_BLOCK;
        s->k[s->n_seq] = esp_rig_alloc(n * row, sizeof(float));
        s->v[s->n_seq] = esp_rig_alloc(n * row, sizeof(float));
        esp_rand_fill(&r, s->k[s->n_seq], n * row, 1);
        esp_rand_fill_outliers(&r, s->v[s->n_seq], n, row, 1, c->outliers, 1e4);
    }
    s->q = esp_rig_alloc((size_t)s->n_rows * c->n_head * c->head_dim, sizeof(float));
    esp_rand_fill(&r, s->q, (size_t)s->n_rows * c->n_head * c->head_dim, c->q_std);
    for (uint32_t t = 0; c->outliers && t < s->n_rows; t++)
        for (uint32_t n = 0; n < c->n_head; n++) /* a dimension of each head, over every third row */
            s->q[((size_t)t * c->n_head + n) * c->head_dim + (n * 7) % c->head_dim] *= t % 3 ? 1 : 1e3f;
    s->blocks = esp_rig_alloc(s->n_blocks, sizeof *s->blocks);
    for (uint32_t i = 0; i < s->n_blocks; i++)
        s->blocks[i] = i;
    for (uint32_t i = s->n_blocks; i > 1; i--) {
        const uint32_t j = esp_rand_below(&r, i), t = s->blocks[i - 1];
        s->blocks[i - 1] = s->blocks[j];
        s->blocks[j] = t;
    }
}

static void scene_free(struct scene *s)
{
    for (uint32_t i = 0; i < s->n_seq; i++) {
        free(s->k[i]);
        free(s->v[i]);
    }
    free(s->q);
    free(s->blocks);
}

/* One position's keys and values into their block, as push.h lays them out. */
static void put_kv(const struct scene *s, float *block, uint32_t token, const float *k, const float *v)
{
    const uint32_t h4 = s->how.head_dim / 4;
    float *values = block + (size_t)s->c->n_kv * ESP_KV_BLOCK * h4 * 4;

    for (uint32_t n = 0; n < s->c->n_kv; n++)
        for (uint32_t d = 0; d < h4 * 4; d++) {
            float *key =
                block + (((n * (ESP_KV_BLOCK / 8) + token / 8) * h4 + d / 4) * 8 + token % 8) * 4 + d % 4;
            float *value = values + ((n * ESP_KV_BLOCK + token) * h4 + d / 4) * 4 + d % 4;
            *key = *value = 0;
        }
    for (uint32_t n = 0; n < s->c->n_kv; n++)
        for (uint32_t h = 0; h < s->c->head_dim; h++) {
            const uint32_t d = esp_head_place(h, s->c->head_dim);
            float *key =
                block + (((n * (ESP_KV_BLOCK / 8) + token / 8) * h4 + d / 4) * 8 + token % 8) * 4 + d % 4;
            float *value = values + ((n * ESP_KV_BLOCK + token) * h4 + d / 4) * 4 + d % 4;
            *key = k[n * s->c->head_dim + h];
            *value = v[n * s->c->head_dim + h];
        }
}

/* As many as there are when every row is a tile. */
static uint32_t n_items(const struct scene *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_seq; i++)
        n += s->c->seqs[i].n_row * ((s->n_pos[i] + ESP_SLICE - 1) / ESP_SLICE);
    return n;
}

/* Lays the scene out on the device; the batch is the caller's to fill. */
static void scene_load(struct scene *s)
{
    const struct attn_case *c = s->c;
    const uint32_t hp = esp_pack_head_dim(c->head_dim), width = c->n_head * hp;
    const uint32_t block_texels = 2 * c->n_kv * ESP_KV_BLOCK * hp / 4;
    float *rows = esp_rig_alloc((size_t)s->n_rows * width, sizeof *rows);
    const uint32_t max_items = s->mode == FEW ? n_items(s) : 0;
    uint32_t block = 0, before;

    for (size_t i = 0; i < (size_t)s->n_rows * c->n_head; i++)
        for (uint32_t h = 0; h < c->head_dim; h++)
            rows[i * hp + esp_head_place(h, c->head_dim)] = s->q[i * c->head_dim + h];
    esp_rig_begin(s->n_rows, 0, s->n_blocks + max_items * ESP_ITEM);
    s->rq = esp_rig_rows(s->n_rows, width, rows);
    s->ry = esp_rig_rows(s->n_rows, width, NULL);
    before = esp_rig_kv(5, NAN);
    s->how = (struct esp_attn_how){.n_head = c->n_head,
                                   .n_kv = c->n_kv,
                                   .head_dim = hp,
                                   .block_stride = block_texels,
                                   .q_scale = 1,
                                   .softcap = c->softcap,
                                   .window = c->window != 0,
                                   .few = s->mode != MANY,
                                   .whole = s->mode == WHOLE};
    if (s->mode == FEW) /* what is left over there is no number */
        s->how.parts_at =
            esp_rig_rows(max_items, 4 * esp_attn_part_texels(esp_rig.vk, c->n_head, c->n_kv, hp), NULL).at;
    s->how.kv_at =
        esp_rig_kv(s->n_blocks * block_texels, 3e38f); /* what is not a position's own is left over */
    assert_int_equal(before, 0);
    esp_rig_kv(5, NAN);
    for (uint32_t i = 0; i < s->n_seq; i++) {
        const size_t row = (size_t)c->n_kv * c->head_dim;
        for (uint32_t pos = 0; pos < s->n_pos[i]; pos++)
            put_kv(s,
                   esp_rig.kv.at +
                       ((size_t)s->how.kv_at + s->blocks[block + pos / ESP_KV_BLOCK] * block_texels) * 4,
                   pos % ESP_KV_BLOCK, s->k[i] + pos * row, s->v[i] + pos * row);
        block += (s->n_pos[i] + ESP_KV_BLOCK - 1) / ESP_KV_BLOCK;
    }
    free(rows);
    esp_rig_ready();
    esp_op_attention(&esp_rig.rec, s->ry, s->rq, &s->how);
}

/* Rows of every sequence, in tiles of up to per_tile. */
static void scene_batch(const struct scene *s, uint32_t per_tile)
{
    uint32_t row0 = 0, block = 0;

    esp_batch_begin(&esp_rig.batch);
    for (uint32_t i = 0; i < s->n_seq; i++) {
        const struct seq *q = &s->c->seqs[i];
        const uint32_t n_blocks = (s->n_pos[i] + ESP_KV_BLOCK - 1) / ESP_KV_BLOCK;
        const uint32_t table = esp_batch_table(&esp_rig.batch, s->blocks + block, n_blocks);
        for (uint32_t pos = q->pos0; pos < q->pos0 + q->n_row; pos++)
            esp_batch_row(&esp_rig.batch, 0, pos, hi_of(q, pos), lo_of(q, pos, s->c->window), 0);
        esp_batch_tiles(&esp_rig.batch, row0, q->n_row, table, per_tile);
        row0 += q->n_row;
        block += n_blocks;
    }
    if (s->mode == FEW)
        assert_true(esp_batch_items(&esp_rig.batch, n_items(s)));
}

/* The rows as they came back, without the padding of heads, which must be zero. */
static void scene_get(const struct scene *s, float *out)
{
    const uint32_t hp = s->how.head_dim, h = s->c->head_dim;
    float *rows = esp_rig_alloc((size_t)s->n_rows * s->c->n_head * hp, sizeof *rows);

    for (uint32_t t = 0; t < s->n_rows; t++) /* of padding after the last head nothing is promised here */
        memcpy(rows + (size_t)t * s->c->n_head * hp,
               esp_rig.act.at + ((size_t)s->ry.at + (size_t)t * s->ry.stride) * 4,
               (size_t)s->c->n_head * hp * sizeof *rows);
    for (size_t i = 0; i < (size_t)s->n_rows * s->c->n_head; i++) {
        for (uint32_t d = 0; d < h; d++) {
            out[i * h + d] = rows[i * hp + esp_head_place(d, h)];
            rows[i * hp + esp_head_place(d, h)] = 0;
        }
        for (uint32_t d = 0; d < hp; d++)
            if (rows[i * hp + d] != 0)
                fail_msg("padding of head %zu is %g", i, rows[i * hp + d]);
    }
    free(rows);
}

/* bits: what the mode before gave, or NULL */
static bool run_case(const struct attn_case *c, enum mode mode, float **bits, uint64_t seed)
{
    const size_t width = (size_t)c->n_head * c->head_dim;
    struct scene s;
    uint32_t row0 = 0;
    float *y;
    double *want;
    char what[160];
    double tol;
    bool ok;

    scene_make(&s, c, mode, seed);
    scene_load(&s);
    scene_batch(&s, tile_rows(&s));
    esp_rig_run();
    y = esp_rig_alloc(s.n_rows * width, sizeof *y);
    want = esp_rig_alloc(s.n_rows * width, sizeof *want);
    scene_get(&s, y);
    esp_rig_end();
    for (uint32_t i = 0; i < s.n_seq; i++) {
        const struct seq *q = &c->seqs[i];
        struct esp_ref_span *span = esp_rig_alloc(q->n_row, sizeof *span);
        for (uint32_t t = 0; t < q->n_row; t++)
            span[t] = (struct esp_ref_span){lo_of(q, q->pos0 + t, c->window), hi_of(q, q->pos0 + t)};
        esp_ref_attention(want + row0 * width, s.q + row0 * width, s.k[i], s.v[i], span, q->n_row, c->n_head,
                          c->n_kv, c->head_dim, 1, (double)c->softcap);
        row0 += q->n_row;
        free(span);
    }
    snprintf(what, sizeof what,
             "case %u, %s: heads=%u/%u head_dim=%u window=%u softcap=%g outliers=%u, %u sequences, %u rows",
             (unsigned)(c - cases), mode_names[mode], c->n_head, c->n_kv, c->head_dim, c->window,
             (double)c->softcap, c->outliers, s.n_seq, s.n_rows);
    tol = tolerance(c, s.n_pos[0]);
    ok = esp_check_close(what, y, want, s.n_rows, width, tol, (c->outliers ? 60 : 10) * tol);
    if (mode == WHOLE && memcmp(y, *bits, s.n_rows * width * sizeof *y) != 0)
        fail_msg("%s: other bits than in slices", what);
    free(*bits);
    *bits = y;
    free(want);
    scene_free(&s);
    return ok;
}

static void test_attention(void **state)
{
    uint32_t n_bad = 0;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float *bits = NULL;
        for (enum mode mode = MANY; mode <= last_mode(&cases[i]); mode++)
            n_bad += !run_case(&cases[i], mode, &bits, 3000 + i);
        free(bits);
    }
    assert_int_equal(n_bad, 0);
}

static void check_bits_of_a_row(const struct attn_case *c, enum mode mode, uint64_t seed)
{
    const size_t n = (size_t)c->n_head * c->head_dim;
    struct scene s;
    float *one, *many;

    scene_make(&s, c, mode, seed);
    one = esp_rig_alloc(s.n_rows * n, sizeof *one);
    many = esp_rig_alloc(s.n_rows * n, sizeof *many);
    scene_load(&s);
    scene_batch(&s, tile_rows(&s));
    esp_rig_run();
    scene_get(&s, many);
    scene_batch(&s, 1);
    esp_rig_run();
    scene_get(&s, one);
    esp_rig_end();
    for (uint32_t t = 0; t < s.n_rows; t++)
        if (memcmp(one + t * n, many + t * n, n * sizeof *one) != 0)
            fail_msg("%u/%u heads of %u, %s: row %u has other bits in a tile of its own", c->n_head, c->n_kv,
                     c->head_dim, mode_names[mode], t);
    free(one);
    free(many);
    scene_free(&s);
}

/* Each row in a tile of its own gives the same bits as rows together: the tile's other rows do not matter. */
static void test_bits_of_a_row(void **state)
{
    static const struct attn_case alone[] = {
        {4, 4, 36, 0, 0, 0.2, 0, {{0, 36, 36}}},
        {4, 2, 32, 7, 5, 1, 0, {{0, 70, 30}, {99, 1, 20}, {31, 3, 2}}},
        {4, 2, 32, 0, 0, 0.15, 2, {{0, 45, 20}}},
        {4, 2, 32, 20, 0, 0.15, 0, {{40, 45, 50}}},
        {6, 2, 32, 0, 0, 0.15, 0, {{40, 45, 50}}},
    };

    for (size_t i = 0; i < sizeof alone / sizeof alone[0]; i++)
        for (enum mode mode = MANY; mode <= last_mode(&alone[i]); mode++)
            check_bits_of_a_row(&alone[i], mode, 3500 + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention),
                                       cmocka_unit_test(test_bits_of_a_row)};
    return esp_rig_main("attention", tests, sizeof tests / sizeof tests[0]);
}
