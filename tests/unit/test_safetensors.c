/* One safetensors file: what is read, and what is refused, in tables; every truncation; flipped bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/safetensors.h"

#define MAX_BYTES 4096

/* Length, header and n_data bytes 0, 1, 2, ... in a block of exactly that size, the caller's to free. */
static unsigned char *file_of(size_t *n_bytes, const char *header, size_t n_data)
{
    size_t n_header = strlen(header);
    unsigned char *p = malloc(8 + n_header + n_data);

    assert_non_null(p);
    for (int i = 0; i < 8; i++)
        p[i] = (unsigned char)((uint64_t)n_header >> 8 * i);
    memcpy(p + 8, header, n_header);
    for (size_t i = 0; i < n_data; i++)
        p[8 + n_header + i] = (unsigned char)i;
    *n_bytes = 8 + n_header + n_data;
    return p;
}

static const char good_header[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                                  "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[6,30]},"
                                  "\"a\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]},"
                                  "\"e\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[30,30]},"
                                  "\"s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[30,38]},"
                                  "\"x\":{\"dtype\":\"F99\",\"shape\":[5],\"data_offsets\":[38,40]}}   ";

static void test_good_file(void **state)
{
    size_t n;
    unsigned char *p = file_of(&n, good_header, 40);
    const unsigned char *data = p + n - 40;
    struct esp_safetensors *s;
    struct esp_err err = {0};
    const struct esp_tensor *t;

    if (esp_safetensors_parse(&s, p, n, "some/file", &err))
        fail_msg("%s", err.text);
    assert_int_equal(esp_safetensors_n_tensor(s), 5);
    assert_string_equal(esp_safetensors_tensor(s, 0)->name, "a");
    assert_string_equal(esp_safetensors_tensor(s, 4)->name, "x");
    assert_null(esp_safetensors_find(s, "c"));
    assert_null(esp_safetensors_find(s, "__metadata__"));

    t = esp_safetensors_find(s, "b");
    assert_int_equal(t->dtype, ESP_F32);
    assert_int_equal(t->n_dim, 2);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->shape[1], 3);
    assert_ptr_equal(t->data, data + 6);
    assert_int_equal(t->n_bytes, 24);
    assert_string_equal(t->stored_dtype, "F32");
    assert_string_equal(t->file, "some/file");
    t = esp_safetensors_find(s, "s");
    assert_int_equal(t->dtype, ESP_DTYPE_UNSET);
    assert_int_equal(t->n_dim, 0);
    t = esp_safetensors_find(s, "e");
    assert_int_equal(t->n_bytes, 0);
    esp_safetensors_destroy(&s);
    assert_null(s);
    esp_safetensors_destroy(&s);
    free(p);
}

