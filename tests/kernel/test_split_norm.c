/*
 * RMSNorms that products of a few rows do by halves, on the kernels of GPUs and those of the direct class with quantised weights,
 * where integers go from product to product: what comes out against float64, and that it is the same to the bit however many rows
 * a workgroup takes and whoever did the first half.
 */
#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/compare.h"
#include "tests/support/ref.h"

struct split_case {
    uint32_t width, hidden; /* D, and rows of the matrix behind the norm (pairs of them with GEGLU) */
    uint32_t rows;
    enum esp_wtype type;
    bool geglu;
    uint32_t outliers;
    uint32_t parts;
};

static const struct split_case cases[] = {
    {144, 40, 1, ESP_W_STORED, false, 0, 1},   {144, 96, 17, ESP_W_STORED, true, 3, 1},
    {33, 72, 5, ESP_W_STORED, false, 0, 1},    {404, 64, 9, ESP_W_Q8, true, 3, 2},
    {216, 144, 7, ESP_W_Q4, false, 3, 3},      {1152, 304, 3, ESP_W_Q4, true, 4, 1},
    {2048, 256, 5, ESP_W_STORED, false, 4, 2}, {2048, 64, 9, ESP_W_Q8, false, 0, 1},
    {96, 192, 3, ESP_W_Q4, true, 0, 2},        {96, 160, 5, ESP_W_Q4, true, 0, 2},
    {33, 80, 6, ESP_W_Q4, true, 0, 1},         {608, 336, 4, ESP_W_Q8, true, 0, 1},
};

/* One run's rows as the device left them, and what it should be. */
struct result {
    float *x, *y[2]; /* f32[rows, D], and f32[rows, hidden] behind the first norm and behind the second */
    float *fixed;    /* direct class: y[1] once more, left as integers */
};

static bool direct(void)
{
    return esp_rig.vk->cls == ESP_VK_DIRECT;
}

static void make_matrix(struct esp_weights_made *w, struct esp_pack_spec *spec, struct esp_rand *r,
                        uint32_t n, uint32_t k, enum esp_wtype type, bool geglu)
{
    *spec = (struct esp_pack_spec){
        .n_part = geglu ? 2 : 1, .want = type, .cls = esp_rig.vk->cls, .interleave = geglu};
    for (uint32_t i = 0; i < spec->n_part; i++) {
        esp_weights_make(&w[i], r, ESP_BF16, n, k, 1 / sqrt(k));
        spec->part[i].tensor = &w[i].tensor;
    }
}

static const float *row_of(struct esp_rows rows, uint32_t t)
{
    return esp_rig.act.at + ((size_t)rows.at + (size_t)t * rows.stride) * 4;
}

/* Rows as shaders/fixed.glsl has them; every block must have the sum of its integers, none larger than `most`. */
static void get_fixed(float *out, struct esp_rows rows, uint32_t n_row, uint32_t width, int most)
{
    for (uint32_t t = 0; t < n_row; t++) {
        for (uint32_t b = 0; b < width; b += 32) {
            const float *block = row_of(rows, t) + b;
            int16_t a[32];
            int all = 0;
            memcpy(a, block, sizeof a);
            for (uint32_t k = 0; k < 32; k++) {
                const int v = a[2 * (k / 16 * 8 + k % 8) + k / 8 % 2];
                assert_true(v >= -most && v <= most);
                all += v;
                if (b + k < width)
                    out[(size_t)t * width + b + k] = block[16] * (float)v;
                else
                    assert_int_equal(v, 0);
            }
            assert_true(block[17] == (float)all);
        }
    }
}

