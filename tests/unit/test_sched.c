/* Who goes next: admission, steps of several sessions, and steps that fail or get lost. No socket, no clock. */
#include <stdio.h>

#include "tests/unit/sched_rig.h"

static const struct esp_sched_room small = {.kv_blocks = 10,
                                            .epoch = 4,
                                            .block_tokens = 8,
                                            .max_rows = 200,
                                            .max_seqs = 8,
                                            .max_images = 4,
                                            .n_stages = 1,
                                            .max_steps = 2,
                                            .max_encodes = 2};

static struct esp_session *ask(struct sched_rig *rig, uint8_t client, uint32_t max_tokens)
{
    return sched_rig_ask(
        rig,
        &(struct sched_ask){.client = client, .max_tokens = max_tokens, .sampling = {.ignore_eos = true}});
}

static struct esp_sched_counts counts_of(const struct sched_rig *rig)
{
    struct esp_sched_counts c;

    esp_sched_counts(rig->sched, &c);
    return c;
}

/* ---- admission ---- */

/* Room is for the worst case; what never fits is refused, and room comes back with the release. */
static void test_admission(void **state)
{
    struct sched_rig rig;
    struct esp_session *a, *b, *c, *never;

    sched_rig_open(&rig, &small);
    a = ask(&rig, 1, 7);      /* 16 tokens: 2 blocks */
    never = ask(&rig, 1, 80); /* 89: 12 */
    b = ask(&rig, 1, 54);     /* 63: 8 */
    c = ask(&rig, 1, 3);
    assert_ptr_equal(esp_sched_admit(rig.sched, 0), a);
    assert_ptr_equal(esp_sched_admit(rig.sched, 0), b);
    assert_int_equal(never->st, ESP_E_LIMIT);
    assert_non_null(strstr(never->err.text, "--kv-tokens"));
    assert_null(esp_sched_admit(rig.sched, 0));
    assert_int_equal(esp_sched_ahead(rig.sched, c), 0);
    while (a->state != ESP_SESSION_ENDED) {
        assert_null(esp_sched_admit(rig.sched, 0)); /* not before its sequence is released */
        sched_rig_run(&rig, rig.n_home + 1);
    }
    sched_rig_dispatch(&rig);
    assert_true(c->admitted);
    a->final_sent = never->client_gone = true;
    sched_rig_dispatch(&rig);
    assert_ptr_equal(esp_sched_first(rig.sched), b);
    assert_int_equal(esp_sched_n_live(rig.sched), 2);
    sched_rig_run(&rig, UINT32_MAX);
    assert_int_equal(counts_of(&rig).n_admitted, 3);
    assert_int_equal(counts_of(&rig).n_failed, 1);
    sched_rig_close(&rig);
}

/* One client asks for fifty things at once, another for one at a time: that one waits for one of the fifty at most. */
static void test_fairness(void **state)
{
    struct sched_rig rig;
    struct esp_sched_room room = small;
    struct esp_session *flood[50], *modest = NULL;
    uint64_t given = 0;
    uint32_t n_answers = 0;

    room.max_seqs = 1; /* one session at a time */
    sched_rig_open(&rig, &room);
    for (uint32_t i = 0; i < 50; i++)
        flood[i] = ask(&rig, 1, 5);
    sched_rig_run(&rig, 1);
    while (n_answers < 20) {
        if (!modest) {
            modest = ask(&rig, 2, 5);
            given = 0;
            for (uint32_t i = 0; i < 50; i++)
                given += flood[i]->admission > 0;
            sched_rig_dispatch(&rig);
            assert_true(modest->admission > 0 || esp_sched_ahead(rig.sched, modest) <= 1);
        }
        sched_rig_run(&rig, rig.n_home + 1);
        if (modest->state == ESP_SESSION_ENDED) {
            uint64_t now = 0;

            for (uint32_t i = 0; i < 50; i++)
                now += flood[i]->admission > 0;
            assert_true(now - given <= 2); /* the one that was in, and one whose turn it was */
            n_answers++;
            modest = NULL;
        }
    }
    for (uint32_t i = 1; i < 50; i++) /* among themselves they keep their order */
        assert_true(flood[i]->admission == 0 || flood[i]->admission > flood[i - 1]->admission);
    sched_rig_run(&rig, UINT32_MAX);
    sched_rig_close(&rig);
}

