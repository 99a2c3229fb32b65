/* The coordinator is killed and started again: what its clients get is what they would have got. */
#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tests/cluster/coordinator_rig.h"

#define MAX_TOKENS 1200

/* ---- clients ---- */

/* A request, what its client has of the answer, and what it would have had undisturbed. */
struct asker {
    int client;
    struct esp_msg_request request;
    const char *picture;
    uint32_t n, ids[MAX_TOKENS];
    char text[1 << 16], done[1 << 16];
    uint32_t n_want, want_ids[MAX_TOKENS];
    char want_text[1 << 16], want_done[1 << 16];
    double sum, want_sum;
    bool finished;
    uint32_t n_anew; /* times that it had to ask anew */
};

static struct asker asker(int client, struct esp_msg_sampling sampling, uint32_t max_tokens,
                          const char *picture)
{
    struct asker a = {.client = client, .picture = picture};

    sampling.ignore_eos = true;
    a.request = (struct esp_msg_request){.id = 10 + (uint64_t)client,
                                         .prompt = "caption en",
                                         .max_tokens = max_tokens,
                                         .sampling = sampling,
                                         .ticket = {(uint8_t)(client + 1), [31] = 7}};
    return a;
}

/* Under a number and with a ticket that were never used before. */
static void ask(struct rig *rig, struct asker *a)
{
    a->request.id += 1000;
    a->request.ticket[1]++;
    a->n = 0;
    a->finished = false;
    a->text[0] = a->done[0] = '\0';
    rig_request(rig, a->client, &a->request, a->picture, NULL);
}

/* What was killed before it was in the journal is asked anew, as every client does. */
static void heed(struct rig *rig, struct asker *a, const struct esp_msg *m)
{
    if (m->kind == ESP_MSG_ERROR && m->error.session == a->request.id && !a->finished) {
        if (m->error.code != ESP_E_CLOSED)
            fail_msg("client %d: %s", a->client, m->error.text);
        a->request.id += 100;
        a->n_anew++;
        rig_request(rig, a->client, &a->request, a->picture, NULL);
    } else if (m->kind == ESP_MSG_TOKEN && m->token.session == a->request.id) {
        assert_true(m->token.index <= a->n);
        if (m->token.index < a->n)
            return; /* on its way before the Resume, or sent again after it */
        a->ids[a->n++] = m->token.id;
        strcat(a->text, m->token.text);
    } else if (m->kind == ESP_MSG_DONE && m->done.session == a->request.id) {
        snprintf(a->done, sizeof a->done, "%s", m->done.best.text);
        a->sum = m->done.best.sum;
        a->finished = true;
    }
}

static void hear(struct rig *rig, struct asker *a)
{
    struct rig_client *c = &rig->c[a->client];

    while (c->n_read < c->n_inbox)
        heed(rig, a, c->inbox[c->n_read++]);
}

/* Unless it has all of it already. */
static void come_back(struct rig *rig, struct asker *a)
{
    hear(rig, a);
    if (!a->finished)
        rig_come_back(rig, a->client, a->request.ticket, a->request.id, a->n);
}

struct goal {
    struct asker *asker;
    uint32_t n;
};

static bool has_tokens(struct rig *rig, void *arg)
{
    const struct goal *g = arg;

    hear(rig, g->asker);
    return g->asker->n >= g->n || g->asker->finished;
}

static void take_tokens(struct rig *rig, struct asker *a, uint32_t n)
{
    struct goal g = {a, n};

    rig_until(rig, has_tokens, &g, "tokens");
}

static void take_done(struct rig *rig, struct asker *a)
{
    take_tokens(rig, a, UINT32_MAX);
}

/* What it gets when nothing happens. */
static void undisturbed(struct rig *rig, struct asker *a)
{
    ask(rig, a);
    take_done(rig, a);
    a->n_want = a->n;
    memcpy(a->want_ids, a->ids, sizeof a->ids);
    strcpy(a->want_text, a->text);
    strcpy(a->want_done, a->done);
    a->want_sum = a->sum;
}

