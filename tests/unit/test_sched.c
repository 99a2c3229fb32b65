/* Parts, steps, admission and pictures, without a socket. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/decode.h"
#include "coordinator/features.h"
#include "coordinator/flight.h"
#include "coordinator/sched.h"

#define VOCAB 50
#define EOS   1

static const uint32_t prefix[] = {2, 10, 11, 12, 13, 14, 15, 16, 17, 18};

static struct esp_decode *decoder(struct esp_decode_params p, uint64_t *next_seq)
{
    struct esp_decode *d;
    struct esp_err err;

    p.prefix = prefix;
    p.n_prefix = sizeof prefix / sizeof prefix[0];
    p.eos = EOS;
    p.vocab = VOCAB;
    if (esp_decode_create(&d, &p, next_seq, &err))
        fail_msg("%s", err.text);
    return d;
}

/* A row whose best candidates are these, by falling logit. */
static struct esp_row_result row(uint32_t at, const uint32_t *ids, uint32_t n)
{
    static float logits[64];
    struct esp_row_result r = {
        .row = at, .lse = 10.5f, .n = n, .ids = ids, .logits = logits, .target_logit = -30};

    for (uint32_t i = 0; i < 64; i++)
        logits[i] = 10.0f - (float)i;
    return r;
}

/* ---- decode ---- */

static void test_first_part(void **state)
{
    uint64_t next_seq = 40;
    const uint32_t suffix[] = {30, 31};
    struct esp_decode *d =
        decoder((struct esp_decode_params){.suffix = suffix, .n_suffix = 2, .n_images = 2, .max_tokens = 5},
                &next_seq);
    const struct esp_part *p;

    esp_decode_set_image(d, 0, 7);
    esp_decode_set_image(d, 1, 9);
    p = esp_decode_next(d);
    assert_int_equal(p->n_rows, 12);
    assert_int_equal(p->n_seqs, 1);
    assert_int_equal(p->seqs[0].seq, 41);
    assert_int_equal(p->seqs[0].n_prefix, 10); /* the start of the suffix is causal */
    assert_int_equal(p->seqs[0].n_tok, 12);
    assert_int_equal(p->seqs[0].images[1], 9);
    assert_int_equal(p->ids[11], 31);
    assert_int_equal(p->n_wants, 1);
    assert_int_equal(p->wants[0].row, 11);
    assert_true(p->wants[0].k >= 1 && !p->wants[0].full);
    assert_int_equal(esp_decode_max_len(d), 12 + 4); /* the last token is never fed */
    esp_decode_destroy(&d);
}

static void test_score_part(void **state)
{
    uint64_t next_seq = 0;
    const uint32_t suffix[] = {30, 31};
    struct esp_decode *d =
        decoder((struct esp_decode_params){.suffix = suffix, .n_suffix = 2, .score = true}, &next_seq);
    const struct esp_part *p = esp_decode_next(d);
    const uint32_t targets[] = {30, 31, EOS};

    assert_int_equal(p->n_rows, 13);
    assert_int_equal(p->n_wants, 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(p->wants[i].row, 9 + i); /* each row tells of the next token */
        assert_true(p->wants[i].has_target);
        assert_int_equal(p->wants[i].target, targets[i]);
    }
    esp_decode_destroy(&d);
}

/* Best of 3: one row, three draws, two forks; who has ended is freed in the next step. */
static void test_samples_fork(void **state)
{
    uint64_t next_seq = 0;
    struct esp_decode *d = decoder(
        (struct esp_decode_params){.max_tokens = 3, .sampling = {.best_of = 3, .temperature = 1, .top_k = 1}},
        &next_seq);
    const uint32_t go[] = {20, 21}, end[] = {EOS, 21};
    struct esp_row_result rows[3];
    const struct esp_part *p = esp_decode_next(d);
    const uint64_t *held;
    uint32_t n_held;
    bool done;

    assert_int_equal(p->n_wants, 1);
    rows[0] = row(9, go, p->wants[0].k);
    assert_int_equal(esp_decode_take(d, rows, NULL, &done, NULL), ESP_OK);
    assert_false(done);
    p = esp_decode_next(d);
    assert_int_equal(p->n_seqs, 3);
    assert_int_equal(p->n_forks, 2);
    assert_int_equal(p->n_free, 0);
    assert_int_equal(p->seqs[0].seq, 1); /* the first child has its parent's */
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(p->forks[i].from, 1);
        assert_int_equal(p->forks[i].seq, p->seqs[i + 1].seq);
    }
    assert_int_equal(p->seqs[2].pos, 10);
    assert_int_equal(p->seqs[2].n_prefix, 10);
    rows[0] = row(0, go, 1);
    rows[1] = row(1, end, 1);
    rows[2] = row(2, go, 1);
    assert_int_equal(esp_decode_take(d, rows, NULL, &done, NULL), ESP_OK);
    p = esp_decode_next(d);
    assert_int_equal(p->n_seqs, 2);
    assert_int_equal(p->n_free, 1);
    assert_int_equal(p->free[0], 2);
    assert_int_equal(p->n_forks, 0);
    held = esp_decode_held(d, &n_held);
    assert_int_equal(n_held, 3); /* until it is known that the step has arrived, with what it frees */
    assert_int_equal(held[1], 3);
    assert_int_equal(held[2], 2);
    rows[1] = row(1, go, 1);
    assert_int_equal(esp_decode_take(d, rows, NULL, &done, NULL), ESP_OK);
    assert_true(done);
    esp_decode_destroy(&d);
}

