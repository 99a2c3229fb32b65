/* Layers that move to other workers with all they hold: nothing is computed twice, and nobody's answer is another one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/fault/all_kinds.h"

#define ADMIN 1 /* the client that drains and asks for the status */

static char want[N][TEXT], got[N][TEXT];

static void drain(struct rig *rig, uint64_t id, const char *worker)
{
    struct esp_msg msg = {.kind = ESP_MSG_DRAIN, .drain = {.id = id, .worker = worker}};

    rig_dial(rig, ADMIN);
    assert_int_equal(esp_link_send(rig->c[ADMIN].link, NULL, &msg, NULL), ESP_OK);
}

static const struct esp_msg_status *status(struct rig *rig)
{
    static uint64_t id = 1000000;
    struct esp_msg msg = {.kind = ESP_MSG_STATUS_QUERY, .status_query = {.id = ++id}};

    rig_dial(rig, ADMIN);
    assert_int_equal(esp_link_send(rig->c[ADMIN].link, NULL, &msg, NULL), ESP_OK);
    return &rig_take(rig, ADMIN, ESP_MSG_STATUS)->status;
}

static bool is_ready(struct rig *rig, void *arg)
{
    return status(rig)->ready;
}

/* The undisturbed answers, and a cluster of the workers 0 .. n - 1, those from `spares` on without layers. */
static void start(struct rig *rig, int n, const char *split)
{
    rig_start(rig, "--heartbeat-ms", "50", "--context", "300", "--kv-tokens", "3000", "--timeout-ms", "5000",
              "--workers",
              n == 1   ? "1"
              : n == 2 ? "2"
                       : "3",
              split ? "--split" : NULL, split, NULL);
    rig_join(rig, n);
    rig_until(rig, is_ready, NULL, "the cluster");
    ask_all(rig, 1);
    take_all(rig, 1, want);
    rig_until_free(rig);
}

static bool some_tokens(struct rig *rig, void *n)
{
    return rig_count(rig, 0, ESP_MSG_TOKEN) >= *(uint32_t *)n;
}

/* Asks everything again and returns in the midst of the answers. */
static void begin(struct rig *rig, uint64_t first)
{
    uint32_t n = 10;

    rig_hang_up(rig, 0); /* a new inbox */
    rig_dial(rig, 0);
    ask_all(rig, first);
    rig_until(rig, some_tokens, &n, "a few tokens");
}

static bool said_bye(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->bye;
}

/* A stage is drained in the midst of six requests: what it held goes along, and it is told to go. */
static void test_drain_under_load(void **state)
{
    struct rig *rig = *state;
    const struct esp_msg_drained *d;
    const struct esp_msg_status *s;
    uint64_t n_prefills, n_encodes;

    start(rig, 2, NULL);
    s = status(rig);
    n_prefills = s->n_prefills;
    n_encodes = s->n_encodes;
    assert_int_equal(n_prefills, N);
    for (int round = 0; round < 2; round++) {
        const int out = rig->w[0].place.embed ? 0 : 1; /* the pictures go along as well */
        const uint64_t first = 100 * (uint64_t)(round + 1);

        begin(rig, first);
        drain(rig, first, rig->w[out].name);
        d = &rig_take(rig, ADMIN, ESP_MSG_DRAINED)->drained;
        assert_string_equal(d->worker, rig->w[out].name);
        assert_int_equal(d->id, first);
        assert_true(d->n_layers > 0 && d->kv_bytes > 0 && d->n_images == 2);
        print_message("drained %s: %u layers, %llu bytes of KV, %.3f s, paused %.3f s\n", d->worker,
                      d->n_layers, (unsigned long long)d->kv_bytes, d->seconds, d->pause);
        rig_until(rig, said_bye, &rig->w[out], "its leave");
        take_all(rig, first, got);
        compare_all(got, want, "drained");
        rig_until_free(rig);
        s = status(rig);
        n_prefills += N;
        assert_int_equal(s->n_prefills, n_prefills); /* none was repeated */
        assert_int_equal(s->n_encodes, n_encodes);
        assert_int_equal(s->n_rebuilds, 0);
        assert_int_equal(s->n_losses, 0);
        assert_int_equal(s->n_workers, 1);
        assert_true(s->kv_moved_bytes > 0);
        rig_vanish(rig, out);
        rig_hello(rig, out); /* a better placement with it is taken in the same way */
        while (status(rig)->n_moves < 2 * (uint64_t)(round + 1))
            rig_pump(rig, 20);
        assert_true(status(rig)->ready);
    }
    begin(rig, 900);
    take_all(rig, 900, got);
    compare_all(got, want, "moved back");
    assert_true(rig->w[0].place.dec_hi - rig->w[0].place.dec_lo < 3);
    rig_until_free(rig);
}

