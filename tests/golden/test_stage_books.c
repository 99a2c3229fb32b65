/*
 * Sequences in a stage: forks share blocks and copy on write, a row's bits do not depend on its neighbours, and what
 * must be refused is refused without a trace. On the golden checkpoint `tiny`, whole in one stage.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/chain.h"
#include "tests/support/golden.h"

#define MAX_ROWS 128

static struct esp_vk *vk;
static struct esp_checkpoint *ck;
static struct esp_golden *golden;
static struct esp_chain chain;
static const int32_t *ids; /* a prompt with one picture */
static uint32_t n_ids;
static const uint64_t picture = 7;

static struct esp_stage_info_out info(void)
{
    struct esp_stage_info_out i;
    esp_stage_info(chain.stage[0], &i);
    return i;
}

static void release(const uint64_t *seqs, uint32_t n)
{
    esp_stage_release(chain.stage[0], &(struct esp_msg_release){.n_seqs = n, .seqs = seqs});
}

static struct esp_seq_rows prompt_of(uint64_t seq)
{
    return (struct esp_seq_rows){
        .seq = seq, .n_tok = n_ids, .n_prefix = n_ids, .n_images = 1, .images = &picture};
}

static struct esp_seq_rows next_of(uint64_t seq, uint32_t i)
{
    return (struct esp_seq_rows){.seq = seq, .pos = n_ids + i, .n_tok = 1, .n_prefix = n_ids};
}

/* Logits of one row a sequence in one step, f32[n, V], and what frees and forks ride along. */
static void batch(const struct esp_seq_rows *seqs, const int32_t *tokens, uint32_t n,
                  const struct esp_fork *forks, uint32_t n_forks, float *logits)
{
    struct esp_want wants[16];
    struct esp_msg_step step = {.epoch = 1,
                                .id = chain.next_id++,
                                .rows = n,
                                .n_seqs = n,
                                .seqs = seqs,
                                .n_wants = n,
                                .wants = wants,
                                .n_forks = n_forks,
                                .forks = forks};
    struct esp_stage_out out;

    for (uint32_t i = 0; i < n; i++)
        wants[i] = (struct esp_want){.row = i, .k = 1, .full = true};
    esp_chain_step(&chain, &step, tokens, &out, NULL, NULL);
    assert_int_equal(out.n_full, n);
    memcpy(logits, out.full, (size_t)n * out.vocab * sizeof *logits);
    esp_stage_out_finish(&out);
}

static void prefill(uint64_t seq)
{
    struct esp_seq_rows p = prompt_of(seq);
    struct esp_stage_out out;
    esp_chain_seq(&chain, &p, ids, 1, 1, &out, NULL, NULL);
    esp_stage_out_finish(&out);
}

/* Three continuations of one prompt: each alone from a prefill of its own, then all as forks in shared steps. The
 * prompt ends inside a block, so every fork but one copies it. */
static void test_forks(void **state)
{
    enum { N = 3, T = 40 }; /* past the next block's border */
    const size_t vocab = esp_checkpoint_config(ck)->text.vocab;
    const uint64_t seqs[N] = {30, 31, 32};
    const struct esp_fork forks[N - 1] = {{31, 30}, {32, 30}};
    float *alone = malloc(N * T * vocab * sizeof *alone), *together = malloc(N * vocab * sizeof *together);
    struct esp_seq_rows rows[N];
    int32_t tokens[N];

    assert_non_null(alone);
    assert_non_null(together);
    for (uint32_t s = 0; s < N; s++) {
        prefill(20);
        for (uint32_t t = 0; t < T; t++) {
            rows[0] = next_of(20, t);
            tokens[0] = (int32_t)(1000 + 100 * s + t);
            batch(rows, tokens, 1, NULL, 0, alone + (s * T + t) * vocab);
        }
        release((const uint64_t[]){20}, 1);
    }
    prefill(30);
    for (uint32_t t = 0; t < T; t++) {
        for (uint32_t s = 0; s < N; s++) {
            rows[s] = next_of(seqs[s], t);
            tokens[s] = (int32_t)(1000 + 100 * s + t);
        }
        batch(rows, tokens, N, forks, t == 0 ? N - 1 : 0, together);
        for (uint32_t s = 0; s < N; s++)
            assert_memory_equal(together + s * vocab, alone + (s * T + t) * vocab, vocab * sizeof *alone);
    }
    release(seqs, N);
    assert_int_equal(info().kv_used_blocks, 0);
    assert_int_equal(info().n_seqs, 0);
    free(alone);
    free(together);
}

