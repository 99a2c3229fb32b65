/* How a worker joins, is placed, and outlives its coordinator, with a fake stage: worker/serve.h and what is
 * behind it. Each worker is a thread with real sockets; the test plays the coordinator. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cluster/worker_rig.h"
#include "tests/support/fake_stage.h"

/* ---- joining ---- */

static void test_join_and_leave(void **state)
{
    struct rig *rig = *state;
    struct rig_worker *w = &rig->w[0];
    struct esp_msg msg;

    rig_start(rig, 0);
    rig_take(rig, -1, ESP_MSG_HELLO, &msg);
    assert_string_equal(msg.hello.name, "w0");
    assert_string_equal(msg.hello.endpoint, w->bind);
    assert_string_equal(msg.hello.device.name, "Fake");
    assert_string_equal(msg.hello.device.variant, "fake");
    assert_int_equal(msg.hello.device.type, 4);
    assert_int_equal(msg.hello.device.memory_bytes, 1 << 30);
    assert_true(msg.hello.device.bandwidth == 1e9 && msg.hello.device.matmul_rate == 1e10);
    assert_memory_equal(msg.hello.fingerprint, w->options.fingerprint, 32);
    assert_string_equal(msg.hello.software, ESP_VERSION);
    esp_msg_finish(&msg);

    w->peer.n = 2;
    memcpy(w->peer.id, "w0", 2);
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_WELCOME, .welcome = {20, 10000}});
    for (int i = 0; i < 5; i++) {
        rig_take(rig, 0, ESP_MSG_HEARTBEAT, &msg);
        assert_int_equal(msg.heartbeat.epoch, 0);
        assert_int_equal(msg.heartbeat.n_queued, 0);
        esp_msg_finish(&msg);
    }
    rig_stop(rig, 0);
    rig_take(rig, 0, ESP_MSG_BYE, &msg);
    esp_msg_finish(&msg);
    assert_int_equal(rig_wait(rig, 0), ESP_OK);
}

static void test_coordinator_says_bye(void **state)
{
    struct rig *rig = *state;

    rig_join(rig, 1);
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_BYE, .bye = {.why = "shutting down"}});
    assert_int_equal(rig_wait(rig, 0), ESP_OK);
}

/* An answer to what was said before, perhaps by another process of that name, is none to this Hello. */
static void test_late_answer(void **state)
{
    struct rig *rig = *state;
    struct esp_msg late = {.kind = ESP_MSG_ERROR}, msg;

    rig_start(rig, 0);
    rig_take(rig, -1, ESP_MSG_HELLO, &msg);
    esp_msg_finish(&msg);
    rig->w[0].peer = (struct esp_peer){.n = 2, .id = "w0"};
    late.error = (struct esp_msg_error){.code = ESP_E_CLOSED, .text = "you have not joined: say hello first"};
    rig_send(rig, 0, &late);
    rig_welcome(rig, 0); /* it has said Hello again, as nobody answered */
    rig_take(rig, 0, ESP_MSG_HEARTBEAT, &msg);
    esp_msg_finish(&msg);
}

static void test_coordinator_refuses(void **state)
{
    struct rig *rig = *state;
    struct esp_msg msg,
        no = {.kind = ESP_MSG_ERROR, .error = {.code = ESP_E_FORMAT, .text = "another checkpoint"}};

    rig_start(rig, 0);
    rig_take(rig, -1, ESP_MSG_HELLO, &msg);
    esp_msg_finish(&msg);
    rig->w[0].peer = (struct esp_peer){.n = 2, .id = "w0"};
    rig_send(rig, 0, &no);
    assert_int_equal(rig_wait(rig, 0), ESP_E_FORMAT);
    assert_string_equal(rig->w[0].err.text, "coordinator refuses: another checkpoint");
}

static void test_stops_without_coordinator(void **state)
{
    struct rig *rig = *state;

    rig_close(rig);
    rig_start(rig, 0);
    usleep(50000);
    rig_stop(rig, 0);
    assert_int_equal(rig_wait(rig, 0), ESP_OK);
}