/* "t" with the given dtype, shape and offsets. */
#define T(name, dtype, shape, offsets)                                                                       \
    "\"" name "\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const struct refused {
    const char *header;
    size_t n_data;
    const char *message; /* a part of it */
} refused[] = {
    {"", 0, "not JSON"},
    {"[]", 0, "found a list of 0, expected a JSON object"},
    {"{", 0, "not JSON"},
    {"{}{}", 0, "not JSON"},
    {"{\"t\":5}", 0, "tensor t: found 5, expected an object with dtype, shape and data_offsets"},
    {"{\"t\":{}}", 0, "tensor t: dtype: found nothing, expected a string"},
    {"{\"t\":{\"dtype\":\"F32\"}}", 0, "tensor t: shape: found nothing"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "tensor t: data_offsets: found nothing"},
    {"{" T("t", "4", "[1]", "[0,4]") "}", 4, "dtype: found 4"},
    {"{" T("t", "\"F32\"", "1", "[0,4]") "}", 4, "shape: found 1, expected a list"},
    {"{" T("t", "\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "shape: found a list of 9"},
    {"{" T("t", "\"F32\"", "[-1]", "[0,4]") "}", 4, "shape: found -1, expected an integer from 0 up"},
    {"{" T("t", "\"F32\"", "[1.0]", "[0,4]") "}", 4, "shape: found 1, expected an integer"},
    {"{" T("t", "\"F32\"", "[\"1\"]", "[0,4]") "}", 4, "shape: found \"1\""},
    {"{" T("t", "\"F32\"", "[99999999999999999999]", "[0,4]") "}", 4, "not JSON"},
    {"{" T("t", "\"F32\"", "[4294967296,4294967296]", "[0,4]") "}", 4,
     "the product of its dimensions overflows"},
    {"{" T("t", "\"F32\"", "[4611686018427387904,4]", "[0,4]") "}", 4,
     "the product of its dimensions overflows"},
    {"{" T("t", "\"F32\"", "[4611686018427387905]", "[0,4]") "}", 4, "of 32 bits are no number of bytes"},
    {"{" T("t", "\"F4\"", "[3]", "[0,2]") "}", 2, "3 elements of 4 bits are no number of bytes"},
    {"{" T("t", "\"F32\"", "[1]", "[0]") "}", 4, "data_offsets: found a list of 1"},
    {"{" T("t", "\"F32\"", "[1]", "[0,4,8]") "}", 8, "data_offsets: found a list of 3"},
    {"{" T("t", "\"F32\"", "[1]", "[-4,0]") "}", 4, "expected a list of two integers from 0 up"},
    {"{" T("t", "\"F32\"", "[1]", "[4,0]") "}", 4, "begins at 4, after its end at 0"},
    {"{" T("t", "\"F32\"", "[1]", "[0,4]") "}", 3,
     "ends at byte 4 of the data, of which the file has 3: truncated?"},
    {"{" T("t", "\"F32\"", "[1]", "[9223372036854775804,9223372036854775807]") "}", 4,
     "ends at byte 9223372036854775807"},
    {"{" T("t", "\"F32\"", "[2]", "[0,4]") "}", 4, "4 bytes, expected 8 for 2 elements of F32"},
    {"{" T("t", "\"F99\"", "[2]", "[0,5]") "}", 4, "ends at byte 5"},
    {"{" T("t", "\"F32\"", "[1]", "[0,4]") "}", 5, "5 bytes of data, but the last tensor ends at 4"},
    {"{" T("t", "\"F32\"", "[1]", "[1,5]") "}", 5, "begins at byte 1 of the data, expected 0: a gap"},
    {"{" T("t", "\"F32\"", "[1]", "[0,4]") "," T("u", "\"F32\"", "[1]", "[2,6]") "}", 6,
     "tensor u: begins at byte 2 of the data and overlaps t, which ends at 4"},
    {"{" T("t", "\"F32\"", "[1]", "[0,4]") "," T("u", "\"U8\"", "[4]", "[0,4]") "}", 4, "overlaps"},
    {"{" T("t", "\"F32\"", "[1]", "[0,4]") "," T("u", "\"U8\"", "[0]", "[2,2]") "}", 4,
     "tensor u: begins at byte 2 of the data and overlaps t"},
    {"{" T("t", "\"F32\"", "[1]", "[0,4]") "," T("u", "\"F32\"", "[1]", "[5,9]") "}", 9,
     "tensor u: begins at byte 5"},
    {"{" T("t", "\"F32\"", "[1]", "[0,4]") "," T("t", "\"F32\"", "[1]", "[4,8]") "}", 8, "duplicate"},
    {"{" T("t\\u0000", "\"F32\"", "[1]", "[0,4]") "}", 4, "not JSON"},
    {"{" T("t\\n\\u001b[31m", "\"F32\"", "[1]", "[0,8]") "}", 8, "tensor t??[31m: data_offsets: 8 bytes"},
};

static void test_refused(void **state)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        size_t n;
        unsigned char *p = file_of(&n, refused[i].header, refused[i].n_data);
        struct esp_safetensors *s = (void *)p;
        struct esp_err err = {0};
        esp_status st = esp_safetensors_parse(&s, p, n, "some/file", &err);

        if (st != ESP_E_FORMAT || s || !strstr(err.text, refused[i].message) ||
            strncmp(err.text, "some/file: ", 11) != 0)
            fail_msg("case %zu, %s: got %d \"%s\", expected \"%s\"", i, refused[i].header, st, err.text,
                     refused[i].message);
        free(p);
    }
}

