/* Layers that move from worker to worker with what sequences have left in them, while the sequences live. Each worker is a
 * thread with real sockets and a fake stage, whose arithmetic is exact; the test is the coordinator, and strangers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cluster/move_rig.h"
#include "tests/support/fake_stage.h"

#define N_ENC 4
#define N_DEC 6

/** A sequence and all its tokens so far. */
struct talk {
    uint64_t seq;
    uint32_t n;
    int32_t ids[256];
};

/** Gives the sequence n more tokens; what comes back must be what it would be without any move. */
static void say(struct rig *rig, const struct rig_cut *c, uint64_t epoch, uint64_t step, struct talk *t,
                uint32_t n)
{
    const uint32_t pos = t->n;

    for (uint32_t i = 0; i < n; i++)
        t->ids[t->n++] = (int32_t)rig_below(FAKE_VOCAB);
    rig_send_rows(rig, rig_at_dec(c, 0), epoch, step, t->seq, pos, t->ids + pos, n);
    assert_true(rig_take_result(rig, rig_last_dec(c), epoch, step) == rig_expected(t->ids, t->n));
}

static const struct rig_cut thirds = {N_ENC, N_DEC, {0, 1, 2}, {1, 2, 4}, {0, 2, 4}, {2, 4, 6}};
static const struct rig_cut no_middle = {N_ENC, N_DEC, {0, 0, 2}, {2, 0, 4}, {0, 0, 3}, {3, 0, 6}};
static const struct rig_cut no_first = {N_ENC, N_DEC, {0, 0, 2}, {0, 2, 4}, {0, 0, 3}, {0, 3, 6}};

/* ---- what must work ---- */

/* w1 is drained, then w0, whose pictures go along, then w0 takes its layers back. Three sequences, one a fork, one with
 * a picture, go on as if nothing had happened. */
static void test_drain(void **state)
{
    struct rig *rig = *state;
    struct talk a = {.seq = 20}, b = {.seq = 21};
    const uint64_t image = 77;
    const struct esp_seq_rows picture = {
        .seq = 30, .n_tok = 3, .n_prefix = 3, .n_images = 1, .images = &image};
    const struct esp_want want = {.row = 2, .k = 1};
    const int32_t ids[] = {0, 0, 5};
    const struct esp_fork fork = {22, 20};
    struct talk c;
    struct rig_moved m;
    struct esp_msg msg;
    float first;

    rig_join(rig, 3);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &thirds, 1, 0, 0, false);
    rig_take_ready(rig, 1, 3);
    rig_send_pixels(rig, 0, 1, image, 0.5f, false);
    rig_take(rig, 0, ESP_MSG_STORED, &msg);
    esp_msg_finish(&msg);
    say(rig, &thirds, 1, 1, &a, 37); /* 5 blocks, 3 pieces */
    say(rig, &thirds, 1, 2, &b, 1);
    rig_send_step(
        rig, 0,
        (struct esp_msg_step){
            .epoch = 1, .id = 3, .rows = 3, .n_seqs = 1, .seqs = &picture, .n_wants = 1, .wants = &want},
        ids);
    first = rig_take_result(rig, 2, 1, 3);
    { /* 22 comes of 20 */
        const struct esp_seq_rows rows = {.seq = 22, .pos = 37, .n_tok = 1};
        const struct esp_want last = {.row = 0, .k = 1};

        c = a;
        c.seq = 22;
        c.ids[c.n++] = 9;
        rig_send_step(rig, 0,
                      (struct esp_msg_step){.epoch = 1,
                                            .id = 4,
                                            .rows = 1,
                                            .n_forks = 1,
                                            .forks = &fork,
                                            .n_seqs = 1,
                                            .seqs = &rows,
                                            .n_wants = 1,
                                            .wants = &last},
                      c.ids + 37);
        assert_true(rig_take_result(rig, 2, 1, 4) == rig_expected(c.ids, c.n));
    }
    rig_expect_held(rig, 1, 1, 4, 0);

    m = rig_replace(rig, 2, &thirds, &no_middle, &image, 1);
    assert_int_equal(m.kv_blocks, 2 * (5 + 1 + 5 + 1));
    assert_int_equal(m.loaded_bytes, (1 + 2) * FAKE_LAYER_BYTES); /* only what changed hands */
    assert_int_equal(m.n_bytes, 2 * (5 + 1 + 5 + 1) * FAKE_BLOCK_TOKENS * FAKE_WIDTH * sizeof(float));
    rig_expect_held(rig, 1, 2, 0, 0);
    rig_expect_held(rig, 0, 2, 4, 1);
    say(rig, &no_middle, 2, 1, &a, 1);
    say(rig, &no_middle, 2, 2, &b, 20);
    say(rig, &no_middle, 2, 3, &c, 2);

    m = rig_replace(rig, 3, &no_middle, &no_first, &image, 1);
    assert_int_equal(m.n_layers, 3);
    assert_int_equal(m.n_images, 1);
    say(rig, &no_first, 3, 1, &a, 3);
    say(rig, &no_first, 3, 2, &c, 1);
    { /* the picture is there, and the one who asks about it anew gets the same answer */
        const struct esp_seq_rows again = {
            .seq = 31, .n_tok = 3, .n_prefix = 3, .n_images = 1, .images = &image};

        rig_send_step(
            rig, 1,
            (struct esp_msg_step){
                .epoch = 3, .id = 3, .rows = 3, .n_seqs = 1, .seqs = &again, .n_wants = 1, .wants = &want},
            ids);
        assert_true(rig_take_result(rig, 2, 3, 3) == first);
    }

    rig_replace(rig, 4, &no_first, &thirds, &image, 1);
    say(rig, &thirds, 4, 1, &a, 1);
    say(rig, &thirds, 4, 2, &b, 1);
    say(rig, &thirds, 4, 3, &c, 1);
    { /* nothing is left behind */
        const uint64_t seqs[] = {20, 21, 22, 30, 31};

        rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_RELEASE, .release = {4, 5, 1, seqs, &image}});
        for (int i = 0; i < 3; i++)
            rig_expect_held(rig, i, 4, 0, 0);
    }
}

