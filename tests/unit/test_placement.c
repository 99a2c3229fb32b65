/* From a model's shape and a fleet's reports to stages: coverage, memory, splits by hand, words of refusal.
 */
#include "coordinator/placement.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GIB (UINT64_C(1) << 30)
#define MIB (UINT64_C(1) << 20)

enum { MAXW = 64 };

/* google/paligemma-3b-*-224 as published. */
static const struct esp_config paligemma_3b = {.vision = {.width = 1152,
                                                          .n_layer = 27,
                                                          .n_head = 16,
                                                          .head_dim = 72,
                                                          .mlp_dim = 4304,
                                                          .image_size = 224,
                                                          .patch_size = 14,
                                                          .n_channel = 3,
                                                          .n_token = 256},
                                               .text = {.width = 2048,
                                                        .n_layer = 18,
                                                        .n_head = 8,
                                                        .n_kv_head = 1,
                                                        .head_dim = 256,
                                                        .mlp_dim = 16384,
                                                        .vocab = 257216}};
/* The small fixtures: 2 + 3 and 3 + 4 layers. */
static const struct esp_config tiny = {.vision = {.width = 144,
                                                  .n_layer = 2,
                                                  .n_head = 2,
                                                  .head_dim = 72,
                                                  .mlp_dim = 304,
                                                  .image_size = 56,
                                                  .patch_size = 14,
                                                  .n_channel = 3,
                                                  .n_token = 16},
                                       .text = {.width = 192,
                                                .n_layer = 3,
                                                .n_head = 8,
                                                .n_kv_head = 1,
                                                .head_dim = 32,
                                                .mlp_dim = 448,
                                                .vocab = 5568}};
static const struct esp_config odd = {.vision = {.width = 216,
                                                 .n_layer = 3,
                                                 .n_head = 3,
                                                 .head_dim = 72,
                                                 .mlp_dim = 404,
                                                 .image_size = 84,
                                                 .patch_size = 14,
                                                 .n_channel = 3,
                                                 .n_token = 36},
                                      .text = {.width = 96,
                                               .n_layer = 4,
                                               .n_head = 4,
                                               .n_kv_head = 1,
                                               .head_dim = 256,
                                               .mlp_dim = 320,
                                               .vocab = 5568}};

static const struct esp_cost_options bf16 = {.bytes_per_weight = 2, .n_image = 1, .max_rows = 512};

static struct esp_place_worker a_worker(uint64_t memory_bytes)
{
    return (struct esp_place_worker){.memory_bytes = memory_bytes, .bandwidth = 20e9, .matmul_rate = 100e9};
}

/* Everything once, in order, within memory, and the sums right. */
static void check_whole(const struct esp_placement *p, const struct esp_model_cost *cost,
                        const struct esp_place_worker *w, uint32_t n_worker)
{
    bool seen[ESP_PLACE_MAX_WORKERS] = {false};
    uint32_t at = 0;
    double most = 0;

    for (uint32_t i = 0; i < p->n_enc_stage; i++) {
        const struct esp_place_stage *s = &p->stage[p->enc_order[i]];
        assert_int_equal(s->enc_lo, at);
        assert_true(s->enc_hi > s->enc_lo);
        assert_int_equal(s->patch, i == 0);
        assert_int_equal(s->projector, i == p->n_enc_stage - 1);
        at = s->enc_hi;
    }
    assert_int_equal(at, cost->n_enc);
    at = 0;
    for (uint32_t i = 0; i < p->n_dec_stage; i++) {
        const struct esp_place_stage *s = &p->stage[p->dec_order[i]];
        assert_int_equal(s->dec_lo, at);
        assert_true(s->dec_hi > s->dec_lo);
        assert_int_equal(s->embed, i == 0);
        assert_int_equal(s->head, i == p->n_dec_stage - 1);
        at = s->dec_hi;
    }
    assert_int_equal(at, cost->n_dec);
    for (uint32_t i = 0; i < p->n_stage; i++) {
        const struct esp_place_stage *s = &p->stage[i];
        uint64_t weights = (s->enc_hi - s->enc_lo) * cost->enc_layer.weight_bytes +
                           (s->dec_hi - s->dec_lo) * cost->dec_layer.weight_bytes +
                           (s->patch ? cost->patch.weight_bytes : 0) +
                           (s->head ? cost->head.weight_bytes : 0) +
                           (s->projector ? cost->projector.weight_bytes : 0) +
                           (s->embed || s->head ? cost->embed.weight_bytes : 0);
        assert_true(s->worker < n_worker && !seen[s->worker]);
        seen[s->worker] = true;
        assert_true(s->weight_bytes == weights);
        assert_true(s->weight_bytes + s->kv_bytes + s->scratch_bytes <= w[s->worker].memory_bytes);
        assert_true(s->enc_hi > s->enc_lo || s->dec_hi > s->dec_lo);
        assert_true(s->enc_hi > s->enc_lo || !(s->patch || s->projector));
        assert_true(s->dec_hi > s->dec_lo || !(s->embed || s->head));
        most = fmax(most, s->busy_seconds);
    }
    for (uint32_t i = 0; i < p->n_spare; i++) {
        assert_true(p->spare[i] < n_worker && !seen[p->spare[i]]);
        seen[p->spare[i]] = true;
    }
    assert_int_equal(p->n_stage + p->n_spare, n_worker);
    assert_true(p->bottleneck_seconds == most);
    assert_true(p->latency_seconds >= most);
}

