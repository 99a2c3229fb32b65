/* The command line when its coordinator falls silent, forgets or comes back: it reminds, goes on or asks anew. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/client_rig.h"

#define SCENE_A "tests/golden/data/tiny/images/scene_a.png"

static const char *const parts[] = {"a", " b", "", " c", " d"};
#define N_PARTS 5

static void tell_part(struct fake *f, uint32_t i)
{
    f->n_sent = i;
    fake_tell_token(f, parts[i]);
}

static void tell_end(struct fake *f)
{
    static const uint32_t ids[N_PARTS] = {100, 101, 102, 103, 104};
    static const double logprobs[N_PARTS] = {-0.1, -1.1, -2.1, -3.1, -4.1};
    static const struct esp_hypothesis best = {.text = "a b c d",
                                               .finish = "length",
                                               .n_ids = N_PARTS,
                                               .ids = ids,
                                               .n_logprobs = N_PARTS,
                                               .logprobs = logprobs};

    fake_tell_done(f, &best, 1);
}

/* A Resume for our request: true, with the session under the number that it gives. */
static bool is_resume(struct fake *f, const struct esp_msg *msg)
{
    if (msg->kind != ESP_MSG_RESUME)
        return false;
    assert_memory_equal(msg->resume.ticket, f->ticket, sizeof f->ticket);
    assert_true(msg->resume.id == f->session);
    f->n_resumes++;
    return true;
}

/* Sends two tokens and falls silent. Reminded, it goes on from one token before what the client has. */
static void go_on(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    static const uint8_t none[ESP_TICKET_BYTES];
    struct fake *f = s->self;

    if (fake_is_request(f, from, msg)) {
        assert_memory_not_equal(f->ticket, none, sizeof none);
        fake_tell_accepted(f);
        tell_part(f, 0);
        tell_part(f, 1);
    } else if (is_resume(f, msg) && f->n_resumes == 2) { /* the first was lost */
        assert_int_equal(msg->resume.have, 2);
        fake_tell_accepted(f);
        for (uint32_t i = 1; i < N_PARTS; i++)
            tell_part(f, i);
        tell_end(f);
    }
}

static void test_resumed(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = go_on;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "caption en", NULL});
    child_expect(&c, "resumed", 0, "", "a b c d\n");
    assert_string_equal(OUT(&c), "a b c d\n");
    assert_int_equal(f->n_requests, 1);
    assert_int_equal(f->n_resumes, 2);
    child_finish(&c);
}

/* While it is told that it must wait, it waits, however long: each reminder is answered. */
static void keep_waiting(struct script *s, struct child *c, const struct esp_peer *from,
                         const struct esp_msg *msg)
{
    static struct esp_msg m = {.kind = ESP_MSG_WAITING};
    struct fake *f = s->self;

    if (fake_is_request(f, from, msg))
        return;
    if (!is_resume(f, msg))
        return;
    assert_int_equal(msg->resume.have, 0);
    m.waiting = (struct esp_msg_waiting){f->session, "queued", 1, 2};
    fake_tell(f, &m);
    if (f->n_resumes == 4) {
        fake_tell_accepted(f);
        for (uint32_t i = 0; i < N_PARTS; i++)
            tell_part(f, i);
        tell_end(f);
    }
}

static void test_kept_waiting(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = keep_waiting;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--patience", "2", "caption en", NULL});
    child_expect(&c, "kept waiting", 0, "", "a b c d\n");
    assert_int_equal(f->n_resumes, 4);
    child_finish(&c);
}

/* A coordinator without a memory: asked anew, with the same ticket and pictures, under another number. What the client
 * has comes again and is not said twice; late answers to the old number are nobody's. */
static bool forgetful; /* for ever */

static void forget(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;
    const uint64_t old = f->session;
    uint8_t ticket[ESP_TICKET_BYTES];

    memcpy(ticket, f->ticket, sizeof ticket);
    if (msg->kind == ESP_MSG_REQUEST)
        f->session = 0;
    if (fake_is_request(f, from, msg)) {
        assert_int_equal(msg->n_blobs, 1);
        if (f->n_requests > 1) {
            assert_memory_equal(f->ticket, ticket, sizeof ticket);
            assert_int_not_equal(f->session, old);
        }
        fake_tell_accepted(f);
        for (uint32_t i = 0; i < (f->n_requests == 1 ? 3 : N_PARTS) && !forgetful; i++)
            tell_part(f, i);
        if (f->n_requests > 1 && !forgetful)
            tell_end(f);
    } else if (is_resume(f, msg)) {
        fake_tell_error(f, ESP_E_CLOSED, "no such request");
        fake_tell_error(f, ESP_E_CLOSED, "no such request"); /* as if it had been reminded twice */
    }
}