static void test_random_moves(void **state)
{
    enum { ROUNDS = 25, TALKS = 4 };
    struct rig *rig = *state;
    struct talk t[TALKS] = {{.seq = 1}, {.seq = 2}, {.seq = 3}, {.seq = 4}};
    const uint64_t images[] = {5, 6};
    struct rig_cut now = rig_random_cut(N_ENC, N_DEC);
    uint32_t n_layers = 0;

    rig_join(rig, 3);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &now, 1, 0, 0, false);
    rig_take_ready(rig, 1, 3);
    for (uint32_t i = 0; i < 2; i++) {
        struct esp_msg msg;

        rig_send_pixels(rig, rig_at_enc(&now, 0), 1, images[i], (float)i, false);
        rig_take(rig, rig_at_dec(&now, 0), ESP_MSG_STORED, &msg);
        esp_msg_finish(&msg);
    }
    for (uint64_t epoch = 1; epoch <= ROUNDS; epoch++) {
        struct rig_cut next =
            rig_below(5) ? rig_random_cut(N_ENC, N_DEC) : now; /* at times nothing changes but the epoch */

        for (uint64_t step = 1; step <= 3; step++) {
            struct talk *one = &t[rig_below(TALKS)];
            if (one->n < 200)
                say(rig, &now, epoch, step, one, 1 + rig_below(10));
        }
        n_layers += rig_replace(rig, epoch + 1, &now, &next, images, 2).n_layers;
        now = next;
        for (int i = 0; i < 3; i++)
            rig_expect_held(rig, i, epoch + 1,
                            rig_has_dec(&now, i)
                                ? (uint32_t)((t[0].n > 0) + (t[1].n > 0) + (t[2].n > 0) + (t[3].n > 0))
                                : 0,
                            i == rig_at_dec(&now, 0) ? 2 : 0);
    }
    assert_true(n_layers > ROUNDS);
}

