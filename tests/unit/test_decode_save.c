/* A decoder's records: who is given them goes on as if nothing had been, whatever the request and whenever; and what is
 * damaged is told, or harmless. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/decode_world.h"

#define MAX_STEPS  64
#define MAX_RECORD 65536

/* Records, one behind the other, and where each ends. */
struct records {
    uint8_t at[MAX_RECORD];
    size_t n, end[MAX_STEPS + 1];
    uint32_t n_records;
    struct esp_decode_mark mark;
};

static void save(struct records *r, const struct esp_decode *d)
{
    uint8_t *record;
    size_t n;

    assert_int_equal(esp_decode_save(d, &r->mark, &record, &n, NULL), ESP_OK);
    if (!record)
        return;
    assert_true(r->n + n <= sizeof r->at && r->n_records < MAX_STEPS);
    memcpy(r->at + r->n, record, n);
    r->n += n;
    r->end[++r->n_records] = r->n;
    free(record);
}

/* Runs to the end, saving after every `every` steps (0: never). */
static void run(struct world *w, struct esp_decode *d, struct records *r, uint32_t every)
{
    bool done = false;
    struct esp_err err;

    for (uint32_t i = 1; !done; i++) {
        if (world_step(w, d, &done, &err))
            fail_msg("%s", err.text);
        if (every && (i % every == 0 || done))
            save(r, d);
    }
    assert_true(esp_decode_done(d));
}

static void same_answers(const struct esp_decode *a, const struct esp_decode *b)
{
    struct esp_decode_hyp x, y;
    uint32_t n = 0;

    for (; esp_decode_hyp(a, n, &x); n++) {
        assert_true(esp_decode_hyp(b, n, &y));
        assert_int_equal(x.n_ids, y.n_ids);
        assert_int_equal(x.n_logprobs, y.n_logprobs);
        assert_int_equal(x.eos, y.eos);
        assert_memory_equal(x.ids, y.ids, x.n_ids * sizeof *x.ids);
        assert_memory_equal(x.logprobs, y.logprobs, x.n_logprobs * sizeof *x.logprobs); /* to the bit */
        assert_memory_equal(&x.sum, &y.sum, sizeof x.sum);
        assert_memory_equal(&x.score, &y.score, sizeof x.score);
    }
    assert_true(n > 0);
    assert_false(esp_decode_hyp(b, n, &y));
}

static void test_every_step(void **state)
{
    static struct records r, again;

    for (size_t c = 0; c < n_world_cases; c++) {
        struct world w = {0};
        struct esp_decode *whole = world_decoder(&w, &world_cases[c]);

        memset(&r, 0, sizeof r);
        run(&w, whole, &r, 1);
        print_message("%s: %u steps, %zu bytes\n", world_cases[c].name, r.n_records, r.n);
        for (uint32_t k = 0; k <= r.n_records; k++) {
            struct world other = {.next_seq = 1000}; /* workers that hold nothing */
            struct esp_decode *d = world_decoder(&other, &world_cases[c]);
            struct esp_err err;

            memset(&again, 0, sizeof again);
            memcpy(again.at, r.at, r.end[k]);
            again.n = r.end[k];
            if (esp_decode_load(d, again.at, again.n, &again.mark, &err))
                fail_msg("after step %u: %s", k, err.text);
            assert_int_equal(esp_decode_n_steps(d), k);
            assert_int_equal(esp_decode_done(d), k == r.n_records);
            save(&again, d); /* there is nothing to save yet */
            assert_int_equal(again.n, r.end[k]);
            if (k < r.n_records) {
                assert_int_equal(esp_decode_rebuild(d, 6, NULL), ESP_OK);
                run(&other, d, &again, 1);
            }
            same_answers(whole, d);
            assert_int_equal(again.n, r.n); /* and leaves the same records */
            assert_memory_equal(again.at, r.at, r.n);
            esp_decode_destroy(&d);
        }
        esp_decode_destroy(&whole);
    }
}

