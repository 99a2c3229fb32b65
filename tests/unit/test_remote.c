/* A checkpoint made of what somebody claims: the same as the directory it tells of, and a table of lies. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/roles.h"
#include "tests/support/manifest.h"

#define TINY  "tests/golden/data/tiny"
#define CHUNK 65536u

static struct esp_test_manifest made;
static struct esp_remote_tensor *claims; /* made.n_tensor and room for one more */

static int setup(void **state)
{
    esp_test_manifest_make(&made, TINY, CHUNK);
    claims = calloc(made.n_tensor + 1, sizeof *claims);
    assert_non_null(claims);
    return 0;
}

static int teardown(void **state)
{
    free(claims);
    esp_test_manifest_free(&made);
    return 0;
}

static void tell_truth(void)
{
    for (uint32_t i = 0; i < made.n_tensor; i++)
        claims[i] = (struct esp_remote_tensor){.role = made.info[i].role,
                                               .layer = made.info[i].layer,
                                               .dtype = made.info[i].dtype,
                                               .n_dim = made.info[i].n_dim,
                                               .shape = made.info[i].shape};
}

static esp_status open_claims(struct esp_checkpoint **out, uint32_t n, uint32_t chunk_bytes,
                              struct esp_err *err)
{
    return esp_checkpoint_open_remote(out, made.config, strlen(made.config), claims, n, chunk_bytes, "tests",
                                      err);
}

static void test_same(void **state)
{
    struct esp_checkpoint *ck;
    struct esp_err err;
    uint8_t ours[ESP_FINGERPRINT_BYTES];
    uint32_t index;
    int fd = memfd_create("chunks", MFD_CLOEXEC), one;

    assert_true(fd >= 0);
    tell_truth();
    if (open_claims(&ck, made.n_tensor, CHUNK, &err))
        fail_msg("%s", err.text);
    assert_int_equal(esp_checkpoint_n_bytes(ck), esp_checkpoint_n_bytes(made.ck));
    assert_string_equal(esp_checkpoint_dir(ck), "tests");
    assert_int_equal(esp_remote_n_tensor(ck), made.n_tensor);
    assert_null(esp_remote_at(ck, made.n_tensor));
    assert_false(esp_remote_index(&index, ck, made.tensor[0]));
    /* One by one into a file of its own, or all in one file: both are good for a chunk. */
    for (uint32_t t = 0; t < made.n_tensor; t++) {
        assert_true(esp_remote_index(&index, ck, esp_remote_at(ck, t)));
        assert_int_equal(index, t);
        for (uint32_t c = 0; made.base[t] + c < made.base[t + 1]; c++) {
            const uint64_t at = esp_remote_offset(ck, t, c);
            size_t n;
            const void *data = esp_test_chunk(&made, t, c, &n);

            if (c % 2) {
                assert_int_equal(pwrite(fd, data, n, (off_t)at), n);
                assert_int_equal(esp_remote_map(ck, t, c, fd, at, &err), ESP_OK);
                continue;
            }
            one = memfd_create("chunk", MFD_CLOEXEC);
            assert_int_equal(pwrite(one, data, n, 0), n);
            assert_int_equal(esp_remote_map(ck, t, c, one, 0, &err), ESP_OK);
            close(one);
        }
    }
    close(fd);
    for (uint32_t t = 0; t < made.n_tensor; t++) {
        const struct esp_tensor *x = made.tensor[t];
        const struct esp_tensor *y =
            esp_checkpoint_tensor(ck, (enum esp_role)made.info[t].role, made.info[t].layer);

        assert_ptr_equal(y, esp_remote_at(ck, t));
        assert_int_equal(y->n_bytes, x->n_bytes);
        assert_int_equal(y->dtype, x->dtype);
        assert_memory_equal(y->data, x->data, x->n_bytes);
        esp_tensor_done(y); /* the kernel may forget them: they are read again */
        assert_memory_equal(y->data, x->data, x->n_bytes);
    }
    esp_checkpoint_fingerprint(ck, ours);
    assert_memory_equal(ours, made.msg.manifest.fingerprint, sizeof ours);
    esp_checkpoint_destroy(&ck);
}