/* A worker that joined late has nothing to carry; it gets layers, loads them ahead, and meanwhile the others work. */
static void test_join(void **state)
{
    static const struct rig_cut two = {N_ENC, N_DEC, {0, 2, 0}, {2, 4, 0}, {0, 3, 0}, {3, 6, 0}};
    struct rig *rig = *state;
    struct talk a = {.seq = 9};
    struct esp_msg msg;

    rig_join(rig, 2);
    for (int i = 0; i < 2; i++)
        rig_put(rig, i, &two, 1, 0, 0, false);
    rig_take_ready(rig, 1, 2);
    say(rig, &two, 1, 1, &a, 11);
    rig_start(rig, 2);
    rig_welcome(rig, 2);
    rig_put(rig, 2, &thirds, 2, 1, 0, true);
    rig_take(rig, 2, ESP_MSG_WARMED, &msg);
    assert_int_equal(msg.warmed.epoch, 2);
    assert_int_equal(msg.warmed.loaded_bytes, 6000);
    assert_int_equal(msg.warmed.weight_bytes, 6000);
    esp_msg_finish(&msg);
    rig_put(rig, 1, &thirds, 2, 1, 0, true); /* one that works gets a warm place too, and goes on */
    rig_take(rig, 1, ESP_MSG_WARMED, &msg);
    esp_msg_finish(&msg);
    say(rig, &two, 1, 2, &a, 1);
    assert_int_equal(rig_replace(rig, 2, &two, &thirds, NULL, 0).loaded_bytes, 0); /* all was there */
    say(rig, &thirds, 2, 1, &a, 5);
}

/* A warm place that fails is told with its own epoch, and hurts nobody; one that the next supersedes is not told of. */
static void test_warm_trouble(void **state)
{
    struct rig *rig = *state;
    struct talk a = {.seq = 9};
    struct rig_place p = {.epoch = 2,
                          .dec_hi = N_DEC,
                          .n_dec = N_DEC,
                          .next_enc = -1,
                          .features_to = -1,
                          .next_dec = -1,
                          .kv_tokens = FAKE_KV_NOMEM};
    static const struct rig_cut one = {N_ENC, N_DEC, {0, 0, 0}, {4, 0, 0}, {0, 0, 0}, {6, 0, 0}};
    struct esp_msg msg;

    rig_join(rig, 1);
    rig_put(rig, 0, &one, 1, 0, 0, false);
    rig_take_ready(rig, 1, 1);
    say(rig, &one, 1, 1, &a, 3);
    rig_place_on(rig, 0, &p, 0, 0, true);
    rig_take_error(rig, 0, ESP_E_NOMEM, "weights: 9999 MiB", 2, 0, 0);
    say(rig, &one, 1, 2, &a, 3);
    p.epoch = 3;
    p.kv_tokens = FAKE_KV_SLOW;
    rig_place_on(rig, 0, &p, 0, 0, true);
    rig_take(rig, 0, ESP_MSG_LOADING, &msg);
    assert_int_equal(msg.loading.epoch, 3);
    esp_msg_finish(&msg);
    { /* in the middle of it */
        const int32_t ids[] = {1};

        rig_send_rows(rig, 0, 1, 3, 11, 0, ids, 1);
        for (bool result = false; !result;) { /* a machine that sleeps may have it warmed first */
            struct esp_peer from;

            assert_int_equal(esp_link_wait(&(struct esp_wait){.link = rig->link}, 1, ESP_PATIENCE_MS, NULL),
                             ESP_OK);
            if (esp_link_recv(rig->link, &from, &msg, NULL))
                continue;
            result = msg.kind == ESP_MSG_RESULT;
            assert_true(result || msg.kind == ESP_MSG_LOADING || msg.kind == ESP_MSG_HEARTBEAT ||
                        msg.kind == ESP_MSG_WARMED);
            esp_msg_finish(&msg);
        }
    }
    p.epoch = 4;
    p.kv_tokens = 0;
    rig_place_on(rig, 0, &p, 0, 0, true);
    for (uint64_t warmed = 0; warmed != 4;) {
        rig_take(rig, 0, ESP_MSG_WARMED, &msg);
        warmed = msg.warmed.epoch;
        esp_msg_finish(&msg);
    }
    say(rig, &one, 1, 4, &a, 1);
    p.epoch = 1; /* of the past */
    rig_place_on(rig, 0, &p, 0, 0, true);
    rig_expect_log(rig, "epoch=1 place_ignored placed=1", 1);
    rig_expect_silence(rig, 20);
}

