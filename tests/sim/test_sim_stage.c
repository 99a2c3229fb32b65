/* The stand-in itself: profiles that are none, its books, and the same tokens however the layers are cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/checkpoint.h"
#include "tests/sim/sim_device.h"
#include "tests/sim/sim_model.h"
#include "worker/shelf.h"

#define MODEL "tests/golden/data/tiny"

/* ---- profiles ---- */

static void test_profile(void **state)
{
    static const char text[] =
        "{\"name\": \"Slow\", \"memory_mib\": 3, \"encode_layer_seconds\": 0.25,"
        " \"step_layer_seconds\": 1, \"decode_row_seconds\": 0.5, \"jitter\": 0.1, \"seed\": 9}";
    struct sim_profile p;
    struct esp_err err;

    assert_int_equal(sim_profile_parse(&p, text, strlen(text), "p.json", &err), ESP_OK);
    assert_string_equal(p.name, "Slow");
    assert_int_equal(p.memory_bytes, 3 << 20);
    assert_true(p.encode_layer_s == 0.25 && p.step_layer_s == 1 && p.decode_row_s == 0.5 && p.jitter == 0.1);
    assert_true(p.prefill_row_s == 0 && p.load_rate == 0 && p.seed == 9);
    assert_int_equal(sim_profile_parse(&p, "{}", 2, "p.json", &err), ESP_OK);
    assert_string_equal(p.name, sim_profile_default.name);
}

static void test_bad_profiles(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "p.json"},
        {"[]", "p.json"},
        {"{\"step_layer_seconds\": 1", "p.json"},
        {"{\"step_layer_second\": 1}", "step_layer_second: a profile has no such field"},
        {"{\"step_layer_seconds\": -1}", "step_layer_seconds: found"},
        {"{\"step_layer_seconds\": 1e9}", "step_layer_seconds: found"},
        {"{\"step_layer_seconds\": \"1\"}", "step_layer_seconds: found"},
        {"{\"step_layer_seconds\": NaN}", "p.json"},
        {"{\"jitter\": 1.5}", "jitter: found"},
        {"{\"memory_mib\": 0}", "memory_mib: found"},
        {"{\"memory_mib\": 1e300}", "memory_mib: found"},
        {"{\"seed\": -1}", "seed: found"},
        {"{\"name\": \"\"}", "name: takes 1 to 63"},
        {"{\"name\": \"0123456789012345678901234567890123456789012345678901234567890123\"}",
         "name: takes 1 to 63"},
        {"{\"kv_bytes_per_second\": {}}", "kv_bytes_per_second: found"},
        {"{\"seed\": 1, \"seed\": 2}", "p.json"},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct sim_profile p = {.seed = 77};
        struct esp_err err = {0};

        if (!sim_profile_parse(&p, bad[i].text, strlen(bad[i].text), "p.json", &err))
            fail_msg("%s is taken", bad[i].text);
        if (!strstr(err.text, bad[i].says))
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].text, err.text, bad[i].says);
        assert_int_equal(p.seed, 77); /* untouched */
    }
}

/* Twice as fast measures twice as fast. */
static void test_rates(void **state)
{
    struct sim_profile slow = sim_profile_default, fast;
    struct esp_config config;
    struct esp_err err;
    double b[2], r[2];

    assert_int_equal(esp_config_load(&config, MODEL, &err), ESP_OK);
    slow.encode_layer_s = 0.02;
    slow.step_layer_s = 0.01;
    slow.decode_row_s = 0.001;
    slow.prefill_row_s = 0.002;
    fast = slow;
    fast.encode_layer_s /= 2;
    fast.step_layer_s /= 2;
    fast.decode_row_s /= 2;
    fast.prefill_row_s /= 2;
    assert_int_equal(sim_profile_rates(&b[0], &r[0], &slow, &config, &err), ESP_OK);
    assert_int_equal(sim_profile_rates(&b[1], &r[1], &fast, &config, &err), ESP_OK);
    assert_true(b[0] > 0 && r[0] > 0);
    assert_float_equal(b[1] / b[0], 2, 1e-6);
    assert_float_equal(r[1] / r[0], 2, 1e-6);
    /* The times of a device are those of its rates, where these are what bounds its products. */
    assert_int_equal(sim_profile_device(&fast, 1e9, 1e8, &config, &err), ESP_OK);
    assert_int_equal(sim_profile_rates(&b[0], &r[0], &fast, &config, &err), ESP_OK);
    assert_float_equal(r[0] / 1e8, 1, 1e-3);
    assert_int_equal(sim_profile_device(&fast, 1e7, 1e12, &config, &err), ESP_OK);
    assert_int_equal(sim_profile_rates(&b[0], &r[0], &fast, &config, &err), ESP_OK);
    assert_float_equal(b[0] / 1e7, 1, 1e-3);
    assert_int_equal(sim_profile_rates(&b[1], &r[1], &slow, &config, &err), ESP_OK);
    /* No time at all is a rate all the same. */
    assert_int_equal(sim_profile_rates(&b[0], &r[0], &sim_profile_default, &config, &err), ESP_OK);
    assert_true(b[0] > b[1] && b[0] < 1e30 && r[0] > r[1] && r[0] < 1e30);
}

