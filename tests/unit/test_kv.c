/* The paged cache's bookkeeping: scripted cases, and thousands of random operations against a model that
 * stores every sequence's tokens in a plain array. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/kv.h"

#define B 8 /* block_tokens */

static struct esp_kv *make(uint32_t n_blocks, uint32_t max_seqs, uint32_t max_blocks)
{
    struct esp_kv *kv = NULL;
    struct esp_err err;

    assert_int_equal(esp_kv_create(&kv, n_blocks, B, max_seqs, max_blocks, &err), ESP_OK);
    return kv;
}

/** Plans and commits one append; the number of copies asked for. */
static uint32_t grow(struct esp_kv *kv, uint64_t seq, uint32_t n_tok)
{
    const struct esp_kv_copy *copies;
    uint32_t n_copies;
    struct esp_err err;

    assert_int_equal(esp_kv_plan(kv, &(struct esp_kv_append){seq, n_tok}, 1, &copies, &n_copies, &err),
                     ESP_OK);
    esp_kv_commit(kv);
    return n_copies;
}

static void expect_plan(struct esp_kv *kv, const struct esp_kv_append *appends, uint32_t n, esp_status code,
                        const char *fragment)
{
    const struct esp_kv_copy *copies;
    uint32_t n_copies, used = esp_kv_used_blocks(kv), n_seqs = esp_kv_n_seqs(kv);
    struct esp_err err;

    assert_int_equal(esp_kv_plan(kv, appends, n, &copies, &n_copies, &err), code);
    assert_int_equal(n_copies, 0);
    if (!strstr(err.text, fragment))
        fail_msg("\"%s\" lacks \"%s\"", err.text, fragment);
    assert_int_equal(esp_kv_used_blocks(kv), used);
    assert_int_equal(esp_kv_n_seqs(kv), n_seqs);
}

static void test_create_refuses(void **state)
{
    static const struct {
        uint32_t n_blocks, block_tokens, max_seqs, max_blocks;
    } bad[] = {
        {0, 32, 1, 1}, {1, 0, 1, 1},          {1, 12, 1, 1},          {1, 32, 0, 1},
        {1, 32, 1, 0}, {UINT32_MAX, 8, 1, 1}, {1, 32, UINT32_MAX, 1}, {1, 32, 1, UINT32_MAX / 16},
    };
    struct esp_kv *kv;
    struct esp_err err;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        err.text[0] = '\0';
        assert_int_equal(esp_kv_create(&kv, bad[i].n_blocks, bad[i].block_tokens, bad[i].max_seqs,
                                       bad[i].max_blocks, &err),
                         ESP_E_ARG);
        assert_null(kv);
        assert_non_null(strstr(err.text, "KV cache: "));
    }
    esp_kv_destroy(&kv);
}

static void test_grow_and_free(void **state)
{
    struct esp_kv *kv = make(4, 3, 4);
    uint32_t n;
    struct esp_err err;

    assert_false(esp_kv_exists(kv, 5));
    assert_null(esp_kv_blocks(kv, 5, &n));
    assert_int_equal(n, 0);
    assert_int_equal(esp_kv_begin(kv, 5, &err), ESP_OK);
    assert_int_equal(esp_kv_begin(kv, 5, &err), ESP_E_PROTO);
    assert_true(esp_kv_exists(kv, 5));
    assert_int_equal(esp_kv_used_blocks(kv), 0);
    grow(kv, 5, B);
    assert_int_equal(esp_kv_used_blocks(kv), 1);
    grow(kv, 5, 1);
    assert_int_equal(esp_kv_used_blocks(kv), 2);
    grow(kv, 5, B - 1);
    assert_int_equal(esp_kv_used_blocks(kv), 2);
    assert_int_equal(esp_kv_len(kv, 5), 2 * B);
    assert_non_null(esp_kv_blocks(kv, 5, &n));
    assert_int_equal(n, 2);
    grow(kv, 6, 2 * B); /* begins by itself */
    assert_int_equal(esp_kv_free_blocks(kv), 0);
    esp_kv_free(kv, 5);
    esp_kv_free(kv, 5);
    esp_kv_free(kv, 99);
    assert_int_equal(esp_kv_used_blocks(kv), 2);
    assert_int_equal(esp_kv_n_seqs(kv), 1);
    assert_int_equal(esp_kv_n_blocks(kv), 4);
    assert_int_equal(esp_kv_block_tokens(kv), B);
    esp_kv_destroy(&kv);
}