/* A coordinator that comes back counts epochs anew. The worker has kept its weights, but what it has of an epoch of the
 * same number is not this coordinator's. */
static void test_coordinator_restarts(void **state)
{
    static const struct rig_cut one = {N_ENC, N_DEC, {0, 0, 0}, {4, 0, 0}, {0, 0, 0}, {6, 0, 0}};
    struct rig *rig = *state;
    struct talk a = {.seq = 9};
    const int32_t ids[] = {3};

    rig->timeout_ms = 1500;
    rig_join(rig, 1);
    rig_put(rig, 0, &one, 5, 0, 0, false);
    assert_int_equal(rig_take_ready(rig, 5, 1), (N_ENC + N_DEC) * FAKE_LAYER_BYTES);
    say(rig, &one, 5, 1, &a, 3);
    rig_close(rig);
    rig_expect_log(rig, "coordinator_lost", 1);
    rig->timeout_ms = ESP_PATIENCE_MS;
    rig_open(rig);
    rig_welcome(rig, 0);
    rig_put(rig, 0, &one, 1, 0, 0, false);
    assert_int_equal(rig_take_ready(rig, 1, 1), 0);
    a.n = 0;
    say(rig, &one, 1, 1, &a, 3); /* begins empty */

    rig_close(rig);
    rig_stop(rig, 0);
    rig_wait(rig, 0);
    rig_open(rig);
    rig->timeout_ms = 1500;
    rig_start(rig, 0);
    rig_welcome(rig, 0);
    rig_put(rig, 0, &one, 5, 0, 0, false);
    rig_take_ready(rig, 5, 1);
    a.n = 0;
    say(rig, &one, 5, 1, &a, 3);
    rig_close(rig);
    rig_expect_log(rig, "coordinator_lost", 2);
    rig->timeout_ms = ESP_PATIENCE_MS;
    rig_open(rig);
    rig_welcome(rig, 0);
    rig_put(rig, 0, &one, 6, 5, 0, false);
    assert_int_equal(rig_take_ready(rig, 6, 1), 0);
    rig_send_rows(rig, 0, 6, 1, 9, 3, ids, 1);
    rig_take_error(rig, 0, ESP_E_PROTO, "KV of 6 layers has not come yet", 6, 1, 0);
}

/* The coordinator's stamp comes back at once, however far the next heartbeat is. */
static void test_echo(void **state)
{
    struct rig *rig = *state;
    struct esp_msg msg;
    uint64_t echo = 0;

    rig->heartbeat_ms = ESP_PATIENCE_MS - 1;
    rig_join(rig, 1);
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_HEARTBEAT, .heartbeat = {.stamp = 4711}});
    while (echo == 0) {
        rig_take(rig, 0, ESP_MSG_HEARTBEAT, &msg);
        echo = msg.heartbeat.echo;
        esp_msg_finish(&msg);
    }
    assert_int_equal(echo, 4711);
}

/* Who takes layers may be slow: what waits for him waits in the cache, the worker answers meanwhile, and in the end all of
 * it has come in order. */
