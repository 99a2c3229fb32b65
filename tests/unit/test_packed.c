/*
 * The cache of packed matrices: what is kept comes back, whatever threads read and wrote it; what is damaged or foreign is
 * found and removed; what cannot be written costs nothing; what is old goes first. Names: another one for whatever bytes
 * follow from, the same one for a copy. What is known of files: for as long as they are the same.
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
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/file.h"
#include "tests/support/temp.h"
#include "worker/packed.h"
#include "worker/packed_key.h"

#define N_UNIT     12u
#define UNIT_BYTES 4104u /* no multiple of a sum's lanes */
#define FILE_BYTES (N_UNIT * (UNIT_BYTES + 8) + 72)

static char dir[64];

static int setup(void **state)
{
    (void)state;
    return esp_temp_make(dir, sizeof dir);
}

static int teardown(void **state)
{
    (void)state;
    return esp_temp_remove(dir);
}

static struct esp_packed *open_cache(uint64_t limit_bytes)
{
    struct esp_packed *p;
    struct esp_err err;

    if (esp_packed_open(&p, dir, limit_bytes, false, NULL, &err))
        fail_msg("%s", err.text);
    return p;
}

static void name_of(uint8_t name[ESP_PACKED_NAME_BYTES], unsigned i)
{
    memset(name, (int)(7 * i + 1), ESP_PACKED_NAME_BYTES);
}

static void path_of(char out[256], unsigned i)
{
    uint8_t name[ESP_PACKED_NAME_BYTES];
    int n;

    name_of(name, i);
    n = snprintf(out, 256, "%s/%02x/", dir, name[0]);
    for (int k = 1; k < ESP_PACKED_NAME_BYTES; k++)
        n += snprintf(out + n, 256 - (size_t)n, "%02x", name[k]);
}

static void fill(unsigned char unit[UNIT_BYTES], unsigned i, uint32_t u)
{
    for (uint32_t k = 0; k < UNIT_BYTES; k++)
        unit[k] = (unsigned char)(k * 31 + k / 256 * 7 + u * 13 + i);
}

/* Writes matrix i's units in an order of its own. */
static void write_units(struct esp_packed_file *f, unsigned i)
{
    unsigned char two[2 * UNIT_BYTES];

    for (uint32_t k = 0; k < N_UNIT; k += 2) {
        const uint32_t u = (k * 5 + 4) % N_UNIT / 2 * 2;
        fill(two, i, u);
        fill(two + UNIT_BYTES, i, u + 1);
        esp_packed_write(f, u, 2, two);
    }
}

static bool keep(struct esp_packed *p, unsigned i)
{
    uint8_t name[ESP_PACKED_NAME_BYTES];
    struct esp_packed_count before, after;
    struct esp_packed_file *f;

    name_of(name, i);
    esp_packed_count(p, &before);
    if (esp_packed_begin(&f, p, name, N_UNIT, UNIT_BYTES, NULL))
        return false;
    write_units(f, i);
    esp_packed_close(&f, true);
    assert_null(f);
    esp_packed_count(p, &after);
    return after.kept == before.kept + 1;
}

/* ESP_OK only if every unit is as it was written. */
static esp_status read_back(struct esp_packed *p, unsigned i)
{
    uint8_t name[ESP_PACKED_NAME_BYTES];
    unsigned char got[UNIT_BYTES], want[UNIT_BYTES];
    struct esp_packed_file *f;
    struct esp_err err = {0};
    esp_status st;

    name_of(name, i);
    st = esp_packed_find(&f, p, name, N_UNIT, UNIT_BYTES, &err);
    assert_int_equal(st == ESP_OK, f != NULL);
    for (uint32_t u = 0; !st && u < N_UNIT; u++) {
        fill(want, i, u);
        st = esp_packed_read(f, u, 1, got, &err);
        if (!st)
            assert_memory_equal(got, want, UNIT_BYTES);
    }
    if (st && f)
        esp_packed_damaged(&f, err.text);
    else
        esp_packed_close(&f, true);
    return st;
}

