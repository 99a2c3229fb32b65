/*
 * Workers that are killed, that freeze and that come back, under a crowd that goes on asking: how long until the loss is
 * noticed and until everybody's tokens flow again, and that nobody is lost and no token is another than it would have been.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/sim/crowd.h"

#define N_CLIENTS 8
#define A_ROUND   6   /* requests that come with each */
#define TIMEOUT_S 1.5 /* of a worker that says nothing */
#define LOST      " lost why="

struct round {
    double lost_at, noticed, recovered; /* seconds: when, and how long it took */
    uint32_t n_live;                    /* sessions that were being answered */
};

static struct sim_profile profile(void)
{
    struct sim_profile p = sim_profile_default;

    p.encode_layer_s = 0.0005;
    p.step_layer_s = 0.0006;
    p.decode_row_s = 0.00006;
    p.prefill_row_s = 0.00003;
    p.load_rate = 100e6; /* a decoder layer in 4 ms */
    p.kv_rate = 10e6;    /* the KV of 32 tokens of a layer in 0.4 ms */
    p.jitter = 0.1;
    return p;
}

static uint32_t draw(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % n;
}

/* Pumps until every live session has so many tokens more than at the beginning, or all it asked for. */
static void advance(struct crowd *c, uint32_t n)
{
    const double until = fleet_now() + FLEET_DEADLINE_S;
    uint32_t *from = calloc(c->n_asks, sizeof *from);
    bool done = false;

    assert_non_null(from);
    for (uint32_t i = 0; i < c->n_asks; i++)
        from[i] = c->ask[i]->n_tok;
    while (!done) {
        crowd_pump(c, 50);
        done = true;
        for (uint32_t i = 0; i < c->n_asks; i++)
            done &= c->ask[i]->ended || c->ask[i]->n_tok >= from[i] + n;
        if (fleet_now() > until)
            fail_msg("tokens do not flow");
    }
    free(from);
}

static void ask(struct crowd *c, uint64_t *random, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const bool picture = draw(random, 3) == 0;

        crowd_ask(c, draw(random, N_CLIENTS), picture ? (int)draw(random, CROWD_PICTURES) : -1,
                  8 + draw(random, 40));
    }
}

/* The longest that a session had to wait for a token after that time. */
static double longest_wait(const struct crowd *c, double from)
{
    double longest = 0;

    for (uint32_t i = 0; i < c->n_asks; i++) {
        const struct crowd_ask *a = c->ask[i];

        for (uint32_t t = 1; t < a->n_tok; t++) {
            const double begun = a->at[t - 1] > from ? a->at[t - 1] : from, wait = a->at[t] - begun;

            if (a->at[t] > from && wait > longest)
                longest = wait;
        }
    }
    return longest;
}

/* One loss: worker i is killed or frozen while everything runs. */
static struct round lose(struct fleet *f, struct crowd *c, uint32_t i, bool freeze)
{
    const uint32_t n_lost = fleet_count_log(f, LOST);
    struct round r = {0};

    for (uint32_t k = 0; k < c->n_asks; k++)
        r.n_live += !c->ask[k]->ended;
    r.lost_at = fleet_now();
    if (freeze)
        fleet_freeze(f, i);
    else
        fleet_kill(f, i);
    while (fleet_count_log(f, LOST) == n_lost) {
        crowd_pump(c, 20);
        if (fleet_now() > r.lost_at + FLEET_DEADLINE_S)
            fail_msg("the coordinator does not miss %s", f->w[i].name);
    }
    r.noticed = fleet_now() - r.lost_at;
    advance(c, 3);
    r.recovered = longest_wait(c, r.lost_at);
    return r;
}