/* A worker that joins under load gets its share without anybody noticing. */
static void test_join_under_load(void **state)
{
    struct rig *rig = *state;
    const struct esp_msg_status *s;

    start(rig, 1, NULL);
    begin(rig, 100);
    rig->w[0].hold_work = true; /* so that they are still at it when the second one is taken in */
    rig_hello(rig, 1);
    while (rig->w[1].n_warm == 0)
        rig_pump(rig, 20);
    rig_resume(rig, 0);
    take_all(rig, 100, got);
    compare_all(got, want, "joined");
    do
        s = status(rig);
    while (s->n_moves == 0);
    assert_int_equal(s->n_prefills, 2 * N);
    assert_int_equal(s->n_rebuilds, 0);
    assert_int_equal(rig->w[1].n_places, 2); /* a spare's, and then its own */
    assert_true(rig->w[1].place.dec_hi > rig->w[1].place.dec_lo ||
                rig->w[1].place.enc_hi > rig->w[1].place.enc_lo);
    rig_until_free(rig);
}

/* Too little memory for both placements at once: it loads in the pause. Anything else that keeps it from loading ends the
 * drain, and all is as before. */
static void test_not_warmed(void **state)
{
    struct rig *rig = *state;

    start(rig, 2, NULL);
    begin(rig, 100);
    rig->w[1].refuse_warm = ESP_E_IO;
    drain(rig, 7, "w0");
    rig_take_error(rig, ADMIN, 7, ESP_E_IO, "worker w1: no warming here");
    take_all(rig, 100, got);
    compare_all(got, want, "not warmed");
    assert_int_equal(status(rig)->n_moves, 0);
    assert_int_equal(rig->w[0].n_places, 1);

    rig->w[1].refuse_warm = ESP_E_NOMEM;
    begin(rig, 200);
    drain(rig, 8, "w0");
    assert_int_equal(rig_take(rig, ADMIN, ESP_MSG_DRAINED)->drained.id, 8);
    take_all(rig, 200, got);
    compare_all(got, want, "warmed in the pause");
    assert_int_equal(status(rig)->n_rebuilds, 0);
    rig_until_free(rig);
}

static bool is_warming(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->n_warm > 0;
}

static bool was_told_to_move(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->n_moves > 0;
}

/* The worker that is drained dies while it sends what it held: the sessions are rebuilt, and go on. */
static void test_giver_dies(void **state)
{
    struct rig *rig = *state;

    bool under_way;

    start(rig, 2, NULL);
    begin(rig, 100);
    rig->w[0].hold_work = rig->w[1].hold_work = true; /* so that the drain finds them at it */
    rig->w[0].hold_moves = true;
    drain(rig, 7, "w0");
    rig_until(rig, is_warming, &rig->w[1], "the Place(warm)");
    rig_resume(rig, 0);
    rig_resume(rig, 1);
    rig_until(rig, was_told_to_move, &rig->w[0], "the Move");
    under_way = rig_count(rig, 0, ESP_MSG_DONE) < N;
    rig_vanish(rig, 0);
    rig_take_error(rig, ADMIN, 7, ESP_E_CLOSED, "worker w0");
    take_all(rig, 100, got);
    compare_all(got, want, "the giver died");
    assert_true(!under_way || status(rig)->n_rebuilds > 0);
    rig->w[0].hold_moves = false;
    rig_hello(rig, 0); /* it is not let go for what was asked before */
    while (status(rig)->n_moves == 0)
        rig_pump(rig, 20);
    assert_false(rig->w[0].bye);
    rig_until_free(rig);
}

/* Who was to get the layers dies while it loads: there is nobody else, so the drain is refused and w0 stays. */
static void test_taker_dies(void **state)
{
    struct rig *rig = *state;

    start(rig, 2, "2/3");
    begin(rig, 100);
    rig->w[1].hold_warm = true;
    drain(rig, 7, "w0");
    rig_until(rig, is_warming, &rig->w[1], "the Place(warm)");
    rig_vanish(rig, 1);
    rig_take_error(rig, ADMIN, 7, ESP_E_ARG, "without w0: no worker to place the model on");
    take_all(rig, 100, got);
    compare_all(got, want, "the taker died");
    assert_int_equal(status(rig)->n_rebuilds, 0);
    rig_until_free(rig);
}

