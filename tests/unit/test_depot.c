/* The depot of a worker without a checkpoint, its coordinator played by the test: what it asks for, once and no more than
 * once; what it makes of an empty, a full, a broken and an impossible cache; and of a coordinator that lies. */
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

#include "tests/support/manifest.h"
#include "tests/support/temp.h"
#include "worker/cache.h"
#include "worker/depot.h"

#define TINY        "tests/golden/data/tiny"
#define ODD         "tests/golden/data/odd"
#define CHUNK       65536u
#define DEADLINE_S  60
#define MAX_TENSORS 200

static struct esp_test_manifest tiny, odd;
static char dir[64];
/* One encoder layer of two, with the ends of both towers that go with it. */
static const struct esp_stage_spec spec = {
    .enc_hi = 1, .patch = true, .dec_lo = 2, .dec_hi = 3, .head = true};
static const struct esp_test_part part = {
    .enc_hi = 1, .patch = true, .dec_lo = 2, .dec_hi = 3, .table = true};

static int open_all(void **state)
{
    esp_test_manifest_make(&tiny, TINY, CHUNK);
    esp_test_manifest_make(&odd, ODD, CHUNK);
    return 0;
}

static int close_all(void **state)
{
    esp_test_manifest_free(&tiny);
    esp_test_manifest_free(&odd);
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

static struct esp_depot *open_depot(const char *where, uint64_t limit_bytes)
{
    struct esp_depot *d;
    struct esp_err err;

    if (esp_depot_create(&d, where, limit_bytes, NULL, &err))
        fail_msg("%s", err.text);
    return d;
}

static struct esp_checkpoint *take_manifest(struct esp_depot *d, const struct esp_test_manifest *m)
{
    struct esp_checkpoint *ck;
    struct esp_err err;

    if (esp_depot_manifest(d, &ck, &m->msg, "tests", &err))
        fail_msg("%s", err.text);
    return ck;
}

/* All tensors of `part`. */
static uint32_t tensors_of(const struct esp_tensor *out[MAX_TENSORS], const struct esp_checkpoint *ck)
{
    uint32_t n = 0;

    for (enum esp_role r = 0; r < ESP_N_ROLE; r++) {
        const bool vision = r >= ESP_V_LN1_W && r <= ESP_V_FC2_B,
                   text = r >= ESP_T_NORM_ATTN && r <= ESP_T_NORM_POST_MLP;
        const struct esp_tensor *t = esp_checkpoint_tensor(ck, r, text ? 2 : 0);

        if (t && (vision || text || r <= ESP_V_POS || r == ESP_T_EMBED || r == ESP_T_NORM_FINAL))
            out[n++] = t;
    }
    return n;
}

/* How the coordinator answers. */
struct answers {
    const struct esp_test_manifest *m;
    uint32_t n;        /* fetches so far */
    uint32_t n_most;   /* answers no more than that; 0: all */
    uint32_t n_lies;   /* the first so many answers to the victim are not true */
    uint32_t tensor;   /* the victim, its chunk 0 */
    bool cut, refuses; /* how they lie; neither: a flipped byte */
};

static void answer(struct esp_depot *d, struct answers *a, const struct esp_msg_fetch *f)
{
    struct esp_msg msg = {.kind = ESP_MSG_CHUNK,
                          .chunk = {.tensor = f->tensor, .chunk = f->chunk, .why = ""}};
    static uint8_t lie[CHUNK];
    struct esp_err err;
    size_t n;
    const void *data = esp_test_chunk(a->m, f->tensor, f->chunk, &n);

    msg.n_blobs = 1;
    msg.blob[0] = (struct esp_blob){.data = data, .n_bytes = n};
    if (a->n_lies > 0 && f->tensor == a->tensor && f->chunk == 0) {
        a->n_lies--;
        memcpy(lie, data, n);
        lie[n / 2] ^= 1;
        msg.blob[0].data = lie;
        if (a->cut)
            msg.blob[0].n_bytes--;
        if (a->refuses) {
            msg.n_blobs = 0;
            msg.chunk.why = "the disk is gone";
        }
    }
    if (esp_depot_take(d, &msg, &err))
        fail_msg("%s", err.text);
}

/* Serves until the tensors are there, or are known not to come, or the coordinator has fallen silent. */
static esp_status serve(struct esp_depot *d, const struct esp_checkpoint *ck, struct answers *a,
                        struct esp_err *err)
{
    const struct esp_tensor *tensors[MAX_TENSORS];
    const uint32_t n = tensors_of(tensors, ck);
    const time_t start = time(NULL);
    struct pollfd fd = {.fd = esp_depot_fd(d), .events = POLLIN};
    struct esp_msg_fetch f;
    esp_status st;

    while ((st = esp_depot_need(d, tensors, n, err)) == ESP_E_TIMEOUT && (!a->n_most || a->n < a->n_most)) {
        if (time(NULL) - start > DEADLINE_S)
            fail_msg("still waiting after %d s", DEADLINE_S);
        while ((!a->n_most || a->n < a->n_most) && esp_depot_fetch(d, &f)) {
            a->n++;
            answer(d, a, &f);
        }
        poll(&fd, 1, 20);
    }
    return st;
}

static void expect_whole(const struct esp_checkpoint *ck, const struct esp_test_manifest *m)
{
    const struct esp_tensor *ours[MAX_TENSORS], *theirs[MAX_TENSORS];
    const uint32_t n = tensors_of(ours, ck);

    assert_int_equal(tensors_of(theirs, m->ck), n);
    for (int again = 0; again < 2; again++)
        for (uint32_t i = 0; i < n; i++) {
            assert_memory_equal(ours[i]->data, theirs[i]->data, theirs[i]->n_bytes);
            esp_tensor_done(ours[i]); /* and nothing is lost with that */
        }
}

/* A depot that gets all of `part`; how many fetches it made. */
static uint32_t run(const char *where, struct esp_depot_count *count)
{
    struct esp_depot *d = open_depot(where, 0);
    struct esp_checkpoint *ck = take_manifest(d, &tiny);
    struct answers a = {.m = &tiny};
    struct esp_err err;
    uint64_t done, total;

    esp_depot_want(d, &spec);
    if (serve(d, ck, &a, &err))
        fail_msg("%s", err.text);
    expect_whole(ck, &tiny);
    esp_depot_progress(d, &done, &total);
    assert_int_equal(done, total);
    assert_true(total > 0);
    esp_depot_count(d, count);
    esp_depot_destroy(&d);
    return a.n;
}

static void test_once(void **state)
{
    struct esp_depot_count count;
    uint64_t n_bytes;
    const uint32_t n = esp_test_part_chunks(&tiny, &part, &n_bytes);

    assert_int_equal(run(dir, &count), n);
    assert_int_equal(count.fetched, n);
    assert_int_equal(count.fetched_bytes, n_bytes);
    assert_int_equal(count.refused + count.in_memory, 0);
    assert_int_equal(run(dir, &count), 0);
    assert_int_equal(count.fetched, 0);
    assert_true(count.cached >= n);
}

/* The path of one file of the cache. */
static void any_file(char out[512])
{
    DIR *top = opendir(dir);

    out[0] = '\0';
    for (struct dirent *e; !out[0] && (e = readdir(top));) {
        char folder[160];
        DIR *d;

        if (e->d_name[0] == '.' || strlen(e->d_name) != 2)
            continue;
        snprintf(folder, sizeof folder, "%s/%s", dir, e->d_name);
        d = opendir(folder);
        for (struct dirent *f; (f = readdir(d));)
            if (f->d_name[0] != '.')
                snprintf(out, 512, "%s/%s", folder, f->d_name);
        closedir(d);
    }
    closedir(top);
    assert_true(out[0] != '\0');
}

static void test_flipped(void **state)
{
    struct esp_depot_count count;
    char path[512], byte;
    int fd;

    run(dir, &count);
    any_file(path);
    fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, 100), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, 100), 1);
    close(fd);
    assert_int_equal(run(dir, &count), 1);
    assert_int_equal(run(dir, &count), 0);
}

