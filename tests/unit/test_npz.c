/* Npz files: what is read, what is refused and how it is said; every truncation; every byte changed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "objects/npz.h"
#include "tests/support/npz_writer.h"

static const float numbers[6] = {0.0f, 1.0f, -0.5f, 3.25f, -1024.0f, 0x1p-14f};

/* Two arrays and something else, stored or deflated, single or half. */
static struct esp_npz_out good(bool half, bool deflated)
{
    struct esp_npz_out z = {0};

    esp_npz_out_array(&z, "b.weight", numbers, (const size_t[]){2, 3}, 2, half, deflated);
    esp_npz_out_raw(&z, "README", "hello", 5, false);
    esp_npz_out_array(&z, "a", numbers + 3, (const size_t[]){1}, 0, half, deflated);
    esp_npz_out_end(&z);
    return z;
}

static void test_good(void **state)
{
    for (int i = 0; i < 4; i++) {
        struct esp_npz_out z = good(i & 1, i & 2);
        struct esp_npz *npz;
        struct esp_npz_array a;
        struct esp_err err = {0};

        if (esp_npz_parse(&npz, z.bytes, z.n_bytes, "some/file", &err))
            fail_msg("%s", err.text);
        assert_int_equal(esp_npz_n_arrays(npz), 2);
        assert_string_equal(esp_npz_name(npz, 0), "a");
        assert_string_equal(esp_npz_name(npz, 1), "b.weight");
        assert_true(esp_npz_has(npz, "a"));
        assert_false(esp_npz_has(npz, "README"));
        if (esp_npz_read(&a, npz, "b.weight", 6, &err))
            fail_msg("%s", err.text);
        assert_int_equal(a.n_dim, 2);
        assert_int_equal(a.shape[0], 2);
        assert_int_equal(a.shape[1], 3);
        assert_int_equal(a.n_elem, 6);
        assert_memory_equal(a.values, numbers, sizeof numbers);
        esp_npz_array_finish(&a);
        assert_null(a.values);
        if (esp_npz_read(&a, npz, "a", 6, &err))
            fail_msg("%s", err.text);
        assert_int_equal(a.n_dim, 0);
        assert_int_equal(a.n_elem, 1);
        assert_true(a.values[0] == 3.25f);
        esp_npz_array_finish(&a);
        assert_int_equal(esp_npz_read(&a, npz, "c", 6, &err), ESP_E_FORMAT);
        assert_string_equal(err.text, "some/file: no array c");
        assert_int_equal(esp_npz_read(&a, npz, "b.weight", 5, &err), ESP_E_FORMAT);
        assert_string_equal(err.text, "some/file: array b.weight: 6 numbers, takes at most 5");
        esp_npz_destroy(&npz);
        assert_null(npz);
        esp_npz_destroy(&npz);
        free(z.bytes);
    }
}

/* Reads every array of a file that may be anything; the first failure, or ESP_OK. */
static esp_status read_all(const uint8_t *bytes, size_t n, struct esp_err *err)
{
    struct esp_npz *npz = NULL;
    struct esp_npz_array a;
    esp_status st = esp_npz_parse(&npz, bytes, n, "f", err);

    if (st) {
        assert_null(npz);
        return st;
    }
    for (size_t i = 0; !st && i < esp_npz_n_arrays(npz); i++) {
        st = esp_npz_read(&a, npz, esp_npz_name(npz, i), 100, err);
        if (st)
            assert_null(a.values);
        esp_npz_array_finish(&a);
    }
    esp_npz_destroy(&npz);
    return st;
}

/* .npy data of one array: mark, version 1, a dictionary as it stands, and n bytes of zeros. */
#define NPY_MAX 1024
static size_t npy_of(uint8_t npy[NPY_MAX], int version, const char *dict, size_t n)
{
    size_t n_dict = strlen(dict), at = version == 1 ? 10 : 12;

    memset(npy, 0, NPY_MAX);
    memcpy(npy, "\x93NUMPY", 6);
    npy[6] = (uint8_t)version;
    npy[8] = (uint8_t)n_dict;
    npy[9] = (uint8_t)(n_dict >> 8);
    memcpy(npy + at, dict, n_dict);
    return at + n_dict + n;
}

#define DICT(descr, order, shape)                                                                            \
    "{'descr': " descr ", 'fortran_order': " order ", 'shape': " shape ", }   \n"

