/*
 * The engine against the reference: every layer's output, logits and greedy tokens of the golden checkpoints,
 * with the layers in one stage and at every split of them; and the logits the same bit for bit at every
 * split. Tolerances: tests/golden/data/README.md, "Tolerances".
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/chain.h"
#include "tests/support/golden.h"
#include "worker/stage_state.h"

#define MAX_ROWS 128

static struct esp_vk *vk;

struct fixture {
    const char *name;
    double decoder_tol; /* relative L2 of decoder rows and logits */
};

static const struct fixture fixtures[] = {{"tiny", 2e-5}, {"odd", 2e-5}, {"tiny-pg2", 4e-5}};

#define VISION_TOL 5e-6

/* A fixture, opened. */
struct bench {
    const struct fixture *f;
    struct esp_golden *golden;
    struct esp_checkpoint *ck;
    const struct esp_config *c;
};

static struct bench bench_open(const struct fixture *f)
{
    struct bench b = {.f = f};
    char path[256];
    struct esp_err err = {0};

    snprintf(path, sizeof path, "tests/golden/data/%s/golden.safetensors", f->name);
    b.golden = esp_golden_open(path);
    snprintf(path, sizeof path, "tests/golden/data/%s", f->name);
    esp_must(esp_checkpoint_open(&b.ck, path, &err), &err);
    b.c = esp_checkpoint_config(b.ck);
    return b;
}

static void bench_close(struct bench *b)
{
    esp_golden_close(&b->golden);
    esp_checkpoint_destroy(&b->ck);
}

static const float *pixels_of(struct bench *b, const char *image)
{
    size_t n;
    const float *p = esp_golden_f32(b->golden, &n, "image.%s.pixel_values", image);
    assert_int_equal(n, 3 * b->c->vision.image_size * b->c->vision.image_size);
    return p;
}

static void whole(struct esp_chain *chain, struct bench *b)
{
    const uint32_t n_enc[1] = {b->c->vision.n_layer}, n_dec[1] = {b->c->text.n_layer};
    esp_chain_open(chain, vk, b->ck, 1, n_enc, n_dec, MAX_ROWS);
}

/* Holds each trace against the golden tensor of its name, with the case's number in it. */
struct watch {
    struct bench *b;
    unsigned k; /* case */
    unsigned n_seen;
    bool ok;
};

static void compare_trace(void *arg, const struct esp_stage_trace *t)
{
    struct watch *w = arg;
    const char *dot = strchr(t->name, '.');
    const bool vision = strncmp(t->name, "vision.", 7) == 0 || strcmp(t->name, "prefill.inputs_embeds") == 0;
    char name[128];
    const float *want;
    size_t n;

    snprintf(name, sizeof name, "%.*s.%u%s", (int)(dot - t->name), t->name, w->k, dot);
    want = esp_golden_f32(w->b->golden, &n, "%s", name);
    assert_int_equal(n, (size_t)t->rows * t->width);
    w->ok =
        esp_close_f32(name, t->data, want, n, t->width, vision ? VISION_TOL : w->b->f->decoder_tol, 1e9) &&
        w->ok;
    w->n_seen++;
}

static void test_vision(void **state)
{
    for (size_t f = 0; f < 3; f++) {
        struct bench b = bench_open(&fixtures[f]);
        const char *const images[2] = {"scene_a", "scene_b"};
        struct esp_chain chain;
        whole(&chain, &b);
        for (unsigned k = 0; k < 2; k++) {
            struct watch w = {&b, k, 0, true};
            esp_chain_encode(&chain, k + 1, pixels_of(&b, images[k]), compare_trace, &w);
            assert_true(w.ok);
            assert_int_equal(w.n_seen, b.c->vision.n_layer + 4);
        }
        esp_chain_close(&chain);
        bench_close(&b);
    }
}

