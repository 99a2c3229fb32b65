/* Workers that are lost, and what they held moved: every session goes on with exactly the tokens it would have had. */
#include <stdio.h>

#include "tests/support/rand.h"
#include "tests/unit/sched_rig.h"

/* One of each kind of request, and a few more so that steps are shared. */
static const struct sched_ask asks[] = {
    {.client = 1, .max_tokens = 12},
    {.client = 2, .max_tokens = 14, .n_suffix = 3, .sampling = {.temperature = 1, .seed = 5}},
    {.client = 3,
     .max_tokens = 12,
     .n_images = 2,
     .picture = {1, 2},
     .sampling = {.temperature = 0.8, .top_k = 5}},
    {.client = 4, .max_tokens = 12, .sampling = {.temperature = 1, .best_of = 5, .seed = 3}},
    {.client = 5, .max_tokens = 14, .sampling = {.beams = 4}},
    {.client = 5,
     .max_tokens = 14,
     .sampling = {.beams = 3, .has_length_penalty = true, .length_penalty = 1}},
    {.client = 6, .n_suffix = 4, .score = true, .n_images = 1, .picture = {2}},
    {.client = 7, .max_tokens = 1, .n_images = 1, .picture = {3}},
};
enum { N = sizeof asks / sizeof asks[0] };

static void open_with_all(struct sched_rig *rig, struct esp_session **s, const struct esp_sched_room *room)
{
    sched_rig_open(rig, room);
    for (uint32_t i = 0; i < N; i++)
        s[i] = sched_rig_ask(rig, &asks[i]);
}

/* Whoever looks at these answers twice has the undisturbed ones the first time. */
static void same_answers(char (*want)[RIG_ANSWER], bool first, struct esp_session *const *s, const char *what,
                         uint32_t a, uint32_t b)
{
    char got[RIG_ANSWER];

    for (uint32_t i = 0; i < N; i++) {
        sched_rig_answer(first ? want[i] : got, s[i]);
        if (first)
            assert_int_equal(s[i]->st, ESP_OK);
        else if (strcmp(got, want[i]) != 0)
            fail_msg("%s after %u and %u: request %u: %s, undisturbed %s", what, a, b, i, got, want[i]);
    }
}

/* The answers do not depend on how many stages there are, nor on who shares a step with whom. */
static void undisturbed(char (*want)[RIG_ANSWER])
{
    struct esp_sched_room room = sched_rig_room(1);
    struct sched_rig rig;
    struct esp_session *s[N];

    room.max_seqs = 8; /* not everybody at once */
    open_with_all(&rig, s, &room);
    sched_rig_run(&rig, UINT32_MAX);
    same_answers(want, true, s, "", 0, 0);
    sched_rig_close(&rig);
    room = sched_rig_room(3);
    open_with_all(&rig, s, &room);
    sched_rig_run(&rig, UINT32_MAX);
    same_answers(want, false, s, "together", 0, 0);
    assert_true(rig.most_sessions > 2);
    sched_rig_close(&rig);
}

/* Everything is lost after `a` pieces of work have come home, and once more after `b` more; false: it was over before. */
static bool lose_twice(char (*want)[RIG_ANSWER], uint32_t n_stages, uint32_t a, uint32_t b,
                       uint32_t block_tokens)
{
    struct esp_sched_room room = sched_rig_room(n_stages), next = room;
    struct esp_sched_counts counts;
    struct sched_rig rig;
    struct esp_session *s[N];
    bool disturbed;

    /* No more blocks than the worst case takes: a rebuilt session must not need more. */
    room.block_tokens = next.block_tokens = block_tokens;
    open_with_all(&rig, s, &room);
    sched_rig_run(&rig, a);
    disturbed = rig.n_home == a && rig.n_out + rig.n_encoding > 0;
    sched_rig_lose(&rig);
    sched_rig_dispatch(&rig); /* nothing goes out: nobody is there */
    assert_int_equal(rig.n_out + rig.n_encoding, 0);
    next.kv_blocks = 0;
    for (uint32_t i = 0; i < N; i++)
        if (s[i]->state != ESP_SESSION_ENDED)
            next.kv_blocks += esp_decode_max_blocks(s[i]->decode, block_tokens);
    if (next.kv_blocks == 0)
        next.kv_blocks = 1;
    sched_rig_reopen(&rig, &next);
    sched_rig_run(&rig, rig.n_home + b);
    if (b < 1000) {
        sched_rig_lose(&rig);
        sched_rig_reopen(&rig, &next);
    }
    sched_rig_run(&rig, UINT32_MAX);
    same_answers(want, false, s, "lost", a, b);
    esp_sched_counts(rig.sched, &counts);
    assert_int_equal(counts.n_admitted, N);
    for (uint32_t i = 0; i < N; i++) /* nothing is waited for that has come */
        assert_true(s[i]->n_rebuilds <= 2 && !s[i]->rebuild);
    sched_rig_close(&rig);
    return disturbed;
}

