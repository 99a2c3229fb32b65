/*
 * The depot for its owners: manifests, what is wanted, and the conversation. Its thread is depot_thread.c, its books are
 * depot_books.c.
 *
 * Lookups and fetches go along the same list: what the loading thread waits for, then the placement's tensors. Both have
 * a cursor, so that a list of many chunks is not walked again for each of them; the one for fetches stays behind the
 * one for lookups. Whatever puts a chunk back sets both to the beginning.
 *
 * The window is counted in chunks and adapts to the link: heartbeats and steps share it, and must not stand behind
 * seconds of weights.
 */
#include "worker/depot.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "proto/clock.h"
#include "worker/depot_state.h"

#define TRIES          4
#define WINDOW_BYTES   ((size_t)32 << 20) /* asked for, or come and not yet kept */
#define WINDOW_FIRST   4u
#define WINDOW_LEAST   2u
#define QUICK_NS       UINT64_C(200000000) /* from asking to having: the window may grow */
#define SLOW_NS_A_BYTE UINT64_C(8000)
#define SLOW_NS        UINT64_C(500000000) /* it must shrink */

/* ---- under the lock ---- */

void esp_depot_rewind(struct esp_depot *d)
{
    d->look = d->fetch = (struct esp_depot_cursor){0};
    pthread_cond_signal(&d->come);
}

static void set_busy(struct esp_depot *d, uint32_t id, bool busy)
{
    d->books.chunk[d->books.chunk[id].first].busy = busy;
}

void esp_depot_free_slot(struct esp_depot *d, struct esp_depot_slot *s)
{
    set_busy(d, s->id, false);
    d->slot_bytes -= esp_depot_books_bytes(&d->books, s->id);
    d->n_slots--;
    if (d->books.chunk[s->id].state == ESP_CHUNK_CAME)
        d->n_came--;
    s->used = false;
}

