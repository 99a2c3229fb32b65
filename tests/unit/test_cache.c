/* The cache of chunks: what is kept comes back, what is broken is found, what is old goes first. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/temp.h"
#include "worker/cache.h"

#define N_BYTES 5000u

static char dir[64];

static int setup(void **state)
{
    return esp_temp_make(dir, sizeof dir);
}

static int teardown(void **state)
{
    return esp_temp_remove(dir);
}

static struct esp_cache *open_cache(uint64_t limit_bytes, esp_cache_keep keep, void *arg)
{
    struct esp_cache *c;
    struct esp_err err;
    char path[96];

    snprintf(path, sizeof path, "%s/made/on the way", dir);
    if (esp_cache_open(&c, path, limit_bytes, keep, arg, NULL, &err))
        fail_msg("%s", err.text);
    return c;
}

/* Chunk number i, good until so many others were asked for. */
static const uint8_t *chunk(uint8_t hash[ESP_CACHE_HASH_BYTES], unsigned i)
{
    static uint8_t turn[256][N_BYTES];
    static unsigned n;
    uint8_t *data = turn[n++ % 256];

    for (unsigned k = 0; k < N_BYTES; k++)
        data[k] = (uint8_t)(k * 7 + k / 256 + i * 13);
    memcpy(data, &i, sizeof i);
    esp_cache_hash(hash, data, N_BYTES);
    return data;
}

static void path_of(char out[256], const uint8_t *hash)
{
    int n = snprintf(out, 256, "%s/made/on the way/%02x/", dir, hash[0]);

    for (int i = 1; i < ESP_CACHE_HASH_BYTES; i++)
        n += snprintf(out + n, 256 - (size_t)n, "%02x", hash[i]);
}

static void put(struct esp_cache *c, unsigned i)
{
    uint8_t hash[ESP_CACHE_HASH_BYTES];
    struct esp_err err;
    const uint8_t *data = chunk(hash, i);
    int fd;

    if (esp_cache_put(&fd, c, hash, data, N_BYTES, &err))
        fail_msg("%s", err.text);
    close(fd);
}

static esp_status get(struct esp_cache *c, unsigned i)
{
    uint8_t hash[ESP_CACHE_HASH_BYTES], scratch[N_BYTES], again[N_BYTES];
    const uint8_t *data = chunk(hash, i);
    esp_status st;
    int fd;

    st = esp_cache_get(&fd, c, hash, scratch, N_BYTES, NULL);
    if (st) {
        assert_int_equal(fd, -1);
        return st;
    }
    assert_memory_equal(scratch, data, N_BYTES);
    assert_int_equal(pread(fd, again, N_BYTES, 0), N_BYTES);
    assert_memory_equal(again, data, N_BYTES);
    close(fd);
    return ESP_OK;
}

static void test_round(void **state)
{
    struct esp_cache *c = open_cache(0, NULL, NULL);

    assert_int_equal(get(c, 1), ESP_E_CLOSED);
    put(c, 1);
    put(c, 2);
    put(c, 1); /* again: as good */
    assert_int_equal(get(c, 1), ESP_OK);
    esp_cache_destroy(&c);
    c = open_cache(0, NULL, NULL);
    assert_int_equal(get(c, 1), ESP_OK);
    assert_int_equal(get(c, 2), ESP_OK);
    assert_int_equal(get(c, 3), ESP_E_CLOSED);
    esp_cache_destroy(&c);
}