/* What still comes about a placement that is not to be any more harms nobody. */
static void test_late_about_warming(void **state)
{
    struct rig *rig = *state;
    struct esp_msg loading = {.kind = ESP_MSG_LOADING,
                              .loading = {.epoch = 2, .done_bytes = 1, .total_bytes = 2}};
    struct esp_msg error = {.kind = ESP_MSG_ERROR,
                            .error = {.code = ESP_E_CANCELLED, .text = "another placement came", .epoch = 2}};
    struct esp_msg warmed = {.kind = ESP_MSG_WARMED, .warmed = {.epoch = 2}};

    start(rig, 3, "2/2,0/1");
    rig->w[1].hold_warm = rig->w[2].hold_warm = true;
    drain(rig, 7, "w0");
    while (rig->w[1].n_warm == 0 || rig->w[2].n_warm == 0)
        rig_pump(rig, 20);
    rig_vanish(rig, 2); /* who was to take the other part: the split does not suit those who are left */
    rig_take_error(rig, ADMIN, 7, ESP_E_ARG, "without w0: --split names 2 stages");
    rig_send(rig, 1, &loading);
    rig_send(rig, 1, &error);
    rig_send(rig, 1, &warmed);
    begin(rig, 100);
    take_all(rig, 100, got);
    compare_all(got, want, "late about warming");
    assert_int_equal(rig->w[1].error, ESP_OK);
    assert_int_equal(rig->w[1].n_places, 1);
    assert_int_equal(status(rig)->n_losses, 0);
}

/* A stage that has nothing to do with the drain is lost in the middle of it: the drain comes after. */
static void test_third_dies(void **state)
{
    struct rig *rig = *state;
    int other;

    start(rig, 3, NULL);
    begin(rig, 100);
    rig->w[1].hold_warm = rig->w[2].hold_warm = true;
    drain(rig, 7, "w0");
    while (rig->w[1].n_warm == 0 && rig->w[2].n_warm == 0)
        rig_pump(rig, 20);
    other = rig->w[1].n_warm ? 2 : 1;
    rig->w[3 - other].hold_warm = false;
    rig_vanish(rig, other);
    take_all(rig, 100, got);
    compare_all(got, want, "a third died");
    assert_int_equal(rig_take(rig, ADMIN, ESP_MSG_DRAINED)->drained.id, 7);
    assert_true(rig->w[3 - other].place.dec_hi - rig->w[3 - other].place.dec_lo == 3);
    rig_until_free(rig);
}

static void test_refused(void **state)
{
    struct rig *rig = *state;

    start(rig, 1, NULL);
    drain(rig, 1, "w7");
    rig_take_error(rig, ADMIN, 1, ESP_E_ARG, "no worker is named w7; here are: w0");
    drain(rig, 2, "w0");
    rig_take_error(rig, ADMIN, 2, ESP_E_ARG, "without w0: no worker to place the model on");
    begin(rig, 100);
    take_all(rig, 100, got);
    compare_all(got, want, "refused");
    rig_until_free(rig);
}

/* A spare has nothing to give. */
static void test_spare(void **state)
{
    struct rig *rig = *state;
    const struct esp_msg_drained *d;

    start(rig, 2, "2/3");
    drain(rig, 3, "w1");
    d = &rig_take(rig, ADMIN, ESP_MSG_DRAINED)->drained;
    assert_int_equal(d->n_layers, 0);
    assert_int_equal(d->kv_bytes, 0);
    rig_until(rig, said_bye, &rig->w[1], "its leave");
    assert_int_equal(status(rig)->n_workers, 1);
}

static bool got_error(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->error != ESP_OK;
}

/* Layers that nobody has sent, placements that nobody has asked for. */
static void test_lies(void **state)
{
    struct rig *rig = *state;
    struct esp_msg moved = {.kind = ESP_MSG_MOVED, .moved = {.epoch = 1, .layer = 2}};
    struct esp_msg warmed = {.kind = ESP_MSG_WARMED, .warmed = {.epoch = 99}};

    start(rig, 1, NULL);
    rig_send(rig, 0, &moved);
    rig_until(rig, got_error, &rig->w[0], "an Error for the liar");
    assert_non_null(strstr(rig->w[0].error_text, "that nobody has sent"));
    rig_vanish(rig, 0);
    rig_hello(rig, 0);
    rig_until(rig, is_ready, NULL, "the cluster");
    rig_send(rig, 0, &warmed);
    rig_until(rig, got_error, &rig->w[0], "an Error for the liar");
    assert_non_null(strstr(rig->w[0].error_text, "nobody has asked for"));
    rig_vanish(rig, 0);
    rig_hello(rig, 0);
    begin(rig, 100);
    take_all(rig, 100, got);
    compare_all(got, want, "after lies");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_drain_under_load, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_join_under_load, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_not_warmed, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_giver_dies, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_taker_dies, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_third_dies, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_late_about_warming, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_refused, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_spare, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_lies, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
