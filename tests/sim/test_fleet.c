/*
 * 64 nodes of five speeds, placed by what they report, and a crowd of clients whose answers differ in length, some about
 * pictures that others ask about as well. All requests are there from the beginning.
 *
 * Throughput: the busiest stage sets the pace; its share of busy time is what there is against a stage that never idles
 * at the same batches and the same mix of work. Bubbles: the idle share of every stage, by speed. Both over the time in
 * which the middle half of all tokens comes, when the pipeline is full. Fairness: what clients have been given (KV
 * blocks, which is what they share) when the first of them has got everything, as Jain's index: 1 all alike, 1/n one has
 * all; and how long requests wait for their first token.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/sim/crowd.h"

#define N_NODES    64
#define N_SPEEDS   5
#define N_CLIENTS  40
#define N_PICTURES CROWD_PICTURES
#define LEAST      0.8 /* of its bound: prefills, decoding and pictures of all lengths get in each other's way */

/* Devices of these times as long as the fastest, whose rates are those. */
static const double slower[N_SPEEDS] = {1, 1.15, 1.3, 1.45, 1.6};
#define BANDWIDTH   50e6   /* bytes/s: a decoder layer takes a token 8 ms */
#define MATMUL_RATE 0.45e9 /* flop/s */

static struct sim_profile profile_of(const struct fleet *f, uint32_t node)
{
    const double s = slower[node % N_SPEEDS];
    struct sim_profile p = sim_profile_default;
    struct esp_err err;

    if (sim_profile_device(&p, BANDWIDTH / s, MATMUL_RATE / s, esp_checkpoint_config(f->ck), &err))
        fail_msg("%s", err.text);
    snprintf(p.name, sizeof p.name, "Sim x%.2f", s);
    p.prefill_row_s = p.step_layer_s / 50; /* as where products are what a device is good at */
    p.jitter = 0.02;
    p.seed = node + 1;
    return p;
}

struct window {
    double begun, ended;
    uint64_t tokens;
    double busy[N_NODES]; /* seconds in it */
    double coordinator;   /* of a processor, in it */
    double given[N_CLIENTS];
    double late; /* that sleepers were woken, seconds */
    bool starved;
};

static double busy(const struct fleet *f, uint32_t i)
{
    return 1e-9 * (double)atomic_load(&f->w[i].device.count.taken_ns);
}

static double jain(const double *of, uint32_t n)
{
    double sum = 0, squares = 0;

    for (uint32_t i = 0; i < n; i++) {
        sum += of[i];
        squares += of[i] * of[i];
    }
    return sum * sum / (n * squares);
}

/* True while no client has all of its answers. */
static bool all_wait(const struct crowd *c)
{
    uint32_t waiting[N_CLIENTS] = {0};

    for (uint32_t i = 0; i < c->n_asks; i++)
        waiting[c->ask[i]->client] += !c->ask[i]->ended;
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        if (waiting[i] == 0)
            return false;
    return true;
}

/* KV blocks that each client's requests were let in with so far. */
static void given(double *out, const struct crowd *c)
{
    const uint32_t n_token = esp_checkpoint_config(c->f->ck)->vision.n_token;

    for (uint32_t i = 0; i < c->n_asks; i++) {
        const struct crowd_ask *a = c->ask[i];

        if (a->prompt)
            out[a->client] += (a->n_prompt + (a->picture >= 0 ? n_token : 0) + a->max_tokens - 1 + 31) / 32;
    }
}

/* Pumps until so many tokens have come. */
static void until(struct fleet *f, struct crowd *c, struct window *w, uint64_t n_tokens, bool *fair)
{
    for (const double end = fleet_now() + 10 * FLEET_DEADLINE_S; c->n_tokens < n_tokens;) {
        crowd_pump(c, 100);
        if (*fair && !all_wait(c)) {
            *fair = false;
            given(w->given, c);
        }
        if (fleet_now() > end)
            fail_msg("%llu tokens of %llu", (unsigned long long)c->n_tokens, (unsigned long long)n_tokens);
    }
}