static void test_broken(void **state)
{
    enum { FLIPPED, SHORT, LONG, EMPTY, OTHER, FOLDER, LINK, FIFO, N_CASE };
    struct esp_cache *c = open_cache(0, NULL, NULL);

    for (int what = 0; what < N_CASE; what++) {
        const unsigned i = 100 + (unsigned)what;
        uint8_t hash[ESP_CACHE_HASH_BYTES], other[ESP_CACHE_HASH_BYTES];
        char path[256], from[256];
        struct stat sb;
        int fd;

        put(c, i);
        put(c, i + 50);
        chunk(other, i + 50);
        path_of(from, other);
        chunk(hash, i);
        path_of(path, hash);
        switch (what) {
        case FLIPPED:
            fd = open(path, O_RDWR);
            assert_int_equal(pwrite(fd, "!", 1, N_BYTES - 1), 1);
            close(fd);
            break;
        case SHORT:
            assert_int_equal(truncate(path, N_BYTES - 1), 0);
            break;
        case LONG:
            assert_int_equal(truncate(path, N_BYTES + 1), 0);
            break;
        case EMPTY:
            assert_int_equal(truncate(path, 0), 0);
            break;
        case OTHER: /* a good file under another's name */
            assert_int_equal(rename(from, path), 0);
            break;
        default:
            assert_int_equal(unlink(path), 0);
            if (what == FOLDER)
                assert_int_equal(mkdir(path, 0700), 0);
            else if (what == LINK)
                assert_int_equal(symlink(from, path), 0);
            else
                assert_int_equal(mkfifo(path, 0600), 0);
        }
        assert_int_equal(get(c, i), what == LINK ? ESP_E_IO : ESP_E_FORMAT);
        if (what == FOLDER) { /* nothing of ours: not removed, and not in the way */
            assert_int_equal(rmdir(path), 0);
        } else if (what != LINK) {
            assert_int_equal(lstat(path, &sb), -1);
            assert_int_equal(errno, ENOENT);
        }
        put(c, i);
        assert_int_equal(get(c, i), ESP_OK);
    }
    esp_cache_destroy(&c);
}

/* Chunks up to *arg are in use. */
static bool in_use(void *arg, const uint8_t *hash)
{
    for (unsigned i = 0; i < *(const unsigned *)arg; i++) {
        uint8_t one[ESP_CACHE_HASH_BYTES];

        chunk(one, i);
        if (memcmp(one, hash, sizeof one) == 0)
            return true;
    }
    return false;
}

static void set_age(unsigned i, long seconds)
{
    struct timespec t[2];
    uint8_t hash[ESP_CACHE_HASH_BYTES];
    char path[256];

    chunk(hash, i);
    path_of(path, hash);
    clock_gettime(CLOCK_REALTIME, &t[0]);
    t[0].tv_sec -= seconds;
    t[1] = t[0];
    assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

static void test_limit(void **state)
{
    unsigned n_used = 1;
    struct esp_cache *c = open_cache(10 * N_BYTES, in_use, &n_used);
    uint8_t hash[ESP_CACHE_HASH_BYTES];
    struct esp_err err;
    const uint8_t *data;
    int fd;

    for (unsigned i = 0; i < 10; i++) {
        put(c, i);
        set_age(i, 1000 - (long)i); /* 0 is the oldest, and in use; then 1, 2, ... */
    }
    assert_int_equal(get(c, 1), ESP_OK); /* used just now */
    put(c, 10);
    put(c, 11);
    assert_int_equal(get(c, 0), ESP_OK);
    assert_int_equal(get(c, 1), ESP_OK);
    assert_int_equal(get(c, 2), ESP_E_CLOSED);
    assert_int_equal(get(c, 3), ESP_E_CLOSED);
    assert_int_equal(get(c, 10), ESP_OK);
    esp_cache_destroy(&c);

    /* What is in use stays, whatever the limit; also when it is counted anew at the next start. */
    n_used = 60;
    c = open_cache(10 * N_BYTES, in_use, &n_used);
    data = chunk(hash, 50);
    assert_int_equal(esp_cache_put(&fd, c, hash, data, N_BYTES, &err), ESP_E_LIMIT);
    assert_int_equal(fd, -1);
    assert_non_null(strstr(err.text, "in use"));
    assert_int_equal(get(c, 10), ESP_OK);
    esp_cache_destroy(&c);
}

static void test_unusable(void **state)
{
    struct rlimit small = {.rlim_cur = N_BYTES / 2}, before;
    struct esp_cache *c;
    struct esp_err err;
    uint8_t hash[ESP_CACHE_HASH_BYTES];
    char path[96], left[160];
    DIR *d;
    int fd;

    snprintf(path, sizeof path, "%s/a file", dir);
    assert_int_equal(close(open(path, O_CREAT | O_WRONLY, 0600)), 0);
    assert_int_equal(esp_cache_open(&c, path, 0, NULL, NULL, NULL, &err), ESP_E_IO);
    assert_null(c);
    strcat(path, "/below");
    assert_int_equal(esp_cache_open(&c, path, 0, NULL, NULL, NULL, &err), ESP_E_IO);
    assert_int_equal(esp_cache_open(&c, "/proc/self", 0, NULL, NULL, NULL, &err), ESP_E_IO);

    /* A disk that takes the beginning of a file and no more. */
    c = open_cache(0, NULL, NULL);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(esp_cache_put(&fd, c, hash, chunk(hash, 200), N_BYTES, &err), ESP_E_IO);
    assert_int_equal(fd, -1);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(get(c, 200), ESP_E_CLOSED);
    snprintf(left, sizeof left, "%s/made/on the way/unfinished", dir);
    d = opendir(left);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        assert_int_equal(e->d_name[0], '.'); /* nothing is left of it */
    closedir(d);
    esp_cache_destroy(&c);
}

/* What a killed writer left goes; what one is writing stays. */
static void test_left(void **state)
{
    static const char *const names[] = {"left", "being written", "new"};
    struct timespec old[2];
    struct esp_cache *c = open_cache(0, NULL, NULL);
    char path[3][160];
    int fd[3];

    esp_cache_destroy(&c);
    clock_gettime(CLOCK_REALTIME, &old[0]);
    old[0].tv_sec -= 3600;
    old[1] = old[0];
    for (int i = 0; i < 3; i++) {
        snprintf(path[i], sizeof path[i], "%s/made/on the way/unfinished/%s", dir, names[i]);
        fd[i] = open(path[i], O_CREAT | O_WRONLY, 0600);
        assert_true(fd[i] >= 0);
        if (i < 2)
            assert_int_equal(futimens(fd[i], old), 0);
    }
    assert_int_equal(flock(fd[1], LOCK_EX), 0);
    c = open_cache(0, NULL, NULL);
    esp_cache_destroy(&c);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(access(path[i], F_OK), i == 0 ? -1 : 0);
        close(fd[i]);
        unlink(path[i]);
    }
}