static void test_churn(void **state)
{
    const uint32_t n_rounds = fleet_soak() ? 100 : 4, n_workers = fleet_soak() ? 16 : 6;
    char n[8], timeout[8];
    const char *args[] = {"--workers",      n,     "--context",    "256",   "--kv-tokens", "16384",
                          "--heartbeat-ms", "200", "--timeout-ms", timeout, NULL};
    const struct sim_profile p = profile();
    double worst_noticed[2] = {0}, worst_recovered[2] = {0};
    uint64_t random = 7;
    uint32_t lost = UINT32_MAX;
    struct crowd c;
    struct fleet f;

    snprintf(n, sizeof n, "%u", n_workers);
    snprintf(timeout, sizeof timeout, "%d", (int)(1000 * TIMEOUT_S));
    fleet_start(&f, true, args);
    for (uint32_t i = 0; i < n_workers; i++)
        fleet_add(&f, FLEET_PROCESS, &p);
    fleet_until_ready(&f, n_workers);
    crowd_open(&c, &f, N_CLIENTS);
    ask(&c, &random, 2 * A_ROUND);
    advance(&c, 2);
    printf("\n%u workers, %u losses: seconds\nworker  how     sessions  noticed  tokens again\n", n_workers,
           n_rounds);
    for (uint32_t k = 0; k < n_rounds; k++) {
        const bool freeze = k % 2;
        uint32_t i = draw(&random, n_workers);
        struct round r;

        if (i == lost)
            i = (i + 1) % n_workers;
        ask(&c, &random, A_ROUND);
        r = lose(&f, &c, i, freeze);
        printf("%-6s  %-6s  %8u  %7.2f  %12.2f\n", f.w[i].name, freeze ? "frozen" : "killed", r.n_live,
               r.noticed, r.recovered);
        worst_noticed[freeze] = r.noticed > worst_noticed[freeze] ? r.noticed : worst_noticed[freeze];
        worst_recovered[freeze] =
            r.recovered > worst_recovered[freeze] ? r.recovered : worst_recovered[freeze];
        if (freeze)
            fleet_thaw(&f, i);
        else
            fleet_again(&f, i);
        lost = i;
        fleet_until_ready(&f, n_workers); /* it is back among them */
    }
    crowd_finish(&c);
    crowd_check(&c);
    printf(
        "worst: killed %.2f and %.2f, frozen %.2f and %.2f; %u answers, %llu tokens, all as they should be\n",
        worst_noticed[0], worst_recovered[0], worst_noticed[1], worst_recovered[1], c.n_asks,
        (unsigned long long)c.n_tokens);
    crowd_close(&c);
    fleet_stop(&f);
}

static void pump(void *crowd)
{
    crowd_pump(crowd, 20);
}

static void counters(struct fleet *f, struct esp_msg_status *out)
{
    struct esp_msg m;

    fleet_status(f, &m);
    *out = m.status;
    esp_msg_finish(&m);
}

/* Workers are drained and come back under load: layers go with their KV, nothing is computed twice, streams go on. */
static void test_drain(void **state)
{
    const uint32_t n_rounds = fleet_soak() ? 40 : 2, n_workers = 5;
    const char *args[] = {"--workers", "5", "--context", "256", "--kv-tokens", "16384", NULL};
    const struct sim_profile p = profile();
    struct esp_msg_status before, after;
    uint64_t random = 11, n_layers = 0, kv_bytes = 0;
    struct crowd c;
    struct fleet f;

    fleet_start(&f, true, args);
    for (uint32_t i = 0; i < n_workers; i++)
        fleet_add(&f, FLEET_PROCESS, &p);
    fleet_until_ready(&f, n_workers);
    crowd_open(&c, &f, N_CLIENTS);
    ask(&c, &random, 2 * A_ROUND);
    advance(&c, 2);
    printf("\n%u workers, %u drained under load and back\n"
           "worker  layers  KV bytes  pictures  seconds  of them paused\n",
           n_workers, n_rounds);
    for (uint32_t k = 0; k < n_rounds; k++) {
        const uint32_t i = k % n_workers;
        struct esp_msg_drained d;

        ask(&c, &random, A_ROUND);
        advance(&c, 1);
        counters(&f, &before);
        d = fleet_drain(&f, i, pump, &c);
        counters(&f, &after);
        printf("%-6s  %6u  %8llu  %8u  %7.2f  %14.2f\n", f.w[i].name, d.n_layers,
               (unsigned long long)d.kv_bytes, d.n_images, d.seconds, d.pause);
        assert_int_equal(after.n_rebuilds, before.n_rebuilds);
        assert_int_equal(after.n_losses, before.n_losses);
        assert_true(after.n_moves > before.n_moves ||
                    d.n_layers == 0); /* back for too short a time to have any */
        n_layers += d.n_layers;
        kv_bytes += d.kv_bytes;
        advance(&c, 2);
        fleet_again(&f, i);
        fleet_until_ready(&f, n_workers);
        advance(&c, 2);
    }
    crowd_finish(&c);
    crowd_check(&c);
    counters(&f, &after);
    assert_true(n_layers > 0 && kv_bytes > 0);
    assert_int_equal(after.n_rebuilds, 0);
    assert_int_equal(after.n_prefills, c.n_asks); /* each once */
    crowd_close(&c);
    fleet_stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_churn), cmocka_unit_test(test_drain)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
