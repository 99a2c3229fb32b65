/*
 * Weights that stay: a new placement reads only what it lacks, what is read beside a working stage changes no bit of it,
 * and whatever goes wrong leaves a shelf that the next placement can use. On the golden checkpoints.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/chain.h"
#include "worker/feed.h"
#include "worker/piece.h"
#include "worker/shelf.h"

#define MAX_ROWS 80
#define SLICE    (64u << 10) /* many of them make a layer */

static struct esp_vk *vk;
static struct esp_checkpoint *ck; /* tiny-pg2: 2 encoder and 4 decoder layers */
static const struct esp_config *config;

static struct esp_stage_spec decoder(uint32_t lo, uint32_t hi)
{
    return (struct esp_stage_spec){.dec_lo = lo,
                                   .dec_hi = hi,
                                   .embed = lo == 0,
                                   .head = hi == config->text.n_layer,
                                   .max_rows = MAX_ROWS,
                                   .kv_tokens = 4 * MAX_ROWS,
                                   .max_seqs = 4,
                                   .max_images = 1};
}

static uint64_t layer_bytes(struct esp_shelf *shelf, uint32_t layer)
{
    const struct esp_piece *p;
    struct esp_err err = {0};

    esp_must(esp_shelf_piece(&p, shelf, ESP_N_PIECE_END + config->vision.n_layer + layer, &err), &err);
    return p->n_bytes;
}

static uint64_t table_bytes(struct esp_shelf *shelf)
{
    const struct esp_piece *p;
    struct esp_err err = {0};

    esp_must(esp_shelf_piece(&p, shelf, ESP_PIECE_EMBED, &err), &err);
    return p->n_bytes;
}

static struct esp_shelf *shelf_open(esp_shelf_need need, void *arg)
{
    struct esp_shelf *shelf;
    struct esp_err err = {0};

    esp_must(esp_shelf_create(&shelf, vk, ck, need, arg, &err), &err);
    return shelf;
}

static struct esp_stage *stage_open(struct esp_shelf *shelf, const struct esp_stage_spec *spec)
{
    struct esp_stage *stage;
    struct esp_err err = {0};

    esp_must(esp_stage_create(&stage, shelf, spec, NULL, NULL, NULL, &err), &err);
    return stage;
}

static struct esp_stage_info_out info(const struct esp_stage *stage)
{
    struct esp_stage_info_out i;

    esp_stage_info(stage, &i);
    return i;
}

/* What a stage makes of row or token number `i` of a sequence: a prefill of 33 rows, then one row a call. Floats of all
 * rows and logits that come out, malloc'ed. */
static float *run(struct esp_stage *stage, const struct esp_stage_spec *spec, uint32_t i, size_t *n)
{
    const uint32_t n_row = i == 0 ? 33 : 1, width = config->text.width;
    const struct esp_seq_rows seq = {.seq = 1, .pos = i == 0 ? 0 : 32 + i, .n_tok = n_row, .n_prefix = 33};
    const struct esp_want want = {.row = n_row - 1, .k = 4, .full = true};
    const struct esp_msg_step step = {.epoch = 1,
                                      .id = i + 1,
                                      .payload = spec->embed ? ESP_PAYLOAD_TOKENS : ESP_PAYLOAD_ROWS,
                                      .rows = n_row,
                                      .width = spec->embed ? 1 : width,
                                      .n_seqs = 1,
                                      .seqs = &seq,
                                      .n_wants = spec->head ? 1 : 0,
                                      .wants = &want};
    float *rows = malloc((size_t)n_row * width * sizeof *rows), *got;
    int32_t ids[33];
    struct esp_stage_out out;
    struct esp_err err = {0};

    assert_non_null(rows);
    for (uint32_t t = 0; t < n_row; t++)
        ids[t] = (int32_t)(7 * t + 11 * i + 5);
    for (size_t k = 0; k < (size_t)n_row * width; k++)
        rows[k] = (float)((k + i) % 7) - 3.0f;
    esp_must(esp_stage_step(stage, &step, spec->embed ? (const void *)ids : rows, &out, &err), &err);
    *n = spec->head ? (size_t)out.n_full * out.vocab : (size_t)out.n_rows * out.width;
    assert_true(*n > 0);
    got = malloc(*n * sizeof *got);
    assert_non_null(got);
    memcpy(got, spec->head ? out.full : out.rows, *n * sizeof *got);
    esp_stage_out_finish(&out);
    free(rows);
    return got;
}

