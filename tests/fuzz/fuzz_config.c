/* The three JSON files of a config: the input as each of them. */
#include <stdlib.h>
#include <string.h>

#include "model/config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static const char good[] = "{\"model_type\":\"paligemma\",\"image_token_index\":99,\"vision_config\":{},"
                               "\"text_config\":{\"vocab_size\":100}}";
    char *text = malloc(n_bytes ? n_bytes : 1); /* exact size: libFuzzer's own block may be larger */
    struct esp_config c;
    struct esp_err err = {0};

    if (!text)
        return 0;
    if (n_bytes > 0)
        memcpy(text, data, n_bytes);
    if (esp_config_parse(&c, text, n_bytes, NULL, 0, NULL, 0, &err) == ESP_OK) {
        /* what the rest of the program divides by, indexes with and multiplies */
        if (c.vision.n_head == 0 || c.vision.head_dim * c.vision.n_head != c.vision.width ||
            c.vision.n_token == 0 || c.text.n_kv_head == 0 || c.text.n_head % c.text.n_kv_head != 0 ||
            c.text.head_dim % 2 != 0 || c.text.n_layer > ESP_MAX_LAYERS ||
            c.vision.n_layer > ESP_MAX_LAYERS || c.image_token >= c.text.vocab || c.eos >= c.text.vocab ||
            c.bos >= c.text.vocab)
            abort();
    } else if (!err.text[0]) {
        abort();
    }
    esp_config_parse(&c, good, sizeof good - 1, text, n_bytes, NULL, 0, &err);
    esp_config_parse(&c, good, sizeof good - 1, NULL, 0, text, n_bytes, &err);
    free(text);
    return 0;
}
