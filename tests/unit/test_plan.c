/* Plans: the best placement, the one that stood with spares in the place of the lost, and when moving pays. */
#include "coordinator/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/released.h"

#define TINY "tests/golden/data/tiny" /* 2 encoder and 3 decoder layers */

static struct esp_checkpoint *ck;
static struct esp_roster *roster;
static struct esp_cluster_options options;
static struct esp_plan plan;

static int setup(void **state)
{
    uint8_t fingerprint[ESP_FINGERPRINT_BYTES];
    struct esp_err err;

    if (esp_checkpoint_open(&ck, TINY, &err))
        return -1;
    esp_checkpoint_fingerprint(ck, fingerprint);
    options = (struct esp_cluster_options){0};
    return esp_sizing_fill(&options.sizing, esp_checkpoint_config(ck), &err) ||
                   esp_roster_create(&roster, fingerprint, &err)
               ? -1
               : 0;
}

static int teardown(void **state)
{
    esp_roster_destroy(&roster);
    esp_checkpoint_destroy(&ck);
    return 0;
}

static const struct esp_plan_input *input(void)
{
    static struct esp_plan_input in;

    in = (struct esp_plan_input){.roster = roster, .ck = ck, .options = &options};
    return &in;
}

static struct esp_worker *join(const char *name, double speed, uint64_t memory_mib)
{
    struct esp_msg_hello hello = {.name = name,
                                  .endpoint = "tcp://127.0.0.1:1",
                                  .device = {.name = name,
                                             .memory_bytes = memory_mib << 20,
                                             .bandwidth = 1e9 * speed,
                                             .matmul_rate = 1e10 * speed}};
    struct esp_peer peer = {.n = (uint8_t)strlen(name)};
    struct esp_worker *w;
    struct esp_err err;

    memcpy(peer.id, name, peer.n);
    esp_checkpoint_fingerprint(ck, hello.fingerprint);
    if (esp_roster_join(&w, roster, &peer, &hello, 0, &err))
        fail_msg("%s", err.text);
    return w;
}

static void leave(const char *name)
{
    struct esp_worker *w = esp_roster_named(roster, name);

    assert_non_null(w);
    esp_roster_remove(roster, &w);
}

/* The plan as what stood. */
static uint32_t stood_of(struct esp_plan_share *stood)
{
    for (uint32_t i = 0; i < plan.n_stages; i++) {
        const struct esp_msg_place *p = &plan.stage[i].place;

        snprintf(stood[i].worker, sizeof stood[i].worker, "%s", plan.stage[i].worker->name);
        stood[i].share = (struct esp_place_share){p->enc_lo, p->enc_hi, p->dec_lo, p->dec_hi};
    }
    return plan.n_stages;
}

static const struct esp_msg_place *place_of(const char *name)
{
    const uint32_t i = esp_plan_find(&plan, esp_roster_named(roster, name));

    return i < plan.n_stages ? &plan.stage[i].place : NULL;
}

static void check_whole(void)
{
    uint32_t enc = 0, dec = 0;

    for (uint32_t i = 0; i < plan.n_enc; i++) {
        assert_int_equal(plan.stage[plan.enc[i]].place.enc_lo, enc);
        enc = plan.stage[plan.enc[i]].place.enc_hi;
    }
    for (uint32_t i = 0; i < plan.n_dec; i++) {
        assert_int_equal(plan.stage[plan.dec[i]].place.dec_lo, dec);
        dec = plan.stage[plan.dec[i]].place.dec_hi;
    }
    assert_int_equal(enc, 2);
    assert_int_equal(dec, 3);
}

/* A spare that is as good takes over exactly what was lost, and nobody else loads anything. */
static void test_spare_first(void **state)
{
    struct esp_plan_share stood[ESP_PLACE_MAX_WORKERS];
    struct esp_msg_place others[2];
    uint32_t n;

    join("w0", 1, 4096);
    join("w1", 1, 4096);
    join("w2", 1, 4096);
    assert_int_equal(esp_plan_best(&plan, input(), NULL), ESP_OK);
    check_whole();
    n = stood_of(stood);
    assert_int_equal(n, 3);
    others[0] = *place_of("w0");
    others[1] = *place_of("w2");
    join("w3", 1, 4096);
    leave("w1");
    assert_int_equal(esp_plan_again(&plan, input(), stood, n, NULL), ESP_OK);
    check_whole();
    assert_non_null(place_of("w3"));
    assert_memory_equal(place_of("w0"), &others[0], sizeof others[0]);
    assert_memory_equal(place_of("w2"), &others[1], sizeof others[1]);
}

