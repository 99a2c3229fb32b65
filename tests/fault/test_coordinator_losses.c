/* A worker is lost at every step of every kind of request: whoever asked notices nothing but the time it takes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/fault/all_kinds.h"

static bool stuck_or_done(struct rig *rig, void *from)
{
    uint32_t n = 0, n_held = 0;

    for (uint32_t k = *(const uint32_t *)from; k < rig->c[0].n_inbox; k++)
        n += rig->c[0].inbox[k]->kind == ESP_MSG_DONE;
    for (int i = 0; i < RIG_WORKERS; i++)
        n_held += rig->w[i].n_held;
    return n_held > 0 || n == N;
}

/* After its k-th piece of work, for every k that there is: w0 is gone with what it was at, w1 takes over or not. */
static void test_loss_at_every_step(void **state)
{
    static char want[N][TEXT], got[N][TEXT];
    struct rig *rig = *state;
    uint64_t id = 1;
    uint32_t n_rounds = 0;

    rig_start(rig, "--heartbeat-ms", "50", "--context", "300", "--kv-tokens", "3000", NULL);
    rig_join(rig, 1);
    ask_all(rig, id);
    take_all(rig, id, want);
    rig_until_free(rig);
    for (uint32_t k = 1;; k++) {
        uint32_t from;
        char label[32];

        rig_hang_up(rig, 0); /* a new inbox */
        rig_dial(rig, 0);
        from = rig->c[0].n_inbox;
        id += N;
        rig->w[0].n_does = k;
        ask_all(rig, id);
        rig_until(rig, stuck_or_done, &from, "the work of this round");
        rig->w[0].n_does = 0;
        if (rig->w[0].n_held == 0)
            break;
        n_rounds++;
        rig_vanish(rig, 0);
        rig->w[0].hold_work = false;
        rig->w[0].n_does = k % 3 == 0 ? 1 + k / 3 % 5 : 0; /* and once more while it comes back */
        rig_hello(rig, 0);
        if (rig->w[0].n_does) {
            rig_until(rig, stuck_or_done, &from, "the work of the second loss");
            rig->w[0].n_does = 0;
            if (rig->w[0].n_held > 0) {
                rig_vanish(rig, 0);
                rig->w[0].hold_work = false;
                rig_hello(rig, 0);
            }
        }
        take_all(rig, id, got);
        snprintf(label, sizeof label, "lost at %u", k);
        compare_all(got, want, label);
        rig_until_free(rig);
    }
    take_all(rig, id, got);
    print_message("%u rounds, steps of up to %u sequences\n", n_rounds, rig->max_seqs);
    assert_true(n_rounds >= 10);
    assert_true(rig->max_seqs > 6);
}

/* The worker of the newest placement that has the decoder's first or last layers. */
static int stage_of(struct rig *rig, bool first)
{
    int found = -1;

    for (int i = 0; i < RIG_WORKERS; i++) {
        const struct esp_msg_place *p = &rig->w[i].place;

        if (rig->w[i].link && (first ? p->embed : p->head) &&
            (found < 0 || p->epoch > rig->w[found].place.epoch))
            found = i;
    }
    assert_true(found >= 0);
    return found;
}

/* Two stages and a spare: whichever stage is lost, the spare takes its part, and the lost one comes back as the next
 * spare. */
static void test_loss_of_either_stage(void **state)
{
    static char want[N][TEXT], got[N][TEXT];
    struct rig *rig = *state;
    uint64_t id = 1;
    uint32_t n_rounds = 0;

    rig_start(rig, "--heartbeat-ms", "50", "--context", "300", "--kv-tokens", "3000", "--workers", "3",
              "--split", "2/2,0/1", NULL);
    rig_join(rig, 3);
    ask_all(rig, id);
    take_all(rig, id, want);
    rig_until_free(rig);
    for (uint32_t k = 1;; k += 2) {
        const int first = stage_of(rig, true), lost = stage_of(rig, k % 4 == 1);
        uint32_t from;

        rig_hang_up(rig, 0);
        rig_dial(rig, 0);
        from = rig->c[0].n_inbox;
        id += N;
        rig->w[first].n_does = k;
        ask_all(rig, id);
        rig_until(rig, stuck_or_done, &from, "the work of this round");
        rig->w[first].n_does = 0;
        if (rig->w[first].n_held == 0)
            break;
        n_rounds++;
        rig->w[first].till_place = true; /* more may come before the loss is noticed */
        rig_vanish(rig, lost);
        if (lost == first)
            rig->w[first].hold_work = rig->w[first].till_place = false;
        take_all(rig, id, got);
        for (uint32_t i = 0; i < N; i++)
            if (strcmp(got[i], want[i]) != 0)
                fail_msg("lost at %u: request %u: %s\nundisturbed: %s", k, i, got[i], want[i]);
        rig_until_free(rig);
        rig_hello(rig, lost);
        while (!rig->w[lost].place.epoch) /* it is a spare again */
            rig_pump(rig, 20);
    }
    take_all(rig, id, got);
    print_message("%u rounds\n", n_rounds);
    assert_true(n_rounds >= 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_loss_at_every_step, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_loss_of_either_stage, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
