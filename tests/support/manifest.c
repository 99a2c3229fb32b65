#include "tests/support/manifest.h"

#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/file.h"
#include "model/roles.h"

void esp_test_manifest_make(struct esp_test_manifest *m, const char *dir, uint32_t chunk_bytes)
{
    const struct esp_config *config;
    struct esp_err err;
    char path[512];
    size_t n_config;

    memset(m, 0, sizeof *m);
    assert_true(sodium_init() >= 0);
    if (esp_checkpoint_open(&m->ck, dir, &err))
        fail_msg("%s", err.text);
    config = esp_checkpoint_config(m->ck);
    snprintf(path, sizeof path, "%s/config.json", dir);
    if (esp_file_read(&m->config, &n_config, path, 1 << 20, &err))
        fail_msg("%s", err.text);
    for (int r = 0; r < ESP_N_ROLE; r++)
        m->n_tensor += esp_role_count(config, (enum esp_role)r);
    m->tensor = calloc(m->n_tensor, sizeof *m->tensor);
    m->info = calloc(m->n_tensor, sizeof *m->info);
    m->base = calloc(m->n_tensor + 1, sizeof *m->base);
    assert_true(m->tensor && m->info && m->base);
    m->n_tensor = 0;
    for (int r = 0; r < ESP_N_ROLE; r++) {
        for (uint32_t i = 0; i < esp_role_count(config, (enum esp_role)r); i++, m->n_tensor++) {
            const struct esp_tensor *t = esp_checkpoint_tensor(m->ck, (enum esp_role)r, i);
            const uint64_t n = esp_chunk_count(t->n_bytes, chunk_bytes);

            m->tensor[m->n_tensor] = t;
            m->info[m->n_tensor] = (struct esp_tensor_info){
                .role = (uint32_t)r, .layer = i, .dtype = t->dtype, .n_dim = t->n_dim, .shape = t->shape};
            m->base[m->n_tensor + 1] = m->base[m->n_tensor] + (uint32_t)n;
        }
    }
    m->n_chunk = m->base[m->n_tensor];
    m->hash = calloc(m->n_chunk, sizeof *m->hash);
    assert_non_null(m->hash);
    m->msg.kind = ESP_MSG_MANIFEST;
    m->msg.manifest.chunk_bytes = chunk_bytes;
    for (uint32_t t = 0; t < m->n_tensor; t++) {
        for (uint32_t c = 0; m->base[t] + c < m->base[t + 1]; c++) {
            size_t n;
            const void *data = esp_test_chunk(m, t, c, &n);
            crypto_generichash(m->hash[m->base[t] + c], ESP_HASH_BYTES, data, n, NULL, 0);
        }
    }
    esp_checkpoint_fingerprint(m->ck, m->msg.manifest.fingerprint);
    m->msg.manifest.n_tensors = m->n_tensor;
    m->msg.manifest.tensors = m->info;
    m->msg.n_blobs = 2;
    m->msg.blob[0] = (struct esp_blob){.data = m->config, .n_bytes = n_config};
    m->msg.blob[1] = (struct esp_blob){.data = m->hash, .n_bytes = m->n_chunk * sizeof *m->hash};
}

void esp_test_manifest_free(struct esp_test_manifest *m)
{
    esp_checkpoint_destroy(&m->ck);
    free(m->tensor);
    free(m->info);
    free(m->base);
    free(m->hash);
    free(m->config);
    memset(m, 0, sizeof *m);
}

const void *esp_test_chunk(const struct esp_test_manifest *m, uint32_t tensor, uint32_t chunk,
                           size_t *n_bytes)
{
    const struct esp_tensor *t = m->tensor[tensor];
    const uint32_t chunk_bytes = m->msg.manifest.chunk_bytes;

    *n_bytes = esp_chunk_bytes(t->n_bytes, chunk_bytes, chunk);
    return (const char *)t->data + (size_t)chunk * chunk_bytes;
}

static bool is_of(const struct esp_tensor_info *t, const struct esp_test_part *p)
{
    const enum esp_role r = (enum esp_role)t->role;

    if (r <= ESP_V_POS)
        return p->patch;
    if (r <= ESP_V_FC2_B)
        return t->layer >= p->enc_lo && t->layer < p->enc_hi;
    if (r <= ESP_P_B)
        return p->projector;
    if (r == ESP_T_EMBED || r == ESP_T_NORM_FINAL)
        return p->table;
    return t->layer >= p->dec_lo && t->layer < p->dec_hi;
}

uint32_t esp_test_part_chunks(const struct esp_test_manifest *m, const struct esp_test_part *part,
                              uint64_t *n_bytes)
{
    bool *seen = calloc(m->n_chunk, sizeof *seen);
    uint32_t n = 0;

    assert_non_null(seen);
    *n_bytes = 0;
    for (uint32_t t = 0; t < m->n_tensor; t++) {
        for (uint32_t id = m->base[t]; is_of(&m->info[t], part) && id < m->base[t + 1]; id++) {
            size_t n_chunk;
            bool again = false;

            for (uint32_t i = 0; i < m->n_chunk && !again; i++)
                again = seen[i] && memcmp(m->hash[i], m->hash[id], ESP_HASH_BYTES) == 0;
            if (again)
                continue;
            seen[id] = true;
            esp_test_chunk(m, t, id - m->base[t], &n_chunk);
            *n_bytes += n_chunk;
            n++;
        }
    }
    free(seen);
    return n;
}
