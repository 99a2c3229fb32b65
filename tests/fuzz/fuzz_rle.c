/* A mask's string: two bytes for its size, the rest are counts. What is accepted comes out as it went in. */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "objects/rle.h"

static void check(const struct esp_rle *rle)
{
    const size_t n = (size_t)rle->height * rle->width;
    uint8_t *mask = malloc(n);
    struct esp_rle again;
    uint64_t area = 0;
    double iou;
    char *text;

    if (!mask)
        abort();
    esp_rle_decode(mask, rle);
    for (size_t i = 0; i < n; i++)
        area += mask[i];
    if (area != esp_rle_area(rle) || esp_rle_encode(&again, mask, rle->height, rle->width, NULL) != ESP_OK ||
        esp_rle_iou(&iou, rle, &again, NULL) != ESP_OK || iou != (area ? 1 : 0))
        abort();
    esp_rle_finish(&again);
    if (esp_rle_to_string(&text, rle, NULL) != ESP_OK ||
        esp_rle_from_string(&again, text, rle->height, rle->width, NULL) != ESP_OK ||
        again.n_counts != rle->n_counts ||
        memcmp(again.counts, rle->counts, rle->n_counts * sizeof *rle->counts) != 0)
        abort();
    esp_rle_finish(&again);
    free(text);
    free(mask);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    struct esp_err err = {.text = ""};
    struct esp_rle rle;
    char *text;

    if (n_bytes < 2)
        return 0;
    text = malloc(n_bytes - 1);
    if (!text)
        abort();
    memcpy(text, data + 2, n_bytes - 2);
    text[n_bytes - 2] = '\0';
    if (esp_rle_from_string(&rle, text, data[0], data[1], &err) == ESP_OK)
        check(&rle);
    else if (!err.text[0] || rle.counts)
        abort();
    esp_rle_finish(&rle);
    free(text);
    return 0;
}