/* ---- stages ---- */

struct fix {
    struct esp_checkpoint *ck;
    const struct esp_config *c;
    struct sim_device device;
    struct esp_shelf *shelf;
};

static int setup(void **state)
{
    struct fix *f = calloc(1, sizeof *f);
    struct esp_err err;

    if (!f || esp_checkpoint_open(&f->ck, MODEL, &err))
        return -1;
    f->c = esp_checkpoint_config(f->ck);
    *state = f;
    if (sim_device_init(&f->device, &sim_profile_default, f->c, &err))
        return -1;
    return (int)esp_shelf_create(&f->shelf, &f->device.vk, f->ck, NULL, NULL, &err);
}

static int teardown(void **state)
{
    struct fix *f = *state;

    esp_shelf_destroy(&f->shelf);
    esp_checkpoint_destroy(&f->ck);
    free(f);
    return 0;
}

static bool on_load(void *arg, uint64_t done, uint64_t total)
{
    return true;
}

static struct esp_stage *stage(struct fix *f, uint32_t enc_lo, uint32_t enc_hi, uint32_t dec_lo,
                               uint32_t dec_hi)
{
    const uint32_t n_enc = f->c->vision.n_layer, n_dec = f->c->text.n_layer;
    const struct esp_stage_spec spec = {.enc_lo = enc_lo,
                                        .enc_hi = enc_hi,
                                        .dec_lo = dec_lo,
                                        .dec_hi = dec_hi,
                                        .patch = enc_lo == 0 && enc_hi > 0,
                                        .projector = enc_hi == n_enc && enc_lo < n_enc,
                                        .embed = dec_lo == 0 && dec_hi > 0,
                                        .head = dec_hi == n_dec && dec_lo < n_dec,
                                        .max_rows = 128,
                                        .kv_tokens = 256,
                                        .max_seqs = 4,
                                        .max_images = 2};
    struct esp_stage *s;
    struct esp_err err;

    if (esp_stage_create(&s, f->shelf, &spec, NULL, on_load, NULL, &err))
        fail_msg("%s", err.text);
    return s;
}

/* A step through stages in a row; the choice of its last want. */
static uint32_t chain_step(struct fix *f, struct esp_stage *const *s, uint32_t n, struct esp_msg_step m,
                           const int32_t *ids)
{
    struct esp_stage_out out = {0};
    const void *data = ids;
    float *rows = NULL;
    struct esp_err err;
    uint32_t choice;

    m.payload = ESP_PAYLOAD_TOKENS;
    m.width = 1;
    for (uint32_t i = 0; i < n; i++) {
        if (esp_stage_step(s[i], &m, data, &out, &err))
            fail_msg("stage %u: %s", i, err.text);
        free(rows);
        rows = out.rows;
        out.rows = NULL;
        data = rows;
        m.payload = ESP_PAYLOAD_ROWS;
        m.width = f->c->text.width;
        if (i + 1 < n)
            esp_stage_out_finish(&out);
    }
    free(rows);
    assert_int_equal(out.n_results, m.n_wants);
    choice = out.results[m.n_wants - 1].ids[0];
    esp_stage_out_finish(&out);
    return choice;
}

static void pixels_fill(float *pixels, size_t n)
{
    for (size_t i = 0; i < n; i++)
        pixels[i] = (float)(i % 17) / 17;
}

/* A picture through encoder stages in a row, stored in *to. */
static void chain_encode(struct fix *f, struct esp_stage *const *s, uint32_t n, struct esp_stage *to,
                         uint64_t image, const float *pixels)
{
    const uint32_t side = f->c->vision.image_size;
    struct esp_msg_encode m = {
        .image = image, .payload = ESP_PAYLOAD_PIXELS, .rows = 3 * side, .width = side};
    struct esp_stage_out out = {0};
    const float *data = pixels;
    float *rows = NULL;
    struct esp_err err;

    for (uint32_t i = 0; i < n; i++) {
        if (esp_stage_encode(s[i], &m, data, &out, &err))
            fail_msg("stage %u: %s", i, err.text);
        free(rows);
        data = rows = out.rows;
        out.rows = NULL;
        m.payload = out.payload;
        m.rows = out.n_rows;
        m.width = out.width;
        esp_stage_out_finish(&out);
    }
    assert_int_equal(m.payload, ESP_PAYLOAD_FEATURES);
    assert_int_equal(esp_stage_store(to, &m, data, &err), ESP_OK);
    free(rows);
}

