/*
 * A chunk goes UNKNOWN -> (lookup in the cache) -> PRESENT, or MISSING -> OUT (asked for) -> CAME -> PRESENT; back to
 * MISSING when the conversation broke or its bytes were wrong, and FAILED after some tries.
 *
 * Lookups and fetches go along the same list: what the loading thread waits for, then the placement's tensors. Both have
 * a cursor, so that a list of many chunks is not walked again for each of them; the one for fetches stays behind the
 * one for lookups. Whatever puts a chunk back sets both to the beginning.
 *
 * Chunks of equal bytes (biases of zeros, tied tables) have one file: while one of them is on its way the others wait, and
 * are looked for in the cache again afterwards.
 *
 * The window is counted in chunks and adapts to the link: heartbeats and steps share it, and must not stand behind
 * seconds of weights.
 */
#include "worker/depot.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/file.h"
#include "model/roles.h"
#include "proto/clock.h"
#include "worker/cache.h"

#define TRIES          4
#define WINDOW_BYTES   ((size_t)32 << 20) /* asked for, or come and not yet kept */
#define WINDOW_FIRST   4u
#define WINDOW_LEAST   2u
#define QUICK_NS       UINT64_C(200000000) /* from asking to having: the window may grow */
#define SLOW_NS_A_BYTE UINT64_C(8000)
#define SLOW_NS        UINT64_C(500000000) /* it must shrink */

enum state { UNKNOWN, MISSING, OUT, CAME, PRESENT, FAILED };

struct chunk {
    uint8_t state, tries;
    bool busy;      /* of the first of equal ones: one of them is OUT or CAME */
    uint32_t first; /* of those with equal bytes: the one with the lowest number */
    uint32_t next;  /* with equal bytes; its own number: none */
};

/* A place in the list of what is wanted. */
struct cursor {
    uint32_t at, chunk;
};

/* A fetch. */
struct slot {
    bool used;
    uint32_t id; /* of the chunk */
    uint64_t asked_ns;
    struct esp_msg msg; /* once it CAME */
};

struct ids {
    uint32_t n, *id; /* tensors; room for all of them */
};

struct esp_depot {
    const struct esp_log *log;
    struct esp_cache *cache; /* the thread's once it runs; NULL: none */
    void *scratch;           /* the thread's: a chunk read from disk */
    int memory; /* the thread's: a file in memory, for chunks that the disk does not take; -1: none yet */
    uint64_t memory_of; /* the thread's: the generation that it belongs to */
    int fd;
    bool have_lock, have_cond, started;
    pthread_t thread;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t come;  /* something to do for the thread, or stop */
    bool stop;

    struct esp_checkpoint **owned; /* all that are alive, and those that may go */
    struct esp_checkpoint **retired;
    uint32_t n_owned, n_retired, room;

    struct esp_checkpoint *ck;            /* the present one; NULL: none yet */
    uint8_t digest[ESP_CACHE_HASH_BYTES]; /* of its manifest */
    uint64_t generation;                  /* counts checkpoints */
    uint32_t chunk_bytes, n_chunk;
    uint32_t *base;    /* [n_tensor + 1] number of a tensor's first chunk */
    uint32_t *by_hash; /* [n_chunk] numbers in the order of their hashes */
    uint8_t (*hash)[ESP_CACHE_HASH_BYTES];
    struct chunk *chunk;
    bool *wanted; /* [n_tensor] in `ahead` */
    struct ids urgent, ahead;
    struct cursor look, fetch;
    uint64_t total_bytes, lacking_bytes; /* of `ahead` */
    uint64_t begun_ns;
    struct esp_depot_count before; /* when it was asked for */

    uint32_t n_window, n_slots; /* may be out; are used */
    size_t slot_bytes;
    struct slot slot[ESP_DEPOT_WINDOW];
    uint32_t n_came;
    struct esp_depot_count count;
    struct esp_err why; /* of the last FAILED */
    bool told_memory;
};

/* ---- under the lock ---- */