static void release(struct esp_stage *stage)
{
    const uint64_t id = 1;

    esp_stage_release(stage, &(struct esp_msg_release){.n_seqs = 1, .seqs = &id});
}

/* The same results, bit for bit, as a stage whose weights were all read for it. */
static void check_like_fresh(struct esp_stage *stage, const struct esp_stage_spec *spec)
{
    struct esp_shelf *shelf = shelf_open(NULL, NULL);
    struct esp_stage *fresh = stage_open(shelf, spec);

    for (uint32_t i = 0; i < 3; i++) {
        size_t n, n_want;
        float *got = run(stage, spec, i, &n), *want = run(fresh, spec, i, &n_want);
        assert_int_equal(n, n_want);
        assert_memory_equal(got, want, n * sizeof *got);
        free(got);
        free(want);
    }
    release(stage);
    esp_stage_destroy(&fresh);
    esp_shelf_destroy(&shelf);
}

/* Placements one after the other: each reads what the one before did not have, and nothing is kept beyond that. */
static void test_replace(void **state)
{
    struct esp_shelf *shelf = shelf_open(NULL, NULL);
    const uint64_t table = table_bytes(shelf), layer = layer_bytes(shelf, 0);
    const struct {
        uint32_t lo, hi;
        uint64_t loaded;
    } places[] = {
        {0, 2, table + 2 * layer},
        {1, 3, layer},
        {1, 3, 0},
        {1, 4, table + layer},
        {0, 4, layer},
        {3, 4, 0},
        {0, 1, layer},
        {0, 0, 0},
        {0, 1, 0},
    };

    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        struct esp_stage_spec spec = decoder(places[i].lo, places[i].hi);
        struct esp_stage *stage;
        if (places[i].lo == places[i].hi)
            spec.embed = spec.head = false; /* a spare keeps what is there */
        stage = stage_open(shelf, &spec);
        assert_int_equal(info(stage).loaded_bytes, places[i].loaded);
        assert_true(info(stage).weight_bytes >= places[i].loaded);
        if (places[i].lo < places[i].hi) {
            check_like_fresh(stage, &spec);
            assert_true(esp_shelf_beside(shelf, &spec) < info(stage).kv_bytes + info(stage).scratch_bytes +
                                                             info(stage).weight_bytes - places[i].loaded + 1);
        }
        esp_stage_destroy(&stage);
        assert_int_equal(esp_shelf_beside(shelf, &spec), 0); /* nothing in use, nothing taken */
    }
    esp_shelf_destroy(&shelf);
}

/* Two stages on one shelf: what one drops, the other goes on using until it leaves. */
static void test_two_stages(void **state)
{
    struct esp_shelf *shelf = shelf_open(NULL, NULL);
    const struct esp_stage_spec first = decoder(0, 2), second = decoder(1, 4);
    struct esp_stage *a = stage_open(shelf, &first), *b = stage_open(shelf, &second);

    assert_int_equal(info(b).loaded_bytes, 2 * layer_bytes(shelf, 0));
    check_like_fresh(a, &first);
    check_like_fresh(b, &second);
    esp_stage_destroy(&a);
    check_like_fresh(b, &second);
    esp_stage_destroy(&b);
    a = stage_open(shelf, &first);
    assert_int_equal(info(a).loaded_bytes, layer_bytes(shelf, 0)); /* it went with its last user */
    esp_stage_destroy(&a);
    esp_shelf_destroy(&shelf);
}

