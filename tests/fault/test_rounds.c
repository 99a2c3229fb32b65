/*
 * Rounds of trouble: real processes; workers that are killed, frozen and cut off, while they prefill, decode, and while
 * layers move; with two, three and five workers, and such as come (back) in the midst of it. Every answer is what it is
 * when nothing happens, nobody else ends, and what the workers held is given back.
 *
 * A few rounds of each kind; all 200 with ESPALIER_SOAK=1 (make soak).
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"
#include "tests/fault/machines.h"
#include "tests/fault/real_cluster.h"
#include "tests/support/rand.h"

#define MAX_TOKENS 64
#define SKIPPED    77

enum trouble { KILL, STOP, CUT, N_TROUBLE };
enum phase { PREFILL, DECODE, DRAIN, N_PHASE };

static const char *const trouble_names[] = {"kill -9", "SIGSTOP", "cable cut"};
static const char *const phase_names[] = {"prefill", "decode", "drain"};

static char want[N][TEXT];
static struct esp_rand rnd;
static bool have_machines;

/* Seconds of all rounds, by trouble. */
static struct {
    double detected, recovered, worst_detected, worst_recovered;
    int n_detected, n_recovered, n_rounds;
} times[N_TROUBLE];

static uint32_t upto(uint32_t n)
{
    return esp_rand_below(&rnd, n);
}

/* A worker with layers. */
static int some_stage(struct real_cluster *c)
{
    const struct esp_msg_status *s = real_status(c);
    int stage[REAL_WORKERS], n = 0;

    for (int i = 0; i < c->n_workers; i++) {
        const struct esp_worker_status *w = real_worker_status(s, i);

        if (w && w->stage.worker[0] && c->worker[i] > 0)
            stage[n++] = i;
    }
    assert_true(n > 0);
    return stage[upto((uint32_t)n)];
}

static void make_trouble(struct real_cluster *c, enum trouble trouble, int i)
{
    switch (trouble) {
    case KILL:
        real_kill(c, i);
        break;
    case STOP:
        assert_int_equal(kill(c->worker[i], SIGSTOP), 0);
        break;
    default:
        assert_true(machines_cut(i + 1, true));
        break;
    }
}

static void end_trouble(struct real_cluster *c, enum trouble trouble, int i)
{
    if (trouble == KILL && c->worker[i] == 0 && !c->leaves[i])
        real_worker(c, i);
    else if (trouble == STOP)
        kill(c->worker[i], SIGCONT);
    else if (trouble == CUT)
        assert_true(machines_cut(i + 1, false));
}

/* A worker that was drained is let go, and comes back. */
static void restart_drained(struct real_cluster *c, int i)
{
    real_check_alive(c);
    if (i >= 0 && c->leaves[i] && c->worker[i] == 0)
        real_worker(c, i);
}

static void note_times(enum trouble trouble, double detected, double recovered)
{
    times[trouble].n_rounds++;
    if (detected > 0) {
        times[trouble].n_detected++;
        times[trouble].detected += detected;
        times[trouble].worst_detected =
            detected > times[trouble].worst_detected ? detected : times[trouble].worst_detected;
    }
    if (recovered > 0) {
        times[trouble].n_recovered++;
        times[trouble].recovered += recovered;
        times[trouble].worst_recovered =
            recovered > times[trouble].worst_recovered ? recovered : times[trouble].worst_recovered;
    }
}

static void round_of(struct real_cluster *c, enum trouble trouble, enum phase phase)
{
    const struct esp_msg_status before = *real_status(c);
    const bool back_early = upto(2);
    double began, detected = 0, recovered = 0, due;
    int victim, drained = -1;
    char label[64];
    bool all = false;

    snprintf(label, sizeof label, "%s at %s, %d workers", trouble_names[trouble], phase_names[phase],
             c->n_workers);
    real_ask_all(c, MAX_TOKENS);
    if (phase == PREFILL) {
        while (real_status(c)->n_prefills == before.n_prefills)
            ;
    } else {
        const uint64_t from = before.n_tokens + 20 + upto(100);

        while (real_status(c)->n_tokens < from && !real_take(c, 1))
            ;
    }
    if (phase == DRAIN) {
        drained = some_stage(c);
        (void)real_drain(c, drained);
        due = esp_now_seconds() + 1e-4 * upto(300); /* somewhere between the asking and the end */
        while (esp_now_seconds() < due)
            all = real_take(c, 1);
        (void)all;
        restart_drained(c, drained);
    }
    victim = some_stage(c);
    began = esp_now_seconds();
    make_trouble(c, trouble, victim);
    while (!real_take(c, 2)) {
        const struct esp_msg_status *s = real_status(c);

        if (!detected && (s->n_losses > before.n_losses || !real_worker_status(s, victim))) {
            detected = esp_now_seconds();
            if (trouble == KILL && back_early)
                end_trouble(c, trouble, victim);
        }
        if (detected && !recovered && c->token_at > detected)
            recovered = c->token_at;
        if (drained >= 0)
            restart_drained(c, drained);
        real_check_alive(c);
        if (esp_now_seconds() - began > ESP_PATIENCE_MS / 1000.0)
            fail_msg("%s: no answers", label);
    }
    compare_all(c->got, want, label);
    note_times(trouble, detected ? detected - began : 0, recovered ? recovered - began : 0);
    end_trouble(c, trouble, victim);
    due = esp_now_seconds() + ESP_PATIENCE_MS / 1000.0;
    while (real_status(c)->n_workers < (uint32_t)c->n_workers) {
        restart_drained(c, drained);
        assert_true(esp_now_seconds() < due);
        esp_link_wait(NULL, 0, 20, NULL);
    }
    restart_drained(c, drained);
    real_settle(c, (uint32_t)c->n_workers);
    real_check_alive(c);
}