/* Who needs all the room gets it, however many small ones come later; who spent nothing for long has saved nothing. */
static void test_big_one_waits_its_turn(void **state)
{
    struct sched_rig rig;
    struct esp_session *big, *late[40];
    uint32_t n = 0;

    sched_rig_open(&rig, &small);
    for (uint8_t i = 0; i < 4; i++)
        ask(&rig, 10 + i, 7);
    sched_rig_run(&rig, 1);
    big = ask(&rig, 1, 70); /* 79 tokens: all ten blocks */
    for (; n < 40 && !big->admitted; n++) {
        late[n] = ask(&rig, (uint8_t)(100 + n), 3); /* each a client that is new */
        sched_rig_run(&rig, rig.n_home + 1);
    }
    assert_true(big->admitted);
    for (uint32_t i = 0; i < n; i++)
        assert_false(late[i]->admitted);
    sched_rig_run(&rig, UINT32_MAX);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(late[i]->st, ESP_OK);
    sched_rig_close(&rig);
}

/* Who a client is, and what is remembered of one. */
static void test_clients(void **state)
{
    struct esp_shares shares = {0};
    struct esp_peer plain[2] = {{.n = 1, .id = {1}}, {.n = 1, .id = {2}}}, keyed[3];
    struct esp_share *a, *b, *c, *d;

    for (uint32_t i = 0; i < 3; i++) { /* two connections with one key, and a third with another */
        keyed[i] = (struct esp_peer){.n = 1, .id = {(uint8_t)i}, .member = ESP_MEMBER_CLIENT};
        keyed[i].key[0] = i == 2;
    }
    a = esp_shares_wait(&shares, &keyed[0]);
    b = esp_shares_wait(&shares, &keyed[1]);
    c = esp_shares_wait(&shares, &keyed[2]);
    assert_ptr_equal(a, b);
    assert_ptr_not_equal(a, c);
    d = esp_shares_wait(&shares, &plain[0]);
    assert_ptr_not_equal(d, esp_shares_wait(&shares, &plain[1]));
    esp_shares_leave(&shares, &a, 100, true);
    assert_null(a);
    assert_int_equal(b->spent, 100);
    assert_int_equal(c->spent, 0);
    esp_shares_leave(&shares, &c, 30, true);
    c = esp_shares_wait(&shares, &keyed[2]);
    assert_int_equal(c->spent, 30); /* others wait, so it is remembered what one had */
    esp_shares_leave(&shares, &c, 30, true);
    esp_shares_leave(&shares, &b, 0, false); /* went away: given nothing */
    b = esp_shares_wait(&shares, &keyed[0]);
    assert_int_equal(b->spent, 100);
    c = esp_shares_wait(&shares, &(struct esp_peer){.n = 1, .id = {9}});
    assert_int_equal(c->spent, 30); /* who is new begins where the last one to be given something was */
    while (shares.n_waiting > 0)
        for (struct esp_share *s = shares.first; s; s = s->next)
            if (s->n_waiting > 0) {
                struct esp_share *gone = s;

                esp_shares_leave(&shares, &gone, 7, true);
                break;
            }
    assert_null(shares.first); /* nobody waits: nobody is owed anything */
    esp_shares_finish(&shares);
}

/* A cancelled session's step comes home first; only then are its sequences named, each once. */
static void test_end_with_step_out(void **state)
{
    struct sched_rig rig;
    struct esp_session *s;
    struct esp_err why;

    sched_rig_open(&rig, &small);
    s = sched_rig_ask(&rig, &(struct sched_ask){.max_tokens = 5, .sampling = {.beams = 3}});
    sched_rig_run(&rig, 1);
    sched_rig_dispatch(&rig);
    assert_int_equal(rig.n_out, 1);
    esp_fail(&why, ESP_E_CANCELLED, "cancelled");
    esp_sched_end(rig.sched, s, &why, 0);
    sched_rig_dispatch(&rig);
    assert_true(s->admitted);
    assert_int_equal(counts_of(&rig).blocks_used, s->n_blocks);
    sched_rig_run(&rig, 2);
    sched_rig_dispatch(&rig);
    assert_int_equal(counts_of(&rig).blocks_used, 0);
    assert_int_equal(esp_kv_n_seqs(rig.stage[0].kv), 0);
    sched_rig_close(&rig);
}