static void test_slow_receiver(void **state)
{
    enum { N = 4096, BLOCKS = N / FAKE_BLOCK_TOKENS };
    static const struct rig_cut one = {N_ENC, N_DEC, {0, 0, 0}, {4, 0, 0}, {0, 0, 0}, {6, 0, 0}},
                                none = {N_ENC, N_DEC, {0}, {0}, {0}, {0}};
    static int32_t ids[N];
    struct rig *rig = *state;
    struct esp_link *sink;
    struct esp_msg msg;
    uint32_t layer = 0, next = 0;

    rig_join(rig, 1);
    assert_int_equal(
        esp_link_create(&sink, rig->net, &(struct esp_link_options){.type = ESP_LINK_SERVE, .hwm = 1}, NULL),
        ESP_OK);
    snprintf(rig->w[2].bind, sizeof rig->w[2].bind, "ipc://%s/sink", rig->dir);
    strcpy(rig->w[2].endpoint, rig->w[2].bind);
    assert_int_equal(esp_link_bind(sink, rig->w[2].endpoint, false, NULL, NULL), ESP_OK);
    rig_put(rig, 0, &one, 1, 0, 0, false);
    rig_take_ready(rig, 1, 1);
    rig_send_rows(rig, 0, 1, 1, 9, 0, ids, N);
    rig_take_result(rig, 0, 1, 1);
    rig_put(rig, 0, &none, 2, 1, 1, false);
    rig_take_ready(rig, 2, 1);
    rig_send_move(rig, 0, 2, 0, N_DEC, 2, NULL, 0);
    rig_expect_silence(rig, 500);
    assert_int_equal(rig_count_log(rig, " moved to="),
                     0); /* 1536 pieces of 3 KiB are more than sockets hold */
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_HEARTBEAT, .heartbeat = {.stamp = 5}});
    do {
        rig_take(rig, 0, ESP_MSG_HEARTBEAT, &msg);
        next = (uint32_t)msg.heartbeat.echo;
        esp_msg_finish(&msg);
    } while (next != 5);
    for (next = 0; layer < N_DEC;) {
        struct esp_err err;
        esp_status st;

        while ((st = esp_link_recv(sink, &(struct esp_peer){0}, &msg, &err)) == ESP_E_TIMEOUT)
            assert_int_equal(esp_link_wait(&(struct esp_wait){.link = sink}, 1, ESP_PATIENCE_MS, NULL),
                             ESP_OK);
        assert_int_equal(st, ESP_OK);
        assert_int_equal(msg.kind, ESP_MSG_KV_BLOCKS);
        assert_int_equal(msg.kv_blocks.layer, layer);
        assert_int_equal(msg.kv_blocks.first, next);
        assert_int_equal(msg.kv_blocks.total_blocks, BLOCKS);
        next += msg.kv_blocks.n_blocks;
        if (next == BLOCKS) {
            layer++;
            next = 0;
        }
        esp_msg_finish(&msg);
    }
    rig_expect_log(rig, " moved to=", 1);
    esp_link_destroy(&sink);
}

/* ---- what must be refused ---- */

static void test_wrong_carry(void **state)
{
    static const struct rig_cut one = {N_ENC, N_DEC, {0, 0, 0}, {4, 0, 0}, {0, 0, 0}, {6, 0, 0}};
    struct rig *rig = *state;
    struct talk a = {.seq = 9};
    struct rig_place slow = {.epoch = 7,
                             .dec_hi = N_DEC,
                             .n_dec = N_DEC,
                             .next_enc = -1,
                             .features_to = -1,
                             .next_dec = -1,
                             .kv_tokens = FAKE_KV_SLOW};

    rig_join(rig, 1);
    rig_put(rig, 0, &one, 2, 0, 0, false);
    rig_take_ready(rig, 2, 1);
    rig_put(rig, 0, &one, 4, 3, 0, false);
    rig_take_error(rig, 0, ESP_E_PROTO, "epoch 3 is to be carried on, here is 2", 4, 0, 0);
    rig_put(rig, 0, &one, 5, 4, 0, false); /* what failed cannot be carried on either */
    rig_take_error(rig, 0, ESP_E_PROTO, "but this worker is not placed", 5, 0, 0);
    rig_put(rig, 0, &one, 6, 0, 0, false);
    rig_take_ready(rig, 6, 1);
    say(rig, &one, 6, 1, &a, 3);
    rig_place(rig, 0, &slow);
    rig_put(rig, 0, &one, 8, 7, 0, false);
    rig_take_error(rig, 0, ESP_E_PROTO, "but this worker is loading", 8, 0, 0);
    rig_put(rig, 0, &one, 9, 0, 0, false);
    rig_take_ready(rig, 9, 1);
    a.n = 0;
    say(rig, &one, 9, 1, &a, 3); /* begins empty */
}