static void wake_net(const struct esp_depot *d)
{
    const uint64_t one = 1;

    if (write(d->fd, &one, sizeof one) < 0) {
        /* Only a counter about to overflow refuses, and then the descriptor is readable already. */
    }
}

static void rewind_cursors(struct esp_depot *d)
{
    d->look = d->fetch = (struct cursor){0};
    pthread_cond_signal(&d->come);
}

static uint32_t tensor_of(const struct esp_depot *d, uint32_t id)
{
    uint32_t lo = 0, hi = esp_remote_n_tensor(d->ck); /* base[lo] <= id < base[hi] */

    while (hi - lo > 1) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (d->base[mid] <= id)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static size_t bytes_of(const struct esp_depot *d, uint32_t id)
{
    const uint32_t t = tensor_of(d, id);

    return esp_chunk_bytes(esp_remote_at(d->ck, t)->n_bytes, d->chunk_bytes, id - d->base[t]);
}

static bool before(const struct cursor *a, const struct cursor *b)
{
    return a->at != b->at ? a->at < b->at : a->chunk < b->chunk;
}

/* Moves a cursor to the next chunk that is in this state, not past `end` if there is one; false: none. */
static bool seek(uint32_t *id, const struct esp_depot *d, struct cursor *c, const struct cursor *end,
                 enum state state)
{
    while (c->at < d->urgent.n + d->ahead.n) {
        const uint32_t t = c->at < d->urgent.n ? d->urgent.id[c->at] : d->ahead.id[c->at - d->urgent.n];

        for (; c->chunk < d->base[t + 1] - d->base[t]; c->chunk++) {
            *id = d->base[t] + c->chunk;
            if (end && !before(c, end) && (before(end, c) || d->chunk[*id].state == UNKNOWN))
                return false;
            if (d->chunk[*id].state == state && !(state == MISSING && d->chunk[d->chunk[*id].first].busy))
                return true;
        }
        c->at++;
        c->chunk = 0;
    }
    return false;
}

static void set_busy(struct esp_depot *d, uint32_t id, bool busy)
{
    d->chunk[d->chunk[id].first].busy = busy;
}

static void free_slot(struct esp_depot *d, struct slot *s)
{
    set_busy(d, s->id, false);
    d->slot_bytes -= bytes_of(d, s->id);
    d->n_slots--;
    if (d->chunk[s->id].state == CAME)
        d->n_came--;
    s->used = false;
}

static void log_whole(struct esp_depot *d)
{
    const struct esp_depot_count *a = &d->before, *b = &d->count;

    esp_log(d->log, ESP_LOG_INFO,
            "weights_here mib=%" PRIu64 " fetched=%" PRIu64 " fetched_bytes=%" PRIu64 " cached=%" PRIu64
            " cached_bytes=%" PRIu64 " refused=%" PRIu64 " in_memory=%" PRIu64 " seconds=%.2f",
            d->total_bytes >> 20, b->fetched - a->fetched, b->fetched_bytes - a->fetched_bytes,
            b->cached - a->cached, b->cached_bytes - a->cached_bytes, b->refused - a->refused,
            b->in_memory - a->in_memory, 1e-9 * (double)(esp_now_ns() - d->begun_ns));
}

static void set_present(struct esp_depot *d, uint32_t id)
{
    bool again = false;

    d->chunk[id].state = PRESENT;
    if (d->wanted[tensor_of(d, id)]) {
        d->lacking_bytes -= bytes_of(d, id);
        if (d->lacking_bytes == 0)
            log_whole(d);
    }
    for (uint32_t i = d->chunk[id].first;; i = d->chunk[i].next) {
        if (d->chunk[i].state == MISSING) { /* its bytes have a file now */
            d->chunk[i].state = UNKNOWN;
            again = true;
        }
        if (d->chunk[i].next == i)
            break;
    }
    if (again)
        rewind_cursors(d);
}

/* It did not come as it should. */
static void put_back(struct esp_depot *d, uint32_t id, esp_status code, const char *why)
{
    struct chunk *c = &d->chunk[id];
    const uint32_t t = tensor_of(d, id);

    d->count.refused++;
    c->tries++;
    c->state = c->tries < TRIES ? MISSING : FAILED;
    rewind_cursors(d);
    esp_log(d->log, ESP_LOG_WARN, "chunk_refused tensor=%s chunk=%u try=%u why=\"%s\" action=%s",
            esp_remote_at(d->ck, t)->name, id - d->base[t], c->tries, why,
            c->state == FAILED ? "give_up" : "refetch");
    if (c->state == FAILED)
        esp_fail(&d->why, code, "%s: chunk %u of %s: %s, %d times", esp_checkpoint_dir(d->ck),
                 id - d->base[t], esp_remote_at(d->ck, t)->name, why, TRIES);
}

/* ---- the thread ---- */

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
    k->ck = d->ck;
    k->generation = d->generation;
    k->id = id;
    k->tensor = tensor_of(d, id);
    k->chunk = id - d->base[k->tensor];
    k->n_bytes = bytes_of(d, id);
    memcpy(k->hash, d->hash[id], sizeof k->hash);
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
    d->chunk[id].state = MISSING;
    wake_net(d);
}

