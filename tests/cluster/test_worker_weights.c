/* The conversation of a worker without a checkpoint, with a fake stage; the test plays the coordinator. What it does
 * with the bytes is the depot's tests' business: here it is who may say what when, and what survives a coordinator. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/worker_rig.h"
#include "tests/support/manifest.h"
#include "tests/support/temp.h"

#define TINY  "tests/golden/data/tiny"
#define OTHER "tests/golden/data/tiny-pg2"

static struct esp_test_manifest tiny, other;
static char dir[64];
static bool asked[4096]; /* chunks, in this conversation */

static int open_all(void **state)
{
    esp_test_manifest_make(&tiny, TINY, 65536);
    esp_test_manifest_make(&other, OTHER, 65536);
    return 0;
}

static int close_all(void **state)
{
    esp_test_manifest_free(&tiny);
    esp_test_manifest_free(&other);
    return 0;
}

static int setup(void **state)
{
    memset(asked, 0, sizeof asked);
    if (esp_temp_make(dir, sizeof dir) || rig_setup(state))
        return -1;
    ((struct rig *)*state)->w[0].cache = dir;
    return 0;
}

static int teardown(void **state)
{
    int rc = rig_teardown(state);

    return esp_temp_remove(dir) || rc;
}

static const struct rig_place whole = {
    .enc_hi = 2, .dec_hi = 3, .n_enc = 2, .n_dec = 3, .next_enc = -1, .features_to = 0, .next_dec = -1};

static void place(struct rig *rig, uint64_t epoch)
{
    struct rig_place p = whole;

    p.epoch = epoch;
    rig_place(rig, 0, &p);
}

/* The next message of the worker but Heartbeat and Loading. */
static void hear(struct rig *rig, struct esp_msg *msg)
{
    struct esp_wait wait = {.link = rig->link};

    for (;;) {
        struct esp_peer from;
        struct esp_err err;
        esp_status st = esp_link_recv(rig->link, &from, msg, &err);

        if (st == ESP_E_TIMEOUT) {
            if (esp_link_wait(&wait, 1, ESP_PATIENCE_MS, NULL))
                fail_msg("the worker says nothing");
            continue;
        }
        if (st)
            fail_msg("a bad message: %s", err.text);
        if (msg->kind != ESP_MSG_HEARTBEAT && msg->kind != ESP_MSG_LOADING)
            return;
        esp_msg_finish(msg);
    }
}

static void answer(struct rig *rig, const struct esp_test_manifest *m, const struct esp_msg_fetch *f)
{
    struct esp_msg chunk = {.kind = ESP_MSG_CHUNK,
                            .chunk = {.tensor = f->tensor, .chunk = f->chunk, .why = ""}};

    chunk.n_blobs = 1;
    chunk.blob[0].data = esp_test_chunk(m, f->tensor, f->chunk, &chunk.blob[0].n_bytes);
    rig_send(rig, 0, &chunk);
}

/*
 * Answers Fetches of so many different chunks, no more must be asked for unless `more`; the Ready of `epoch` comes among
 * them or after them. One that had been on its way when the coordinator went may be heard twice.
 */
static void serve(struct rig *rig, const struct esp_test_manifest *m, uint32_t n, uint64_t epoch, bool more)
{
    while (n > 0 || epoch > 0) {
        struct esp_msg msg;

        hear(rig, &msg);
        if (msg.kind == ESP_MSG_FETCH) {
            bool *known = &asked[m->base[msg.fetch.tensor] + msg.fetch.chunk];

            if (n > 0 || *known)
                answer(rig, m, &msg.fetch);
            else if (!more)
                fail_msg("chunk %u of tensor %u is asked for, too", msg.fetch.chunk, msg.fetch.tensor);
            n -= n > 0 && !*known;
            *known = true;
        } else if (msg.kind == ESP_MSG_READY && msg.ready.epoch == epoch) {
            epoch = 0;
        } else {
            fail_msg("a %s%s%s", esp_msg_name(msg.kind), msg.kind == ESP_MSG_ERROR ? ": " : "",
                     msg.kind == ESP_MSG_ERROR ? msg.error.text : "");
        }
        esp_msg_finish(&msg);
    }
}

/* The coordinator is gone and there again, and knows nobody. What the worker had sent meanwhile is nothing to it. */
static void restart(struct rig *rig)
{
    const struct esp_msg no = {.kind = ESP_MSG_ERROR,
                               .error = {.code = ESP_E_CLOSED, .text = "say hello first"}};
    struct esp_wait wait = {.link = NULL};
    struct esp_msg msg;
    struct esp_peer from;
    struct esp_err err;

    memset(asked, 0, sizeof asked);
    rig_close(rig);
    rig_open(rig);
    wait.link = rig->link;
    while (esp_link_recv(rig->link, &from, &msg, &err)) /* a Heartbeat, or a Fetch that waited */
        assert_int_equal(esp_link_wait(&wait, 1, ESP_PATIENCE_MS, NULL), ESP_OK);
    esp_msg_finish(&msg);
    rig_send(rig, 0, &no);
    do
        hear(rig, &msg);
    while (msg.kind == ESP_MSG_FETCH && (esp_msg_finish(&msg), true));
    assert_int_equal(msg.kind, ESP_MSG_HELLO);
    assert_true(msg.hello.wants_weights);
    esp_msg_finish(&msg);
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_WELCOME, .welcome = {20, ESP_PATIENCE_MS}});
}

static uint32_t n_different(const struct esp_test_manifest *m)
{
    static const struct esp_test_part all = {
        .enc_hi = 99, .dec_hi = 99, .patch = true, .projector = true, .table = true};

    return esp_test_part_chunks(m, &all, &(uint64_t){0});
}