static void test_loss_at_every_step(void **state)
{
    static char want[N][RIG_ANSWER];
    static const uint32_t then[] = {1000, 0, 1, 2, 3, 4, 6, 9, 13, 20};

    undisturbed(want);
    for (uint32_t n_stages = 1; n_stages <= RIG_STAGES; n_stages++)
        for (uint32_t a = 0; a < 1000; a++) {
            bool disturbed = false;

            for (uint32_t k = 0; k < sizeof then / sizeof then[0]; k++)
                disturbed |= lose_twice(want, n_stages, a, then[k], a % 2 ? 8 : 16);
            if (!disturbed) {
                assert_true(a > 15); /* steps that there are */
                break;
            }
        }
}

/* Long answers come back in more than one part, and many sequences in parts of a token each. */
static void test_long_rebuild(void **state)
{
    static char want[RIG_ANSWER], got[RIG_ANSWER];
    struct esp_sched_room room = sched_rig_room(2);
    const struct sched_ask ask = {.max_tokens = 100,
                                  .sampling = {.temperature = 1, .best_of = 9, .ignore_eos = true}};

    room.max_rows = 200; /* 9 sequences of 109 tokens */
    for (uint32_t a = 0; a < 4; a++) {
        struct sched_rig rig;
        struct esp_session *s;
        struct esp_sched_counts counts;
        struct esp_decode_hyp h;

        sched_rig_open(&rig, &room);
        s = sched_rig_ask(&rig, &ask);
        sched_rig_run(&rig, a == 0 ? UINT32_MAX : 96);
        for (uint32_t k = 1; a > 0 && k <= 3; k++) { /* the loss before last hits it half back */
            sched_rig_lose(&rig);
            sched_rig_reopen(&rig, &room);
            sched_rig_run(&rig, rig.n_home + a);
        }
        sched_rig_run(&rig, UINT32_MAX);
        assert_int_equal(s->st, ESP_OK);
        assert_true(esp_decode_hyp(s->decode, 8, &h));
        snprintf(a == 0 ? want : got, RIG_ANSWER, "%u %u %u %.17g", h.ids[10], h.ids[50], h.ids[99], h.sum);
        if (a > 0)
            assert_string_equal(got, want);
        esp_sched_counts(rig.sched, &counts);
        assert_int_equal(counts.n_prefills, a == 0 ? 1 : 4);
        assert_int_equal(counts.n_tokens, 900); /* each once */
        if (a > 0)
            assert_true(counts.n_rebuild_rows >= 9 * 95);
        sched_rig_close(&rig);
    }
}

/* With too little room afterwards the oldest come back first; the others wait, also for a placement to come. */
static void test_too_little_room(void **state)
{
    static char want[N][RIG_ANSWER];
    struct esp_sched_room room = sched_rig_room(2), less = room;
    struct sched_rig rig;
    struct esp_session *s[N], *late;

    undisturbed(want);
    open_with_all(&rig, s, &room);
    sched_rig_run(&rig, 9);
    late = sched_rig_ask(&rig, &asks[0]);
    late->state = ESP_SESSION_PREPARING;
    sched_rig_lose(&rig);
    less.max_seqs = 3; /* the five samples do not fit at all */
    less.kv_blocks = 9;
    sched_rig_reopen(&rig, &less);
    late->state = ESP_SESSION_QUEUED;
    for (uint32_t i = 0; i < 200; i++) {
        sched_rig_dispatch(&rig);
        for (uint32_t k = 0; k < N; k++) /* who was in comes before who was not */
            assert_true(!late->admitted || !s[k]->rebuild || s[k]->n_blocks > 9 || s[k]->n_seqs > 3);
        if (!sched_rig_home(&rig))
            break;
    }
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(s[i]->state, i == 3 ? ESP_SESSION_QUEUED : ESP_SESSION_ENDED);
    assert_int_equal(late->state, ESP_SESSION_ENDED); /* nor do they stand in anybody's way */
    sched_rig_lose(&rig);
    sched_rig_reopen(&rig, &room);
    sched_rig_run(&rig, UINT32_MAX);
    same_answers(want, false, s, "little room", 0, 0);
    sched_rig_close(&rig);
}

