#include "worker/cache.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/store.h"

_Static_assert(ESP_CACHE_HASH_BYTES == ESP_STORE_NAME_BYTES, "a chunk's hash is its file's name");

struct esp_cache {
    struct esp_store *store;
    const struct esp_log *log;
};

void esp_cache_hash(uint8_t out[ESP_CACHE_HASH_BYTES], const void *data, size_t n_bytes)
{
    crypto_generichash(out, ESP_CACHE_HASH_BYTES, data, n_bytes, NULL, 0);
}

esp_status esp_cache_open(struct esp_cache **out, const char *dir, uint64_t limit_bytes, esp_cache_keep keep,
                          void *keep_arg, const struct esp_log *log, struct esp_err *err)
{
    struct esp_cache *c = calloc(1, sizeof *c);
    esp_status st;

    *out = NULL;
    if (!c)
        return esp_fail(err, ESP_E_NOMEM, "%s: a cache of weights", dir);
    c->log = log;
    st = esp_store_open(&c->store, dir, limit_bytes, keep, keep_arg, err);
    if (st) {
        free(c);
        return st;
    }
    *out = c;
    return ESP_OK;
}

void esp_cache_destroy(struct esp_cache **cache)
{
    struct esp_cache *c = *cache;

    *cache = NULL;
    if (!c)
        return;
    esp_store_destroy(&c->store);
    free(c);
}

/* What is wrong with a chunk's file; ESP_OK: nothing. */
static esp_status check(int fd, uint64_t n_found, const uint8_t *hash, void *scratch, size_t n_bytes,
                        struct esp_err *err)
{
    uint8_t found[ESP_CACHE_HASH_BYTES];

    if (n_found != n_bytes)
        return esp_fail(err, ESP_E_FORMAT, "%llu bytes, expected %zu", (unsigned long long)n_found, n_bytes);
    if (!esp_store_read_at(fd, scratch, n_bytes, 0))
        return esp_fail(err, ESP_E_FORMAT, "%s", errno ? strerror(errno) : "became shorter while read");
    esp_cache_hash(found, scratch, n_bytes);
    if (memcmp(found, hash, sizeof found) != 0)
        return esp_fail(err, ESP_E_FORMAT, "its bytes have another hash");
    return ESP_OK;
}

esp_status esp_cache_get(int *out, struct esp_cache *c, const uint8_t hash[ESP_CACHE_HASH_BYTES],
                         void *scratch, size_t n_bytes, struct esp_err *err)
{
    struct esp_err why = {0};
    char path[ESP_STORE_PATH];
    uint64_t n_found;
    esp_status st;
    int fd;

    *out = -1;
    st = esp_store_find(&fd, &n_found, c->store, hash, &why);
    if (st && st != ESP_E_FORMAT)
        return esp_fail(err, st, "%s", why.text);
    if (!st)
        st = check(fd, n_found, hash, scratch, n_bytes, &why);
    if (!st) {
        esp_store_used(fd);
        *out = fd;
        return ESP_OK;
    }
    if (fd >= 0)
        close(fd);
    esp_store_remove(c->store, hash);
    esp_store_path(path, hash);
    esp_log(c->log, ESP_LOG_WARN, "cache_corrupt chunk=%s/%s why=\"%s\" action=refetch",
            esp_store_dir(c->store), path, why.text);
    return esp_fail(err, ESP_E_FORMAT, "%s/%s: %s", esp_store_dir(c->store), path, why.text);
}

esp_status esp_cache_put(int *out, struct esp_cache *c, const uint8_t hash[ESP_CACHE_HASH_BYTES],
                         const void *data, size_t n_bytes, struct esp_err *err)
{
    struct esp_store_draft draft;
    esp_status st;

    *out = -1;
    st = esp_store_begin(&draft, c->store, n_bytes, err);
    if (st)
        return st;
    if (!esp_store_write_at(draft.fd, data, n_bytes, 0)) {
        st = esp_fail(err, ESP_E_IO, "%s: %s", esp_store_dir(c->store), strerror(errno));
        esp_store_abandon(c->store, &draft);
    } else {
        st = esp_store_commit(c->store, &draft, n_bytes, hash, err);
    }
    if (st) {
        close(draft.fd);
        return st;
    }
    *out = draft.fd;
    return ESP_OK;
}