static const struct header {
    int version;
    const char *dict;
    size_t n;
    const char *message; /* a part of it; NULL where it is read */
} headers[] = {
    {1, DICT("'<f4'", "False", "(2, 3)"), 24, NULL},
    {2, DICT("'<f4'", "False", "(2, 3,)"), 24, NULL},
    {3, DICT("'<f2'", "False", "()"), 2, NULL},
    {1, "{\"shape\":(0,),\"descr\":\"<f4\",\"fortran_order\":False}", 0, NULL},
    {1, DICT("'<f4'", "True", "(1, 3)"), 12, NULL}, /* one long dimension has no order */
    {1, DICT("'<f4'", "True", "(2, 3)"), 24, "columns first; save it again after numpy.ascontiguousarray"},
    {1, DICT("'<f8'", "False", "(1,)"), 8, "type <f8, read are <f4 and <f2"},
    {1, DICT("'>f4'", "False", "(1,)"), 4, "type >f4"},
    {1, DICT("'|O'", "False", "(1,)"), 4, "type |O"},
    {1, DICT("'<i4\\n'", "False", "(1,)"), 4, "descr is no plain type"},
    {1, DICT("[('x', '<f4')]", "False", "(1,)"), 4, "descr is no plain type"},
    {1, DICT("'<f4'", "0", "(1,)"), 4, "fortran_order is neither True nor False"},
    {1, DICT("'<f4'", "False", "(1)"), 4, "shape is no tuple"},
    {1, DICT("'<f4'", "False", "[1]"), 4, "shape is no tuple"},
    {1, DICT("'<f4'", "False", "(-1,)"), 4, "shape is no tuple"},
    {1, DICT("'<f4'", "False", "(1,,)"), 4, "shape is no tuple"},
    {1, DICT("'<f4'", "False", "(1 1)"), 4, "shape is no tuple"},
    {1, DICT("'<f4'", "False", "(1,1,1,1,1,1,1,1,1)"), 4, "shape is no tuple of at most 8"},
    {1, DICT("'<f4'", "False", "(99999999999999999999999,)"), 4, "shape is no tuple"},
    {1, DICT("'<f4'", "False", "(4294967296, 4294967296)"), 4, "the product of its dimensions overflows"},
    {1, DICT("'<f4'", "False", "(4611686018427387904,)"), 4, "its shape and type (<f4) say otherwise"},
    {1, DICT("'<f4'", "False", "(2,)"), 4, "4 bytes of numbers, its shape and type (<f4) say otherwise"},
    {1, DICT("'<f2'", "False", "(2,)"), 8, "8 bytes of numbers"},
    {1, DICT("'<f4'", "False", "(1,)") "x", 4, "not descr, fortran_order and shape alone"},
    {1, "{'descr': '<f4', 'fortran_order': False}", 4, "not descr, fortran_order and shape alone"},
    {1, "{'descr': '<f4', 'descr': '<f4'}", 4, "the key descr, unknown or twice"},
    {1, "{'bad\x1bkey': 1}", 4, "the key bad?key"},
    {1, "{'descr' '<f4'}", 4, "no dictionary"},
    {1, "{'descr': '<f4' 'shape': ()}", 4, "no dictionary"},
    {1, "{", 4, "no dictionary"},
    {1, "", 4, "no dictionary"},
    {0, DICT("'<f4'", "False", "(1,)"), 4, ".npy version 0"},
    {4, DICT("'<f4'", "False", "(1,)"), 4, ".npy version 4"},
};

static void test_headers(void **state)
{
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        const struct header *h = &headers[i];
        uint8_t npy[NPY_MAX];
        size_t n = npy_of(npy, h->version, h->dict, h->n);
        struct esp_npz_out z = {0};
        struct esp_err err = {0};
        esp_status st;

        esp_npz_out_raw(&z, "x.npy", npy, n, i % 2);
        esp_npz_out_end(&z);
        st = read_all(z.bytes, z.n_bytes, &err);
        if (h->message ? (st != ESP_E_FORMAT && st != ESP_E_UNSUPPORTED) || !strstr(err.text, h->message) ||
                             strncmp(err.text, "f: array x: ", 12) != 0
                       : st != ESP_OK)
            fail_msg("case %zu: %d \"%s\", expected \"%s\"", i, st, err.text,
                     h->message ? h->message : "success");
        free(z.bytes);
    }
}