/* One that was in the queue when the cluster became too small for it waits as well; one that comes then is refused. */
static void test_queue_waits_too(void **state)
{
    struct esp_sched_room room = sched_rig_room(1), less = room;
    struct sched_rig rig;
    struct esp_session *first, *waits, *late;

    room.max_seqs = 5;
    less.max_seqs = 3;
    sched_rig_open(&rig, &room);
    first = sched_rig_ask(&rig, &asks[0]);
    waits = sched_rig_ask(&rig, &asks[3]);
    sched_rig_run(&rig, 3);
    assert_false(waits->admitted);
    sched_rig_lose(&rig);
    sched_rig_reopen(&rig, &less);
    late = sched_rig_ask(&rig, &asks[4]);
    sched_rig_run(&rig, UINT32_MAX);
    assert_int_equal(first->st, ESP_OK);
    assert_int_equal(waits->state, ESP_SESSION_QUEUED);
    assert_int_equal(late->st, ESP_E_LIMIT);
    sched_rig_lose(&rig);
    sched_rig_reopen(&rig, &room);
    sched_rig_run(&rig, UINT32_MAX);
    assert_int_equal(waits->st, ESP_OK);
    sched_rig_close(&rig);
}

/* Sessions that end while there is no placement take nothing with them, and leave nothing. */
static void test_end_while_lost(void **state)
{
    struct esp_sched_room room = sched_rig_room(2);
    struct sched_rig rig;
    struct esp_session *s[N];
    struct esp_err why;

    open_with_all(&rig, s, &room);
    sched_rig_run(&rig, 12);
    sched_rig_lose(&rig);
    esp_fail(&why, ESP_E_CANCELLED, "cancelled");
    for (uint32_t i = 0; i < N; i += 2)
        esp_sched_end(rig.sched, s[i], &why, 1);
    sched_rig_reopen(&rig, &room);
    sched_rig_run(&rig, 14);
    for (uint32_t i = 0; i < N; i++)
        esp_sched_end(rig.sched, s[i], &why, 1);
    sched_rig_run(&rig, UINT32_MAX);
    sched_rig_close(&rig);
}

/* What the workers hold moves to others while nothing is out: nothing is computed again, and steps count from 1. */
static void test_carry(void **state)
{
    static char want[N][RIG_ANSWER];

    undisturbed(want);
    for (uint32_t at = 0; at < 60; at += 3) {
        struct esp_sched_room room = sched_rig_room(2);
        struct esp_sched_counts counts;
        struct sched_rig rig;
        struct esp_session *s[N];

        open_with_all(&rig, s, &room);
        sched_rig_run(&rig, at);
        esp_sched_pause(rig.sched, true);
        while (esp_sched_n_flights(rig.sched) + esp_sched_n_encoding(rig.sched) > 0) {
            const uint32_t n = rig.n_out + rig.n_encoding;

            assert_int_equal(n, esp_sched_n_flights(rig.sched) + esp_sched_n_encoding(rig.sched));
            assert_true(sched_rig_home(&rig));
            sched_rig_dispatch(&rig);
            assert_int_equal(rig.n_out + rig.n_encoding, n - 1); /* nothing new goes out */
        }
        rig.room.epoch++;
        rig.last_step = 0;
        esp_sched_carry(rig.sched, &rig.room);
        sched_rig_run(&rig, UINT32_MAX);
        same_answers(want, false, s, "carried", at, 0);
        esp_sched_counts(rig.sched, &counts);
        assert_int_equal(counts.n_prefills, N);
        assert_int_equal(counts.n_encodes, 3);
        assert_int_equal(counts.n_rebuilds, 0);
        sched_rig_close(&rig);
    }
}

