/* A tokenizer.model of any content; what loads must encode and decode. */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/token.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static const char text[] = "aaab <a> \n\n\xe2\x96\x81 caf\xc3\xa9 \xff\0<0x41>";
    uint8_t *exact = malloc(n_bytes ? n_bytes : 1);
    struct esp_tokenizer *tok;
    struct esp_err err = {.text = ""};

    if (!exact)
        abort();
    if (n_bytes)
        memcpy(exact, data, n_bytes);
    if (esp_tokenizer_create_from(&tok, exact, n_bytes, &err)) {
        if (!err.text[0] || tok)
            abort();
    } else {
        uint32_t *ids = NULL;
        char *back = NULL;
        size_t n_ids, n_back, n_name;

        for (uint32_t id = 0; id < esp_tokenizer_n_piece(tok); id++)
            if (!esp_tokenizer_piece(tok, id, &n_name) || n_name == 0)
                abort();
        /* Encoding may fail in a strange model, in words. */
        if (esp_tokenizer_encode(tok, &ids, &n_ids, text, sizeof text - 1, &err) == ESP_OK) {
            for (size_t i = 0; i < n_ids; i++)
                if (ids[i] >= esp_tokenizer_n_piece(tok))
                    abort();
            if (esp_tokenizer_decode(tok, &back, &n_back, ids, n_ids, &err))
                abort();
        }
        free(back);
        free(ids);
        esp_tokenizer_destroy(&tok);
    }
    free(exact);
    return 0;
}
