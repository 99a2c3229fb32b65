/*
 * The thread that runs a stage, around a fake one: order, placements that give way to newer ones, and warm placements
 * that load in slices between steps.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <poll.h>

#include "tests/support/fake_stage.h"
#include "worker/runner.h"

#define DEADLINE_MS 60000

static struct esp_shelf *shelf;

static int setup(void **state)
{
    struct esp_runner *r;
    struct esp_err err;

    if (esp_shelf_create(&shelf, NULL, NULL, NULL, NULL, &err) ||
        esp_runner_create(&r, shelf, "w", NULL, &err))
        return 1;
    *state = r;
    return 0;
}

static int teardown(void **state)
{
    struct esp_runner *r = *state;

    if (!esp_runner_stop(r, DEADLINE_MS))
        return 1;
    esp_runner_destroy(&r);
    esp_shelf_destroy(&shelf); /* NULL in a test that has none */
    return 0;
}

/* One that gets its shelf by a Manifest. */
static int setup_empty(void **state)
{
    struct esp_err err;

    return esp_runner_create((struct esp_runner **)state, NULL, "w", NULL, &err) != 0;
}

static void push_place(struct esp_runner *r, uint64_t epoch, bool warm, uint32_t kv_tokens)
{
    struct esp_msg msg = {.kind = ESP_MSG_PLACE,
                          .place = {.epoch = epoch,
                                    .dec_hi = 4,
                                    .embed = true,
                                    .head = true,
                                    .max_rows = 8,
                                    .kv_tokens = kv_tokens,
                                    .max_seqs = 8,
                                    .max_images = 1,
                                    .warm = warm}};
    struct esp_work *work = esp_work_create(&msg);

    assert_non_null(work);
    work->generation = epoch;
    esp_runner_push(r, work);
}

/* One token of a sequence. */
static void push_step(struct esp_runner *r, uint64_t of, uint64_t id)
{
    static const struct esp_want want = {.k = 1};
    static int32_t token = 3;
    struct esp_seq_rows *seq = calloc(1, sizeof *seq);
    struct esp_msg msg = {.kind = ESP_MSG_STEP, .n_blobs = 1};
    struct esp_work *work;

    assert_non_null(seq);
    *seq = (struct esp_seq_rows){.seq = of, .pos = (uint32_t)id - 1, .n_tok = 1, .n_prefix = 1};
    msg.step = (struct esp_msg_step){.epoch = 1,
                                     .id = id,
                                     .payload = ESP_PAYLOAD_TOKENS,
                                     .rows = 1,
                                     .width = 1,
                                     .n_seqs = 1,
                                     .seqs = seq,
                                     .n_wants = 1,
                                     .wants = &want};
    msg.blob[0].data = &token;
    msg.blob[0].n_bytes = sizeof token;
    work = esp_work_create(&msg);
    assert_non_null(work);
    esp_runner_push(r, work);
}

/* The next finished work but Loading, which is counted; the caller destroys it. */
static struct esp_work *take(struct esp_runner *r, uint32_t *n_loading)
{
    struct pollfd p = {.fd = esp_runner_fd(r), .events = POLLIN};

    for (;;) {
        struct esp_work *work = esp_runner_take(r);
        if (work && work->msg.kind != ESP_MSG_LOADING)
            return work;
        if (work && n_loading)
            ++*n_loading;
        if (!work)
            assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
        esp_work_destroy(&work);
    }
}

static void done(struct esp_work *work)
{
    if (work->msg.kind == ESP_MSG_STEP)
        free((void *)(uintptr_t)work->msg.step.seqs);
    esp_work_destroy(&work);
}

static void take_place(struct esp_runner *r, uint64_t epoch, esp_status status)
{
    struct esp_work *work = take(r, NULL);

    assert_int_equal(work->msg.kind, ESP_MSG_PLACE);
    assert_int_equal(work->msg.place.epoch, epoch);
    assert_int_equal(work->status, status);
    done(work);
}