/* Pictures that are there already, or on their way for another, are counted; the same one twice in a request is not. */
static void test_cached_pictures(void **state)
{
    struct sched_rig rig;
    struct esp_session *a, *b, *c, *d;

    sched_rig_open(&rig, &small);
    a = sched_rig_ask(&rig, &(struct sched_ask){.max_tokens = 2, .n_images = 2, .picture = {1, 1}});
    b = sched_rig_ask(&rig, &(struct sched_ask){.max_tokens = 2, .n_images = 2, .picture = {1, 2}});
    sched_rig_dispatch(&rig);
    assert_int_equal(a->n_cached, 0);
    assert_int_equal(b->n_cached, 1);
    sched_rig_run(&rig, UINT32_MAX);
    assert_null(a->job->pixels); /* nobody will need them again */
    c = sched_rig_ask(&rig, &(struct sched_ask){.max_tokens = 2, .n_images = 2, .picture = {2, 2}});
    d = sched_rig_ask(&rig,
                      &(struct sched_ask){.max_tokens = 2, .n_images = 1, .picture = {2}, .trace = true});
    sched_rig_run(&rig, UINT32_MAX);
    assert_int_equal(c->n_cached, 2);
    assert_int_equal(d->n_cached, 0); /* it wants to see the encoder at work */
    assert_int_equal(counts_of(&rig).n_encodes, 3);
    assert_int_equal(counts_of(&rig).n_cached, 3);
    sched_rig_close(&rig);
}

/* ---- steps ---- */

/* With S stages the decoding sessions are in S steps, evenly, once it has settled; a newcomer joins one of them. */
static void test_shares(void **state)
{
    for (uint32_t n_stages = 1; n_stages <= RIG_STAGES; n_stages++) {
        struct sched_rig rig;
        const struct esp_sched_room room = sched_rig_room(n_stages);
        const uint32_t n = 7 * n_stages;

        sched_rig_open(&rig, &room);
        for (uint32_t i = 0; i < n; i++) {
            ask(&rig, 1, 60);
            sched_rig_run(
                &rig, rig.n_home + 1); /* they come one by one, so that their steps begin as different ones */
        }
        sched_rig_run(&rig, rig.n_home + 4 * n);
        sched_rig_dispatch(&rig);
        for (uint32_t look = 0; look < 10; look++) {
            assert_int_equal(rig.n_out, n_stages);
            for (uint32_t i = 0; i < n_stages; i++)
                assert_int_equal(rig.out[i]->n_parts, 7);
            sched_rig_run(&rig, rig.n_home + 1);
            sched_rig_dispatch(&rig);
        }
        ask(&rig, 2, 20);
        sched_rig_run(&rig, rig.n_home + 3 * n_stages);
        sched_rig_dispatch(&rig);
        assert_int_equal(rig.n_out, n_stages);
        sched_rig_run(&rig, UINT32_MAX);
        assert_int_equal(counts_of(&rig).n_prefills, n + 1);
        sched_rig_close(&rig);
    }
}

/* Sessions that do not go up evenly leave no stage without a step: 9 on 4 stages are 3 + 2 + 2 + 2. */
static void test_uneven_shares(void **state)
{
    for (uint32_t n_stages = 2; n_stages <= RIG_STAGES; n_stages++) {
        struct sched_rig rig;
        const struct esp_sched_room room = sched_rig_room(n_stages);
        const uint32_t n = 2 * n_stages + 1;

        sched_rig_open(&rig, &room);
        for (uint32_t i = 0; i < n; i++)
            ask(&rig, 1, 60);
        sched_rig_run(&rig, rig.n_home + 4 * n);
        sched_rig_dispatch(&rig);
        for (uint32_t look = 0; look < 10; look++) {
            uint32_t n_three = 0;

            assert_int_equal(rig.n_out, n_stages);
            for (uint32_t i = 0; i < n_stages; i++) {
                assert_in_range(rig.out[i]->n_parts, 2, 3);
                n_three += rig.out[i]->n_parts == 3;
            }
            assert_int_equal(n_three, 1);
            sched_rig_run(&rig, rig.n_home + 1);
            sched_rig_dispatch(&rig);
        }
        sched_rig_run(&rig, UINT32_MAX);
        sched_rig_close(&rig);
    }
}

