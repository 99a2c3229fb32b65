/*
 * The cache of packed matrices under a shelf: what a second start reads from it are the bits that the first one packed, for
 * every weight type, in slices or at once; what is damaged meanwhile is packed again; where nothing can be kept, loading goes
 * on. On a golden checkpoint.
 */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/chain.h"
#include "tests/support/temp.h"
#include "worker/packed.h"
#include "worker/piece.h"
#include "worker/shelf.h"

#define MAX_ROWS 40
#define N_ROW    33

static struct esp_vk *vk;
static struct esp_checkpoint *ck;
static const struct esp_config *config;
static char dir[64];
static uint64_t n_laid; /* by all checks */

static int setup(void **state)
{
    (void)state;
    return esp_temp_make(dir, sizeof dir);
}

static int teardown(void **state)
{
    (void)state;
    esp_packed_destroy(&vk->packed);
    return esp_temp_remove(dir);
}

static void open_cache(bool all)
{
    struct esp_err err;

    esp_packed_destroy(&vk->packed);
    if (esp_packed_open(&vk->packed, dir, 0, all, vk->log, &err))
        fail_msg("%s", err.text);
}

static struct esp_stage_spec spec_of(enum esp_wtype type)
{
    return (struct esp_stage_spec){.dec_hi = config->text.n_layer,
                                   .embed = true,
                                   .head = true,
                                   .max_rows = MAX_ROWS,
                                   .kv_tokens = MAX_ROWS,
                                   .max_seqs = 1,
                                   .max_images = 1,
                                   .weights = type};
}

/* Logits of a prefill by a stage that is loaded anew, and what that took from the cache. */
static float *logits(enum esp_wtype type, uint64_t slice_bytes, struct esp_packed_count *c, size_t *n)
{
    const struct esp_stage_spec spec = spec_of(type);
    const struct esp_seq_rows seq = {.seq = 1, .n_tok = N_ROW, .n_prefix = N_ROW};
    const struct esp_want want = {.row = N_ROW - 1, .k = 4, .full = true};
    const struct esp_msg_step step = {.epoch = 1,
                                      .id = 1,
                                      .payload = ESP_PAYLOAD_TOKENS,
                                      .rows = N_ROW,
                                      .width = 1,
                                      .n_seqs = 1,
                                      .seqs = &seq,
                                      .n_wants = 1,
                                      .wants = &want};
    struct esp_packed_count before = {0}, after = {0};
    struct esp_shelf_slice slice = {.lacking_bytes = 1};
    struct esp_shelf *shelf;
    struct esp_stage *stage;
    struct esp_stage_out out;
    struct esp_err err = {0};
    int32_t ids[N_ROW];
    float *got;

    if (vk->packed)
        esp_packed_count(vk->packed, &before);
    esp_must(esp_shelf_create(&shelf, vk, ck, NULL, NULL, &err), &err);
    while (slice_bytes && slice.lacking_bytes > 0)
        esp_must(esp_shelf_load(shelf, &spec, slice_bytes, &slice, &err), &err);
    esp_must(esp_stage_create(&stage, shelf, &spec, NULL, NULL, NULL, &err), &err);
    for (int32_t i = 0; i < N_ROW; i++)
        ids[i] = 7 * i + 5;
    esp_must(esp_stage_step(stage, &step, ids, &out, &err), &err);
    *n = (size_t)out.n_full * out.vocab;
    assert_true(*n > 0);
    got = malloc(*n * sizeof *got);
    assert_non_null(got);
    memcpy(got, out.full, *n * sizeof *got);
    esp_stage_out_finish(&out);
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
    if (vk->packed)
        esp_packed_count(vk->packed, &after);
    *c = (struct esp_packed_count){.used = after.used - before.used,
                                   .laid = after.laid - before.laid,
                                   .kept = after.kept - before.kept,
                                   .damaged = after.damaged - before.damaged,
                                   .failed = after.failed - before.failed};
    return got;
}

static void check(const float *want, size_t n_want, enum esp_wtype type, uint64_t slice_bytes,
                  const struct esp_packed_count *expected)
{
    struct esp_packed_count c;
    size_t n;
    float *got = logits(type, slice_bytes, &c, &n);

    assert_int_equal(n, n_want);
    assert_memory_equal(got, want, n * sizeof *got);
    free(got);
    assert_int_equal(c.used, expected->used);
    n_laid += c.laid;
    assert_int_equal(c.kept, expected->kept);
    assert_int_equal(c.damaged, expected->damaged);
    assert_int_equal(c.failed, expected->failed);
}

