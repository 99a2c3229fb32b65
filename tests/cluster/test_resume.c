/* Clients that come back to a coordinator: whose knows the ticket gets the rest, and nobody else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/coordinator_rig.h"

#define N_TOKENS 12

static const uint8_t ticket[ESP_TICKET_BYTES] = {1, 2, 3}, unknown[ESP_TICKET_BYTES] = {9};

static struct esp_msg_request request(uint64_t id)
{
    struct esp_msg_request r = {
        .id = id, .prompt = "caption en", .max_tokens = N_TOKENS, .sampling = {.ignore_eos = true}};

    memcpy(r.ticket, ticket, sizeof ticket);
    return r;
}

/* ---- what a client puts together ---- */

struct answer {
    uint32_t ids[N_TOKENS], n;
    char text[4096]; /* of the tokens */
    char done[4096];
};

/* Takes tokens from number `from` on until there are n. */
static void take_tokens(struct rig *rig, int client, struct answer *a, uint64_t session, uint32_t n)
{
    while (a->n < n) {
        const struct esp_msg *m = rig_take(rig, client, ESP_MSG_TOKEN);

        assert_int_equal(m->token.session, session);
        assert_int_equal(m->token.index, a->n);
        a->ids[a->n++] = m->token.id;
        strcat(a->text, m->token.text);
    }
}

static void take_done(struct rig *rig, int client, struct answer *a, uint64_t session)
{
    const struct esp_msg *m = rig_take(rig, client, ESP_MSG_DONE);

    assert_int_equal(m->done.session, session);
    if (a->n > 0) {
        assert_int_equal(m->done.best.n_ids, a->n);
        assert_memory_equal(m->done.best.ids, a->ids, a->n * sizeof *a->ids);
    }
    snprintf(a->done, sizeof a->done, "%s", m->done.best.text);
}

static bool holds_work(struct rig *rig, void *arg)
{
    return rig->w[0].n_held > 0;
}

/* One step is computed. */
static void one_step(struct rig *rig)
{
    rig_until(rig, holds_work, NULL, "a step");
    rig_resume(rig, 0);
    rig->w[0].hold_work = true;
}

/* The undisturbed answer. */
static void expect(struct rig *rig, struct answer *a)
{
    struct esp_msg_request r = request(1);

    memset(r.ticket, 0, sizeof r.ticket);
    rig_request(rig, 3, &r, NULL);
    memset(a, 0, sizeof *a);
    take_tokens(rig, 3, a, 1, N_TOKENS);
    take_done(rig, 3, a, 1);
}

static void same(const struct answer *a, const struct answer *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
    assert_string_equal(a->text, b->text);
    assert_string_equal(a->done, b->done);
}

/* ---- while the coordinator lives ---- */

/* Over another connection and under another number, in the middle of the answer. */
static void test_another_connection(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(4);
    struct answer want, got = {0};
    uint32_t n_first;

    rig_start(rig, NULL);
    rig_join(rig, 1);
    expect(rig, &want);
    rig->w[0].hold_work = true;
    rig_request(rig, 0, &r, NULL);
    for (int i = 0; i < 5; i++)
        one_step(rig);
    take_tokens(rig, 0, &got, 4, 5);
    rig_until(rig, holds_work, NULL, "the step after it");
    n_first = rig->c[0].n_inbox;
    /* The client says that it has but three: what it counts holds. */
    got.n = 3;
    got.text[0] = '\0';
    for (uint32_t i = 0; i < rig->c[0].n_inbox; i++)
        if (rig->c[0].inbox[i]->kind == ESP_MSG_TOKEN && rig->c[0].inbox[i]->token.index < 3)
            strcat(got.text, rig->c[0].inbox[i]->token.text);
    rig_come_back(rig, 1, ticket, 77, 3);
    take_tokens(rig, 1, &got, 77, 5);
    assert_int_equal(rig_count(rig, 1, ESP_MSG_ACCEPTED), 0);
    rig_resume(rig, 0);
    take_tokens(rig, 1, &got, 77, N_TOKENS);
    take_done(rig, 1, &got, 77);
    same(&got, &want);
    for (uint32_t i = n_first; i < rig->c[0].n_inbox; i++)
        assert_int_equal(rig->c[0].inbox[i]->kind, ESP_MSG_WAITING); /* nobody hears it twice */
    rig_until_free(rig);
    rig_come_back(rig, 1, ticket, 78, N_TOKENS);
    rig_take_error(rig, 1, 78, ESP_E_CLOSED, "no such request");
}

