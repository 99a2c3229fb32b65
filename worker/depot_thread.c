/* A depot's own thread: looks chunks up in the cache, holds what came against its hash, writes it, and maps it. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/file.h"
#include "proto/clock.h"
#include "worker/depot_state.h"

static void wake_net(const struct esp_depot *d)
{
    const uint64_t one = 1;

    if (write(d->fd, &one, sizeof one) < 0) {
        /* Only a counter about to overflow refuses, and then the descriptor is readable already. */
    }
}

static void log_whole(struct esp_depot *d)
{
    const struct esp_depot_count *a = &d->before, *b = &d->count;

    esp_log(d->log, ESP_LOG_INFO,
            "weights_here mib=%" PRIu64 " fetched=%" PRIu64 " fetched_bytes=%" PRIu64 " cached=%" PRIu64
            " cached_bytes=%" PRIu64 " refused=%" PRIu64 " in_memory=%" PRIu64 " seconds=%.2f",
            d->books.total_bytes >> 20, b->fetched - a->fetched, b->fetched_bytes - a->fetched_bytes,
            b->cached - a->cached, b->cached_bytes - a->cached_bytes, b->refused - a->refused,
            b->in_memory - a->in_memory, 1e-9 * (double)(esp_now_ns() - d->begun_ns));
}

static void set_present(struct esp_depot *d, uint32_t id)
{
    bool again = false;

    d->books.chunk[id].state = ESP_CHUNK_PRESENT;
    if (d->books.wanted[esp_depot_books_tensor(&d->books, id)]) {
        d->books.lacking_bytes -= esp_depot_books_bytes(&d->books, id);
        if (d->books.lacking_bytes == 0)
            log_whole(d);
    }
    for (uint32_t i = d->books.chunk[id].first;; i = d->books.chunk[i].next) {
        if (d->books.chunk[i].state == ESP_CHUNK_MISSING) { /* its bytes have a file now */
            d->books.chunk[i].state = ESP_CHUNK_UNKNOWN;
            again = true;
        }
        if (d->books.chunk[i].next == i)
            break;
    }
    if (again)
        esp_depot_rewind(d);
}

/* A chunk to look at, outside of the lock; the checkpoint stays alive, since only this thread frees any. */
struct task {
    struct esp_checkpoint *ck;
    uint64_t generation;
    uint32_t id, tensor, chunk;
    size_t n_bytes;
    uint8_t hash[ESP_CACHE_HASH_BYTES];
};

static void task_of(struct task *k, const struct esp_depot *d, uint32_t id)
{
    k->ck = d->books.ck;
    k->generation = d->generation;
    k->id = id;
    k->tensor = esp_depot_books_tensor(&d->books, id);
    k->chunk = id - d->books.base[k->tensor];
    k->n_bytes = esp_depot_books_bytes(&d->books, id);
    memcpy(k->hash, d->books.hash[id], sizeof k->hash);
}

/* Brings a chunk's bytes to their place: from its file, which is closed, or from a file in memory. */
static esp_status map_bytes(struct esp_depot *d, const struct task *k, int fd, const void *data,
                            bool *in_memory, struct esp_err *err)
{
    const uint64_t at = esp_remote_offset(k->ck, k->tensor, k->chunk);
    esp_status st;

    *in_memory = false;
    if (fd >= 0) {
        st = esp_remote_map(k->ck, k->tensor, k->chunk, fd, 0, err);
        close(fd);
        if (!st)
            return ESP_OK;
    }
    *in_memory = true;
    if (d->memory >= 0 && d->memory_of != k->generation) { /* what is mapped of it stays */
        close(d->memory);
        d->memory = -1;
    }
    if (d->memory < 0) {
        d->memory = memfd_create("espalier-weights", MFD_CLOEXEC);
        d->memory_of = k->generation;
    }
    if (d->memory < 0)
        return esp_fail(err, ESP_E_NOMEM, "a file in memory: %s", strerror(errno));
    for (size_t n = 0; n < k->n_bytes;) {
        ssize_t put = pwrite(d->memory, (const char *)data + n, k->n_bytes - n, (off_t)(at + n));

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return esp_fail(err, ESP_E_NOMEM, "%zu bytes of weights in memory: %s", k->n_bytes,
                            strerror(errno));
        n += (size_t)put;
    }
    return esp_remote_map(k->ck, k->tensor, k->chunk, d->memory, at, err);
}

static void say_memory(struct esp_depot *d, const char *why)
{
    if (!d->told_memory)
        esp_log(d->log, ESP_LOG_WARN, "cache_unusable why=\"%s\" action=keep_in_memory", why);
    d->told_memory = true;
}