/* A spare that would be a drag, or is too small, is not put in the lost one's place. */
static void test_poor_spare(void **state)
{
    struct esp_plan_share stood[ESP_PLACE_MAX_WORKERS];
    struct esp_err err;
    uint32_t n;

    join("w0", 1, 4096);
    join("w1", 1, 4096);
    assert_int_equal(esp_plan_best(&plan, input(), NULL), ESP_OK);
    n = stood_of(stood);
    leave("w1");
    join("w2", 0.01, 4096);
    assert_int_equal(esp_plan_again(&plan, input(), stood, n, &err), ESP_OK);
    check_whole();
    assert_true(!place_of("w2") || place_of("w2")->dec_hi - place_of("w2")->dec_lo < 3);
    assert_true(plan.bottleneck > 0);
    leave("w2");
    join("w3", 1, 1)->device.memory_bytes = 65536; /* nothing fits */
    assert_int_equal(esp_plan_again(&plan, input(), stood, n, &err), ESP_OK);
    check_whole();
    assert_null(place_of("w3"));
}

/* Nobody is left: the cause says so. */
static void test_nobody(void **state)
{
    struct esp_err err = {0};

    assert_int_equal(esp_plan_best(&plan, input(), &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "no worker"));
    join("w0", 1, 1);
    assert_int_equal(esp_plan_best(&plan, input(), &err), ESP_E_NOMEM);
    assert_int_equal(esp_plan_again(&plan, input(), NULL, 0, &err), ESP_E_NOMEM);
}

static void test_draining_takes_no_part(void **state)
{
    struct esp_plan_share stood[ESP_PLACE_MAX_WORKERS];
    uint32_t n;

    join("w0", 1, 4096);
    join("w1", 1, 4096);
    assert_int_equal(esp_plan_best(&plan, input(), NULL), ESP_OK);
    n = stood_of(stood);
    esp_roster_named(roster, "w0")->draining = true;
    assert_int_equal(esp_plan_again(&plan, input(), stood, n, NULL), ESP_OK);
    check_whole();
    assert_null(place_of("w0"));
    assert_int_equal(plan.n_stages, 1);
}

/* One worker more that halves the load is worth moving for; one that is much slower, or a split by hand, is not. */
static void test_when_moving_pays(void **state)
{
    struct esp_plan_share stood[ESP_PLACE_MAX_WORKERS];
    uint32_t n;

    join("w0", 1, 4096);
    assert_int_equal(esp_plan_best(&plan, input(), NULL), ESP_OK);
    n = stood_of(stood);
    assert_false(esp_plan_pays(&plan, input(), stood, n)); /* it is the best already */
    join("w1", 0.001, 4096);
    assert_false(esp_plan_pays(&plan, input(), stood, n));
    leave("w1");
    join("w2", 1, 4096);
    options.split = "2/3";
    assert_false(esp_plan_pays(&plan, input(), stood, n));
    options.split = NULL;
    assert_true(esp_plan_pays(&plan, input(), stood, n));
    check_whole();
    assert_int_equal(plan.n_stages, 2);
    leave("w0"); /* what stood does not stand any more: that is no question of paying */
    assert_false(esp_plan_pays(&plan, input(), stood, n));
}