/* Every cut of the decoder, pictures in front and rows of two sequences in one step: the model's own tokens. */
static void test_splits(void **state)
{
    struct fix *f = *state;
    const uint32_t side = f->c->vision.image_size, n_token = f->c->vision.n_token,
                   n_enc = f->c->vision.n_layer, n_dec = f->c->text.n_layer;
    const size_t n_pixel = (size_t)3 * side * side;
    float *pixels = malloc(n_pixel * sizeof *pixels);
    const uint32_t prompt[] = {2, 100, 200, 108};
    uint64_t picture;
    uint32_t want[6], plain[6];

    assert_non_null(pixels);
    pixels_fill(pixels, n_pixel);
    picture = sim_picture(pixels, n_pixel);
    assert_true(sim_expect(want, 6, f->c, &picture, 1, prompt, 4));
    assert_true(sim_expect(plain, 6, f->c, NULL, 0, prompt, 4));
    assert_memory_not_equal(want, plain, sizeof want);
    for (uint32_t cut = 1; cut <= n_dec; cut++) {
        struct esp_stage *enc[] = {stage(f, 0, 1, 0, 0), stage(f, 1, n_enc, 0, 0)};
        struct esp_stage *dec[] = {stage(f, 0, 0, 0, cut), cut < n_dec ? stage(f, 0, 0, cut, n_dec) : NULL};
        const uint64_t image = 5;
        int32_t ids[64] = {0};
        struct esp_seq_rows seqs[2] = {
            {.seq = 1, .n_tok = n_token + 4, .n_prefix = n_token + 4, .n_images = 1, .images = &image},
            {.seq = 2, .n_tok = 4, .n_prefix = 4}};
        const struct esp_want wants[2] = {{.row = n_token + 3, .k = 1}, {.row = n_token + 7, .k = 1}};
        struct esp_stage_info_out info;

        chain_encode(f, enc, 2, dec[0], image, pixels);
        for (uint32_t i = 0; i < 4; i++)
            ids[n_token + i] = ids[n_token + 4 + i] = (int32_t)prompt[i];
        assert_int_equal(chain_step(f, dec, cut < n_dec ? 2 : 1,
                                    (struct esp_msg_step){.epoch = 1,
                                                          .id = 1,
                                                          .rows = n_token + 8,
                                                          .n_seqs = 2,
                                                          .seqs = seqs,
                                                          .n_wants = 2,
                                                          .wants = wants},
                                    ids),
                         plain[0]);
        for (uint32_t t = 0; t + 1 < 6; t++) {
            seqs[0] = (struct esp_seq_rows){
                .seq = 2, .pos = 4 + t, .n_tok = 1, .n_prefix = 4}; /* another order than before */
            seqs[1] =
                (struct esp_seq_rows){.seq = 1, .pos = n_token + 4 + t, .n_tok = 1, .n_prefix = n_token + 4};
            ids[0] = (int32_t)plain[t];
            ids[1] = (int32_t)want[t];
            assert_int_equal(chain_step(f, dec, cut < n_dec ? 2 : 1,
                                        (struct esp_msg_step){.epoch = 1,
                                                              .id = 2 + t,
                                                              .rows = 2,
                                                              .n_seqs = 2,
                                                              .seqs = seqs,
                                                              .n_wants = 1,
                                                              .wants = &(struct esp_want){.row = 1, .k = 3}},
                                        ids),
                             want[t + 1]);
        }
        esp_stage_info(dec[0], &info);
        assert_int_equal(info.n_seqs, 2);
        assert_int_equal(info.n_images, 1);
        assert_int_equal(info.kv_used_blocks, 2);
        esp_stage_release(
            dec[0], &(struct esp_msg_release){
                        .n_seqs = 2, .seqs = (const uint64_t[]){1, 2}, .n_images = 1, .images = &image});
        esp_stage_info(dec[0], &info);
        assert_true(info.n_seqs == 0 && info.n_images == 0 && info.kv_used_blocks == 0);
        for (int i = 0; i < 2; i++) {
            esp_stage_destroy(&enc[i]);
            esp_stage_destroy(&dec[i]);
        }
    }
    free(pixels);
}

