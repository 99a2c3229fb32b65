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
    uint32_t n = 0;

    for (uint32_t k = *(const uint32_t *)from; k < rig->c[0].n_inbox; k++)
        n += rig->c[0].inbox[k]->kind == ESP_MSG_DONE;
    return rig->w[0].n_held > 0 || n == N;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_loss_at_every_step, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