static void look_up(struct esp_depot *d, uint32_t id)
{
    struct esp_err err = {0};
    struct task k;
    bool in_memory = false;
    int fd = -1;
    esp_status st = ESP_E_CLOSED;

    task_of(&k, d, id);
    pthread_mutex_unlock(&d->lock);
    if (d->cache)
        st = esp_cache_get(&fd, d->cache, k.hash, d->scratch, k.n_bytes, &err);
    if (!st)
        st = map_bytes(d, &k, fd, d->scratch, &in_memory, &err);
    pthread_mutex_lock(&d->lock);
    if (k.generation != d->generation)
        return;
    if (!st) {
        d->count.cached++;
        d->count.cached_bytes += k.n_bytes;
        d->count.in_memory += in_memory;
        set_present(d, id);
        return;
    }
    d->books.chunk[id].state = ESP_CHUNK_MISSING;
    wake_net(d);
}

static void keep(struct esp_depot *d, struct esp_depot_slot *s)
{
    struct esp_msg msg = s->msg; /* ours: the slot may be given up meanwhile */
    const void *data = msg.blob[0].data;
    const size_t n_bytes = msg.blob[0].n_bytes;
    uint8_t found[ESP_CACHE_HASH_BYTES];
    struct esp_err err = {0}, disk = {0};
    struct task k;
    bool right = false, in_memory = false;
    int fd = -1;
    esp_status st = ESP_OK;

    memset(&s->msg, 0, sizeof s->msg);
    task_of(&k, d, s->id);
    pthread_mutex_unlock(&d->lock);
    if (n_bytes == k.n_bytes) {
        esp_cache_hash(found, data, n_bytes);
        right = memcmp(found, k.hash, sizeof found) == 0;
    }
    if (right && d->cache)
        esp_cache_put(&fd, d->cache, k.hash, data, n_bytes, &disk);
    if (right)
        st = map_bytes(d, &k, fd, data, &in_memory, &err);
    esp_msg_finish(&msg);
    pthread_mutex_lock(&d->lock);
    if (k.generation != d->generation)
        return;
    esp_depot_free_slot(d, s);
    if (!right) {
        esp_depot_put_back(d, k.id, ESP_E_FORMAT,
                           n_bytes == k.n_bytes ? "its bytes have another hash" : "of another size");
        return;
    }
    if (st) {
        d->books.chunk[k.id].state = ESP_CHUNK_FAILED;
        d->why = err;
        return;
    }
    if (in_memory && d->cache)
        say_memory(d, disk.code ? disk.text : "more files than can be mapped");
    d->count.fetched++;
    d->count.fetched_bytes += n_bytes;
    d->count.in_memory += in_memory;
    set_present(d, k.id);
    wake_net(d);
}

void *esp_depot_thread(void *arg)
{
    struct esp_depot *d = arg;
    uint32_t id;

    pthread_mutex_lock(&d->lock);
    while (!d->stop) {
        if (d->n_retired > 0) {
            struct esp_checkpoint *ck = d->retired[--d->n_retired];

            pthread_mutex_unlock(&d->lock); /* unmapping gigabytes takes a while */
            esp_checkpoint_destroy(&ck);
            pthread_mutex_lock(&d->lock);
        } else if (d->n_came > 0) { /* first: it holds memory, and the window */
            struct esp_depot_slot *s = NULL;

            for (uint32_t i = 0; i < ESP_DEPOT_WINDOW; i++) {
                struct esp_depot_slot *t = &d->slot[i];
                if (t->used && d->books.chunk[t->id].state == ESP_CHUNK_CAME &&
                    (!s || t->asked_ns < s->asked_ns))
                    s = t;
            }
            keep(d, s);
        } else if (d->books.ck && esp_depot_books_seek(&id, &d->books, &d->look, NULL, ESP_CHUNK_UNKNOWN)) {
            look_up(d, id);
        } else {
            wake_net(d); /* what can be fetched may have become more on the way here */
            pthread_cond_wait(&d->come, &d->lock);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

/* Asked by the cache, in the thread, outside of the lock. */
static bool is_kept(void *arg, const uint8_t *hash)
{
    struct esp_depot *d = arg;
    bool kept = false;
    uint32_t id;

    pthread_mutex_lock(&d->lock);
    for (bool more = esp_depot_books_find(&id, &d->books, hash); more && !kept;
         id = d->books.chunk[id].next) {
        kept = d->books.chunk[id].state == ESP_CHUNK_PRESENT ||
               d->books.wanted[esp_depot_books_tensor(&d->books, id)];
        more = d->books.chunk[id].next != id;
    }
    pthread_mutex_unlock(&d->lock);
    return kept;
}

void esp_depot_open_cache(struct esp_depot *d, const char *dir, uint64_t limit_bytes)
{
    struct esp_err why;
    char path[4096];
    esp_status st = ESP_OK;

    if (!dir)
        st = esp_file_cache_dir(path, sizeof path, "weights", &why);
    if (!st)
        st = esp_cache_open(&d->cache, dir ? dir : path, limit_bytes, is_kept, d, d->log, &why);
    if (st)
        say_memory(d, why.text);
    else
        esp_log(d->log, ESP_LOG_INFO, "cache dir=%s", dir ? dir : path);
}
