/* How a worker works: pieces of work through any number of workers, what it must refuse, and pressure. Each
 * worker is a thread with real sockets and a fake stage; the test plays the coordinator, stages after, and
 * strangers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <zmq.h>

#include "tests/cluster/worker_rig.h"
#include "tests/support/fake_stage.h"

/* ---- work ---- */

struct answers {
    float lse[8];
};

/** The same conversation at any number of workers: pictures, two sequences, a fork, frees. */
static void converse(struct rig *rig, int n, struct answers *a)
{
    const int last = n - 1;
    const int32_t ids[] = {0, 0, 5, 2, 9};
    const uint64_t image = 77, gone[] = {21};
    const struct esp_fork fork = {22, 20};
    struct esp_msg msg;

    rig_send_pixels(rig, 0, 1, image, 0.5f, false);
    rig_take(rig, 0, ESP_MSG_STORED, &msg);
    assert_int_equal(msg.stored.epoch, 1);
    assert_int_equal(msg.stored.image, image);
    assert_int_equal(msg.stored.n_times, n == 1 ? 1 : n + 1); /* storing elsewhere is one more */
    assert_string_equal(msg.stored.times[0].worker, "w0");
    esp_msg_finish(&msg);

    { /* two sequences in a step, one with a picture */
        const struct esp_seq_rows seqs[] = {
            {.seq = 20, .n_tok = 4, .n_prefix = 3, .n_images = 1, .images = &image}, {.seq = 21, .n_tok = 1}};
        const struct esp_want wants[] = {{.row = 3, .k = 4, .has_target = true, .target = 1},
                                         {.row = 4, .full = true}};
        rig_send_step(
            rig, 0,
            (struct esp_msg_step){
                .epoch = 1, .id = 1, .rows = 5, .n_seqs = 2, .seqs = seqs, .n_wants = 2, .wants = wants},
            ids);
        rig_take(rig, last, ESP_MSG_RESULT, &msg);
        assert_int_equal(msg.result.step, 1);
        assert_int_equal(msg.result.n_rows, 2);
        assert_int_equal(msg.result.rows[0].n, 4);
        assert_int_equal(msg.result.n_full, 1);
        assert_int_equal(msg.result.vocab, FAKE_VOCAB);
        assert_int_equal(msg.n_blobs, 1);
        assert_int_equal(msg.result.n_times, n);
        for (int i = 0; i < n; i++) {
            assert_string_equal(msg.result.times[i].worker, rig->w[i].name);
            assert_true(msg.result.times[i].queue_seconds >= 0 && msg.result.times[i].compute_seconds > 0);
        }
        a->lse[0] = msg.result.rows[0].lse;
        a->lse[1] = msg.result.rows[0].target_logit;
        a->lse[2] = msg.result.rows[1].lse;
        memcpy(&a->lse[3], (const char *)msg.blob[0].data + 5 * sizeof(float), sizeof(float));
        esp_msg_finish(&msg);
    }
    { /* 22 goes on from 20, 21 is forgotten and begins anew */
        const struct esp_seq_rows seqs[] = {{.seq = 22, .pos = 4, .n_tok = 1}, {.seq = 21, .n_tok = 1}};
        const struct esp_want wants[] = {{.row = 0, .k = 1}, {.row = 1, .k = 1}};
        rig_send_step(rig, 0,
                      (struct esp_msg_step){.epoch = 1,
                                            .id = 2,
                                            .rows = 2,
                                            .n_free = 1,
                                            .free = gone,
                                            .n_forks = 1,
                                            .forks = &fork,
                                            .n_seqs = 2,
                                            .seqs = seqs,
                                            .n_wants = 2,
                                            .wants = wants},
                      ids + 3);
        rig_take(rig, last, ESP_MSG_RESULT, &msg);
        a->lse[4] = msg.result.rows[0].lse;
        a->lse[5] = msg.result.rows[1].lse;
        esp_msg_finish(&msg);
    }
    { /* releases go down the chain, between steps and in order with them */
        const uint64_t seqs[] = {20, 22}, images[] = {77};
        struct esp_msg release = {.kind = ESP_MSG_RELEASE, .release = {1, 2, 1, seqs, images}};

        rig_send(rig, 0, &release);
        rig_send_rows(rig, 0, 1, 3, 22, 0, ids + 2, 2);
        a->lse[6] = rig_take_result(rig, last, 1, 3);
        assert_true(a->lse[6] == rig_expected(ids + 2, 2));
    }
}

