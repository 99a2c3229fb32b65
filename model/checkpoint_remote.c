#include "model/remote.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/checkpoint_state.h"
#include "model/roles.h"

#define MAX_CONFIG_BYTES ((size_t)1 << 20) /* as of a file */

void esp_remote_finish(struct esp_remote *remote)
{
    if (remote->base)
        munmap(remote->base, remote->n_bytes);
    free(remote->tensor);
    free(remote->names);
    free(remote->content);
    memset(remote, 0, sizeof *remote);
}

uint64_t esp_chunk_count(uint64_t n_bytes, uint32_t chunk_bytes)
{
    return n_bytes / chunk_bytes + (n_bytes % chunk_bytes > 0);
}

size_t esp_chunk_bytes(uint64_t n_bytes, uint32_t chunk_bytes, uint64_t chunk)
{
    const uint64_t left = n_bytes - chunk * chunk_bytes;

    return left < chunk_bytes ? (size_t)left : chunk_bytes;
}

/* Checks a claim against the config and enters it under its role; `name` is what messages call it. */
static esp_status bind(struct esp_checkpoint *ck, struct esp_tensor *t, const struct esp_remote_tensor *claim,
                       uint32_t index, char name[ESP_TENSOR_NAME_MAX], struct esp_err *err)
{
    const enum esp_role role = (enum esp_role)claim->role;
    char found[ESP_SHOWN], wanted[ESP_SHOWN];
    uint64_t shape[4];
    size_t n_bytes;
    uint32_t n_dim;

    if (claim->role >= ESP_N_ROLE || claim->layer >= esp_role_count(&ck->config, role))
        return esp_fail(err, ESP_E_FORMAT, "%s: tensor %u: role %u, layer %u: config.json calls for none",
                        ck->dir, index, claim->role, claim->layer);
    esp_role_name(name, ESP_LAYOUT_PUBLISHED, &ck->config, role, claim->layer);
    if (ck->role[role][claim->layer])
        return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s is there twice", ck->dir, name);
    if (claim->dtype != ESP_F32 && claim->dtype != ESP_F16 && claim->dtype != ESP_BF16 &&
        ((claim->dtype != ESP_Q8 && claim->dtype != ESP_Q4) ||
         esp_role_wtype(&ck->config, role, ESP_W_Q8) != ESP_W_Q8))
        return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s: dtype %u, expected F32, F16 or BF16", ck->dir,
                        name, claim->dtype);
    n_dim = esp_role_shape(shape, &ck->config, role);
    if (claim->n_dim != n_dim || memcmp(claim->shape, shape, n_dim * sizeof shape[0]) != 0)
        return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s: shape %s, expected %s by config.json", ck->dir,
                        name,
                        claim->n_dim <= 4 ? esp_shape_text(found, claim->shape, claim->n_dim) : "of many",
                        esp_shape_text(wanted, shape, n_dim));
    t->dtype = (enum esp_dtype)claim->dtype;
    t->n_dim = n_dim;
    n_bytes = sizeof(float); /* the most that an element takes */
    for (uint32_t d = 0; d < n_dim; d++) {
        t->shape[d] = shape[d];
        if (!esp_mul(&n_bytes, n_bytes, shape[d]) || n_bytes > ESP_REMOTE_MAX_BYTES)
            return esp_fail(err, ESP_E_LIMIT, "%s: tensor %s: more than %llu bytes", ck->dir, name,
                            (unsigned long long)ESP_REMOTE_MAX_BYTES);
    }
    t->n_bytes = (size_t)shape[0] * esp_tensor_row_bytes(t);
    t->name = name;
    t->stored_dtype = t->dtype == ESP_F32    ? "F32"
                      : t->dtype == ESP_F16  ? "F16"
                      : t->dtype == ESP_BF16 ? "BF16"
                      : t->dtype == ESP_Q8   ? "Q8"
                                             : "Q4";
    t->file = ck->dir;
    ck->role[role][claim->layer] = t;
    return ESP_OK;
}

static esp_status check_complete(const struct esp_checkpoint *ck, struct esp_err *err)
{
    char name[ESP_TENSOR_NAME_MAX];

    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t i = 0; i < esp_role_count(&ck->config, (enum esp_role)role); i++) {
            if (ck->role[role][i])
                continue;
            esp_role_name(name, ESP_LAYOUT_PUBLISHED, &ck->config, (enum esp_role)role, i);
            return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s is missing", ck->dir, name);
        }
    }
    return ESP_OK;
}