/* Prompts of three sessions, one with a picture and one with a start of its answer, in one step: the logits of each are
 * those that it has alone, of its last row and of the row after that. */
static void test_prompts_together(void **state)
{
    enum { N = 3 };
    const size_t vocab = esp_checkpoint_config(ck)->text.vocab;
    float *want = malloc(2 * N * vocab * sizeof *want), *got = malloc(N * vocab * sizeof *got);
    const uint32_t n_tok[N] = {n_ids, 11, 17};
    const uint64_t seqs[N] = {70, 71, 72};
    const int32_t token[N] = {5, 6, 7};
    struct esp_seq_rows first[N], next[N];
    int32_t all[MAX_ROWS];
    struct esp_want wants[N];
    struct esp_msg_step step = {.epoch = 1, .n_seqs = N, .seqs = first, .n_wants = N, .wants = wants};
    struct esp_stage_out out;

    assert_non_null(want);
    assert_non_null(got);
    for (uint32_t s = 0; s < N; s++) {
        const int32_t *mine = all + step.rows;

        memcpy(all + step.rows, ids + n_ids - n_tok[s],
               n_tok[s] * sizeof *all); /* 1 and 2: of the text alone */
        first[s] = s == 0 ? prompt_of(seqs[s])
                          : (struct esp_seq_rows){.seq = seqs[s],
                                                  .n_tok = n_tok[s],
                                                  .n_prefix = s == 2 ? n_tok[s] - 4 : n_tok[s]};
        next[s] =
            (struct esp_seq_rows){.seq = seqs[s], .pos = n_tok[s], .n_tok = 1, .n_prefix = first[s].n_prefix};
        esp_chain_seq(&chain, &first[s], mine, 1, 1, &out, NULL, NULL);
        assert_int_equal(out.n_full, 1);
        memcpy(want + s * vocab, out.full, vocab * sizeof *want);
        esp_stage_out_finish(&out);
        batch(&next[s], &token[s], 1, NULL, 0, want + (N + s) * vocab);
        step.rows += n_tok[s];
        wants[s] = (struct esp_want){.row = step.rows - 1, .k = 1, .full = true};
    }
    release(seqs, N);
    step.id = chain.next_id++;
    esp_chain_step(&chain, &step, all, &out, NULL, NULL);
    assert_int_equal(out.n_full, N);
    assert_memory_equal(out.full, want, N * vocab * sizeof *want);
    esp_stage_out_finish(&out);
    batch(next, token, N, NULL, 0, got);
    assert_memory_equal(got, want + N * vocab, N * vocab * sizeof *want);
    release(seqs, N);
    assert_int_equal(info().kv_used_blocks, 0);
    free(want);
    free(got);
}

/*
 * Bringing a sequence back after a loss: the prompt again, then the tokens fed since, many rows to a step and without any
 * wants. What was computed for each of them one by one is there again to the bit: the next token's logits are the same, in
 * a copy as well.
 */
