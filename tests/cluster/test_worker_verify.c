/* The check of a worker's device in its conversation, around a fake stage and a fake check (fake_verify.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/worker_rig.h"
#include "tests/support/fake_stage.h"

static void ask(struct rig *rig, int i, uint64_t id, uint64_t epoch)
{
    rig_send(rig, i, &(struct esp_msg){.kind = ESP_MSG_VERIFY, .verify = {id, epoch}});
}

static void take_verified(struct rig *rig, int i, uint64_t id, uint64_t epoch, const char *layer,
                          uint32_t done, uint32_t total, bool right)
{
    struct esp_msg msg;

    rig_take(rig, i, ESP_MSG_VERIFIED, &msg);
    assert_int_equal(msg.verified.id, id);
    assert_int_equal(msg.verified.epoch, epoch);
    assert_string_equal(msg.verified.layer, layer);
    assert_int_equal(msg.verified.done, done);
    assert_int_equal(msg.verified.total, total);
    assert_int_equal(msg.verified.error <= msg.verified.limit, right);
    esp_msg_finish(&msg);
}

static void take_refusal(struct rig *rig, int i, esp_status code, const char *fragment, uint64_t id,
                         uint64_t epoch)
{
    struct esp_msg msg;

    rig_take(rig, i, ESP_MSG_ERROR, &msg);
    assert_int_equal(msg.error.code, code);
    if (!strstr(msg.error.text, fragment))
        fail_msg("\"%s\" does not say \"%s\"", msg.error.text, fragment);
    assert_int_equal(msg.error.session, id);
    assert_int_equal(msg.error.epoch, epoch);
    assert_int_equal(msg.error.step, 0);
    assert_int_equal(msg.error.image, 0);
    esp_msg_finish(&msg);
}

/* The next Heartbeat that was sent after this call. */
static uint64_t used_blocks(struct rig *rig, int i)
{
    struct esp_msg msg;
    uint64_t n = 0;

    for (int k = 0; k < 2; k++) {
        rig_take(rig, i, ESP_MSG_HEARTBEAT, &msg);
        n = msg.heartbeat.kv_used_blocks;
        esp_msg_finish(&msg);
    }
    return n;
}

/* Both stages of two, one after the other, with a sequence alive in them that goes on as if nothing had been. */
static void test_layers(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {3, 1, 4, 1};
    char layer[32];
    uint64_t used;

    rig_join(rig, 2);
    rig_place_all(rig, 2, 1);
    rig_send_rows(rig, 0, 1, 1, 6, 0, ids, 3);
    assert_true(rig_take_result(rig, 1, 1, 1) == rig_expected(ids, 3));
    used = used_blocks(rig, 0);
    for (int i = 0; i < 2; i++) {
        ask(rig, i, 40 + (uint64_t)i, 1);
        for (uint32_t k = 0; k < 5; k++) {
            snprintf(layer, sizeof layer, k < 2 ? "vision.layer.%u" : "prefill.layer.%u",
                     k < 2 ? (uint32_t)(2 * i) + k : (uint32_t)(3 * i) + k - 2);
            take_verified(rig, i, 40 + (uint64_t)i, 1, layer, k + 1, 5, true);
        }
    }
    rig_send_rows(rig, 0, 1, 2, 6, 3, ids + 3, 1);
    assert_true(rig_take_result(rig, 1, 1, 2) == rig_expected(ids, 4));
    assert_int_equal(used_blocks(rig, 0), used);
    rig_expect_silence(rig, 20);
    rig_expect_log(rig, "verify=40 ends", 1);
    rig_expect_log(rig, "verify=41 ends", 1);
}

static struct rig_place place_of(uint64_t epoch, uint32_t kv_tokens)
{
    return (struct rig_place){epoch, 0, 4, 0, 6, 4, 6, -1, 0, -1, kv_tokens};
}

static void place(struct rig *rig, uint64_t epoch, uint32_t kv_tokens)
{
    struct rig_place p = place_of(epoch, kv_tokens);
    struct esp_msg msg;

    rig_place(rig, 0, &p);
    rig_take(rig, 0, ESP_MSG_READY, &msg);
    esp_msg_finish(&msg);
}

static void test_wrong_layer(void **state)
{
    struct rig *rig = *state;
    char layer[32];

    rig_join(rig, 1);
    place(rig, 1, FAKE_KV_WRONG);
    ask(rig, 0, 7, 1);
    for (uint32_t k = 0; k < 10; k++) {
        snprintf(layer, sizeof layer, k < 4 ? "vision.layer.%u" : "prefill.layer.%u", k < 4 ? k : k - 4);
        take_verified(rig, 0, 7, 1, layer, k + 1, 10, k < 9);
    }
}

