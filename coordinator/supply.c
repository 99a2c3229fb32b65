#include "coordinator/supply.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "coordinator/hash_file.h"
#include "model/file.h"
#include "model/remote.h"
#include "model/roles.h"
#include "model/shape.h"
#include "proto/clock.h"

#define MAX_CONFIG_BYTES ((size_t)1 << 20)
#define MAX_CHUNKS       (1u << 20) /* what a worker takes */

/* ---- what there is ---- */

struct fetch {
    uint32_t tensor, chunk;
    bool read; /* its pages are in memory, or `why` says why not */
    char why[160];
};

/* A worker that fetches. Its queue is a ring: read ones first, in the order they were asked for. */
struct customer {
    struct customer *next;
    uint64_t id;
    uint32_t first, n, n_read;
    struct fetch queue[ESP_SUPPLY_MAX_FETCHES];
};

enum made { NOT_WANTED, WANTED, MADE, IMPOSSIBLE };

struct esp_supply {
    const struct esp_checkpoint *ck;
    const struct esp_log *log;
    uint8_t fingerprint[ESP_FINGERPRINT_BYTES];
    struct esp_hash_file kept; /* the hashes of an earlier run */
    uint32_t chunk_bytes, n_tensor, n_chunk;
    const struct esp_tensor **tensor;
    struct esp_tensor_info *info;
    char *config;
    size_t n_config;
    uint8_t *hashes; /* the thread's until MADE */
    uint64_t n_left; /* chunks that may still go out */

    int fd;
    bool have_lock, have_cond, started;
    pthread_t thread;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t come;  /* something to do, or stop */
    bool stop;
    enum made made;
    struct esp_err why;
    struct customer *customers; /* whose turn it is stands first */
    uint64_t last_id;
};

/* ---- reading ---- */

/*
 * Has the bytes in memory before anyone touches them: a disk that cannot deliver is an answer here and a SIGBUS later.
 * Kernels that cannot say get every page touched.
 */
static bool bring_in(const void *data, size_t n_bytes, char *why, size_t n_why)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const volatile char *p = data;
    const int e = esp_file_populate(data, n_bytes);

    if (e == 0)
        return true;
    if (e != EINVAL && e != EAGAIN) {
        snprintf(why, n_why, "%s", strerror(e));
        return false;
    }
    for (size_t i = 0; i < n_bytes; i += page)
        (void)p[i];
    return true;
}

static const void *chunk_data(const struct esp_supply *s, uint32_t tensor, uint32_t chunk, size_t *n_bytes)
{
    const struct esp_tensor *t = s->tensor[tensor];

    *n_bytes = esp_chunk_bytes(t->n_bytes, s->chunk_bytes, chunk);
    return (const char *)t->data + (uint64_t)chunk * s->chunk_bytes;
}

static bool is_stopped(struct esp_supply *s)
{
    bool stop;

    pthread_mutex_lock(&s->lock);
    stop = s->stop;
    pthread_mutex_unlock(&s->lock);
    return stop;
}

/* ---- the manifest ---- */

static esp_status hash_all(struct esp_supply *s, struct esp_err *err)
{
    uint8_t *out = s->hashes;
    char why[100];

    for (uint32_t i = 0; i < s->n_tensor; i++) {
        const uint64_t n = esp_chunk_count(s->tensor[i]->n_bytes, s->chunk_bytes);

        for (uint32_t c = 0; c < n; c++, out += ESP_HASH_BYTES) {
            size_t n_bytes;
            const void *data = chunk_data(s, i, c, &n_bytes);

            if (is_stopped(s))
                return esp_fail(err, ESP_E_CANCELLED, "stopped");
            if (!bring_in(data, n_bytes, why, sizeof why))
                return esp_fail(err, ESP_E_IO, "%s: %s cannot be read: %s", s->tensor[i]->file,
                                s->tensor[i]->name, why);
            crypto_generichash(out, ESP_HASH_BYTES, data, n_bytes, NULL, 0);
        }
        esp_tensor_done(s->tensor[i]);
    }
    return ESP_OK;
}

static void wake_owner(struct esp_supply *s)
{
    const uint64_t one = 1;

    if (write(s->fd, &one, sizeof one) < 0) {
        /* Only a counter about to overflow refuses, and then the descriptor is readable already. */
    }
}

