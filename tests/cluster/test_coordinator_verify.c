/* A verification at the coordinator: who is asked, what is passed on, and everything that can end it early. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/coordinator_rig.h"

#define LIMIT 1e-4

static void query(struct rig *rig, int client, uint64_t id)
{
    struct esp_msg msg = {.kind = ESP_MSG_VERIFY_QUERY};
    struct esp_err err;

    rig_dial(rig, client);
    msg.verify_query.id = id;
    assert_int_equal(esp_link_send(rig->c[client].link, NULL, &msg, &err), ESP_OK);
}

struct asked {
    int worker;
    uint64_t id;
};

static bool is_asked(struct rig *rig, void *arg)
{
    const struct asked *a = arg;

    return rig->w[a->worker].verify.id >= a->id;
}

/* Waits until worker i has been sent the verification with this number. */
static void until_asked(struct rig *rig, int i, uint64_t id)
{
    struct asked a = {i, id};

    rig_until(rig, is_asked, &a, "Verify");
    assert_int_equal(rig->w[i].verify.id, id);
    assert_int_equal(rig->w[i].verify.epoch, rig->w[i].place.epoch);
}

static void say(struct rig *rig, int i, uint64_t id, const char *layer, double error, uint32_t done,
                uint32_t total)
{
    struct esp_msg msg = {.kind = ESP_MSG_VERIFIED};

    msg.verified = (struct esp_msg_verified){.id = id,
                                             .epoch = rig->w[i].place.epoch,
                                             .layer = layer,
                                             .error = error,
                                             .limit = LIMIT,
                                             .done = done,
                                             .total = total};
    rig_send(rig, i, &msg);
}

static void expect(struct rig *rig, int client, uint64_t id, const char *worker, const char *layer,
                   uint32_t done, uint32_t n_left, const char *why)
{
    const struct esp_msg_verify_report *r = &rig_take(rig, client, ESP_MSG_VERIFY_REPORT)->verify_report;

    assert_int_equal(r->id, id);
    assert_string_equal(r->worker, worker);
    assert_string_equal(r->layer, layer);
    assert_int_equal(r->done, done);
    assert_int_equal(r->n_workers, 2);
    assert_int_equal(r->n_left, n_left);
    if (!strstr(r->why, why))
        fail_msg("why \"%s\", expected \"%s\"", r->why, why);
    if (*layer)
        assert_true(r->limit == LIMIT && r->device[0] && r->driver[0]);
}

static void begin(struct rig *rig)
{
    rig_start(rig, "--workers", "2", "--split", "2/1,0/2", NULL);
    rig_join(rig, 2);
}

static void test_all_told(void **state)
{
    struct rig *rig = *state;

    begin(rig);
    query(rig, 0, 5);
    until_asked(rig, 0, 1);
    until_asked(rig, 1, 1);
    say(rig, 0, 1, "vision.layer.0", 1e-6, 1, 2);
    expect(rig, 0, 5, "w0", "vision.layer.0", 1, 2, "");
    say(rig, 1, 1, "prefill.layer.1", 0.5, 1, 1); /* deviates: a finding, no failure */
    expect(rig, 0, 5, "w1", "prefill.layer.1", 1, 1, "");
    query(rig, 1, 6); /* one at a time */
    rig_take_error(rig, 1, 6, ESP_E_LIMIT, "another verification is under way");
    say(rig, 0, 1, "prefill.layer.0", 1e-6, 2, 2);
    expect(rig, 0, 5, "w0", "prefill.layer.0", 2, 0, "");
    /* And the next one. */
    query(rig, 1, 6);
    until_asked(rig, 0, 2);
    until_asked(rig, 1, 2);
    say(rig, 0, 1, "prefill.layer.0", 1e-6, 1, 1); /* of the first one still: nobody's business any more */
    say(rig, 0, 2, "prefill.layer.0", 1e-6, 1, 1);
    expect(rig, 1, 6, "w0", "prefill.layer.0", 1, 1, "");
    say(rig, 1, 2, "prefill.layer.1", 1e-6, 1, 1);
    expect(rig, 1, 6, "w1", "prefill.layer.1", 1, 0, "");
}

/* Asked before there is a cluster: it waits for it as a request would. */
static void test_waits(void **state)
{
    struct rig *rig = *state;

    rig_start(rig, "--workers", "2", "--split", "2/1,0/2", NULL);
    query(rig, 0, 1);
    assert_non_null(strstr(rig_take(rig, 0, ESP_MSG_WAITING)->waiting.what, "waiting for workers"));
    rig_join(rig, 2);
    until_asked(rig, 0, 1);
    until_asked(rig, 1, 1);
    rig_cancel(rig, 0, 1);
    rig_take_error(rig, 0, 1, ESP_E_CANCELLED, "cancelled");
    query(rig, 0, 2);
    until_asked(rig, 0, 2);
}

/* A worker that cannot, one that is lost, a placement that ends: each says why, and the last one ends it. */
static void test_causes(void **state)
{
    struct rig *rig = *state;
    struct esp_msg msg = {.kind = ESP_MSG_ERROR};

    begin(rig);
    query(rig, 0, 1);
    until_asked(rig, 0, 1);
    until_asked(rig, 1, 1);
    msg.error = (struct esp_msg_error){
        .code = ESP_E_LIMIT, .text = "no free KV block", .epoch = rig->w[0].place.epoch, .session = 1};
    rig_send(rig, 0, &msg);
    expect(rig, 0, 1, "w0", "", 0, 1, "no free KV block");
    say(rig, 1, 1, "prefill.layer.1", 1e-6, 1, 1);
    expect(rig, 0, 1, "w1", "prefill.layer.1", 1, 0, ""); /* it is a stage still, and so is w0 */

    query(rig, 0, 2);
    until_asked(rig, 0, 2);
    until_asked(rig, 1, 2);
    rig_vanish(rig, 1);
    expect(rig, 0, 2, "w1", "", 0, 1, "");
    expect(rig, 0, 2, "w0", "", 0, 0, "placed anew");
}

/* Whoever asked is gone: the next one need not wait for it. */
static void test_client_gone(void **state)
{
    struct rig *rig = *state;

    begin(rig);
    query(rig, 0, 1);
    until_asked(rig, 0, 1);
    until_asked(rig, 1, 1);
    rig_hang_up(rig, 0);
    for (uint32_t done = 1; rig->w[0].verify.id == 1;
         done++) { /* it is noticed when there is something to say */
        say(rig, 0, 1, "vision.layer.0", 1e-6, done, UINT32_MAX);
        rig_pump(rig, 20);
        query(rig, 1, done);
    }
    until_asked(rig, 1, 2);
}

/* Each of these ends in the worker's being dropped, and its part of the verification with it. */
static void test_lies(void **state)
{
    static const struct {
        uint64_t id;
        uint32_t done, total;
    } lies[] = {{7, 1, 1}, {1, 2, 3}, {1, 3, 3}};
    struct rig *rig = *state;

    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        begin(rig);
        query(rig, 0, 1);
        until_asked(rig, 0, 1);
        until_asked(rig, 1, 1);
        say(rig, 1, lies[i].id, "prefill.layer.1", 1e-6, lies[i].done, lies[i].total);
        expect(rig, 0, 1, "w1", "", 0, 1, "verified what it was not asked to");
        expect(rig, 0, 1, "w0", "", 0, 0, "placed anew");
        assert_int_equal(rig_stop(rig), 0);
        rig_teardown(state);
        rig_setup(state);
        rig = *state;
    }
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {CASE(test_all_told), CASE(test_waits), CASE(test_causes),
                                       CASE(test_client_gone), CASE(test_lies)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
