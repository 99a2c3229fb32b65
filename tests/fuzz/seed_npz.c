/*
 * Writes the seeds of fuzz_npz: mask codecs of one or two channels, whole and not.
 *
 *   seed_npz tests/fuzz/corpus/npz
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/ref_codec.h"

static void write_bytes(const char *dir, const char *name, const uint8_t *bytes, size_t n)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    static const struct esp_ref_codec_dims dims = {
        .down = {1, 2, 1, 2}, .in = 2, .up = {1, 2, 1, 2}, .code_dim = 2};
    static const float numbers[4] = {1, 2, 3, 4};
    struct esp_ref_codec ref;
    struct esp_npz_out z;

    if (argc != 2)
        return 2;
    for (int i = 0; i < 4; i++) {
        char name[64];

        esp_ref_codec_random(&ref, &dims, i % 2 == 0, 1);
        esp_ref_codec_write(&z, &ref, i & 1, i & 2);
        snprintf(name, sizeof name, "codec%s%s", i & 1 ? "_half_decoder" : "", i & 2 ? "_deflated" : "");
        write_bytes(argv[1], name, z.bytes, z.n_bytes);
        if (i == 2)
            write_bytes(argv[1], "codec_cut", z.bytes, z.n_bytes / 2);
        free(z.bytes);
        esp_ref_codec_finish(&ref);
    }
    for (int i = 0; i < 4; i++) {
        char name[64];

        z = (struct esp_npz_out){0};
        esp_npz_out_array(&z, "x", numbers, (const size_t[]){2, 2}, 2, i & 1, i & 2);
        esp_npz_out_raw(&z, "note", "hello", 5, i & 2);
        esp_npz_out_end(&z);
        if (i == 0) /* the entry alone: behind the local header and its name */
            write_bytes(argv[1], "npy", z.bytes + 35, 128 + sizeof numbers);
        snprintf(name, sizeof name, "array%s%s", i & 1 ? "_half" : "", i & 2 ? "_deflated" : "");
        write_bytes(argv[1], name, z.bytes, z.n_bytes);
        if (i == 0) {
            z.bytes[14] ^= 1; /* of the local header: not what counts */
            write_bytes(argv[1], "local_crc", z.bytes, z.n_bytes);
            z.bytes[130] ^= 1;
            write_bytes(argv[1], "bad_crc", z.bytes, z.n_bytes);
        }
        free(z.bytes);
    }
    return 0;
}