static void test_rebuilt(void **state)
{
    enum {
        N = 3,
        T = 42
    }; /* past a block's border, and more rows than a tile of attention or a product has */
    static const uint32_t cuts[][4] = {{T, 0}, {1, 2, T - 3, 0}, {20, T - 20, 0}};
    const size_t vocab = esp_checkpoint_config(ck)->text.vocab;
    const uint64_t seqs[N] = {60, 61, 62};
    const struct esp_fork forks[N - 1] = {{61, 60}, {62, 60}};
    float *want = malloc(N * vocab * sizeof *want), *got = malloc(N * vocab * sizeof *got);
    struct esp_seq_rows rows[N];
    int32_t tokens[N], past[N * T];

    assert_non_null(want);
    assert_non_null(got);
    for (uint32_t s = 0; s < N; s++) { /* one after the other, a token a step */
        prefill(50);
        for (uint32_t t = 0; t <= T; t++) {
            rows[0] = next_of(50, t);
            tokens[0] = (int32_t)(900 + 100 * s + t);
            batch(rows, tokens, 1, NULL, 0, want + s * vocab);
        }
        release((const uint64_t[]){50}, 1);
    }
    for (size_t c = 0; c < sizeof cuts / sizeof cuts[0]; c++) {
        uint32_t done = 0;

        prefill(60);
        for (const uint32_t *n = cuts[c]; *n; done += *n++) {
            struct esp_msg_step step = {.epoch = 1,
                                        .id = chain.next_id++,
                                        .rows = N * *n,
                                        .n_seqs = N,
                                        .seqs = rows,
                                        .n_forks = done == 0 ? N - 1 : 0,
                                        .forks = forks};
            struct esp_stage_out out;

            for (uint32_t s = 0; s < N; s++) {
                rows[s] = next_of(seqs[s], done);
                rows[s].n_tok = *n;
                for (uint32_t t = 0; t < *n; t++)
                    past[s * *n + t] = (int32_t)(900 + 100 * s + done + t);
            }
            esp_chain_step(&chain, &step, past, &out, NULL, NULL);
            assert_int_equal(out.n_results, 0);
            esp_stage_out_finish(&out);
        }
        assert_int_equal(done, T);
        for (uint32_t s = 0; s < N; s++) {
            rows[s] = next_of(seqs[s], T);
            tokens[s] = (int32_t)(900 + 100 * s + T);
        }
        batch(rows, tokens, N, NULL, 0, got);
        assert_memory_equal(got, want, N * vocab * sizeof *want);
        release(seqs, N);
        assert_int_equal(info().kv_used_blocks, 0);
    }
    free(want);
    free(got);
}

/* More sequences in a step than any kernel takes at once: still the same bits as alone. */
static void test_many(void **state)
{
    enum { N = 11 };
    const size_t vocab = esp_checkpoint_config(ck)->text.vocab;
    float *want = malloc(vocab * sizeof *want), *got = malloc(N * vocab * sizeof *got);
    struct esp_seq_rows rows[N];
    struct esp_fork forks[N];
    uint64_t seqs[N + 1];
    int32_t tokens[N];

    assert_non_null(want);
    assert_non_null(got);
    prefill(40);
    for (uint32_t s = 0; s < N; s++) {
        seqs[s] = 41 + s;
        forks[s] = (struct esp_fork){41 + s, 40};
        rows[s] = next_of(41 + s, 0);
        tokens[s] = (int32_t)(77 * s + 5);
    }
    batch(rows, tokens, N, forks, N, got);
    release(seqs, N);
    for (uint32_t s = 0; s < N; s++) {
        batch(&rows[s], &tokens[s], 1, &forks[s], 1, want);
        assert_memory_equal(got + s * vocab, want, vocab * sizeof *want);
        release(&seqs[s], 1);
    }
    release((const uint64_t[]){40}, 1);
    assert_int_equal(info().kv_used_blocks, 0);
    free(want);
    free(got);
}

struct refusal {
    const char *what;
    struct esp_seq_rows seq;
    uint32_t rows; /* of the message */
    int32_t id;    /* of all rows */
    struct esp_want want;
    esp_status st;
    const char *says;
};

