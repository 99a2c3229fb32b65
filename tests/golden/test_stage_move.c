/*
 * Layers that move between stages while sequences live: a model in three stages is cut anew again and again, and each
 * step's logits equal, bit for bit, those of the same model in one stage that nobody disturbs. The sequences are beams of
 * prompts with a picture: they share blocks, part, and go. No prefix is computed twice: only decoding steps follow.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/chain.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/rand.h"
#include "tests/support/temp.h"

#define MAX_ROWS 96
#define SEQS     6
#define ROUNDS   12

static struct esp_vk *vk;
static struct esp_rand rand_state;

static uint32_t below(uint32_t n)
{
    return esp_rand_below(&rand_state, n);
}

/** A model in one stage, which stays, and in three, which do not. */
struct pair {
    const struct esp_config *c;
    struct esp_chain still, moving;
    uint32_t n_tok[SEQS], n_prefix[SEQS]; /* of sequence 1 .. SEQS; 0: it does not live */
    uint64_t images[2];
};

/** Layers over three stages, some perhaps without any. */
static void random_cut(uint32_t n_layer, uint32_t out[3])
{
    const uint32_t a = below(n_layer + 1), b = below(n_layer + 1);

    out[0] = a < b ? a : b;
    out[1] = (a < b ? b : a) - out[0];
    out[2] = n_layer - out[0] - out[1];
}

static void pair_open(struct pair *p, const struct esp_checkpoint *ck)
{
    uint32_t n_enc[3], n_dec[3];
    size_t n_pixel;
    float *pixels;

    memset(p, 0, sizeof *p);
    p->c = esp_checkpoint_config(ck);
    n_pixel = (size_t)p->c->vision.n_channel * p->c->vision.image_size * p->c->vision.image_size;
    pixels = malloc(n_pixel * sizeof *pixels);
    assert_non_null(pixels);
    esp_chain_open(&p->still, vk, ck, 1, &p->c->vision.n_layer, &p->c->text.n_layer, MAX_ROWS);
    random_cut(p->c->vision.n_layer, n_enc);
    random_cut(p->c->text.n_layer, n_dec);
    esp_chain_open(&p->moving, vk, ck, 3, n_enc, n_dec, MAX_ROWS);
    for (uint32_t i = 0; i < 2; i++) {
        p->images[i] = 70 + i;
        esp_rand_fill_uniform(&rand_state, pixels, n_pixel, -1.0, 1.0);
        esp_chain_encode(&p->still, p->images[i], pixels, NULL, NULL);
        esp_chain_encode(&p->moving, p->images[i], pixels, NULL, NULL);
    }
    free(pixels);
}

static void pair_close(struct pair *p)
{
    struct esp_shelf *shelves[3];
    const struct esp_stage_spec none = {0};

    memcpy(shelves, p->moving.shelf, sizeof shelves);
    for (uint32_t i = 0; i < 3; i++) {
        esp_stage_destroy(&p->moving.stage[i]);
        assert_int_equal(esp_shelf_beside(shelves[i], &none), 0); /* whatever was kept is given back */
    }
    esp_chain_close(&p->moving);
    esp_chain_close(&p->still);
}

/** The same step to both. */
static void step(struct pair *p, const struct esp_msg_step *msg, const int32_t *ids)
{
    struct esp_stage_out want, got;

    esp_chain_step(&p->still, msg, ids, &want, NULL, NULL);
    esp_chain_step(&p->moving, msg, ids, &got, NULL, NULL);
    assert_int_equal(want.n_full, msg->n_wants);
    assert_int_equal(got.n_full, msg->n_wants);
    assert_memory_equal(got.full, want.full, (size_t)want.n_full * want.vocab * sizeof *want.full);
    esp_stage_out_finish(&want);
    esp_stage_out_finish(&got);
}

/** A sequence's first step: one of the pictures, then some text, all of it prefix. */
static void begin(struct pair *p, uint32_t slot)
{
    const uint32_t n_image = p->c->vision.n_token, n = n_image + 3 + below(8);
    const uint64_t image = p->images[below(2)];
    const struct esp_seq_rows seq = {
        .seq = slot + 1, .n_tok = n, .n_prefix = n, .n_images = 1, .images = &image};
    const struct esp_want want = {.row = n - 1, .k = 4, .full = true};
    const struct esp_msg_step msg = {
        .epoch = 1, .id = 1, .rows = n, .n_seqs = 1, .seqs = &seq, .n_wants = 1, .wants = &want};
    int32_t ids[MAX_ROWS] = {0};

    for (uint32_t i = n_image; i < n; i++)
        ids[i] = (int32_t)below(p->c->text.vocab);
    step(p, &msg, ids);
    p->n_tok[slot] = p->n_prefix[slot] = n;
}