static void test_kept(void **state)
{
    struct esp_packed *p = open_cache(0);
    struct esp_packed_count c;
    struct esp_packed_file *f;
    uint8_t name[ESP_PACKED_NAME_BYTES];
    unsigned char unit[UNIT_BYTES];

    (void)state;
    assert_int_equal(read_back(p, 1), ESP_E_CLOSED);
    assert_true(keep(p, 1));
    assert_true(keep(p, 2));
    assert_true(keep(p, 1)); /* again: the later one holds */
    assert_int_equal(read_back(p, 1), ESP_OK);
    assert_int_equal(read_back(p, 2), ESP_OK);
    esp_packed_destroy(&p);
    p = open_cache(0); /* another process */
    assert_int_equal(read_back(p, 1), ESP_OK);

    /* one that is given up half way is not there, and leaves nothing */
    name_of(name, 3);
    assert_int_equal(esp_packed_begin(&f, p, name, N_UNIT, UNIT_BYTES, NULL), ESP_OK);
    fill(unit, 3, 0);
    esp_packed_write(f, 0, 1, unit);
    esp_packed_close(&f, false);
    assert_int_equal(read_back(p, 3), ESP_E_CLOSED);
    esp_packed_count(p, &c);
    assert_int_equal(c.used, 1);
    assert_int_equal(c.used_bytes, N_UNIT * UNIT_BYTES);
    assert_int_equal(c.kept, 0);
    assert_int_equal(c.damaged, 0);
    esp_packed_destroy(&p);
}