/* y[0] = F N(x); x += O a; y[1] = F N(x), norms with weights n[0] and n[1]; `few` rows at a time. */
static void run(struct result *out, const struct split_case *c, const struct esp_pack_spec *f,
                const struct esp_pack_spec *o, const float *x, const float *a, float *const n[2],
                uint32_t few)
{
    const uint32_t padded = (uint32_t)esp_round_up(c->width, 32);
    const uint32_t n_square = esp_norm_squares(esp_rig.vk, c->width);
    struct esp_matmul_how end = {.epilogue = c->geglu ? ESP_EPI_GEGLU : ESP_EPI_NONE,
                                 .few = few,
                                 .count = ESP_COUNT_ROWS,
                                 .norm = {.how = ESP_SPLIT_END, .width = c->width, .eps = 1e-6f}};
    struct esp_matmul_how add = {
        .epilogue = ESP_EPI_ADD, .few = few, .count = ESP_COUNT_ROWS, .norm.how = ESP_SPLIT_BEGIN};
    struct esp_rows rx, ra, ry[2], rfixed, z[3], squares[3];
    struct esp_split_norm begin[3];
    struct esp_mat mf, mo;
    uint32_t most;

    esp_rig_begin(c->rows, 0, 0);
    rx = esp_rig_rows(c->rows, c->width, x);
    ra = esp_rig_rows(c->rows, c->width, a);
    for (uint32_t i = 0; i < 3; i++) {
        z[i] = esp_rig_rows(c->rows, c->width, NULL);
        squares[i] = esp_rig_rows(c->rows, n_square, NULL);
        begin[i] = (struct esp_split_norm){
            .how = ESP_SPLIT_BEGIN, .z = z[i], .squares = squares[i], .width = c->width};
    }
    for (uint32_t i = 0; i < 2; i++)
        ry[i] = esp_rig_rows(c->rows, c->hidden, NULL);
    rfixed = esp_rig_rows(c->rows, c->hidden, NULL);
    begin[0].weight = esp_rig_vec(n[0], c->width);
    begin[1].weight = begin[2].weight = esp_rig_vec(n[1], c->width);
    mf = esp_rig_mat(f, c->parts, 1);
    mo = esp_rig_mat(o, c->parts, 1);
    most = esp_mat_fixed(esp_rig.vk, &mf);
    assert_true(!direct() || (most > 0 && esp_mat_fixed(esp_rig.vk, &mo) > 0));
    end.fixed = most > 0;
    add.most = most;
    esp_rig_ready();
    esp_op_norm_begin(&esp_rig.rec, rx, &begin[0], most);
    end.norm.squares = squares[0];
    esp_op_matmul(&esp_rig.rec, ry[0], z[0], &mf, &end);
    add.norm = begin[1];
    esp_op_matmul(&esp_rig.rec, rx, ra, &mo, &add);
    esp_op_norm_begin(&esp_rig.rec, rx, &begin[2], most); /* the same again, as where a stage begins */
    end.norm.squares = squares[1];
    esp_op_matmul(&esp_rig.rec, ry[1], z[1], &mf, &end);
    if (direct() && c->geglu) {
        end.most = most;
        esp_op_matmul(&esp_rig.rec, rfixed, z[1], &mf, &end);
    }
    esp_rig.batch.count[ESP_COUNT_ROWS] = c->rows;
    esp_rig_run();
    esp_rig_get(out->x, rx, c->rows, c->width);
    for (uint32_t i = 0; i < 2; i++)
        esp_rig_get(out->y[i], ry[i], c->rows, c->hidden);
    if (direct() && c->geglu)
        get_fixed(out->fixed, rfixed, c->rows, c->hidden, (int)most);
    for (uint32_t t = 0; t < c->rows; t++) {
        if (memcmp(row_of(z[1], t), row_of(z[2], t), padded * sizeof(float)) != 0)
            fail_msg("row %u: a product begins a norm otherwise than the kernel that only does that", t);
        if (memcmp(row_of(squares[1], t), row_of(squares[2], t), n_square * sizeof(float)) != 0)
            fail_msg("row %u: a product's squares are other ones", t);
    }
    esp_rig_end();
}

/* In the direct class it is x times the norm's weights that is rounded, to integers. */
static double expect(double *out, const struct split_case *c, const struct esp_weights_made *w,
                     const float *x, const float *norm)
{
    const size_t n = (size_t)c->rows * c->width, n_y = (size_t)c->rows * c->hidden;
    double *normed = esp_rig_alloc(n, sizeof *normed), *up = esp_rig_alloc(n_y, sizeof *up);
    float *rounded = esp_rig_alloc(n, sizeof *rounded);
    double more = 0;

    esp_ref_rmsnorm(normed, x, norm, c->rows, c->width, 1e-6);
    for (size_t i = 0; i < n; i++)
        rounded[i] = direct() ? x[i] * (1 + norm[i % c->width]) : (float)normed[i];
    if (direct()) {
        more = esp_rig_round_blocks(rounded, c->rows, c->width, c->type);
        for (uint32_t t = 0; t < c->rows; t++) {
            double sum = 0;
            for (size_t i = (size_t)t * c->width; i < (size_t)(t + 1) * c->width; i++)
                sum += (double)x[i] * x[i];
            for (size_t i = (size_t)t * c->width; i < (size_t)(t + 1) * c->width; i++)
                rounded[i] = (float)(rounded[i] / sqrt(sum / c->width + 1e-6));
        }
    }
    esp_ref_matmul(out, rounded, w[0].values, NULL, c->rows, c->hidden, c->width);
    if (c->geglu) {
        esp_ref_matmul(up, rounded, w[1].values, NULL, c->rows, c->hidden, c->width);
        for (size_t i = 0; i < n_y; i++)
            out[i] = esp_ref_gelu(out[i]) * up[i];
    }
    free(normed);
    free(up);
    free(rounded);
    return more;
}