/* A beam that takes over all places: its first child inherits, the others are forks, the rest is freed first.
 */
static void test_beams_move(void **state)
{
    uint64_t next_seq = 0;
    struct esp_decode *d = decoder(
        (struct esp_decode_params){.max_tokens = 9, .sampling = {.beams = 2, .ignore_eos = true}}, &next_seq);
    const uint32_t first[] = {20, 21, 22, 23}, good[] = {30, 31, 32, 33};
    struct esp_row_result rows[2];
    const struct esp_part *p = esp_decode_next(d);
    const uint64_t *held;
    uint32_t n_held;
    bool done;

    assert_true(p->wants[0].k >= 2 && p->wants[0].k <= 4);
    rows[0] = row(9, first, p->wants[0].k);
    assert_int_equal(esp_decode_take(d, rows, NULL, &done, NULL), ESP_OK);
    p = esp_decode_next(d);
    assert_int_equal(p->n_seqs, 2);
    assert_int_equal(p->ids[0], 20);
    assert_int_equal(p->ids[1], 21);
    rows[0] = row(0, good, p->wants[0].k);
    rows[1] = row(1, good, p->wants[1].k);
    rows[1].lse = 40; /* the second beam has become unlikely */
    assert_int_equal(esp_decode_take(d, rows, NULL, &done, NULL), ESP_OK);
    p = esp_decode_next(d);
    assert_int_equal(p->n_free, 1);
    assert_int_equal(p->free[0], 2);
    assert_int_equal(p->n_forks, 1);
    assert_int_equal(p->forks[0].from, 1);
    assert_int_equal(p->seqs[0].seq, 1);
    assert_int_equal(p->seqs[1].seq, 3);
    assert_int_equal(p->ids[0], 30);
    assert_int_equal(p->ids[1], 31);

    /* While that part is out it may get lost, and what it frees with it: then a Release names all three. */
    held = esp_decode_held(d, &n_held);
    assert_int_equal(n_held, 3);
    assert_int_equal(held[2], 2);
    rows[0] = row(0, good, p->wants[0].k);
    rows[1] = row(1, good, p->wants[1].k);
    assert_int_equal(esp_decode_take(d, rows, NULL, &done, NULL), ESP_OK);
    esp_decode_held(d, &n_held);
    assert_int_equal(n_held, 2);
    esp_decode_destroy(&d);
}

static void test_blocks(void **state)
{
    static const struct {
        uint32_t beams, max_tokens, block;
        uint64_t want;
    } cases[] = {{0, 1, 16, 1},    /* 10 rows */
                 {0, 7, 16, 1},    /* 16: the 7th token is not fed */
                 {0, 8, 16, 2},    /* 17 */
                 {4, 7, 16, 4},    /* no whole block to share */
                 {4, 7, 8, 1 + 4}, /* one shared, one each */
                 {4, 8, 8, 1 + 8}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t next_seq = 0;
        struct esp_decode *d = decoder((struct esp_decode_params){.max_tokens = cases[i].max_tokens,
                                                                  .sampling = {.beams = cases[i].beams}},
                                       &next_seq);

        assert_int_equal(esp_decode_max_blocks(d, cases[i].block), cases[i].want);
        esp_decode_destroy(&d);
    }
}

/* ---- flight ---- */

/* Two sessions in one step: rows, wants and images lie one after the other, and the rest can be told apart
 * again. */
