/*
 * `espalier quantize` and the checkpoints that it writes: what a device gets of one is, byte for byte, what it makes of the
 * original with --weights; and what such files may not hold.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/command.h"
#include "model/file.h"
#include "model/roles.h"
#include "tests/support/temp.h"
#include "worker/piece.h"

#define TINY "tests/golden/data/tiny" /* ragged sizes, heads of 72 and 32 */
#define ODD  "tests/golden/data/odd"  /* heads that are no multiple of 8 */

static char dir[64];

static int setup(void **state)
{
    return esp_temp_make(dir, sizeof dir);
}

static int teardown(void **state)
{
    return esp_temp_remove(dir);
}

static int run(const char *model, const char *out, const char *type, const char *threads)
{
    char *argv[] = {(char[]){"quantize"},       (char[]){"--model"},
                    (char *)(uintptr_t)model,   (char[]){"--out"},
                    (char *)(uintptr_t)out,     (char[]){"--weights"},
                    (char *)(uintptr_t)type,    (char[]){"--threads"},
                    (char *)(uintptr_t)threads, NULL};

    return esp_command_quantize(9, argv);
}

static struct esp_checkpoint *open_ok(const char *path)
{
    struct esp_checkpoint *ck;
    struct esp_err err;

    if (esp_checkpoint_open(&ck, path, &err))
        fail_msg("%s", err.text);
    return ck;
}

/* All groups of a matrix; malloc'ed. */
static char *packed(const struct esp_piece_mat *m, size_t *n_bytes)
{
    char *out;
    void *scratch = malloc(esp_pack_scratch_bytes(&m->dims));
    struct esp_err err;

    *n_bytes = (size_t)m->dims.np / 8 * m->dims.group_bytes;
    out = malloc(*n_bytes);
    assert_true(out && scratch);
    if (esp_pack_groups(out, &m->spec, &m->dims, 0, m->dims.np / 8, scratch, &err))
        fail_msg("%s", err.text);
    free(scratch);
    return out;
}

static void check_same(const struct esp_checkpoint *from, const struct esp_checkpoint *made,
                       enum esp_wtype type)
{
    const uint32_t n = esp_piece_count(esp_checkpoint_config(from));

    for (uint32_t p = 0; p < n; p++) {
        for (int cls = 0; cls < ESP_VK_N_CLASS; cls++) {
            struct esp_piece a, b;
            struct esp_err err;

            assert_int_equal(
                esp_piece_plan(&a, from, p, (enum esp_vk_class)cls, type, UINT64_C(1) << 30, &err), ESP_OK);
            assert_int_equal(
                esp_piece_plan(&b, made, p, (enum esp_vk_class)cls, ESP_W_STORED, UINT64_C(1) << 30, &err),
                ESP_OK);
            assert_int_equal(a.n_mat, b.n_mat);
            for (uint32_t m = 0; m < a.n_mat; m++) {
                size_t n_a, n_b;
                char *x = packed(&a.mat[m], &n_a), *y = packed(&b.mat[m], &n_b);

                assert_int_equal(a.mat[m].dims.wtype, b.mat[m].dims.wtype);
                assert_int_equal(n_a, n_b);
                assert_memory_equal(x, y, n_a);
                free(x);
                free(y);
            }
        }
    }
}