static void test_resumed(void **state)
{
    const uint32_t half = esp_test_part_chunks(&tiny, &part, &(uint64_t){0}) / 2;
    struct answers a = {.m = &tiny, .n_most = half};
    struct esp_depot *d = open_depot(dir, 0);
    struct esp_checkpoint *ck = take_manifest(d, &tiny);
    struct esp_depot_count count;
    const time_t start = time(NULL);

    esp_depot_want(d, &spec);
    assert_int_equal(serve(d, ck, &a, NULL), ESP_E_TIMEOUT);
    do {
        esp_depot_count(d, &count);
        assert_true(time(NULL) - start < DEADLINE_S);
    } while (count.fetched < half);
    esp_depot_destroy(&d);
    assert_int_equal(run(dir, &count), esp_test_part_chunks(&tiny, &part, &(uint64_t){0}) - half);
}

/* The conversation breaks: what was out is asked for again, what came is not. */
static void test_lost(void **state)
{
    const uint32_t n = esp_test_part_chunks(&tiny, &part, &(uint64_t){0});
    struct answers a = {.m = &tiny, .n_most = n / 2};
    struct esp_depot *d = open_depot(dir, 0);
    struct esp_checkpoint *ck = take_manifest(d, &tiny);
    struct pollfd fd = {.fd = esp_depot_fd(d), .events = POLLIN};
    struct esp_msg_fetch f, out[ESP_DEPOT_WINDOW];
    struct esp_depot_count count;
    struct esp_msg msg = {.kind = ESP_MSG_CHUNK, .n_blobs = 1};
    const time_t start = time(NULL);
    uint32_t n_out = 0;
    struct esp_err err;

    esp_depot_want(d, &spec);
    assert_int_equal(serve(d, ck, &a, NULL), ESP_E_TIMEOUT);
    while (n_out == 0) { /* some are out, with no answer */
        while (esp_depot_fetch(d, &f))
            out[n_out++] = f;
        poll(&fd, 1, 20);
        assert_true(time(NULL) - start < DEADLINE_S);
    }
    esp_depot_lost(d);
    assert_null(take_manifest(d, &tiny)); /* the same one: nothing begins anew */
    msg.chunk = (struct esp_msg_chunk){.tensor = out[0].tensor, .chunk = out[0].chunk};
    msg.blob[0].data = esp_test_chunk(&tiny, out[0].tensor, out[0].chunk, &msg.blob[0].n_bytes);
    assert_int_equal(esp_depot_take(d, &msg, &err), ESP_E_PROTO); /* too late: it is not out any more */
    a.n_most = 0;
    assert_int_equal(serve(d, ck, &a, &err), ESP_OK);
    expect_whole(ck, &tiny);
    esp_depot_count(d, &count);
    assert_int_equal(count.fetched, n);
    assert_int_equal(a.n, n);
    esp_depot_destroy(&d);
}