static void test_lies(void **state)
{
    static const uint64_t wrong_shape[4] = {7, 7, 7, 7};
    enum {
        ROLE,
        LAYER,
        ONCE_LAYER,
        TWICE,
        DTYPE,
        RANK,
        SHAPE,
        MISSING,
        NONE,
        SURPLUS,
        CHUNK_ODD,
        CHUNK_ZERO,
        CHUNK_SMALL
    };
    static const struct {
        int what;
        esp_status st;
        const char *fragment;
    } cases[] = {
        {ROLE, ESP_E_FORMAT, "tensor 0: role 1000, layer 0: config.json calls for none"},
        {LAYER, ESP_E_FORMAT, "layer 2: config.json calls for none"},
        {ONCE_LAYER, ESP_E_FORMAT, "role 0, layer 1: config.json calls for none"},
        {TWICE, ESP_E_FORMAT, "is there twice"},
        {DTYPE, ESP_E_FORMAT, "dtype 4, expected F32, F16 or BF16"},
        {RANK, ESP_E_FORMAT, "shape [144], expected [144, 3, 14, 14]"},
        {SHAPE, ESP_E_FORMAT, "shape [7, 7, 7, 7], expected [144, 3, 14, 14] by config.json"},
        {MISSING, ESP_E_FORMAT, "norm.weight is missing"},
        {NONE, ESP_E_FORMAT, "is missing"},
        {SURPLUS, ESP_E_FORMAT, "is there twice"},
        {CHUNK_ODD, ESP_E_ARG, "chunks of 65537 bytes"},
        {CHUNK_ZERO, ESP_E_ARG, "chunks of 0 bytes"},
        {CHUNK_SMALL, ESP_E_ARG, "chunks of 512 bytes"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_checkpoint *ck;
        struct esp_err err = {0};
        uint32_t n = made.n_tensor, chunk = CHUNK;

        tell_truth();
        switch (cases[i].what) {
        case ROLE:
            claims[0].role = 1000;
            break;
        case LAYER:
            claims[3].layer = 2; /* of the encoder, which has two */
            break;
        case ONCE_LAYER:
            claims[0].layer = 1;
            break;
        case TWICE:
            claims[1] = claims[0];
            break;
        case DTYPE:
            claims[0].dtype = ESP_I32;
            break;
        case RANK:
            claims[0].n_dim = 1;
            break;
        case SHAPE:
            claims[0].shape = wrong_shape;
            break;
        case MISSING:
            n--;
            break;
        case NONE:
            n = 0;
            break;
        case SURPLUS:
            claims[n] = claims[n - 1];
            n++;
            break;
        case CHUNK_ODD:
            chunk = CHUNK + 1;
            break;
        case CHUNK_ZERO:
            chunk = 0;
            break;
        default:
            chunk = 512;
            break;
        }
        assert_int_equal(open_claims(&ck, n, chunk, &err), cases[i].st);
        assert_null(ck);
        if (!strstr(err.text, cases[i].fragment))
            fail_msg("\"%s\", expected \"...%s...\"", err.text, cases[i].fragment);
    }
}

static void test_bad_config(void **state)
{
    static const char huge[] = /* within every limit of its own, and no model at all */
        "{\"text_config\": {\"model_type\": \"gemma\", \"hidden_size\": 16384, \"intermediate_size\": "
        "1048576, "
        "\"num_attention_heads\": 64, \"num_hidden_layers\": 256, \"num_key_value_heads\": 64, \"head_dim\": "
        "256, "
        "\"vocab_size\": 1048576}, \"model_type\": \"paligemma\", \"projection_dim\": 16384, "
        "\"image_token_index\": 5, "
        "\"vision_config\": {\"hidden_size\": 1152, \"image_size\": 224, \"intermediate_size\": 4304, "
        "\"num_attention_heads\": 16, \"num_hidden_layers\": 27, \"patch_size\": 14, \"model_type\": "
        "\"siglip_vision_model\"}}";
    struct esp_checkpoint *ck;
    struct esp_err err = {0};

    assert_int_not_equal(esp_checkpoint_open_remote(&ck, "{", 1, claims, 0, CHUNK, "tests", &err), ESP_OK);
    assert_null(ck);
    assert_non_null(strstr(err.text, "tests: config.json"));
    tell_truth();
    assert_int_not_equal(
        esp_checkpoint_open_remote(&ck, huge, strlen(huge), claims, made.n_tensor, CHUNK, "tests", &err),
        ESP_OK);
    assert_null(ck);
}

static void test_chunks(void **state)
{
    assert_int_equal(esp_chunk_count(0, CHUNK), 0);
    assert_int_equal(esp_chunk_count(1, CHUNK), 1);
    assert_int_equal(esp_chunk_count(CHUNK, CHUNK), 1);
    assert_int_equal(esp_chunk_count(CHUNK + 1, CHUNK), 2);
    assert_int_equal(esp_chunk_bytes(CHUNK + 1, CHUNK, 0), CHUNK);
    assert_int_equal(esp_chunk_bytes(CHUNK + 1, CHUNK, 1), 1);
    assert_int_equal(esp_chunk_bytes(CHUNK, CHUNK, 0), CHUNK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),
        cmocka_unit_test(test_lies),
        cmocka_unit_test(test_bad_config),
        cmocka_unit_test(test_chunks),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