static void make_manifest(struct esp_supply *s)
{
    const double start = esp_now_seconds();
    struct esp_err err = {0};
    const bool known = esp_hash_file_read(s->hashes, &s->kept, s->n_chunk);
    esp_status st = known ? ESP_OK : hash_all(s, &err);

    if (!st && !known)
        esp_hash_file_write(&s->kept, s->hashes, s->n_chunk, s->log);
    if (!st)
        esp_log(s->log, ESP_LOG_INFO, "manifest tensors=%u chunks=%u chunk_kib=%u from=%s seconds=%.2f",
                s->n_tensor, s->n_chunk, s->chunk_bytes >> 10, known ? "cache" : "weights",
                esp_now_seconds() - start);
    pthread_mutex_lock(&s->lock);
    s->made = st ? IMPOSSIBLE : MADE;
    s->why = err;
    wake_owner(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- the thread ---- */

/* The customer whose turn it is, if any of them waits for a chunk; it goes to the end of the line. */
static struct customer *next_customer(struct esp_supply *s)
{
    for (struct customer **p = &s->customers; *p; p = &(*p)->next) {
        struct customer *c = *p, **end;

        if (c->n_read == c->n)
            continue;
        *p = c->next;
        c->next = NULL;
        for (end = &s->customers; *end; end = &(*end)->next)
            ;
        *end = c;
        return c;
    }
    return NULL;
}

static struct customer *find(struct esp_supply *s, uint64_t id)
{
    struct customer *c = s->customers;

    while (c && c->id != id)
        c = c->next;
    return c;
}

static struct fetch *at(struct customer *c, uint32_t i)
{
    return &c->queue[(c->first + i) % ESP_SUPPLY_MAX_FETCHES];
}

static void *thread_main(void *arg)
{
    struct esp_supply *s = arg;

    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        struct customer *c = next_customer(s);

        if (s->made == WANTED) {
            pthread_mutex_unlock(&s->lock);
            make_manifest(s);
            pthread_mutex_lock(&s->lock);
        } else if (c) {
            const uint64_t id = c->id;
            struct fetch f = *at(c, c->n_read);
            size_t n_bytes;
            const void *data = chunk_data(s, f.tensor, f.chunk, &n_bytes);

            pthread_mutex_unlock(&s->lock);
            (void)bring_in(data, n_bytes, f.why, sizeof f.why);
            pthread_mutex_lock(&s->lock);
            c = find(s, id); /* it may have left */
            if (!c)
                continue;
            *at(c, c->n_read) = f;
            c->n_read++;
            wake_owner(s);
        } else {
            pthread_cond_wait(&s->come, &s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the owner's side ---- */

static esp_status list_tensors(struct esp_supply *s, struct esp_err *err)
{
    const struct esp_config *config = esp_checkpoint_config(s->ck);
    uint64_t n_chunk = 0;
    uint32_t n = 0;

    for (int role = 0; role < ESP_N_ROLE; role++)
        n += esp_role_count(config, (enum esp_role)role);
    if (n > ESP_MAX_TENSORS)
        return esp_fail(err, ESP_E_LIMIT, "%u tensors, %d are the most that can be streamed", n,
                        ESP_MAX_TENSORS);
    s->tensor = calloc((size_t)n + 1, sizeof *s->tensor);
    s->info = calloc((size_t)n + 1, sizeof *s->info);
    if (!s->tensor || !s->info)
        return esp_fail(err, ESP_E_NOMEM, "list of %u tensors", n);
    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t layer = 0; layer < esp_role_count(config, (enum esp_role)role); layer++) {
            const struct esp_tensor *t = esp_checkpoint_tensor(s->ck, (enum esp_role)role, layer);

            s->tensor[s->n_tensor] = t;
            s->info[s->n_tensor++] = (struct esp_tensor_info){.role = (uint32_t)role,
                                                              .layer = layer,
                                                              .dtype = (uint32_t)t->dtype,
                                                              .n_dim = t->n_dim,
                                                              .shape = t->shape};
            n_chunk += esp_chunk_count(t->n_bytes, s->chunk_bytes);
        }
    }
    if (n_chunk > MAX_CHUNKS)
        return esp_fail(err, ESP_E_LIMIT, "%llu chunks of %u bytes, %u are the most that can be streamed",
                        (unsigned long long)n_chunk, s->chunk_bytes, MAX_CHUNKS);
    s->n_chunk = (uint32_t)n_chunk;
    s->hashes = malloc(((size_t)s->n_chunk + 1) * ESP_HASH_BYTES);
    if (!s->hashes)
        return esp_fail(err, ESP_E_NOMEM, "hashes of %u chunks", s->n_chunk);
    return ESP_OK;
}

static esp_status read_config(struct esp_supply *s, struct esp_err *err)
{
    char path[4096], *text;

    if (esp_shape_named(esp_checkpoint_dir(s->ck))) {
        const esp_status st = esp_shape_config(&text, esp_checkpoint_dir(s->ck), err);
        s->config = text;
        s->n_config = st ? 0 : strlen(text);
        return st;
    }
    if (snprintf(path, sizeof path, "%s/config.json", esp_checkpoint_dir(s->ck)) >= (int)sizeof path)
        return esp_fail(err, ESP_E_ARG, "a path of more than %zu bytes", sizeof path);
    return esp_file_read(&s->config, &s->n_config, path, MAX_CONFIG_BYTES, err);
}

static esp_status start(struct esp_supply *s, struct esp_err *err)
{
    int rc;

    s->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->fd < 0)
        return esp_fail(err, ESP_E_IO, "eventfd: %s", strerror(errno));
    rc = pthread_mutex_init(&s->lock, NULL);
    s->have_lock = rc == 0;
    if (!rc) {
        rc = pthread_cond_init(&s->come, NULL);
        s->have_cond = rc == 0;
    }
    if (!rc) {
        rc = pthread_create(&s->thread, NULL, thread_main, s);
        s->started = rc == 0;
    }
    return rc ? esp_fail(err, ESP_E_IO, "a thread for weights: %s", strerror(rc)) : ESP_OK;
}

esp_status esp_supply_create(struct esp_supply **out, const struct esp_checkpoint *ck,
                             const uint8_t fingerprint[ESP_FINGERPRINT_BYTES],
                             const struct esp_supply_options *options, const struct esp_log *log,
                             struct esp_err *err)
{
    struct esp_supply *s = NULL;
    esp_status st;

    *out = NULL;
    if (sodium_init() < 0)
        return esp_fail(err, ESP_E_INTERNAL, "libsodium does not start");
    s = calloc(1, sizeof *s);
    if (!s)
        return esp_fail(err, ESP_E_NOMEM, "a supply of weights");
    s->fd = -1;
    s->ck = ck;
    s->log = log;
    s->n_left = options->stop_after ? options->stop_after : UINT64_MAX;
    s->chunk_bytes = options->chunk_bytes ? options->chunk_bytes : ESP_SUPPLY_CHUNK_BYTES;
    memcpy(s->fingerprint, fingerprint, sizeof s->fingerprint);
    if (s->chunk_bytes < ESP_MIN_CHUNK || s->chunk_bytes > ESP_MAX_CHUNK ||
        (s->chunk_bytes & (s->chunk_bytes - 1))) {
        st = esp_fail(err, ESP_E_ARG, "chunks of %u KiB: takes a power of two, %u .. %u",
                      s->chunk_bytes >> 10, ESP_MIN_CHUNK >> 10, ESP_MAX_CHUNK >> 10);
        goto done;
    }
    st = list_tensors(s, err);
    if (!st)
        st = read_config(s, err);
    if (st)
        goto done;
    esp_hash_file_init(&s->kept, options->cache_dir, fingerprint, s->chunk_bytes, s->tensor, s->info,
                       s->n_tensor);
    st = start(s, err);
    if (st)
        goto done;
    *out = s;
    s = NULL;
done:
    esp_supply_destroy(&s);
    return st;
}

void esp_supply_destroy(struct esp_supply **supply)
{
    struct esp_supply *s = *supply;

    *supply = NULL;
    if (!s)
        return;
    if (s->started) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->come);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    while (s->customers) {
        struct customer *c = s->customers;
        s->customers = c->next;
        free(c);
    }
    if (s->have_cond)
        pthread_cond_destroy(&s->come);
    if (s->have_lock)
        pthread_mutex_destroy(&s->lock);
    if (s->fd >= 0)
        close(s->fd);
    free(s->tensor);
    free(s->info);
    free(s->config);
    free(s->hashes);
    free(s);
}

int esp_supply_fd(const struct esp_supply *s)
{
    return s->fd;
}

void esp_supply_heard(struct esp_supply *s)
{
    uint64_t n;

    if (read(s->fd, &n, sizeof n) < 0) {
        /* Not readable: fine. */
    }
}

esp_status esp_supply_join(uint64_t *out, struct esp_supply *s, struct esp_err *err)
{
    struct customer *c = calloc(1, sizeof *c);

    *out = 0;
    if (!c)
        return esp_fail(err, ESP_E_NOMEM, "a queue for fetches");
    pthread_mutex_lock(&s->lock);
    c->id = *out = ++s->last_id;
    c->next = s->customers;
    s->customers = c;
    if (s->made == NOT_WANTED)
        s->made = WANTED;
    pthread_cond_signal(&s->come);
    pthread_mutex_unlock(&s->lock);
    return ESP_OK;
}

void esp_supply_leave(struct esp_supply *s, uint64_t customer)
{
    pthread_mutex_lock(&s->lock);
    for (struct customer **p = &s->customers; *p; p = &(*p)->next) {
        struct customer *c = *p;

        if (c->id != customer)
            continue;
        *p = c->next;
        free(c);
        break;
    }
    pthread_mutex_unlock(&s->lock);
}

esp_status esp_supply_manifest(struct esp_supply *s, struct esp_msg *msg, struct esp_err *err)
{
    esp_status st = ESP_OK;

    pthread_mutex_lock(&s->lock);
    if (s->made == IMPOSSIBLE) {
        st = s->why.code;
        if (err)
            *err = s->why;
    } else if (s->made != MADE) {
        st = esp_fail(err, ESP_E_TIMEOUT, "the checkpoint is being hashed");
    }
    pthread_mutex_unlock(&s->lock);
    if (st)
        return st;
    memset(msg, 0, sizeof *msg);
    msg->kind = ESP_MSG_MANIFEST;
    msg->manifest = (struct esp_msg_manifest){
        .chunk_bytes = s->chunk_bytes, .n_tensors = s->n_tensor, .tensors = s->info};
    memcpy(msg->manifest.fingerprint, s->fingerprint, sizeof s->fingerprint);
    msg->n_blobs = 2;
    msg->blob[0] = (struct esp_blob){.data = s->config, .n_bytes = s->n_config};
    msg->blob[1] = (struct esp_blob){.data = s->hashes, .n_bytes = (size_t)s->n_chunk * ESP_HASH_BYTES};
    return ESP_OK;
}

esp_status esp_supply_fetch(struct esp_supply *s, uint64_t customer, const struct esp_msg_fetch *fetch,
                            struct esp_err *err)
{
    struct customer *c;
    esp_status st = ESP_OK;

    if (fetch->tensor >= s->n_tensor ||
        fetch->chunk >= esp_chunk_count(s->tensor[fetch->tensor]->n_bytes, s->chunk_bytes))
        return esp_fail(err, ESP_E_PROTO, "a fetch of chunk %u of tensor %u: there is none", fetch->chunk,
                        fetch->tensor);
    pthread_mutex_lock(&s->lock);
    c = find(s, customer);
    if (!c || s->made != MADE) {
        st = esp_fail(err, ESP_E_PROTO, "a fetch without a manifest");
    } else if (c->n == ESP_SUPPLY_MAX_FETCHES) {
        st = esp_fail(err, ESP_E_LIMIT, "more than %d fetches at once", ESP_SUPPLY_MAX_FETCHES);
    } else {
        *at(c, c->n++) = (struct fetch){.tensor = fetch->tensor, .chunk = fetch->chunk};
        pthread_cond_signal(&s->come);
    }
    pthread_mutex_unlock(&s->lock);
    return st;
}

/* The frame has left, and its pages need not stay in this process for it. Called by ZeroMQ's threads. */
static void sent_off(void *data, void *hint)
{
    const struct esp_tensor part = {.data = data, .n_bytes = (size_t)(uintptr_t)hint};

    esp_tensor_done(&part);
}

bool esp_supply_next(struct esp_supply *s, uint64_t customer, struct esp_msg *msg)
{
    struct customer *c;
    bool ready;

    pthread_mutex_lock(&s->lock);
    c = find(s, customer);
    ready = c && c->n_read > 0 && s->n_left > 0;
    if (ready) {
        const struct fetch *f = at(c, 0); /* it stays where it is: only this thread takes it away */
        size_t n_bytes;
        const void *data = chunk_data(s, f->tensor, f->chunk, &n_bytes);

        memset(msg, 0, sizeof *msg);
        msg->kind = ESP_MSG_CHUNK;
        msg->chunk = (struct esp_msg_chunk){.tensor = f->tensor, .chunk = f->chunk, .why = f->why};
        msg->n_blobs = f->why[0] == '\0';
        if (msg->n_blobs)
            msg->blob[0] = (struct esp_blob){
                .data = data, .n_bytes = n_bytes, .release = sent_off, .hint = (void *)(uintptr_t)n_bytes};
    }
    pthread_mutex_unlock(&s->lock);
    return ready;
}

void esp_supply_sent(struct esp_supply *s, uint64_t customer)
{
    struct customer *c;

    pthread_mutex_lock(&s->lock);
    c = find(s, customer);
    if (c && c->n_read > 0) {
        c->first = (c->first + 1) % ESP_SUPPLY_MAX_FETCHES;
        c->n--;
        c->n_read--;
        if (s->n_left != UINT64_MAX)
            s->n_left--;
    }
    pthread_mutex_unlock(&s->lock);
}
