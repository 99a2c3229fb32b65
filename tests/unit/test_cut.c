/* The search for counts of layers: optimal against brute force, valid on random fleets, quick on large ones.
 */
#include "coordinator/cut.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { MAXW = 64 };

static uint32_t rng;

static uint32_t rnd(uint32_t n)
{
    rng = rng * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)rng * n) >> 32);
}

static void make(struct esp_cut_problem *p, struct esp_cut_worker *w, uint32_t n_worker, uint32_t n_enc,
                 uint32_t n_dec, bool alike)
{
    *p = (struct esp_cut_problem){.n_worker = n_worker,
                                  .n_enc = n_enc,
                                  .n_dec = n_dec,
                                  .worker = w,
                                  .enc_bytes = 5 + rnd(20),
                                  .dec_bytes = 5 + rnd(40),
                                  .role_bytes = {rnd(5), rnd(5), 0, rnd(3)},
                                  .table_bytes = rnd(80),
                                  .enc_stage_bytes = rnd(10),
                                  .dec_stage_bytes = rnd(10)};
    uint64_t all = n_enc * p->enc_bytes + n_dec * p->dec_bytes + p->table_bytes + 33;
    for (uint32_t i = 0; i < n_worker; i++) {
        double speed = 1.0 + rnd(8);
        if (alike && i) {
            w[i] = w[0];
            continue;
        }
        w[i] =
            (struct esp_cut_worker){.memory_bytes = rnd(4) ? all : all / 2 + rnd((uint32_t)all / 2),
                                    .no_enc = !alike && rnd(12) == 0,
                                    .no_table = !alike && rnd(12) == 0,
                                    .enc_seconds = (0.2 + 0.1 * rnd(5)) / speed,
                                    .dec_seconds = (0.5 + 0.25 * rnd(4)) / speed,
                                    .role_seconds = {0.05 / speed, 0.1 / speed, 0.001 / speed, 1.7 / speed}};
        if (rnd(3) == 0)
            w[i].memory_bytes /= 2;
    }
}

/* ---- brute force: every order of both towers, every place to cut ---- */

struct brute {
    const struct esp_cut_problem *p;
    struct esp_cut cut[4];
    uint32_t order[4];
    double best;
};

static void brute_eval(struct brute *b)
{
    double most = 0;
    for (uint32_t w = 0; w < b->p->n_worker; w++) { /* written out again, apart from what is tested */
        const struct esp_cut_worker *v = &b->p->worker[w];
        const struct esp_cut *c = &b->cut[w];
        double load = c->n_enc * v->enc_seconds + c->n_dec * v->dec_seconds;
        uint64_t bytes = c->n_enc * b->p->enc_bytes + c->n_dec * b->p->dec_bytes;
        for (uint32_t r = 0; r < 4; r++)
            if (c->roles & 1u << r) {
                load += v->role_seconds[r];
                bytes += b->p->role_bytes[r];
            }
        if (c->roles & 12)
            bytes += b->p->table_bytes;
        if (c->n_enc)
            bytes += b->p->enc_stage_bytes;
        if (c->n_dec)
            bytes += b->p->dec_stage_bytes;
        if (bytes > v->memory_bytes || (c->n_enc && v->no_enc) || (c->n_dec && v->no_dec) ||
            (c->roles & 12 && v->no_table))
            return;
        most = fmax(most, load);
    }
    if (b->best < 0 || most < b->best)
        b->best = most;
}

static void brute_tower(struct brute *b, bool dec, uint32_t at, uint32_t left);

/* Workers order[at..] in any order; the stage at `at` gets n layers. */
static void brute_tower(struct brute *b, bool dec, uint32_t at, uint32_t left)
{
    uint32_t n_worker = b->p->n_worker, total = dec ? b->p->n_dec : b->p->n_enc;

    if (left == 0) {
        if (dec) {
            brute_eval(b);
        } else {
            uint32_t keep[4];
            memcpy(keep, b->order, sizeof keep);
            brute_tower(b, true, 0, b->p->n_dec);
            memcpy(b->order, keep, sizeof keep);
        }
        return;
    }
    for (uint32_t k = at; k < n_worker; k++) {
        uint32_t w = b->order[k];
        b->order[k] = b->order[at];
        b->order[at] = w;
        for (uint32_t n = 1; n <= left; n++) {
            struct esp_cut keep = b->cut[w];
            *(dec ? &b->cut[w].n_dec : &b->cut[w].n_enc) = n;
            if (left == total)
                b->cut[w].roles |= dec ? ESP_ROLE_EMBED : ESP_ROLE_PATCH;
            if (left == n)
                b->cut[w].roles |= dec ? ESP_ROLE_HEAD : ESP_ROLE_PROJECTOR;
            brute_tower(b, dec, at + 1, left - n);
            b->cut[w] = keep;
        }
        b->order[at] = b->order[k];
        b->order[k] = w;
    }
}

