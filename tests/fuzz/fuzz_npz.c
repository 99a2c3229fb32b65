/* One npz file: every array that can be read is read, and if it is a mask codec, a small one decodes and encodes. Also
 * the same bytes as one array, which in an npz lies behind a checksum. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "objects/codec.h"
#include "objects/npy.h"
#include "objects/npz.h"
#include "tests/fuzz/fuzz.h"

#define MAX_ELEM (1u << 20)

static volatile float sink;

/* Whether a codec of this file is small enough to run for every input. */
static bool read_arrays(const uint8_t *file, size_t n_bytes)
{
    struct esp_npz *npz;
    struct esp_err err = {0};
    size_t n_all = 0;

    if (esp_npz_parse(&npz, file, n_bytes, "input", &err)) {
        if (!err.text[0] || npz)
            abort();
        return false;
    }
    for (size_t i = 0; i < esp_npz_n_arrays(npz); i++) {
        struct esp_npz_array a;
        size_t n = 1;

        if (!esp_npz_has(npz, esp_npz_name(npz, i)))
            abort();
        err.text[0] = '\0';
        if (esp_npz_read(&a, npz, esp_npz_name(npz, i), MAX_ELEM, &err)) {
            if (!err.text[0] || a.values)
                abort();
            continue;
        }
        for (uint32_t d = 0; d < a.n_dim; d++)
            n *= a.shape[d];
        if (a.n_dim > ESP_NPZ_MAX_DIM || n != a.n_elem || n > MAX_ELEM)
            abort();
        for (size_t k = 0; k < a.n_elem; k++)
            sink += a.values[k];
        n_all += a.n_elem;
        esp_npz_array_finish(&a);
    }
    esp_npz_destroy(&npz);
    return n_all < 20000;
}

static void parse_array(const uint8_t *file, size_t n_bytes)
{
    struct esp_npy_header h;
    struct esp_err err = {0};

    if (esp_npy_parse(&h, file, n_bytes, "input", &err)) {
        if (!err.text[0])
            abort();
    } else if (h.n_dim > ESP_NPZ_MAX_DIM || h.data_at + h.n_elem * esp_dtype_n_bytes(h.dtype) != n_bytes) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static float mask[ESP_CODEC_PIXELS];
    static uint8_t given[ESP_CODEC_PIXELS];
    uint8_t *file = malloc(n_bytes ? n_bytes : 1);
    struct esp_codec *codec;
    struct esp_err err = {0};
    int32_t codes[ESP_CODEC_N_TOK];

    if (!file)
        abort();
    if (n_bytes)
        memcpy(file, data, n_bytes);
    parse_array(file, n_bytes);
    if (read_arrays(file, n_bytes)) {
        if (esp_codec_parse(&codec, file, n_bytes, "input", &err)) {
            if (!err.text[0] || codec)
                abort();
        } else {
            for (int i = 0; i < ESP_CODEC_N_TOK; i++)
                codes[i] = i * 8;
            if (esp_codec_decode(mask, codec, codes, &err) == ESP_OK)
                for (size_t i = 0; i < ESP_CODEC_PIXELS; i++) {
                    if (!(mask[i] >= 0.0f && mask[i] <= 1.0f))
                        abort();
                    given[i] = (uint8_t)(mask[i] * 255.0f);
                }
            if (esp_codec_can_encode(codec) && esp_codec_encode(codes, codec, given, &err) == ESP_OK)
                for (int i = 0; i < ESP_CODEC_N_TOK; i++)
                    if (codes[i] < 0 || codes[i] >= ESP_CODEC_N_CODES)
                        abort();
            esp_codec_destroy(&codec);
        }
    }
    free(file);
    return 0;
}
