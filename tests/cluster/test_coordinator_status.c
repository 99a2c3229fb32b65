/* What a coordinator tells of its cluster: what it predicted, what the stages say that they took, its counters. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/coordinator_rig.h"

static const struct esp_msg_status *status(struct rig *rig)
{
    struct esp_msg msg = {.kind = ESP_MSG_STATUS_QUERY};
    struct esp_err err;

    rig_dial(rig, 1);
    msg.status_query.id = 7;
    assert_int_equal(esp_link_send(rig->c[1].link, NULL, &msg, &err), ESP_OK);
    return &rig_take(rig, 1, ESP_MSG_STATUS)->status;
}

static bool is_ready(struct rig *rig, void *arg)
{
    return status(rig)->ready;
}

static bool both_timed(struct rig *rig, void *arg)
{
    const struct esp_msg_status *s = status(rig);

    return s->n_workers == 2 && s->workers[0].rtt > 0 && s->workers[1].rtt > 0;
}

/* Five tokens about a picture. */
static void ask(struct rig *rig, uint64_t id)
{
    struct esp_msg_request r = {.id = id, .prompt = "caption en", .max_tokens = 5};

    r.sampling.ignore_eos = true;
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    rig_take(rig, 0, ESP_MSG_DONE);
}

static void test_stages(void **state)
{
    struct rig *rig = *state;
    const struct esp_msg_status *s;
    double busiest = 0, all = 0;

    rig_start(rig, "--workers", "2", "--split", "2/1,0/2", NULL);
    rig_join(rig, 2);
    rig_until(rig, is_ready, NULL, "a ready cluster");
    s = status(rig);
    assert_memory_equal(s->fingerprint, rig->fingerprint, sizeof s->fingerprint);
    for (uint32_t i = 0; i < 2; i++) {
        const struct esp_stage_plan *p = &s->workers[i].predicted, *m = &s->workers[i].measured;

        assert_true(p->prefill > 0 && p->decode > 0 && (p->encode > 0) == (i == 0));
        assert_true(m->encode == 0 && m->prefill == 0 && m->decode == 0);
        busiest = fmax(busiest, p->encode + p->prefill + 32 * p->decode);
        all += p->encode + p->prefill + 32 * p->decode;
        assert_true(s->workers[i].busy == 0 && s->workers[i].kv_blocks > 0);
        assert_string_equal(s->workers[i].cause, "");
    }
    assert_true(fabs(s->bottleneck / busiest - 1) < 1e-9);
    assert_true(s->latency >= all * (1 - 1e-9)); /* and the hops */
    assert_true(s->kv_blocks > 0 && s->kv_used_blocks == 0);
    do { /* unless this machine sleeps for so long that the last seconds are empty */
        ask(rig, s->n_requests + 1);
        s = status(rig);
    } while (s->tokens_per_second == 0);
    assert_true(s->tokens_per_second <= 5.0 * (double)s->n_requests / 4.5);
    /* What the rig's stages say of a picture, and of every step. */
    assert_true(s->workers[0].measured.encode == 0.5 && s->workers[1].measured.encode == 0);
    assert_true(fabs(s->workers[0].measured.prefill - 0.002) < 1e-12);
    assert_true(fabs(s->workers[1].measured.prefill - 0.004) < 1e-12);
    assert_true(fabs(s->workers[0].measured.decode - 0.002) < 1e-12);
    assert_true(fabs(s->workers[1].measured.decode - 0.004) < 1e-12);
    assert_true(s->workers[1].busy > 0 && s->workers[1].busy <= 1);
    rig_until(rig, both_timed, NULL, "the round trips");
}

static void test_counters(void **state)
{
    struct rig *rig = *state;
    const struct esp_msg_status *s;

    rig_start(rig, NULL);
    rig_join(rig, 1);
    ask(rig, 1);
    ask(rig, 2);
    rig_until_free(rig);
    s = status(rig);
    assert_int_equal(s->n_requests, 2);
    assert_int_equal(s->n_tokens, 10);
    assert_int_equal(s->n_prefills, 2);
    assert_int_equal(s->n_steps, 10);
    assert_int_equal(s->n_encodes, 1); /* the second time its features are there */
    assert_int_equal(s->n_losses, 0);
    assert_int_equal(s->kv_used_blocks, 0);
    assert_true(s->uptime > 0);
    rig_vanish(rig, 0);
    do {
        rig_pump(rig, 20);
        s = status(rig);
    } while (s->n_losses == 0);
    assert_int_equal(s->n_losses, 1);
    assert_false(s->ready);
    assert_true(s->latency == 0 && s->kv_blocks == 0);
}

/* Numbers that a worker makes up harm its own line, at most. */
static void test_lies(void **state)
{
    static const uint64_t echoes[] = {1, UINT64_MAX, UINT64_C(1) << 63};
    struct rig *rig = *state;
    const struct esp_msg_status *s;

    rig_start(rig, "--workers", "2", NULL);
    rig_join(rig, 2);
    rig_until(rig, both_timed, NULL, "the round trips");
    for (size_t i = 0; i < sizeof echoes / sizeof echoes[0]; i++) {
        struct esp_msg msg = {.kind = ESP_MSG_HEARTBEAT};

        msg.heartbeat = (struct esp_msg_heartbeat){.epoch = rig->w[0].place.epoch,
                                                   .echo = echoes[i],
                                                   .n_queued = UINT32_MAX,
                                                   .kv_used_blocks = UINT64_MAX};
        rig_send(rig, 0, &msg);
    }
    s = status(rig);
    assert_int_equal(s->n_workers, 2);
    for (uint32_t i = 0; i < 2; i++)
        assert_true(s->workers[i].rtt > 0 && s->workers[i].rtt < ESP_PATIENCE_MS / 1000.0);
    ask(rig, 1);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {CASE(test_stages), CASE(test_counters), CASE(test_lies)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