void esp_depot_put_back(struct esp_depot *d, uint32_t id, esp_status code, const char *why)
{
    struct esp_depot_chunk *c = &d->books.chunk[id];
    const uint32_t t = esp_depot_books_tensor(&d->books, id);

    d->count.refused++;
    c->tries++;
    c->state = c->tries < TRIES ? ESP_CHUNK_MISSING : ESP_CHUNK_FAILED;
    esp_depot_rewind(d);
    esp_log(d->log, ESP_LOG_WARN, "chunk_refused tensor=%s chunk=%u try=%u why=\"%s\" action=%s",
            esp_remote_at(d->books.ck, t)->name, id - d->books.base[t], c->tries, why,
            c->state == ESP_CHUNK_FAILED ? "give_up" : "refetch");
    if (c->state == ESP_CHUNK_FAILED)
        esp_fail(&d->why, code, "%s: chunk %u of %s: %s, %d times", esp_checkpoint_dir(d->books.ck),
                 id - d->books.base[t], esp_remote_at(d->books.ck, t)->name, why, TRIES);
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
        esp_depot_open_cache(d, cache_dir, limit_bytes);
        rc = pthread_create(&d->thread, NULL, esp_depot_thread, d);
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
    esp_depot_books_drop(&d->books);
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
    struct esp_depot_books books;
    uint8_t digest[ESP_CACHE_HASH_BYTES];
    esp_status st;

    *out = NULL;
    esp_depot_books_digest(digest, msg);
    if (d->books.ck && memcmp(digest, d->books.digest, sizeof digest) == 0) /* written by this thread alone */
        return ESP_OK;
    st = esp_depot_books_open(&books, digest, msg, origin, err);
    if (st)
        return st;
    pthread_mutex_lock(&d->lock);
    if (!grow(d)) {
        pthread_mutex_unlock(&d->lock);
        esp_checkpoint_destroy(&books.ck);
        esp_depot_books_drop(&books);
        return esp_fail(err, ESP_E_NOMEM, "a checkpoint");
    }
    d->owned[d->n_owned++] = books.ck;
    d->generation++;
    for (uint32_t i = 0; i < ESP_DEPOT_WINDOW; i++) {
        struct esp_depot_slot *s = &d->slot[i];

        if (s->used && d->books.chunk[s->id].state == ESP_CHUNK_CAME)
            esp_msg_finish(&s->msg);
        s->used = false;
    }
    d->n_slots = d->n_came = 0;
    d->slot_bytes = 0;
    esp_depot_books_drop(&d->books);
    d->books = books;
    esp_depot_rewind(d);
    pthread_mutex_unlock(&d->lock);
    *out = books.ck;
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

void esp_depot_want(struct esp_depot *d, const struct esp_stage_spec *spec)
{
    pthread_mutex_lock(&d->lock);
    if (d->books.ck) {
        esp_depot_books_want(&d->books, spec);
        d->begun_ns = esp_now_ns();
        d->before = d->count;
        esp_depot_rewind(d);
    }
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
        if (!d->books.ck || !esp_remote_index(&t, d->books.ck, tensors[i])) {
            st = esp_fail(err, ESP_E_CANCELLED, "the coordinator serves another checkpoint now");
            break;
        }
        for (uint32_t id = d->books.base[t]; id < d->books.base[t + 1]; id++) {
            if (d->books.chunk[id].state == ESP_CHUNK_FAILED) {
                if (err)
                    *err = d->why;
                st = d->why.code;
                break;
            }
            if (d->books.chunk[id].state == ESP_CHUNK_PRESENT)
                continue;
            st = ESP_E_TIMEOUT;
            if (n_urgent < esp_remote_n_tensor(d->books.ck)) {
                fresh |= n_urgent >= d->books.urgent.n || d->books.urgent.id[n_urgent] != t;
                d->books.urgent.id[n_urgent++] = t;
            }
            break;
        }
    }
    if (st == ESP_E_TIMEOUT) {
        esp_fail(err, st, "weights are on their way");
        if (fresh || n_urgent != d->books.urgent.n) {
            d->books.urgent.n = n_urgent;
            esp_depot_rewind(d);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return st;
}

/* ---- the conversation ---- */

bool esp_depot_fetch(struct esp_depot *d, struct esp_msg_fetch *out)
{
    struct esp_depot_slot *s = d->slot;
    uint64_t count;
    bool found;
    uint32_t id;

    pthread_mutex_lock(&d->lock);
    found = d->books.ck && d->n_slots < d->n_window &&
            esp_depot_books_seek(&id, &d->books, &d->fetch, &d->look, ESP_CHUNK_MISSING) &&
            (d->n_slots == 0 || d->slot_bytes + esp_depot_books_bytes(&d->books, id) <= WINDOW_BYTES);
    if (found) {
        while (s->used) /* there is one: n_window is at most their number */
            s++;
        *s = (struct esp_depot_slot){.used = true, .id = id, .asked_ns = esp_now_ns()};
        d->n_slots++;
        d->slot_bytes += esp_depot_books_bytes(&d->books, id);
        d->books.chunk[id].state = ESP_CHUNK_OUT;
        set_busy(d, id, true);
        out->tensor = esp_depot_books_tensor(&d->books, id);
        out->chunk = id - d->books.base[out->tensor];
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
    struct esp_depot_slot *s = NULL;
    esp_status st = ESP_OK;

    pthread_mutex_lock(&d->lock);
    if (d->books.ck && m->tensor < esp_remote_n_tensor(d->books.ck) &&
        m->chunk < d->books.base[m->tensor + 1] - d->books.base[m->tensor]) {
        const uint32_t id = d->books.base[m->tensor] + m->chunk;

        for (uint32_t i = 0; i < ESP_DEPOT_WINDOW && !s; i++)
            if (d->slot[i].used && d->slot[i].id == id && d->books.chunk[id].state == ESP_CHUNK_OUT)
                s = &d->slot[i];
    }
    if (!s) {
        st = esp_fail(err, ESP_E_PROTO, "chunk %u of tensor %u, which nobody asked for", m->chunk, m->tensor);
    } else if (m->why && m->why[0]) {
        esp_depot_free_slot(d, s);
        esp_depot_put_back(d, s->id, ESP_E_IO, m->why);
    } else {
        adapt(d, esp_now_ns() - s->asked_ns);
        s->msg = *msg;
        memset(msg, 0, sizeof *msg);
        d->books.chunk[s->id].state = ESP_CHUNK_CAME;
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
        struct esp_depot_slot *s = &d->slot[i];

        if (!s->used || d->books.chunk[s->id].state != ESP_CHUNK_OUT)
            continue;
        esp_depot_free_slot(d, s);
        d->books.chunk[s->id].state = ESP_CHUNK_MISSING;
    }
    d->n_window = WINDOW_FIRST;
    esp_depot_rewind(d);
    pthread_mutex_unlock(&d->lock);
}

uint64_t esp_depot_patience_ns(struct esp_depot *d)
{
    uint64_t ns;

    pthread_mutex_lock(&d->lock);
    ns = d->n_slots > d->n_came ? d->books.chunk_bytes * SLOW_NS_A_BYTE : 0;
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
    *total = d->books.total_bytes;
    *done = d->books.total_bytes - d->books.lacking_bytes;
    pthread_mutex_unlock(&d->lock);
}

void esp_depot_count(struct esp_depot *d, struct esp_depot_count *out)
{
    pthread_mutex_lock(&d->lock);
    *out = d->count;
    pthread_mutex_unlock(&d->lock);
}