static void test_header_lengths(void **state)
{
    static const struct {
        uint64_t n_header;
        size_t n_bytes; /* of the file, zeros behind the length */
        const char *message;
    } cases[] = {
        {2, 9, "a header of 2 bytes, but the file has 1 after its length"},
        {UINT64_MAX, 100, "a header of 18446744073709551615 bytes"},
        {UINT64_MAX - 7, 100, "a header of 18446744073709551608 bytes"},
        {1ull << 63, 100, "truncated, or no safetensors file"},
        {2, 10, "not JSON"}, /* NUL bytes */
        {ESP_SAFETENSORS_MAX_HEADER + 1, ESP_SAFETENSORS_MAX_HEADER + 9, "bytes, expected at most 4194304"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        unsigned char *p = calloc(1, cases[i].n_bytes);
        struct esp_safetensors *s;
        struct esp_err err = {0};

        assert_non_null(p);
        for (int b = 0; b < 8; b++)
            p[b] = (unsigned char)(cases[i].n_header >> 8 * b);
        assert_int_equal(esp_safetensors_parse(&s, p, cases[i].n_bytes, "f", &err), ESP_E_FORMAT);
        if (!strstr(err.text, cases[i].message))
            fail_msg("case %zu: got \"%s\", expected \"%s\"", i, err.text, cases[i].message);
        free(p);
    }
}

/* Either an error with a cause, or an object whose every tensor lies inside the bytes. */
static bool survives(const unsigned char *bytes, size_t n_bytes)
{
    unsigned char *p = malloc(n_bytes ? n_bytes : 1);
    struct esp_safetensors *s;
    struct esp_err err = {0};
    bool good;

    assert_non_null(p);
    memcpy(p, bytes, n_bytes);
    good = esp_safetensors_parse(&s, p, n_bytes, "f", &err) == ESP_OK;
    assert_true(good || (err.text[0] && !s));
    for (size_t i = 0; good && i < esp_safetensors_n_tensor(s); i++) {
        const struct esp_tensor *t = esp_safetensors_tensor(s, i);
        const unsigned char *data = t->data;
        assert_true(data >= p && t->n_bytes <= n_bytes && data <= p + n_bytes - t->n_bytes);
        assert_ptr_equal(esp_safetensors_find(s, t->name), t);
    }
    esp_safetensors_destroy(&s);
    free(p);
    return good;
}

static void test_every_truncation(void **state)
{
    size_t n;
    unsigned char *p = file_of(&n, good_header, 40);

    for (size_t k = 0; k < n; k++) {
        if (survives(p, k))
            fail_msg("a file cut to %zu of %zu bytes was taken", k, n);
    }
    assert_true(survives(p, n));
    free(p);
}

static void test_flipped_bits(void **state)
{
    size_t n, n_good = 0;
    unsigned char *p = file_of(&n, good_header, 40), copy[MAX_BYTES];
    uint64_t x = 88172645463325252u;

    assert_true(n <= sizeof copy);
    for (size_t bit = 0; bit < 8 * (n - 40); bit++) { /* each alone, length and header */
        memcpy(copy, p, n);
        copy[bit / 8] ^= (unsigned char)(1u << bit % 8);
        n_good += survives(copy, n);
    }
    for (int i = 0; i < 4000; i++) { /* several together */
        memcpy(copy, p, n);
        for (int k = 0; k < 2 + i % 4; k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17; /* xorshift64 */
            copy[x % (n - 40)] ^= (unsigned char)(1u << (x >> 40) % 8);
        }
        n_good += survives(copy, n);
    }
    assert_true(n_good > 0); /* a tensor by another name is still a tensor */
    free(p);
}

static void test_what_is_no_file(void **state)
{
    char dir[] = "/tmp/esp-safetensors-XXXXXX", path[64];
    struct esp_safetensors *s;
    struct esp_err err = {0};
    FILE *f;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/x", dir);
    assert_int_equal(esp_safetensors_open(&s, path, &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "No such file or directory"));
    assert_int_equal(esp_safetensors_open(&s, dir, &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "not a regular file but a directory"));
    assert_int_equal(mkfifo(path, 0600), 0); /* must not wait for somebody to write */
    assert_int_equal(esp_safetensors_open(&s, path, &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "not a regular file"));
    unlink(path);
    assert_int_equal(esp_safetensors_open(&s, "/dev/zero", &err), ESP_E_IO);
    f = fopen(path, "wb");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(esp_safetensors_open(&s, path, &err), ESP_E_FORMAT);
    assert_non_null(strstr(err.text, "0 bytes, expected at least the 8"));
    assert_null(s);
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_file),      cmocka_unit_test(test_refused),
        cmocka_unit_test(test_header_lengths), cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_flipped_bits),   cmocka_unit_test(test_what_is_no_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