static void test_asked_anew(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = forget;
    forgetful = false;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--image", SCENE_A, "caption en", NULL});
    child_expect(&c, "asked anew", 0, "", "a b c d\n");
    assert_string_equal(OUT(&c), "a b c d\n");
    assert_int_equal(f->n_requests, 2);
    assert_int_equal(f->n_resumes, 1);
    child_finish(&c);
}

static void test_forgotten_for_ever(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = forget;
    forgetful = true;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--image", SCENE_A, "caption en", NULL});
    child_expect(&c, "forgotten for ever", 1, "has lost this request 8 times", "");
    assert_int_equal(f->n_requests, 9);
    child_finish(&c);
}

/* What was traced is gone with the coordinator that traced it. */
static void test_trace_is_not_asked_anew(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = forget;
    forgetful = true;
    fake_ask(&c, f, ESPALIER,
             (const char *[]){"run", "--image", SCENE_A, "--trace", "/dev/null", "caption en", NULL});
    child_expect(&c, "a trace", 1, "no longer knows this request", "");
    assert_int_equal(f->n_requests, 1);
    child_finish(&c);
}

/* What was lost with a connection is asked for: the first time the beginning, then tokens. */
static void lose_some(struct script *s, struct child *c, const struct esp_peer *from,
                      const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (fake_is_request(f, from, msg)) {
        tell_part(f, 0); /* and Accepted was lost */
    } else if (is_resume(f, msg) && f->n_resumes == 1) {
        assert_int_equal(msg->resume.have, 0);
        fake_tell_accepted(f);
        tell_part(f, 0);
        tell_part(f, 3);
        tell_part(f, 4);
    } else if (f->n_resumes == 2) {
        assert_int_equal(msg->resume.have, 1);
        for (uint32_t i = 1; i < N_PARTS; i++)
            tell_part(f, i);
        tell_end(f);
    }
}

static void test_lost_tokens(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = lose_some;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "caption en", NULL});
    child_expect(&c, "lost tokens", 0, "", "a b c d\n");
    assert_string_equal(OUT(&c), "a b c d\n");
    assert_int_equal(f->n_resumes, 2);
    child_finish(&c);
}

/* Ends a request of which Accepted was lost, and knows of it no more. */
static void end_early(struct script *s, struct child *c, const struct esp_peer *from,
                      const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (msg->kind == ESP_MSG_REQUEST)
        f->session = 0;
    if (fake_is_request(f, from, msg)) {
        if (f->n_requests > 1)
            fake_tell_accepted(f);
        tell_end(f);
    } else if (is_resume(f, msg)) {
        fake_tell_error(f, ESP_E_CLOSED, "no such request");
    }
}

static void test_lost_acceptance(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = end_early;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--beams", "2", "caption en", NULL});
    child_expect(&c, "lost acceptance", 0, "", "a b c d\n");
    assert_int_equal(f->n_requests, 2);
    child_finish(&c);
}

/* Accepts, and says no more. */
static void fall_silent(struct script *s, struct child *c, const struct esp_peer *from,
                        const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (fake_is_request(f, from, msg))
        fake_tell_accepted(f);
    else
        is_resume(f, msg);
}

static void test_silence(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = fall_silent;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--patience", "3", "caption en", NULL});
    child_expect(&c, "silence", 1, "has said nothing for ", "");
    assert_in_range(f->n_resumes, 1, 3);
    assert_int_equal(f->n_cancel, 1);
    child_finish(&c);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, fake_setup, fake_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_resumed),
        TEST(test_kept_waiting),
        TEST(test_asked_anew),
        TEST(test_forgotten_for_ever),
        TEST(test_trace_is_not_asked_anew),
        TEST(test_lost_tokens),
        TEST(test_lost_acceptance),
        TEST(test_silence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