static void result_make(struct result *r, const struct split_case *c)
{
    r->x = esp_rig_alloc((size_t)c->rows * c->width, sizeof(float));
    for (uint32_t i = 0; i < 2; i++)
        r->y[i] = esp_rig_alloc((size_t)c->rows * c->hidden, sizeof(float));
    r->fixed = esp_rig_alloc((size_t)c->rows * c->hidden, sizeof(float));
}

static void result_free(struct result *r)
{
    free(r->x);
    free(r->y[0]);
    free(r->y[1]);
    free(r->fixed);
}

static void run_case(const struct split_case *c, uint64_t seed)
{
    const size_t n = (size_t)c->rows * c->width, n_y = (size_t)c->rows * c->hidden;
    /* as of products (test_matmul.c), and the reference's rounding of what is normed */
    double more, tol = 0x1p-24 * (12 + 0.75 * sqrt(c->width)), row_tol = tol * (c->geglu ? 40 : 8);
    struct esp_weights_made wf[2] = {0}, wo[2] = {0};
    struct esp_pack_spec f, o;
    struct result first, other;
    struct esp_rand r;
    float *x = esp_rig_alloc(n, sizeof *x), *a = esp_rig_alloc(n, sizeof *a);
    float *norm[2] = {esp_rig_alloc(c->width, sizeof(float)), esp_rig_alloc(c->width, sizeof(float))};
    double *want = esp_rig_alloc(n > n_y ? n : n_y, sizeof *want);
    char what[96];

    esp_rand_init(&r, seed);
    esp_rand_fill_outliers(&r, x, c->rows, c->width, 1, c->outliers, 1e4);
    esp_rand_fill(&r, a, n, 1);
    esp_rand_fill(&r, norm[0], c->width, 0.5);
    esp_rand_fill(&r, norm[1], c->width, 0.5);
    make_matrix(wf, &f, &r, c->hidden, c->width, c->type, c->geglu);
    make_matrix(wo, &o, &r, c->width, c->width, c->type, false);
    result_make(&first, c);
    result_make(&other, c);
    run(&first, c, &f, &o, x, a, norm, 1);
    for (uint32_t few = 2; few <= 8; few *= 2) {
        if (esp_rig.slow && few != 8 && c->width > 300)
            continue; /* to compile it takes longer than to run */
        run(&other, c, &f, &o, x, a, norm, few);
        assert_memory_equal(other.x, first.x, n * sizeof *x);
        assert_memory_equal(other.y[0], first.y[0], n_y * sizeof *x);
        assert_memory_equal(other.y[1], first.y[1], n_y * sizeof *x);
        if (direct() && c->geglu)
            assert_memory_equal(other.fixed, first.fixed, n_y * sizeof *x);
    }
    for (uint32_t i = 0; i < f.n_part; i++)
        esp_weights_want(&wf[i], c->type);
    esp_weights_want(&wo[0], c->type);
    snprintf(what, sizeof what, "D=%u hidden=%u rows=%u %s%s outliers=%u", c->width, c->hidden, c->rows,
             esp_wtype_name(c->type), c->geglu ? " geglu" : "", c->outliers);
    more = expect(want, c, wf, x, norm[0]);
    tol += more;
    row_tol += 8 * more;
    assert_true(esp_check_close(what, first.y[0], want, c->rows, c->hidden, tol, row_tol));
    if (direct())
        esp_rig_round_blocks(a, c->rows, c->width, c->type);
    esp_ref_matmul(want, a, wo[0].values, NULL, c->rows, c->width, c->width);
    for (size_t i = 0; i < n; i++)
        want[i] += x[i];
    assert_true(esp_check_close(what, first.x, want, c->rows, c->width, tol, row_tol));
    expect(want, c, wf, first.x, norm[1]); /* of x as the device has it */
    assert_true(esp_check_close(what, first.y[1], want, c->rows, c->hidden, tol, row_tol));
    if (direct() && c->geglu) { /* the same to the bit, in steps of a block's largest */
        esp_rig_round_blocks(first.y[1], c->rows, c->hidden, c->type);
        for (size_t i = 0; i < n_y; i++)
            want[i] = first.y[1][i];
        assert_true(esp_check_close(what, first.fixed, want, c->rows, c->hidden, more, 8 * more));
    }
    for (uint32_t i = 0; i < 2; i++) {
        esp_weights_free(&wf[i]);
        esp_weights_free(&wo[i]);
        free(norm[i]);
    }
    result_free(&first);
    result_free(&other);
    free(x);
    free(a);
    free(want);
}

static void test_halves(void **state)
{
    if (esp_norm_squares(esp_rig.vk, 1) == 0) {
        fprintf(stderr, "the %s kernels take norms whole: nothing to look at\n", esp_rig.vk->report.variant);
        return;
    }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (!direct() || esp_wtype_quantised(cases[i].type))
            run_case(&cases[i], 8000 + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_halves)};
    return esp_rig_main("split_norm", tests, sizeof tests / sizeof tests[0]);
}
