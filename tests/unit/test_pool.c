/*
 * The pool: every item once, whatever the threads; the lowest failure; and packed bits that do not depend on how many
 * threads packed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/pack.h"
#include "worker/pool.h"

#define MAX_ITEM 1000

struct job {
    atomic_uint n_run[MAX_ITEM];
    atomic_uint inside[ESP_POOL_MAX]; /* a thread's number is nobody else's meanwhile */
    atomic_bool shared;
    uint32_t n_thread, fail_from, fail_step; /* 0: none fails */
    atomic_uint failed_least;
};

static esp_status count(void *arg, uint32_t item, uint32_t thread, struct esp_err *err)
{
    struct job *j = arg;
    uint32_t least;

    if (thread >= j->n_thread || atomic_fetch_add(&j->inside[thread], 1) != 0)
        atomic_store(&j->shared, true);
    atomic_fetch_add(&j->n_run[item], 1);
    atomic_fetch_sub(&j->inside[thread], 1);
    if (!j->fail_step || item < j->fail_from || (item - j->fail_from) % j->fail_step)
        return ESP_OK;
    least = atomic_load(&j->failed_least);
    while (item < least && !atomic_compare_exchange_weak(&j->failed_least, &least, item))
        ;
    return esp_fail(err, ESP_E_FORMAT, "item %u", item);
}

static const uint32_t threads[] = {1, 2, 3, 7, ESP_POOL_MAX};
#define N_THREADS (sizeof threads / sizeof *threads)

static void test_each_once(void **state)
{
    static const uint32_t n_items[] = {0, 1, 2, 3, 16, 17, MAX_ITEM};
    struct esp_err err = {0};

    (void)state;
    for (size_t t = 0; t < N_THREADS; t++) {
        struct esp_pool *pool;

        assert_int_equal(esp_pool_create(&pool, threads[t], &err), ESP_OK);
        assert_in_range(esp_pool_threads(pool), 1, threads[t]);
        for (uint32_t again = 0; again < 50; again++) {
            for (size_t i = 0; i < sizeof n_items / sizeof *n_items; i++) {
                struct job *j = calloc(1, sizeof *j);

                assert_non_null(j);
                j->n_thread = esp_pool_threads(pool);
                assert_int_equal(esp_pool_run(pool, count, j, n_items[i], &err), ESP_OK);
                for (uint32_t k = 0; k < MAX_ITEM; k++)
                    assert_int_equal(j->n_run[k], k < n_items[i] ? 1 : 0);
                assert_false(j->shared);
                free(j);
            }
        }
        esp_pool_destroy(&pool);
        assert_null(pool);
    }
}

/* Of the items that failed the lowest is told; none runs twice, and the pool is as good as before. */
static void test_failure(void **state)
{
    struct esp_err err;

    (void)state;
    for (size_t t = 0; t < N_THREADS; t++) {
        struct esp_pool *pool;

        assert_int_equal(esp_pool_create(&pool, threads[t], &err), ESP_OK);
        for (uint32_t from = 0; from < MAX_ITEM; from += 83) {
            struct job *j = calloc(1, sizeof *j);
            char want[32];

            assert_non_null(j);
            j->n_thread = esp_pool_threads(pool);
            j->fail_from = from;
            j->fail_step = 1 + from % 5;
            j->failed_least = UINT32_MAX;
            memset(&err, 0, sizeof err);
            assert_int_equal(esp_pool_run(pool, count, j, MAX_ITEM, &err), ESP_E_FORMAT);
            snprintf(want, sizeof want, "item %u", j->failed_least);
            assert_string_equal(err.text, want);
            assert_int_equal(j->failed_least, from); /* items are begun in their order */
            for (uint32_t k = 0; k < MAX_ITEM; k++)
                assert_in_range(j->n_run[k], k <= from ? 1 : 0, 1);
            memset(j, 0, sizeof *j);
            j->n_thread = esp_pool_threads(pool);
            assert_int_equal(esp_pool_run(pool, count, j, MAX_ITEM, &err), ESP_OK);
            free(j);
        }
        esp_pool_destroy(&pool);
    }
}

/* ---- packing ---- */

struct packing {
    struct esp_pack_spec spec;
    struct esp_pack_dims dims;
    char *out;
    void *scratch[ESP_POOL_MAX];
};

static esp_status pack_panel(void *arg, uint32_t item, uint32_t thread, struct esp_err *err)
{
    struct packing *p = arg;

    return esp_pack_groups(p->out + (size_t)item * p->dims.panel * p->dims.group_bytes, &p->spec, &p->dims,
                           item * p->dims.panel, p->dims.panel, p->scratch[thread], err);
}

static void test_packed_bits(void **state)
{
    enum { ROWS = 192, COLS = 96 };
    static uint16_t weights[ROWS * COLS];
    const struct esp_tensor t = {.dtype = ESP_BF16,
                                 .n_dim = 2,
                                 .shape = {ROWS, COLS},
                                 .data = weights,
                                 .n_bytes = sizeof weights,
                                 .name = "w",
                                 .file = "f"};
    static const enum esp_wtype types[] = {ESP_W_STORED, ESP_W_F32, ESP_W_Q8, ESP_W_Q4};
    struct esp_err err = {0};

    (void)state;
    for (uint32_t i = 0; i < ROWS * COLS; i++)
        weights[i] = (uint16_t)(0x3c00u + (i * 2654435761u >> 24) + (i % 2 << 15));
    for (int cls = 0; cls < ESP_VK_N_CLASS; cls++) {
        for (size_t w = 0; w < sizeof types / sizeof *types; w++) {
            struct packing p = {
                .spec = {
                    .n_part = 1, .part = {{.tensor = &t}}, .want = types[w], .cls = (enum esp_vk_class)cls}};
            size_t n_bytes;
            char *want;

            esp_pack_dims(&p.dims, &p.spec);
            n_bytes = (size_t)p.dims.np / 8 * p.dims.group_bytes;
            p.out = malloc(n_bytes);
            want = malloc(n_bytes);
            assert_true(p.out && want);
            for (uint32_t i = 0; i < ESP_POOL_MAX; i++) {
                p.scratch[i] = malloc(esp_pack_scratch_bytes(&p.dims));
                assert_non_null(p.scratch[i]);
            }
            assert_int_equal(esp_pack_groups(want, &p.spec, &p.dims, 0, p.dims.np / 8, p.scratch[0], &err),
                             ESP_OK);
            for (size_t k = 0; k < N_THREADS; k++) {
                struct esp_pool *pool;

                memset(p.out, 0xa5, n_bytes);
                assert_int_equal(esp_pool_create(&pool, threads[k], &err), ESP_OK);
                assert_int_equal(esp_pool_run(pool, pack_panel, &p, p.dims.np / 8 / p.dims.panel, &err),
                                 ESP_OK);
                assert_memory_equal(p.out, want, n_bytes);
                esp_pool_destroy(&pool);
            }
            for (uint32_t i = 0; i < ESP_POOL_MAX; i++)
                free(p.scratch[i]);
            free(p.out);
            free(want);
        }
    }
}

static void test_cores(void **state)
{
    (void)state;
    assert_in_range(esp_pool_cores(), 1, ESP_POOL_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_once),
        cmocka_unit_test(test_failure),
        cmocka_unit_test(test_packed_bits),
        cmocka_unit_test(test_cores),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
