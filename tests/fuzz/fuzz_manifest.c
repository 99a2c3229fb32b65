/*
 * A manifest as it comes over the wire, to the checkpoint that a worker makes of it: whatever is taken has every tensor of
 * its config, each at a place of its own.
 *
 * Input: two lengths (u32, little-endian), then so many bytes of header, so many of config.json, and the rest is hashes.
 */
#include <stdlib.h>
#include <string.h>

#include "model/roles.h"
#include "tests/fuzz/fuzz.h"
#include "worker/depot.h"

static uint32_t u32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void *copy_of(const uint8_t *data, size_t n)
{
    void *p = malloc(n ? n : 1);

    if (p && n > 0)
        memcpy(p, data, n);
    return p;
}

/* What holds of every checkpoint. */
static void look_at(const struct esp_checkpoint *ck)
{
    const struct esp_config *c = esp_checkpoint_config(ck);
    uint32_t n = 0, index;
    uint64_t end = 0;

    for (uint32_t i = 0; i < esp_remote_n_tensor(ck); i++) {
        const struct esp_tensor *t = esp_remote_at(ck, i);

        if (!esp_remote_index(&index, ck, t) || index != i || esp_remote_offset(ck, i, 0) < end)
            abort();
        end = esp_remote_offset(ck, i, 0) + t->n_bytes;
    }
    if (end > ESP_REMOTE_MAX_BYTES)
        abort();
    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t i = 0; i < esp_role_count(c, (enum esp_role)role); i++, n++) {
            const struct esp_tensor *t = esp_checkpoint_tensor(ck, (enum esp_role)role, i);
            uint64_t shape[4];
            size_t n_bytes;

            if (!t || esp_role_shape(shape, c, (enum esp_role)role) != t->n_dim)
                abort();
            n_bytes = esp_dtype_n_bytes(t->dtype);
            for (uint32_t d = 0; d < t->n_dim; d++)
                n_bytes *= shape[d];
            if (n_bytes != t->n_bytes || n_bytes == 0)
                abort();
        }
    }
    if (n != esp_remote_n_tensor(ck))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    static const struct esp_stage_spec all = {
        .enc_hi = UINT32_MAX / 2, .dec_hi = 1, .patch = true, .projector = true, .embed = true};
    static struct esp_depot *depot;
    static struct esp_checkpoint *last;
    struct esp_stage_spec spec = all;
    struct esp_checkpoint *ck = NULL;
    struct esp_blob blob[2];
    struct esp_msg msg;
    struct esp_err err = {0};
    void *header, *config, *hashes;
    size_t n_header, n_config;

    if (!depot && esp_depot_create(&depot, "/dev/null/no place", 0, NULL, &err))
        abort();
    if (n_bytes < 8)
        return 0;
    n_header = u32(data) % (n_bytes - 7);
    n_config = u32(data + 4) % (n_bytes - 8 - n_header + 1);
    header = copy_of(data + 8, n_header);
    config = copy_of(data + 8 + n_header, n_config);
    hashes = copy_of(data + 8 + n_header + n_config, n_bytes - 8 - n_header - n_config);
    blob[0] = (struct esp_blob){.data = config, .n_bytes = n_config};
    blob[1] = (struct esp_blob){.data = hashes, .n_bytes = n_bytes - 8 - n_header - n_config};
    if (header && config && hashes && !esp_wire_unpack(&msg, header, n_header, blob, 2, &err)) {
        if (msg.kind == ESP_MSG_MANIFEST) {
            esp_status st = esp_depot_manifest(depot, &ck, &msg, "input", &err);

            if (st ? ck != NULL || !err.text[0] : ck == NULL && last == NULL)
                abort();
        }
        esp_msg_finish(&msg);
    }
    if (ck) {
        struct esp_msg_fetch fetch;

        look_at(ck);
        esp_depot_retire(depot, last);
        last = ck;
        spec.enc_hi = esp_checkpoint_config(ck)->vision.n_layer;
        spec.dec_hi = esp_checkpoint_config(ck)->text.n_layer;
        esp_depot_want(depot, &spec);
        if (esp_depot_fetch(depot, &fetch) && fetch.tensor >= esp_remote_n_tensor(ck))
            abort();
        esp_depot_lost(depot);
    }
    free(header);
    free(config);
    free(hashes);
    return 0;
}
