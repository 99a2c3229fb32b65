/* The coordinator among workers that fetch weights and lie, ask for too much, vanish or never read: nobody else may
 * suffer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/coordinator_rig.h"
#include "tests/support/manifest.h"

static struct esp_test_manifest tiny;

static int open_all(void **state)
{
    esp_test_manifest_make(&tiny, RIG_MODEL, 65536);
    return 0;
}

static int close_all(void **state)
{
    esp_test_manifest_free(&tiny);
    return 0;
}

static void works(struct rig *rig, uint64_t id)
{
    struct esp_msg_request r = {.id = id, .prompt = "caption en", .max_tokens = 4};

    rig_request(rig, 0, &r, NULL);
    rig_take(rig, 0, ESP_MSG_DONE);
    rig_until_free(rig);
}

static bool has_manifest(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->n_manifests > 0;
}

static bool got_error(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->error != ESP_OK;
}

struct chunks {
    struct rig_worker *w;
    uint32_t n;
};

static bool has_chunks(struct rig *rig, void *arg)
{
    const struct chunks *c = arg;

    return c->w->n_chunks >= c->n;
}

static void join_streaming(struct rig *rig, int i)
{
    rig->w[i].streams = true;
    rig->w[i].n_manifests = rig->w[i].n_chunks = 0;
    rig_hello(rig, i);
    rig_until(rig, has_manifest, &rig->w[i], "a manifest");
}

static void fetch(struct rig *rig, int i, uint32_t tensor, uint32_t chunk)
{
    struct esp_msg msg = {.kind = ESP_MSG_FETCH, .fetch = {.tensor = tensor, .chunk = chunk}};

    rig_send(rig, i, &msg);
}

/* Every chunk can be had, and by two at a time; who has no checkpoint can be a stage. */
static void test_all_chunks(void **state)
{
    struct rig *rig = *state;

    rig_start(rig, "--chunk-kib", "64", NULL);
    rig->w[0].streams = true;
    rig_join(rig, 1);
    works(rig, 1);
    rig_until(rig, has_manifest, &rig->w[0], "a manifest"); /* it is hashed meanwhile */
    join_streaming(rig, 1);
    for (uint32_t t = 0; t < tiny.n_tensor; t++)
        for (uint32_t c = 0; tiny.base[t] + c < tiny.base[t + 1]; c++)
            for (int i = 0; i < 2; i++) {
                struct chunks want = {&rig->w[i], tiny.base[t] + c + 1};
                fetch(rig, i, t, c);
                if (c % 8 == 7 || tiny.base[t] + c + 1 == tiny.base[t + 1])
                    rig_until(rig, has_chunks, &want, "chunks");
            }
    assert_int_equal(rig->w[0].n_chunks, tiny.n_chunk);
    assert_int_equal(rig->w[1].n_chunks, tiny.n_chunk);
    works(rig, 2);
}

static void test_lies(void **state)
{
    enum { NO_TENSOR, NO_CHUNK, HUGE, FLOOD, NOT_STREAMING };
    static const struct {
        int what;
        const char *fragment;
    } cases[] = {
        {NO_TENSOR, "there is none"},
        {NO_CHUNK, "there is none"},
        {HUGE, "there is none"},
        {FLOOD, "fetches at once"},
        {NOT_STREAMING, "though it has a checkpoint"},
    };
    struct rig *rig = *state;

    rig_start(rig, "--chunk-kib", "64", "--chunks-at-most", "1",
              NULL); /* so that a flood is not drunk at once */
    rig_join(rig, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (cases[i].what == NOT_STREAMING) {
            rig->w[1].streams = false;
            rig_hello(rig, 1);
            while (!rig->w[1].welcome)
                rig_pump(rig, 20);
        } else {
            join_streaming(rig, 1);
        }
        switch (cases[i].what) {
        case NO_TENSOR:
            fetch(rig, 1, tiny.n_tensor, 0);
            break;
        case NO_CHUNK:
            fetch(rig, 1, 0, tiny.base[1]);
            break;
        case HUGE:
            fetch(rig, 1, ESP_MAX_TENSORS - 1, UINT32_MAX);
            break;
        case FLOOD:
            for (int k = 0; k < 200 && !rig->w[1].error; k++) {
                fetch(rig, 1, 0, 0);
                rig_pump(rig, 2); /* our own queue is short */
            }
            break;
        default:
            fetch(rig, 1, 0, 0);
        }
        rig_until(rig, got_error, &rig->w[1], "an Error");
        assert_int_equal(rig->w[1].error, ESP_E_PROTO);
        if (!strstr(rig->w[1].error_text, cases[i].fragment))
            fail_msg("\"%s\", expected \"...%s...\"", rig->w[1].error_text, cases[i].fragment);
        works(rig, i + 1);
    }
}

/*
 * Workers that ask for much and are gone before it comes, again and again. For small chunks: a receiving libzmq whose
 * connection ends in the middle of a large frame loses some hundred bytes of its own, which the leak checker tells.
 */
static void test_vanishes(void **state)
{
    struct rig *rig = *state;
    struct chunks want = {&rig->w[2], 20};

    rig_start(rig, "--chunk-kib", "64", NULL);
    rig_join(rig, 1);
    join_streaming(rig, 2);
    for (uint32_t i = 0; i < 20; i++) {
        join_streaming(rig, 1);
        for (uint32_t t = 0; t < 40; t++)
            if (tiny.tensor[t]->n_bytes < 4096)
                fetch(rig, 1, t, 0);
        fetch(rig, 2, i, 0);
        rig_pump(rig, 1);
        rig_vanish(rig, 1);
    }
    rig_until(rig, has_chunks, &want, "the chunks of the one that stayed");
    assert_int_equal(rig->w[2].n_chunks, 20);
    works(rig, 1);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_all_chunks),
        CASE(test_lies),
        CASE(test_vanishes),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
