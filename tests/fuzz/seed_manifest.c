/*
 * Writes the seeds of fuzz_manifest: the golden checkpoints' manifests, whole and not.
 *
 *   seed_manifest tests/fuzz/corpus/manifest        after a change of the protocol
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/manifest.h"

static void put_u32(FILE *f, size_t v)
{
    for (int i = 0; i < 4; i++)
        fputc((int)(v >> 8 * i & 255), f);
}

static void seed(const char *dir, const char *name, const struct esp_msg *msg)
{
    struct esp_err err;
    char path[4096];
    uint8_t *bytes;
    size_t n;
    FILE *f;

    if (esp_wire_pack(&bytes, &n, msg, &err)) {
        fprintf(stderr, "%s: %s\n", name, err.text);
        exit(1);
    }
    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "wb");
    if (!f) {
        perror(path);
        exit(1);
    }
    put_u32(f, n);
    put_u32(f, msg->blob[0].n_bytes);
    fwrite(bytes, 1, n, f);
    fwrite(msg->blob[0].data, 1, msg->blob[0].n_bytes, f);
    fwrite(msg->blob[1].data, 1, msg->blob[1].n_bytes, f);
    if (fclose(f) != 0) {
        perror(path);
        exit(1);
    }
    free(bytes);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"tiny", "odd", "tiny-pg2"};

    if (argc != 2)
        return 2;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct esp_test_manifest m;
        struct esp_tensor_info first;
        char path[128], name[64];

        snprintf(path, sizeof path, "tests/golden/data/%s", names[i]);
        esp_test_manifest_make(&m, path, 4u << 20);
        seed(argv[1], names[i], &m.msg);
        snprintf(name, sizeof name, "%s.missing", names[i]);
        m.msg.manifest.n_tensors--;
        m.msg.blob[1].n_bytes -= ESP_HASH_BYTES;
        seed(argv[1], name, &m.msg);
        snprintf(name, sizeof name, "%s.twice", names[i]);
        m.msg.manifest.n_tensors++;
        m.msg.blob[1].n_bytes += ESP_HASH_BYTES;
        first = m.info[1];
        m.info[1] = m.info[2];
        seed(argv[1], name, &m.msg);
        snprintf(name, sizeof name, "%s.config", names[i]);
        m.info[1] = first;
        m.msg.blob[0].n_bytes /= 2;
        seed(argv[1], name, &m.msg);
        esp_test_manifest_free(&m);
    }
    return 0;
}