/* Address space for all tensors, each from a page of its own on. */
static esp_status reserve(struct esp_checkpoint *ck, size_t page, struct esp_err *err)
{
    struct esp_remote *r = &ck->remote;
    uint64_t at = 0; /* at most 2^16 tensors of 2^40 bytes: cannot overflow */
    void *base;

    for (uint32_t i = 0; i < r->n_tensor; i++)
        at += esp_round_up(r->tensor[i].n_bytes, page);
    if (at > ESP_REMOTE_MAX_BYTES)
        return esp_fail(err, ESP_E_LIMIT, "%s: %llu bytes of weights, takes %llu at most", ck->dir,
                        (unsigned long long)at, (unsigned long long)ESP_REMOTE_MAX_BYTES);
    base = mmap(NULL, at, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return esp_fail(err, ESP_E_NOMEM, "%s: addresses for %llu bytes of weights: %s", ck->dir,
                        (unsigned long long)at, strerror(errno));
    r->base = base;
    r->n_bytes = at;
    at = 0;
    for (uint32_t i = 0; i < r->n_tensor; i++) {
        r->tensor[i].data = (const char *)base + at;
        at += esp_round_up(r->tensor[i].n_bytes, page);
    }
    return ESP_OK;
}

esp_status esp_checkpoint_open_remote(struct esp_checkpoint **out, const char *config, size_t n_config,
                                      const struct esp_remote_tensor *tensors, uint32_t n_tensors,
                                      uint32_t chunk_bytes, const char *origin, struct esp_err *err)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct esp_checkpoint *ck = calloc(1, sizeof *ck);
    struct esp_remote *r;
    esp_status st = ESP_OK;

    *out = NULL;
    if (ck)
        ck->dir = strdup(origin);
    if (!ck || !ck->dir) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: its description", origin);
        goto done;
    }
    if (chunk_bytes == 0 || (chunk_bytes & (chunk_bytes - 1)) || chunk_bytes % page) {
        st = esp_fail(err, ESP_E_ARG, "%s: chunks of %u bytes, takes a power of two from %zu on", origin,
                      chunk_bytes, page);
        goto done;
    }
    if (n_config > MAX_CONFIG_BYTES) {
        st = esp_fail(err, ESP_E_FORMAT, "%s: config.json: %zu bytes, expected at most %zu", origin, n_config,
                      MAX_CONFIG_BYTES);
        goto done;
    }
    st = esp_config_parse(&ck->config, config, n_config, NULL, 0, NULL, 0, err);
    if (st) {
        esp_err_prefix(err, "%s: ", origin);
        goto done;
    }
    r = &ck->remote;
    r->chunk_bytes = chunk_bytes;
    r->n_tensor = n_tensors;
    r->tensor = calloc((size_t)n_tensors + 1, sizeof *r->tensor);
    r->names = calloc((size_t)n_tensors + 1, ESP_TENSOR_NAME_MAX);
    r->content = calloc((size_t)n_tensors + 1, sizeof *r->content);
    if (!r->tensor || !r->names || !r->content) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: %u tensors", origin, n_tensors);
        goto done;
    }
    for (uint32_t i = 0; !st && i < n_tensors; i++)
        st = bind(ck, &r->tensor[i], &tensors[i], i, r->names + (size_t)i * ESP_TENSOR_NAME_MAX, err);
    if (!st)
        st = check_complete(ck, err);
    if (!st)
        st = reserve(ck, page, err);
    if (st)
        goto done;
    *out = ck;
    ck = NULL;
done:
    esp_checkpoint_destroy(&ck);
    return st;
}

void esp_remote_set_content(struct esp_checkpoint *ck, uint32_t i, const uint8_t *chunk_hashes)
{
    struct esp_remote *r = &ck->remote;

    esp_content_tensor(r->content[i], r->tensor[i].n_bytes, r->chunk_bytes, chunk_hashes);
    r->tensor[i].content = r->content[i];
}

uint32_t esp_remote_n_tensor(const struct esp_checkpoint *ck)
{
    return ck->remote.n_tensor;
}

const struct esp_tensor *esp_remote_at(const struct esp_checkpoint *ck, uint32_t i)
{
    return i < ck->remote.n_tensor ? &ck->remote.tensor[i] : NULL;
}

bool esp_remote_index(uint32_t *out, const struct esp_checkpoint *ck, const struct esp_tensor *tensor)
{
    const struct esp_remote *r = &ck->remote;
    /* As numbers: the tensor may be another checkpoint's. */
    const uintptr_t from = (uintptr_t)r->tensor, at = (uintptr_t)tensor;

    if (at < from || at >= from + r->n_tensor * sizeof *r->tensor)
        return false;
    *out = (uint32_t)((at - from) / sizeof *r->tensor);
    return true;
}

uint64_t esp_remote_offset(const struct esp_checkpoint *ck, uint32_t tensor, uint64_t chunk)
{
    const struct esp_remote *r = &ck->remote;

    return (uint64_t)((const char *)r->tensor[tensor].data - (const char *)r->base) + chunk * r->chunk_bytes;
}

esp_status esp_remote_map(struct esp_checkpoint *ck, uint32_t tensor, uint64_t chunk, int fd, uint64_t at,
                          struct esp_err *err)
{
    const struct esp_remote *r = &ck->remote;
    const struct esp_tensor *t = &r->tensor[tensor];
    const size_t n_bytes = esp_chunk_bytes(t->n_bytes, r->chunk_bytes, chunk);
    void *to = (char *)r->base + esp_remote_offset(ck, tensor, chunk);

    /* Over a part of what reserve() took, and of no other tensor: a chunk is whole pages but for a tensor's last one,
     * and behind that the page belongs to it too. */
    if (mmap(to, n_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)at) == MAP_FAILED)
        return esp_fail(err, errno == ENOMEM ? ESP_E_NOMEM : ESP_E_IO,
                        "%s: a chunk of %s cannot be mapped: %s", ck->dir, t->name, strerror(errno));
    return ESP_OK;
}