/* A check that cannot be done is told with its id, and fails nothing else. */
static void test_refused(void **state)
{
    struct rig *rig = *state;
    const struct rig_place spare = {
        .epoch = 3, .n_enc = 4, .n_dec = 6, .next_enc = -1, .features_to = -1, .next_dec = -1};
    const int32_t ids[] = {5};
    struct esp_msg msg;

    rig_join(rig, 1);
    ask(rig, 0, 1, 1);
    take_refusal(rig, 0, ESP_E_ARG, "nothing is placed", 1, 1);
    place(rig, 2, 0);
    ask(rig, 0, 2, 1);
    take_refusal(rig, 0, ESP_E_ARG, "nothing is placed", 2, 1);
    ask(rig, 0, 3, 9);
    take_refusal(rig, 0, ESP_E_ARG, "nothing is placed", 3, 9);
    for (uint64_t seq = 1; seq <= FAKE_SEQS; seq++) { /* every sequence there can be */
        rig_send_rows(rig, 0, 2, seq, seq, 0, ids, 1);
        (void)rig_take_result(rig, 0, 2, seq);
    }
    ask(rig, 0, 4, 2);
    take_refusal(rig, 0, ESP_E_LIMIT, "sequences", 4, 2);
    rig_send_rows(rig, 0, 2, FAKE_SEQS + 1, 1, 1, ids, 1);
    (void)rig_take_result(rig, 0, 2, FAKE_SEQS + 1);
    rig_place(rig, 0, &spare);
    rig_take(rig, 0, ESP_MSG_READY, &msg);
    esp_msg_finish(&msg);
    ask(rig, 0, 5, 3);
    take_refusal(rig, 0, ESP_E_ARG, "nothing is placed", 5, 3);
    rig_expect_silence(rig, 20);
}

/* While a check goes on steps pass; another one takes its place, and a new placement ends it. */
static void test_ends_with_placement(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {5};
    struct esp_msg msg;

    rig_join(rig, 1);
    place(rig, 1, FAKE_KV_ENDLESS);
    ask(rig, 0, 1, 1);
    take_verified(rig, 0, 1, 1, "vision.layer.0", 1, 10, true);
    rig_send_rows(rig, 0, 1, 1, 6, 0, ids, 1);
    assert_true(rig_take_result(rig, 0, 1, 1) == rig_expected(ids, 1));
    ask(rig, 0, 2, 1);
    take_verified(rig, 0, 2, 1, "vision.layer.0", 1, 10, true);
    place(rig, 2, 0);
    ask(rig, 0, 3, 2); /* nothing of the second one comes any more */
    take_verified(rig, 0, 3, 2, "vision.layer.0", 1, 10, true);
    for (uint32_t k = 1; k < 10; k++) {
        rig_take(rig, 0, ESP_MSG_VERIFIED, &msg);
        assert_int_equal(msg.verified.done, k + 1);
        assert_true(msg.verified.error <= msg.verified.limit);
        esp_msg_finish(&msg);
    }
}

/* The worker ends in the middle of one. */
static void test_ends_with_conversation(void **state)
{
    struct rig *rig = *state;

    rig_join(rig, 1);
    place(rig, 1, FAKE_KV_ENDLESS);
    ask(rig, 0, 1, 1);
    take_verified(rig, 0, 1, 1, "vision.layer.0", 1, 10, true);
    rig_stop(rig, 0);
    assert_int_equal(rig_wait(rig, 0), ESP_OK);
}

/* A stranger's Verify, and sequences of the check's own id, are refused. */
static void test_strangers(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {5};
    struct esp_link *link;
    struct esp_msg msg = {.kind = ESP_MSG_VERIFY, .verify = {1, 1}};
    const struct esp_seq_rows rows = {.seq = ESP_SEQ_VERIFY, .n_tok = 1, .n_prefix = 1};

    rig_join(rig, 1);
    rig_place_all(rig, 1, 1);
    link = rig_dial(rig, 0, "stranger");
    assert_int_equal(esp_link_send(link, NULL, &msg, NULL), ESP_OK);
    rig_expect_log(rig, "a worker takes no verify from another stage", 1);
    msg = (struct esp_msg){.kind = ESP_MSG_STEP,
                           .step = {.epoch = 1,
                                    .id = 1,
                                    .payload = ESP_PAYLOAD_TOKENS,
                                    .rows = 1,
                                    .width = 1,
                                    .n_seqs = 1,
                                    .seqs = &rows},
                           .n_blobs = 1,
                           .blob = {{.data = ids, .n_bytes = sizeof ids}}};
    assert_int_equal(esp_link_send(link, NULL, &msg, NULL), ESP_E_PROTO); /* not even packed */
    esp_link_destroy(&link);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_RIG(test_layers),
        WITH_RIG(test_wrong_layer),
        WITH_RIG(test_refused),
        WITH_RIG(test_ends_with_placement),
        WITH_RIG(test_ends_with_conversation),
        WITH_RIG(test_strangers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
