/* A worker is lost at every step of every kind of request: whoever asked notices nothing but the time it takes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/coordinator_rig.h"

enum { N = 6, TEXT = 32768, TOKENS = 30 };

static struct esp_msg_request request(uint32_t i, uint64_t id)
{
    static const struct esp_msg_sampling sampling[N] = {
        {.ignore_eos = true},
        {.temperature = 1, .seed = 4, .ignore_eos = true},
        {.temperature = 0.7, .top_k = 20, .seed = 11, .best_of = 4},
        {.beams = 3},
        {.beams = 3, .has_length_penalty = true, .length_penalty = 1},
        {.temperature = 0}};

    return (struct esp_msg_request){.id = id,
                                    .prompt = i % 2 ? "caption en" : "answer en what",
                                    .max_tokens = TOKENS,
                                    .suffix = i == 0 || i == 5 ? "a cow" : NULL,
                                    .score = i == 5,
                                    .sampling = sampling[i]};
}

static void ask_all(struct rig *rig, uint64_t first)
{
    for (uint32_t i = 0; i < N; i++) {
        struct esp_msg_request r = request(i, first + i);

        if (i < 3)
            rig_request(rig, 0, &r, i == 2 ? "scene_b.png" : "scene_a.png", NULL);
        else
            rig_request(rig, 0, &r, NULL);
    }
}

/* Everything in a Done that must not depend on what happened meanwhile. */
static void write_down(char *out, const struct esp_msg_done *d)
{
    size_t n = 0;

    for (uint32_t i = 0; i <= d->n_hypotheses; i++) {
        const struct esp_hypothesis *h = i ? &d->hypotheses[i - 1] : &d->best;

        for (uint32_t k = 0; k < h->n_ids; k++)
            n += (size_t)snprintf(out + n, TEXT - n, "%u ", h->ids[k]);
        for (uint32_t k = 0; k < h->n_logprobs; k++)
            n += (size_t)snprintf(out + n, TEXT - n, "%.17g ", h->logprobs[k]);
        n += (size_t)snprintf(out + n, TEXT - n, "%s %s %.17g|", h->text, h->finish, h->score);
        assert_true(n < TEXT / 2);
    }
}

/* Takes the answers of requests first .. first + N - 1, which come in any order. */
static void take_all(struct rig *rig, uint64_t first, char (*out)[TEXT])
{
    for (uint32_t i = 0; i < N; i++) {
        const struct esp_msg *m = rig_take(rig, 0, ESP_MSG_DONE);

        assert_true(m->done.session >= first && m->done.session < first + N);
        write_down(out[m->done.session - first], &m->done);
    }
    /* What streams has come once, in order, and is what is in the answer. */
    for (uint64_t id = first; id < first + N; id++) {
        uint32_t n = 0;

        for (uint32_t k = 0; k < rig->c[0].n_inbox; k++) {
            const struct esp_msg *m = rig->c[0].inbox[k];

            if (m->kind == ESP_MSG_TOKEN && m->token.session == id)
                assert_int_equal(m->token.index, n++);
            if (m->kind == ESP_MSG_DONE && m->done.session == id && id < first + 2)
                assert_int_equal(n, m->done.best.n_ids);
        }
        assert_int_equal(n, id < first + 2 ? TOKENS : 0);
    }
}

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
        for (uint32_t i = 0; i < N; i++)
            if (strcmp(got[i], want[i]) != 0)
                fail_msg("lost at %u: request %u: %s\nundisturbed: %s", k, i, got[i], want[i]);
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