static void check_valid(const struct esp_cut_problem *p, const struct esp_cut *cut)
{
    uint32_t enc = 0, dec = 0, roles = 0;

    for (uint32_t w = 0; w < p->n_worker; w++) {
        enc += cut[w].n_enc;
        dec += cut[w].n_dec;
        assert_int_equal(roles & cut[w].roles, 0);
        roles |= cut[w].roles;
        assert_true(esp_cut_fits(p, w, &cut[w]));
        if (cut[w].roles & 3)
            assert_true((cut[w].roles & 3) == 3 ? cut[w].n_enc == p->n_enc : cut[w].n_enc > 0);
        if (cut[w].roles & 12)
            assert_true((cut[w].roles & 12) == 12 ? cut[w].n_dec == p->n_dec : cut[w].n_dec > 0);
    }
    assert_int_equal(enc, p->n_enc);
    assert_int_equal(dec, p->n_dec);
    assert_int_equal(roles, 15);
}

static double largest(const struct esp_cut_problem *p, const struct esp_cut *cut)
{
    double most = 0;
    for (uint32_t w = 0; w < p->n_worker; w++)
        most = fmax(most, esp_cut_load(p, w, &cut[w]));
    return most;
}

static void test_optimal(void **state)
{
    uint32_t n_fit = 0, n_not = 0;

    for (uint32_t c = 0; c < 1500; c++) {
        struct esp_cut_problem p;
        struct esp_cut_worker w[4];
        struct esp_cut cut[4];
        struct brute b = {.best = -1, .order = {0, 1, 2, 3}};
        double best;
        bool fits;
        rng = c * 7919 + 1;
        make(&p, w, 1 + c % 3, 1 + rnd(4), 1 + rnd(4), c % 5 == 0);
        p.slack = c % 2 ? 0.05 : 0.0;
        b.p = &p;
        brute_tower(&b, false, 0, p.n_enc);
        assert_int_equal(esp_cut_search(cut, &fits, &best, &p, NULL), ESP_OK);
        assert_true(fits == (b.best >= 0));
        n_fit += fits;
        n_not += !fits;
        if (!fits)
            continue;
        check_valid(&p, cut);
        if (fabs(best - b.best) > 1e-8 * b.best)
            fail_msg("case %u: %.9f, brute force %.9f", c, best, b.best);
        assert_true(largest(&p, cut) <= best * (1 + p.slack) * (1 + 1e-9));
    }
    assert_true(n_fit > 300 && n_not > 100); /* or the cases prove little */
}

static void test_random_fleets(void **state)
{
    struct esp_cut_problem p;
    struct esp_cut_worker w[MAXW];
    struct esp_cut a[MAXW], b[MAXW];
    uint32_t n_fit = 0;

    for (uint32_t c = 0; c < 120; c++) {
        bool fits;
        double best;
        rng = c + 1000;
        make(&p, w, 1 + rnd(12), 1 + rnd(30), 1 + rnd(30), c % 4 == 0);
        p.slack = 0.05;
        assert_int_equal(esp_cut_search(a, &fits, &best, &p, NULL), ESP_OK);
        if (!fits)
            continue;
        n_fit++;
        check_valid(&p, a);
        assert_true(largest(&p, a) <= best * 1.05 * (1 + 1e-9));
        assert_int_equal(esp_cut_search(b, &fits, NULL, &p, NULL), ESP_OK);
        assert_memory_equal(a, b, p.n_worker * sizeof *a);
    }
    assert_true(n_fit > 60);
}

/* Equal workers with room: nobody idles as long as there is a layer for everybody. */
static void test_equal_workers_all_work(void **state)
{
    struct esp_cut_problem p;
    struct esp_cut_worker w[MAXW];
    struct esp_cut cut[MAXW];

    for (uint32_t c = 0; c < 400; c++) {
        bool fits;
        uint32_t n_busy = 0;
        rng = c;
        make(&p, w, 1 + c % 9, 1 + rnd(8), 1 + rnd(8), true);
        for (uint32_t i = 0; i < p.n_worker; i++)
            w[i].memory_bytes = 1u << 30;
        p.slack = 0.05;
        assert_int_equal(esp_cut_search(cut, &fits, NULL, &p, NULL), ESP_OK);
        check_valid(&p, cut);
        for (uint32_t i = 0; i < p.n_worker; i++)
            n_busy += cut[i].n_enc || cut[i].n_dec;
        if (n_busy != (p.n_worker < p.n_enc + p.n_dec ? p.n_worker : p.n_enc + p.n_dec))
            fail_msg("case %u: %u of %u workers busy with %u + %u layers", c, n_busy, p.n_worker, p.n_enc,
                     p.n_dec);
    }
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_large_is_quick(void **state)
{
    struct esp_cut_problem p;
    struct esp_cut_worker w[MAXW];
    struct esp_cut cut[MAXW];

    for (uint32_t c = 0; c < 4; c++) {
        bool fits;
        double t = now_s();
        rng = c + 5;
        make(&p, w, 64, 64, 64, c % 2);
        p.slack = 0.05;
        assert_int_equal(esp_cut_search(cut, &fits, NULL, &p, NULL), ESP_OK);
        t = now_s() - t;
        if (fits)
            check_valid(&p, cut);
        print_message("64 workers, 64 + 64 layers: %.1f ms\n", 1e3 * t);
        assert_true(t < 5.0); /* tens of milliseconds when optimised; the limit is for sanitizers */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimal),
        cmocka_unit_test(test_random_fleets),
        cmocka_unit_test(test_equal_workers_all_work),
        cmocka_unit_test(test_large_is_quick),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
