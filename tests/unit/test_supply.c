/* The coordinator's supply of weights: the manifest, kept and checked; fetches, in turn and within bounds. */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "coordinator/supply.h"
#include "model/file.h"
#include "tests/support/manifest.h"
#include "tests/support/temp.h"

#define TINY       "tests/golden/data/tiny"
#define CHUNK      65536u
#define DEADLINE_S 60

static struct esp_test_manifest tiny;
static char dir[64];
static int log_fd[2]; /* what is logged can be read here */

static int open_all(void **state)
{
    esp_test_manifest_make(&tiny, TINY, CHUNK);
    return pipe2(log_fd, O_CLOEXEC | O_NONBLOCK);
}

static int close_all(void **state)
{
    esp_test_manifest_free(&tiny);
    return 0;
}

static int setup(void **state)
{
    return esp_temp_make(dir, sizeof dir);
}

static int teardown(void **state)
{
    return esp_temp_remove(dir);
}

static struct esp_supply *open_supply(uint64_t stop_after)
{
    static struct esp_log log;
    const struct esp_supply_options o = {.chunk_bytes = CHUNK, .cache_dir = dir, .stop_after = stop_after};
    struct esp_supply *s;
    struct esp_err err;

    esp_log_init(&log, "test");
    log.fd = log_fd[1];
    if (esp_supply_create(&s, tiny.ck, tiny.msg.manifest.fingerprint, &o, &log, &err))
        fail_msg("%s", err.text);
    return s;
}

/* Whether the log has said so since the last time. */
static bool logged(const char *what)
{
    char text[4096];
    ssize_t n = read(log_fd[0], text, sizeof text - 1);

    text[n > 0 ? n : 0] = '\0';
    return strstr(text, what) != NULL;
}

static void wait_for(struct esp_supply *s)
{
    struct pollfd fd = {.fd = esp_supply_fd(s), .events = POLLIN};

    assert_int_equal(poll(&fd, 1, DEADLINE_S * 1000), 1);
    esp_supply_heard(s);
}

static void get_manifest(struct esp_supply *s, struct esp_msg *msg)
{
    struct esp_err err;
    esp_status st;

    while ((st = esp_supply_manifest(s, msg, &err)) == ESP_E_TIMEOUT)
        wait_for(s);
    if (st)
        fail_msg("%s", err.text);
}

static void expect_manifest(const struct esp_msg *msg)
{
    uint8_t *bytes;
    size_t n;
    struct esp_err err;

    assert_int_equal(msg->manifest.n_tensors, tiny.n_tensor);
    assert_memory_equal(msg->manifest.fingerprint, tiny.msg.manifest.fingerprint, ESP_FINGERPRINT_BYTES);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(msg->blob[i].n_bytes, tiny.msg.blob[i].n_bytes);
        assert_memory_equal(msg->blob[i].data, tiny.msg.blob[i].data, msg->blob[i].n_bytes);
    }
    if (esp_wire_pack(&bytes, &n, msg, &err)) /* it can be sent */
        fail_msg("%s", err.text);
    free(bytes);
}

static void test_manifest(void **state)
{
    enum { FRESH, KEPT, FLIPPED, KEPT_AGAIN, CUT, N_CASE };
    static const char *const from[N_CASE] = {"from=weights", "from=cache", "from=weights", "from=cache",
                                             "from=weights"};
    char path[400] = "";

    for (int i = 0; i < N_CASE; i++) {
        struct esp_supply *s;
        struct esp_msg msg;
        uint64_t id;
        char byte;
        int fd;

        if (i == FLIPPED || i == CUT) {
            DIR *d = opendir(dir);
            for (struct dirent *e; (e = readdir(d));)
                if (e->d_name[0] != '.')
                    snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
            closedir(d);
            fd = open(path, O_RDWR);
            assert_int_equal(pread(fd, &byte, 1, 300), 1);
            byte ^= 1;
            assert_int_equal(i == FLIPPED ? pwrite(fd, &byte, 1, 300) : 1 + ftruncate(fd, 300), 1);
            close(fd);
        }
        s = open_supply(0);
        assert_int_equal(esp_supply_manifest(s, &msg, NULL), ESP_E_TIMEOUT); /* nobody wants it */
        assert_int_equal(esp_supply_join(&id, s, NULL), ESP_OK);
        get_manifest(s, &msg);
        expect_manifest(&msg);
        assert_true(logged(from[i]));
        esp_supply_destroy(&s);
    }
}

static void expect_chunk(struct esp_supply *s, uint64_t id, uint32_t tensor, uint32_t chunk)
{
    struct esp_msg msg;
    const void *data;
    size_t n;

    while (!esp_supply_next(s, id, &msg))
        wait_for(s);
    data = esp_test_chunk(&tiny, tensor, chunk, &n);
    assert_int_equal(msg.kind, ESP_MSG_CHUNK);
    assert_int_equal(msg.chunk.tensor, tensor);
    assert_int_equal(msg.chunk.chunk, chunk);
    assert_int_equal(msg.blob[0].n_bytes, n);
    assert_ptr_equal(msg.blob[0].data, data); /* no copy */
    esp_msg_finish(&msg);
    esp_supply_sent(s, id);
}

