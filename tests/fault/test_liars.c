/*
 * Workers that join as they should, get layers, and lie: each lie in a cluster of its own, with an honest worker in the
 * placement and another one as a spare. The liar is dropped with one line in the log, its layers are placed anew, and the client
 * whose step it lied about gets the answer that an honest cluster gives.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "model/checkpoint.h"
#include "proto/clock.h"
#include "proto/link.h"
#include "tests/fault/hostile_rig.h"

static struct hostile_proc coordinator, worker[2];
static char at[ESP_MAX_ENDPOINT + 1];
static uint8_t fingerprint[ESP_FINGERPRINT_BYTES];

/* ---- a worker that lies ---- */

struct liar {
    struct esp_net *net;
    struct esp_link *control, *data;
    char endpoint[ESP_MAX_ENDPOINT + 1];
    uint64_t epoch, step, image; /* the last it got */
    double beat;
    bool lied;
};

/* Returns false where it cannot be told with what there was so far. */
typedef bool (*lie_fn)(struct liar *l, struct esp_msg *m);

static void say(struct liar *l, struct esp_msg *m)
{
    struct esp_err err;

    if (esp_link_send(l->control, NULL, m, &err) && err.code != ESP_E_LIMIT)
        fail_msg("the liar cannot say a %s: %s", esp_msg_name(m->kind), err.text);
}

static const uint32_t ids[] = {1, 2, 4000000000u};
static const float logits[] = {9, 8, 7};
static const struct esp_row_result surplus[] = {
    {.row = 1000, .lse = 1, .n = 3, .ids = ids, .logits = logits}};

static bool result_of_other_rows(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_RESULT;
    m->result = (struct esp_msg_result){
        .epoch = l->epoch, .step = l->step + (l->step == 0), .n_rows = 1, .rows = surplus};
    return l->image > 0 || l->step > 0;
}

static bool result_without_rows(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_RESULT;
    m->result = (struct esp_msg_result){.epoch = l->epoch, .step = l->step + (l->step == 0)};
    return l->image > 0 || l->step > 0;
}

static bool result_of_no_step(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_RESULT;
    m->result = (struct esp_msg_result){.epoch = l->epoch, .step = l->step + 1000};
    return l->image > 0 || l->step > 0;
}

static bool result_of_an_epoch_to_come(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_RESULT;
    m->result = (struct esp_msg_result){.epoch = l->epoch + 1, .step = 1};
    return l->image > 0 || l->step > 0;
}

static bool stored_what_nobody_sent(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_STORED;
    m->stored = (struct esp_msg_stored){.epoch = l->epoch, .image = 999};
    return l->image > 0 || l->step > 0;
}

static bool error_of_no_step(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_ERROR;
    m->error = (struct esp_msg_error){.code = ESP_E_DEVICE, .text = "no", .epoch = l->epoch, .step = 1000000};
    return l->image > 0 || l->step > 0;
}

static bool beat_of_an_epoch_to_come(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_HEARTBEAT;
    m->heartbeat.epoch = l->epoch + 7;
    return l->image > 0 || l->step > 0;
}

static bool ready_again(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_READY;
    m->ready = (struct esp_msg_ready){.epoch = l->epoch, .kv_blocks = 1, .block_tokens = 7};
    return l->image > 0 || l->step > 0;
}

static bool verified_unasked(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_VERIFIED;
    m->verified = (struct esp_msg_verified){
        .id = 77, .epoch = l->epoch, .layer = "prefill.layer.0", .limit = 1, .done = 1, .total = 1};
    return l->image > 0 || l->step > 0;
}

static bool a_coordinators_word(struct liar *l, struct esp_msg *m)
{
    m->kind = ESP_MSG_WELCOME;
    m->welcome = (struct esp_msg_welcome){500, 10000};
    return l->image > 0 || l->step > 0;
}

static const struct {
    const char *name;
    lie_fn tell;
} lies[] = {
    {"a result of rows that nobody wanted", result_of_other_rows},
    {"a picture stored that nobody sent", stored_what_nobody_sent},
    {"a result of a step that has not been", result_of_no_step},
    {"a result of an epoch to come", result_of_an_epoch_to_come},
    {"a result without rows", result_without_rows},
    {"an error of a step that has not been", error_of_no_step},
    {"a heartbeat of an epoch to come", beat_of_an_epoch_to_come},
    {"ready again", ready_again},
    {"verified unasked", verified_unasked},
    {"what only a coordinator says", a_coordinators_word},
};
#define N_LIES  (sizeof lies / sizeof lies[0])
#define N_SHORT 4 /* of them in make test */

static void liar_open(struct liar *l)
{
    struct esp_msg m = {.kind = ESP_MSG_HELLO};

    memset(l, 0, sizeof *l);
    assert_int_equal(esp_net_create(&l->net, NULL), ESP_OK);
    assert_int_equal(
        esp_link_create(&l->data, l->net, &(struct esp_link_options){.type = ESP_LINK_SERVE}, NULL), ESP_OK);
    assert_int_equal(esp_link_bind(l->data, "tcp://127.0.0.1:*", false, l->endpoint, NULL), ESP_OK);
    assert_int_equal(esp_link_create(&l->control, l->net,
                                     &(struct esp_link_options){.type = ESP_LINK_DIAL, .identity = "liar"},
                                     NULL),
                     ESP_OK);
    assert_int_equal(esp_link_connect(l->control, at, NULL), ESP_OK);
    m.hello = (struct esp_msg_hello){
        .name = "liar",
        .device = {"Fast", "driver", "plain", 2, UINT64_C(8) << 30, UINT64_C(4) << 30, 1e12, 1e14},
        .endpoint = l->endpoint,
        .software = "0",
        .key = ""};
    memcpy(m.hello.fingerprint, fingerprint, sizeof fingerprint);
    say(l, &m);
}