/** A decoding step of some of the sequences, before which some fork or go. */
static void go_on(struct pair *p)
{
    struct esp_seq_rows seqs[SEQS];
    struct esp_want wants[SEQS];
    struct esp_fork fork;
    uint64_t gone;
    int32_t ids[SEQS];
    struct esp_msg_step msg = {
        .epoch = 1, .id = 1, .seqs = seqs, .wants = wants, .forks = &fork, .free = &gone};
    const uint32_t from = below(SEQS), to = below(SEQS), dead = below(SEQS);

    if (p->n_tok[dead] && below(6) == 0) {
        gone = dead + 1;
        msg.n_free = 1;
        p->n_tok[dead] = 0;
    }
    if (p->n_tok[from] && !p->n_tok[to]) {
        fork = (struct esp_fork){to + 1, from + 1};
        msg.n_forks = 1;
        p->n_tok[to] = p->n_tok[from];
        p->n_prefix[to] = p->n_prefix[from];
    }
    for (uint32_t i = 0; i < SEQS; i++) {
        if (!p->n_tok[i] || p->n_tok[i] == MAX_ROWS || below(4) == 0)
            continue;
        ids[msg.rows] = (int32_t)below(p->c->text.vocab);
        wants[msg.rows] = (struct esp_want){.row = msg.rows, .k = 1, .full = true};
        seqs[msg.rows++] =
            (struct esp_seq_rows){.seq = i + 1, .pos = p->n_tok[i]++, .n_tok = 1, .n_prefix = p->n_prefix[i]};
    }
    msg.n_seqs = msg.n_wants = msg.rows;
    if (msg.rows > 0) {
        step(p, &msg, ids);
    } else if (msg.n_forks == 0 && msg.n_free > 0) {
        const struct esp_msg_release release = {.n_seqs = 1, .seqs = &gone};
        esp_chain_release(&p->still, &release);
        esp_chain_release(&p->moving, &release);
    } else if (msg.n_forks > 0) { /* a fork needs a step: this one did not happen */
        const struct esp_msg_release release = {.n_seqs = msg.n_free, .seqs = &gone};
        esp_chain_release(&p->still, &release);
        esp_chain_release(&p->moving, &release);
        p->n_tok[to] = 0;
    }
}

/** Every decoder stage holds what the undisturbed one holds. */
static void check_books(const struct pair *p)
{
    struct esp_stage_info_out want, got;

    esp_stage_info(p->still.stage[0], &want);
    for (uint32_t i = 0; i < 3; i++) {
        esp_stage_info(p->moving.stage[i], &got);
        if (p->moving.spec[i].dec_lo == p->moving.spec[i].dec_hi)
            continue;
        assert_int_equal(got.n_seqs, want.n_seqs);
        assert_int_equal(got.kv_used_blocks, want.kv_used_blocks);
        assert_int_equal(got.n_images, p->moving.spec[i].embed ? want.n_images : 0);
    }
}

static void run(const struct esp_checkpoint *ck)
{
    const size_t pieces[] = {1, 20000, 1u << 20};
    struct esp_chain_moved all = {0}, one;
    struct pair p;
    uint32_t n_enc[3], n_dec[3];

    pair_open(&p, ck);
    random_cut(p.c->text.n_layer, n_dec); /* once before anything lives */
    random_cut(p.c->vision.n_layer, n_enc);
    one = esp_chain_move(&p.moving, n_enc, n_dec, p.images, 2, 1);
    assert_int_equal(one.n_blocks, 0);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < SEQS; i++)
            if (!p.n_tok[i] && below(3) == 0)
                begin(&p, i);
        for (uint32_t n = below(6); n > 0; n--)
            go_on(&p);
        check_books(&p);
        if (round % 4 != 3) /* else only the encoder changes, or nothing */
            random_cut(p.c->text.n_layer, n_dec);
        if (round % 3 != 2)
            random_cut(p.c->vision.n_layer, n_enc);
        one = esp_chain_move(&p.moving, n_enc, n_dec, p.images, 2, pieces[round % 3]);
        all.n_layers += one.n_layers;
        all.n_images += one.n_images;
        all.n_blocks += one.n_blocks;
        check_books(&p);
        go_on(&p);
    }
    print_message("moved %u layers, %llu blocks, %u pictures\n", all.n_layers,
                  (unsigned long long)all.n_blocks, all.n_images);
    assert_true(all.n_blocks > 0 && all.n_layers >= ROUNDS / 4);
    pair_close(&p);
}