static void test_shares_that_are_none(void **state)
{
    static const struct esp_place_share bad[][2] = {
        {{0, 2, 0, 2}, {0, 0, 0, 0}},  /* a layer that nobody has */
        {{0, 2, 0, 2}, {0, 0, 1, 3}},  /* one that both have */
        {{0, 2, 0, 3}, {1, 2, 0, 0}},  /* likewise */
        {{0, 2, 0, 4}, {0, 0, 0, 0}},  /* more than there are */
        {{2, 0, 0, 3}, {0, 2, 0, 0}}}; /* backwards */
    const struct esp_place_worker workers[2] = {
        {.memory_bytes = UINT64_C(1) << 32, .bandwidth = 1e9, .matmul_rate = 1e9},
        {.memory_bytes = UINT64_C(1) << 32, .bandwidth = 1e9, .matmul_rate = 1e9}};
    const struct esp_place_share good[2] = {{1, 2, 0, 1}, {0, 1, 1, 3}};
    const struct esp_cost_options cost_options = {.bytes_per_weight = 2, .n_image = 1, .max_rows = 512};
    struct esp_place_options place_options;
    struct esp_model_cost cost;
    static struct esp_placement p;
    struct esp_err err;

    esp_place_options_init(&place_options, 1024);
    assert_int_equal(esp_model_cost_fill(&cost, esp_checkpoint_config(ck), &cost_options, &err), ESP_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(esp_place_as(&p, &cost, workers, 2, &place_options, bad[i], &err), ESP_E_ARG);
    assert_int_equal(esp_place_as(&p, &cost, workers, 2, &place_options, good, &err), ESP_OK);
    assert_int_equal(p.stage[p.enc_order[0]].worker, 1);
    assert_int_equal(p.stage[p.dec_order[0]].worker, 0);
    assert_true(p.stage[p.dec_order[0]].embed && p.stage[p.dec_order[1]].head);
    assert_true(p.stage[p.enc_order[0]].patch && p.stage[p.enc_order[1]].projector);
}

/* Everybody is told the same type, and the bytes planned for are those of that type. */
static void test_weights(void **state)
{
    static const struct {
        enum esp_wtype type;
        double bytes; /* a weight */
    } c[] = {{ESP_W_STORED, 2}, {ESP_W_F32, 4}, {ESP_W_F16, 2}, {ESP_W_Q8, 34.0 / 32}, {ESP_W_Q4, 0}};
    double stored = 0, q8 = 0;

    join("a", 1, 1000);
    join("b", 1, 1000);
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct esp_err err;
        double sum = 0;

        options.weights = c[i].type;
        assert_int_equal(esp_plan_best(&plan, input(), &err), ESP_OK);
        for (uint32_t k = 0; k < plan.n_stages; k++) {
            assert_int_equal(plan.stage[k].place.weights, c[i].type);
            sum += (double)plan.stage[k].weight_bytes;
        }
        if (c[i].type == ESP_W_STORED)
            stored = sum;
        if (c[i].type == ESP_W_Q8)
            q8 = sum;
        if (c[i].type == ESP_W_Q4) { /* most of the decoder; the rest is q8 */
            if (!(sum > stored * 18 / 64 && sum < q8))
                fail_msg("q4: %g bytes, q8 %g, as stored %g", sum, q8, stored);
            continue;
        }
        /* norms and biases stay float32: a few per cent of so small a model */
        if (!(sum > stored * c[i].bytes / 2 * 0.97 && sum < stored * c[i].bytes / 2 * 1.15))
            fail_msg("%s: %g bytes, as stored %g", esp_wtype_name(c[i].type), sum, stored);
    }
    options.weights = ESP_W_STORED;
}

static void test_released(void **state)
{
    static const uint64_t seqs[] = {3, 4, 5}, images[] = {7, 8};
    struct esp_released r = {0};
    uint64_t ids[8];

    esp_released_add(&r, seqs, 3, false, 10);
    esp_released_add(&r, images, 2, true, 11);
    esp_released_prove(&r, 10); /* sent before the Release */
    assert_int_equal(r.n, 5);
    esp_released_prove(&r, 11);
    assert_int_equal(esp_released_take(&r, ids, 8, false), 0);
    assert_int_equal(esp_released_take(&r, ids, 1, true), 1);
    assert_int_equal(ids[0], 7);
    esp_released_add(&r, seqs, 1, false, 12);
    assert_int_equal(esp_released_take(&r, ids, 8, true), 1);
    assert_int_equal(ids[0], 8);
    assert_int_equal(esp_released_take(&r, ids, 8, false), 1);
    assert_int_equal(ids[0], 3);
    assert_int_equal(r.n, 0);
    esp_released_finish(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_spare_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_poor_spare, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(test_draining_takes_no_part, setup, teardown),
        cmocka_unit_test_setup_teardown(test_when_moving_pays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shares_that_are_none, setup, teardown),
        cmocka_unit_test_setup_teardown(test_weights, setup, teardown),
        cmocka_unit_test(test_released),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
