/* Pictures of either format, decoded and resized. The limits are low, for the fuzzer's speed. */
#include "tests/fuzz/fuzz.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "picture/image.h"
#include "coordinator/resize.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    const struct esp_image_limits limits = {
        .max_pixels = 1 << 18, .max_side = 4096, .max_work_bytes = 16 << 20, .max_scans = 8};
    uint8_t *exact = malloc(n_bytes ? n_bytes : 1);
    struct esp_image image;
    struct esp_err err = {.text = ""};
    uint32_t width, height;
    bool sized;

    if (!exact)
        abort();
    if (n_bytes)
        memcpy(exact, data, n_bytes);
    sized = esp_image_size(&width, &height, exact, n_bytes, &limits, &err) == ESP_OK;
    if (!sized && (!err.text[0] || width || height))
        abort();
    err.text[0] = '\0';
    if (esp_image_decode(&image, exact, n_bytes, &limits, &err)) {
        if (!err.text[0] || image.rgb)
            abort();
    } else {
        uint8_t out[3 * 28 * 28];

        if (!sized || image.width != width || image.height != height)
            abort();
        if (image.width == 0 || image.height == 0 || (uint64_t)image.width * image.height > limits.max_pixels)
            abort();
        for (unsigned filter = 0; filter <= ESP_RESAMPLE_HAMMING; filter++)
            if (esp_resize(out, 28, 28, &image, (enum esp_resample)filter, &err))
                abort();
        esp_image_finish(&image);
    }
    free(exact);
    return 0;
}