static void test_flight_joins(void **state)
{
    uint64_t next_seq = 0;
    struct esp_decode *a = decoder((struct esp_decode_params){.max_tokens = 3, .n_images = 1}, &next_seq);
    struct esp_decode *b =
        decoder((struct esp_decode_params){.max_tokens = 3, .n_images = 2, .full_first = true}, &next_seq);
    struct esp_flight_load loads[2];
    struct esp_flight *f;
    const uint32_t ids[] = {20, 21, 22};
    struct esp_row_result rows[11];
    struct esp_msg_result result = {.n_rows = 11, .rows = rows, .n_full = 10, .vocab = VOCAB};
    float full[10 * VOCAB] = {0};
    struct esp_err err;

    esp_decode_set_image(a, 0, 5);
    esp_decode_set_image(b, 1, 6);
    loads[0] = (struct esp_flight_load){NULL, esp_decode_next(a)};
    loads[1] = (struct esp_flight_load){NULL, esp_decode_next(b)};
    assert_int_equal(esp_flight_create(&f, 3, 8, loads, 2, false, NULL), ESP_OK);
    assert_int_equal(f->step.rows, 20);
    assert_int_equal(f->step.n_seqs, 2);
    assert_int_equal(f->step.seqs[0].images[0], 5);
    assert_int_equal(f->step.seqs[1].images[1], 6);
    assert_int_equal(f->ids[10], 2);
    assert_int_equal(f->step.n_wants, 11);
    assert_int_equal(f->step.wants[0].row, 9);
    assert_int_equal(f->step.wants[1].row, 10);
    assert_int_equal(f->step.wants[10].row, 19);
    assert_int_equal(f->parts[1].row, 10);
    assert_int_equal(f->parts[1].want, 1);
    assert_int_equal(f->parts[1].full, 0);
    assert_int_equal(f->n_full, 10);
    for (uint32_t i = 0; i < 11; i++)
        rows[i] = row(f->step.wants[i].row, ids, f->step.wants[i].k);
    assert_int_equal(esp_flight_check(f, &result, full, VOCAB, &err), ESP_OK);
    full[3 * VOCAB + 1] = NAN;
    assert_int_equal(esp_flight_check(f, &result, full, VOCAB, &err), ESP_E_PROTO);
    assert_non_null(strstr(err.text, "full row 3: a logit that is not finite"));
    full[3 * VOCAB + 1] = 0;
    result.vocab = VOCAB - 1;
    assert_int_equal(esp_flight_check(f, &result, full, VOCAB, &err), ESP_E_PROTO);
    assert_non_null(strstr(err.text, "vocabulary of 49"));
    result.vocab = VOCAB;
    result.n_full = 9;
    assert_int_equal(esp_flight_check(f, &result, full, VOCAB, &err), ESP_E_PROTO);
    esp_flight_destroy(&f);
    esp_decode_destroy(&a);
    esp_decode_destroy(&b);
}

/* ---- features ---- */

static void test_features(void **state)
{
    static const uint8_t a[32] = {1}, b[32] = {2}, c[32] = {3};
    struct esp_features *f;
    struct esp_feature *x, *y, *z;
    uint64_t first;

    assert_int_equal(esp_features_create(&f, NULL), ESP_OK);
    esp_features_open(f, 2);
    assert_true(esp_features_fits(f, 2));
    assert_false(esp_features_fits(f, 3));
    esp_features_acquire(&x, f, a, true, NULL);
    esp_features_acquire(&y, f, a, true, NULL);
    assert_ptr_equal(x, y);
    esp_features_drop(f, &y);
    assert_null(y);
    esp_features_acquire(&y, f, a, false, NULL); /* alone, though the hash is known */
    assert_ptr_not_equal(x, y);
    assert_false(esp_features_fits(f, 1));
    first = x->image;
    x->state = y->state = ESP_FEATURE_STORED;
    esp_features_drop(f, &x);
    assert_true(esp_features_fits(f, 1));
    assert_int_equal(esp_features_evict(f), 0); /* nobody wants the place yet */
    esp_features_acquire(&z, f, b, true, NULL);
    assert_int_equal(esp_features_evict(f), first);
    assert_null(esp_features_find(f, first));
    first = y->image;
    esp_features_drop(f, &y);
    assert_int_equal(esp_features_evict(f), first); /* was not shared: no use to anyone */
    esp_features_drop(f, &z);                       /* never sent: forgotten without a word */
    assert_int_equal(esp_features_evict(f), 0);
    esp_features_acquire(&x, f, c, true, NULL);
    x->state = ESP_FEATURE_SENT;
    assert_int_equal(esp_features_n_sent(f), 1);
    first = x->image;
    esp_features_drop(f, &x);
    assert_int_equal(esp_features_evict(f), 0); /* on its way: it cannot be called back */
    esp_features_find(f, first)->state = ESP_FEATURE_LOST;
    esp_features_acquire(&y, f, c, true, NULL); /* a failure is not found again */
    assert_int_not_equal(y->image, first);
    assert_int_equal(esp_features_evict(f), first);
    esp_features_drop(f, &y);
    esp_features_destroy(&f);
}