static struct esp_shelf_slice slice_of(struct esp_shelf *shelf, const struct esp_stage_spec *spec)
{
    struct esp_shelf_slice slice;
    struct esp_err err = {0};

    esp_must(esp_shelf_load(shelf, spec, SLICE, &slice, &err), &err);
    return slice;
}

/* Slices of what is to come between the steps of the stage that works: neither of them can tell. */
static void test_slices(void **state)
{
    struct esp_shelf *shelf = shelf_open(NULL, NULL), *quiet_shelf = shelf_open(NULL, NULL);
    const struct esp_stage_spec now = decoder(0, 2), next = decoder(1, 4), other = decoder(2, 4);
    struct esp_stage *stage = stage_open(shelf, &now), *quiet = stage_open(quiet_shelf, &now);
    const uint64_t lacking = 2 * layer_bytes(shelf, 0);
    struct esp_shelf_slice slice;
    uint64_t total = 0;
    uint32_t i = 0;

    do { /* of a placement first that is thought better of: nothing of it is read twice */
        size_t n, n_want;
        float *got, *want;
        slice = slice_of(shelf, i < 3 ? &other : &next);
        assert_true(slice.loaded_bytes > 0 && slice.loaded_bytes < 2 * SLICE); /* it ends with eight rows */
        total += slice.loaded_bytes;
        assert_int_equal(slice.lacking_bytes, lacking - total);
        got = run(stage, &now, i, &n);
        want = run(quiet, &now, i, &n_want);
        assert_int_equal(n, n_want);
        assert_memory_equal(got, want, n * sizeof *got);
        free(got);
        free(want);
        i++;
    } while (slice.lacking_bytes > 0);
    assert_int_equal(total, lacking);
    assert_true(i > 4);
    assert_int_equal(slice_of(shelf, &next).loaded_bytes, 0);
    esp_stage_destroy(&stage);
    stage = stage_open(shelf, &next);
    assert_int_equal(info(stage).loaded_bytes, 0);
    check_like_fresh(stage, &next);
    esp_stage_destroy(&stage);
    esp_stage_destroy(&quiet);
    esp_shelf_destroy(&quiet_shelf);
    esp_shelf_destroy(&shelf);
}

/* Pieces cut over small buffers, in slices that end anywhere. */
static void test_cut(void **state)
{
    const uint64_t max = vk->max_alloc_bytes;
    struct esp_shelf *shelf = shelf_open(NULL, NULL);
    const struct esp_stage_spec spec = decoder(0, 4);
    const struct esp_piece *p;
    struct esp_stage *stage;
    struct esp_shelf_slice slice;
    struct esp_err err = {0};

    vk->max_alloc_bytes = 400u << 10;
    esp_must(esp_shelf_piece(&p, shelf, ESP_PIECE_EMBED, &err), &err);
    assert_true(p->n_chunk > 2);
    for (uint32_t i = ESP_N_PIECE_END + config->vision.n_layer; i < esp_piece_count(config); i++)
        esp_must(esp_shelf_piece(&p, shelf, i, &err), &err);
    vk->max_alloc_bytes = max; /* how pieces are cut stands from here on */
    do {
        esp_must(esp_shelf_load(shelf, &spec, 10001, &slice, &err), &err);
    } while (slice.lacking_bytes > 0);
    stage = stage_open(shelf, &spec);
    assert_int_equal(info(stage).loaded_bytes, 0);
    check_like_fresh(stage, &spec);
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
}