static void place_ok(struct esp_placement *p, struct esp_model_cost *cost, const struct esp_config *config,
                     const struct esp_place_worker *w, uint32_t n_worker, uint32_t kv_tokens)
{
    struct esp_place_options o;
    struct esp_err err = {0};

    esp_place_options_init(&o, kv_tokens);
    assert_int_equal(esp_model_cost_fill(cost, config, &bf16, &err), ESP_OK);
    if (esp_place(p, cost, w, n_worker, &o, &err) != ESP_OK)
        fail_msg("%s", err.text);
    check_whole(p, cost, w, n_worker);
}

static void test_cost_of_3b(void **state)
{
    struct esp_model_cost c;
    uint64_t all;

    assert_int_equal(esp_model_cost_fill(&c, &paligemma_3b, &bf16, NULL), ESP_OK);
    all = 27 * c.enc_layer.weight_bytes + 18 * c.dec_layer.weight_bytes + c.patch.weight_bytes +
          c.projector.weight_bytes + c.embed.weight_bytes + c.head.weight_bytes;
    /* The published files hold 2923466480 weights; ours keep norms and biases at 4 bytes, and no pooling
     * head. */
    assert_true(fabs((double)all - 2.0 * 2923466480.0) < 4e6);
    assert_int_equal(c.kv_token_bytes, 2 * 256 * 4);
    assert_true(c.head.decode.n_bytes == 2.0 * 257216 * 2048);
    assert_true(c.decode_hop_bytes == 4.0 * 2048 && c.feature_hop_bytes == 4.0 * 256 * 2048);
}

static void test_one_worker(void **state)
{
    struct esp_place_worker w = a_worker(8 * GIB);
    struct esp_placement p;
    struct esp_model_cost c;

    place_ok(&p, &c, &paligemma_3b, &w, 1, 1024);
    assert_int_equal(p.n_stage, 1);
    assert_int_equal(p.stage[0].enc_hi, 27);
    assert_int_equal(p.stage[0].dec_hi, 18);
    assert_int_equal(p.fewer, 0);
    assert_true(p.latency_seconds == p.bottleneck_seconds); /* no hops */
}

/* Equal workers all work as long as there are layers, on the fixtures too; both towers spread over two. */
static void test_equal_workers(void **state)
{
    static const struct esp_config *models[] = {&tiny, &odd, &paligemma_3b};
    struct esp_place_worker w[MAXW];
    struct esp_placement p, again;
    struct esp_model_cost c;

    for (uint32_t i = 0; i < MAXW; i++)
        w[i] = a_worker(16 * GIB);
    for (uint32_t m = 0; m < 3; m++) {
        for (uint32_t n = 1; n <= MAXW; n += n < 8 ? 1 : 7) {
            uint32_t n_layer = models[m]->vision.n_layer + models[m]->text.n_layer;
            place_ok(&p, &c, models[m], w, n, 1024);
            assert_int_equal(p.n_stage, n < n_layer ? n : n_layer);
            place_ok(&again, &c, models[m], w, n, 1024);
            assert_memory_equal(&p, &again, sizeof p);
        }
    }
    for (uint32_t m = 0; m < 3; m++) {
        place_ok(&p, &c, models[m], w, 2, 1024);
        assert_int_equal(p.n_enc_stage, 2);
        assert_int_equal(p.n_dec_stage, 2);
    }
    assert_true(p.stage[0].busy_seconds < 1.1 * p.stage[1].busy_seconds &&
                p.stage[1].busy_seconds < 1.1 * p.stage[0].busy_seconds);
}

/* Two 4 GB devices and one of 12 GB: none could hold it all but the large one, and that one alone would be
 * slowest. */
