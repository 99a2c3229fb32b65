/* The text of --split, and a placement that follows whatever it parses to. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/placement.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static struct esp_place_worker worker[ESP_PLACE_MAX_WORKERS];
    static struct esp_placement placement;
    char *text = malloc(n_bytes + 1);
    struct esp_split split;
    struct esp_err err;

    if (!text)
        return 0;
    memcpy(text, data, n_bytes);
    text[n_bytes] = '\0';
    if (esp_split_parse(&split, text, 27, 18, &err) == ESP_OK) {
        struct esp_model_cost cost = {.n_enc = 27, .n_dec = 18, .n_answer = 32};
        struct esp_place_options options;
        esp_place_options_init(&options, 1);
        options.split = &split;
        for (uint32_t w = 0; w < split.n_stage; w++)
            worker[w] = (struct esp_place_worker){.memory_bytes = 1, .bandwidth = 1e9, .matmul_rate = 1e9};
        if (esp_place(&placement, &cost, worker, split.n_stage, &options, &err) != ESP_OK)
            abort(); /* a split that parses can be followed where everything fits */
    } else if (!err.text[0]) {
        abort(); /* no refusal without words */
    }
    free(text);
    return 0;
}