/* Records of several steps, and a second restart. */
static void test_few_records(void **state)
{
    static struct records r;

    for (size_t c = 0; c < n_world_cases; c++) {
        struct world w = {0}, second = {.next_seq = 1000}, third = {.next_seq = 2000};
        struct esp_decode *whole = world_decoder(&w, &world_cases[c]);
        struct esp_decode *d = world_decoder(&second, &world_cases[c]);
        bool done = false;

        memset(&r, 0, sizeof r);
        run(&w, whole, NULL, 0);
        for (int i = 0; i < 3 && !done; i++)
            assert_int_equal(world_step(&second, d, &done, NULL), ESP_OK);
        save(&r, d);
        if (!done) { /* goes on a little, is killed, and goes on again */
            esp_decode_destroy(&d);
            memset(&second, 0, sizeof second);
            d = world_decoder(&second, &world_cases[c]);
            assert_int_equal(esp_decode_load(d, r.at, r.n, &r.mark, NULL), ESP_OK);
            assert_int_equal(esp_decode_rebuild(d, 100, NULL), ESP_OK);
            while (!done && esp_decode_n_steps(d) < 6)
                assert_int_equal(world_step(&second, d, &done, NULL), ESP_OK);
            save(&r, d);
        }
        esp_decode_destroy(&d);
        d = world_decoder(&third, &world_cases[c]);
        assert_int_equal(esp_decode_load(d, r.at, r.n, &r.mark, NULL), ESP_OK);
        if (!done) {
            assert_int_equal(esp_decode_rebuild(d, 1, NULL), ESP_OK);
            run(&third, d, NULL, 0);
        }
        same_answers(whole, d);
        esp_decode_destroy(&d);
        esp_decode_destroy(&whole);
    }
}

/* ---- damage ---- */

/* Loads it, and if that was possible goes on: nothing that happens may be worse than an error. True if it loaded. */
static bool try(const struct world_case *c, const uint8_t *records, size_t n)
{
    struct world w = {0};
    struct esp_decode *d = world_decoder(&w, c);
    struct esp_decode_mark mark;
    struct esp_err err = {0};
    uint8_t *exact = malloc(n ? n : 1); /* so that a sanitizer sees what reads past it */
    esp_status st;
    bool loaded;

    assert_true(d && exact);
    memcpy(exact, records, n);
    st = esp_decode_load(d, exact, n, &mark, &err);
    loaded = st == ESP_OK;
    if (st) {
        assert_int_equal(st, ESP_E_FORMAT);
        assert_true(err.text[0]);
    } else if (!esp_decode_done(d)) {
        bool done = false;

        assert_int_equal(esp_decode_rebuild(d, 8, NULL), ESP_OK);
        for (int i = 0; i < MAX_STEPS && !done; i++)
            if (world_step(&w, d, &done, &err))
                break;
        assert_null(w.wrong);
    }
    free(exact);
    esp_decode_destroy(&d);
    return loaded;
}

static void test_damaged(void **state)
{
    static struct records r;
    static uint8_t bad[MAX_RECORD];
    static const uint8_t flips[] = {0x01, 0x80, 0xff};

    for (size_t c = 0; c < n_world_cases; c++) {
        struct world w = {0};
        struct esp_decode *d = world_decoder(&w, &world_cases[c]);
        uint32_t n_loaded = 0, n_cut = 0;

        memset(&r, 0, sizeof r);
        run(&w, d, &r, 1);
        esp_decode_destroy(&d);
        for (size_t i = 0; i < r.n; i++) {
            memcpy(bad, r.at, r.n);
            for (size_t f = 0; f < sizeof flips; f++) {
                bad[i] = r.at[i] ^ flips[f];
                n_loaded += try(&world_cases[c], bad, r.n);
            }
        }
        for (size_t n = 1; n < r.n; n++)
            n_cut += try(&world_cases[c], r.at, n);
        assert_int_equal(n_cut, r.n_records - 1); /* whole records only */
        print_message("%s: %u of %zu flips are taken for something else\n", world_cases[c].name, n_loaded,
                      3 * r.n);
        memcpy(bad, r.at, r.n);
        memcpy(bad + r.n, r.at, r.n);
        assert_false(try(&world_cases[c], bad, 2 * r.n)); /* twice the same */
        if (r.n_records > 1) {
            assert_false(try(&world_cases[c], r.at + r.end[1], r.n - r.end[1])); /* not from the beginning */
            memcpy(bad, r.at, r.end[1]);
            memcpy(bad + r.end[1], r.at + r.end[1] + (r.end[2] - r.end[1]), r.n - r.end[2]);
            if (r.n_records > 2)
                assert_false(try(&world_cases[c], bad, r.n - (r.end[2] - r.end[1]))); /* one is missing */
        }
        for (size_t other = 0; other < n_world_cases; other++) /* another request's: an error, or no harm */
            try(&world_cases[other], r.at, r.n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_step),
        cmocka_unit_test(test_few_records),
        cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