static void test_refusals(void **state)
{
    const uint64_t other = 99;
    const uint32_t vocab = esp_checkpoint_config(ck)->text.vocab;
    const struct refusal table[] = {
        {"unknown sequence",
         {.seq = 50, .pos = 5, .n_tok = 1, .n_prefix = 3},
         1,
         9,
         {0},
         ESP_E_PROTO,
         "expected 0"},
        {"a gap",
         {.seq = 60, .pos = n_ids + 1, .n_tok = 1, .n_prefix = n_ids},
         1,
         9,
         {0},
         ESP_E_PROTO,
         "position"},
        {"again from 0",
         {.seq = 60, .n_tok = 5, .n_prefix = 5},
         5,
         9,
         {0},
         ESP_E_PROTO,
         "position 0, expected"},
        {"part of a prefix", {.seq = 50, .n_tok = 4, .n_prefix = 5}, 4, 9, {0}, ESP_E_PROTO, "comes whole"},
        {"no prefix", {.seq = 50, .n_tok = 4}, 4, 9, {0}, ESP_E_PROTO, "comes whole"},
        {"unknown picture",
         {.seq = 50, .n_tok = 20, .n_prefix = 20, .n_images = 1, .images = &other},
         20,
         9,
         {0},
         ESP_E_PROTO,
         "image 99 is not here"},
        {"a picture longer than the prefix",
         {.seq = 50, .n_tok = 10, .n_prefix = 10, .n_images = 1, .images = &picture},
         10,
         9,
         {0},
         ESP_E_PROTO,
         "1 images in a prefix of 10"},
        {"id beyond the vocabulary",
         {.seq = 50, .n_tok = 2, .n_prefix = 2},
         2,
         (int32_t)vocab,
         {0},
         ESP_E_PROTO,
         "outside of the vocabulary"},
        {"negative id",
         {.seq = 50, .n_tok = 2, .n_prefix = 2},
         2,
         -1,
         {0},
         ESP_E_PROTO,
         "outside of the vocabulary"},
        {"target beyond the vocabulary",
         {.seq = 50, .n_tok = 2, .n_prefix = 2},
         2,
         9,
         {.row = 1, .k = 1, .has_target = true, .target = vocab},
         ESP_E_PROTO,
         "target"},
        {"too many rows",
         {.seq = 50, .n_tok = MAX_ROWS + 1, .n_prefix = 2},
         MAX_ROWS + 1,
         9,
         {0},
         ESP_E_LIMIT,
         "this placement takes 128"},
        {"longer than the context",
         {.seq = 60, .pos = n_ids, .n_tok = MAX_ROWS - 1, .n_prefix = n_ids},
         MAX_ROWS - 1,
         9,
         {0},
         ESP_E_LIMIT,
         "positions"},
    };
    int32_t tokens[MAX_ROWS + 1];

    prefill(60);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        const struct refusal *r = &table[i];
        const struct esp_stage_info_out before = info();
        const struct esp_msg_step step = {.epoch = 1,
                                          .id = 1,
                                          .payload = ESP_PAYLOAD_TOKENS,
                                          .rows = r->rows,
                                          .width = 1,
                                          .n_seqs = 1,
                                          .seqs = &r->seq,
                                          .n_wants = r->want.k,
                                          .wants = &r->want};
        struct esp_stage_out out;
        struct esp_err err = {0};
        for (uint32_t t = 0; t < r->rows; t++)
            tokens[t] = r->id;
        if (esp_stage_step(chain.stage[0], &step, tokens, &out, &err) != r->st || !strstr(err.text, r->says))
            fail_msg("%s: %s: %s", r->what, esp_status_name(err.code), err.text);
        assert_int_equal(info().kv_used_blocks, before.kv_used_blocks);
        assert_int_equal(info().n_seqs, before.n_seqs);
    }
    release((const uint64_t[]){60}, 1);
}

/* The cache runs full: the step is refused whole, and what was there goes on. */
static void test_full(void **state)
{
    const struct esp_stage_info_out all = info();
    uint64_t seqs[64];
    uint32_t n = 0;
    struct esp_err err = {0};
    esp_status st = ESP_OK;
    int32_t token = 5;

    while (st == ESP_OK && n < 64) {
        const struct esp_seq_rows p = {.seq = 200 + n, .n_tok = MAX_ROWS, .n_prefix = 1};
        const struct esp_msg_step step = {.epoch = 1,
                                          .id = 1,
                                          .payload = ESP_PAYLOAD_TOKENS,
                                          .rows = MAX_ROWS,
                                          .width = 1,
                                          .n_seqs = 1,
                                          .seqs = &p};
        int32_t tokens[MAX_ROWS] = {0};
        struct esp_stage_out out;
        st = esp_stage_step(chain.stage[0], &step, tokens, &out, &err);
        esp_stage_out_finish(&out);
        if (st == ESP_OK)
            seqs[n++] = p.seq;
    }
    assert_int_equal(st, ESP_E_LIMIT);
    assert_non_null(strstr(err.text, "KV cache"));
    assert_int_equal(info().n_seqs, n);
    release(seqs, 1);
    prefill(300); /* there is room again */
    const struct esp_seq_rows go_on = next_of(300, 0);
    float *logits = malloc(esp_checkpoint_config(ck)->text.vocab * sizeof *logits);
    assert_non_null(logits);
    batch(&go_on, &token, 1, NULL, 0, logits);
    free(logits);
    release(seqs + 1, n - 1);
    release((const uint64_t[]){300}, 1);
    assert_int_equal(info().kv_used_blocks, all.kv_used_blocks);
}