/* The budget is kept, beside a stage and without; what is idle makes room, what is in use does not. */
static void test_budget(void **state)
{
    const uint64_t budget = vk->report.memory_bytes;
    struct esp_shelf *shelf = shelf_open(NULL, NULL);
    const struct esp_stage_spec now = decoder(0, 2), next = decoder(2, 4), all = decoder(0, 4);
    struct esp_stage *stage = stage_open(shelf, &now), *none;
    const struct esp_stage_info_out has = info(stage);
    const uint64_t in_use = has.weight_bytes + has.kv_bytes + has.scratch_bytes,
                   layer = layer_bytes(shelf, 0);
    struct esp_shelf_slice slice;
    struct esp_err err = {0};

    vk->report.memory_bytes = in_use + 2 * layer - 1; /* the table is shared */
    assert_int_equal(esp_shelf_load(shelf, &next, SLICE, &slice, &err), ESP_E_NOMEM);
    assert_non_null(strstr(err.text, "MiB of weights beside the"));
    assert_int_equal(slice.loaded_bytes, 0);
    check_like_fresh(stage, &now);
    vk->report.memory_bytes = in_use + 2 * layer;
    while (slice_of(shelf, &next).lacking_bytes > 0)
        ;
    check_like_fresh(stage, &now);
    esp_stage_destroy(&stage);

    vk->report.memory_bytes = in_use - 1; /* as many layers, as much of everything */
    assert_int_equal(esp_stage_create(&none, shelf, &all, NULL, NULL, NULL, &err), ESP_E_NOMEM);
    assert_non_null(strstr(err.text, "MiB of KV cache"));
    assert_null(none);
    vk->report.memory_bytes = in_use + layer; /* with what `now` left behind it would be too much */
    stage = stage_open(shelf, &next);
    assert_int_equal(info(stage).loaded_bytes, 0);
    check_like_fresh(stage, &next);
    esp_stage_destroy(&stage);
    vk->report.memory_bytes = budget;
    stage = stage_open(shelf, &now);
    assert_int_equal(info(stage).loaded_bytes, 2 * layer);
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
}

/* The device has less than it said: what nobody uses goes, what is in use stays. */
static void test_device_full(void **state)
{
    const uint64_t max = vk->max_alloc_bytes;
    struct esp_shelf *shelf = shelf_open(NULL, NULL);
    const struct esp_stage_spec now = decoder(1, 2), next = decoder(1, 4);
    struct esp_stage *stage = stage_open(shelf, &now), *none;
    const uint64_t table = table_bytes(shelf), layer = layer_bytes(shelf, 0);
    struct esp_shelf_slice slice;
    struct esp_err err = {0};

    assert_true(table > layer); /* and it comes first, so that something is in the way of the layers */
    slice_of(shelf, &next);
    vk->max_alloc_bytes = layer - 1;
    while ((slice.lacking_bytes = 0, esp_shelf_load(shelf, &next, SLICE, &slice, &err)) == ESP_OK)
        assert_true(slice.lacking_bytes > 0);
    assert_int_equal(err.code, ESP_E_NOMEM);
    assert_non_null(strstr(err.text, "weights of decoder layer 2"));
    vk->max_alloc_bytes = max;
    check_like_fresh(stage, &now);
    esp_stage_destroy(&stage);
    vk->max_alloc_bytes = layer - 1;
    assert_int_equal(esp_stage_create(&none, shelf, &next, NULL, NULL, NULL, &err), ESP_E_NOMEM);
    vk->max_alloc_bytes = max;
    stage = stage_open(shelf, &next);
    assert_int_equal(info(stage).loaded_bytes, table + 3 * layer);
    check_like_fresh(stage, &next);
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
}

/* Bytes that come from elsewhere. */
struct source {
    uint32_t n_asked, not_yet, fail_at; /* fail_at: the call that fails; 0: none */
    bool any_missing;                   /* a tensor without bytes was asked for */
};

static esp_status on_need(void *arg, const struct esp_tensor *const *tensors, uint32_t n, struct esp_err *err)
{
    struct source *s = arg;

    for (uint32_t i = 0; i < n; i++)
        s->any_missing |= !tensors[i] || !tensors[i]->data;
    if (s->not_yet > 0) {
        s->not_yet--;
        return esp_fail(err, ESP_E_TIMEOUT, "on its way");
    }
    s->n_asked++;
    if (s->n_asked == s->fail_at)
        return esp_fail(err, ESP_E_IO, "the link broke");
    return ESP_OK;
}

