/*
 * Writes the seeds of fuzz_decode_state: the records of each kind of request, some and all.
 *
 *   seed_decode_state tests/fuzz/corpus/decode_state        after a change of the records
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/decode_world.h"

static int write_seed(const char *dir, size_t c, uint32_t n_steps)
{
    struct world w = {0};
    struct esp_decode *d = world_decoder(&w, &world_cases[c]);
    struct esp_decode_mark mark = {0};
    bool done = false;
    char path[4096];
    FILE *f;

    snprintf(path, sizeof path, "%s/%zu_%u", dir, c, n_steps);
    f = fopen(path, "wb");
    if (!d || !f || fputc((int)c, f) == EOF) {
        perror(path);
        return 1;
    }
    for (uint32_t i = 0; i < n_steps && !done; i++) {
        uint8_t *record;
        size_t n;

        if (world_step(&w, d, &done, NULL) || esp_decode_save(d, &mark, &record, &n, NULL) ||
            fwrite(record, 1, n, f) != n) {
            perror(path);
            return 1;
        }
        free(record);
    }
    esp_decode_destroy(&d);
    return fclose(f) != 0;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    for (size_t c = 0; c < n_world_cases; c++)
        if (write_seed(argv[1], c, 3) || write_seed(argv[1], c, 1000))
            return 1;
    return 0;
}