static void test_same_at_every_split(void **state)
{
    struct answers a[RIG_WORKERS + 1] = {0};

    for (int n = 1; n <= RIG_WORKERS; n++) {
        struct rig *rig;

        assert_int_equal(rig_setup((void **)&rig), 0);
        rig_join(rig, n);
        rig_place_all(rig, n, 1);
        converse(rig, n, &a[n]);
        assert_true(a[n].lse[2] == rig_expected((const int32_t[]){9}, 1));
        assert_true(a[n].lse[5] == rig_expected((const int32_t[]){9}, 1));
        assert_memory_equal(&a[n], &a[1], sizeof a[1]);
        rig_teardown((void **)&rig);
    }
}

static void test_traces(void **state)
{
    struct rig *rig = *state;
    const struct esp_seq_rows seq = {.seq = 1, .n_tok = 2};
    const struct esp_want want = {.row = 1, .k = 1};
    const int32_t ids[] = {1, 2};
    bool seen[2][6] = {{false}};
    struct esp_msg msg;

    rig_join(rig, 2);
    rig_place_all(rig, 2, 1);
    rig_send_pixels(rig, 0, 1, 5, 1, true);
    rig_send_step(rig, 0,
                  (struct esp_msg_step){.epoch = 1,
                                        .id = 1,
                                        .rows = 2,
                                        .n_seqs = 1,
                                        .seqs = &seq,
                                        .n_wants = 1,
                                        .wants = &want,
                                        .trace = true},
                  ids);
    for (int n = 0; n < 4 + 6 + 2;) { /* from two workers, so in no order between them */
        struct esp_peer from;
        unsigned layer;

        assert_int_equal(esp_link_wait(&(struct esp_wait){.link = rig->link}, 1, ESP_PATIENCE_MS, NULL),
                         ESP_OK);
        if (esp_link_recv(rig->link, &from, &msg, NULL))
            continue;
        if (msg.kind == ESP_MSG_TRACE) {
            bool vision = sscanf(msg.trace.name, "vision.layer.%u", &layer) == 1;
            assert_true(vision || sscanf(msg.trace.name, "prefill.layer.%u", &layer) == 1);
            assert_true(layer < (vision ? 4 : 6) && !seen[vision][layer]);
            seen[vision][layer] = true;
            assert_int_equal(msg.trace.image, vision ? 5 : 0);
            assert_int_equal(msg.trace.step, vision ? 0 : 1);
            assert_int_equal(msg.trace.rows, 2);
            assert_int_equal(msg.trace.width, FAKE_WIDTH);
            if (vision && layer == 3) {
                float x;
                memcpy(&x, msg.blob[0].data, sizeof x);
                assert_true(x == 1 + (1 + 2 + 3 + 4) / 4.0f);
            }
        } else if (msg.kind != ESP_MSG_HEARTBEAT) {
            assert_true(msg.kind == ESP_MSG_STORED || msg.kind == ESP_MSG_RESULT);
        }
        n += msg.kind != ESP_MSG_HEARTBEAT;
        esp_msg_finish(&msg);
    }
}

/* A step that a stage refuses fails alone: told with its number, and what it frees is freed further down too.
 */