static void test_refusals(void **state)
{
    struct esp_kv *kv = make(4, 2, 3);
    struct esp_err err;
    static const struct {
        struct esp_kv_append appends[3];
        uint32_t n;
        esp_status code;
        const char *fragment;
    } cases[] = {
        {{{1, 0}}, 1, ESP_E_PROTO, "no rows for sequence 1"},
        {{{2, 0}}, 1, ESP_E_PROTO, "no rows for sequence 2"},
        {{{1, 1}, {1, 1}}, 2, ESP_E_PROTO, "sequence 1 twice"},
        {{{2, 1}, {2, 1}}, 2, ESP_E_PROTO, "sequence 2 twice"},
        {{{1, 1}, {2, 1}, {3, 1}}, 3, ESP_E_LIMIT, "3 sequences in a step, takes 2"},
        {{{2, 1}, {3, 1}}, 2, ESP_E_LIMIT, "2 sequences live, takes no more"},
        {{{1, 3 * B - 2}}, 1, ESP_E_LIMIT, "of 3 tokens takes no 22 more, limit 24"},
        {{{1, UINT32_MAX}}, 1, ESP_E_LIMIT, "limit 24"},
        {{{2, 3 * B}, {1, 2 * B}}, 2, ESP_E_LIMIT, "needs 5 blocks, 3 of 4 free"},
    };

    grow(kv, 1, 3);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        expect_plan(kv, cases[i].appends, cases[i].n, cases[i].code, cases[i].fragment);
        assert_int_equal(esp_kv_len(kv, 1), 3);
        assert_false(esp_kv_exists(kv, 2));
    }
    assert_int_equal(esp_kv_fork(kv, 2, 9, &err), ESP_E_PROTO);
    assert_string_equal(err.text, "KV cache: fork of 9, an unknown sequence");
    assert_int_equal(esp_kv_fork(kv, 1, 1, &err), ESP_E_PROTO);
    assert_int_equal(esp_kv_fork(kv, 2, 1, &err), ESP_OK);
    assert_int_equal(esp_kv_fork(kv, 2, 1, &err), ESP_E_PROTO);
    assert_int_equal(esp_kv_fork(kv, 3, 1, &err), ESP_E_LIMIT);
    assert_int_equal(esp_kv_begin(kv, 3, &err), ESP_E_LIMIT);
    esp_kv_destroy(&kv);
}

static void test_copy_on_write(void **state)
{
    struct esp_kv *kv = make(6, 4, 3);
    const struct esp_kv_append both[] = {{1, 1}, {2, 1}};
    const struct esp_kv_copy *copies;
    uint32_t n_copies, n, b1, b2;
    struct esp_err err;

    /* A full last block is shared for good: growing takes a fresh one and copies nothing. */
    grow(kv, 1, B);
    assert_int_equal(esp_kv_fork(kv, 2, 1, &err), ESP_OK);
    assert_int_equal(esp_kv_used_blocks(kv), 1);
    assert_int_equal(grow(kv, 2, 1), 0);
    assert_int_equal(esp_kv_blocks(kv, 1, &n)[0], esp_kv_blocks(kv, 2, &n)[0]);
    esp_kv_free(kv, 2);

    /* Of two owners of a partly filled block the first to grow copies it, the last keeps it. */
    grow(kv, 1, 3);
    b1 = esp_kv_blocks(kv, 1, &n)[1];
    assert_int_equal(esp_kv_fork(kv, 2, 1, &err), ESP_OK);
    assert_int_equal(esp_kv_plan(kv, both, 2, &copies, &n_copies, &err), ESP_OK);
    assert_int_equal(n_copies, 1);
    assert_int_equal(copies[0].from, b1);
    assert_int_equal(copies[0].to, esp_kv_blocks(kv, 1, &n)[1]);
    assert_int_equal(esp_kv_blocks(kv, 2, &n)[1], b1);

    /* Rolled back, both own the old block again, and the plan can be made anew. */
    esp_kv_rollback(kv);
    assert_int_equal(esp_kv_blocks(kv, 1, &n)[1], b1);
    assert_int_equal(esp_kv_blocks(kv, 2, &n)[1], b1);
    assert_int_equal(esp_kv_used_blocks(kv), 2);
    assert_int_equal(esp_kv_plan(kv, both, 2, &copies, &n_copies, &err), ESP_OK);
    assert_int_equal(n_copies, 1);
    esp_kv_commit(kv);
    b2 = esp_kv_blocks(kv, 1, &n)[1];
    assert_int_not_equal(b1, b2);
    assert_int_equal(esp_kv_used_blocks(kv), 3);

    /* An owner that is alone again writes in place. */
    assert_int_equal(esp_kv_fork(kv, 3, 1, &err), ESP_OK);
    esp_kv_free(kv, 1);
    assert_int_equal(grow(kv, 3, 1), 0);
    assert_int_equal(esp_kv_blocks(kv, 3, &n)[1], b2);
    esp_kv_free(kv, 2);
    esp_kv_free(kv, 3);
    assert_int_equal(esp_kv_used_blocks(kv), 0);
    assert_int_equal(esp_kv_n_seqs(kv), 0);
    esp_kv_destroy(&kv);
}