static void test_lies(void **state)
{
    static const struct {
        bool cut, refuses;
        uint32_t n_lies;
        esp_status st;
        const char *why;
    } cases[] = {
        {false, false, 2, ESP_OK, NULL},
        {false, false, 99, ESP_E_FORMAT, "its bytes have another hash, 4 times"},
        {true, false, 99, ESP_E_FORMAT, "of another size, 4 times"},
        {false, true, 99, ESP_E_IO, "the disk is gone, 4 times"},
        {true, false, 3, ESP_OK, NULL},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_depot *d = open_depot(dir, 0);
        struct esp_checkpoint *ck = take_manifest(d, &tiny);
        struct answers a = {
            .m = &tiny, .n_lies = cases[i].n_lies, .cut = cases[i].cut, .refuses = cases[i].refuses};
        struct esp_err err = {0};
        esp_status st;

        assert_int_equal(tiny.info[a.tensor].role, ESP_V_PATCH_W);
        esp_depot_want(d, &spec);
        st = serve(d, ck, &a, &err);
        if (st != cases[i].st || (cases[i].why && !strstr(err.text, cases[i].why)))
            fail_msg("case %zu: %d, \"%s\"", i, st, err.text);
        if (st) { /* a new placement tries again */
            a.n_lies = 0;
            esp_depot_want(d, &spec);
            assert_int_equal(serve(d, ck, &a, &err), ESP_OK);
        }
        expect_whole(ck, &tiny);
        esp_depot_destroy(&d);
        teardown(NULL);
        setup(NULL);
    }
}

static void test_not_asked_for(void **state)
{
    static const struct esp_msg_chunk cases[] = {{0, 0, ""}, {0, 99, ""}, {5000, 0, ""}, {0, 0, "no"}};
    struct esp_depot *d = open_depot(dir, 0);
    struct esp_err err;

    for (int with = 0; with < 2; with++) {
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            struct esp_msg msg = {
                .kind = ESP_MSG_CHUNK, .chunk = cases[i], .n_blobs = cases[i].why[0] == '\0'};

            msg.blob[0] = (struct esp_blob){.data = "x", .n_bytes = 1};
            assert_int_equal(esp_depot_take(d, &msg, &err), ESP_E_PROTO);
        }
        take_manifest(d, &tiny);
    }
    esp_depot_destroy(&d);
}

