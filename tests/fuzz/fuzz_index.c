/* model.safetensors.index.json: whatever is taken names files of its own folder alone. */
#include <stdlib.h>
#include <string.h>

#include "model/shard_index.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    char *text = malloc(n_bytes ? n_bytes : 1);
    struct esp_shard_index *x;
    struct esp_err err = {0};

    if (!text)
        return 0;
    if (n_bytes > 0)
        memcpy(text, data, n_bytes);
    if (esp_shard_index_parse(&x, text, n_bytes, "input", &err) == ESP_OK) {
        size_t n_file = esp_shard_index_n_file(x);
        if (n_file == 0 || n_file > ESP_MAX_SHARDS)
            abort();
        for (size_t i = 0; i < n_file; i++) {
            const char *file = esp_shard_index_file(x, i);
            if (!*file || strchr(file, '/') || strcmp(file, "..") == 0 ||
                (i > 0 && strcmp(esp_shard_index_file(x, i - 1), file) >= 0))
                abort();
        }
        for (size_t i = 0; i < esp_shard_index_n_entry(x); i++) {
            if (strchr(esp_shard_index_entry(x, i).file, '/'))
                abort();
        }
        esp_shard_index_destroy(&x);
    } else if (!err.text[0] || x) {
        abort();
    }
    free(text);
    return 0;
}