static void liar_close(struct liar *l)
{
    esp_link_destroy(&l->control);
    esp_link_destroy(&l->data);
    esp_net_destroy(&l->net);
}

static void hear(struct liar *l, const struct esp_msg *m)
{
    struct esp_msg out = {.kind = ESP_MSG_READY};

    if (m->kind == ESP_MSG_PLACE && !m->place.warm) {
        l->epoch = m->place.epoch;
        l->step = l->image = 0;
        out.ready = (struct esp_msg_ready){.epoch = l->epoch, .kv_blocks = 4096, .block_tokens = 32};
        say(l, &out);
    } else if (m->kind == ESP_MSG_STEP) {
        l->step = m->step.id;
    } else if (m->kind == ESP_MSG_ENCODE) {
        l->image = m->encode.image;
    }
}

/* Takes what has come, and tells the lie once it can be told. */
static void liar_go_on(struct liar *l, lie_fn tell)
{
    struct esp_msg m, lie = {.n_blobs = 0};
    struct esp_peer from;
    struct esp_err err;

    while (!esp_link_recv(l->control, NULL, &m, &err)) {
        hear(l, &m);
        esp_msg_finish(&m);
    }
    while (!esp_link_recv(l->data, &from, &m, &err)) {
        hear(l, &m);
        esp_msg_finish(&m);
    }
    if (l->lied)
        return; /* and says nothing any more */
    if (tell(l, &lie)) {
        say(l, &lie);
        l->lied = true;
    } else if (esp_now_seconds() - l->beat > 0.1) {
        struct esp_msg beat = {.kind = ESP_MSG_HEARTBEAT, .heartbeat = {.epoch = l->epoch}};

        say(l, &beat);
        l->beat = esp_now_seconds();
    }
}

/* ---- the cluster ---- */

static void start_worker(int i)
{
    hostile_start(
        &worker[i], i ? "w1" : "w0", WORKER,
        (const char *[]){"--model", HOSTILE_MODEL, "--connect", at, "--name", i ? "w1" : "w0", NULL});
}

static void start_coordinator(const char *n_workers)
{
    hostile_start(&coordinator, "coordinator", COORDINATOR,
                  (const char *[]){"--model", HOSTILE_MODEL, "--bind", "tcp://127.0.0.1:*", "--workers",
                                   n_workers, NULL});
    hostile_wait_for(&coordinator, "listening endpoint=", 1);
    hostile_word(&coordinator, "endpoint=", at, sizeof at);
}

static void cluster_down(void)
{
    hostile_stop(&coordinator);
    for (int i = 0; i < 2; i++)
        hostile_ended(&worker[i]);
}

static void one_lie(struct hostile_client *client, size_t which)
{
    const double deadline = esp_now_seconds() + ESP_PATIENCE_MS / 1000.0;
    const unsigned want = client->n_answers + 2;
    struct liar l;

    start_coordinator("2");
    liar_open(&l);
    start_worker(0);
    while (hostile_count(&coordinator, "ready epoch=1") == 0) {
        liar_go_on(&l, lies[which].tell);
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        assert_true(esp_now_seconds() < deadline);
    }
    start_worker(1);
    while (hostile_count(&coordinator, "worker=w1 joined") == 0) {
        liar_go_on(&l, lies[which].tell);
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        assert_true(esp_now_seconds() < deadline);
    }
    assert_false(l.lied);
    snprintf(client->endpoint, sizeof client->endpoint, "%s", at);
    while (client->n_answers < want) {
        liar_go_on(&l, lies[which].tell);
        hostile_client_poll(client, client->n_started < want);
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        if (esp_now_seconds() > deadline)
            fail_msg("%s: no answer in time", lies[which].name);
    }
    if (!l.lied || hostile_count(&coordinator, "worker=liar epoch=1 lost why=") != 1)
        fail_msg("%s: %s, and lost %u times", lies[which].name, l.lied ? "told" : "not told",
                 hostile_count(&coordinator, "worker=liar epoch=1 lost why="));
    assert_int_equal(hostile_count(&coordinator, " lost why="), 1); /* nobody else */
    liar_close(&l);
    cluster_down();
}

static void test_liars(void **state)
{
    const size_t n = getenv("ESPALIER_SOAK") ? N_LIES : N_SHORT;
    struct hostile_client client;

    start_coordinator("2");
    for (int i = 0; i < 2; i++)
        start_worker(i);
    hostile_client_open(&client, at);
    hostile_client_wait(&client, 2);
    cluster_down();
    for (size_t i = 0; i < n; i++)
        one_lie(&client, i);
    hostile_client_close(&client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_liars)};
    struct esp_checkpoint *ck;
    struct esp_err err;

    if (esp_checkpoint_open(&ck, HOSTILE_MODEL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    esp_checkpoint_fingerprint(ck, fingerprint);
    esp_checkpoint_destroy(&ck);
    return cmocka_run_group_tests(tests, hostile_setup, hostile_teardown);
}