/* A pause that is given up changes nothing; a loss ends one. */
static void test_pause(void **state)
{
    struct esp_sched_room room = sched_rig_room(1);
    struct sched_rig rig;
    struct esp_session *s;

    sched_rig_open(&rig, &room);
    esp_sched_pause(rig.sched, true);
    s = sched_rig_ask(&rig, &asks[2]);
    sched_rig_run(&rig, UINT32_MAX);
    assert_int_equal(s->state, ESP_SESSION_QUEUED);
    esp_sched_pause(rig.sched, false);
    sched_rig_run(&rig, 3);
    esp_sched_pause(rig.sched, true);
    sched_rig_lose(&rig);
    sched_rig_reopen(&rig, &room);
    sched_rig_run(&rig, UINT32_MAX);
    assert_int_equal(s->st, ESP_OK);
    sched_rig_close(&rig);
}

/* ---- everything at once ---- */

enum { CROWD = 24 };

static struct sched_ask random_ask(struct esp_rand *r)
{
    struct sched_ask a = {.client = (uint8_t)esp_rand_below(r, 5),
                          .max_tokens = 1 + esp_rand_below(r, 30),
                          .n_prefix = 5 + esp_rand_below(r, 40),
                          .n_suffix = esp_rand_below(r, 4),
                          .n_images = esp_rand_below(r, 3),
                          .picture = {(uint8_t)esp_rand_below(r, 4), (uint8_t)esp_rand_below(r, 4)}};

    switch (esp_rand_below(r, 6)) {
    case 0:
        a.sampling.beams = 2 + esp_rand_below(r, 4);
        break;
    case 1:
        a.sampling = (struct esp_msg_sampling){
            .beams = 2 + esp_rand_below(r, 3), .has_length_penalty = true, .length_penalty = 0.6};
        break;
    case 2:
        a.sampling = (struct esp_msg_sampling){
            .temperature = 1, .best_of = 1 + esp_rand_below(r, 6), .seed = esp_rand_below(r, 100)};
        break;
    case 3:
        a.score = a.n_suffix > 0;
        break;
    default:
        a.sampling = (struct esp_msg_sampling){.temperature = 0.9, .seed = esp_rand_below(r, 100)};
    }
    a.trace = esp_rand_below(r, 8) == 0;
    return a;
}

/* The next placement: mostly as good as any, sometimes far too small, and of another number of stages. */
static struct esp_sched_room random_room(struct esp_rand *r)
{
    struct esp_sched_room room = sched_rig_room(1 + esp_rand_below(r, RIG_STAGES));

    room.max_seqs = 8 + esp_rand_below(r, 40);
    room.max_rows = 100 + esp_rand_below(r, 200);
    room.max_images = 3 + esp_rand_below(r, 6);
    if (esp_rand_below(r, 4) == 0)
        room.kv_blocks = 5 + esp_rand_below(r, 40);
    return room;
}

/* Steps fail, workers are lost, layers move, clients go, in any order. Whoever is not told of a failure of his own has the
 * undisturbed answer in the end, and the workers hold nothing. */