static void test_source(void **state)
{
    struct source source = {.not_yet = 2, .fail_at = 3};
    struct esp_shelf *shelf = shelf_open(on_need, &source);
    const struct esp_stage_spec spec = decoder(0, 3), next = decoder(1, 4);
    struct esp_stage *stage;
    struct esp_shelf_slice slice;
    struct esp_err err = {0};

    /* the table and a layer are there when the second layer fails */
    assert_int_equal(esp_stage_create(&stage, shelf, &spec, NULL, NULL, NULL, &err), ESP_E_IO);
    assert_string_equal(err.text, "the link broke");
    assert_int_equal(source.not_yet, 0);
    stage = stage_open(shelf, &spec);
    assert_int_equal(info(stage).loaded_bytes, 2 * layer_bytes(shelf, 0));
    check_like_fresh(stage, &spec);

    source.not_yet = 1; /* a slice does not wait */
    assert_int_equal(esp_shelf_load(shelf, &next, SLICE, &slice, &err), ESP_E_TIMEOUT);
    assert_int_equal(slice.loaded_bytes, 0);
    assert_int_equal(slice.lacking_bytes, layer_bytes(shelf, 0));
    check_like_fresh(stage, &spec);
    assert_true(slice_of(shelf, &next).loaded_bytes > 0);
    source.fail_at = source.n_asked + 1; /* but this layer is asked for already */
    while (slice_of(shelf, &next).lacking_bytes > 0)
        ;
    assert_false(source.any_missing);
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
}

static bool stop_at_once(void *arg, uint64_t done_bytes, uint64_t total_bytes)
{
    uint64_t *done = arg;

    *done = done_bytes;
    return false;
}

/* A load that is given up: also one that waits for bytes that never come. */
static void test_given_up(void **state)
{
    struct source source = {.not_yet = UINT32_MAX};
    struct esp_shelf *shelf = shelf_open(on_need, &source);
    const struct esp_stage_spec spec = decoder(0, 4);
    struct esp_stage *stage;
    struct esp_err err = {0};
    uint64_t done = 1;

    assert_int_equal(esp_stage_create(&stage, shelf, &spec, NULL, stop_at_once, &done, &err),
                     ESP_E_CANCELLED);
    assert_null(stage);
    assert_int_equal(done, 0);
    source.not_yet = 0;
    assert_int_equal(esp_stage_create(&stage, shelf, &spec, NULL, stop_at_once, &done, &err),
                     ESP_E_CANCELLED);
    assert_true(done > 0);
    stage = stage_open(shelf, &spec);
    assert_int_equal(info(stage).loaded_bytes, table_bytes(shelf) + 4 * layer_bytes(shelf, 0) - done);
    check_like_fresh(stage, &spec);
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
}

/* A placement out of a stranger's hands. */
static void test_refused(void **state)
{
    struct esp_shelf *shelf = shelf_open(NULL, NULL);
    struct esp_stage_spec spec = decoder(0, 4);
    struct esp_shelf_slice slice;
    struct esp_err err = {0};

    spec.dec_hi = 5;
    assert_int_equal(esp_shelf_load(shelf, &spec, SLICE, &slice, &err), ESP_E_ARG);
    spec = decoder(1, 3);
    spec.embed = true;
    assert_int_equal(esp_shelf_load(shelf, &spec, SLICE, &slice, &err), ESP_E_ARG);
    esp_shelf_destroy(&shelf);
}