/* Steps go on while a warm placement loads, and the stage is the one that was there. */
static void test_warm_between_steps(void **state)
{
    struct esp_runner *r = *state;
    uint32_t n_loading = 0, n_steps = 0, n_works;
    uint64_t n_bytes;
    bool warmed = false;

    push_place(r, 1, false, 64);
    take_place(r, 1, ESP_OK);
    push_place(r, 2, true, FAKE_KV_SLOW); /* 60 slices */
    for (uint64_t id = 1; !warmed || n_steps < id - 1;) {
        struct esp_work *work;
        if (!warmed && n_steps == id - 1)
            push_step(r, 1, id++); /* as a client who waits for each token */
        work = take(r, &n_loading);
        assert_int_equal(work->status, ESP_OK);
        if (work->msg.kind == ESP_MSG_STEP) {
            assert_int_equal(work->out.n_results, 1);
            n_steps++;
        } else {
            assert_int_equal(work->msg.kind, ESP_MSG_PLACE);
            assert_true(work->msg.place.warm);
            assert_int_equal(work->info.loaded_bytes, 6000);
            assert_int_equal(work->info.weight_bytes, 6000);
            assert_true(work->load_seconds > 0);
            warmed = true;
        }
        done(work);
    }
    assert_true(n_steps >= 10); /* a step waits for one slice, not for all of them */
    assert_true(n_loading > 0);
    esp_runner_load(r, &n_works, &n_bytes);
    assert_int_equal(n_works, 0);
}

/* Work that never ceases does not keep a warm placement from going on. */
static void test_warm_under_load(void **state)
{
    enum { STEPS = 60 };
    struct esp_runner *r = *state;
    uint64_t done_bytes = 0;

    push_place(r, 1, false, 64);
    take_place(r, 1, ESP_OK);
    push_place(r, 2, true, FAKE_KV_SLOW);
    for (uint64_t id = 1; id <= STEPS; id++)
        push_step(r, FAKE_SEQ_SLOW, id);
    for (uint32_t n_steps = 0; n_steps < STEPS;) {
        struct pollfd p = {.fd = esp_runner_fd(r), .events = POLLIN};
        struct esp_work *work = esp_runner_take(r);
        if (!work) {
            assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
            continue;
        }
        assert_int_equal(work->status, ESP_OK);
        n_steps += work->msg.kind == ESP_MSG_STEP;
        if (work->msg.kind == ESP_MSG_LOADING)
            done_bytes = work->msg.loading.done_bytes;
        done(work);
    }
    assert_true(done_bytes >= 1000); /* ten slices beside sixty steps, each twice as long as a slice */
}

/* Where reading is slow, slices are small. */
static void test_warm_from_slow_disk(void **state)
{
    struct esp_runner *r = *state;

    push_place(r, 1, true, FAKE_KV_CRAWL);
    take_place(r, 1, ESP_OK);
    assert_true(atomic_load(&fake_slice_bytes) > 0);
    assert_true(atomic_load(&fake_slice_bytes) <= 4u << 20); /* 8 MiB take 80 ms: too long */
}

/* A newer Place ends a warm one, whether it is warm itself or not, and what holds stays until a cold one comes. */
static void test_warm_superseded(void **state)
{
    struct esp_runner *r = *state;
    struct esp_work *work;

    push_place(r, 1, false, 64);
    take_place(r, 1, ESP_OK);
    push_place(r, 2, true, FAKE_KV_SLOW);
    push_place(r, 3, true, FAKE_KV_SLOW);
    take_place(r, 2, ESP_E_CANCELLED);
    push_step(r, 1, 1);
    work = take(r, NULL);
    assert_int_equal(work->msg.kind, ESP_MSG_STEP);
    assert_int_equal(work->status, ESP_OK);
    done(work);
    push_place(r, 4, false, 64);
    take_place(r, 3, ESP_E_CANCELLED);
    take_place(r, 4, ESP_OK);
}

static void test_warm_refused(void **state)
{
    struct esp_runner *r = *state;
    struct esp_work *work;

    push_place(r, 1, false, 64);
    take_place(r, 1, ESP_OK);
    push_place(r, 2, true, FAKE_KV_NOMEM);
    work = take(r, NULL);
    assert_int_equal(work->status, ESP_E_NOMEM);
    assert_string_equal(work->err.text, "weights: 9999 MiB, 12 MiB left");
    done(work);
    push_step(r, 1, 1);
    work = take(r, NULL);
    assert_int_equal(work->status, ESP_OK);
    done(work);
}

