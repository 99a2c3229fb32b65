/* A decoder's records from a journal, and going on from whatever they hold. The first byte chooses the request. */
#include "fuzz.h"

#include <stdlib.h>

#include "tests/support/decode_world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    struct world w = {0};
    struct esp_decode *d;
    struct esp_decode_mark mark;
    struct esp_err err = {0};
    bool done;

    if (n_bytes == 0)
        return 0;
    d = world_decoder(&w, &world_cases[data[0] % n_world_cases]);
    if (!d)
        return 0;
    if (esp_decode_load(d, data + 1, n_bytes - 1, &mark, &err) != ESP_OK) {
        if (!err.text[0])
            abort(); /* no refusal without words */
    } else if (!esp_decode_done(d) && esp_decode_rebuild(d, 8, &err) == ESP_OK) {
        done = false;
        for (int i = 0; i < 40 && !done; i++)
            if (world_step(&w, d, &done, &err))
                break;
        if (w.wrong)
            abort(); /* what is loaded knows its own caches */
    }
    esp_decode_destroy(&d);
    return 0;
}