/* Rows that left the numbers end in an error of their own and leave nothing behind: the stage goes on, and a
 * sequence that gets the same blocks of the cache afterwards has the very bits it would have had. */
static void test_no_number(void **state)
{
    const struct esp_config *c = esp_checkpoint_config(ck);
    const struct esp_stage_spec spec = {.dec_lo = 1,
                                        .dec_hi = c->text.n_layer,
                                        .head = true,
                                        .max_rows = MAX_ROWS,
                                        .kv_tokens = 64,
                                        .max_seqs = 4,
                                        .max_images = 1};
    const uint64_t id = 1;
    const size_t n_bytes = c->text.vocab * sizeof(float);
    float *rows = malloc((size_t)64 * c->text.width * sizeof *rows), *first = malloc(n_bytes);
    struct esp_shelf *shelf = NULL;
    struct esp_stage *stage = NULL;
    struct esp_stage_out out;
    struct esp_err err = {0};

    assert_true(rows && first);
    esp_must(esp_shelf_create(&shelf, vk, ck, NULL, NULL, &err), &err);
    esp_must(esp_stage_create(&stage, shelf, &spec, NULL, NULL, NULL, &err), &err);
    for (int round = 0; round < 3; round++) {
        const uint32_t n = round == 1 ? 64 : 33; /* the bad step fills what the good ones leave masked */
        const struct esp_seq_rows seq = {.seq = id, .n_tok = n, .n_prefix = n};
        const struct esp_want want = {.row = n - 1, .k = 4, .full = true};
        const struct esp_msg_step step = {.epoch = 1,
                                          .id = 1,
                                          .payload = ESP_PAYLOAD_ROWS,
                                          .rows = n,
                                          .width = c->text.width,
                                          .n_seqs = 1,
                                          .seqs = &seq,
                                          .n_wants = 1,
                                          .wants = &want};
        for (size_t i = 0; i < (size_t)n * c->text.width; i++)
            rows[i] = round == 1 && i % 1000 == 0 ? INFINITY : (float)(i % 7) - 3.0f;
        if (round == 1) {
            assert_int_equal(esp_stage_step(stage, &step, rows, &out, &err), ESP_E_NUMBERS);
            assert_non_null(strstr(err.text, "no finite number"));
        } else {
            esp_must(esp_stage_step(stage, &step, rows, &out, &err), &err);
            if (round == 0)
                memcpy(first, out.full, n_bytes);
            else
                assert_memory_equal(out.full, first, n_bytes);
            esp_stage_out_finish(&out);
            esp_stage_release(stage, &(struct esp_msg_release){.n_seqs = 1, .seqs = &id});
        }
    }
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
    free(rows);
    free(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forks),     cmocka_unit_test(test_prompts_together),
        cmocka_unit_test(test_rebuilt),   cmocka_unit_test(test_many),
        cmocka_unit_test(test_refusals),  cmocka_unit_test(test_full),
        cmocka_unit_test(test_no_number),
    };
    struct esp_err err = {0};
    size_t n;
    int failed;

    esp_must(esp_checkpoint_open(&ck, "tests/golden/data/tiny", &err), &err);
    vk = esp_test_device_open();
    golden = esp_golden_open("tests/golden/data/tiny/golden.safetensors");
    ids = esp_golden_i32(golden, &n, "generate.0.ids");
    n_ids = (uint32_t)n;
    const uint32_t n_enc[1] = {esp_checkpoint_config(ck)->vision.n_layer};
    const uint32_t n_dec[1] = {esp_checkpoint_config(ck)->text.n_layer};
    esp_chain_open(&chain, vk, ck, 1, n_enc, n_dec, MAX_ROWS);
    esp_chain_encode(&chain, picture, esp_golden_f32(golden, &n, "image.scene_a.pixel_values"), NULL, NULL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    esp_chain_close(&chain);
    esp_golden_close(&golden);
    esp_checkpoint_destroy(&ck);
    return failed + esp_test_device_close(&vk);
}