static void storm(uint64_t seed, struct esp_sched_counts *sums)
{
    static char want[CROWD][RIG_ANSWER], got[RIG_ANSWER];
    const struct esp_sched_room ample = sched_rig_room(2);
    struct sched_ask asks_of[CROWD];
    struct esp_session *s[CROWD];
    bool gone[CROWD] = {false}; /* cancelled, or failed by itself */
    struct esp_sched_counts counts;
    struct sched_rig rig;
    struct esp_rand r;
    struct esp_err why;
    uint32_t n_asked = 0;

    esp_rand_init(&r, seed);
    for (uint32_t i = 0; i < CROWD; i++)
        asks_of[i] = random_ask(&r);
    sched_rig_open(&rig, &ample);
    for (uint32_t i = 0; i < CROWD; i++)
        s[i] = sched_rig_ask(&rig, &asks_of[i]);
    sched_rig_run(&rig, UINT32_MAX);
    for (uint32_t i = 0; i < CROWD; i++)
        sched_rig_answer(want[i], s[i]);
    sched_rig_close(&rig);

    esp_fail(&why, ESP_E_CANCELLED, "cancelled");
    sched_rig_open(&rig, &ample);
    for (uint32_t event = 0; event < 400; event++) {
        const uint32_t what = esp_rand_below(&r, 100);

        if (n_asked < CROWD && what < 20) {
            s[n_asked] = sched_rig_ask(&rig, &asks_of[n_asked]);
            n_asked++;
        }
        sched_rig_dispatch(&rig);
        if (what < 4) {
            const struct esp_sched_room next = random_room(&r);

            sched_rig_lose(&rig);
            if (esp_rand_below(&r, 2))
                sched_rig_dispatch(&rig);
            sched_rig_reopen(&rig, &next);
        } else if (what < 9 && rig.n_out > 0) {
            for (uint32_t i = 0; rig.out[0]->n_parts == 1 && i < n_asked; i++)
                gone[i] |= rig.out[0]->parts[0].session == s[i];
            sched_rig_fail(&rig, esp_rand_below(&r, rig.room.n_stages), ESP_E_LIMIT);
        } else if (what < 10 && n_asked > 0) {
            const uint32_t i = esp_rand_below(&r, n_asked);

            gone[i] |= s[i]->state != ESP_SESSION_ENDED;
            esp_sched_end(rig.sched, s[i], &why, rig.now);
        } else if (what < 14) {
            esp_sched_pause(rig.sched, true);
            do
                sched_rig_dispatch(&rig);
            while (sched_rig_home(&rig));
            rig.room.epoch++;
            rig.last_step = 0;
            esp_sched_carry(rig.sched, &rig.room);
        } else {
            sched_rig_home(&rig);
        }
    }
    while (n_asked < CROWD) {
        s[n_asked] = sched_rig_ask(&rig, &asks_of[n_asked]);
        n_asked++;
    }
    sched_rig_lose(&rig);
    sched_rig_reopen(&rig, &ample);
    sched_rig_run(&rig, UINT32_MAX);
    for (uint32_t i = 0; i < CROWD; i++) {
        sched_rig_answer(got, s[i]);
        /* Refused for good by a placement that was too small, when it came: that is an answer too. */
        if (!gone[i] && s[i]->st == ESP_E_LIMIT && strstr(got, ": raise --"))
            continue;
        if (!gone[i] && s[i]->st == ESP_E_LIMIT && strstr(got, "sequences at once"))
            continue;
        if (!gone[i] && strcmp(got, want[i]) != 0)
            fail_msg("seed %llu: request %u: %s, undisturbed %s", (unsigned long long)seed, i, got, want[i]);
    }
    esp_sched_counts(rig.sched, &counts);
    assert_int_equal(counts.n_ended, CROWD);
    sums->n_rebuilds += counts.n_rebuilds;
    sums->n_retries += counts.n_retries;
    sums->n_failed += counts.n_failed;
    sums->n_rebuild_rows += counts.n_rebuild_rows;
    sched_rig_close(&rig);
}

static void test_storm(void **state)
{
    struct esp_sched_counts sums = {0};
    const uint64_t n = 300;

    for (uint64_t seed = 1; seed <= n; seed++)
        storm(seed, &sums);
    print_message("%llu sessions: %llu rebuilds, %llu retries alone, %llu ended by failures and clients\n",
                  (unsigned long long)(n * CROWD), (unsigned long long)sums.n_rebuilds,
                  (unsigned long long)sums.n_retries, (unsigned long long)sums.n_failed);
    assert_true(sums.n_rebuilds > n * CROWD / 2 && sums.n_retries > n && sums.n_failed < n * CROWD / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_at_every_step),
        cmocka_unit_test(test_long_rebuild),
        cmocka_unit_test(test_too_little_room),
        cmocka_unit_test(test_queue_waits_too),
        cmocka_unit_test(test_end_while_lost),
        cmocka_unit_test(test_carry),
        cmocka_unit_test(test_pause),
        cmocka_unit_test(test_storm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