/* Several processes keep the same chunks at once; each finds all of them whole at any time. */
static void test_at_once(void **state)
{
    enum { N_PROCESS = 3, N_CHUNK = 60 };
    pid_t pid[N_PROCESS];

    for (int p = 0; p < N_PROCESS; p++) {
        pid[p] = fork();
        assert_true(pid[p] >= 0);
        if (pid[p] == 0) {
            struct esp_cache *c;
            static uint8_t scratch[N_BYTES];
            char path[96];

            snprintf(path, sizeof path, "%s/shared", dir);
            if (esp_cache_open(&c, path, 0, NULL, NULL, NULL, NULL))
                _exit(1);
            for (unsigned i = 0; i < N_CHUNK; i++) {
                const unsigned which = 1000 + (i + (unsigned)p * 20) % N_CHUNK;
                uint8_t hash[ESP_CACHE_HASH_BYTES];
                const uint8_t *data = chunk(hash, which);
                int fd;
                esp_status st = esp_cache_get(&fd, c, hash, scratch, N_BYTES, NULL);

                if (st == ESP_E_CLOSED)
                    st = esp_cache_put(&fd, c, hash, data, N_BYTES, NULL);
                if (st || pread(fd, scratch, N_BYTES, 0) != (ssize_t)N_BYTES ||
                    memcmp(scratch, data, N_BYTES) != 0)
                    _exit(2);
                close(fd);
            }
            esp_cache_destroy(&c);
            _exit(0);
        }
    }
    for (int p = 0; p < N_PROCESS; p++) {
        int status;

        assert_int_equal(waitpid(pid[p], &status, 0), pid[p]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round, setup, teardown),
        cmocka_unit_test_setup_teardown(test_broken, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unusable, setup, teardown),
        cmocka_unit_test_setup_teardown(test_left, setup, teardown),
        cmocka_unit_test_setup_teardown(test_at_once, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
