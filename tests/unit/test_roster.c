#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/roster.h"
#include "coordinator/sizing.h"

static const uint8_t ours[ESP_FINGERPRINT_BYTES] = {1, 2, 3};

static struct esp_peer peer(uint8_t i)
{
    return (struct esp_peer){.n = 2, .id = {7, i}};
}

static struct esp_msg_hello hello(const char *name)
{
    struct esp_msg_hello h = {.name = name,
                              .device = {.name = "gpu",
                                         .driver = "drv",
                                         .variant = "plain",
                                         .memory_bytes = 1,
                                         .bandwidth = 1,
                                         .matmul_rate = 1},
                              .endpoint = "tcp://127.0.0.1:1",
                              .software = "x"};
    memcpy(h.fingerprint, ours, sizeof ours);
    return h;
}

static void test_join_and_leave(void **state)
{
    struct esp_roster *r;
    struct esp_worker *a, *b;
    const struct esp_peer pa = peer(1), pb = peer(2);
    struct esp_msg_hello h = hello("a");

    assert_int_equal(esp_roster_create(&r, ours, NULL), ESP_OK);
    assert_int_equal(esp_roster_join(&a, r, &pa, &h, 10, NULL), ESP_OK);
    h = hello("b");
    assert_int_equal(esp_roster_join(&b, r, &pb, &h, 11, NULL), ESP_OK);
    assert_ptr_equal(esp_roster_find(r, &pa), a);
    assert_ptr_equal(esp_roster_named(r, "b"), b);
    assert_ptr_equal(esp_roster_at(r, 1), b);
    assert_null(esp_roster_at(r, 2));
    assert_string_equal(b->device.driver, "drv");
    assert_null(esp_roster_expired(r, 12, 5));
    assert_ptr_equal(esp_roster_expired(r, 15.5, 5), a);
    a->last_heard = 15;
    assert_ptr_equal(esp_roster_expired(r, 16.5, 5), b);
    b->state = ESP_WORKER_FAILED;
    assert_int_equal(esp_roster_usable(r), 1);
    esp_roster_remove(r, &a);
    assert_null(a);
    assert_int_equal(esp_roster_count(r), 1);
    assert_null(esp_roster_find(r, &pa));
    assert_ptr_equal(esp_roster_at(r, 0), b);
    esp_roster_destroy(&r);
}

/* Who joins first is chance; a split by hand counts on an order. */
static void test_order(void **state)
{
    static const char *const joins[] = {"w2", "w10", "w0", "w1", "host-7"}, *const order[] = {"host-7", "w0",
                                                                                              "w1", "w2",
                                                                                              "w10"};
    struct esp_roster *r;
    struct esp_worker *w;

    assert_int_equal(esp_roster_create(&r, ours, NULL), ESP_OK);
    for (uint8_t i = 0; i < 5; i++) {
        const struct esp_msg_hello h = hello(joins[i]);
        const struct esp_peer p = peer((uint8_t)(i + 1));
        assert_int_equal(esp_roster_join(&w, r, &p, &h, 0, NULL), ESP_OK);
        assert_string_equal(w->name, joins[i]);
    }
    for (uint32_t i = 0; i < 5; i++)
        assert_string_equal(esp_roster_at(r, i)->name, order[i]);
    esp_roster_destroy(&r);
}

/* A worker without a checkpoint has no fingerprint that could be compared. */
static void test_streams(void **state)
{
    struct esp_roster *r;
    struct esp_worker *w;
    struct esp_msg_hello h = hello("a");
    struct esp_peer p = peer(1);

    assert_int_equal(esp_roster_create(&r, ours, NULL), ESP_OK);
    assert_int_equal(esp_roster_join(&w, r, &p, &h, 0, NULL), ESP_OK);
    assert_false(w->streams);
    h = hello("b");
    p = peer(2);
    memset(h.fingerprint, 0, sizeof h.fingerprint);
    h.wants_weights = true;
    assert_int_equal(esp_roster_join(&w, r, &p, &h, 0, NULL), ESP_OK);
    assert_true(w->streams);
    assert_false(w->has_manifest);
    esp_roster_destroy(&r);
}