/* Whatever was done to a file is found, told and mended: it goes, and the next one is right again. */
static void test_hostile(void **state)
{
    static const struct {
        const char *what;
        long at;       /* of a byte that is turned over; from the end if negative */
        long truncate; /* to so many bytes; -1: not */
        long grow;
    } cases[] = {
        {"empty", 0, 0, 0},
        {"cut in the units", 0, 5000, 0},
        {"cut by a byte", 0, FILE_BYTES - 1, 0},
        {"longer by a byte", 0, -1, 1},
        {"first byte", 0, -1, 0},
        {"last byte of a unit", UNIT_BYTES - 1, -1, 0},
        {"in the last unit", N_UNIT * UNIT_BYTES - 3, -1, 0},
        {"a unit's sum", N_UNIT * UNIT_BYTES + 9, -1, 0},
        {"magic", -72, -1, 0},
        {"number of units", -64, -1, 0},
        {"bytes of a unit", -56, -1, 0},
        {"name", -40, -1, 0},
        {"sum of sums", -16, -1, 0},
        {"sum of the end", -1, -1, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct esp_packed *p = open_cache(0);
        struct esp_packed_count c;
        struct stat sb;
        char path[256];
        unsigned char b;
        long at;
        int fd;

        assert_true(keep(p, 5));
        path_of(path, 5);
        fd = open(path, O_RDWR);
        assert_true(fd >= 0);
        assert_int_equal(fstat(fd, &sb), 0);
        assert_int_equal(sb.st_size, FILE_BYTES);
        at = cases[i].at < 0 ? FILE_BYTES + cases[i].at : cases[i].at;
        if (cases[i].truncate >= 0) {
            assert_int_equal(ftruncate(fd, cases[i].truncate), 0);
        } else if (cases[i].grow) {
            assert_int_equal(ftruncate(fd, FILE_BYTES + cases[i].grow), 0);
        } else {
            assert_int_equal(pread(fd, &b, 1, at), 1);
            b ^= 0x10;
            assert_int_equal(pwrite(fd, &b, 1, at), 1);
        }
        close(fd);
        if (read_back(p, 5) != ESP_E_FORMAT)
            fail_msg("%s: not found out", cases[i].what);
        assert_int_equal(access(path, F_OK), -1);
        esp_packed_count(p, &c);
        assert_int_equal(c.damaged, 1);
        assert_int_equal(read_back(p, 5), ESP_E_CLOSED);
        assert_true(keep(p, 5));
        assert_int_equal(read_back(p, 5), ESP_OK);
        esp_packed_destroy(&p);
    }
}

/* A file under another matrix's name, or of another shape, is none of ours. */
static void test_foreign(void **state)
{
    struct esp_packed *p = open_cache(0);
    struct esp_packed_file *f;
    uint8_t name[ESP_PACKED_NAME_BYTES];
    char from[256], to[256], folder[256];

    (void)state;
    assert_true(keep(p, 1));
    path_of(from, 1);
    path_of(to, 2);
    snprintf(folder, sizeof folder, "%s", to);
    *strrchr(folder, '/') = '\0';
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(read_back(p, 2), ESP_E_FORMAT);
    assert_true(keep(p, 2));
    name_of(name, 2);
    assert_int_equal(esp_packed_find(&f, p, name, N_UNIT / 2, 2 * UNIT_BYTES, NULL), ESP_E_FORMAT);
    assert_int_equal(mkdir(to, 0700),
                     0); /* a directory in its place: it cannot be removed, nor be replaced */
    assert_int_equal(read_back(p, 2), ESP_E_FORMAT);
    assert_false(keep(p, 2));
    assert_int_equal(rmdir(to), 0);
    assert_true(keep(p, 2));
    esp_packed_destroy(&p);
}

static void test_sum(void **state)
{
    static unsigned char data[1003];

    (void)state;
    for (size_t n = 1; n <= sizeof data; n += 167) {
        uint64_t sum;

        for (size_t i = 0; i < sizeof data; i++)
            data[i] = (unsigned char)(i * 7);
        sum = esp_packed_sum(data, n);
        for (size_t i = 0; i < n; i++) {
            for (int bit = 0; bit < 8; bit++) {
                data[i] ^= (unsigned char)(1 << bit);
                assert_true(esp_packed_sum(data, n) != sum);
                data[i] ^= (unsigned char)(1 << bit);
            }
        }
        assert_true(esp_packed_sum(data, n) == sum);
        assert_true(esp_packed_sum(data, n - 1) != sum);
    }
    memset(data, 0, sizeof data); /* words that changed places, zeros that are more */
    data[0] = 1;
    const uint64_t first = esp_packed_sum(data, 256);
    data[0] = 0;
    data[64] = 1;
    assert_true(esp_packed_sum(data, 256) != first);
    data[64] = 0;
    data[8] = 1;
    assert_true(esp_packed_sum(data, 256) != first);
    data[8] = 0;
    assert_true(esp_packed_sum(data, 256) != esp_packed_sum(data, 320));
}

static void set_time(unsigned i, long seconds)
{
    const struct timespec t[2] = {{.tv_sec = seconds}, {.tv_sec = seconds}};
    char path[256];

    path_of(path, i);
    assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

/* The limit holds: the oldest goes; what this process uses stays, and then nothing more is kept. */
static void test_limit(void **state)
{
    struct esp_packed *p = open_cache(0);

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        assert_true(keep(p, i));
        set_time(i, 1000 + i);
    }
    esp_packed_destroy(&p);
    p = open_cache(5 * FILE_BYTES);
    assert_int_equal(read_back(p, 0), ESP_OK); /* used: it is the newest now */
    assert_true(keep(p, 10));
    assert_true(keep(p, 11));
    assert_int_equal(read_back(p, 1), ESP_E_CLOSED);
    assert_int_equal(read_back(p, 0), ESP_OK);
    assert_int_equal(read_back(p, 10), ESP_OK);
    assert_true(keep(p, 12));
    assert_true(keep(p, 13));
    assert_false(keep(p, 14)); /* all of them are in use */
    for (unsigned i = 10; i < 14; i++)
        assert_int_equal(read_back(p, i), ESP_OK);
    esp_packed_destroy(&p);
}

static void test_full_disk(void **state)
{
    struct rlimit before, small = {.rlim_cur = 3 * UNIT_BYTES};
    struct esp_packed *p = open_cache(0);
    struct esp_packed_count c;
    char left[128];
    DIR *d;

    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_false(keep(p, 1));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    esp_packed_count(p, &c);
    assert_int_equal(c.failed, 1);
    assert_int_equal(read_back(p, 1), ESP_E_CLOSED);
    snprintf(left, sizeof left, "%s/unfinished", dir);
    d = opendir(left);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        assert_int_equal(e->d_name[0], '.'); /* nothing is left of it */
    closedir(d);
    assert_true(keep(p, 1));
    esp_packed_destroy(&p);
}

/* Where nothing can be made there is no cache, and that is said. */
static void test_no_place(void **state)
{
    struct esp_packed *p;
    struct esp_err err = {0};

    (void)state;
    assert_int_equal(esp_packed_open(&p, "/proc/self", 0, false, NULL, &err), ESP_E_IO);
    assert_null(p);
    assert_non_null(strstr(err.text, "/proc/self"));
}

/* Two processes write and read the same names at once: whoever reads, reads what was written. */
static void test_two_writers(void **state)
{
    struct esp_packed *p;
    pid_t pid;
    int status;

    (void)state;
    pid = fork();
    assert_true(pid >= 0);
    p = open_cache(0);
    for (int turn = 0; turn < 20; turn++) {
        for (unsigned i = 0; i < 4; i++) {
            const esp_status st = read_back(p, i);
            if ((st && st != ESP_E_CLOSED) || !keep(p, i)) {
                if (pid == 0)
                    _exit(1);
                fail_msg("matrix %u: %d", i, (int)st);
            }
        }
    }
    esp_packed_destroy(&p);
    if (pid == 0)
        _exit(0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* ---- names ---- */

#define ROWS 64u
#define COLS 96u

static uint16_t weights[3][ROWS * COLS];
static struct esp_file_id file_id[3];

static void make_tensors(struct esp_tensor t[3])
{
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t k = 0; k < ROWS * COLS; k++)
            weights[i][k] = (uint16_t)(0x3c00u + (k * 40503u >> 8 & 0x7f) + i);
        file_id[i] = (struct esp_file_id){.device = 1, .inode = i + 1, .n_bytes = 1u << 20, .modified = 5};
        t[i] = (struct esp_tensor){.dtype = ESP_BF16,
                                   .n_dim = 2,
                                   .shape = {ROWS, COLS},
                                   .data = weights[i],
                                   .n_bytes = sizeof weights[i],
                                   .name = "w",
                                   .file = "f",
                                   .file_id = &file_id[i],
                                   .file_at = 100};
    }
}

static void name_matrix(uint8_t out[ESP_CONTENT_BYTES], const struct esp_pack_spec *spec,
                        struct esp_known *known, uint32_t n_thread, uint64_t max_bytes, uint64_t *n_hashed)
{
    struct esp_packed_key key;
    struct esp_pack_dims dims;
    struct esp_pool *pool;
    struct esp_err err = {0};
    bool done = false;

    assert_true(esp_packed_key_possible(spec));
    assert_int_equal(esp_pool_create(&pool, n_thread, &err), ESP_OK);
    esp_pack_dims(&dims, spec);
    esp_packed_key_init(&key, spec, known);
    *n_hashed = 0;
    while (!done) {
        uint64_t spent;
        assert_int_equal(esp_packed_key_step(&done, &key, pool, max_bytes, &spent, &err), ESP_OK);
        *n_hashed += spent;
    }
    if (esp_packed_key_name(out, &key, &dims, &err))
        fail_msg("%s", err.text);
    esp_packed_key_finish(&key);
    esp_pool_destroy(&pool);
}

static struct esp_known *open_known(void)
{
    struct esp_known *k;
    struct esp_err err;
    char path[96];

    snprintf(path, sizeof path, "%s/known", dir);
    assert_int_equal(esp_known_create(&k, path, NULL, &err), ESP_OK);
    return k;
}

static void test_names(void **state)
{
    struct esp_known *known = open_known();
    struct esp_tensor t[3];
    struct esp_pack_spec specs[12];
    uint8_t name[12][ESP_CONTENT_BYTES], again[ESP_CONTENT_BYTES];
    uint64_t n_hashed;
    uint32_t n = 0;

    (void)state;
    make_tensors(t);
    specs[n++] = (struct esp_pack_spec){.n_part = 1, .part = {{.tensor = &t[0]}}, .want = ESP_W_Q8};
    specs[n++] = (struct esp_pack_spec){.n_part = 1, .part = {{.tensor = &t[1]}}, .want = ESP_W_Q8};
    specs[n++] = (struct esp_pack_spec){.n_part = 1, .part = {{.tensor = &t[0]}}, .want = ESP_W_Q4};
    specs[n++] = (struct esp_pack_spec){.n_part = 1, .part = {{.tensor = &t[0]}}};
    specs[n++] = (struct esp_pack_spec){
        .n_part = 1, .part = {{.tensor = &t[0]}}, .want = ESP_W_Q8, .cls = ESP_VK_TEXEL};
    specs[n++] =
        (struct esp_pack_spec){.n_part = 2, .part = {{.tensor = &t[0]}, {.tensor = &t[1]}}, .want = ESP_W_Q8};
    specs[n++] =
        (struct esp_pack_spec){.n_part = 2, .part = {{.tensor = &t[1]}, {.tensor = &t[0]}}, .want = ESP_W_Q8};
    specs[n++] = (struct esp_pack_spec){
        .n_part = 2, .part = {{.tensor = &t[0]}, {.tensor = &t[1]}}, .interleave = true, .want = ESP_W_Q8};
    specs[n++] =
        (struct esp_pack_spec){.n_part = 1, .part = {{.tensor = &t[0], .heads = {4, 16}}}, .want = ESP_W_Q8};
    specs[n++] =
        (struct esp_pack_spec){.n_part = 1, .part = {{.tensor = &t[0], .heads = {8, 8}}}, .want = ESP_W_Q8};
    specs[n++] = (struct esp_pack_spec){
        .n_part = 1, .part = {{.tensor = &t[0]}}, .k_heads = {6, 16}, .want = ESP_W_Q8};
    for (uint32_t i = 0; i < n; i++) {
        name_matrix(name[i], &specs[i], known, 1 + i % 3, i % 2 ? 1 : UINT64_MAX, &n_hashed);
        for (uint32_t k = 0; k < i; k++)
            if (memcmp(name[i], name[k], sizeof name[i]) == 0)
                fail_msg("matrices %u and %u have one name", i, k);
        name_matrix(again, &specs[i], known, 3, 1, &n_hashed);
        assert_memory_equal(again, name[i], sizeof again);
        assert_int_equal(n_hashed, 0); /* it is known by now */
    }

    /* a copy of the file has the same name; one changed bit in it, or in what the shape is, another */
    file_id[0].inode = 77;
    t[0].file_at = 4000;
    name_matrix(again, &specs[0], known, 2, UINT64_MAX, &n_hashed);
    assert_true(n_hashed > 0);
    assert_memory_equal(again, name[0], sizeof again);
    file_id[0].inode = 78;
    weights[0][ROWS * COLS - 1] ^= 1;
    name_matrix(again, &specs[0], known, 2, UINT64_MAX, &n_hashed);
    assert_memory_not_equal(again, name[0], sizeof again);
    weights[0][ROWS * COLS - 1] ^= 1;
    file_id[0].inode = 79;
    t[0].shape[0] = COLS;
    t[0].shape[1] = ROWS;
    name_matrix(again, &specs[0], known, 2, UINT64_MAX, &n_hashed);
    assert_memory_not_equal(again, name[0], sizeof again);
    esp_known_destroy(&known);

    t[0].file_id = NULL; /* no file, nothing said: then it has no name */
    assert_false(esp_packed_key_possible(&specs[0]));
    t[1].dtype = ESP_Q8; /* nothing is gained by it */
    assert_false(esp_packed_key_possible(&specs[1]));
}

/* Hashed chunk by chunk or told by its chunks' hashes: one content. */
static void test_told_content(void **state)
{
    struct esp_known *known = open_known();
    struct esp_tensor t[3];
    uint8_t chunk[ESP_CONTENT_BYTES], content[ESP_CONTENT_BYTES], a[ESP_CONTENT_BYTES], b[ESP_CONTENT_BYTES];
    struct esp_pack_spec spec = {.n_part = 1, .part = {{.tensor = &t[0]}}, .want = ESP_W_Q4};
    uint64_t n_hashed;

    (void)state;
    make_tensors(t);
    name_matrix(a, &spec, known, 2, UINT64_MAX, &n_hashed);
    esp_content_chunk(chunk, t[0].data, t[0].n_bytes);
    esp_content_tensor(content, t[0].n_bytes, ESP_CONTENT_CHUNK, chunk);
    t[0].file_id = NULL;
    t[0].content = content;
    t[0].data = NULL; /* nobody reads it */
    name_matrix(b, &spec, known, 2, UINT64_MAX, &n_hashed);
    assert_int_equal(n_hashed, 0);
    assert_memory_equal(a, b, sizeof a);
    esp_known_destroy(&known);
}

/* ---- what is known of files ---- */

static void test_known(void **state)
{
    struct esp_tensor t[3];
    struct esp_known *known = open_known(), *other = open_known();
    uint8_t one[ESP_CONTENT_BYTES], two[ESP_CONTENT_BYTES], got[ESP_CONTENT_BYTES];
    char path[96], file[512] = "";
    struct esp_file_id same;
    DIR *d;

    (void)state;
    make_tensors(t);
    memset(one, 1, sizeof one);
    memset(two, 2, sizeof two);
    t[1].file_id = t[0].file_id;
    t[1].file_at = 5000;
    assert_false(esp_known_get(got, known, &t[0]));
    esp_known_put(known, &t[0], one);
    esp_known_put(other, &t[1], two); /* another process, another tensor of that file */
    esp_known_destroy(&known);
    esp_known_destroy(&other);
    known = open_known();
    same = file_id[0];
    t[0].file_id = &same; /* opened again */
    assert_true(esp_known_get(got, known, &t[0]));
    assert_memory_equal(got, one, sizeof got);
    assert_true(esp_known_get(got, known, &t[1]));
    assert_memory_equal(got, two, sizeof got);
    t[0].n_bytes -= 2;
    assert_false(esp_known_get(got, known, &t[0]));
    t[0].n_bytes += 2;

    same.changed++; /* any difference in the file's state makes it another file */
    assert_false(esp_known_get(got, known, &t[0]));
    same = file_id[0];
    same.modified++;
    assert_false(esp_known_get(got, known, &t[0]));
    same = file_id[0];
    same.n_bytes++;
    assert_false(esp_known_get(got, known, &t[0]));
    same = file_id[0];
    assert_true(esp_known_get(got, known, &t[0]));
    esp_known_destroy(&known);

    /* a table that somebody damaged is none */
    snprintf(path, sizeof path, "%s/known", dir);
    d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.')
            snprintf(file, sizeof file, "%s/%s", path, e->d_name);
    closedir(d);
    for (long at = 0; at < 8 + 2 * 48 + 32; at += 5) {
        unsigned char b;
        int fd = open(file, O_RDWR);

        assert_true(fd >= 0);
        assert_int_equal(pread(fd, &b, 1, at), 1);
        b ^= 4;
        assert_int_equal(pwrite(fd, &b, 1, at), 1);
        known = open_known();
        assert_false(esp_known_get(got, known, &t[0]));
        esp_known_destroy(&known);
        b ^= 4;
        assert_int_equal(pwrite(fd, &b, 1, at), 1);
        close(fd);
    }
    known = open_known();
    assert_true(esp_known_get(got, known, &t[0]));
    esp_known_destroy(&known);
    assert_int_equal(truncate(file, 50), 0);
    known = open_known();
    assert_false(esp_known_get(got, known, &t[0]));
    esp_known_destroy(&known);
}

/* A file that was changed just now may change again without a new time: nothing of it outlives the process. */
static void test_not_settled(void **state)
{
    struct esp_tensor t[3];
    struct esp_known *known = open_known();
    uint8_t one[ESP_CONTENT_BYTES] = {1}, got[ESP_CONTENT_BYTES];
    struct esp_file_id id;
    const void *data;
    size_t n;
    char path[96];
    FILE *f;
    struct esp_err err;

    (void)state;
    make_tensors(t);
    snprintf(path, sizeof path, "%s/model", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs("weights", f);
    fclose(f);
    assert_int_equal(esp_file_map(&data, &n, &id, path, &err), ESP_OK);
    esp_file_unmap(data, n);
    assert_int_equal(id.n_bytes, 7);
    t[0].file_id = &id;
    esp_known_put(known, &t[0], one);
    assert_true(esp_known_get(got, known, &t[0]));
    esp_known_destroy(&known);
    known = open_known();
    assert_false(esp_known_get(got, known, &t[0]));
    esp_known_destroy(&known);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_kept),  TEST(test_hostile),      TEST(test_foreign),  TEST(test_sum),
        TEST(test_limit), TEST(test_full_disk),    TEST(test_no_place), TEST(test_two_writers),
        TEST(test_names), TEST(test_told_content), TEST(test_known),    TEST(test_not_settled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