static void test_refused_step(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {4, 5, 6};
    const uint64_t gone[] = {7};
    const struct esp_seq_rows again = {.seq = 8, .pos = 5, .n_tok = 1};
    const struct esp_want want = {.row = 0, .k = 1};

    rig_join(rig, 3);
    rig_place_all(rig, 3, 1);
    rig_send_rows(rig, 0, 1, 1, 7, 0, ids, 3);
    assert_true(rig_take_result(rig, 2, 1, 1) == rig_expected(ids, 3));
    rig_send_rows(rig, 0, 1, 2, FAKE_SEQ_LIMIT, 0, ids, 2);
    rig_take_error(rig, 2, ESP_E_LIMIT, "needs 3 blocks, 1 of 64 free", 1, 2, 0);
    rig_send_step(rig, 0,
                  (struct esp_msg_step){.epoch = 1,
                                        .id = 3,
                                        .rows = 1,
                                        .n_free = 1,
                                        .free = gone,
                                        .n_seqs = 1,
                                        .seqs = &again,
                                        .n_wants = 1,
                                        .wants = &want},
                  ids);
    rig_take_error(rig, 0, ESP_E_PROTO, "position 5, expected 0", 1, 3, 0);
    rig_send_rows(rig, 0, 1, 4, 7, 0, ids + 1, 2); /* would be refused by w1 and w2 if they still knew it */
    assert_true(rig_take_result(rig, 2, 1, 4) == rig_expected(ids + 1, 2));

    /* An image nobody stored; one too many. */
    for (uint64_t image = 1; image <= FAKE_IMAGES; image++) {
        struct esp_msg msg;
        rig_send_pixels(rig, 0, 1, image, 0, false);
        rig_take(rig, 0, ESP_MSG_STORED, &msg);
        esp_msg_finish(&msg);
    }
    rig_send_pixels(rig, 0, 1, 99, 0, false);
    rig_take_error(rig, 0, ESP_E_LIMIT, "takes no more", 1, 0, 99);
}

static void test_device_lost(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {1};
    struct esp_msg msg;

    rig_join(rig, 1);
    rig_place_all(rig, 1, 1);
    rig_send_rows(rig, 0, 1, 1, FAKE_SEQ_DEVICE, 0, ids, 1);
    rig_take_error(rig, 0, ESP_E_DEVICE, "VK_ERROR_DEVICE_LOST", 1, 1, 0);
    rig_take(rig, 0, ESP_MSG_BYE, &msg);
    assert_string_equal(msg.bye.why, "vkQueueSubmit: VK_ERROR_DEVICE_LOST");
    esp_msg_finish(&msg);
    assert_int_equal(rig_wait(rig, 0), ESP_E_DEVICE);
    assert_string_equal(rig->w[0].err.text, "vkQueueSubmit: VK_ERROR_DEVICE_LOST");
}

/* ---- what must be refused ---- */

static void test_wrong_epochs_and_states(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {1, 2};
    struct esp_msg msg;

    rig_join(rig, 1);
    rig_send_rows(rig, 0, 1, 1, 1, 0, ids, 1); /* nothing placed: of a newer epoch */
    rig_expect_log(rig, "step of epoch 1, placed is 0", 1);

    rig_place(rig, 0, &(struct rig_place){5, 0, 4, 0, 6, 4, 6, -1, 0, -1, FAKE_KV_SLOW});
    rig_send_rows(rig, 0, 5, 1, 1, 0, ids, 1);
    rig_take_error(rig, 0, ESP_E_PROTO, "step while loading", 5, 1, 0);
    rig_take(rig, 0, ESP_MSG_READY, &msg);
    esp_msg_finish(&msg);

    rig_send_rows(rig, 0, 4, 7, 1, 0, ids, 1); /* older: not a word */
    rig_send_rows(rig, 0, 6, 1, 1, 0, ids, 1); /* newer: a log line */
    rig_send_rows(rig, 0, 5, 2, 1, 0, ids, 1);
    rig_take_result(rig, 0, 5, 2);
    rig_expect_log(rig, "step of epoch 6, placed is 5", 1);
    assert_int_equal(rig_count_log(rig, "epoch=4"), 0);
    rig_send_rows(rig, 0, 5, 2, 1, 1, ids, 1);
    rig_take_error(rig, 0, ESP_E_PROTO, "step 2 after step 2", 5, 2, 0);
    rig_send_rows(rig, 0, 5, 3, 1, 1, ids + 1, 1);
    assert_true(rig_take_result(rig, 0, 5, 3) == rig_expected(ids, 2));

    { /* more rows than placed for */
        static int32_t many[5000];
        rig_send_rows(rig, 0, 5, 4, 2, 0, many, 5000);
        rig_take_error(rig, 0, ESP_E_PROTO, "5000 rows, takes 1..4096", 5, 4, 0);
    }

    /* Kinds that a coordinator does not send, and pieces of work that go elsewhere. */
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_STATUS_QUERY, .status_query = {1}});
    rig_expect_log(rig, "a worker takes no status_query from the coordinator", 1);
    rig_place(rig, 0, &(struct rig_place){7, 0, 0, 3, 6, 4, 6, -1, -1, -1, 0});
    rig_take(rig, 0, ESP_MSG_READY, &msg);
    esp_msg_finish(&msg);
    rig_send_rows(rig, 0, 7, 1, 1, 0, ids, 1);
    rig_take_error(rig, 0, ESP_E_PROTO, "go to the first decoder stage", 7, 1, 0);
    rig_send_pixels(rig, 0, 7, 3, 0, false);
    rig_take_error(rig, 0, ESP_E_PROTO, "goes to the first encoder stage", 7, 0, 3);
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_RELEASE, .release = {.epoch = 7}});
    rig_expect_log(rig, "releases come from the coordinator, then down", 1);
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