/* Both prefill cases: the prefix alone, and with the suffix after it. */
static void test_prefill(void **state)
{
    for (size_t f = 0; f < 3; f++) {
        struct bench b = bench_open(&fixtures[f]);
        struct esp_chain chain;
        size_t n_prefix;
        whole(&chain, &b);
        esp_chain_encode(&chain, 1, pixels_of(&b, "scene_a"), NULL, NULL);
        esp_golden_i32(b.golden, &n_prefix, "prefill.0.ids");
        for (unsigned k = 0; k < 2; k++) {
            const uint64_t image = 1;
            size_t n_ids, n_logits;
            const int32_t *ids = esp_golden_i32(b.golden, &n_ids, "prefill.%u.ids", k);
            const float *logits =
                esp_golden_f32(b.golden, &n_logits, k ? "prefill.1.logits_last" : "prefill.0.logits");
            const struct esp_seq_rows seq = {.seq = 10 + k,
                                             .n_tok = (uint32_t)n_ids,
                                             .n_prefix = (uint32_t)n_prefix,
                                             .n_images = 1,
                                             .images = &image};
            struct watch w = {&b, k, 0, true};
            struct esp_stage_out out;
            esp_chain_seq(&chain, &seq, ids, 5, k ? 1 : (uint32_t)n_ids, &out, compare_trace, &w);
            assert_true(w.ok);
            assert_int_equal(w.n_seen, b.c->text.n_layer + 2);
            assert_int_equal((size_t)out.n_full * out.vocab, n_logits);
            assert_true(
                esp_close_f32("logits", out.full, logits, n_logits, out.vocab, b.f->decoder_tol, 1e9));
            esp_stage_out_finish(&out);
        }
        esp_chain_close(&chain);
        bench_close(&b);
    }
}

/* Greedy decoding of case k through the chain; the logits of each step go to `logits` f32[n, V] if not NULL.
 */
static void greedy(struct esp_chain *chain, struct bench *b, unsigned k, int32_t *tokens, size_t n,
                   float *logits)
{
    const uint64_t image = 1;
    size_t n_ids;
    const int32_t *ids = esp_golden_i32(b->golden, &n_ids, "generate.%u.ids", k);
    struct esp_seq_rows seq = {.seq = 100 + k,
                               .n_tok = (uint32_t)n_ids,
                               .n_prefix = (uint32_t)n_ids,
                               .n_images = 1,
                               .images = &image};
    struct esp_stage_out out;
    int32_t token = 0;

    for (size_t t = 0; t < n; t++) {
        esp_chain_seq(chain, &seq, t ? &token : ids, 1, 1, &out, NULL, NULL);
        token = tokens[t] = (int32_t)out.results[0].ids[0];
        if (logits)
            memcpy(logits + t * out.vocab, out.full, out.vocab * sizeof *logits);
        seq.pos += seq.n_tok;
        seq.n_tok = 1;
        seq.n_images = 0;
        esp_stage_out_finish(&out);
    }
    esp_stage_release(chain->stage[0], &(struct esp_msg_release){.n_seqs = 1, .seqs = &seq.seq});
}

static void test_generate(void **state)
{
    for (size_t f = 0; f < 3; f++) {
        struct bench b = bench_open(&fixtures[f]);
        struct esp_chain chain;
        whole(&chain, &b);
        for (unsigned k = 0; k < 2; k++) {
            size_t n, n_logits;
            const int32_t *want = esp_golden_i32(b.golden, &n, "generate.%u.tokens", k);
            const float *want_logits = esp_golden_f32(b.golden, &n_logits, "generate.%u.logits", k);
            int32_t got[64];
            float *logits = malloc(n_logits * sizeof *logits);
            assert_non_null(logits);
            assert_true(n <= 64);
            esp_chain_encode(&chain, 1, pixels_of(&b, k ? "scene_b" : "scene_a"), NULL, NULL);
            greedy(&chain, &b, k, got, n, logits);
            assert_memory_equal(got, want, n * sizeof *want);
            assert_true(esp_close_f32("generate logits", logits, want_logits, n_logits, b.c->text.vocab,
                                      b.f->decoder_tol, 1e9));
            free(logits);
        }
        esp_chain_close(&chain);
        bench_close(&b);
    }
}

