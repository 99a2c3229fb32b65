#include "coordinator/hash_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/file.h"
#include "model/remote.h"

static void hash_u64(crypto_generichash_state *h, uint64_t v)
{
    crypto_generichash_update(h, (const unsigned char *)&v, sizeof v);
}

static void choose_path(struct esp_hash_file *f, const char *cache_dir,
                        const uint8_t fingerprint[ESP_FINGERPRINT_BYTES], uint32_t chunk_bytes)
{
    char hex[2 * ESP_FINGERPRINT_BYTES + 1];

    if (cache_dir)
        snprintf(f->dir, sizeof f->dir, "%s", cache_dir);
    else if (esp_file_cache_dir(f->dir, sizeof f->dir, "manifests", NULL))
        return;
    if (!f->dir[0])
        return;
    sodium_bin2hex(hex, sizeof hex, fingerprint, ESP_FINGERPRINT_BYTES);
    snprintf(f->path, sizeof f->path, "%s/%s-%u", f->dir, hex, chunk_bytes >> 10);
}

void esp_hash_file_init(struct esp_hash_file *f, const char *cache_dir,
                        const uint8_t fingerprint[ESP_FINGERPRINT_BYTES], uint32_t chunk_bytes,
                        const struct esp_tensor *const *tensor, const struct esp_tensor_info *info,
                        uint32_t n_tensor)
{
    crypto_generichash_state h;
    struct stat sb = {0};
    const char *last = NULL;

    memset(f, 0, sizeof *f);
    choose_path(f, cache_dir, fingerprint, chunk_bytes);
    crypto_generichash_init(&h, NULL, 0, ESP_HASH_FILE_KEY);
    crypto_generichash_update(&h, fingerprint, ESP_FINGERPRINT_BYTES);
    hash_u64(&h, chunk_bytes);
    for (uint32_t i = 0; i < n_tensor; i++) {
        const struct esp_tensor *t = tensor[i];

        if (!last || strcmp(last, t->file) != 0) {
            if (stat(t->file, &sb) != 0)
                f->path[0] = '\0'; /* it was there a moment ago: nothing is kept of a thing like that */
            last = t->file;
        }
        hash_u64(&h, info[i].role);
        hash_u64(&h, info[i].layer);
        hash_u64(&h, info[i].dtype);
        hash_u64(&h, t->n_bytes);
        hash_u64(&h, (uint64_t)sb.st_dev);
        hash_u64(&h, (uint64_t)sb.st_ino);
        hash_u64(&h, (uint64_t)sb.st_size);
        hash_u64(&h, (uint64_t)sb.st_mtim.tv_sec);
        hash_u64(&h, (uint64_t)sb.st_mtim.tv_nsec);
    }
    crypto_generichash_final(&h, f->key, ESP_HASH_FILE_KEY);
}

static void seal(uint8_t out[ESP_HASH_FILE_KEY], const struct esp_hash_file *f, const uint8_t *hashes,
                 uint32_t n_chunk)
{
    crypto_generichash(out, ESP_HASH_FILE_KEY, hashes, (size_t)n_chunk * ESP_HASH_BYTES, f->key,
                       ESP_HASH_FILE_KEY);
}

bool esp_hash_file_read(uint8_t *hashes, const struct esp_hash_file *f, uint32_t n_chunk)
{
    const size_t n_hashes = (size_t)n_chunk * ESP_HASH_BYTES;
    uint8_t sum[ESP_HASH_FILE_KEY];
    char *text;
    size_t n;
    bool good;

    if (!f->path[0] || !esp_file_exists(f->path) ||
        esp_file_read(&text, &n, f->path, n_hashes + 2 * ESP_HASH_FILE_KEY, NULL))
        return false;
    good = n == n_hashes + 2 * ESP_HASH_FILE_KEY && memcmp(text, f->key, ESP_HASH_FILE_KEY) == 0;
    if (good) {
        memcpy(hashes, text + 2 * ESP_HASH_FILE_KEY, n_hashes);
        seal(sum, f, hashes, n_chunk);
        good = memcmp(text + ESP_HASH_FILE_KEY, sum, ESP_HASH_FILE_KEY) == 0;
    }
    free(text);
    return good;
}

void esp_hash_file_write(const struct esp_hash_file *f, const uint8_t *hashes, uint32_t n_chunk,
                         const struct esp_log *log)
{
    uint8_t sum[ESP_HASH_FILE_KEY];
    char other[sizeof f->path + 8];
    struct esp_err why;
    bool good;
    FILE *out;
    int fd;

    if (!f->path[0])
        return;
    if (esp_file_make_dir(f->dir, &why)) {
        esp_log(log, ESP_LOG_WARN, "manifest_not_kept why=\"%s\"", why.text);
        return;
    }
    seal(sum, f, hashes, n_chunk);
    snprintf(other, sizeof other, "%s.XXXXXX", f->path);
    fd = mkostemp(other, O_CLOEXEC);
    out = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (!out && fd >= 0)
        close(fd);
    good = out && fwrite(f->key, 1, ESP_HASH_FILE_KEY, out) == ESP_HASH_FILE_KEY &&
           fwrite(sum, 1, ESP_HASH_FILE_KEY, out) == ESP_HASH_FILE_KEY &&
           fwrite(hashes, ESP_HASH_BYTES, n_chunk, out) == n_chunk;
    if (out && fclose(out) != 0)
        good = false;
    if (good && rename(other, f->path) == 0)
        return;
    esp_log(log, ESP_LOG_WARN, "manifest_not_kept path=%s why=\"%s\"", f->path, strerror(errno));
    if (fd >= 0)
        unlink(other);
}