/* A header that says it is longer than the entry, or than any. */
static void test_header_lengths(void **state)
{
    static const struct {
        uint8_t version, length[4];
        size_t n;
        const char *message;
    } cases[] = {
        {1, {200, 0}, 20, "cut off in its header"},
        {2, {200, 0, 0, 0}, 20, "cut off in its header"},
        {2, {0, 0, 0, 1}, 20, "a header of 16777216 bytes"},
        {2, {255, 255, 255, 255}, 20, "a header of 4294967295 bytes"},
        {2, {0}, 11, "cut off in its header"},
        {1, {0}, 9, "no .npy data"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t npy[NPY_MAX];
        struct esp_npz_out z = {0};
        struct esp_err err = {0};

        npy_of(npy, cases[i].version, "", 0);
        memcpy(npy + 8, cases[i].length, 4);
        esp_npz_out_raw(&z, "x.npy", npy, cases[i].n, false);
        esp_npz_out_end(&z);
        assert_int_equal(read_all(z.bytes, z.n_bytes, &err), ESP_E_FORMAT);
        if (!strstr(err.text, cases[i].message))
            fail_msg("case %zu: \"%s\", expected \"%s\"", i, err.text, cases[i].message);
        free(z.bytes);
    }
}

/* Places in a file of one entry x.npy: in its local header, in the directory (from its start), in the end record. */
enum where { LOCAL, DIRECTORY, END };

static const struct change {
    enum where where;
    size_t at, n;
    uint32_t value;
    bool deflated;
    const char *message;
} changes[] = {
    {DIRECTORY, 16, 4, 0x12345678, false, "its checksum is wrong"},
    {DIRECTORY, 16, 4, 0x12345678, true, "its checksum is wrong"},
    {DIRECTORY, 8, 2, 1, true, "encrypted"},
    {DIRECTORY, 10, 2, 12, false, "compression method 12, read are 0 and 8"},
    {LOCAL, 8, 2, 12, true, "its header and the directory differ"},
    {LOCAL, 0, 4, 0, false, "the directory points to where no entry is"},
    {LOCAL, 28, 2, 60000, false, "runs into the directory"},
    {LOCAL, 30, 1, 'y', false, "its header and the directory differ"},
    {DIRECTORY, 20, 4, 0xffffffff, false, "zip64"},
    {DIRECTORY, 24, 4, 0xffffffff, false, "zip64"},
    {DIRECTORY, 42, 4, 0xffffffff, false, "zip64"},
    {DIRECTORY, 34, 2, 1, false, "in several parts"},
    {DIRECTORY, 42, 4, 0x7fffffff, false, "points outside of it"},
    {DIRECTORY, 24, 4, 0xfffffff0, true, "4294967280 bytes, takes at most 100 numbers"},
    {DIRECTORY, 24, 4, 129, true, "damaged or not of the stated size"},
    {DIRECTORY, 24, 4, 2000, true, "damaged or not of the stated size"},
    {DIRECTORY, 24, 4, 129, false, "129 bytes cannot come of 152"},
    {DIRECTORY, 20, 4, 10, true, "damaged or not of the stated size"},
    {DIRECTORY, 20, 4, 1000000, true, "runs into the directory"},
    {DIRECTORY, 28, 2, 65535, false, "its directory is damaged"},
    {DIRECTORY, 0, 4, 0, false, "its directory is damaged"},
    {DIRECTORY, 46, 1, 0, false, "holds NUL"},
    {END, 10, 2, 0xffff, false, "zip64"},
    {END, 12, 4, 0xffffffff, false, "zip64"},
    {END, 16, 4, 0xffffffff, false, "zip64"},
    {END, 4, 2, 1, false, "in several parts"},
    {END, 8, 2, 2, false, "in several parts"},
    {END, 8, 4, 0x00020002, false, "its directory is damaged"},
    {END, 8, 4, 0x20002000, false, "8192 entries, takes at most 4096"},
    {END, 12, 4, 0x7fffffff, false, "its directory lies outside of it"},
    {END, 16, 4, 0x7fffffff, false, "its directory lies outside of it"},
    {END, 20, 2, 5, false, "no zip directory at its end"},
};

static void test_changes(void **state)
{
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        const struct change *c = &changes[i];
        struct esp_npz_out z = {0};
        struct esp_err err = {0};
        size_t at;
        esp_status st;

        esp_npz_out_array(&z, "x", numbers, (const size_t[]){6}, 1, false, c->deflated);
        at = c->where == LOCAL ? 0 : z.n_bytes;
        if (c->where == END)
            at += z.n_dir;
        esp_npz_out_end(&z);
        assert_int_equal(read_all(z.bytes, z.n_bytes, &err), ESP_OK);
        for (size_t k = 0; k < c->n; k++)
            z.bytes[at + c->at + k] = (uint8_t)(c->value >> 8 * k);
        st = read_all(z.bytes, z.n_bytes, &err);
        if ((st != ESP_E_FORMAT && st != ESP_E_UNSUPPORTED) || !strstr(err.text, c->message) ||
            strncmp(err.text, "f: ", 3) != 0)
            fail_msg("case %zu: %d \"%s\", expected \"%s\"", i, st, err.text, c->message);
        free(z.bytes);
    }
}