static void test_two_small_one_large(void **state)
{
    struct esp_place_worker w[3] = {a_worker(4 * GIB), a_worker(4 * GIB), a_worker(12 * GIB)};
    struct esp_placement p;
    struct esp_model_cost c;

    place_ok(&p, &c, &paligemma_3b, w, 3, 4096);
    assert_int_equal(p.n_stage, 3);
    w[2].bandwidth *= 100;
    w[2].matmul_rate *= 100;
    place_ok(&p, &c, &paligemma_3b, w, 3, 4096);
    assert_int_equal(p.n_stage, 1); /* a hundred times as fast: the others would only hold it up */
    assert_int_equal(p.stage[0].worker, 2);
    assert_int_equal(p.n_spare, 2);
    w[2].memory_bytes = 3 * GIB;
    place_ok(&p, &c, &paligemma_3b, w, 3, 1024);
    assert_true(p.n_stage >= 2); /* but it no longer holds it */
}

static void test_more_or_less(void **state)
{
    struct esp_place_worker w[2] = {a_worker(16 * GIB), a_worker(16 * GIB)};
    struct esp_placement p;
    struct esp_model_cost c;

    w[1].bandwidth /= 3;
    w[1].matmul_rate /= 3;
    place_ok(&p, &c, &paligemma_3b, w, 2, 1024);
    assert_int_equal(p.n_stage, 2); /* throughput gains */
    assert_int_equal(p.fewer, 1);   /* a lone request does not */
    assert_true(p.fewer_seconds < p.latency_seconds);
}

/* Measured rates wander; the placement does not, as long as they round alike. */
static void test_noise(void **state)
{
    struct esp_place_worker w[5];
    struct esp_placement p, q;
    struct esp_model_cost c;

    assert_true(fabs(esp_place_round_rate(100e9) / 100e9 - 1) < 0.12);
    assert_true(esp_place_round_rate(1.0) == 1.0);
    assert_true(esp_place_round_rate(1.11) == 1.0 && esp_place_round_rate(1.13) == 1.25);
    for (uint32_t i = 0; i < 5; i++) {
        w[i] = a_worker(16 * GIB);
        w[i].bandwidth = esp_place_round_rate(20e9);
        w[i].matmul_rate = esp_place_round_rate(100e9);
    }
    place_ok(&p, &c, &paligemma_3b, w, 5, 1024);
    for (uint32_t i = 0; i < 5; i++) {
        w[i].bandwidth *= 0.92 + 0.04 * i;
        w[i].matmul_rate *= 1.08 - 0.04 * i;
    }
    place_ok(&q, &c, &paligemma_3b, w, 5, 1024);
    assert_memory_equal(&p, &q, sizeof p);
}

/* Cores shared with others make equal devices look up to twice as slow: that leaves none of five idle. */
static void test_rough_rates_still_spread(void **state)
{
    struct esp_place_worker w[5];
    struct esp_placement p;
    struct esp_model_cost c;
    uint32_t rng = 11;

    for (uint32_t t = 0; t < 300; t++) {
        uint32_t n = 2 + t % 4;
        for (uint32_t i = 0; i < n; i++) {
            rng = rng * 1664525u + 1013904223u;
            w[i] = a_worker(GIB);
            w[i].device = "a driver that shares its cores";
            w[i].bandwidth /= 1.0 + (rng >> 24) / 256.0;
            w[i].matmul_rate /= 1.0 + (rng >> 16 & 255) / 256.0;
        }
        place_ok(&p, &c, t % 2 ? &tiny : &odd, w, n, 1024);
        assert_int_equal(p.n_spare, 0);
    }
    /* Same name, another order of speed: believed. */
    w[0] = w[1] = a_worker(16 * GIB);
    w[0].device = w[1].device = "a driver";
    w[1].bandwidth *= 100;
    w[1].matmul_rate *= 100;
    place_ok(&p, &c, &paligemma_3b, w, 2, 1024);
    assert_int_equal(p.n_stage, 1);
    assert_int_equal(p.stage[0].worker, 1);
}

static void test_random_fleets(void **state)
{
    struct esp_place_worker w[MAXW];
    struct esp_placement p;
    struct esp_place_options o;
    struct esp_model_cost c;
    uint32_t rng = 3, n_ok = 0;

    esp_place_options_init(&o, 2048);
    for (uint32_t t = 0; t < 60; t++) {
        uint32_t n = 1 + t % 20;
        esp_status st;
        for (uint32_t i = 0; i < n; i++) {
            rng = rng * 1664525u + 1013904223u;
            w[i] = a_worker(GIB + (rng >> 28) * GIB / 2);
            w[i].bandwidth *= 0.2 + (rng >> 20 & 255) / 16.0;
            w[i].matmul_rate *= 0.2 + (rng >> 12 & 255) / 16.0;
        }
        assert_int_equal(esp_model_cost_fill(&c, &paligemma_3b, &bf16, NULL), ESP_OK);
        st = esp_place(&p, &c, w, n, &o, NULL);
        assert_true(st == ESP_OK || st == ESP_E_NOMEM);
        if (st)
            continue;
        n_ok++;
        check_whole(&p, &c, w, n);
    }
    assert_true(n_ok > 30);
}