static void test_no_cache(void **state)
{
    struct esp_depot_count count;
    uint64_t n_bytes;
    char path[96];

    snprintf(path, sizeof path, "%s/file", dir);
    assert_int_equal(close(open(path, O_CREAT | O_WRONLY, 0600)), 0);
    assert_true(run(path, &count) >= esp_test_part_chunks(&tiny, &part, &n_bytes));
    assert_int_equal(count.in_memory, count.fetched);
}

/* A limit that the slice alone passes: the rest is kept in memory, and nothing that is used goes. */
static void test_limit(void **state)
{
    struct esp_depot *d = open_depot(dir, 10 * CHUNK);
    struct esp_checkpoint *ck = take_manifest(d, &tiny);
    struct answers a = {.m = &tiny};
    struct esp_depot_count count;

    esp_depot_want(d, &spec);
    assert_int_equal(serve(d, ck, &a, NULL), ESP_OK);
    expect_whole(ck, &tiny);
    esp_depot_count(d, &count);
    assert_true(count.in_memory > 0 && count.in_memory < count.fetched);
    esp_depot_destroy(&d);
}

static void test_another(void **state)
{
    struct esp_depot *d = open_depot(dir, 0);
    struct esp_checkpoint *first = take_manifest(d, &tiny), *second;
    const struct esp_tensor *old = esp_checkpoint_tensor(first, ESP_V_PATCH_W, 0);
    struct answers a = {.m = &tiny, .n_most = 5};
    struct esp_msg_fetch f;
    struct esp_err err;

    assert_non_null(first);
    esp_depot_want(d, &spec);
    assert_int_equal(serve(d, first, &a, NULL), ESP_E_TIMEOUT);
    second = take_manifest(d, &odd); /* with fetches out and chunks being kept */
    assert_non_null(second);
    assert_int_equal(esp_depot_need(d, &old, 1, &err), ESP_E_CANCELLED);
    esp_depot_retire(d, first);
    assert_false(esp_depot_fetch(d, &f)); /* nothing is wanted yet */
    a = (struct answers){.m = &odd};
    esp_depot_want(d, &spec);
    if (serve(d, second, &a, &err))
        fail_msg("%s", err.text);
    expect_whole(second, &odd);
    esp_depot_destroy(&d);
}

/* A manifest that cannot be leaves what is there. */
static void test_bad_manifest(void **state)
{
    struct esp_depot *d = open_depot(dir, 0);
    struct esp_checkpoint *ck = take_manifest(d, &tiny), *none;
    struct answers a = {.m = &tiny};
    struct esp_msg msg = tiny.msg;
    struct esp_err err;

    msg.blob[1].n_bytes -= ESP_HASH_BYTES;
    assert_int_equal(esp_depot_manifest(d, &none, &msg, "tests", &err), ESP_E_FORMAT);
    assert_null(none);
    msg = tiny.msg;
    msg.manifest.n_tensors--;
    assert_int_equal(esp_depot_manifest(d, &none, &msg, "tests", &err), ESP_E_FORMAT);
    esp_depot_want(d, &spec);
    assert_int_equal(serve(d, ck, &a, &err), ESP_OK);
    expect_whole(ck, &tiny);
    esp_depot_destroy(&d);
}

/* Two workers of one machine, one directory, at the same time. */
static void test_two_at_once(void **state)
{
    struct esp_depot *d[2] = {open_depot(dir, 0), open_depot(dir, 0)};
    struct esp_checkpoint *ck[2];
    struct answers a[2] = {{.m = &tiny, .n_most = 1}, {.m = &tiny, .n_most = 1}};
    struct esp_err err;

    for (int i = 0; i < 2; i++) {
        ck[i] = take_manifest(d[i], &tiny);
        esp_depot_want(d[i], &spec);
    }
    for (bool busy = true; busy;) { /* in turn, some chunks each */
        busy = false;
        for (int i = 0; i < 2; i++) {
            esp_status st = serve(d[i], ck[i], &a[i], &err);

            assert_true(st == ESP_OK || st == ESP_E_TIMEOUT);
            busy |= st == ESP_E_TIMEOUT;
            a[i].n_most = a[i].n + 7;
        }
    }
    for (int i = 0; i < 2; i++) {
        expect_whole(ck[i], &tiny);
        esp_depot_destroy(&d[i]);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_once),          TEST(test_flipped),      TEST(test_resumed),     TEST(test_lost),
        TEST(test_lies),          TEST(test_no_cache),     TEST(test_limit),       TEST(test_another),
        TEST(test_not_asked_for), TEST(test_bad_manifest), TEST(test_two_at_once),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