/* Short prompts go together, up to 128 rows; a traced one alone, and others need not wait behind it. */
static void test_prefills_together(void **state)
{
    static const uint32_t rows[] = {24, 24, 24, 24, 24, 24, 22, 20, 18}, traced = 6;
    static const uint32_t want[][2] = {{5, 120}, {3, 62}, {1, 22}}; /* sessions, rows */
    const struct esp_sched_room room = sched_rig_room(1);
    struct sched_rig rig;

    sched_rig_open(&rig, &room);
    for (uint32_t i = 0; i < 9; i++)
        sched_rig_ask(&rig, &(struct sched_ask){.max_tokens = 1, .n_prefix = rows[i], .trace = i == traced});
    for (uint32_t i = 0; i < 3; i++) {
        sched_rig_dispatch(&rig);
        assert_true(rig.n_out > 0);
        assert_int_equal(rig.out[0]->n_parts, want[i][0]);
        assert_int_equal(rig.out[0]->step.rows, want[i][1]);
        assert_int_equal(rig.out[0]->step.trace, i == 2);
        assert_true(sched_rig_home(&rig));
    }
    assert_int_equal(counts_of(&rig).n_prefills, 9);
    sched_rig_close(&rig);
}

/* One that is longer than that goes all the same, by itself. */
static void test_long_prefill(void **state)
{
    struct esp_sched_room room = sched_rig_room(1);
    struct esp_sched *sched;
    struct esp_flight *f;
    uint32_t *prefix = calloc(700, sizeof *prefix);

    assert_non_null(prefix);
    assert_int_equal(esp_sched_create(&sched, NULL), ESP_OK);
    esp_sched_open(sched, &room);
    for (uint64_t i = 1; i <= 2; i++) {
        const struct esp_peer client = {.n = 1};
        const struct esp_msg_request r = {.id = i, .max_tokens = 1};
        const struct esp_decode_params p = {
            .prefix = prefix, .n_prefix = i == 1 ? 700 : 5, .max_tokens = 1, .vocab = RIG_VOCAB};
        struct esp_session *s;

        assert_int_equal(esp_session_create(&s, i, &client, &r, 0, NULL), ESP_OK);
        assert_int_equal(esp_decode_create(&s->decode, &p, esp_sched_seqs(sched), NULL), ESP_OK);
        s->state = ESP_SESSION_QUEUED;
        esp_sched_add(sched, &s);
        assert_non_null(esp_sched_admit(sched, 0));
    }
    f = esp_sched_next_step(sched, 0);
    assert_int_equal(f->n_parts, 1);
    assert_int_equal(f->step.rows, 700);
    assert_int_equal(esp_sched_next_step(sched, 0)->step.rows, 5);
    esp_sched_destroy(&sched);
    free(prefix);
}

/* While some decode, prefills come one at a time: everybody who is ready has a turn between two, and no more than one. */
static void test_no_starvation(void **state)
{
    struct sched_rig rig;
    const struct esp_sched_room room = sched_rig_room(2);
    struct esp_session *old[6], *new[12];
    uint64_t last[6] = {0};
    uint32_t since = 0, n_prefills = 0;

    sched_rig_open(&rig, &room);
    for (uint32_t i = 0; i < 6; i++)
        old[i] = ask(&rig, 1, 100);
    sched_rig_run(&rig, 12);
    for (uint32_t i = 0; i < 12; i++)
        new[i] = sched_rig_ask(&rig, &(struct sched_ask){.client = 2, .max_tokens = 20, .n_prefix = 100});
    while (esp_decode_n_steps(new[11]->decode) == 0) {
        const uint64_t before = rig.last_step;

        sched_rig_dispatch(&rig);
        for (uint32_t i = 0; i < rig.n_out; i++) {
            const struct esp_flight *f = rig.out[i];

            if (f->step.id <= before)
                continue;
            if (f->step.seqs[0].pos == 0) {
                assert_true(n_prefills == 0 || since > 0); /* never two in a row */
                n_prefills++;
                for (uint32_t k = 0; k < 6; k++) { /* all of the old have had a turn meanwhile */
                    assert_true(n_prefills == 1 || old[k]->step_out || old[k]->turn > last[k]);
                    last[k] = old[k]->turn;
                }
                since = 0;
            } else {
                since++;
            }
        }
        assert_true(since <= 8); /* and they come after all */
        assert_true(sched_rig_home(&rig));
    }
    assert_true(n_prefills >= 3);
    sched_rig_run(&rig, UINT32_MAX);
    sched_rig_close(&rig);
}