/* How many rounds of a kind. */
static int n_rounds(int short_run)
{
    return getenv("ESPALIER_SOAK") ? 8 : short_run;
}

static void rounds(int n_workers, bool far, const enum trouble *trouble, int n_trouble, const int *n_each)
{
    struct real_cluster c;
    long rss = 0;
    int n = 0;

    if (n_rounds(n_each[PREFILL]) + n_rounds(n_each[DECODE]) + n_rounds(n_each[DRAIN]) == 0)
        return; /* only at full length */
    real_start(&c, n_workers, far);
    real_ask_all(&c, MAX_TOKENS);
    real_take_all(&c);
    if (!want[0][0])
        memcpy(want, c.got, sizeof want);
    compare_all(c.got, want, "undisturbed");
    real_settle(&c, (uint32_t)n_workers);
    for (int t = 0; t < n_trouble; t++)
        for (enum phase phase = PREFILL; phase < N_PHASE; phase++)
            for (int i = 0; i < n_rounds(n_each[phase]); i++) {
                round_of(&c, trouble[t], phase);
                if (++n == 4)
                    rss = real_rss_kib(c.coordinator);
            }
    if (rss > 0) {
        const long now = real_rss_kib(c.coordinator);

        print_message(
            "%d rounds with %d workers: the coordinator had %ld MiB after 4 of them, %ld MiB in the end\n", n,
            n_workers, rss >> 10, now >> 10);
        assert_true(now < 2 * rss + (32 << 10));
    }
    real_stop(&c);
}

static void test_two(void **state)
{
    static const enum trouble t[] = {KILL, STOP};
    static const int n[] = {0, 1, 0};

    rounds(2, false, t, 2, n);
}

static void test_three(void **state)
{
    static const enum trouble t[] = {KILL, STOP};
    static const int n[] = {1, 1, 1};

    rounds(3, false, t, 2, n);
}

static void test_five(void **state)
{
    static const enum trouble t[] = {KILL, STOP};
    static const int n[] = {0, 0, 1};

    rounds(5, false, t, 2, n);
}

static void cut_rounds(int n_workers, const int *n)
{
    static const enum trouble t[] = {CUT};

    if (!have_machines) {
        print_message("skipped: network namespaces need root and iproute2\n");
        skip();
    }
    rounds(n_workers, true, t, 1, n);
}

static void test_cut_two(void **state)
{
    cut_rounds(2, (const int[]){0, 0, 0});
}

static void test_cut_three(void **state)
{
    cut_rounds(3, (const int[]){1, 1, 1});
}

static void test_cut_five(void **state)
{
    cut_rounds(5, (const int[]){0, 0, 0});
}

/* Without any trouble: every stage in turn is drained under load. */
static void test_drain(void **state)
{
    const int n = getenv("ESPALIER_SOAK") ? 20 : 3;
    struct real_cluster c;
    uint64_t kv_bytes = 0;

    real_start(&c, 3, false);
    for (int i = 0; i < n; i++) {
        const struct esp_msg_status before = *real_status(&c);
        struct esp_msg_drained d;
        int out;

        real_ask_all(&c, MAX_TOKENS);
        while (real_status(&c)->n_tokens < before.n_tokens + 30)
            ;
        out = some_stage(&c);
        d = real_drained(&c, real_drain(&c, out));
        real_take_all(&c);
        compare_all(c.got, want, "drained");
        assert_int_equal(real_status(&c)->n_prefills, before.n_prefills + N); /* none was repeated */
        assert_int_equal(real_status(&c)->n_rebuilds, before.n_rebuilds);
        assert_true(d.n_layers > 0);
        kv_bytes += d.kv_bytes;
        print_message("drained w%d: %u layers, %llu bytes of KV, %u pictures, %.3f s, paused %.3f s\n", out,
                      d.n_layers, (unsigned long long)d.kv_bytes, d.n_images, d.seconds, d.pause);
        while (c.worker[out] > 0) {
            real_check_alive(&c);
            esp_link_wait(NULL, 0, 20, NULL);
        }
        real_worker(&c, out);
        real_settle(&c, 3);
    }
    assert_true(kv_bytes > 0);
    real_stop(&c);
}

static int print_times(void **state)
{
    for (int t = 0; t < N_TROUBLE; t++)
        if (times[t].n_detected > 0)
            print_message(
                "%s, %d rounds: noticed after %.2f s (at worst %.2f s), the next token after %.2f s (at "
                "worst %.2f s)\n",
                trouble_names[t], times[t].n_rounds, times[t].detected / times[t].n_detected,
                times[t].worst_detected, times[t].n_recovered ? times[t].recovered / times[t].n_recovered : 0,
                times[t].worst_recovered);
    if (have_machines)
        machines_remove();
    return 0;
}

int main(void)
{
    const char *seed = getenv("ESPALIER_SEED");
    const uint64_t number = seed ? strtoull(seed, NULL, 10) : 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three),    cmocka_unit_test(test_drain),     cmocka_unit_test(test_two),
        cmocka_unit_test(test_five),     cmocka_unit_test(test_cut_three), cmocka_unit_test(test_cut_two),
        cmocka_unit_test(test_cut_five),
    };

    print_message("ESPALIER_SEED=%llu\n", (unsigned long long)number);
    esp_rand_init(&rnd, number);
    have_machines = machines_make(REAL_WORKERS + 1) && machines_enter(0);
    return cmocka_run_group_tests(tests, NULL, print_times);
}