static void test_hostile_data_peers(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {3, 1, 4};
    const float rows[6] = {1, 2, 3, 4, 5, 6};
    const struct esp_seq_rows seq = {.seq = 5, .n_tok = 1};
    const uint64_t some[] = {5};
    struct esp_msg step = {.kind = ESP_MSG_STEP, .n_blobs = 1},
                   encode = {.kind = ESP_MSG_ENCODE, .n_blobs = 1};
    struct esp_link *link;

    rig_join(rig, 2);
    rig_place_all(rig, 2, 4);
    step.step = (struct esp_msg_step){
        .epoch = 4, .id = 1, .payload = ESP_PAYLOAD_ROWS, .rows = 1, .width = 4, .n_seqs = 1, .seqs = &seq};
    step.blob[0] = (struct esp_blob){.data = rows, .n_bytes = 16};
    encode.encode = (struct esp_msg_encode){
        .epoch = 4, .image = 1, .payload = ESP_PAYLOAD_FEATURES, .rows = 1, .width = 4};
    encode.blob[0] = step.blob[0];

    /* To w0, the first decoder stage: rows of steps come to it from nobody, commands from the coordinator
     * alone. */
    link = rig_dial(rig, 0, "mallory");
    send_data(link, &step);
    rig_expect_log(rig, "refused from=mallory epoch=4 cause=\"step of payload 2", 1);
    send_data(link, &(struct esp_msg){.kind = ESP_MSG_RELEASE, .release = {4, 1, 0, some, NULL}});
    rig_expect_log(rig, "refused from=mallory epoch=4 cause=\"releases come from", 1);
    send_data(link,
              &(struct esp_msg){.kind = ESP_MSG_PLACE,
                                .place = {.epoch = 9, .next_enc = "", .features_to = "", .next_dec = ""}});
    rig_expect_log(rig, "takes no place from another stage", 1);
    send_data(link, &(struct esp_msg){.kind = ESP_MSG_BYE, .bye = {.why = "go"}});
    rig_expect_log(rig, "takes no bye from another stage", 1);
    encode.encode.epoch = 5;
    send_data(link, &encode);
    rig_expect_log(rig, "encode of epoch 5, placed is 4", 1);
    encode.encode.epoch = 3;
    send_data(link, &encode);
    encode.encode.epoch = 4; /* well-formed, of the epoch: reaches the stage, which says no to the shape */
    send_data(link, &encode);
    rig_take_error(rig, 0, ESP_E_PROTO, "features f32[1,4]", 4, 0, 1);
    esp_link_destroy(&link);

    /* To w1, the last: wrong width, unknown positions. */
    link = rig_dial(rig, 1, "mallory");
    step.step.width = 6;
    step.blob[0].n_bytes = 24;
    send_data(link, &step);
    rig_take_error(rig, 1, ESP_E_PROTO, "rows of width 6, expected 4", 4, 1, 0);
    step.step.payload = ESP_PAYLOAD_TOKENS;
    step.step.width = 1;
    step.step.id = 2;
    step.blob[0].n_bytes = 4;
    send_data(link, &step);
    rig_expect_log(rig, "refused from=mallory epoch=4 cause=\"step of payload 4", 1);
    esp_link_destroy(&link);

    { /* Noise: no message at all, too many frames, a flood of it. The log stays readable. */
        void *zmq = zmq_ctx_new(), *socket = zmq_socket(zmq, ZMQ_DEALER);
        int linger = 1000;

        assert_int_equal(zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger), 0);
        assert_int_equal(zmq_connect(socket, rig->w[1].endpoint), 0);
        for (int i = 0; i < 3000; i++)
            assert_true(zmq_send(socket, "\xff\x00noise", 7, 0) == 7);
        for (int i = 0; i < 100; i++)
            assert_true(zmq_send(socket, "", 0, ZMQ_SNDMORE) == 0);
        assert_true(zmq_send(socket, "", 0, 0) == 0);
        rig_expect_log(rig, "refused from=", 10);
        zmq_close(socket);
        zmq_ctx_term(zmq);
    }

    /* After all that, honest work goes its way. */
    rig_send_rows(rig, 0, 4, 10, 6, 0, ids, 3);
    assert_true(rig_take_result(rig, 1, 4, 10) == rig_expected(ids, 3));
    assert_true(rig_count_log(rig, "refused from=") < 1000);
}