/* Nobody's full logits make a message too long, nor does one who asks for many keep the others out. */
static void test_many_rows(void **state)
{
    struct sched_rig rig;
    struct esp_sched_room room = sched_rig_room(2);

    room.max_rows = 50;
    sched_rig_open(&rig, &room);
    for (uint32_t i = 0; i < 20; i++)
        sched_rig_ask(&rig, &(struct sched_ask){.client = (uint8_t)i,
                                                .max_tokens = 6,
                                                .sampling = {.temperature = 1, .best_of = 1 + 2 * (i % 9)}});
    sched_rig_run(&rig, UINT32_MAX); /* the rig looks at every step's rows */
    assert_true(rig.most_sessions > 1);
    assert_int_equal(counts_of(&rig).n_failed, 0);
    sched_rig_close(&rig);
}

/* A thousand at once: nobody is lost, and everyone has an answer. */
static void test_a_thousand(void **state)
{
    struct sched_rig rig;
    struct esp_sched_room room = sched_rig_room(3);

    room.max_seqs = 256;
    sched_rig_open(&rig, &room);
    for (uint32_t i = 0; i < 1000; i++)
        sched_rig_ask(&rig, &(struct sched_ask){.client = (uint8_t)(i % 40), .max_tokens = 4 + i % 5});
    sched_rig_run(&rig, UINT32_MAX);
    assert_int_equal(counts_of(&rig).n_ended, 1000);
    assert_int_equal(counts_of(&rig).n_failed, 0);
    assert_true(rig.most_sessions > 20);
    sched_rig_close(&rig);
}

/* ---- steps that fail ---- */

/* Of several sessions in a step one is at fault: it fails alone, and the others have the tokens they would have had. */
static void test_failed_step(void **state)
{
    char want[6][RIG_ANSWER], got[RIG_ANSWER];

    for (uint32_t at = 0; at < 2 * RIG_STAGES * 12;
         at++) { /* undisturbed first, then a failure of each step and stage */
        struct sched_rig rig;
        const struct esp_sched_room room = sched_rig_room(2);
        struct esp_session *s[6], *guilty = NULL;
        const uint32_t stage = at % 2;

        sched_rig_open(&rig, &room);
        for (uint32_t i = 0; i < 6; i++)
            s[i] = sched_rig_ask(&rig, &(struct sched_ask){.client = (uint8_t)i,
                                                           .max_tokens = 12,
                                                           .sampling = {.beams = i == 4 ? 3 : 0,
                                                                        .best_of = i == 5 ? 3 : 0,
                                                                        .temperature = i == 4 ? 0 : 1,
                                                                        .seed = i}});
        sched_rig_run(&rig, at == 0 ? UINT32_MAX : at / 2);
        while (at > 0) {
            bool mine = false;

            sched_rig_dispatch(&rig);
            if (rig.n_out == 0)
                break;
            if (!guilty && rig.out[0]->n_parts > 1)
                guilty = rig.out[0]->parts[rig.out[0]->n_parts / 2].session;
            for (uint32_t i = 0; guilty && i < rig.out[0]->n_parts; i++)
                mine |= rig.out[0]->parts[i].session == guilty && rig.out[0]->step.n_wants > 0;
            if (mine) /* whenever it has something to compute */
                sched_rig_fail(&rig, stage, ESP_E_NUMBERS);
            else
                sched_rig_home(&rig);
        }
        for (uint32_t i = 0; i < 6; i++) {
            sched_rig_answer(got, s[i]);
            if (at == 0) {
                memcpy(want[i], got, sizeof got);
            } else if (s[i] == guilty) {
                assert_int_equal(s[i]->st, ESP_E_NUMBERS);
                assert_non_null(strstr(s[i]->err.text, "failed"));
            } else if (strcmp(got, want[i]) != 0) {
                fail_msg("failure after %u: session %u: %s, undisturbed %s", at / 2, i, got, want[i]);
            }
            assert_false(s[i]->alone && s[i] != guilty);
        }
        sched_rig_close(&rig);
    }
}