static void test_refused(void **state)
{
    static const struct {
        const char *want;
        esp_status st;
        uint32_t n_worker;
        uint64_t memory_bytes, max_alloc_bytes;
        double bandwidth;
        uint32_t kv_tokens;
    } cases[] = {
        {"no worker to place the model on", ESP_E_ARG, 0, GIB, 0, 1e9, 1024},
        {"257 workers, a placement takes 256", ESP_E_ARG, 257, GIB, 0, 1e9, 1024},
        {"worker 0 reports 0 bytes/s", ESP_E_ARG, 2, GIB, 0, 0, 1024},
        {"no rates to plan with", ESP_E_ARG, 2, GIB, 0, NAN, 1024},
        {"a KV cache of 0 tokens", ESP_E_ARG, 2, GIB, 0, 1e9, 0},
        {"the model needs 5.6 GiB (weights 5.4 GiB, KV cache of 1024 tokens 36.0 MiB, scratch", ESP_E_NOMEM,
         2, GIB, 0, 1e9, 1024},
        {"does not fit: worker 0 1.0 GiB, worker 1 1.0 GiB. Add workers or memory, ask for fewer tokens of "
         "context, or "
         "load smaller weights",
         ESP_E_NOMEM, 2, GIB, 0, 1e9, 1024},
        {"worker 5 1.0 MiB, and 34 more. Add workers", ESP_E_NOMEM, 40, MIB, 0, 1e9, 1024},
        {"the embedding table takes an allocation of 1004.8 MiB, and no worker can make one (worker 0: 128.0 "
         "MiB at "
         "most)",
         ESP_E_NOMEM, 2, 16 * GIB, 128 * MIB, 1e9, 1024},
        {"KV cache of 4294967295 tokens 147456.0 GiB", ESP_E_NOMEM, 2, 64 * GIB, 0, 1e9, UINT32_MAX},
    };
    static struct esp_place_worker w[257];
    struct esp_placement p;
    struct esp_model_cost c;
    struct esp_err err;

    assert_int_equal(esp_model_cost_fill(&c, &paligemma_3b, &bf16, &err), ESP_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct esp_place_options o;
        esp_place_options_init(&o, cases[i].kv_tokens);
        for (uint32_t j = 0; j < cases[i].n_worker; j++)
            w[j] = (struct esp_place_worker){.memory_bytes = cases[i].memory_bytes,
                                             .max_alloc_bytes = cases[i].max_alloc_bytes,
                                             .bandwidth = cases[i].bandwidth,
                                             .matmul_rate = 1e11};
        assert_int_equal(esp_place(&p, &c, w, cases[i].n_worker, &o, &err), cases[i].st);
        if (!strstr(err.text, cases[i].want))
            fail_msg("\"%s\" lacks \"%s\"", err.text, cases[i].want);
    }
    assert_int_equal(
        esp_model_cost_fill(&c, &tiny, &(struct esp_cost_options){.n_image = 1, .max_rows = 1}, &err),
        ESP_E_ARG);
    assert_int_equal(esp_model_cost_fill(&c, &tiny, &(struct esp_cost_options){.bytes_per_weight = 2}, &err),
                     ESP_E_ARG);
}