static void same(const struct asker *a)
{
    assert_int_equal(a->n, a->n_want);
    assert_memory_equal(a->ids, a->want_ids, a->n * sizeof *a->ids);
    assert_string_equal(a->text, a->want_text);
    assert_string_equal(a->done, a->want_done);
    assert_memory_equal(&a->sum, &a->want_sum, sizeof a->sum);
}

/* ---- the coordinator ---- */

static const char *journal(const struct rig *rig)
{
    static char path[128];

    snprintf(path, sizeof path, "%s/journal", rig->dir);
    return path;
}

static void start(struct rig *rig)
{
    rig_start(rig, "--journal", journal(rig), "--log-level", "debug", "--heartbeat-ms", "50", "--timeout-ms",
              "5000", NULL);
}

static void restart(struct rig *rig)
{
    rig_kill(rig);
    start(rig);
    rig_join(rig, 1);
}

/* By SQLite itself, while no coordinator has it open. */
static int64_t query(const struct rig *rig, const char *text)
{
    sqlite3 *db;
    sqlite3_stmt *s;
    int64_t n = -1;

    assert_int_equal(sqlite3_open(journal(rig), &db), SQLITE_OK);
    if (sqlite3_prepare_v2(db, text, -1, &s, NULL) != SQLITE_OK)
        fail_msg("%s: %s", text, sqlite3_errmsg(db));
    if (sqlite3_step(s) == SQLITE_ROW)
        n = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    sqlite3_close(db);
    return n;
}

static bool holds_work(struct rig *rig, void *arg)
{
    return rig->w[0].n_held > 0;
}

static void some_steps(struct rig *rig, int n)
{
    for (int i = 0; i < n; i++) {
        rig_until(rig, holds_work, NULL, "a step");
        rig_resume(rig, 0);
        rig->w[0].hold_work = true;
    }
    rig_until(rig, holds_work, NULL, "the step after them"); /* so their rows are in */
}

static bool logged(struct rig *rig, void *text)
{
    return rig_logged(rig, text);
}

static void until_logged(struct rig *rig, const char *text)
{
    rig_until(rig, logged, (void *)(uintptr_t)text, text);
}

/* Asks, and waits until it is in the journal. `n`: the how manieth session that is here, from 1. */
static void ask_and_write(struct rig *rig, struct asker *a, int n)
{
    char line[64];

    ask(rig, a);
    snprintf(line, sizeof line, "session=%d journalled", n);
    until_logged(rig, line);
}

/* ---- every kind of request ---- */

static struct asker all[4];

static void make_all(void)
{
    static const struct esp_msg_sampling greedy = {0}, sampled = {.temperature = 1.3, .top_k = 9, .seed = 5},
                                         beams = {.beams = 4},
                                         hf = {.beams = 3, .has_length_penalty = true, .length_penalty = 1};

    all[0] = asker(0, greedy, 40, "scene_a.png");
    all[1] = asker(1, sampled, 40, NULL);
    all[2] = asker(2, beams, 30, "scene_b.png");
    all[3] = asker(3, hf, 30, NULL);
}

static void test_all_kinds(void **state)
{
    struct rig *rig = *state;

    make_all();
    start(rig);
    rig_join(rig, 1);
    for (int i = 0; i < 4; i++)
        undisturbed(rig, &all[i]);
    rig_until_free(rig);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++)
            ask(rig, &all[i]);
        take_tokens(rig, &all[0], 3);
        take_tokens(rig, &all[1], 3);
        for (int i = 0; i < 1 + round;
             i++) { /* the second time it is killed while it brings everything back */
            restart(rig);
            for (int k = 0; k < 4; k++)
                come_back(rig, &all[k]);
            take_tokens(rig, &all[1], all[1].n + 2);
        }
        for (int i = 0; i < 4; i++) {
            take_done(rig, &all[i]);
            same(&all[i]);
        }
        rig_until_free(rig);
    }
    for (int i = 0; i < 4; i++)
        assert_in_range(all[i].n_anew, 0, 2); /* of six times */
}

