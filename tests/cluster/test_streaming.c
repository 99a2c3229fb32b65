/* Workers without a checkpoint: real processes and the real engine. What is fetched is counted, and what is answered is
 * the golden text. */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"
#include "tests/cluster/curve_rig.h"
#include "tests/support/manifest.h"

#define TINY      "tests/golden/data/tiny"
#define OTHER     "tests/golden/data/tiny-pg2"
#define CHUNK_KIB "64"
#define CHUNK     65536u

static struct esp_test_manifest tiny;
static char at[128];

static int setup(void **state)
{
    if (!curve_rig_open())
        return -1;
    esp_test_manifest_make(&tiny, TINY, CHUNK);
    snprintf(at, sizeof at, "ipc://%s", curve_path("c"));
    if (setenv("XDG_STATE_HOME", curve_path("state"),
               1)) /* for the journals of coordinators that are killed */
        return -1;
    return 0; /* with the user's cache directory: a driver without its compiled shaders takes minutes on a busy machine */
}

static int teardown(void **state)
{
    esp_test_manifest_free(&tiny);
    return curve_rig_close();
}

/* ---- processes ---- */

static void start_coordinator(struct child *c, const char *model, const char *workers, const char *split,
                              const char *at_most)
{
    const char *args[20] = {"--model", model, "--bind", at, "--workers", workers, "--chunk-kib", CHUNK_KIB};
    int n = 8;

    if (split) {
        args[n++] = "--split";
        args[n++] = split;
    }
    if (at_most) {
        args[n++] = "--chunks-at-most";
        args[n++] = at_most;
    }
    child_start(c, COORDINATOR, NULL, args);
    curve_wait_for(c, "listening endpoint=");
}

static void start_worker(struct child *c, const char *name, const char *cache)
{
    child_start(c, WORKER, NULL,
                (const char *[]){"--connect", at, "--name", name, "--cache", curve_path(cache), NULL});
}

static void kill_child(struct child *c)
{
    kill(c->pid, SIGKILL);
    child_wait(c, NULL);
    assert_int_equal(c->exit, 128 + SIGKILL);
    child_finish(c);
}

static void expect_golden(const char *model)
{
    char path[128], text[4096];
    json_error_t why;
    json_t *golden, *want;
    struct child c;

    snprintf(path, sizeof path, "%s/golden.json", model);
    golden = json_load_file(path, 0, &why);
    assert_non_null(golden);
    want = json_array_get(json_object_get(golden, "generate"), 0);
    snprintf(path, sizeof path, "%s/images/scene_a.png", model);
    child_run(&c, ESPALIER,
              (const char *[]){"run", "--connect", at, "--image", path, "--max-tokens", "24", "--ignore-eos",
                               json_string_value(json_object_get(want, "prefix")), NULL});
    child_expect(&c, model, 0, NULL, NULL);
    snprintf(text, sizeof text, "%s\n", json_string_value(json_object_get(want, "text")));
    assert_string_equal(OUT(&c), text);
    child_finish(&c);
    json_decref(golden);
}

/* ---- counting ---- */

/* "fetched=" and "fetched_bytes=" of the worker's line about its weights. */
static void expect_fetched(const struct child *c, const char *who, uint64_t n, uint64_t n_bytes)
{
    const char *line = strstr(ERR(c), "weights_here");
    uint64_t got, got_bytes, mib;

    if (!line || sscanf(line, "weights_here mib=%" SCNu64 " fetched=%" SCNu64 " fetched_bytes=%" SCNu64, &mib,
                        &got, &got_bytes) != 3)
        fail_msg("%s has no line about its weights:\n%s", who, ERR(c));
    if (got != n || got_bytes != n_bytes)
        fail_msg("%s fetched %" PRIu64 " chunks, %" PRIu64 " bytes; expected %" PRIu64 ", %" PRIu64 ":\n%s",
                 who, got, got_bytes, n, n_bytes, ERR(c));
}

/* Files of a cache; the last one's path. */
static unsigned count_files(const char *cache, char last[600])
{
    DIR *top = opendir(curve_path(cache));
    unsigned n = 0;

    for (struct dirent *e; top && (e = readdir(top));) {
        char folder[300];
        DIR *d;

        if (strlen(e->d_name) != 2 || e->d_name[0] == '.')
            continue;
        snprintf(folder, sizeof folder, "%s/%s", curve_path(cache), e->d_name);
        d = opendir(folder);
        for (struct dirent *f; d && (f = readdir(d));)
            if (f->d_name[0] != '.') {
                n++;
                snprintf(last, 600, "%s/%s", folder, f->d_name);
            }
        if (d)
            closedir(d);
    }
    if (top)
        closedir(top);
    return n;
}