/* A Place with layers waits for the manifest, a spare's does not; then everything is asked for once. */
static void test_manifest_comes_late(void **state)
{
    struct rig *rig = *state;
    struct esp_msg msg;

    rig_start(rig, 0);
    rig_take(rig, -1, ESP_MSG_HELLO, &msg);
    assert_true(msg.hello.wants_weights);
    for (int i = 0; i < ESP_FINGERPRINT_BYTES; i++)
        assert_int_equal(msg.hello.fingerprint[i], 0);
    esp_msg_finish(&msg);
    rig->w[0].peer = (struct esp_peer){.n = 2, .id = "w0"};
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_WELCOME, .welcome = {20, ESP_PATIENCE_MS}});
    rig_place(rig, 0, &(struct rig_place){.epoch = 1, .next_enc = -1, .features_to = -1, .next_dec = -1});
    rig_take(rig, 0, ESP_MSG_READY, &msg);
    assert_int_equal(msg.ready.epoch, 1);
    esp_msg_finish(&msg);
    place(rig, 2);
    place(rig, 3); /* takes the other's place */
    rig_expect_silence(rig, 100);
    rig_send(rig, 0, &tiny.msg);
    serve(rig, &tiny, n_different(&tiny), 3, false);
    rig_expect_log(rig, "weights_here", 1);
    assert_int_equal(rig_count_log(rig, "epoch=2"), 0);
    rig_expect_silence(rig, 50); /* nothing is asked for twice */
}

/* The coordinator comes back: with the same checkpoint the rest is fetched, with another one all of that. */
static void test_coordinator_returns(void **state)
{
    struct rig *rig = *state;
    const uint32_t half = n_different(&tiny) / 2;
    struct esp_msg_fetch none = {.tensor = 0, .chunk = 0};

    rig->heartbeat_ms = 20;
    rig_start(rig, 0);
    rig_welcome(rig, 0);
    rig_send(rig, 0, &tiny.msg);
    place(rig, 1);
    serve(rig, &tiny, half, 1, true);
    restart(rig);
    answer(rig, &tiny, &none); /* before the manifest, and not asked for in this conversation */
    rig_expect_log(rig, "which nobody asked for", 1);
    rig_send(rig, 0, &tiny.msg);
    rig_expect_log(rig, "checkpoint=same", 1);
    place(rig, 1);
    serve(rig, &tiny, n_different(&tiny) - half, 1, false);

    restart(rig);
    rig_send(rig, 0, &other.msg);
    rig_expect_log(rig, "checkpoint=new", 2);
    place(rig, 1);
    serve(rig, &other, 7, 1, true);
    restart(rig); /* and back again, with fetches out */
    rig_send(rig, 0, &tiny.msg);
    place(rig, 1);
    serve(rig, &tiny, 0, 1, false); /* its disk has it all */
}

static void take_heartbeats(struct rig *rig, int n)
{
    struct esp_msg msg;

    for (; n > 0; n--) {
        rig_take(rig, 0, ESP_MSG_HEARTBEAT, &msg); /* and no Hello */
        esp_msg_finish(&msg);
    }
}

/* A chunk that is on its way over a slow network is no silence. */
static void test_slow_network(void **state)
{
    struct rig *rig = *state;
    struct esp_test_manifest large;
    struct esp_msg msg;
    int n_out = 0;

    esp_test_manifest_make(&large, TINY, 4u << 20); /* half a minute each, at 1 Mbit/s */
    rig_start(rig, 0);
    rig_welcome(rig, 0);
    rig_send(rig, 0, &large.msg);
    place(rig, 1);
    for (bool ready = false; !ready || n_out < 4;) { /* the first window; none of it is answered */
        hear(rig, &msg);
        ready |= msg.kind == ESP_MSG_READY;
        n_out += msg.kind == ESP_MSG_FETCH;
        esp_msg_finish(&msg);
    }
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_WELCOME, .welcome = {20, 100}});
    take_heartbeats(rig, 50); /* ten times as long as it would wait for anything else */
    esp_test_manifest_free(&large);
}

/* A manifest that makes no sense is told to the coordinator; the worker lives, and takes a good one. */
static void test_bad_manifest(void **state)
{
    struct rig *rig = *state;
    struct esp_msg bad = tiny.msg;

    rig_start(rig, 0);
    rig_welcome(rig, 0);
    bad.manifest.n_tensors--;
    bad.blob[1].n_bytes -= ESP_HASH_BYTES;
    rig_send(rig, 0, &bad);
    rig_take_error(rig, 0, ESP_E_FORMAT, "norm.weight is missing", 0, 0, 0);
    place(rig, 1);
    rig_expect_silence(rig, 50);
    rig_send(rig, 0, &tiny.msg);
    serve(rig, &tiny, n_different(&tiny), 1, false);
}

/* Who has a checkpoint wants none of it. */
static void test_not_wanted(void **state)
{
    struct rig *rig = *state;

    rig->w[0].cache = NULL;
    rig_join(rig, 1);
    rig_send(rig, 0, &tiny.msg);
    rig_expect_log(rig, "though there is a checkpoint here", 1);
    answer(rig, &tiny, &(struct esp_msg_fetch){.tensor = 0, .chunk = 0});
    rig_expect_log(rig, "though there is a checkpoint here", 2);
    rig_place_all(rig, 1, 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_manifest_comes_late), TEST(test_coordinator_returns), TEST(test_slow_network),
        TEST(test_bad_manifest),        TEST(test_not_wanted),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
