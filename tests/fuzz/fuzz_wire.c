/*
 * A message from a stranger. The first byte says how many raw frames come with it (low six bits), the second
 * how large they are: 255 the size that the header asks for, as far as the harness can tell by trying,
 * anything else that many times 4 bytes. The rest is the header.
 *
 * What is accepted must be packable again, and the packed form must be accepted and stay as it is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"
#include "tests/fuzz/fuzz.h"

#define FRAME_MAX (1u << 16)

static void must(int good, const char *what, const struct esp_err *err)
{
    if (good)
        return;
    fprintf(stderr, "%s: %s\n", what, err->text);
    abort();
}

/* The size that a tensor message was found to want, read out of its cause; 0 if it was not about that. */
static size_t wanted(const struct esp_err *err)
{
    const char *at = strstr(err->text, "raw frame of ");
    unsigned rows, width;
    size_t got;

    if (!at || sscanf(at, "raw frame of %zu bytes for [%u,%u]", &got, &rows, &width) != 3)
        return 0;
    return (uint64_t)rows * width <= FRAME_MAX / 4 ? (size_t)rows * width * 4 : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static const uint8_t frame[FRAME_MAX];
    struct esp_blob blobs[ESP_MAX_BLOBS] = {0};
    struct esp_msg msg, again;
    struct esp_err err = {0};
    uint8_t *header, *packed, *repacked;
    size_t n_header, n_packed, n_repacked;
    uint32_t n_blobs;

    if (n_bytes < 2)
        return 0;
    n_blobs = data[0] & 63;
    n_header = n_bytes - 2;
    for (uint32_t i = 0; i < n_blobs; i++)
        blobs[i] = (struct esp_blob){.data = frame, .n_bytes = data[1] == 255 ? 0 : (size_t)data[1] * 4};
    header = malloc(n_header ? n_header : 1); /* exact size, so that ASan sees the first byte too many */
    if (!header)
        return 0;
    memcpy(header, data + 2, n_header);
    if (esp_wire_unpack(&msg, header, n_header, blobs, n_blobs, &err) != ESP_OK && data[1] == 255 &&
        n_blobs == 1) {
        blobs[0].n_bytes = wanted(&err);
        esp_wire_unpack(&msg, header, n_header, blobs, n_blobs, &err);
    }
    free(header); /* a message must not need it any more */
    if (msg.kind != ESP_MSG_NONE) {
        must(esp_wire_pack(&packed, &n_packed, &msg, &err) == ESP_OK, "pack", &err);
        must(esp_wire_unpack(&again, packed, n_packed, msg.blob, msg.n_blobs, &err) == ESP_OK, "unpack",
             &err);
        must(esp_wire_pack(&repacked, &n_repacked, &again, &err) == ESP_OK, "pack again", &err);
        must(n_packed == n_repacked && memcmp(packed, repacked, n_packed) == 0, "packed differently", &err);
        free(packed);
        free(repacked);
        esp_msg_finish(&again);
    }
    esp_msg_finish(&msg);
    return 0;
}