/* What looks right and comes from a stranger, once the stages know each other: live sequences and pictures are safe. */
static void test_strangers_with_good_messages(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {3, 1, 4, 1};
    const float rows[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    const struct esp_seq_rows next = {.seq = 6, .pos = 3, .n_tok = 1}, other = {.seq = 77, .n_tok = 1};
    const uint64_t seqs[] = {6}, images[] = {9};
    struct esp_msg step = {.kind = ESP_MSG_STEP, .n_blobs = 1, .blob = {{.data = rows, .n_bytes = 16}}};
    struct esp_msg encode = {.kind = ESP_MSG_ENCODE, .n_blobs = 1, .blob = {{.data = rows, .n_bytes = 32}}};
    struct esp_link *link;
    struct esp_msg msg;

    rig_join(rig, 2);
    rig_place_all(rig, 2, 4);
    link = rig_dial(rig, 1, "mallory");
    step.step = (struct esp_msg_step){.epoch = 4,
                                      .id = UINT64_MAX,
                                      .payload = ESP_PAYLOAD_ROWS,
                                      .rows = 1,
                                      .width = 3,
                                      .n_seqs = 1,
                                      .seqs = &other};
    step.blob[0].n_bytes = 12;
    send_data(
        link,
        &step); /* before there is any work: of no use to anybody, so it says nothing about the next one */
    rig_take_error(rig, 1, ESP_E_PROTO, "rows of width 3", 4, UINT64_MAX, 0);

    rig_send_rows(rig, 0, 4, 1, 6, 0, ids, 3);
    assert_true(rig_take_result(rig, 1, 4, 1) == rig_expected(ids, 3));
    rig_send_pixels(rig, 0, 4, 9, 2, false);
    rig_take(rig, 0, ESP_MSG_STORED, &msg);
    esp_msg_finish(&msg);

    step.step.width = 4;
    step.step.seqs = &next;
    step.blob[0].n_bytes = 16;
    send_data(link, &step);
    rig_expect_log(rig, "refused from=mallory epoch=4 cause=\"step comes from w0/dec/", 1);
    send_data(link, &(struct esp_msg){.kind = ESP_MSG_RELEASE, .release = {4, 1, 1, seqs, images}});
    rig_expect_log(rig, "refused from=mallory epoch=4 cause=\"release comes from w0/dec/", 1);
    encode.encode =
        (struct esp_msg_encode){.epoch = 4, .image = 9, .payload = ESP_PAYLOAD_ROWS, .rows = 2, .width = 4};
    send_data(link, &encode);
    rig_expect_log(rig, "refused from=mallory epoch=4 cause=\"encode comes from w0/enc/", 1);
    esp_link_destroy(&link);
    link = rig_dial(rig, 0, "mallory");
    encode.encode.payload = ESP_PAYLOAD_FEATURES;
    send_data(link, &encode);
    rig_expect_log(rig, "refused from=mallory epoch=4 cause=\"encode comes from w1/features/", 1);
    esp_link_destroy(&link);

    rig_send_rows(rig, 0, 4, 2, 6, 3, ids + 3, 1);
    assert_true(rig_take_result(rig, 1, 4, 2) == rig_expected(ids, 4));
}

static void test_bad_control_messages(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {3};
    void *zmq = zmq_ctx_new(), *socket = zmq_socket(zmq, ZMQ_ROUTER);
    int linger = 0;
    char name[16];

    /* A coordinator that talks nonsense after it was said Hello to: the worker stays, and asks again. */
    rig_close(rig);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger), 0);
    while (zmq_bind(socket, rig->at) != 0)
        usleep(1000);
    rig_start(rig, 0);
    assert_int_equal(zmq_recv(socket, name, sizeof name, 0), 2);
    zmq_send(socket, "w0", 2, ZMQ_SNDMORE);
    zmq_send(socket, "HTTP/1.1 200 OK", 15, 0);
    zmq_send(socket, "w0", 2, ZMQ_SNDMORE);
    zmq_send(socket, "", 0, 0);
    rig_expect_log(rig, "bad_message from=coordinator", 2);
    zmq_close(socket);
    zmq_ctx_term(zmq);
    rig_open(rig);
    rig_welcome(rig, 0);
    rig_place_all(rig, 1, 1);
    rig_send_rows(rig, 0, 1, 1, 6, 0, ids, 1);
    assert_true(rig_take_result(rig, 0, 1, 1) == rig_expected(ids, 1));
}