/* Nothing of it is lost though nobody asks for it for a while, and the workers are back later than its client. */
static void test_client_first(void **state)
{
    struct rig *rig = *state;

    make_all();
    start(rig);
    rig_join(rig, 1);
    undisturbed(rig, &all[0]);
    undisturbed(rig, &all[2]);
    rig->w[0].hold_work = true;
    ask_and_write(rig, &all[0], 3);
    ask_and_write(rig, &all[2], 4);
    some_steps(rig, 9);
    take_tokens(rig, &all[0], 2);
    rig_kill(rig);
    rig->w[0].hold_work = false;
    rig_vanish(rig, 0);
    start(rig);
    come_back(rig, &all[0]);
    rig_take(rig, 0, ESP_MSG_WAITING);
    until_logged(rig, "restored");
    rig_join(rig, 1);
    take_done(rig, &all[0]);
    same(&all[0]);
    come_back(rig, &all[2]); /* it is done long since, or nearly */
    take_done(rig, &all[2]);
    same(&all[2]);
    rig_until_free(rig);
}

/* Nothing is left of sessions that are over, however they ended. */
static void test_forgotten(void **state)
{
    struct rig *rig = *state;
    static const char count[] = "SELECT (SELECT count(*) FROM session) + (SELECT count(*) FROM picture)"
                                " + (SELECT count(*) FROM progress)";
    struct stat info;

    make_all();
    start(rig);
    rig_join(rig, 1);
    undisturbed(rig, &all[0]);
    rig->w[0].hold_work = true;
    for (int i = 0; i < 3; i++)
        ask(rig, &all[i]);
    some_steps(rig, 6);
    rig_cancel(rig, 1, all[1].request.id);
    rig_hang_up(rig, 2); /* vanishes */
    rig->w[0].hold_work = false;
    rig_resume(rig, 0);
    take_done(rig, &all[0]);
    same(&all[0]);
    rig_until_free(rig);
    rig_stop(rig);
    assert_int_equal(stat(journal(rig), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(query(rig, count), 0);
    start(rig); /* and one that is told that the coordinator ends */
    rig_hello(rig, 0);
    rig->w[0].hold_work = true;
    ask(rig, &all[0]);
    some_steps(rig, 6);
    rig_stop(rig);
    assert_int_equal(query(rig, count), 0);
}

/* Whose client does not come back in time is dropped. */
static void test_not_resumed(void **state)
{
    struct rig *rig = *state;

    make_all();
    start(rig);
    rig_join(rig, 1);
    rig->w[0].hold_work = true;
    ask_and_write(rig, &all[0], 1);
    some_steps(rig, 9);
    rig_kill(rig);
    rig->w[0].hold_work = false;
    rig_start(rig, "--journal", journal(rig), "--resume-within", "1", NULL);
    rig_join(rig, 1);
    until_logged(rig, "given_up why=\"its client has not come back in time\"");
    rig_come_back(rig, 0, all[0].request.ticket, 5, 0);
    while (rig_count(rig, 0, ESP_MSG_ERROR) == 0)
        rig_pump(rig, 20);
    rig_until_free(rig);
}

/* ---- damage ---- */

/* The session starts again from its request, and its client does not notice. */
static void test_bad_records(void **state)
{
    struct rig *rig = *state;

    make_all();
    start(rig);
    rig_join(rig, 1);
    undisturbed(rig, &all[0]);
    undisturbed(rig, &all[2]);
    rig->w[0].hold_work = true;
    ask_and_write(rig, &all[0], 3);
    ask_and_write(rig, &all[2], 4);
    some_steps(rig, 12);
    take_tokens(rig, &all[0], 4);
    rig_kill(rig);
    rig->w[0].hold_work = false;
    query(rig, "INSERT INTO progress SELECT id, 1000000, zeroblob(20) FROM session");
    start(rig);
    rig_join(rig, 1);
    come_back(rig, &all[0]);
    come_back(rig, &all[2]);
    take_done(rig, &all[0]);
    take_done(rig, &all[2]);
    same(&all[0]);
    same(&all[2]);
    assert_true(rig_logged(rig, "journal=lost why=\"what was chosen so far: no record"));
    assert_int_equal(all[0].n_anew + all[2].n_anew, 0);
    rig_until_free(rig);
}

/* What cannot be read at all is unknown, and asked anew. */
static void test_bad_picture(void **state)
{
    struct rig *rig = *state;

    make_all();
    start(rig);
    rig_join(rig, 1);
    undisturbed(rig, &all[0]);
    rig->w[0].hold_work = true;
    ask_and_write(rig, &all[0], 2);
    some_steps(rig, 6);
    take_tokens(rig, &all[0], 2);
    rig_kill(rig);
    rig->w[0].hold_work = false;
    query(rig, "UPDATE picture SET file = x''");
    start(rig);
    rig_join(rig, 1);
    until_logged(rig, "given_up why=\"number 1 of its pictures is none");
    come_back(rig, &all[0]);
    take_done(rig, &all[0]);
    same(&all[0]);
    assert_int_equal(all[0].n_anew, 1);
    rig_until_free(rig);
}

/* Nobody goes on whose tokens would have been others. */
static void other_model(struct rig *rig, const char *option, const char *value)
{
    make_all();
    start(rig);
    rig_join(rig, 1);
    rig->w[0].hold_work = true;
    ask_and_write(rig, &all[1], 1);
    some_steps(rig, 6);
    rig_kill(rig);
    rig->w[0].hold_work = false;
    rig_start(rig, "--journal", journal(rig), option, value, NULL);
    rig_join(rig, 1);
    until_logged(rig, "dropped other_model=1 unreadable=0");
    come_back(rig, &all[1]);
    take_done(rig, &all[1]);
    assert_int_equal(all[1].n_anew, 1);
    rig_until_free(rig);
}

static void test_other_model(void **state)
{
    other_model(*state, "--final-softcap", NULL);
}

static void test_other_weights(void **state)
{
    other_model(*state, "--weights", "q8");
}

/* A disk that is full costs the journal, and nothing else. */
static void test_full_disk(void **state)
{
    struct rig *rig = *state;
    struct rlimit limit = {.rlim_cur = 64 << 10, .rlim_max = 64 << 10};

    make_all();
    start(rig);
    rig_join(rig, 1);
    undisturbed(rig, &all[0]);
    assert_int_equal(prlimit(rig->pid, RLIMIT_FSIZE, &limit, NULL), 0);
    for (int round = 0; round < 3; round++) {
        ask(rig, &all[0]);
        take_done(rig, &all[0]);
        same(&all[0]);
    }
    assert_true(rig_logged(rig, "journal=lost why=\"journal /tmp/"));
    rig_until_free(rig);
}

/* ---- one coordinator, one journal ---- */

static void test_second_coordinator(void **state)
{
    struct rig *rig = *state, *other;
    void *second;

    start(rig);
    until_logged(rig, "listening");
    assert_int_equal(rig_setup(&second), 0);
    other = second;
    rig_start(other, "--journal", journal(rig), NULL);
    rig_reap(other);
    assert_int_equal(other->exit, 2);
    assert_true(rig_logged(other, "another coordinator uses it: give each its own --journal FILE"));
    other->exit = 0;
    assert_int_equal(rig_teardown(&second), 0);
}

/* Without a journal a restart is survived all the same: from the beginning. */
static void test_no_journal(void **state)
{
    struct rig *rig = *state;

    make_all();
    rig_start(rig, "--no-journal", NULL);
    rig_join(rig, 1);
    undisturbed(rig, &all[0]);
    rig->w[0].hold_work = true;
    ask(rig, &all[0]);
    some_steps(rig, 6);
    take_tokens(rig, &all[0], 3);
    rig_kill(rig);
    rig->w[0].hold_work = false;
    rig_start(rig, "--no-journal", NULL);
    rig_join(rig, 1);
    come_back(rig, &all[0]);
    take_done(rig, &all[0]);
    same(&all[0]);
    assert_int_equal(all[0].n_anew, 1);
    rig_until_free(rig);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_all_kinds),          TEST(test_client_first),  TEST(test_forgotten),
        TEST(test_not_resumed),        TEST(test_bad_records),   TEST(test_bad_picture),
        TEST(test_other_model),        TEST(test_other_weights), TEST(test_full_disk),
        TEST(test_second_coordinator), TEST(test_no_journal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