static void run_golden(const char *dir, uint64_t seed)
{
    struct esp_checkpoint *ck = NULL;
    struct esp_err err = {0};

    esp_rand_init(&rand_state, seed);
    esp_must(esp_checkpoint_open(&ck, dir, &err), &err);
    run(ck);
    esp_checkpoint_destroy(&ck);
}

static void test_gemma(void **state)
{
    run_golden("tests/golden/data/tiny", 3);
}

/* Windows, soft-caps, two KV heads. */
static void test_gemma2(void **state)
{
    run_golden("tests/golden/data/tiny-pg2", 4);
}

/* Heads of 18 dimensions, 9 a half, which the device pads to 24; three KV heads, blocks no multiple of anything. */
static void test_padded_heads(void **state)
{
    static const char config[] =
        "{\"model_type\":\"paligemma\",\"image_token_index\":313,\"projection_dim\":52,\"bos_token_id\":2,"
        "\"eos_token_id\":1,\"pad_token_id\":0,\"vision_config\":{\"model_type\":\"siglip_vision_model\","
        "\"hidden_size\":30,\"image_size\":28,\"patch_size\":14,\"num_attention_heads\":2,"
        "\"num_hidden_layers\":2,\"intermediate_size\":40},\"text_config\":{\"model_type\":\"gemma\","
        "\"hidden_size\":52,\"num_attention_heads\":6,\"num_key_value_heads\":3,\"head_dim\":18,"
        "\"num_hidden_layers\":5,\"intermediate_size\":61,\"vocab_size\":333}}";
    char dir[32];
    struct esp_checkpoint_spec spec = {.dir = dir,
                                       .config_json = config,
                                       .n_config = sizeof config - 1,
                                       .seed = 5,
                                       .dtype = ESP_BF16,
                                       .n_shard = 1};
    struct esp_err err = {0};

    assert_int_equal(esp_temp_make(dir, sizeof dir), 0);
    esp_must(esp_checkpoint_write(&spec, &err), &err);
    run_golden(dir, 5);
    assert_int_equal(esp_temp_remove(dir), 0);
}

/* ---- what must be refused ---- */

/** A stage of tiny's decoder layers [lo, hi). */
static struct esp_stage_spec decoder(uint32_t lo, uint32_t hi)
{
    return (struct esp_stage_spec){
        .dec_lo = lo, .dec_hi = hi, .max_rows = MAX_ROWS, .kv_tokens = 128, .max_seqs = 4, .max_images = 1};
}

/** 40 rows of a sequence through a stage without ends; what comes out. */
static void feed(struct esp_stage *stage, uint64_t seq, uint32_t width, float *out)
{
    const struct esp_seq_rows rows = {.seq = seq, .n_tok = 40, .n_prefix = 40};
    const struct esp_msg_step msg = {.epoch = 1,
                                     .id = 1,
                                     .payload = ESP_PAYLOAD_ROWS,
                                     .rows = 40,
                                     .width = width,
                                     .n_seqs = 1,
                                     .seqs = &rows};
    float *x = malloc((size_t)40 * width * sizeof *x);
    struct esp_stage_out result;
    struct esp_err err = {0};

    assert_non_null(x);
    for (uint32_t i = 0; i < 40 * width; i++)
        x[i] = (float)(i % 11) / 8 - 0.5f;
    esp_must(esp_stage_step(stage, &msg, x, &result, &err), &err);
    memcpy(out, result.rows, (size_t)40 * width * sizeof *out);
    esp_stage_out_finish(&result);
    free(x);
}

static void expect(esp_status got, const struct esp_err *err, esp_status want, const char *fragment)
{
    if (got != want || !strstr(err->text, fragment))
        fail_msg("%s \"%s\", expected %s \"%s\"", esp_status_name(got), err->text, esp_status_name(want),
                 fragment);
}