static void test_wrong_moves(void **state)
{
    struct rig *rig = *state;
    struct talk a = {.seq = 9};
    const uint64_t image = 5;
    uint32_t lo, hi;

    rig_join(rig, 3);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &thirds, 1, 0, 0, false);
    rig_take_ready(rig, 1, 3);
    say(rig, &thirds, 1, 1, &a, 9);
    rig_send_move(rig, 1, 1, 2, 3, 0, NULL, 0);
    rig_take_error(rig, 1, ESP_E_PROTO, "a move more than the 0 that were announced", 1, 0, 0);
    rig_send_move(rig, 1, 2, 2, 3, 0, NULL, 0);
    rig_expect_log(rig, "move of epoch 2, placed is 1", 1);

    for (int i = 0; i < 3; i++) /* w1 keeps what it gives away for two moves */
        rig_put(rig, i, &no_middle, 2, 1, i == 1 ? 2 : 0, false);
    rig_take_ready(rig, 2, 3);
    assert_true(rig_passes(&thirds, &no_middle, 1, 0, &lo, &hi));
    rig_send_move(rig, 1, 2, 5, 6, 0, NULL, 0);
    rig_take_error(rig, 1, ESP_E_PROTO, "no KV of layer 5", 2, 0, 0);
    rig_send_move(rig, 1, 2, 0, 0, 0, &image, 1);
    rig_take_error(rig, 1, ESP_E_PROTO, "image 5 is not here", 2, 0, 0);
    rig_send_move(rig, 1, 2, 2, 3, 0, NULL, 0);
    rig_take_error(rig, 1, ESP_E_PROTO, "a move more than the 2", 2, 0, 0);
    rig_send_move(rig, 0, 2, 0, 1, 1, NULL, 0);
    rig_take_error(rig, 0, ESP_E_PROTO, "a move more than the 0", 2, 0, 0);

    { /* the placement is void; a new one, without what was lost, works */
        for (int i = 0; i < 3; i++)
            rig_put(rig, i, &thirds, 3, 0, 0, false);
        rig_take_ready(rig, 3, 3);
        a.n = 0;
        say(rig, &thirds, 3, 1, &a, 2);
        for (int i = 0; i < 3; i++) /* nor can a layer be moved that was not given away */
            rig_put(rig, i, &no_middle, 4, 3, i == 0 ? 1 : 0, false);
        rig_take_ready(rig, 4, 3);
        rig_send_move(rig, 0, 4, 0, 1, 2, NULL, 0);
        rig_take_error(rig, 0, ESP_E_PROTO, "decoder layer 0 was not given away", 4, 0, 0);
    }
}

/* Until the last layer is here steps are refused, and releases wait. */
static void test_before_all_is_here(void **state)
{
    struct rig *rig = *state;
    struct talk a = {.seq = 9}, b = {.seq = 10};
    const int32_t ids[] = {3};
    const uint64_t gone[] = {10};
    struct rig_moved m;

    rig_join(rig, 3);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &thirds, 1, 0, 0, false);
    rig_take_ready(rig, 1, 3);
    say(rig, &thirds, 1, 1, &a, 9);
    say(rig, &thirds, 1, 2, &b, 3);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &no_middle, 2, 1, i == 1 ? 2 : 0, false);
    rig_take_ready(rig, 2, 3);
    rig_send_rows(rig, 0, 2, 1, 9, 9, ids, 1);
    rig_take_error(rig, 0, ESP_E_PROTO, "KV of 1 layers has not come yet", 2, 1, 0);
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_RELEASE, .release = {2, 1, 0, gone, NULL}});
    rig_put(rig, 0, &thirds, 2, 1, 0, false); /* an old one again: nothing happens */
    rig_expect_log(rig, "epoch=2 place_ignored", 1);
    rig_send_move(rig, 1, 2, 2, 3, 0, NULL, 0);
    rig_take_moved(rig, 2, 1, 0, &m);
    assert_int_equal(m.kv_blocks, 3);
    rig_send_move(rig, 1, 2, 3, 4, 2, NULL,
                  0); /* w2 gets the release before this, and its books are whole still */
    rig_take_moved(rig, 2, 1, 0, &m);
    assert_int_equal(m.kv_blocks, 3);
    rig_expect_held(rig, 0, 2, 1, 0);
    rig_expect_held(rig, 2, 2, 1, 0);
    say(rig, &no_middle, 2, 2, &a, 1);

    /* What is not whole cannot be carried on. */
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &thirds, 3, 2, i == 1 ? 0 : 1, false);
    rig_take_ready(rig, 3, 3);
    rig_put(rig, 1, &no_middle, 4, 3, 0, false);
    rig_take_error(rig, 1, ESP_E_PROTO, "KV of 2 layers of epoch 3 has not come", 4, 0, 0);
}