/* Weights of another type take the place of those that are there, but not while a stage uses them. */
static void test_types(void **state)
{
    struct esp_shelf *shelf = shelf_open(NULL, NULL);
    struct esp_stage_spec spec = decoder(0, 4), other = spec;
    struct esp_stage *stage = stage_open(shelf, &spec), *second;
    const uint64_t stored = info(stage).weight_bytes;
    struct esp_shelf_slice slice;
    struct esp_err err = {0};

    other.weights = ESP_W_Q8;
    assert_int_equal(esp_shelf_load(shelf, &other, SLICE, &slice, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "weights as q8 beside a stage that has them as stored"));
    assert_int_equal(esp_stage_create(&second, shelf, &other, NULL, NULL, NULL, &err), ESP_E_ARG);
    check_like_fresh(stage, &spec);
    esp_stage_destroy(&stage);

    stage = stage_open(shelf, &other);
    assert_true(info(stage).loaded_bytes == table_bytes(shelf) + 4 * layer_bytes(shelf, 0));
    assert_true(info(stage).weight_bytes < stored);
    check_like_fresh(stage, &other);
    esp_stage_destroy(&stage);
    spec.weights = ESP_W_Q4;
    do { /* a slice ends in time, however much it may read */
        assert_int_equal(esp_shelf_load(shelf, &spec, 1 << 30, &slice, &err), ESP_OK);
        assert_true(slice.loaded_bytes > 0);
    } while (slice.lacking_bytes > 0);
    stage = stage_open(shelf, &spec);
    assert_int_equal(info(stage).loaded_bytes, 0);
    check_like_fresh(stage, &spec);
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
}

/* Made up for measuring: every type's matrices are rows as they are packed, and what comes of them are numbers. */
static void test_made_up(void **state)
{
    static const enum esp_wtype types[] = {ESP_W_BF16, ESP_W_F32, ESP_W_Q8, ESP_W_Q4};
    struct esp_err err = {0};

    (void)state;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct esp_shelf *shelf = shelf_open(NULL, NULL);
        struct esp_stage_spec spec = decoder(0, config->text.n_layer);
        const struct esp_piece *p;
        struct esp_stage *stage;
        const char *at;
        char *unit, *scratch;
        uint32_t n_group;
        size_t n, n_unit;

        spec.weights = types[i];
        esp_shelf_make_up(shelf);
        stage = stage_open(shelf, &spec);
        for (uint32_t row = 0; row < 3; row++) {
            float *got = run(stage, &spec, row, &n);
            for (size_t k = 0; k < n; k++)
                assert_true(isfinite(got[k]));
            free(got);
        }
        esp_must(esp_shelf_piece(&p, shelf, ESP_PIECE_EMBED, &err), &err);
        at = esp_shelf_chunks(shelf, ESP_PIECE_EMBED)[0].map; /* NULL: out of the host's reach */
        n_group = esp_feed_unit(&p->mat[0]);
        n_unit = (size_t)n_group * p->mat[0].dims.group_bytes;
        unit = malloc(n_unit);
        scratch = malloc(esp_pack_scratch_bytes(&p->mat[0].dims));
        assert_non_null(unit);
        assert_non_null(scratch);
        /* the table is the first of its kind: it begins with its own first rows */
        esp_must(esp_pack_groups(unit, &p->mat[0].spec, &p->mat[0].dims, 0, n_group, scratch, &err), &err);
        assert_true(!at || memcmp(at, unit, n_unit) == 0);
        free(unit);
        free(scratch);
        esp_stage_destroy(&stage);
        esp_shelf_destroy(&shelf);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replace), cmocka_unit_test(test_two_stages), cmocka_unit_test(test_slices),
        cmocka_unit_test(test_cut),     cmocka_unit_test(test_budget),     cmocka_unit_test(test_device_full),
        cmocka_unit_test(test_source),  cmocka_unit_test(test_given_up),   cmocka_unit_test(test_refused),
        cmocka_unit_test(test_types),   cmocka_unit_test(test_made_up),
    };
    struct esp_err err = {0};
    int failed;

    esp_must(esp_checkpoint_open(&ck, "tests/golden/data/tiny-pg2", &err), &err);
    config = esp_checkpoint_config(ck);
    vk = esp_test_device_open();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += esp_test_device_close(&vk);
    esp_checkpoint_destroy(&ck);
    return failed;
}