/* A size that no deflated data of that length can have is refused before memory is asked for it. */
static void test_bomb(void **state)
{
    struct esp_npz_out z = {0};
    struct esp_npz *npz;
    struct esp_npz_array a;
    struct esp_err err = {0};
    size_t at;

    esp_npz_out_array(&z, "x", numbers, (const size_t[]){6}, 1, false, true);
    at = z.n_bytes + 24;
    esp_npz_out_end(&z);
    memcpy(z.bytes + at, "\0\0\0\x30", 4);
    assert_int_equal(esp_npz_parse(&npz, z.bytes, z.n_bytes, "f", &err), ESP_OK);
    assert_int_equal(esp_npz_read(&a, npz, "x", (size_t)1 << 30, &err), ESP_E_FORMAT);
    assert_non_null(strstr(err.text, "f: array x: 805306368 bytes cannot come of"));
    esp_npz_destroy(&npz);
    free(z.bytes);
}

static void test_twice(void **state)
{
    struct esp_npz_out z = {0};
    struct esp_err err = {0};

    for (int i = 0; i < 2; i++)
        esp_npz_out_array(&z, "x", numbers, (const size_t[]){6}, 1, false, false);
    esp_npz_out_end(&z);
    assert_int_equal(read_all(z.bytes, z.n_bytes, &err), ESP_E_FORMAT);
    assert_string_equal(err.text, "f: array x is there twice");
    free(z.bytes);
}

/* A comment behind the directory is allowed, and so is a field of the local header that the directory lacks. */
static void test_comment(void **state)
{
    struct esp_npz_out z = good(false, true);
    uint8_t *longer = malloc(z.n_bytes + 7);
    struct esp_err err = {0};

    assert_non_null(longer);
    memcpy(longer, z.bytes, z.n_bytes);
    memcpy(longer + z.n_bytes, "comment", 7);
    longer[z.n_bytes - 2] = 7;
    if (read_all(longer, z.n_bytes + 7, &err))
        fail_msg("%s", err.text);
    free(longer);
    free(z.bytes);
}

static void test_truncated(void **state)
{
    struct esp_npz_out z = good(false, true);
    struct esp_err err;

    for (size_t n = 0; n < z.n_bytes; n++) {
        uint8_t *exact = malloc(n ? n : 1);

        assert_non_null(exact);
        memcpy(exact, z.bytes, n);
        err.text[0] = '\0';
        assert_int_equal(read_all(exact, n, &err), ESP_E_FORMAT);
        assert_true(err.text[0] != '\0');
        free(exact);
    }
    free(z.bytes);
}

/* Numbers are behind a checksum: no change of a byte gives other ones. */
static void test_flipped(void **state)
{
    for (int deflated = 0; deflated < 2; deflated++) {
        struct esp_npz_out z = good(false, deflated);

        for (size_t at = 0; at < z.n_bytes; at++)
            for (int bit = 0; bit < 8; bit++) {
                struct esp_npz *npz;
                struct esp_npz_array a;

                z.bytes[at] ^= (uint8_t)(1 << bit);
                if (esp_npz_parse(&npz, z.bytes, z.n_bytes, "f", NULL) == ESP_OK) {
                    if (esp_npz_read(&a, npz, "b.weight", 6, NULL) == ESP_OK)
                        assert_memory_equal(a.values, numbers, sizeof numbers);
                    esp_npz_array_finish(&a);
                    esp_npz_destroy(&npz);
                }
                z.bytes[at] ^= (uint8_t)(1 << bit);
            }
        free(z.bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),           cmocka_unit_test(test_headers),
        cmocka_unit_test(test_header_lengths), cmocka_unit_test(test_changes),
        cmocka_unit_test(test_bomb),           cmocka_unit_test(test_twice),
        cmocka_unit_test(test_comment),        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