static void test_same_weights(void **state)
{
    static const char *const models[] = {TINY, ODD}, *const threads[] = {"1", "3"};
    static const enum esp_wtype types[] = {ESP_W_Q8, ESP_W_Q4};

    for (int i = 0; i < 4; i++) {
        const enum esp_wtype type = types[i % 2];
        struct esp_checkpoint *from = open_ok(models[i / 2]), *made;
        char out[96], path[128];
        uint8_t a[ESP_FINGERPRINT_BYTES], b[ESP_FINGERPRINT_BYTES];

        snprintf(out, sizeof out, "%s/%d", dir, i);
        assert_int_equal(run(models[i / 2], out, esp_wtype_name(type), threads[i % 2]), 0);
        made = open_ok(out);
        assert_int_equal(esp_checkpoint_tensor(made, ESP_T_GATE_W, 1)->dtype,
                         type == ESP_W_Q8 ? ESP_Q8 : ESP_Q4);
        assert_int_equal(esp_checkpoint_tensor(made, ESP_V_FC1_W, 1)->dtype, ESP_Q8); /* of either */
        assert_int_equal(esp_checkpoint_tensor(made, ESP_V_PATCH_W, 0)->n_dim, 4);
        assert_int_equal(esp_checkpoint_tensor(made, ESP_V_POS, 0)->dtype,
                         esp_checkpoint_tensor(from, ESP_V_POS, 0)->dtype);
        check_same(from, made, type);
        esp_checkpoint_fingerprint(from, a);
        esp_checkpoint_fingerprint(made, b);
        assert_memory_not_equal(a, b, sizeof a);
        snprintf(path, sizeof path, "%s/tokenizer.model", models[i / 2]);
        if (esp_file_exists(path)) {
            snprintf(path, sizeof path, "%s/tokenizer.model", out);
            assert_true(esp_file_exists(path));
        }
        assert_int_equal(run(models[i / 2], out, "q8", "1"), 1); /* it is there already */
        snprintf(path, sizeof path, "%s/again", dir);
        assert_int_equal(run(out, path, "q8", "1"), 1); /* quantised already */
        esp_checkpoint_destroy(&from);
        esp_checkpoint_destroy(&made);
    }
    assert_int_equal(run(TINY, dir, "bf16", "1"), 2);
    assert_int_equal(run("/nowhere", dir, "q8", "1"), 1);
}

#define NORM0 "language_model.model.norm.weight"

/* A header with other text of the same length in one place; what opening says. */
static void test_bad_files(void **state)
{
    static const struct {
        const char *old, *new, *want;
    } c[] = {
        {"\""
         "espalier_quantised\":\"1\"",
         "\""
         "espalier_quantised\":\"2\"",
         "quantised in layout 2, this program knows 1"},
        {"\""
         "espalier_quantised\":\"1\"",
         "\""
         "espalier_quantized\":\"1\"",
         "dtype U8, expected F32, F16 or BF16"},
        {"\"shape\":[192,252]", "\"shape\":[252,192]",
         "shape [252, 192] of bytes, expected [192, 476] (q8) or [.., 252] (q4)"},
        {"\"shape\":[192,252]", "\"shape\":[48384]", NULL},
        {"\"" NORM0 "\":{\"dtype\":\"F32\",\"shape\":[192]", NULL, "one like this is not quantised"},
    };
    char out[96], path[128], *text;
    size_t n;
    struct esp_err err;

    snprintf(out, sizeof out, "%s/q4", dir);
    snprintf(path, sizeof path, "%s/model.safetensors", out);
    assert_int_equal(run(TINY, out, "q4", "2"), 0);
    assert_int_equal(esp_file_read(&text, &n, path, 64 << 20, &err), ESP_OK);
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        char *copy = malloc(n), *at;
        struct esp_checkpoint *ck;
        FILE *f;

        assert_non_null(copy);
        memcpy(copy, text, n);
        if (c[i].new) {
            at = memmem(copy, n, c[i].old, strlen(c[i].old));
            if (!at)
                fail_msg("no %s in the header", c[i].old);
            memset(at, ' ', strlen(c[i].old)); /* JSON may have blanks */
            memcpy(at, c[i].new, strlen(c[i].new));
        } else { /* the last norm as bytes, of the same number */
            at = memmem(copy, n, "\"" NORM0 "\"", strlen(NORM0) + 2);
            assert_non_null(at);
            at = memmem(at, n - (size_t)(at - copy), "\"BF16\"", 6);
            assert_non_null(at);
            memcpy(at, "\"U8\"  ", 6);
            at = memmem(at, n - (size_t)(at - copy), "[192]", 5);
            assert_non_null(at);
            memcpy(at, "[384]", 5);
        }
        f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(copy, 1, n, f), n);
        assert_int_equal(fclose(f), 0);
        assert_int_not_equal(esp_checkpoint_open(&ck, out, &err), ESP_OK);
        assert_null(ck);
        if (c[i].want && !strstr(err.text, c[i].want))
            fail_msg("\"%s\", expected \"%s\"", err.text, c[i].want);
        free(copy);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_same_weights, setup, teardown),
                                       cmocka_unit_test_setup_teardown(test_bad_files, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
