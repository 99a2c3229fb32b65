#include "worker/known.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "model/file.h"

#define MAGIC       "espknow1"
#define MAGIC_BYTES 8
#define SEAL_BYTES  32
#define MAX_TENSORS 65536u
#define SETTLED_NS  INT64_C(2000000000) /* coarser than any file system's clock */

struct record {
    uint64_t at, n_bytes;
    uint8_t content[ESP_CONTENT_BYTES];
};

struct table {
    struct esp_file_id id;
    uint8_t key[SEAL_BYTES]; /* hash of id: names the table's file, and seals it */
    bool settled, changed;
    uint32_t n, room;
    struct record *record;
};

struct esp_known {
    char *dir;
    const struct esp_log *log;
    uint32_t n_table;
    struct table *table;
};

esp_status esp_known_create(struct esp_known **out, const char *dir, const struct esp_log *log,
                            struct esp_err *err)
{
    struct esp_known *k = calloc(1, sizeof *k);

    *out = NULL;
    if (k)
        k->dir = strdup(dir);
    if (!k || !k->dir) {
        free(k);
        return esp_fail(err, ESP_E_NOMEM, "%s: what is known of files", dir);
    }
    k->log = log;
    *out = k;
    return ESP_OK;
}

void esp_known_destroy(struct esp_known **known)
{
    struct esp_known *k = *known;

    *known = NULL;
    if (!k)
        return;
    esp_known_save(k);
    for (uint32_t i = 0; i < k->n_table; i++)
        free(k->table[i].record);
    free(k->table);
    free(k->dir);
    free(k);
}

bool esp_known_possible(const struct esp_tensor *t)
{
    return t->content || t->file_id;
}

static void put_u64(unsigned char *to, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        to[i] = (unsigned char)(v >> 8 * i);
}

static uint64_t get_u64(const unsigned char *from)
{
    uint64_t v = 0;

    for (int i = 7; i >= 0; i--)
        v = v << 8 | from[i];
    return v;
}

static void make_key(uint8_t key[SEAL_BYTES], const struct esp_file_id *id)
{
    unsigned char b[40];

    put_u64(b, id->device);
    put_u64(b + 8, id->inode);
    put_u64(b + 16, id->n_bytes);
    put_u64(b + 24, (uint64_t)id->modified);
    put_u64(b + 32, (uint64_t)id->changed);
    (void)crypto_generichash(key, SEAL_BYTES, b, sizeof b, NULL, 0); /* fails for bad lengths alone */
}

static bool table_path(char *out, size_t n_out, const struct esp_known *k, const struct table *t)
{
    char hex[2 * SEAL_BYTES + 1];
    int n;

    sodium_bin2hex(hex, sizeof hex, t->key, SEAL_BYTES);
    n = snprintf(out, n_out, "%s/%s", k->dir, hex);
    return n > 0 && (size_t)n < n_out;
}

static struct record *find(const struct table *t, uint64_t at, uint64_t n_bytes)
{
    for (uint32_t i = 0; i < t->n; i++)
        if (t->record[i].at == at && t->record[i].n_bytes == n_bytes)
            return &t->record[i];
    return NULL;
}

static bool add(struct table *t, const struct record *r)
{
    struct record *old = find(t, r->at, r->n_bytes);

    if (old) {
        *old = *r;
        return true;
    }
    if (t->n == MAX_TENSORS)
        return false;
    if (t->n == t->room) {
        const uint32_t room = t->room ? 2 * t->room : 64;
        struct record *more = realloc(t->record, room * sizeof *more);

        if (!more)
            return false;
        t->record = more;
        t->room = room;
    }
    t->record[t->n++] = *r;
    return true;
}

/*
 * A table's file: magic, records of 8 bytes at, 8 bytes n_bytes and the content, little-endian; then BLAKE2b of all that
 * under the key. Adds those records that are not there yet.
 */
#define RECORD_BYTES (16 + ESP_CONTENT_BYTES)

static void read_table(const struct esp_known *k, struct table *t)
{
    char path[4096], *text;
    uint8_t seal[SEAL_BYTES];
    size_t n, n_record;

    if (!table_path(path, sizeof path, k, t) || !esp_file_exists(path) ||
        esp_file_read(&text, &n, path, MAGIC_BYTES + (size_t)MAX_TENSORS * RECORD_BYTES + SEAL_BYTES, NULL))
        return;
    if (n >= MAGIC_BYTES + SEAL_BYTES && (n - MAGIC_BYTES - SEAL_BYTES) % RECORD_BYTES == 0 &&
        memcmp(text, MAGIC, MAGIC_BYTES) == 0) {
        (void)crypto_generichash(seal, SEAL_BYTES, (unsigned char *)text, n - SEAL_BYTES, t->key, SEAL_BYTES);
        n_record = memcmp(seal, text + n - SEAL_BYTES, SEAL_BYTES) == 0
                       ? (n - MAGIC_BYTES - SEAL_BYTES) / RECORD_BYTES
                       : 0;
        for (size_t i = 0; i < n_record; i++) {
            const unsigned char *at = (unsigned char *)text + MAGIC_BYTES + i * RECORD_BYTES;
            struct record r = {.at = get_u64(at), .n_bytes = get_u64(at + 8)};

            memcpy(r.content, at + 16, ESP_CONTENT_BYTES);
            if (!find(t, r.at, r.n_bytes))
                (void)add(t, &r);
        }
    }
    free(text);
}