/* ---- sched ---- */

/* A session that is prepared: text only. */
static struct esp_session *queued(struct esp_sched *sched, uint64_t id, uint32_t max_tokens, uint32_t beams)
{
    const struct esp_peer client = {.n = 1, .id = {1}};
    const struct esp_msg_request r = {.id = id, .max_tokens = max_tokens};
    struct esp_session *s, *out;

    assert_int_equal(esp_session_create(&s, id, &client, &r, 0, NULL), ESP_OK);
    s->decode = decoder((struct esp_decode_params){.max_tokens = max_tokens, .sampling = {.beams = beams}},
                        esp_sched_seqs(sched));
    s->job = calloc(1, sizeof *s->job);
    assert_non_null(s->job);
    s->state = ESP_SESSION_QUEUED;
    out = s;
    esp_sched_add(sched, &s);
    assert_null(s);
    return out;
}

/* Takes a Result for a flight of one session with candidates 20, 21, ... for every row; true: it is done. */
static bool land(struct esp_sched *sched, struct esp_flight *f)
{
    static const uint32_t ids[] = {20, 21, 22, 23, 24, 25, 26, 27, 28, 29};
    struct esp_session *s = f->parts[0].session;
    struct esp_row_result rows[16];
    bool done = false;

    for (uint32_t i = 0; i < f->step.n_wants; i++)
        rows[i] = row(f->step.wants[i].row, ids, f->step.wants[i].k);
    if (s->state == ESP_SESSION_RUNNING) {
        assert_int_equal(esp_decode_take(s->decode, rows, NULL, &done, NULL), ESP_OK);
        if (done)
            esp_sched_end(sched, s, NULL, 1);
    }
    esp_sched_land(sched, &f);
    return done;
}

static uint32_t reap(struct esp_sched *sched, uint64_t *seqs)
{
    uint64_t images[64];
    uint32_t n_seqs, n_images, n = 0;

    while (esp_sched_reap(sched, seqs + n, &n_seqs, images, &n_images, 64))
        n += n_seqs;
    return n;
}

static const struct esp_sched_room room = {.epoch = 4,
                                           .kv_blocks = 10,
                                           .block_tokens = 4,
                                           .max_rows = 100,
                                           .max_seqs = 8,
                                           .max_images = 4,
                                           .max_steps = 2,
                                           .max_encodes = 2};

/* First come, first served, even where a later one would fit; room comes back with the release. */
static void test_admission(void **state)
{
    struct esp_sched *sched;
    struct esp_session *a, *b, *c, *never;
    struct esp_flight *f;
    uint64_t seqs[64];

    assert_int_equal(esp_sched_create(&sched, NULL), ESP_OK);
    a = queued(sched, 1, 3, 0);             /* 12 tokens: 3 blocks */
    never = queued(sched, 2, 50, 0);        /* 59 tokens: 15 blocks */
    b = queued(sched, 3, 19, 0);            /* 28: 7 */
    c = queued(sched, 4, 2, 0);             /* 11: 3 */
    assert_null(esp_sched_admit(sched, 0)); /* no cluster yet */
    esp_sched_open(sched, &room);
    assert_ptr_equal(esp_sched_admit(sched, 0), a);
    assert_ptr_equal(esp_sched_admit(sched, 0), b);
    assert_int_equal(never->state, ESP_SESSION_ENDED);
    assert_int_equal(never->st, ESP_E_LIMIT);
    assert_non_null(strstr(never->err.text, "--kv-tokens"));
    assert_null(esp_sched_admit(sched, 0));
    assert_int_equal(esp_sched_ahead(sched, c), 0);
    for (int i = 0; i < 3; i++) { /* a takes its three turns; b's step stays out */
        f = esp_sched_next_step(sched, 0);
        assert_ptr_equal(f->parts[0].session, a);
        if (i == 0) {
            assert_ptr_equal(esp_sched_next_step(sched, 0)->parts[0].session, b);
            assert_null(esp_sched_next_step(sched, 0)); /* two out */
        }
        assert_int_equal(land(sched, f), i == 2);
    }
    assert_null(esp_sched_admit(sched, 0)); /* not before its sequence is released */
    assert_int_equal(reap(sched, seqs), 1);
    assert_int_equal(seqs[0], 1);
    assert_ptr_equal(esp_sched_admit(sched, 0), c);
    a->final_sent = never->client_gone = true;
    reap(sched, seqs);
    assert_ptr_equal(esp_sched_first(sched), b);
    assert_int_equal(esp_sched_n_live(sched), 2);
    esp_sched_destroy(&sched);
}