/* Blocks that do not fit are refused, and what is right afterwards is taken as if they had not been there. */
static void test_refusals(void **state)
{
    static const uint32_t b01[] = {0, 1}, b02[] = {0, 2};
    struct esp_checkpoint *ck = NULL;
    struct esp_shelf *shelf = NULL;
    struct esp_stage *from = NULL, *to = NULL;
    const struct esp_stage_spec here = decoder(1, 2), there = decoder(1, 2);
    struct esp_stage_kv piece, half;
    struct esp_msg_kv_blocks bad;
    struct esp_stage_info_out info;
    struct esp_err err = {0};
    struct esp_stage_out none;
    float *rows, *after, keep;
    uint32_t width;

    esp_must(esp_checkpoint_open(&ck, "tests/golden/data/tiny", &err), &err);
    width = esp_checkpoint_config(ck)->text.width;
    rows = malloc((size_t)40 * width * sizeof *rows);
    after = malloc((size_t)40 * width * sizeof *after);
    assert_true(rows && after);
    esp_must(esp_shelf_create(&shelf, vk, ck, NULL, NULL, &err), &err);
    esp_must(esp_stage_create(&from, shelf, &here, NULL, NULL, NULL, &err), &err);
    esp_must(esp_stage_create(&to, shelf, &there, NULL, NULL, NULL, &err), &err);
    feed(from, 5, width, rows);

    expect(esp_stage_export_kv(from, 0, 0, 1, &piece, &err), &err, ESP_E_PROTO, "no KV of decoder layer 0");
    expect(esp_stage_export_kv(from, 2, 0, 1, &piece, &err), &err, ESP_E_PROTO, "no KV of decoder layer 2");
    expect(esp_stage_export_kv(from, 1, 3, 1, &piece, &err), &err, ESP_E_PROTO, "block 3 of 2");
    expect(esp_stage_export_features(from, 7, &none, &err), &err, ESP_E_PROTO, "image 7 is not here");
    esp_must(esp_stage_export_kv(from, 1, 2, 1, &piece, &err), &err);
    assert_int_equal(piece.msg.n_blocks, 0);
    assert_null(piece.data);
    esp_stage_kv_finish(&piece);
    esp_must(esp_stage_export_kv(from, 1, 0, 1, &half, &err), &err);
    assert_int_equal(half.msg.n_blocks, 1);
    esp_must(esp_stage_export_kv(from, 1, 0, 1u << 20, &piece, &err), &err);
    assert_int_equal(piece.msg.n_blocks, 2);
    assert_int_equal(piece.msg.n_seqs, 1);

    bad = piece.msg;
    bad.layer = 2;
    expect(esp_stage_import_kv(to, &bad, piece.data, &err), &err, ESP_E_PROTO, "layer 2 is not this stage's");
    bad = piece.msg;
    bad.width /= 2;
    expect(esp_stage_import_kv(to, &bad, piece.data, &err), &err, ESP_E_PROTO,
           "KV blocks f32[32,32], takes f32[32,64]");
    bad = piece.msg;
    bad.block_tokens = 16;
    expect(esp_stage_import_kv(to, &bad, piece.data, &err), &err, ESP_E_PROTO, "takes f32[32,64]");
    bad = piece.msg;
    bad.total_blocks = 5;
    expect(esp_stage_import_kv(to, &bad, piece.data, &err), &err, ESP_E_LIMIT, "5 KV blocks, takes 4");
    bad.total_blocks = 3;
    expect(esp_stage_import_kv(to, &bad, piece.data, &err), &err, ESP_E_PROTO, "block 2 of 3 is nobody's");
    keep = piece.data[1000];
    piece.data[1000] = NAN;
    expect(esp_stage_import_kv(to, &piece.msg, piece.data, &err), &err, ESP_E_NUMBERS,
           "block 0: no finite numbers");
    piece.data[1000] = keep;
    esp_stage_info(to, &info);
    assert_int_equal(info.n_seqs, 0);

    /* The first good one makes the books; from then on they hold. */
    esp_must(esp_stage_import_kv(to, &half.msg, half.data, &err), &err);
    bad = piece.msg;
    bad.seqs = (const struct esp_kv_seq[]){{6, 40, 2, b01}};
    expect(esp_stage_import_kv(to, &bad, piece.data, &err), &err, ESP_E_PROTO,
           "sequence 6 of 40 tokens, here it has 0");
    bad.seqs = (const struct esp_kv_seq[]){{5, 41, 2, b01}};
    expect(esp_stage_import_kv(to, &bad, piece.data, &err), &err, ESP_E_PROTO, "sequence 5 of 41 tokens");
    bad.seqs = (const struct esp_kv_seq[]){{5, 40, 2, b01}, {6, 40, 2, b02}};
    bad.n_seqs = 2;
    bad.total_blocks = 3;
    expect(esp_stage_import_kv(to, &bad, piece.data, &err), &err, ESP_E_PROTO,
           "2 sequences and 3 blocks, but 1 and 2");
    esp_must(esp_stage_import_kv(to, &piece.msg, piece.data, &err), &err);

    { /* both go on alike */
        const struct esp_seq_rows next = {.seq = 5, .pos = 40, .n_tok = 1, .n_prefix = 40};
        const struct esp_msg_step msg = {.epoch = 1,
                                         .id = 2,
                                         .payload = ESP_PAYLOAD_ROWS,
                                         .rows = 1,
                                         .width = width,
                                         .n_seqs = 1,
                                         .seqs = &next};
        struct esp_stage_out a, b;

        esp_must(esp_stage_step(from, &msg, rows, &a, &err), &err);
        esp_must(esp_stage_step(to, &msg, rows, &b, &err), &err);
        assert_memory_equal(a.rows, b.rows, width * sizeof *a.rows);
        esp_stage_out_finish(&a);
        esp_stage_out_finish(&b);
    }
    esp_stage_kv_finish(&piece);
    esp_stage_kv_finish(&half);
    esp_stage_destroy(&from);
    esp_stage_destroy(&to);
    esp_shelf_destroy(&shelf);
    esp_checkpoint_destroy(&ck);
    free(rows);
    free(after);
}