static void test_bad_endpoints(void **state)
{
    struct rig *rig = *state;
    static const struct {
        const char *connect, *bind, *fragment;
        esp_status status;
    } cases[] = {
        {"tcp://nowhere", NULL, "tcp://nowhere", ESP_E_ARG},
        {NULL, "tcp://0.0.0.0:*", "0.0.0.0", ESP_E_ARG}, /* needs --insecure */
        {NULL, "ipc:///nowhere/at/all", "/nowhere/at/all", ESP_E_IO},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_worker_options o = {.name = "w0",
                                       .connect = cases[i].connect ? cases[i].connect : rig->at,
                                       .bind =
                                           cases[i].bind ? cases[i].bind : "ipc:///tmp/espalier-test-none",
                                       .device = {"Fake", "fake 1", "fake", 4, 1, 1, 1, 1},
                                       .stop_fd = -1,
                                       .stop_timeout_ms = ESP_PATIENCE_MS};
        struct esp_err err = {0};
        bool busy;

        assert_int_equal(esp_worker_serve(&o, NULL, &busy, &err), cases[i].status);
        assert_false(busy);
        if (!strstr(err.text, cases[i].fragment))
            fail_msg("\"%s\" lacks \"%s\"", err.text, cases[i].fragment);
    }
}

/* ---- the coordinator goes and comes ---- */

static void test_coordinator_restarts(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {3, 1, 4};
    struct esp_msg msg;

    rig->timeout_ms = 400;
    rig_join(rig, 1);
    rig->timeout_ms = ESP_PATIENCE_MS;
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_WELCOME, .welcome = {100, 400}});
    rig_place(rig, 0, &(struct rig_place){9, 0, 4, 0, 6, 4, 6, -1, 0, -1, 0});
    rig_take(rig, 0, ESP_MSG_READY, &msg);
    esp_msg_finish(&msg);
    rig_close(rig);
    usleep(100000);
    rig_open(rig);
    rig_welcome(rig, 0); /* one Hello, and no more */
    rig_take(rig, 0, ESP_MSG_HEARTBEAT, &msg);
    assert_int_equal(msg.heartbeat.epoch, 0); /* 9 was another coordinator's */
    esp_msg_finish(&msg);
    rig_expect_silence(rig, 50);

    /* The new coordinator counts epochs from one again; the first Place of its conversation goes. */
    rig_place_all(rig, 1, 1);
    rig_send_rows(rig, 0, 1, 1, 5, 0, ids, 3);
    assert_true(rig_take_result(rig, 0, 1, 1) == rig_expected(ids, 3));
}

static void test_coordinator_falls_silent(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {3, 1, 4};
    struct esp_msg msg;

    rig_join(rig, 1);
    rig_place_all(rig, 1, 3);
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_WELCOME, .welcome = {50, 300}});
    rig_send_rows(rig, 0, 3, 1, 5, 0, ids, 2);
    rig_take_result(rig, 0, 3, 1);

    /* Another answers its Hello while it believes the old connection alive: the worker asks again. */
    rig_take(rig, 0, ESP_MSG_HELLO, &msg);
    esp_msg_finish(&msg);
    rig_send(
        rig, 0,
        &(struct esp_msg){.kind = ESP_MSG_ERROR, .error = {.code = ESP_E_ARG, .text = "the name is taken"}});
    rig_welcome(rig, 0);

    /* The stage was kept, and so was the sequence. */
    rig_send_rows(rig, 0, 3, 2, 5, 2, ids + 2, 1);
    assert_true(rig_take_result(rig, 0, 3, 2) == rig_expected(ids, 3));
}

/* What an earlier conversation asked for is not told in the next one, whose epochs are others. */
static void test_result_for_an_earlier_conversation(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {3};

    rig_join(rig, 1);
    rig_place_all(rig, 1, 7);
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_WELCOME, .welcome = {50, 200}});
    rig_send_rows(rig, 0, 7, 1, FAKE_SEQ_STUCK, 0, ids, 1); /* 4 s, and we fall silent */
    rig_welcome(rig, 0);                                    /* its next Hello comes after 3 s */
    rig_expect_silence(rig, 2000);
    rig_place_all(rig, 1, 1);
}

static void test_coordinator_knows_us_no_more(void **state)
{
    struct rig *rig = *state;

    rig_join(rig, 1);
    for (int i = 0; i < 3; i++) /* as after a quick restart: each Heartbeat under way is answered */
        rig_send(rig, 0,
                 &(struct esp_msg){.kind = ESP_MSG_ERROR,
                                   .error = {.code = ESP_E_PROTO, .text = "heartbeat first"}});
    rig_welcome(rig, 0);
    rig_place_all(rig, 1, 1);
}

