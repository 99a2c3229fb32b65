/* Packed files laid into memory: the same bytes, checked, private, and refused where pages and units do not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/temp.h"
#include "worker/packed.h"

#define PAGE       4096u
#define N_UNIT     6u
#define UNIT_BYTES (3 * PAGE / 2) /* every second unit begins at a page */
#define N_BYTES    (N_UNIT * UNIT_BYTES)

static const uint8_t name[ESP_PACKED_NAME_BYTES] = {0xab, 1, 2, 3};
static char dir[64], path[256];
static struct esp_packed *packed;
static unsigned char data[N_BYTES];
static unsigned char *memory; /* as much, and two pages */

static int setup(void **state)
{
    struct esp_packed_file *f;
    struct esp_err err;
    int n;

    (void)state;
    if (esp_temp_make(dir, sizeof dir))
        return -1;
    for (size_t i = 0; i < N_BYTES; i++)
        data[i] = (unsigned char)(i * 29 + i / 251);
    if (esp_packed_open(&packed, dir, 0, false, NULL, &err) ||
        esp_packed_begin(&f, packed, name, N_UNIT, UNIT_BYTES, &err))
        return -1;
    esp_packed_write(f, 0, N_UNIT, data);
    esp_packed_close(&f, true);
    n = snprintf(path, sizeof path, "%s/%02x/", dir, name[0]);
    for (int k = 1; k < ESP_PACKED_NAME_BYTES; k++)
        n += snprintf(path + n, sizeof path - (size_t)n, "%02x", name[k]);
    memory = mmap(NULL, N_BYTES + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    munmap(memory, N_BYTES + 2 * PAGE);
    esp_packed_destroy(&packed);
    return esp_temp_remove(dir);
}

static struct esp_packed_file *find(void)
{
    struct esp_packed_file *f;
    struct esp_err err;

    if (esp_packed_find(&f, packed, name, N_UNIT, UNIT_BYTES, &err))
        fail_msg("%s", err.text);
    return f;
}

static void test_laid(void **state)
{
    struct esp_packed_file *f = find();
    unsigned char *to = memory + PAGE, copy[UNIT_BYTES];

    (void)state;
    memset(memory, 0x55, N_BYTES + 2 * PAGE);
    assert_int_equal(esp_packed_lay(f, 0, N_UNIT, to, NULL), ESP_OK);
    for (uint32_t u = 0; u < N_UNIT; u++) {
        assert_true(esp_packed_is_laid(f, u, to + u * UNIT_BYTES));
        assert_int_equal(esp_packed_read(f, u, 1, to + u * UNIT_BYTES, NULL), ESP_OK);
    }
    assert_false(esp_packed_is_laid(f, 1, to));
    assert_false(esp_packed_is_laid(f, N_UNIT, to + N_BYTES));
    assert_int_equal(esp_packed_read(f, 2, 1, copy, NULL), ESP_OK); /* elsewhere it is read */
    assert_memory_equal(copy, data + 2 * UNIT_BYTES, UNIT_BYTES);
    esp_packed_close(&f, true);
    assert_int_equal(unlink(path), 0);
    assert_memory_equal(to, data, N_BYTES); /* without its file too */
    for (size_t i = 0; i < PAGE; i++)
        assert_int_equal(memory[i] & memory[PAGE + N_BYTES + i], 0x55); /* and nothing else */
}

/* What is written there is nobody else's. */
static void test_private(void **state)
{
    struct esp_packed_file *f = find();

    (void)state;
    assert_int_equal(esp_packed_lay(f, 2, 2, memory, NULL), ESP_OK);
    assert_memory_equal(memory, data + 2 * UNIT_BYTES, 2 * UNIT_BYTES);
    memset(memory, 0, 2 * UNIT_BYTES);
    assert_int_equal(esp_packed_read(f, 2, 1, memory, NULL),
                     ESP_E_FORMAT); /* for it is checked where it lies */
    esp_packed_close(&f, false);
    f = find();
    assert_int_equal(esp_packed_lay(f, 0, N_UNIT, memory, NULL), ESP_OK);
    assert_int_equal(esp_packed_read(f, 0, N_UNIT, memory, NULL), ESP_OK);
    esp_packed_close(&f, true);
}

static void test_refused(void **state)
{
    struct esp_packed_file *f = find();

    (void)state;
    memset(memory, 0x55, N_BYTES);
    assert_int_equal(esp_packed_lay(f, 0, 1, memory + 16, NULL), ESP_E_UNSUPPORTED); /* no page of memory's */
    assert_int_equal(esp_packed_lay(f, 1, 1, memory, NULL), ESP_E_UNSUPPORTED);      /* none of the file's */
    assert_int_equal(esp_packed_lay(f, 0, 0, memory, NULL), ESP_E_UNSUPPORTED);
    assert_false(esp_packed_is_laid(f, 0, memory));
    for (size_t i = 0; i < N_BYTES; i++)
        assert_int_equal(memory[i], 0x55);
    esp_packed_close(&f, false);
}

static void test_damaged(void **state)
{
    struct esp_packed_file *f;
    struct esp_err err = {0};
    FILE *file = fopen(path, "r+b");

    (void)state;
    assert_non_null(file);
    assert_int_equal(fseek(file, 3 * UNIT_BYTES + 77, SEEK_SET), 0);
    assert_int_not_equal(fputc(data[3 * UNIT_BYTES + 77] ^ 4, file), EOF);
    assert_int_equal(fclose(file), 0);
    f = find();
    assert_int_equal(esp_packed_lay(f, 0, N_UNIT, memory, NULL), ESP_OK);
    for (uint32_t u = 0; u < N_UNIT; u++)
        assert_int_equal(esp_packed_read(f, u, 1, memory + u * UNIT_BYTES, &err),
                         u == 3 ? ESP_E_FORMAT : ESP_OK);
    assert_string_equal(err.text, "unit 3 has another sum");
    assert_int_equal(esp_packed_unlay(f, 3, NULL), ESP_OK); /* unit 3 begins within a page */
    assert_false(esp_packed_is_laid(f, 3, memory + 3 * UNIT_BYTES));
    for (size_t i = 3 * UNIT_BYTES; i < N_BYTES; i++)
        assert_int_equal(memory[i], 0);
    memcpy(memory + 3 * UNIT_BYTES, data + 3 * UNIT_BYTES, 3 * UNIT_BYTES);
    esp_packed_damaged(&f, err.text);
    assert_memory_equal(memory, data, N_BYTES);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* A file that became shorter behind our back is an error, no signal: nor is it when the rest is written there. */
static void test_cut(void **state)
{
    struct esp_packed_file *f = find();
    const long page = sysconf(_SC_PAGESIZE);

    (void)state;
    if (madvise(memory, (size_t)page, 22 /* MADV_POPULATE_READ */) != 0)
        skip(); /* before Linux 5.14 nothing tells */
    assert_int_equal(esp_packed_lay(f, 0, N_UNIT, memory, NULL), ESP_OK);
    assert_int_equal(truncate(path, 2 * UNIT_BYTES), 0);
    assert_int_equal(esp_packed_read(f, 0, 2, memory, NULL), ESP_OK);
    assert_int_equal(esp_packed_read(f, 2, 4, memory + 2 * UNIT_BYTES, NULL), ESP_E_FORMAT);
    assert_int_equal(esp_packed_unlay(f, 2, NULL), ESP_OK);
    memcpy(memory + 2 * UNIT_BYTES, data + 2 * UNIT_BYTES, 4 * UNIT_BYTES);
    esp_packed_close(&f, false);
    assert_memory_equal(memory, data, N_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_laid, setup, teardown),
        cmocka_unit_test_setup_teardown(test_private, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cut, setup, teardown),
    };

    if (sysconf(_SC_PAGESIZE) != PAGE) {
        print_message("skipped: pages of %ld bytes\n", sysconf(_SC_PAGESIZE));
        return 0;
    }
    return cmocka_run_group_tests_name("packed_lay", tests, NULL, NULL);
}