static void test_fetch(void **state)
{
    struct esp_supply *s = open_supply(0);
    struct esp_msg msg;
    struct esp_err err;
    uint64_t a, b;

    assert_int_equal(esp_supply_join(&a, s, NULL), ESP_OK);
    get_manifest(s, &msg);
    assert_int_equal(esp_supply_join(&b, s, NULL), ESP_OK);
    assert_false(esp_supply_next(s, a, &msg));
    for (uint32_t t = 0; t < tiny.n_tensor; t++) {
        const uint32_t last = tiny.base[t + 1] - tiny.base[t] - 1;

        assert_int_equal(esp_supply_fetch(s, a, &(struct esp_msg_fetch){t, last}, &err), ESP_OK);
        assert_int_equal(esp_supply_fetch(s, b, &(struct esp_msg_fetch){t, 0}, &err), ESP_OK);
        expect_chunk(s, b, t, 0);
        expect_chunk(s, a, t, last);
        assert_int_equal(esp_supply_fetch(s, a, &(struct esp_msg_fetch){t, last + 1}, &err), ESP_E_PROTO);
    }
    assert_int_equal(esp_supply_fetch(s, a, &(struct esp_msg_fetch){tiny.n_tensor, 0}, &err), ESP_E_PROTO);
    assert_int_equal(esp_supply_fetch(s, a, &(struct esp_msg_fetch){UINT32_MAX, UINT32_MAX}, &err),
                     ESP_E_PROTO);
    assert_int_equal(esp_supply_fetch(s, 77, &(struct esp_msg_fetch){0, 0}, &err), ESP_E_PROTO);

    /* So many at once and no more; what was asked for comes in order. */
    for (uint32_t i = 0; i < ESP_SUPPLY_MAX_FETCHES; i++)
        assert_int_equal(esp_supply_fetch(s, a, &(struct esp_msg_fetch){i % tiny.n_tensor, 0}, &err), ESP_OK);
    assert_int_equal(esp_supply_fetch(s, a, &(struct esp_msg_fetch){0, 0}, &err), ESP_E_LIMIT);
    assert_int_equal(esp_supply_fetch(s, b, &(struct esp_msg_fetch){3, 0}, &err),
                     ESP_OK); /* nobody else suffers */
    expect_chunk(s, b, 3, 0);
    for (uint32_t i = 0; i < ESP_SUPPLY_MAX_FETCHES; i++)
        expect_chunk(s, a, i % tiny.n_tensor, 0);

    /* Who leaves takes what it had asked for along. */
    assert_int_equal(esp_supply_fetch(s, a, &(struct esp_msg_fetch){0, 0}, &err), ESP_OK);
    esp_supply_leave(s, a);
    esp_supply_leave(s, a);
    assert_false(esp_supply_next(s, a, &msg));
    assert_int_equal(esp_supply_fetch(s, a, &(struct esp_msg_fetch){0, 0}, &err), ESP_E_PROTO);
    assert_int_equal(esp_supply_fetch(s, b, &(struct esp_msg_fetch){0, 0}, &err), ESP_OK);
    expect_chunk(s, b, 0, 0);
    esp_supply_destroy(&s);
}

/* Many ask for much at once: the queues are emptied in turn, one chunk each. */
static void test_in_turn(void **state)
{
    enum { N = 4, EACH = 20 };
    struct esp_supply *s = open_supply(0);
    struct esp_msg msg;
    uint64_t id[N];
    uint32_t n_got[N] = {0}, n_left = N * EACH;
    const time_t start = time(NULL);

    for (int i = 0; i < N; i++)
        assert_int_equal(esp_supply_join(&id[i], s, NULL), ESP_OK);
    get_manifest(s, &msg);
    for (int i = 0; i < N; i++)
        for (uint32_t k = 0; k < EACH; k++)
            assert_int_equal(esp_supply_fetch(s, id[i], &(struct esp_msg_fetch){k, 0}, NULL), ESP_OK);
    while (n_left > 0) {
        for (int i = 0; i < N; i++)
            while (esp_supply_next(s, id[i], &msg)) {
                assert_int_equal(msg.chunk.tensor, n_got[i]);
                n_got[i]++;
                n_left--;
                esp_msg_finish(&msg);
                esp_supply_sent(s, id[i]);
            }
        assert_true(time(NULL) - start < DEADLINE_S);
    }
    esp_supply_destroy(&s);
}

static void test_silent(void **state)
{
    struct esp_supply *s = open_supply(2);
    struct esp_msg msg;
    uint64_t id;

    assert_int_equal(esp_supply_join(&id, s, NULL), ESP_OK);
    get_manifest(s, &msg);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(esp_supply_fetch(s, id, &(struct esp_msg_fetch){i, 0}, NULL), ESP_OK);
    expect_chunk(s, id, 0, 0);
    expect_chunk(s, id, 1, 0);
    assert_false(esp_supply_next(s, id, &msg));
    esp_supply_destroy(&s);
}

static void test_options(void **state)
{
    static const uint32_t bad[] = {1024, CHUNK + 1, CHUNK + CHUNK / 2, 32u << 20};
    struct esp_supply *s;
    struct esp_err err;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const struct esp_supply_options o = {.chunk_bytes = bad[i], .cache_dir = dir};
        assert_int_equal(esp_supply_create(&s, tiny.ck, tiny.msg.manifest.fingerprint, &o, NULL, &err),
                         ESP_E_ARG);
        assert_null(s);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_manifest), TEST(test_fetch), TEST(test_in_turn), TEST(test_silent), TEST(test_options),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