static void wait_for_files(const char *cache, unsigned n)
{
    const long start = esp_now_ms();
    char last[600];
    unsigned got;

    while ((got = count_files(cache, last)) < n) {
        if (esp_now_ms() - start > ESP_PATIENCE_MS)
            fail_msg("%u chunks on disk, expected %u", got, n);
        poll(NULL, 0, 5);
    }
}

static void flip_a_byte(const char *cache)
{
    char path[600], byte;
    int fd;

    assert_true(count_files(cache, path) > 0);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, 5), 1);
    byte ^= 16;
    assert_int_equal(pwrite(fd, &byte, 1, 5), 1);
    close(fd);
}

/* ---- tests ---- */

/* Two workers with empty disks fetch their slices at the same time, each chunk once; the next time nothing but what has
 * rotted meanwhile. */
static void test_empty_then_full(void **state)
{
    static const struct esp_test_part part[2] = {
        {.enc_hi = 1, .dec_hi = 1, .patch = true, .table = true},
        {.enc_lo = 1, .enc_hi = 2, .dec_lo = 1, .dec_hi = 3, .projector = true, .table = true},
    };
    static const char *const name[2] = {"w0", "w1"}, *const cache[2] = {"cache0", "cache1"};
    struct child coordinator, worker[2];
    uint64_t n_bytes[2];
    uint32_t n[2];
    char path[600];

    for (int i = 0; i < 2; i++)
        n[i] = esp_test_part_chunks(&tiny, &part[i], &n_bytes[i]);
    for (int again = 0; again < 2; again++) {
        if (again)
            flip_a_byte("cache1");
        start_coordinator(&coordinator, TINY, "2", "1/1,1/2", NULL);
        for (int i = 0; i < 2; i++)
            start_worker(&worker[i], name[i], cache[i]);
        curve_wait_for(&coordinator, " stages=2 ");
        expect_golden(TINY);
        assert_true(!again || strstr(ERR(&coordinator), "from=cache"));
        curve_end(&coordinator);
        for (int i = 0; i < 2; i++) {
            child_wait(&worker[i], NULL);
            assert_int_equal(worker[i].exit, 0);
            if (!again)
                expect_fetched(&worker[i], name[i], n[i], n_bytes[i]);
            assert_int_equal(count_files(cache[i], path), n[i]);
        }
        if (again) {
            expect_fetched(&worker[0], "w0", 0, 0);
            assert_null(strstr(ERR(&worker[0]), "cache_corrupt"));
            assert_non_null(strstr(ERR(&worker[1]), "cache_corrupt chunk="));
            assert_non_null(strstr(ERR(&worker[1]), " fetched=1 "));
        }
        for (int i = 0; i < 2; i++)
            child_finish(&worker[i]);
    }
}

/*
 * A coordinator that sends so many chunks and falls silent; then it is killed, and the next one sends some more: the
 * worker goes on. Then the worker is killed, and the next one fetches the rest and no more. At last the coordinator comes
 * back with another model: the same worker begins anew.
 */
static void test_killed(void **state)
{
    static const struct esp_test_part all = {
        .enc_hi = 2, .dec_hi = 3, .patch = true, .projector = true, .table = true};
    struct child coordinator, worker;
    uint64_t n_bytes;
    const uint32_t n = esp_test_part_chunks(&tiny, &all, &n_bytes);
    uint32_t n_here;
    char path[600];

    assert_true(n > 100);
    start_coordinator(&coordinator, TINY, "1", NULL, "41");
    start_worker(&worker, "w0", "cache2");
    wait_for_files("cache2", 41);
    assert_int_equal(count_files("cache2", path), 41);
    kill_child(&coordinator);
    start_coordinator(&coordinator, TINY, "1", NULL, "23");
    wait_for_files("cache2", 41 + 10);
    kill_child(&worker);
    n_here = count_files("cache2", path);
    assert_true(n_here >= 41 + 10 && n_here <= 41 + 23);
    kill_child(&coordinator);

    start_coordinator(&coordinator, TINY, "1", NULL, NULL);
    start_worker(&worker, "w0", "cache2");
    curve_wait_for(&coordinator, " stages=1 ");
    curve_wait_for(&worker, "weights_here");
    assert_non_null(strstr(ERR(&worker), "weights_here"));
    expect_golden(TINY);
    assert_int_equal(count_files("cache2", path), n);
    {
        char expected[64];
        snprintf(expected, sizeof expected, " fetched=%u ", n - n_here);
        if (!strstr(ERR(&worker), expected))
            fail_msg("expected%sin\n%s", expected, ERR(&worker));
    }
    kill_child(&coordinator);

    start_coordinator(&coordinator, OTHER, "1", NULL, NULL);
    curve_wait_for(&coordinator, " stages=1 ");
    expect_golden(OTHER);
    curve_end(&coordinator);
    curve_ended(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty_then_full),
        cmocka_unit_test(test_killed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