/* A cancelled session's step comes home first; only then are its sequences named, each once. */
static void test_end_with_step_out(void **state)
{
    struct esp_sched *sched;
    struct esp_session *s;
    struct esp_flight *f;
    struct esp_err why;
    uint64_t seqs[64];

    assert_int_equal(esp_sched_create(&sched, NULL), ESP_OK);
    esp_sched_open(sched, &room);
    s = queued(sched, 1, 5, 3);
    assert_ptr_equal(esp_sched_admit(sched, 0), s);
    land(sched, esp_sched_next_step(sched, 0));
    f = esp_sched_next_step(sched, 0);
    assert_int_equal(f->step.id, 2);
    assert_ptr_equal(esp_sched_flight(sched, 2), f);
    esp_fail(&why, ESP_E_CANCELLED, "cancelled");
    esp_sched_end(sched, s, &why, 0);
    s->client_gone = true;
    assert_int_equal(reap(sched, seqs), 0);
    assert_ptr_equal(esp_sched_first(sched), s);
    land(sched, f);
    assert_int_equal(reap(sched, seqs), 3);
    assert_null(esp_sched_first(sched));
    assert_int_equal(reap(sched, seqs), 0);
    esp_sched_destroy(&sched);
}

/* A lost placement ends what was admitted, keeps what waits, and begins its steps anew. */
static void test_close(void **state)
{
    struct esp_sched *sched;
    struct esp_session *a, *b;
    struct esp_sched_room next = room;
    struct esp_err why;
    struct esp_flight *f;
    uint64_t seqs[64];

    assert_int_equal(esp_sched_create(&sched, NULL), ESP_OK);
    esp_sched_open(sched, &room);
    a = queued(sched, 1, 20, 0);
    b = queued(sched, 2, 20, 0);
    assert_ptr_equal(esp_sched_admit(sched, 0), a);
    assert_null(esp_sched_admit(sched, 0));
    assert_non_null(esp_sched_next_step(sched, 0));
    esp_fail(&why, ESP_E_TIMEOUT, "worker w1: gone");
    esp_sched_close(sched, &why, 0);
    assert_int_equal(a->state, ESP_SESSION_ENDED);
    assert_string_equal(a->err.text, "worker w1: gone");
    assert_int_equal(b->state, ESP_SESSION_QUEUED);
    assert_int_equal(reap(sched, seqs), 0); /* nobody is left to forget it */
    next.epoch = 5;
    esp_sched_open(sched, &next);
    assert_ptr_equal(esp_sched_admit(sched, 0), b);
    f = esp_sched_next_step(sched, 0);
    assert_int_equal(f->step.epoch, 5);
    assert_int_equal(f->step.id, 1);
    esp_sched_destroy(&sched);
}

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
    struct esp_sched *sched;
    struct esp_flight *second;
    struct esp_err err;

    assert_int_equal(esp_sched_create(&sched, NULL), ESP_OK);
    esp_sched_open(sched, &room);
    queued(sched, 1, 3, 0);
    queued(sched, 2, 3, 0);
    assert_non_null(esp_sched_admit(sched, 0));
    assert_non_null(esp_sched_admit(sched, 0));
    assert_int_equal(esp_sched_watch(sched, true, 50, &patience, NULL), ESP_OK); /* nothing is out */
    assert_int_equal(esp_sched_next_step(sched, 60)->step.id, 1);
    second = esp_sched_next_step(sched, 60);
    for (size_t i = 0; i < sizeof looks / sizeof looks[0]; i++) {
        if (looks[i].late && second) {
            land(sched, second);
            second = NULL;
        }
        if (esp_sched_watch(sched, looks[i].idle, looks[i].now, &patience, &err) != looks[i].st)
            fail_msg("at %.1f s: not %s", looks[i].now, esp_status_name(looks[i].st));
    }
    assert_string_equal(err.text, "step 1 was lost between the workers");
    esp_sched_destroy(&sched);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_part),
        cmocka_unit_test(test_score_part),
        cmocka_unit_test(test_samples_fork),
        cmocka_unit_test(test_beams_move),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_flight_joins),
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_admission),
        cmocka_unit_test(test_end_with_step_out),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_lost_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