static void test_refused(void **state)
{
    enum { SAME_PEER, SAME_NAME, FINGERPRINT, NO_MEMORY, BAD_RATE, NAN_RATE, NO_ENDPOINT, EPOCH, NO_NAME };
    static const struct {
        int what;
        esp_status st;
        const char *fragment;
    } cases[] = {{SAME_PEER, ESP_E_ARG, "joined already, as a"},
                 {SAME_NAME, ESP_E_ARG, "named a is here"},
                 {FINGERPRINT, ESP_E_FORMAT, "another checkpoint"},
                 {NO_MEMORY, ESP_E_PROTO, "without memory"},
                 {BAD_RATE, ESP_E_PROTO, "matmul rate"},
                 {NAN_RATE, ESP_E_PROTO, "bandwidth"},
                 {NO_ENDPOINT, ESP_E_PROTO, "data endpoint"},
                 {EPOCH, ESP_E_PROTO, "an epoch that cannot be"},
                 {NO_NAME, ESP_E_PROTO, "needs a name"}};
    struct esp_roster *r;
    struct esp_worker *w;
    const struct esp_peer first = peer(1);
    const struct esp_msg_hello a = hello("a");

    assert_int_equal(esp_roster_create(&r, ours, NULL), ESP_OK);
    assert_int_equal(esp_roster_join(&w, r, &first, &a, 0, NULL), ESP_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_msg_hello h = hello("other");
        struct esp_peer p = peer(9);
        struct esp_err err;

        switch (cases[i].what) {
        case SAME_PEER:
            p = first;
            break;
        case SAME_NAME:
            h.name = "a";
            break;
        case FINGERPRINT:
            h.fingerprint[31] ^= 1;
            break;
        case NO_MEMORY:
            h.device.memory_bytes = 0;
            break;
        case BAD_RATE:
            h.device.matmul_rate = -1;
            break;
        case NAN_RATE:
            h.device.bandwidth = NAN;
            break;
        case NO_ENDPOINT:
            h.endpoint = "";
            break;
        case EPOCH:
            h.epoch = UINT64_C(1) << 62;
            break;
        default:
            h.name = "";
            break;
        }
        assert_int_equal(esp_roster_join(&w, r, &p, &h, 0, &err), cases[i].st);
        assert_null(w);
        if (!strstr(err.text, cases[i].fragment))
            fail_msg("\"%s\", expected \"...%s...\"", err.text, cases[i].fragment);
        assert_int_equal(esp_roster_count(r), 1);
    }
    esp_roster_destroy(&r);
}

static void test_sizing(void **state)
{
    static const struct {
        uint32_t n_token;
        struct esp_sizing in, out;
    } cases[] = {{256, {0, 0, 0}, {2048, 8192, 32}},   /* 224 pixels */
                 {1024, {0, 0, 0}, {5120, 20480, 20}}, /* 448 */
                 {4096, {0, 0, 0}, {9216, 36864, 9}},  /* 896: two pictures */
                 {16, {0, 0, 0}, {1088, 4352, 64}},      {4096, {5000, 0, 0}, {5000, 20000, 4}},
                 {256, {5000, 6000, 3}, {5000, 6000, 3}}};
    static const struct {
        struct esp_sizing in;
        const char *fragment;
    } bad[] = {{{1, 0, 0}, "--context"},
               {{200000, 0, 0}, "--context"},
               {{100, 99, 0}, "--kv-tokens"},
               {{100, 100, 5000}, "--max-images"}};
    struct esp_config config = {.model_type = "paligemma"};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_sizing s = cases[i].in;

        config.vision.n_token = cases[i].n_token;
        assert_int_equal(esp_sizing_fill(&s, &config, NULL), ESP_OK);
        assert_int_equal(s.context, cases[i].out.context);
        assert_int_equal(s.kv_tokens, cases[i].out.kv_tokens);
        assert_int_equal(s.max_images, cases[i].out.max_images);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct esp_sizing s = bad[i].in;
        struct esp_err err;

        assert_int_equal(esp_sizing_fill(&s, &config, &err), ESP_E_ARG);
        assert_non_null(strstr(err.text, bad[i].fragment));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order), cmocka_unit_test(test_streams),
                                       cmocka_unit_test(test_join_and_leave), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_sizing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