/* ---- pressure ---- */

enum {
    N_STEPS = 400,
    PRESSURE_ROWS = 4096
}; /* 64 KiB of rows a step: far more than queues and socket buffers hold */

/** Fills a worker's queue with noise from one peer, which then vanishes. */
static void flood_and_vanish(struct rig *rig, int i)
{
    const struct esp_link_options options = {.type = ESP_LINK_DIAL, .identity = "mallory"};
    struct esp_link *link;

    assert_int_equal(esp_link_create(&link, rig->net, &options, NULL), ESP_OK);
    assert_int_equal(esp_link_connect(link, rig->w[i].endpoint, NULL), ESP_OK);
    for (int n = 0; n < 1000; n++) {
        struct esp_msg msg = {.kind = ESP_MSG_BYE, .bye = {.why = "noise"}};
        if (esp_link_send(link, NULL, &msg, NULL) == ESP_E_LIMIT)
            usleep(1000);
    }
    esp_link_destroy(&link);
}

/* The last stage takes nothing for a while. Nothing is lost, nothing overtakes, and w0 gets its turn again.
 * Meanwhile w1 reads no data; a peer that leaves with its queue there full must not matter (libzmq's pings
 * made it abort). */
static void test_back_pressure(void **state)
{
    struct rig *rig = *state;
    static int32_t ids[PRESSURE_ROWS];
    struct esp_link *sink;
    struct esp_msg msg;

    rig_join(rig, 2);
    assert_int_equal(
        esp_link_create(&sink, rig->net, &(struct esp_link_options){.type = ESP_LINK_SERVE, .hwm = 1}, NULL),
        ESP_OK);
    snprintf(rig->w[2].bind, sizeof rig->w[2].bind, "ipc://%s/sink", rig->dir);
    strcpy(rig->w[2].endpoint, rig->w[2].bind);
    assert_int_equal(esp_link_bind(sink, rig->w[2].endpoint, false, NULL, NULL), ESP_OK);
    rig_place(rig, 0, &(struct rig_place){1, 0, 0, 0, 2, 4, 6, -1, -1, 1, 0});
    rig_place(rig, 1, &(struct rig_place){1, 0, 0, 2, 4, 4, 6, -1, -1, 2, 0});
    for (int i = 0; i < 2; i++) {
        rig_take(rig, -1, ESP_MSG_READY, &msg);
        esp_msg_finish(&msg);
    }
    for (uint64_t id = 1; id <= N_STEPS; id++) {
        const uint64_t seqs[] = {5};
        rig_send_rows(rig, 0, 1, id, 5, 0, ids, PRESSURE_ROWS);
        rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_RELEASE, .release = {1, 1, 0, seqs, NULL}});
    }
    rig_expect_silence(rig, 200); /* no Error: all of it waits somewhere */
    flood_and_vanish(rig, 1);
    rig_expect_silence(rig, 3000);
    for (uint64_t id = 1; id <= N_STEPS; id++) {
        for (int kind = 0; kind < 2; kind++) {
            struct esp_err err;
            esp_status st;

            while ((st = esp_link_recv(sink, &(struct esp_peer){0}, &msg, &err)) == ESP_E_TIMEOUT)
                assert_int_equal(esp_link_wait(&(struct esp_wait){.link = sink}, 1, ESP_PATIENCE_MS, NULL),
                                 ESP_OK);
            assert_int_equal(st, ESP_OK);
            if (kind == 0) {
                assert_int_equal(msg.kind, ESP_MSG_STEP);
                assert_int_equal(msg.step.id, id);
                assert_int_equal(msg.step.n_times, 2);
            } else {
                assert_int_equal(msg.kind, ESP_MSG_RELEASE);
            }
            esp_msg_finish(&msg);
        }
    }
    esp_link_destroy(&sink);
    rig_expect_silence(rig, 20);
}