/* ---- steps that get lost ---- */

/* A step that nobody works on, or that a later one has overtaken, is lost after unbroken doubt. */
static void test_lost_step(void **state)
{
    static const struct {
        bool idle, late; /* late: the second step has come home */
        double now;
        esp_status st;
    } looks[] = {
        {false, false, 100, ESP_OK}, /* a stage is at it, for as long as it may take */
        {true, false, 200, ESP_OK},  {true, false, 209, ESP_OK},
        {false, false, 210, ESP_OK}, {true, false, 211, ESP_OK}, /* counted anew */
        {true, false, 220, ESP_OK},  {false, true, 220.5, ESP_OK},
        {true, true, 220.7, ESP_OK}, /* either doubt will do */
        {false, true, 221, ESP_OK},  {false, true, 221.5, ESP_E_TIMEOUT},
    };
    const struct esp_sched_patience patience = {.least = 9, .a_row = 0.1}; /* of a first step: ten rows */
    struct sched_rig rig;
    struct esp_flight *first, *second;
    bool landed = false;
    struct esp_err err;

    sched_rig_open(&rig, &small);
    ask(&rig, 1, 3);
    assert_int_equal(esp_sched_watch(rig.sched, true, 50, &patience, NULL), ESP_OK); /* nothing is out */
    sched_rig_dispatch(&rig);
    ask(&rig, 1, 3);
    sched_rig_dispatch(&rig);
    assert_int_equal(rig.n_out, 2);
    first = rig.out[0];
    second = rig.out[1];
    for (size_t i = 0; i < sizeof looks / sizeof looks[0]; i++) {
        if (looks[i].late && !landed) {
            rig.out[0] = second;
            rig.n_out = 1;
            assert_true(sched_rig_home(&rig));
            landed = true;
        }
        if (esp_sched_watch(rig.sched, looks[i].idle, looks[i].now, &patience, &err) != looks[i].st)
            fail_msg("at %.1f s: not %s", looks[i].now, esp_status_name(looks[i].st));
    }
    assert_string_equal(err.text, "step 1 was lost between the workers");
    rig.out[0] = first;
    rig.n_out = 1;
    sched_rig_run(&rig, UINT32_MAX);
    sched_rig_close(&rig);
}

/* The error of a step may overtake the results of those before it, which are not lost for that. */
static void test_error_overtakes(void **state)
{
    const struct esp_sched_patience patience = {.least = 9};
    struct sched_rig rig;
    struct esp_flight *first;

    sched_rig_open(&rig, &small);
    ask(&rig, 1, 3);
    sched_rig_dispatch(&rig);
    ask(&rig, 1, 3);
    sched_rig_dispatch(&rig);
    first = rig.out[0];
    rig.out[0] = rig.out[1];
    rig.n_out = 1;
    sched_rig_fail(&rig, 0, ESP_E_LIMIT);
    assert_int_equal(esp_sched_watch(rig.sched, false, 100, &patience, NULL), ESP_OK);
    assert_int_equal(esp_sched_watch(rig.sched, false, 200, &patience, NULL), ESP_OK);
    rig.out[0] = first;
    rig.n_out = 1;
    sched_rig_run(&rig, UINT32_MAX);
    assert_int_equal(counts_of(&rig).n_failed, 1);
    sched_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_admission),
        cmocka_unit_test(test_fairness),
        cmocka_unit_test(test_clients),
        cmocka_unit_test(test_big_one_waits_its_turn),
        cmocka_unit_test(test_end_with_step_out),
        cmocka_unit_test(test_cached_pictures),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_uneven_shares),
        cmocka_unit_test(test_prefills_together),
        cmocka_unit_test(test_long_prefill),
        cmocka_unit_test(test_no_starvation),
        cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_a_thousand),
        cmocka_unit_test(test_failed_step),
        cmocka_unit_test(test_lost_step),
        cmocka_unit_test(test_error_overtakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