static void test_split_text(void **state)
{
    static const struct {
        const char *text, *want; /* NULL: fine */
        uint32_t n_stage;
    } cases[] = {
        {"2/3", NULL, 1},
        {"2/0,0/2,0/1", NULL, 3},
        {"0/3,2/0", NULL, 2},
        {"000001/3,1/0", NULL, 2},
        {"2/2", "--split sums to 2/2 layers, must sum to 2/3 (encoder/decoder)", 0},
        {"2/0,0/2,0/2", "must sum to 2/3", 0},
        {"999999/999999", "sums to 999999/999999 layers", 0},
        {"", "stage 0 must be ENCODER/DECODER layers, as in \"2/0,0/3\"", 0},
        {"2/3,", "stage 1 must be", 0},
        {",2/3", "stage 0 must be", 0},
        {"2", "stage 0 must be", 0},
        {"2/", "stage 0 must be", 0},
        {"2/3 ", "stage 0 must be", 0},
        {" 2/3", "stage 0 must be", 0},
        {"+2/3", "stage 0 must be", 0},
        {"-2/3", "stage 0 must be", 0},
        {"2/3/1", "stage 0 must be", 0},
        {"2/3x", "stage 0 must be", 0},
        {"4294967298/3", "stage 0 must be", 0},
        {"2/3,0/0", "stage 1 is 0/0: a stage needs layers", 0},
    };
    char many[4 * 257 + 1];
    struct esp_split s;
    struct esp_err err;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        esp_status st = esp_split_parse(&s, cases[i].text, 2, 3, &err);
        if (!cases[i].want) {
            assert_int_equal(st, ESP_OK);
            assert_int_equal(s.n_stage, cases[i].n_stage);
            continue;
        }
        assert_int_equal(st, ESP_E_ARG);
        if (!strstr(err.text, cases[i].want))
            fail_msg("\"%s\": \"%s\" lacks \"%s\"", cases[i].text, err.text, cases[i].want);
    }
    for (uint32_t i = 0; i < 257; i++)
        memcpy(many + 4 * i, i < 256 ? "1/1," : "1/1\0", 4);
    assert_int_equal(esp_split_parse(&s, many, 257, 257, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "more than 256 stages"));
}

static void test_split_followed(void **state)
{
    static const struct {
        const char *text;
        uint32_t n_enc_stage, n_dec_stage;
    } cases[] = {{"2/3", 1, 1},
                 {"2/0,0/3", 1, 1},
                 {"1/1,1/2", 2, 2},
                 {"2/0,0/2,0/1", 1, 2},
                 {"0/1,1/1,0/1,1/0", 2, 3}};
    struct esp_place_worker w[5];
    struct esp_placement p;
    struct esp_model_cost c;
    struct esp_place_options o;
    struct esp_split s;
    struct esp_err err;

    esp_place_options_init(&o, 512);
    o.split = &s;
    for (uint32_t i = 0; i < 5; i++) {
        w[i] = a_worker(GIB);
        w[i].bandwidth *= 1 + i;
    }
    assert_int_equal(esp_model_cost_fill(&c, &tiny, &bf16, NULL), ESP_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(esp_split_parse(&s, cases[i].text, 2, 3, NULL), ESP_OK);
        assert_int_equal(esp_place(&p, &c, w, 5, &o, NULL), ESP_OK);
        check_whole(&p, &c, w, 5);
        assert_int_equal(p.n_enc_stage, cases[i].n_enc_stage);
        assert_int_equal(p.n_dec_stage, cases[i].n_dec_stage);
        for (uint32_t j = 0; j < p.n_stage; j++) { /* stage i of the text is worker i */
            const struct esp_place_stage *st = &p.stage[j];
            assert_int_equal(st->enc_hi - st->enc_lo, s.stage[st->worker].n_enc);
            assert_int_equal(st->dec_hi - st->dec_lo, s.stage[st->worker].n_dec);
        }
        for (uint32_t j = 1; j < p.n_dec_stage; j++)
            assert_true(p.stage[p.dec_order[j]].worker > p.stage[p.dec_order[j - 1]].worker);
    }
    assert_int_equal(esp_place(&p, &c, w, 3, &o, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "--split names 4 stages, there are 3 workers"));
    w[1].memory_bytes = MIB / 2;
    w[1].name = "attic";
    assert_int_equal(esp_place(&p, &c, w, 5, &o, &err), ESP_E_NOMEM);
    assert_non_null(strstr(err.text, "--split: stage 1 (1/1) needs "));
    assert_non_null(strstr(err.text, "attic has 0.5 MiB: give it fewer layers"));
    w[1] = w[0];
    w[2].max_alloc_bytes = 1024;
    assert_int_equal(esp_place(&p, &c, w, 5, &o, &err), ESP_E_NOMEM);
    assert_non_null(strstr(err.text, "stage 2 holds a tensor larger than the"));
    s.stage[0].n_dec++; /* a split made for another model */
    assert_int_equal(esp_place(&p, &c, w, 5, &o, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "sums to 2/4 layers, must sum to 2/3"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_of_3b),
        cmocka_unit_test(test_one_worker),
        cmocka_unit_test(test_equal_workers),
        cmocka_unit_test(test_two_small_one_large),
        cmocka_unit_test(test_more_or_less),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_rough_rates_still_spread),
        cmocka_unit_test(test_random_fleets),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_split_text),
        cmocka_unit_test(test_split_followed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