/* A coordinator without measure is told so, step by step; what was taken is done. */
static void test_coordinator_floods(void **state)
{
    struct rig *rig = *state;
    const int32_t ids[] = {1};
    uint64_t next_result = 2, n_errors = 0;
    struct esp_peer from;
    struct esp_msg msg;

    rig_join(rig, 1);
    rig_place_all(rig, 1, 1);
    rig_send_rows(rig, 0, 1, 1, FAKE_SEQ_STUCK, 0, ids, 1);
    for (uint64_t id = 2; id <= 1200; id++)
        rig_send_rows(rig, 0, 1, id, 3, (uint32_t)id - 2, ids, 1);
    while (next_result + n_errors <= 1200) {
        struct esp_err err;

        assert_int_equal(esp_link_wait(&(struct esp_wait){.link = rig->link}, 1, ESP_PATIENCE_MS, NULL),
                         ESP_OK);
        if (esp_link_recv(rig->link, &from, &msg, &err))
            continue;
        if (msg.kind == ESP_MSG_ERROR) {
            assert_int_equal(msg.error.code, ESP_E_LIMIT);
            assert_true(msg.error.step > 1000);
            n_errors++;
        } else if (msg.kind == ESP_MSG_RESULT && msg.result.step > 1) {
            assert_int_equal(msg.result.step, next_result);
            next_result++;
        }
        esp_msg_finish(&msg);
    }
    assert_true(n_errors > 100);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_at_every_split),
        WITH_RIG(test_traces),
        WITH_RIG(test_refused_step),
        WITH_RIG(test_device_lost),
        WITH_RIG(test_wrong_epochs_and_states),
        WITH_RIG(test_hostile_data_peers),
        WITH_RIG(test_strangers_with_good_messages),
        WITH_RIG(test_bad_control_messages),
        WITH_RIG(test_back_pressure),
        WITH_RIG(test_coordinator_floods),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
