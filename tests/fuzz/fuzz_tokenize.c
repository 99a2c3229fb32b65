/* Any bytes as a text, and as ids: UTF-8 comes back as it went in, and the detokenizer gives whole
 * characters. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/token.h"
#include "coordinator/token_model.h"

#define MODEL "tests/golden/data/tokenizer/tokenizer.model"

static void expect_utf8(const char *text, size_t n)
{
    while (n > 0) {
        const int len = esp_utf8_len((const uint8_t *)text, n);

        if (len <= 0)
            abort();
        text += len;
        n -= (size_t)len;
    }
}

/* U+2581 is the model's own space mark and comes back as a space. */
static bool comes_back(const uint8_t *text, size_t n)
{
    while (n > 0) {
        const int len = esp_utf8_len(text, n);

        if (len <= 0 || (len == 3 && memcmp(text, "\xe2\x96\x81", 3) == 0))
            return false;
        text += len;
        n -= (size_t)len;
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static struct esp_tokenizer *tok;
    struct esp_detok *detok;
    struct esp_err err = {.text = ""};
    char *exact = malloc(n_bytes ? n_bytes : 1), *back;
    uint32_t *ids;
    size_t n_ids, n_back;

    if (!tok && esp_tokenizer_create(&tok, MODEL, &err)) {
        fprintf(stderr, "%s (run from the top of the tree)\n", err.text);
        exit(1);
    }
    if (!exact)
        abort();
    if (n_bytes)
        memcpy(exact, data, n_bytes);
    if (esp_tokenizer_encode(tok, &ids, &n_ids, exact, n_bytes, &err))
        abort();
    if (esp_tokenizer_decode(tok, &back, &n_back, ids, n_ids, &err))
        abort();
    expect_utf8(back, n_back);
    if (comes_back(data, n_bytes) && (n_back != n_bytes || memcmp(back, exact, n_bytes)))
        abort();
    free(back);
    free(ids);

    if (esp_detok_create(&detok, tok, &err))
        abort();
    for (size_t i = 0; i + 1 < n_bytes; i += 2) {
        const char *more = esp_detok_feed(detok, (uint32_t)data[i] << 8 | data[i + 1], &n_back);
        expect_utf8(more, n_back);
    }
    const char *rest = esp_detok_flush(detok, &n_back);
    expect_utf8(rest, n_back);
    esp_detok_destroy(&detok);
    free(exact);
    return 0;
}
