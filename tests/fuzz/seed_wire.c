/*
 * Writes the seeds of fuzz_wire: one file a message of tests/support/messages.c.
 *
 *   seed_wire tests/fuzz/corpus/wire        after a change of the protocol
 */
#include <stdio.h>
#include <stdlib.h>

#include "proto/wire.h"
#include "tests/support/messages.h"

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 2 && i < esp_test_n_messages; i++) {
        const struct esp_msg *m = &esp_test_messages[i].msg;
        struct esp_err err;
        char path[4096];
        uint8_t *bytes;
        size_t n;
        FILE *f;

        if (esp_wire_pack(&bytes, &n, m, &err) != ESP_OK) {
            fprintf(stderr, "%s: %s\n", esp_test_messages[i].name, err.text);
            return 1;
        }
        snprintf(path, sizeof path, "%s/%s", argv[1], esp_test_messages[i].name);
        f = fopen(path, "wb");
        /* one frame of the size it asks for, or several of 4 bytes */
        if (!f || fputc((int)m->n_blobs, f) == EOF || fputc(m->n_blobs == 1 ? 255 : 1, f) == EOF ||
            fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
            perror(path);
            return 1;
        }
        free(bytes);
    }
    return argc == 2 ? 0 : 2;
}
