/* One safetensors file; every tensor of one that is taken must be readable from its first to its last byte.
 */
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"
#include "tests/fuzz/fuzz.h"

static volatile unsigned char sink;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    unsigned char *file = malloc(n_bytes ? n_bytes : 1);
    struct esp_safetensors *s;
    struct esp_err err = {0};

    if (!file)
        return 0;
    if (n_bytes > 0)
        memcpy(file, data, n_bytes);
    if (esp_safetensors_parse(&s, file, n_bytes, "input", &err) == ESP_OK) {
        for (size_t i = 0; i < esp_safetensors_n_tensor(s); i++) {
            const struct esp_tensor *t = esp_safetensors_tensor(s, i);
            for (size_t k = 0; k < t->n_bytes; k++)
                sink ^= ((const unsigned char *)t->data)[k];
            if (esp_safetensors_find(s, t->name) != t || t->n_dim > ESP_TENSOR_MAX_DIM)
                abort();
        }
        esp_safetensors_destroy(&s);
    } else if (!err.text[0] || s) {
        abort();
    }
    free(file);
    return 0;
}