/* A fork goes on as its origin would, and neither sees what the other does. */
static void test_forks(void **state)
{
    struct fix *f = *state;
    struct esp_stage *s = stage(f, 0, 0, 0, f->c->text.n_layer);
    const uint32_t prompt[] = {2, 7, 8, 9, 108};
    const int32_t ids[] = {2, 7, 8, 9, 108};
    const struct esp_want want = {.row = 4, .k = 1}, first = {.row = 0, .k = 1};
    const struct esp_fork fork = {.seq = 2, .from = 1};
    struct esp_seq_rows rows = {.seq = 1, .n_tok = 5, .n_prefix = 5};
    uint32_t good[3];
    int32_t other;

    assert_true(sim_expect(good, 3, f->c, NULL, 0, prompt, 5));
    assert_int_equal(
        chain_step(
            f, &s, 1,
            (struct esp_msg_step){
                .epoch = 1, .id = 1, .rows = 5, .n_seqs = 1, .seqs = &rows, .n_wants = 1, .wants = &want},
            ids),
        good[0]);
    rows = (struct esp_seq_rows){.seq = 2, .pos = 5, .n_tok = 1, .n_prefix = 5};
    other = (int32_t)good[0] - 1; /* the fork goes astray ... */
    chain_step(f, &s, 1,
               (struct esp_msg_step){.epoch = 1,
                                     .id = 2,
                                     .rows = 1,
                                     .n_forks = 1,
                                     .forks = &fork,
                                     .n_seqs = 1,
                                     .seqs = &rows,
                                     .n_wants = 1,
                                     .wants = &first},
               &other);
    for (uint32_t t = 0; t < 2; t++) { /* ... and its origin not */
        const int32_t id = (int32_t)good[t];

        rows = (struct esp_seq_rows){.seq = 1, .pos = 5 + t, .n_tok = 1, .n_prefix = 5};
        assert_int_equal(chain_step(f, &s, 1,
                                    (struct esp_msg_step){.epoch = 1,
                                                          .id = 3 + t,
                                                          .rows = 1,
                                                          .n_seqs = 1,
                                                          .seqs = &rows,
                                                          .n_wants = 1,
                                                          .wants = &first},
                                    &id),
                         good[t + 1]);
    }
    esp_stage_destroy(&s);
}

/* What a stage refuses, one step each, and it goes on as if nothing had been. */
static void test_refusals(void **state)
{
    struct fix *f = *state;
    struct esp_stage *s = stage(f, 0, 0, 0, f->c->text.n_layer);
    const uint64_t image = 9;
    const int32_t ids[128] = {2, 3, 4};
    const struct {
        struct esp_seq_rows rows;
        esp_status code;
        const char *says;
    } bad[] = {
        {{.seq = 1, .pos = 1, .n_tok = 1, .n_prefix = 1}, ESP_E_PROTO, "position 1, expected 0"},
        {{.seq = 1, .n_tok = 2, .n_prefix = 3}, ESP_E_PROTO, "comes whole"},
        {{.seq = 1, .n_tok = 2}, ESP_E_PROTO, "comes whole"},
        {{.seq = 1, .n_tok = 20, .n_prefix = 20, .n_images = 1, .images = &image},
         ESP_E_PROTO,
         "image 9 is not here"},
        {{.seq = 1, .n_tok = 3, .n_prefix = 3, .n_images = 1, .images = &image},
         ESP_E_PROTO,
         "1 images in a prefix"},
    };
    struct esp_stage_info_out info;
    struct esp_stage_out out;
    struct esp_err err;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const struct esp_msg_step m = {.epoch = 1,
                                       .id = i + 1,
                                       .payload = ESP_PAYLOAD_TOKENS,
                                       .rows = bad[i].rows.n_tok,
                                       .width = 1,
                                       .n_seqs = 1,
                                       .seqs = &bad[i].rows};

        if (esp_stage_step(s, &m, ids, &out, &err) != bad[i].code || !strstr(err.text, bad[i].says))
            fail_msg("%zu: %s", i, err.text);
        esp_stage_info(s, &info);
        assert_true(info.n_seqs == 0 && info.kv_used_blocks == 0);
    }
    esp_stage_destroy(&s);
}

/* Rows that no stage made are noticed. */
static void test_rows(void **state)
{
    float row[8];
    uint64_t x = 0xfedcba9876543210u, y;

    sim_row_put(row, 8, x);
    assert_true(sim_row_get(&y, row, 8));
    assert_true(x == y);
    row[6] = 1;
    assert_false(sim_row_get(&y, row, 8));
    row[6] = 0;
    row[2] = 0.5f;
    assert_false(sim_row_get(&y, row, 8));
    row[2] = -1;
    assert_false(sim_row_get(&y, row, 8));
    row[2] = 65536;
    assert_false(sim_row_get(&y, row, 8));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_profile),
        cmocka_unit_test(test_bad_profiles),
        cmocka_unit_test(test_rates),
        cmocka_unit_test_setup_teardown(test_splits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_forks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test(test_rows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