static void write_table(const struct esp_known *k, struct table *t)
{
    char path[4096], other[4104];
    unsigned char *text;
    const size_t n = MAGIC_BYTES + (size_t)t->n * RECORD_BYTES;
    struct esp_err why = {0};
    bool good;
    FILE *f;
    int fd;

    text = malloc(n + SEAL_BYTES);
    if (!text || !table_path(path, sizeof path, k, t)) {
        free(text);
        return;
    }
    memcpy(text, MAGIC, MAGIC_BYTES);
    for (uint32_t i = 0; i < t->n; i++) {
        unsigned char *at = text + MAGIC_BYTES + (size_t)i * RECORD_BYTES;

        put_u64(at, t->record[i].at);
        put_u64(at + 8, t->record[i].n_bytes);
        memcpy(at + 16, t->record[i].content, ESP_CONTENT_BYTES);
    }
    (void)crypto_generichash(text + n, SEAL_BYTES, text, n, t->key, SEAL_BYTES);
    if (esp_file_make_dir(k->dir, &why)) {
        esp_log(k->log, ESP_LOG_WARN, "contents_not_kept why=\"%s\"", why.text);
        free(text);
        return;
    }
    snprintf(other, sizeof other, "%s.XXXXXX", path);
    fd = mkostemp(other, O_CLOEXEC);
    f = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (!f && fd >= 0)
        close(fd);
    good = f && fwrite(text, 1, n + SEAL_BYTES, f) == n + SEAL_BYTES;
    if (f && fclose(f) != 0)
        good = false;
    if (!good || rename(other, path) != 0) {
        esp_log(k->log, ESP_LOG_WARN, "contents_not_kept path=%s why=\"%s\"", path, strerror(errno));
        if (fd >= 0)
            unlink(other);
    }
    free(text);
}

/* A file's table, read if this is the first time; NULL: no memory. */
static struct table *table_of(struct esp_known *k, const struct esp_file_id *id)
{
    struct table *t;
    struct timespec now;

    for (uint32_t i = 0; i < k->n_table; i++) {
        const struct esp_file_id *is = &k->table[i].id;
        if (is->device == id->device && is->inode == id->inode && is->n_bytes == id->n_bytes &&
            is->modified == id->modified && is->changed == id->changed)
            return &k->table[i];
    }
    t = realloc(k->table, (k->n_table + 1) * sizeof *t);
    if (!t)
        return NULL;
    k->table = t;
    t = &k->table[k->n_table++];
    memset(t, 0, sizeof *t);
    t->id = *id;
    make_key(t->key, id);
    clock_gettime(CLOCK_REALTIME, &now);
    t->settled = id->changed < (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - SETTLED_NS &&
                 id->modified < (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - SETTLED_NS;
    if (t->settled)
        read_table(k, t);
    return t;
}

bool esp_known_get(uint8_t out[ESP_CONTENT_BYTES], struct esp_known *k, const struct esp_tensor *tensor)
{
    const struct table *t;
    const struct record *r;

    if (tensor->content) {
        memcpy(out, tensor->content, ESP_CONTENT_BYTES);
        return true;
    }
    t = tensor->file_id ? table_of(k, tensor->file_id) : NULL;
    r = t ? find(t, tensor->file_at, tensor->n_bytes) : NULL;
    if (!r)
        return false;
    memcpy(out, r->content, ESP_CONTENT_BYTES);
    return true;
}

void esp_known_put(struct esp_known *k, const struct esp_tensor *tensor,
                   const uint8_t content[ESP_CONTENT_BYTES])
{
    struct record r = {.at = tensor->file_at, .n_bytes = tensor->n_bytes};
    struct table *t = tensor->file_id ? table_of(k, tensor->file_id) : NULL;

    if (!t)
        return;
    memcpy(r.content, content, sizeof r.content);
    if (add(t, &r))
        t->changed = true;
}

void esp_known_save(struct esp_known *k)
{
    for (uint32_t i = 0; i < k->n_table; i++) {
        struct table *t = &k->table[i];

        if (!t->changed || !t->settled)
            continue;
        read_table(k, t); /* what another process has found out meanwhile */
        write_table(k, t);
        t->changed = false;
    }
}