static void run(struct fleet *f, struct crowd *c, struct window *w, uint32_t n_sessions)
{
    struct fleet_time time;
    uint64_t n_all = 0;
    bool fair = true;

    for (uint32_t i = 0; i < n_sessions; i++) { /* some clients' answers are all short */
        const uint32_t n = i % N_CLIENTS % 4 == 0 ? 3 : 4 + i * 7 % 9;

        crowd_ask(c, i % N_CLIENTS, i % 10 < 3 ? (int)(i / 3 % N_PICTURES) : -1, n);
        n_all += n;
    }
    until(f, c, w, n_all / 4, &fair);
    w->begun = fleet_now();
    fleet_time(f, &time);
    w->coordinator = fleet_cpu(f);
    w->tokens = c->n_tokens;
    for (uint32_t i = 0; i < f->n; i++)
        w->busy[i] = busy(f, i);
    until(f, c, w, n_all * 3 / 4, &fair);
    w->ended = fleet_now();
    w->starved = fleet_starved(f, &time, &w->late);
    w->coordinator = fleet_cpu(f) - w->coordinator;
    w->tokens = c->n_tokens - w->tokens;
    for (uint32_t i = 0; i < f->n; i++)
        w->busy[i] = busy(f, i) - w->busy[i];
    until(f, c, w, n_all, &fair);
    crowd_finish(c);
}

static double report_bubbles(const struct fleet *f, const struct window *w)
{
    const double seconds = w->ended - w->begun;
    double busiest = 0;

    printf("speed     nodes  used  idle: least   mean   most\n");
    for (uint32_t s = 0; s < N_SPEEDS; s++) {
        double least = 1, most = 0, sum = 0;
        uint32_t n = 0, n_used = 0;

        for (uint32_t i = s; i < f->n; i += N_SPEEDS, n++) {
            const double idle = 1 - w->busy[i] / seconds;

            if (atomic_load(&f->w[i].device.count.n_steps) + atomic_load(&f->w[i].device.count.n_pictures) ==
                0)
                continue;
            n_used++;
            sum += idle;
            least = idle < least ? idle : least;
            most = idle > most ? idle : most;
            busiest = 1 - idle > busiest ? 1 - idle : busiest;
        }
        printf("x%-6.2f   %5u  %4u        %.3f  %.3f  %.3f\n", slower[s], n, n_used, n_used ? least : 0,
               n_used ? sum / n_used : 0, most);
    }
    return busiest;
}

static void test_crowd(void **state)
{
    const uint32_t n_sessions = fleet_soak() ? 1000 : 300;
    const char *args[] = {"--workers", "64",           "--context", "256", "--kv-tokens",
                          "65536",     "--max-images", "16",        NULL};
    double *first, busiest, fairness;
    unsigned long long n_encodes = 0;
    struct window w = {0};
    struct crowd c;
    struct fleet f;

    fleet_start(&f, false, args);
    for (uint32_t i = 0; i < N_NODES; i++) {
        const struct sim_profile p = profile_of(&f, i);

        fleet_add(&f, FLEET_THREAD, &p);
    }
    fleet_until_ready(&f, N_NODES);
    crowd_open(&c, &f, N_CLIENTS);
    run(&f, &c, &w, n_sessions);
    crowd_check(&c);

    printf("\n%d nodes of %d speeds, %u sessions of %d clients\n", N_NODES, N_SPEEDS, n_sessions, N_CLIENTS);
    busiest = report_bubbles(&f, &w);
    printf(
        "tokens a second: %.1f, the busiest stage's bound %.1f; the coordinator took %.2f of a processor\n",
        (double)w.tokens / (w.ended - w.begun), (double)w.tokens / (w.ended - w.begun) / busiest,
        w.coordinator / (w.ended - w.begun));
    first = calloc(n_sessions, sizeof *first);
    assert_non_null(first);
    for (uint32_t i = 0; i < n_sessions; i++)
        first[i] = c.ask[i]->at[0] - c.ask[i]->sent;
    fairness = jain(w.given, N_CLIENTS);
    printf("fairness over clients: %.3f; seconds to the first token: median %.2f, ", fairness,
           crowd_quantile(first, n_sessions, 0.5));
    printf("95 %% below %.2f, longest %.2f\n", crowd_quantile(first, n_sessions, 0.95),
           first[n_sessions - 1]);
    for (uint32_t i = 0; i < f.n; i++) {
        const unsigned long long n = atomic_load(&f.w[i].device.count.n_pictures);

        n_encodes = n > n_encodes ? n : n_encodes;
    }
    printf("pictures: %d, asked about %u times, encoded %llu times\n", N_PICTURES, n_sessions * 3 / 10,
           n_encodes);
    assert_int_equal(n_encodes, N_PICTURES);
    assert_true(fairness >= 0.9);
    free(first);
    crowd_close(&c);
    fleet_stop(&f);
    if (busiest < LEAST && w.starved)
        fleet_not_judged(w.late);
    assert_true(busiest >= LEAST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_crowd)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