/* Ids that fall into one bucket or neighbouring ones: removal from the middle of a probe must lose nobody. */
static void test_hash_removal(void **state)
{
    enum { N = 512 };
    struct esp_kv *kv = make(1, N, 1);
    struct esp_err err;

    for (uint64_t round = 0; round < 4; round++) {
        for (uint64_t i = 0; i < N; i++)
            assert_int_equal(esp_kv_begin(kv, 1 + (i << (16 * round)), &err), ESP_OK);
        assert_int_equal(esp_kv_begin(kv, UINT64_MAX, &err), ESP_E_LIMIT);
        for (uint64_t i = 0; i < N; i += 3)
            esp_kv_free(kv, 1 + (i << (16 * round)));
        for (uint64_t i = 0; i < N; i++)
            assert_int_equal(esp_kv_exists(kv, 1 + (i << (16 * round))), i % 3 != 0);
        for (uint64_t i = 0; i < N; i++)
            esp_kv_free(kv, 1 + (i << (16 * round)));
        assert_int_equal(esp_kv_n_seqs(kv), 0);
    }
    esp_kv_destroy(&kv);
}

/* ---- against the model ---- */

enum { BLOCKS = 24, SEQS = 10, MAX_BLOCKS = 6, IDS = 14, OPS = 20000 };

struct model {
    bool live[IDS];
    uint32_t n[IDS];
    uint32_t token[IDS][MAX_BLOCKS * B];
    uint32_t device[BLOCKS * B]; /* what a device would hold */
    uint32_t next;               /* token values, never repeated */
};

static uint64_t rng = 7;

static uint32_t below(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng >> 33) % n);
}

/** Every sequence reads back what was written to it; used blocks and owners add up. */
static void check_model(const struct esp_kv *kv, const struct model *m)
{
    uint32_t owners[BLOCKS] = {0}, used = 0, live = 0;

    for (uint32_t id = 0; id < IDS; id++) {
        uint32_t n_blocks;
        const uint32_t *blocks = esp_kv_blocks(kv, id + 1, &n_blocks);

        assert_int_equal(esp_kv_exists(kv, id + 1), m->live[id]);
        if (!m->live[id])
            continue;
        live++;
        assert_int_equal(esp_kv_len(kv, id + 1), m->n[id]);
        assert_int_equal(n_blocks, (m->n[id] + B - 1) / B);
        for (uint32_t i = 0; i < n_blocks; i++) {
            assert_true(blocks[i] < BLOCKS);
            used += owners[blocks[i]]++ == 0;
        }
        for (uint32_t t = 0; t < m->n[id]; t++)
            assert_int_equal(m->device[blocks[t / B] * B + t % B], m->token[id][t]);
    }
    assert_int_equal(esp_kv_used_blocks(kv), used);
    assert_int_equal(esp_kv_used_blocks(kv) + esp_kv_free_blocks(kv), BLOCKS);
    assert_int_equal(esp_kv_n_seqs(kv), live);
}

/** Blocks that a plan must take: what the sequences' lists say, owners counted afresh. */
static uint32_t model_need(const struct esp_kv *kv, const struct model *m, const struct esp_kv_append *a,
                           uint32_t n)
{
    uint32_t owners[BLOCKS] = {0}, need = 0, n_blocks;

    for (uint32_t id = 0; id < IDS; id++) {
        const uint32_t *blocks = esp_kv_blocks(kv, id + 1, &n_blocks);
        for (uint32_t i = 0; i < n_blocks; i++)
            owners[blocks[i]]++;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t len = m->live[a[i].seq - 1] ? m->n[a[i].seq - 1] : 0;
        const uint32_t *blocks = esp_kv_blocks(kv, a[i].seq, &n_blocks);
        need += (len + a[i].n_tok + B - 1) / B - n_blocks;
        if (len % B != 0 && owners[blocks[n_blocks - 1]] > 1) {
            owners[blocks[n_blocks - 1]]--;
            need++;
        }
    }
    return need;
}