/* Prefill and eight decode steps at a split; the bits of all logits. */
static void split_logits(struct bench *b, uint32_t n, const uint32_t *n_enc, const uint32_t *n_dec,
                         float *logits)
{
    struct esp_chain chain;
    int32_t tokens[8];

    esp_chain_open(&chain, vk, b->ck, n, n_enc, n_dec, MAX_ROWS);
    esp_chain_encode(&chain, 1, pixels_of(b, "scene_a"), NULL, NULL);
    greedy(&chain, b, 0, tokens, 8, logits);
    esp_chain_close(&chain);
}

/* Every way to cut each tower once, and every layer on a stage of its own: not a bit differs from the uncut
 * run. */
static void test_splits(void **state)
{
    for (size_t f = 0; f < 3; f++) {
        struct bench b = bench_open(&fixtures[f]);
        const uint32_t E = b.c->vision.n_layer, D = b.c->text.n_layer;
        const size_t n = (size_t)8 * b.c->text.vocab;
        float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
        uint32_t one_e[1] = {E}, one_d[1] = {D}, n_enc[ESP_CHAIN_MAX] = {0}, n_dec[ESP_CHAIN_MAX] = {0};

        assert_non_null(want);
        assert_non_null(got);
        split_logits(&b, 1, one_e, one_d, want);
        for (uint32_t e = 0; e <= E; e++) {
            for (uint32_t d = 0; d <= D; d++) {
                uint32_t two_e[2] = {e, E - e}, two_d[2] = {d, D - d};
                split_logits(&b, 2, two_e, two_d, got);
                assert_memory_equal(got, want, n * sizeof *want);
            }
        }
        for (uint32_t i = 0; i < E; i++)
            n_enc[i] = 1;
        for (uint32_t i = 0; i < D; i++)
            n_dec[E + i] = 1;
        split_logits(&b, E + D, n_enc, n_dec, got);
        assert_memory_equal(got, want, n * sizeof *want);
        free(want);
        free(got);
        bench_close(&b);
    }
}

/* Work handed in in pieces, because the device would take too long for a layer at once: not a bit differs. */
static void test_pieces(void **state)
{
    const double submit_s = vk->submit_s;
    struct bench b = bench_open(&fixtures[0]);
    const size_t n = (size_t)8 * b.c->text.vocab;
    float *bits[2] = {malloc(n * sizeof **bits), malloc(n * sizeof **bits)};
    uint32_t n_encode[2], n_prefill[2];

    assert_non_null(bits[0]);
    assert_non_null(bits[1]);
    for (int i = 0; i < 2; i++) {
        struct esp_chain chain;
        int32_t tokens[8];
        vk->submit_s =
            i ? 1e-6 : 0; /* the smallest of these products is 20 times as much at the assumed rate */
        whole(&chain, &b);
        n_encode[i] = chain.stage[0]->ps.encode.n;
        n_prefill[i] = chain.stage[0]->ps.prefill.n;
        esp_chain_encode(&chain, 1, pixels_of(&b, "scene_a"), NULL, NULL);
        greedy(&chain, &b, 0, tokens, 8, bits[i]);
        esp_chain_close(&chain);
    }
    vk->submit_s = submit_s;
    if (esp_vk_has_texels(vk->cls)) { /* nobody watches over a CPU driver */
        assert_int_equal(n_encode[1], n_encode[0]);
    } else {
        assert_true(n_encode[1] > n_encode[0] + 10 * b.c->vision.n_layer);
        assert_true(n_prefill[1] > n_prefill[0] + 10 * b.c->text.n_layer);
    }
    assert_memory_equal(bits[1], bits[0], n * sizeof **bits);
    free(bits[0]);
    free(bits[1]);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vision), cmocka_unit_test(test_prefill), cmocka_unit_test(test_generate),
        cmocka_unit_test(test_splits), cmocka_unit_test(test_pieces),
    };
    int failed;

    vk = esp_test_device_open();
    printf("device: %s, %s, %s kernels\n", vk->report.name, vk->report.driver, vk->report.variant);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + esp_test_device_close(&vk);
}
