/* Parts of steps, steps made of them, and the table of pictures, without a socket. */
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

/* ---- rebuilding ---- */

/* Everything that a decoder asked of the workers, as one who keeps their books would see it. */
static void take_best(struct esp_decode *d, uint32_t first, bool *done)
{
    uint32_t ids[16];
    struct esp_row_result rows[16];
    const struct esp_part *p = esp_decode_next(d);

    for (uint32_t i = 0; i < 16; i++)
        ids[i] = first + i;
    for (uint32_t i = 0; i < p->n_wants; i++)
        rows[i] = row(p->wants[i].row, ids, p->wants[i].k);
    assert_int_equal(esp_decode_take(d, rows, NULL, done, NULL), ESP_OK);
}

/* Three samples of four tokens each are brought back: the prompt once, then what each was fed, in pieces. */
static void test_rebuild_parts(void **state)
{
    uint64_t next_seq = 0;
    struct esp_decode *d = decoder(
        (struct esp_decode_params){
            .max_tokens = 9, .sampling = {.best_of = 3, .temperature = 1, .top_k = 1, .ignore_eos = true}},
        &next_seq);
    const struct esp_part *p;
    const uint64_t *held;
    uint32_t n_held, n_back, n_all;
    bool done;

    for (uint32_t i = 0; i < 4; i++) { /* chosen: 20, 21, 22, 23; fed: all but the last */
        take_best(d, 20 + i, &done);
        assert_false(done);
    }
    assert_int_equal(esp_decode_n_chosen(d), 12);
    esp_decode_next(d); /* on its way, and lost */
    assert_int_equal(esp_decode_rebuild(d, 6, NULL), ESP_OK);
    esp_decode_held(d, &n_held);
    assert_int_equal(n_held, 0); /* nobody has anything of it */
    for (int again = 0; again < 3;
         again++) { /* the last time it comes through; before, it is lost at two places */
        const uint64_t seq = 3 + 3 * (uint64_t)again + 1;

        assert_true(esp_decode_at_start(d));
        assert_int_equal(esp_decode_next_rows(d), 10);
        p = esp_decode_next(d);
        assert_int_equal(p->n_rows, 10);
        assert_int_equal(p->n_seqs, 1);
        assert_int_equal(p->n_wants, 0);
        assert_int_equal(p->n_free + p->n_forks, 0);
        assert_int_equal(p->seqs[0].seq, seq);
        assert_int_equal(p->seqs[0].pos, 0);
        if (again == 0)
            goto lost;
        assert_int_equal(esp_decode_take(d, NULL, NULL, &done, NULL), ESP_OK);
        assert_false(done || esp_decode_at_start(d));
        assert_true(esp_decode_rebuilding(d, &n_back, &n_all));
        assert_int_equal(n_back, 10);
        assert_int_equal(n_all, 13);
        assert_int_equal(esp_decode_next_rows(d), 6); /* two tokens of each */
        p = esp_decode_next(d);
        assert_int_equal(p->n_rows, 6);
        assert_int_equal(p->n_wants, 0);
        assert_int_equal(p->n_forks, 2);
        for (uint32_t i = 0; i < 3; i++) {
            assert_int_equal(p->seqs[i].seq, seq + i);
            assert_int_equal(p->seqs[i].pos, 10);
            assert_int_equal(p->seqs[i].n_tok, 2);
            assert_int_equal(p->seqs[i].n_prefix, 10);
            assert_int_equal(p->ids[2 * i], 20);
            assert_int_equal(p->ids[2 * i + 1], 21);
            if (i > 0) {
                assert_int_equal(p->forks[i - 1].seq, seq + i);
                assert_int_equal(p->forks[i - 1].from, seq);
            }
        }
        held = esp_decode_held(d, &n_held);
        assert_int_equal(n_held, 3);
        assert_int_equal(held[2], seq + 2);
        if (again == 1)
            goto lost;
        assert_int_equal(esp_decode_take(d, NULL, NULL, &done, NULL), ESP_OK);
        p = esp_decode_next(d);
        assert_int_equal(p->n_rows, 3); /* what was left of it */
        assert_int_equal(p->n_forks, 0);
        assert_int_equal(p->ids[2], 22);
        assert_int_equal(p->seqs[2].pos, 12);
        assert_int_equal(esp_decode_take(d, NULL, NULL, &done, NULL), ESP_OK);
        assert_false(esp_decode_rebuilding(d, &n_back, &n_all));
        break;
    lost:
        assert_int_equal(esp_decode_rebuild(d, 6, NULL), ESP_OK);
    }
    p = esp_decode_next(d); /* and it goes on where it was */
    assert_int_equal(p->n_rows, 3);
    assert_int_equal(p->n_wants, 3);
    assert_int_equal(p->ids[1], 23);
    assert_int_equal(p->seqs[1].pos, 13);
    assert_int_equal(esp_decode_n_steps(d), 4);
    esp_decode_destroy(&d);
}

/* Lost right after its first result: the forks wait for the step that is next anyway. Lost before: it begins anew. */
static void test_rebuild_early(void **state)
{
    uint64_t next_seq = 0;
    struct esp_decode *d = decoder(
        (struct esp_decode_params){.max_tokens = 9, .sampling = {.beams = 2, .ignore_eos = true}}, &next_seq);
    const struct esp_part *p;
    bool done;

    esp_decode_next(d);
    assert_int_equal(esp_decode_rebuild(d, 100, NULL), ESP_OK);
    p = esp_decode_next(d);
    assert_int_equal(p->n_rows, 10);
    assert_int_equal(p->n_wants, 1);
    assert_int_equal(p->seqs[0].seq, 2);
    take_best(d, 20, &done);
    assert_int_equal(esp_decode_rebuild(d, 1, NULL), ESP_OK);
    p = esp_decode_next(d);
    assert_int_equal(p->n_rows, 10);
    assert_int_equal(p->n_wants, 0);
    assert_int_equal(esp_decode_take(d, NULL, NULL, &done, NULL), ESP_OK);
    p = esp_decode_next(d);
    assert_int_equal(p->n_seqs, 2);
    assert_int_equal(p->n_wants, 2);
    assert_int_equal(p->n_forks, 1);
    assert_int_equal(p->forks[0].from, p->seqs[0].seq);
    assert_int_equal(p->forks[0].seq, p->seqs[1].seq);
    assert_int_equal(p->ids[0], 20);
    assert_int_equal(p->ids[1], 21);
    esp_decode_destroy(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_part),    cmocka_unit_test(test_score_part),
        cmocka_unit_test(test_samples_fork),  cmocka_unit_test(test_beams_move),
        cmocka_unit_test(test_blocks),        cmocka_unit_test(test_flight_joins),
        cmocka_unit_test(test_features),      cmocka_unit_test(test_rebuild_parts),
        cmocka_unit_test(test_rebuild_early),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