static void send_data(struct esp_link *link, const struct esp_msg *msg)
{
    struct esp_msg copy = *msg;
    struct esp_err err;

    for (int i = 0; esp_link_send(link, NULL, &copy, &err) != ESP_OK; i++) {
        assert_true(i < ESP_PATIENCE_MS);
        usleep(1000);
        copy = *msg;
    }
}

/* KV from strangers, and from one who is none but lies: each is refused with one line, and the move goes its way. */
static void test_hostile_blocks(void **state)
{
    static float zeros[2 * FAKE_BLOCK_TOKENS * FAKE_WIDTH];
    static const uint32_t b01[] = {0, 1}, b0[] = {0};
    const struct esp_kv_seq here[] = {{9, 9, 2, b01}}, other[] = {{8, 9, 2, b01}},
                            longer[] = {{9, 10, 2, b01}};
    struct rig *rig = *state;
    struct talk a = {.seq = 9};
    struct esp_link *link;
    struct rig_moved m;
    const struct bad {
        const char *says;
        struct esp_msg_kv_blocks msg;
    } bad[] = {
        {"kv_blocks of epoch 3, placed is 2", {3, 2, 0, 2, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, here}},
        {"KV of layer 0, which is not waited for", {2, 0, 0, 2, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, here}},
        {"KV of layer 3, which is not waited for", {2, 3, 0, 2, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, here}},
        {"KV of layer 4000000000, which is not",
         {2, 4000000000u, 0, 2, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, here}},
        {"blocks from 1 of 2, expected from 0 of 2", {2, 2, 1, 1, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, here}},
        {"blocks of [8,2], takes [8,4]", {2, 2, 0, 2, 2, FAKE_BLOCK_TOKENS, 2, 1, here}},
        {"blocks of [16,4], takes [8,4]",
         {2, 2, 0, 1, 1, 16, FAKE_WIDTH, 1, (struct esp_kv_seq[]){{9, 9, 1, b0}}}},
        {"sequence 8 of 9 tokens, here it has 0", {2, 2, 0, 2, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, other}},
        {"sequence 9 of 10 tokens, here it has 9", {2, 2, 0, 2, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, longer}},
        {"books of 0 sequences, but 1 are here", {2, 2, 0, 0, 0, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 0, NULL}},
        {"block 0 of sequence 9 holds another one", {2, 2, 0, 1, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, here}},
    };

    rig_join(rig, 3);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &thirds, 1, 0, 0, false);
    rig_take_ready(rig, 1, 3);
    say(rig, &thirds, 1, 1, &a, 9);
    link = rig_dial(rig, 0, "mallory");
    { /* nothing is carried at all */
        struct esp_msg msg = {.kind = ESP_MSG_KV_BLOCKS, .kv_blocks = bad[1].msg, .n_blobs = 1};

        msg.kv_blocks.epoch = 1;
        msg.blob[0] = (struct esp_blob){.data = zeros, .n_bytes = sizeof zeros};
        send_data(link, &msg);
        rig_expect_log(rig, "refused from=mallory epoch=1 cause=\"KV of layer 0, which is not waited for", 1);
    }
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &no_middle, 2, 1, i == 1 ? 2 : 0, false);
    rig_take_ready(rig, 2, 3);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct esp_msg msg = {.kind = ESP_MSG_KV_BLOCKS, .kv_blocks = bad[i].msg};

        if (i % 8 == 7)
            sleep(1); /* so that the log's own limit on noise hides none */
        msg.n_blobs = msg.kv_blocks.n_blocks > 0;
        msg.blob[0] =
            (struct esp_blob){.data = zeros,
                              .n_bytes = (size_t)msg.kv_blocks.n_blocks * msg.kv_blocks.block_tokens *
                                         msg.kv_blocks.width * sizeof(float)};
        send_data(link, &msg);
        rig_expect_log(rig, bad[i].says, 1);
    }
    rig_expect_silence(rig, 20); /* the coordinator is not bothered */

    rig_send_move(rig, 1, 2, 2, 3, 0, NULL, 0);
    rig_send_move(rig, 1, 2, 3, 4, 2, NULL, 0);
    rig_take_moved(rig, 2, 2, 0, &m);
    { /* a layer that is complete is not taken again, be it ever so good */
        struct esp_msg msg = {.kind = ESP_MSG_KV_BLOCKS, .n_blobs = 1};

        msg.kv_blocks = (struct esp_msg_kv_blocks){2, 2, 0, 2, 2, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, here};
        msg.blob[0] = (struct esp_blob){.data = zeros, .n_bytes = sizeof zeros};
        send_data(link, &msg);
        rig_expect_log(rig, "refused from=mallory epoch=2 cause=\"KV of layer 2, which is not waited for", 1);
    }
    say(rig, &no_middle, 2, 1, &a, 2);
    esp_link_destroy(&link);
}