/* ---- placing ---- */

static void test_placing(void **state)
{
    struct rig *rig = *state;
    struct rig_place p = {1, 0, 4, 0, 6, 4, 6, -1, 0, -1, FAKE_KV_NOMEM};
    struct esp_msg msg;
    int n_loading = 0;

    rig_join(rig, 1);
    rig_place(rig, 0, &p);
    rig_take_error(rig, 0, ESP_E_NOMEM, "9999 MiB", 1, 0, 0);
    p.epoch = 2;
    p.dec_hi = p.n_dec = 9;
    rig_place(rig, 0, &p);
    rig_take_error(rig, 0, ESP_E_ARG, "has 8", 2, 0, 0);

    /* Progress, at most ten times a second. */
    p = (struct rig_place){3, 0, 4, 0, 6, 4, 6, -1, 0, -1, FAKE_KV_SLOW};
    rig_place(rig, 0, &p);
    for (;;) {
        struct esp_peer from;

        assert_int_equal(esp_link_wait(&(struct esp_wait){.link = rig->link}, 1, ESP_PATIENCE_MS, NULL),
                         ESP_OK);
        if (esp_link_recv(rig->link, &from, &msg, NULL))
            continue;
        if (msg.kind == ESP_MSG_READY)
            break;
        if (msg.kind == ESP_MSG_LOADING) {
            assert_int_equal(msg.loading.epoch, 3);
            assert_int_equal(msg.loading.total_bytes, 6000);
            n_loading++;
        }
        esp_msg_finish(&msg);
    }
    assert_int_equal(msg.ready.epoch, 3);
    assert_int_equal(msg.ready.kv_bytes, 2000);
    assert_int_equal(msg.ready.scratch_bytes, 3000);
    assert_int_equal(msg.ready.kv_blocks, 1);
    assert_int_equal(msg.ready.block_tokens, FAKE_BLOCK_TOKENS);
    assert_true(msg.ready.load_seconds >= 0.5);
    esp_msg_finish(&msg);
    assert_true(n_loading >= 2);
    if (msg.ready.load_seconds < 2)
        assert_true(n_loading <= 21);

    /* A new placement supersedes one that still loads: its Ready alone is heard. An old or repeated one is
     * ignored. */
    p.epoch = 4;
    rig_place(rig, 0, &p);
    rig_place(rig, 0, &(struct rig_place){5, 0, 0, 0, 6, 4, 6, -1, -1, -1, 0});
    rig_place(rig, 0, &(struct rig_place){5, 0, 0, 0, 6, 4, 6, -1, -1, -1, 0});
    rig_place(rig, 0, &p);
    rig_take(rig, 0, ESP_MSG_READY, &msg);
    assert_int_equal(msg.ready.epoch, 5);
    esp_msg_finish(&msg);
    rig_expect_log(rig, "place_ignored", 2);

    /* A spare holds nothing and takes no work. */
    rig_place(rig, 0, &(struct rig_place){6, 0, 0, 0, 0, 4, 6, -1, -1, -1, 0});
    rig_take(rig, 0, ESP_MSG_READY, &msg);
    assert_int_equal(msg.ready.epoch, 6);
    assert_int_equal(msg.ready.weight_bytes, 0);
    esp_msg_finish(&msg);
    rig_send_pixels(rig, 0, 6, 1, 0, false);
    rig_take_error(rig, 0, ESP_E_PROTO, "encode while a spare", 6, 0, 1);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_RIG(test_join_and_leave),
        WITH_RIG(test_coordinator_says_bye),
        WITH_RIG(test_late_answer),
        WITH_RIG(test_coordinator_refuses),
        WITH_RIG(test_stops_without_coordinator),
        WITH_RIG(test_bad_endpoints),
        WITH_RIG(test_coordinator_restarts),
        WITH_RIG(test_coordinator_falls_silent),
        WITH_RIG(test_coordinator_knows_us_no_more),
        WITH_RIG(test_result_for_an_earlier_conversation),
        WITH_RIG(test_placing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