/* Without a cache, with an empty one, with a full one, in a process that comes later, in small slices: the same bits. */
static void test_same_bits(void **state)
{
    static const enum esp_wtype types[] = {ESP_W_STORED, ESP_W_F32, ESP_W_Q8, ESP_W_Q4};
    const uint64_t n_mat = 4 * config->text.n_layer + 1;
    struct esp_packed_count none;

    (void)state;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const bool all = !esp_wtype_quantised(types[i]);
        /* with q4, Q, K and V and the table are q8, and the turn before has left those */
        const uint64_t n_old = types[i] == ESP_W_Q4 ? config->text.n_layer + 1 : 0;
        size_t n;
        float *want;

        esp_packed_destroy(&vk->packed);
        want = logits(types[i], 0, &none, &n);
        open_cache(all);
        check(want, n, types[i], 0, &(struct esp_packed_count){.used = n_old, .kept = n_mat - n_old});
        check(want, n, types[i], 0, &(struct esp_packed_count){.used = n_mat});
        open_cache(all);
        check(want, n, types[i], 5000, &(struct esp_packed_count){.used = n_mat});
        teardown(state);
        setup(state);
        open_cache(all);
        check(want, n, types[i], 5000, &(struct esp_packed_count){.kept = n_mat});
        open_cache(false); /* those as stored are not looked for */
        check(want, n, types[i], 0, &(struct esp_packed_count){.used = all ? 0 : n_mat});
        free(want);
    }
    print_message("%u matrices were laid\n", (unsigned)n_laid);
    if (vk->host_align) /* the device's memory can be files' pages */
        assert_true(n_laid > 0);
}

/* Turns over a byte in the middle of every file; how many there are. */
static uint32_t damage_all(void)
{
    DIR *top = opendir(dir);
    uint32_t n = 0;

    assert_non_null(top);
    for (struct dirent *f; (f = readdir(top));) {
        char path[600];
        DIR *d;

        snprintf(path, sizeof path, "%s/%s", dir, f->d_name);
        d = strlen(f->d_name) == 2 && f->d_name[0] != '.' ? opendir(path) : NULL;
        for (struct dirent *e; d && (e = readdir(d));) {
            unsigned char b;
            struct stat sb;
            int fd;

            if (e->d_name[0] == '.')
                continue;
            fd = openat(dirfd(d), e->d_name, O_RDWR);
            assert_true(fd >= 0);
            assert_int_equal(fstat(fd, &sb), 0);
            assert_int_equal(pread(fd, &b, 1, sb.st_size / 2), 1);
            b ^= 0x40;
            assert_int_equal(pwrite(fd, &b, 1, sb.st_size / 2), 1);
            close(fd);
            n++;
        }
        if (d)
            closedir(d);
    }
    closedir(top);
    return n;
}

/* What rotted is found while it is read, and packed again where it stands; the next start keeps it anew. */
static void test_damaged(void **state)
{
    const uint64_t n_mat = 4 * config->text.n_layer + 1;
    struct esp_packed_count none;
    size_t n;
    float *want = logits(ESP_W_Q4, 0, &none, &n);

    (void)state;
    open_cache(false);
    check(want, n, ESP_W_Q4, 0, &(struct esp_packed_count){.kept = n_mat});
    assert_int_equal(damage_all(), n_mat);
    check(want, n, ESP_W_Q4, 0, &(struct esp_packed_count){.damaged = n_mat});
    check(want, n, ESP_W_Q4, 3000, &(struct esp_packed_count){.kept = n_mat});
    check(want, n, ESP_W_Q4, 0, &(struct esp_packed_count){.used = n_mat});
    free(want);
}

/* A disk that is full costs the files, not the load. */
static void test_full_disk(void **state)
{
    struct rlimit before, small = {.rlim_cur = 16};
    const uint64_t n_mat = 4 * config->text.n_layer + 1;
    struct esp_packed_count none;
    size_t n;
    float *want = logits(ESP_W_Q8, 0, &none, &n);

    (void)state;
    open_cache(false);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    check(want, n, ESP_W_Q8, 0, &(struct esp_packed_count){.failed = n_mat});
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    check(want, n, ESP_W_Q8, 0, &(struct esp_packed_count){.kept = n_mat});
    free(want);
}

/* A matrix that is dropped half way leaves neither file nor trace, and the next load begins it anew. */
static void test_given_up(void **state)
{
    const struct esp_stage_spec spec = spec_of(ESP_W_Q4);
    const uint64_t n_mat = 4 * config->text.n_layer + 1;
    struct esp_packed_count none;
    struct esp_shelf_slice slice;
    struct esp_shelf *shelf;
    struct esp_err err = {0};
    char left[96];
    size_t n;
    float *want = logits(ESP_W_Q4, 0, &none, &n);
    DIR *d;

    (void)state;
    open_cache(false);
    esp_must(esp_shelf_create(&shelf, vk, ck, NULL, NULL, &err), &err);
    for (int i = 0; i < 6; i++)
        esp_must(esp_shelf_load(shelf, &spec, 1, &slice, &err), &err);
    assert_true(slice.lacking_bytes > 0);
    esp_shelf_destroy(&shelf);
    snprintf(left, sizeof left, "%s/unfinished", dir);
    d = opendir(left);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        assert_int_equal(e->d_name[0], '.');
    closedir(d);
    check(want, n, ESP_W_Q4, 0, &(struct esp_packed_count){.kept = n_mat});
    free(want);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_same_bits),
        TEST(test_damaged),
        TEST(test_full_disk),
        TEST(test_given_up),
    };
    struct esp_err err = {0};
    int failed;

    esp_must(esp_checkpoint_open(&ck, "tests/golden/data/tiny-pg2", &err), &err);
    config = esp_checkpoint_config(ck);
    vk = esp_test_device_open();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += esp_test_device_close(&vk);
    esp_checkpoint_destroy(&ck);
    return failed;
}