static void keep(struct esp_depot *d, struct slot *s)
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
    free_slot(d, s);
    if (!right) {
        put_back(d, k.id, ESP_E_FORMAT,
                 n_bytes == k.n_bytes ? "its bytes have another hash" : "of another size");
        return;
    }
    if (st) {
        d->chunk[k.id].state = FAILED;
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

static void *thread_main(void *arg)
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
            struct slot *s = NULL;

            for (uint32_t i = 0; i < ESP_DEPOT_WINDOW; i++) {
                struct slot *t = &d->slot[i];
                if (t->used && d->chunk[t->id].state == CAME && (!s || t->asked_ns < s->asked_ns))
                    s = t;
            }
            keep(d, s);
        } else if (d->ck && seek(&id, d, &d->look, NULL, UNKNOWN)) {
            look_up(d, id);
        } else {
            wake_net(d); /* what can be fetched may have become more on the way here */
            pthread_cond_wait(&d->come, &d->lock);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

/* ---- the owner's side ---- */

/* Asked by the cache, in the thread, outside of the lock. */
static bool is_kept(void *arg, const uint8_t *hash)
{
    struct esp_depot *d = arg;
    bool kept = false;

    pthread_mutex_lock(&d->lock);
    for (uint32_t lo = 0, hi = d->ck ? d->n_chunk : 0; lo < hi;) {
        const uint32_t mid = lo + (hi - lo) / 2, id = d->by_hash[mid];
        const int order = memcmp(hash, d->hash[id], ESP_CACHE_HASH_BYTES);

        if (order == 0) {
            for (uint32_t i = d->chunk[id].first;; i = d->chunk[i].next) {
                kept |= d->chunk[i].state == PRESENT || d->wanted[tensor_of(d, i)];
                if (kept || d->chunk[i].next == i)
                    break;
            }
            break;
        }
        if (order < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    pthread_mutex_unlock(&d->lock);
    return kept;
}

static void open_cache(struct esp_depot *d, const char *dir, uint64_t limit_bytes)
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

esp_status esp_depot_create(struct esp_depot **out, const char *cache_dir, uint64_t limit_bytes,
                            const struct esp_log *log, struct esp_err *err)
{
    struct esp_depot *d = NULL;
    esp_status st = ESP_OK;
    int rc;

    *out = NULL;
    if (sodium_init() < 0)
        return esp_fail(err, ESP_E_INTERNAL, "libsodium does not start");
    d = calloc(1, sizeof *d);
    if (!d)
        return esp_fail(err, ESP_E_NOMEM, "a depot of weights");
    d->log = log;
    d->memory = -1;
    d->n_window = WINDOW_FIRST;
    d->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    d->scratch = malloc(ESP_MAX_CHUNK);
    if (d->fd < 0 || !d->scratch) {
        st = d->fd < 0 ? esp_fail(err, ESP_E_IO, "eventfd: %s", strerror(errno))
                       : esp_fail(err, ESP_E_NOMEM, "a chunk of weights");
        goto done;
    }
    rc = pthread_mutex_init(&d->lock, NULL);
    d->have_lock = rc == 0;
    if (!rc) {
        rc = pthread_cond_init(&d->come, NULL);
        d->have_cond = rc == 0;
    }
    if (!rc) {
        open_cache(d, cache_dir, limit_bytes);
        rc = pthread_create(&d->thread, NULL, thread_main, d);
        d->started = rc == 0;
    }
    if (rc) {
        st = esp_fail(err, ESP_E_NOMEM, "a thread for weights: %s", strerror(rc));
        goto done;
    }
    *out = d;
    d = NULL;
done:
    esp_depot_destroy(&d);
    return st;
}

/* The books of the present checkpoint; it itself stays. */
static void drop_books(struct esp_depot *d)
{
    free(d->base);
    free(d->by_hash);
    free(d->hash);
    free(d->chunk);
    free(d->wanted);
    free(d->urgent.id);
    free(d->ahead.id);
    d->base = d->by_hash = NULL;
    d->hash = NULL;
    d->chunk = NULL;
    d->wanted = NULL;
    d->urgent = d->ahead = (struct ids){0};
}

void esp_depot_destroy(struct esp_depot **depot)
{
    struct esp_depot *d = *depot;

    *depot = NULL;
    if (!d)
        return;
    if (d->started) {
        pthread_mutex_lock(&d->lock);
        d->stop = true;
        pthread_cond_signal(&d->come);
        pthread_mutex_unlock(&d->lock);
        pthread_join(d->thread, NULL);
    }
    for (uint32_t i = 0; i < ESP_DEPOT_WINDOW; i++)
        if (d->slot[i].used)
            esp_msg_finish(&d->slot[i].msg);
    for (uint32_t i = 0; i < d->n_owned; i++)
        esp_checkpoint_destroy(&d->owned[i]);
    for (uint32_t i = 0; i < d->n_retired; i++)
        esp_checkpoint_destroy(&d->retired[i]);
    drop_books(d);
    esp_cache_destroy(&d->cache);
    if (d->have_cond)
        pthread_cond_destroy(&d->come);
    if (d->have_lock)
        pthread_mutex_destroy(&d->lock);
    if (d->memory >= 0)
        close(d->memory);
    if (d->fd >= 0)
        close(d->fd);
    free(d->owned);
    free(d->retired);
    free(d->scratch);
    free(d);
}

/* ---- manifests ---- */

static void hash_u64(crypto_generichash_state *h, uint64_t v)
{
    crypto_generichash_update(h, (const unsigned char *)&v, sizeof v);
}

/* Of all that a manifest says, to know it again. */
static void digest_of(uint8_t out[ESP_CACHE_HASH_BYTES], const struct esp_msg *msg)
{
    const struct esp_msg_manifest *m = &msg->manifest;
    crypto_generichash_state h;

    crypto_generichash_init(&h, NULL, 0, ESP_CACHE_HASH_BYTES);
    crypto_generichash_update(&h, m->fingerprint, sizeof m->fingerprint);
    hash_u64(&h, m->chunk_bytes);
    hash_u64(&h, m->n_tensors);
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        const struct esp_tensor_info *t = &m->tensors[i];

        hash_u64(&h, t->role);
        hash_u64(&h, t->layer);
        hash_u64(&h, t->dtype);
        hash_u64(&h, t->n_dim);
        for (uint32_t k = 0; k < t->n_dim; k++)
            hash_u64(&h, t->shape[k]);
    }
    for (int i = 0; i < 2; i++) {
        hash_u64(&h, msg->blob[i].n_bytes);
        crypto_generichash_update(&h, msg->blob[i].data, msg->blob[i].n_bytes);
    }
    crypto_generichash_final(&h, out, ESP_CACHE_HASH_BYTES);
}

static esp_status open_claimed(struct esp_checkpoint **out, const struct esp_msg *msg, const char *origin,
                               struct esp_err *err)
{
    const struct esp_msg_manifest *m = &msg->manifest;
    struct esp_remote_tensor *tensors = calloc(m->n_tensors, sizeof *tensors);
    esp_status st;

    *out = NULL;
    if (!tensors)
        return esp_fail(err, ESP_E_NOMEM, "%u tensors", m->n_tensors);
    for (uint32_t i = 0; i < m->n_tensors; i++)
        tensors[i] = (struct esp_remote_tensor){.role = m->tensors[i].role,
                                                .layer = m->tensors[i].layer,
                                                .dtype = m->tensors[i].dtype,
                                                .n_dim = m->tensors[i].n_dim,
                                                .shape = m->tensors[i].shape};
    st = esp_checkpoint_open_remote(out, msg->blob[0].data, msg->blob[0].n_bytes, tensors, m->n_tensors,
                                    m->chunk_bytes, origin, err);
    free(tensors);
    return st;
}

static int compare_hashes(const void *a, const void *b, void *arg)
{
    uint8_t(*const hash)[ESP_CACHE_HASH_BYTES] = arg;
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    const int order = memcmp(hash[x], hash[y], ESP_CACHE_HASH_BYTES);

    return order ? order : (x > y) - (x < y);
}

/* Books for a checkpoint, in a depot that is nothing else; what they take is bounded by the number of chunks. */
static esp_status make_books(struct esp_depot *b, const struct esp_checkpoint *ck, const struct esp_msg *msg,
                             struct esp_err *err)
{
    const uint32_t n_tensor = esp_remote_n_tensor(ck);
    uint64_t n = 0;

    b->chunk_bytes = msg->manifest.chunk_bytes;
    for (uint32_t i = 0; i < n_tensor; i++)
        n += esp_chunk_count(esp_remote_at(ck, i)->n_bytes, b->chunk_bytes);
    if (n > ESP_DEPOT_MAX_CHUNKS)
        return esp_fail(err, ESP_E_LIMIT, "%s: %llu chunks of %u bytes, takes %u", esp_checkpoint_dir(ck),
                        (unsigned long long)n, b->chunk_bytes, ESP_DEPOT_MAX_CHUNKS);
    if (msg->blob[1].n_bytes != n * ESP_CACHE_HASH_BYTES)
        return esp_fail(err, ESP_E_FORMAT, "%s: hashes of %zu bytes for %llu chunks", esp_checkpoint_dir(ck),
                        msg->blob[1].n_bytes, (unsigned long long)n);
    b->n_chunk = (uint32_t)n;
    b->base = calloc((size_t)n_tensor + 1, sizeof *b->base);
    b->wanted = calloc((size_t)n_tensor + 1, sizeof *b->wanted);
    b->urgent.id = calloc((size_t)n_tensor + 1, sizeof *b->urgent.id);
    b->ahead.id = calloc((size_t)n_tensor + 1, sizeof *b->ahead.id);
    b->by_hash = calloc(n + 1, sizeof *b->by_hash);
    b->hash = calloc(n + 1, sizeof *b->hash);
    b->chunk = calloc(n + 1, sizeof *b->chunk);
    if (!b->base || !b->wanted || !b->urgent.id || !b->ahead.id || !b->by_hash || !b->hash || !b->chunk)
        return esp_fail(err, ESP_E_NOMEM, "%s: books of %llu chunks", esp_checkpoint_dir(ck),
                        (unsigned long long)n);
    for (uint32_t i = 0; i < n_tensor; i++)
        b->base[i + 1] =
            b->base[i] + (uint32_t)esp_chunk_count(esp_remote_at(ck, i)->n_bytes, b->chunk_bytes);
    memcpy(b->hash, msg->blob[1].data, msg->blob[1].n_bytes);
    for (uint32_t i = 0; i < b->n_chunk; i++)
        b->by_hash[i] = i;
    qsort_r(b->by_hash, b->n_chunk, sizeof *b->by_hash, compare_hashes, b->hash);
    for (uint32_t i = 0; i < b->n_chunk; i++) {
        const uint32_t id = b->by_hash[i], last = i > 0 ? b->by_hash[i - 1] : id;
        const bool equal = i > 0 && memcmp(b->hash[last], b->hash[id], ESP_CACHE_HASH_BYTES) == 0;

        b->chunk[id].first = equal ? b->chunk[last].first : id;
        b->chunk[id].next = id;
        if (equal)
            b->chunk[last].next = id;
    }
    return ESP_OK;
}

/* Room in both lists for one checkpoint more. */
static bool grow(struct esp_depot *d)
{
    struct esp_checkpoint **p;
    const uint32_t need = d->n_owned + d->n_retired + 1;

    if (need <= d->room)
        return true;
    p = realloc(d->owned, 2 * need * sizeof *p);
    if (!p)
        return false;
    d->owned = p;
    p = realloc(d->retired, 2 * need * sizeof *p);
    if (!p)
        return false;
    d->retired = p;
    d->room = 2 * need;
    return true;
}

esp_status esp_depot_manifest(struct esp_depot *d, struct esp_checkpoint **out, const struct esp_msg *msg,
                              const char *origin, struct esp_err *err)
{
    struct esp_depot books = {0};
    struct esp_checkpoint *ck = NULL;
    uint8_t digest[ESP_CACHE_HASH_BYTES];
    esp_status st;

    *out = NULL;
    digest_of(digest, msg);
    if (d->ck && memcmp(digest, d->digest, sizeof digest) == 0) /* written by this thread alone */
        return ESP_OK;
    st = open_claimed(&ck, msg, origin, err);
    if (!st)
        st = make_books(&books, ck, msg, err);
    for (uint32_t i = 0; !st && i < esp_remote_n_tensor(ck); i++)
        esp_remote_set_content(ck, i, books.hash[books.base[i]]);
    if (st) {
        drop_books(&books);
        esp_checkpoint_destroy(&ck);
        return st;
    }
    pthread_mutex_lock(&d->lock);
    if (!grow(d)) {
        pthread_mutex_unlock(&d->lock);
        drop_books(&books);
        esp_checkpoint_destroy(&ck);
        return esp_fail(err, ESP_E_NOMEM, "a checkpoint");
    }
    d->owned[d->n_owned++] = ck;
    d->generation++;
    for (uint32_t i = 0; i < ESP_DEPOT_WINDOW; i++) {
        struct slot *s = &d->slot[i];

        if (s->used && d->chunk[s->id].state == CAME)
            esp_msg_finish(&s->msg);
        s->used = false;
    }
    d->n_slots = d->n_came = 0;
    d->slot_bytes = 0;
    drop_books(d);
    d->ck = ck;
    memcpy(d->digest, digest, sizeof digest);
    d->chunk_bytes = books.chunk_bytes;
    d->n_chunk = books.n_chunk;
    d->base = books.base;
    d->by_hash = books.by_hash;
    d->hash = books.hash;
    d->chunk = books.chunk;
    d->wanted = books.wanted;
    d->urgent = books.urgent;
    d->ahead = books.ahead;
    d->total_bytes = d->lacking_bytes = 0;
    rewind_cursors(d);
    pthread_mutex_unlock(&d->lock);
    *out = ck;
    return ESP_OK;
}

void esp_depot_retire(struct esp_depot *d, struct esp_checkpoint *ck)
{
    if (!ck)
        return;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < d->n_owned; i++) {
        if (d->owned[i] != ck)
            continue;
        d->owned[i] = d->owned[--d->n_owned];
        d->retired[d->n_retired++] = ck;
        pthread_cond_signal(&d->come);
        break;
    }
    pthread_mutex_unlock(&d->lock);
}

/* ---- what is wanted ---- */

static void want_role(struct esp_depot *d, enum esp_role role, uint32_t layer)
{
    const struct esp_tensor *t = esp_checkpoint_tensor(d->ck, role, layer);
    uint32_t i;

    if (t && esp_remote_index(&i, d->ck, t) && !d->wanted[i]) { /* a model without post norms has none */
        d->wanted[i] = true;
        d->ahead.id[d->ahead.n++] = i;
    }
}

static void want_layers(struct esp_depot *d, enum esp_role first, enum esp_role last, uint32_t lo,
                        uint32_t hi)
{
    for (uint32_t layer = lo; layer < hi; layer++)
        for (enum esp_role role = first; role <= last; role++)
            want_role(d, role, layer);
}

void esp_depot_want(struct esp_depot *d, const struct esp_stage_spec *spec)
{
    pthread_mutex_lock(&d->lock);
    if (!d->ck) {
        pthread_mutex_unlock(&d->lock);
        return;
    }
    memset(d->wanted, 0, esp_remote_n_tensor(d->ck) * sizeof *d->wanted);
    d->urgent.n = d->ahead.n = 0;
    /* In the order in which they are loaded: the ends, then layer by layer. */
    for (enum esp_role r = ESP_V_PATCH_W; spec->patch && r <= ESP_V_POS; r++)
        want_role(d, r, 0);
    for (enum esp_role r = ESP_V_POST_W; spec->projector && r <= ESP_P_B; r++)
        want_role(d, r, 0);
    if (spec->embed || spec->head) {
        want_role(d, ESP_T_EMBED, 0);
        want_role(d, ESP_T_NORM_FINAL, 0);
    }
    want_layers(d, ESP_V_LN1_W, ESP_V_FC2_B, spec->enc_lo, spec->enc_hi);
    want_layers(d, ESP_T_NORM_ATTN, ESP_T_NORM_POST_MLP, spec->dec_lo, spec->dec_hi);
    d->total_bytes = d->lacking_bytes = 0;
    for (uint32_t i = 0; i < d->ahead.n; i++) {
        const uint32_t t = d->ahead.id[i];

        d->total_bytes += esp_remote_at(d->ck, t)->n_bytes;
        for (uint32_t id = d->base[t]; id < d->base[t + 1]; id++) {
            if (d->chunk[id].state == FAILED) {
                d->chunk[id].state = UNKNOWN;
                d->chunk[id].tries = 0;
            }
            if (d->chunk[id].state != PRESENT)
                d->lacking_bytes += bytes_of(d, id);
        }
    }
    d->begun_ns = esp_now_ns();
    d->before = d->count;
    rewind_cursors(d);
    pthread_mutex_unlock(&d->lock);
}

esp_status esp_depot_need(void *arg, const struct esp_tensor *const *tensors, uint32_t n, struct esp_err *err)
{
    struct esp_depot *d = arg;
    esp_status st = ESP_OK;
    uint32_t n_urgent = 0, t;
    bool fresh = false;

    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < n && (!st || st == ESP_E_TIMEOUT); i++) {
        if (!tensors[i])
            continue;
        if (!d->ck || !esp_remote_index(&t, d->ck, tensors[i])) {
            st = esp_fail(err, ESP_E_CANCELLED, "the coordinator serves another checkpoint now");
            break;
        }
        for (uint32_t id = d->base[t]; id < d->base[t + 1]; id++) {
            if (d->chunk[id].state == FAILED) {
                if (err)
                    *err = d->why;
                st = d->why.code;
                break;
            }
            if (d->chunk[id].state == PRESENT)
                continue;
            st = ESP_E_TIMEOUT;
            if (n_urgent < esp_remote_n_tensor(d->ck)) {
                fresh |= n_urgent >= d->urgent.n || d->urgent.id[n_urgent] != t;
                d->urgent.id[n_urgent++] = t;
            }
            break;
        }
    }
    if (st == ESP_E_TIMEOUT) {
        esp_fail(err, st, "weights are on their way");
        if (fresh || n_urgent != d->urgent.n) {
            d->urgent.n = n_urgent;
            rewind_cursors(d);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return st;
}

/* ---- the conversation ---- */

bool esp_depot_fetch(struct esp_depot *d, struct esp_msg_fetch *out)
{
    struct slot *s = d->slot;
    uint64_t count;
    bool found;
    uint32_t id;

    pthread_mutex_lock(&d->lock);
    found = d->ck && d->n_slots < d->n_window && seek(&id, d, &d->fetch, &d->look, MISSING) &&
            (d->n_slots == 0 || d->slot_bytes + bytes_of(d, id) <= WINDOW_BYTES);
    if (found) {
        while (s->used) /* there is one: n_window is at most their number */
            s++;
        *s = (struct slot){.used = true, .id = id, .asked_ns = esp_now_ns()};
        d->n_slots++;
        d->slot_bytes += bytes_of(d, id);
        d->chunk[id].state = OUT;
        set_busy(d, id, true);
        out->tensor = tensor_of(d, id);
        out->chunk = id - d->base[out->tensor];
    } else if (read(d->fd, &count, sizeof count) < 0) {
        /* Not readable: it was not what woke us. */
    }
    pthread_mutex_unlock(&d->lock);
    return found;
}

/* How long it took tells how many may be out. */
static void adapt(struct esp_depot *d, uint64_t ns)
{
    if (ns > SLOW_NS && d->n_window > WINDOW_LEAST)
        d->n_window--;
    else if (ns < QUICK_NS && d->n_window < ESP_DEPOT_WINDOW)
        d->n_window++;
}

esp_status esp_depot_take(struct esp_depot *d, struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_chunk *m = &msg->chunk;
    struct slot *s = NULL;
    esp_status st = ESP_OK;

    pthread_mutex_lock(&d->lock);
    if (d->ck && m->tensor < esp_remote_n_tensor(d->ck) &&
        m->chunk < d->base[m->tensor + 1] - d->base[m->tensor]) {
        const uint32_t id = d->base[m->tensor] + m->chunk;

        for (uint32_t i = 0; i < ESP_DEPOT_WINDOW && !s; i++)
            if (d->slot[i].used && d->slot[i].id == id && d->chunk[id].state == OUT)
                s = &d->slot[i];
    }
    if (!s) {
        st = esp_fail(err, ESP_E_PROTO, "chunk %u of tensor %u, which nobody asked for", m->chunk, m->tensor);
    } else if (m->why && m->why[0]) {
        free_slot(d, s);
        put_back(d, s->id, ESP_E_IO, m->why);
    } else {
        adapt(d, esp_now_ns() - s->asked_ns);
        s->msg = *msg;
        memset(msg, 0, sizeof *msg);
        d->chunk[s->id].state = CAME;
        d->n_came++;
        pthread_cond_signal(&d->come);
    }
    pthread_mutex_unlock(&d->lock);
    return st;
}

void esp_depot_lost(struct esp_depot *d)
{
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < ESP_DEPOT_WINDOW; i++) {
        struct slot *s = &d->slot[i];

        if (!s->used || d->chunk[s->id].state != OUT)
            continue;
        free_slot(d, s);
        d->chunk[s->id].state = MISSING;
    }
    d->n_window = WINDOW_FIRST;
    rewind_cursors(d);
    pthread_mutex_unlock(&d->lock);
}

uint64_t esp_depot_patience_ns(struct esp_depot *d)
{
    uint64_t ns;

    pthread_mutex_lock(&d->lock);
    ns = d->n_slots > d->n_came ? d->chunk_bytes * SLOW_NS_A_BYTE : 0;
    pthread_mutex_unlock(&d->lock);
    return ns;
}

int esp_depot_fd(const struct esp_depot *d)
{
    return d->fd;
}

void esp_depot_progress(struct esp_depot *d, uint64_t *done, uint64_t *total)
{
    pthread_mutex_lock(&d->lock);
    *total = d->total_bytes;
    *done = d->total_bytes - d->lacking_bytes;
    pthread_mutex_unlock(&d->lock);
}

void esp_depot_count(struct esp_depot *d, struct esp_depot_count *out)
{
    pthread_mutex_lock(&d->lock);
    *out = d->count;
    pthread_mutex_unlock(&d->lock);
}