/* What is kept for a move counts: where both do not fit, the new placement is refused and can be made without it. And a
 * cache that has grown too small for what lives is no place to carry it to. */
static void test_no_room(void **state)
{
    const uint64_t budget = vk->report.memory_bytes;
    struct esp_checkpoint *ck = NULL;
    struct esp_shelf *shelf = NULL;
    struct esp_stage *stage = NULL, *next = NULL;
    struct esp_stage_spec now = decoder(1, 3), then = decoder(0, 2), small = decoder(1, 2);
    const struct esp_stage_spec none = {0};
    struct esp_stage_info_out info, alone;
    struct esp_err err = {0};
    float *rows;
    uint32_t width;

    esp_must(esp_checkpoint_open(&ck, "tests/golden/data/tiny", &err), &err);
    width = esp_checkpoint_config(ck)->text.width;
    rows = malloc((size_t)40 * width * sizeof *rows);
    assert_non_null(rows);
    now.head = false;
    now.dec_hi = 2;
    then.dec_lo = 0;
    then.dec_hi = 1;
    then.kv_tokens = now.kv_tokens;
    then.embed = false;
    esp_must(esp_shelf_create(&shelf, vk, ck, NULL, NULL, &err), &err);
    esp_must(esp_stage_create(&next, shelf, &then, NULL, NULL, NULL, &err), &err);
    esp_stage_info(next, &alone);
    esp_stage_destroy(&next);
    esp_must(esp_stage_create(&stage, shelf, &now, NULL, NULL, NULL, &err), &err);
    feed(stage, 5, width, rows);
    esp_stage_info(stage, &info);
    esp_stage_retire(stage);
    assert_true(esp_shelf_beside(shelf, &none) >= info.kv_bytes);
    assert_true(esp_shelf_beside(shelf, &none) < info.kv_bytes + info.scratch_bytes);
    vk->report.memory_bytes = alone.weight_bytes + alone.kv_bytes + alone.scratch_bytes + info.kv_bytes - 1;
    expect(esp_stage_create(&next, shelf, &then, stage, NULL, NULL, &err), &err, ESP_E_NOMEM,
           "of them in use");
    assert_null(next);
    esp_stage_destroy(&stage);
    assert_int_equal(esp_shelf_beside(shelf, &none), 0);
    esp_must(esp_stage_create(&next, shelf, &then, NULL, NULL, NULL, &err), &err);
    esp_stage_destroy(&next);
    vk->report.memory_bytes = budget;

    esp_must(esp_stage_create(&stage, shelf, &now, NULL, NULL, NULL, &err), &err);
    feed(stage, 5, width, rows);
    small.kv_tokens = 32;
    esp_stage_retire(stage);
    expect(esp_stage_create(&next, shelf, &small, stage, NULL, NULL, &err), &err, ESP_E_LIMIT,
           "1 sequences and 2 blocks, takes 4 and 1");
    assert_null(next);
    esp_stage_destroy(&stage);
    assert_int_equal(esp_shelf_beside(shelf, &none), 0);
    esp_shelf_destroy(&shelf);
    esp_checkpoint_destroy(&ck);
    free(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemma),    cmocka_unit_test(test_gemma2),  cmocka_unit_test(test_padded_heads),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_no_room),
    };
    int failed;

    vk = esp_test_device_open();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + esp_test_device_close(&vk);
}