static uint32_t random_append(struct esp_kv *kv, struct model *m)
{
    struct esp_kv_append a[4];
    uint32_t n = 1 + below(4), first = below(IDS), n_copies, n_new = 0, n_live = 0, fit = 1;
    const struct esp_kv_copy *copies;
    bool keep = below(4) != 0;
    struct esp_err err;
    esp_status st;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = (first + 3 * i) % IDS; /* 3 and IDS share no factor: no id twice */
        a[i] = (struct esp_kv_append){id + 1, 1 + (below(3) ? below(3) : below(3 * B))};
        n_new += !m->live[id];
        fit = fit && (m->live[id] ? m->n[id] : 0) + a[i].n_tok <= MAX_BLOCKS * B;
    }
    for (uint32_t id = 0; id < IDS; id++)
        n_live += m->live[id];
    fit = fit && n_live + n_new <= SEQS && model_need(kv, m, a, n) <= esp_kv_free_blocks(kv);
    st = esp_kv_plan(kv, a, n, &copies, &n_copies, &err);
    assert_int_equal(st, fit ? ESP_OK : ESP_E_LIMIT);
    if (st)
        return 0;

    /* The device does its work in either case: a rolled back step may have copied and written. */
    for (uint32_t i = n_copies; i-- > 0;)
        memcpy(m->device + copies[i].to * B, m->device + copies[i].from * B, B * sizeof m->device[0]);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = (uint32_t)a[i].seq - 1, at = m->live[id] ? m->n[id] : 0, n_blocks;
        const uint32_t *blocks = esp_kv_blocks(kv, a[i].seq, &n_blocks);

        assert_int_equal(esp_kv_len(kv, a[i].seq), at + a[i].n_tok);
        for (uint32_t t = at; t < at + a[i].n_tok; t++) {
            m->device[blocks[t / B] * B + t % B] = ++m->next;
            if (keep)
                m->token[id][t] = m->next;
        }
        if (keep) {
            m->live[id] = true;
            m->n[id] = at + a[i].n_tok;
        }
    }
    if (keep)
        esp_kv_commit(kv);
    else
        esp_kv_rollback(kv);
    return n_copies;
}

/** The whole cache goes to another one, whose blocks are free in an order of its own, and which takes its place. */
static void move(struct esp_kv **kv, struct model *m)
{
    struct esp_kv *to = make(BLOCKS, SEQS, MAX_BLOCKS);
    uint32_t device[BLOCKS * B] = {0}, own[BLOCKS], back[BLOCKS];
    struct esp_kv_books books;
    struct esp_err err;

    for (uint32_t i = 0; i < 6; i++)
        grow(to, 1 + i, 1 + below(2 * B));
    for (uint32_t i = 6, n = 1 + below(6); i > 0; i--)
        esp_kv_free(to, 1 + (i + n) % 6);
    assert_int_equal(esp_kv_n_seqs(to), 0);
    assert_int_equal(esp_kv_export(&books, *kv, &err), ESP_OK);
    assert_int_equal(books.n_seqs, esp_kv_n_seqs(*kv));
    assert_int_equal(books.n_blocks, esp_kv_used_blocks(*kv));
    assert_int_equal(esp_kv_adopt(to, books.seqs, books.n_seqs, books.n_blocks, own, &err), ESP_OK);
    assert_int_equal(esp_kv_match(*kv, books.seqs, books.n_seqs, books.n_blocks, back, &err), ESP_OK);
    for (uint32_t b = 0; b < books.n_blocks; b++) {
        assert_int_equal(back[b], books.own[b]);
        memcpy(device + own[b] * B, m->device + books.own[b] * B, B * sizeof device[0]);
    }
    memcpy(m->device, device, sizeof device);
    esp_kv_books_finish(&books);
    esp_kv_destroy(kv);
    *kv = to;
}

static void test_against_model(void **state)
{
    struct esp_kv *kv = make(BLOCKS, SEQS, MAX_BLOCKS);
    struct model *m = calloc(1, sizeof *m);
    uint32_t n_copies = 0, n_forks = 0;
    struct esp_err err;

    assert_non_null(m);
    for (uint32_t op = 0; op < OPS; op++) {
        uint32_t id = below(IDS), from = below(IDS);

        switch (below(8)) {
        case 0:
        case 1:
            esp_kv_free(kv, id + 1);
            m->live[id] = false;
            break;
        case 2:
        case 3:
            if (esp_kv_fork(kv, id + 1, from + 1, &err) == ESP_OK) {
                assert_true(m->live[from] && !m->live[id]);
                m->live[id] = true;
                m->n[id] = m->n[from];
                memcpy(m->token[id], m->token[from], sizeof m->token[id]);
                n_forks++;
            } else {
                assert_true(!m->live[from] || m->live[id] || esp_kv_n_seqs(kv) == SEQS);
            }
            break;
        default:
            n_copies += random_append(kv, m);
        }
        if (below(20) == 0)
            move(&kv, m);
        check_model(kv, m);
    }
    assert_true(n_copies > OPS / 100 && n_forks > OPS / 100); /* the run did exercise both */
    for (uint32_t id = 0; id < IDS; id++)
        esp_kv_free(kv, id + 1);
    assert_int_equal(esp_kv_used_blocks(kv), 0);
    assert_int_equal(esp_kv_free_blocks(kv), BLOCKS);
    assert_int_equal(esp_kv_n_seqs(kv), 0);
    free(m);
    esp_kv_destroy(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_refuses), cmocka_unit_test(test_grow_and_free),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_copy_on_write),
        cmocka_unit_test(test_hash_removal),   cmocka_unit_test(test_against_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