/* A layer that one has begun to bring is taken from nobody else; and one that is never finished holds up nothing but
 * itself: the next placement forgets it. */
static void test_unfinished(void **state)
{
    static float block[FAKE_BLOCK_TOKENS * FAKE_WIDTH];
    static const uint32_t list[] = {0, 1, 2};
    const struct esp_kv_seq seq[] = {{9, 17, 3, list}};
    struct rig *rig = *state;
    struct talk a = {.seq = 9};
    struct esp_link *first, *second;
    struct esp_msg msg = {.kind = ESP_MSG_KV_BLOCKS, .n_blobs = 1};
    const int32_t ids[] = {1};

    rig_join(rig, 3);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &thirds, 1, 0, 0, false);
    rig_take_ready(rig, 1, 3);
    say(rig, &thirds, 1, 1, &a, 17);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &no_middle, 2, 1, 0, false);
    rig_take_ready(rig, 2, 3);
    first = rig_dial(rig, 0, "w1");
    second = rig_dial(rig, 0, "mallory");
    for (int f = 0; f < FAKE_BLOCK_TOKENS * FAKE_WIDTH; f++)
        block[f] = 900;
    msg.kv_blocks = (struct esp_msg_kv_blocks){2, 2, 0, 1, 3, FAKE_BLOCK_TOKENS, FAKE_WIDTH, 1, seq};
    msg.blob[0] = (struct esp_blob){.data = block, .n_bytes = sizeof block};
    send_data(first, &msg);
    send_data(first, &msg); /* twice: replayed */
    rig_expect_log(
        rig, "refused from=w1 epoch=2 cause=\"KV of layer 2: blocks from 0 of 3, expected from 1 of 3", 1);
    send_data(second, &msg);
    rig_expect_log(rig, "refused from=mallory epoch=2 cause=\"KV of layer 2, which comes from w1", 1);
    msg.kv_blocks.first = 1;
    send_data(second, &msg);
    rig_expect_log(rig, "refused from=mallory epoch=2 cause=\"KV of layer 2, which comes from w1", 2);
    rig_send_rows(rig, 0, 2, 1, 9, 17, ids, 1);
    rig_take_error(rig, 0, ESP_E_PROTO, "KV of 1 layers has not come yet", 2, 1, 0);
    for (int i = 0; i < 3; i++)
        rig_put(rig, i, &thirds, 3, 0, 0, false);
    rig_take_ready(rig, 3, 3);
    a.n = 0;
    say(rig, &thirds, 3, 1, &a, 2);
    msg.kv_blocks.first = 1; /* late: of an epoch that is gone, not a word */
    send_data(first, &msg);
    say(rig, &thirds, 3, 2, &a, 2);
    assert_int_equal(rig_count_log(rig, "refused from=w1"), 1);
    esp_link_destroy(&first);
    esp_link_destroy(&second);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_RIG(test_drain),
        WITH_RIG(test_random_moves),
        WITH_RIG(test_join),
        WITH_RIG(test_warm_trouble),
        WITH_RIG(test_coordinator_restarts),
        WITH_RIG(test_echo),
        WITH_RIG(test_slow_receiver),
        WITH_RIG(test_wrong_carry),
        WITH_RIG(test_wrong_moves),
        WITH_RIG(test_before_all_is_here),
        WITH_RIG(test_hostile_blocks),
        WITH_RIG(test_unfinished),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