/* From the beginning, and with more than has been chosen so far. */
static void test_have(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(4);
    struct answer want, got = {0};

    rig_start(rig, NULL);
    rig_join(rig, 1);
    expect(rig, &want);
    rig->w[0].hold_work = true;
    rig_request(rig, 0, &r, NULL);
    for (int i = 0; i < 3; i++)
        one_step(rig);
    take_tokens(rig, 0, &got, 4, 3);
    memset(&got, 0, sizeof got);
    rig_come_back(rig, 0, ticket, 4, 0);
    rig_take(rig, 0, ESP_MSG_ACCEPTED);
    take_tokens(rig, 0, &got, 4, 3);
    rig_come_back(rig, 0, ticket, 4, 6); /* as after a restart that has lost some */
    rig_resume(rig, 0);
    got = want;
    for (got.n = 6, got.text[0] = '\0'; got.n < N_TOKENS;) {
        const struct esp_msg *m = rig_take(rig, 0, ESP_MSG_TOKEN);

        assert_int_equal(m->token.index, got.n++);
        strcat(got.text, m->token.text);
    }
    take_done(rig, 0, &got, 4);
    assert_true(strlen(got.text) < strlen(want.text));
    assert_string_equal(got.text, want.text + strlen(want.text) - strlen(got.text));
    rig_until_free(rig);
}

/* While nothing new happens, each reminder is answered at once. */
static void test_reminders(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(4);

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    for (int i = 0; i < 2; i++) { /* the picture, the prompt */
        rig_until(rig, holds_work, NULL, "work");
        for (int k = 0; k < 3; k++) {
            const uint32_t n = rig_count(rig, 0, ESP_MSG_WAITING);

            rig_come_back(rig, 0, ticket, 4, 0);
            while (rig_count(rig, 0, ESP_MSG_WAITING) == n)
                rig_take(rig, 0, ESP_MSG_WAITING);
        }
        one_step(rig);
    }
    rig->w[0].hold_work = false;
    rig_resume(rig, 0);
    rig_take(rig, 0, ESP_MSG_DONE);
    rig_until_free(rig);
}

/* Beams have no tokens to count: the whole of it comes. */
static void test_beams(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(4);
    struct answer want = {0}, got = {0};

    r.sampling.beams = 3;
    rig_start(rig, NULL);
    rig_join(rig, 1);
    rig_request(rig, 3, &r, NULL);
    take_done(rig, 3, &want, 4);
    rig->w[0].hold_work = true;
    rig_request(rig, 0, &r, NULL); /* the ticket is free again */
    for (int i = 0; i < 3; i++)
        one_step(rig);
    rig_take(rig, 0, ESP_MSG_ACCEPTED);
    rig_come_back(rig, 1, ticket, 5, 0);
    rig_take(rig, 1, ESP_MSG_ACCEPTED);
    rig_resume(rig, 0);
    take_done(rig, 1, &got, 5);
    same(&got, &want);
    rig_until_free(rig);
}

static void test_refused(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(4), other = request(7);

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, NULL, "the step");
    rig_come_back(rig, 1, unknown, 5, 0);
    rig_take_error(rig, 1, 5, ESP_E_CLOSED, "no such request");
    rig_request(rig, 1, &other, NULL);
    rig_take_error(rig, 1, 7, ESP_E_ARG, "a request with this ticket");
    memcpy(other.ticket, unknown, sizeof unknown);
    rig_request(rig, 1, &other, NULL);
    rig_come_back(rig, 1, ticket, 7, 0); /* its number for another one */
    rig_take_error(rig, 1, 7, ESP_E_ARG, "another request with this number");
    rig_resume(rig, 0);
    rig_take(rig, 0, ESP_MSG_DONE);
    rig_take(rig, 1, ESP_MSG_DONE);
    rig_until_free(rig);
}

static void test_trace(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(4);

    r.trace = true;
    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, NULL, "the step");
    rig_come_back(rig, 1, ticket, 4, 0);
    rig_take_error(rig, 1, 4, ESP_E_CLOSED, "a trace cannot be resumed");
    rig_come_back(rig, 0, ticket, 4, 0); /* but its own client may ask whether it is still there */
    rig_take(rig, 0, ESP_MSG_WAITING);
    rig_resume(rig, 0);
    rig_take(rig, 0, ESP_MSG_DONE);
    rig_until_free(rig);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_another_connection),
        TEST(test_have),
        TEST(test_reminders),
        TEST(test_beams),
        TEST(test_refused),
        TEST(test_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