static void push_manifest(struct esp_runner *r, char *mark)
{
    struct esp_msg msg = {.kind = ESP_MSG_MANIFEST};
    struct esp_work *work = esp_work_create(&msg);

    assert_non_null(work);
    assert_int_equal(esp_shelf_create(&work->shelf, NULL, NULL, NULL, NULL, NULL), ESP_OK);
    work->ck = (struct esp_checkpoint *)mark; /* never looked into */
    esp_runner_push(r, work);
}

/* Another checkpoint: what loads is given up, what holds is gone, a purge leaves it in the queue, and the one before comes
 * back. */
static void test_manifest(void **state)
{
    struct esp_runner *r = *state;
    char marks[4];
    struct esp_work *work;

    push_manifest(r, &marks[0]);
    push_place(r, 1, false, FAKE_KV_SLOW);
    work = take(r, NULL);
    assert_int_equal(work->msg.kind, ESP_MSG_MANIFEST);
    assert_int_equal(work->status, ESP_OK);
    assert_null(work->ck);
    done(work);
    for (bool loading = false; !loading;) {
        struct pollfd p = {.fd = esp_runner_fd(r), .events = POLLIN};
        assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
        work = esp_runner_take(r);
        loading = work && work->msg.kind == ESP_MSG_LOADING;
        esp_work_destroy(&work);
    }
    push_manifest(r, &marks[1]);
    push_manifest(r, &marks[2]);
    push_place(r, 2, false, 64);
    esp_runner_purge(r);
    push_place(r, 3, false, 64);
    take_place(r, 1, ESP_E_CANCELLED);
    for (int i = 0; i < 2; i++) {
        work = take(r, NULL);
        assert_int_equal(work->msg.kind, ESP_MSG_MANIFEST);
        assert_ptr_equal(work->ck, &marks[i]);
        done(work);
    }
    take_place(r, 3, ESP_OK);
    push_place(r, 4, true, FAKE_KV_SLOW);
    push_manifest(r, &marks[3]);
    take_place(r, 4, ESP_E_CANCELLED);
    work = take(r, NULL);
    assert_ptr_equal(work->ck, &marks[2]);
    done(work);
    push_step(r, 1, 1);
    work = take(r, NULL);
    assert_int_equal(work->status, ESP_E_INTERNAL); /* without a stage */
    done(work);
    push_manifest(r, &marks[3]); /* not done any more, when the runner is stopped: nothing of it is lost */
}

/* A placement that still loads is given up for the next one. */
static void test_cold_superseded(void **state)
{
    struct esp_runner *r = *state;
    struct esp_work *work;

    push_place(r, 1, false, FAKE_KV_SLOW);
    do { /* until it has begun */
        struct pollfd p = {.fd = esp_runner_fd(r), .events = POLLIN};
        assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
        work = esp_runner_take(r);
    } while (!work);
    assert_int_equal(work->msg.kind, ESP_MSG_LOADING);
    done(work);
    push_place(r, 2, false, 64);
    take_place(r, 1, ESP_E_CANCELLED);
    take_place(r, 2, ESP_OK);

    push_place(r, 3, false, FAKE_KV_SLOW); /* but not for one that only warms what comes after it */
    push_place(r, 4, true, 64);
    take_place(r, 3, ESP_OK);
    take_place(r, 4, ESP_OK);
}

/* The device goes in the middle of a warm placement: that one hears of it, too. */
static void test_warm_device_lost(void **state)
{
    struct esp_runner *r = *state;
    uint32_t n_lost = 0;

    push_place(r, 1, false, 64);
    take_place(r, 1, ESP_OK);
    push_place(r, 2, true, FAKE_KV_SLOW);
    push_step(r, FAKE_SEQ_DEVICE, 1);
    while (n_lost < 2) {
        struct esp_work *work = take(r, NULL);
        assert_int_equal(work->status, ESP_E_DEVICE);
        done(work);
        n_lost++;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_warm_between_steps, setup, teardown),
        cmocka_unit_test_setup_teardown(test_warm_under_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_warm_from_slow_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_warm_superseded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_warm_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_manifest, setup_empty, teardown),
        cmocka_unit_test_setup_teardown(test_cold_superseded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_warm_device_lost, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
