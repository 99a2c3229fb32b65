#include "worker/packed.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/file.h"
#include "worker/known.h"
#include "worker/store.h"

_Static_assert(ESP_PACKED_NAME_BYTES == ESP_STORE_NAME_BYTES, "a store's names");

#define MAGIC      UINT64_C(0x31306b6361707365) /* "espack01": a new number for a new format */
#define ODD        UINT64_C(0x9e3779b97f4a7c15)
#define SUM_BYTES  64
#define AHEAD      4096
#define SOON_BYTES (UINT64_C(1) << 20) /* asked for in one call: kernels take no more of one, some of them */
#define MAX_SUM    ((size_t)1 << 24)   /* units of a file, far above any matrix */

/* The end of a file. Of one machine's byte order: another's has another magic. */
struct trailer {
    uint64_t magic, n_unit, unit_bytes;
    uint8_t name[ESP_PACKED_NAME_BYTES];
    uint64_t sum_of_sums;
    uint64_t sum; /* of the above */
};

struct esp_packed {
    struct esp_store *store;
    struct esp_known *known;
    bool all;
    const struct esp_log *log;
    struct esp_packed_count count;
    uint8_t (*used)[ESP_PACKED_NAME_BYTES]; /* by this process: they stay */
    size_t n_used, n_room;
    bool told; /* that nothing can be written */
};

struct esp_packed_file {
    struct esp_packed *packed;
    uint8_t name[ESP_PACKED_NAME_BYTES];
    uint32_t n_unit;
    uint64_t unit_bytes;
    uint64_t *sum; /* [n_unit] */
    int fd;
    char *laid; /* where units [laid_unit, laid_unit + n_laid) were laid last; NULL: nowhere */
    uint32_t laid_unit, n_laid;
    uint64_t n_asked; /* bytes of these that were asked for, from the first on */
    bool writing;
    struct esp_store_draft draft;
    atomic_int failed; /* errno of a write */
};

/* xor, then a product by an odd number: one-to-one in the word and in what came before, and words before count in another
 * way. */
static inline uint64_t mixed(uint64_t lane, const char *at)
{
    uint64_t word;

    memcpy(&word, at, sizeof word);
    word = (lane ^ word) * ODD;
    return word ^ word >> 29;
}

uint64_t esp_packed_sum(const void *data, size_t n_bytes)
{
    uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7,
             h = 8; /* as a multiplication takes some cycles */
    uint64_t lane[SUM_BYTES / 8], end[SUM_BYTES / 8] = {0}, sum = n_bytes;
    const char *p = data;
    size_t left = n_bytes;

    for (; left >= SUM_BYTES; left -= SUM_BYTES, p += SUM_BYTES) {
        __builtin_prefetch(p + AHEAD); /* processors do not look beyond a page by themselves */
        a = mixed(a, p), b = mixed(b, p + 8), c = mixed(c, p + 16), d = mixed(d, p + 24);
        e = mixed(e, p + 32), f = mixed(f, p + 40), g = mixed(g, p + 48), h = mixed(h, p + 56);
    }
    memcpy(lane, (uint64_t[]){a, b, c, d, e, f, g, h}, sizeof lane);
    memcpy(end, p, left);
    for (int i = 0; i < SUM_BYTES / 8; i++) {
        sum = (sum ^ (left ? (lane[i] ^ end[i]) * ODD : lane[i])) * ODD;
        sum ^= sum >> 32;
    }
    return sum;
}

static bool is_used(void *arg, const uint8_t *name)
{
    const struct esp_packed *p = arg;

    for (size_t i = 0; i < p->n_used; i++)
        if (memcmp(p->used[i], name, ESP_PACKED_NAME_BYTES) == 0)
            return true;
    return false;
}

/* Without memory for it a file may go earlier than it should, no more. */
static void set_used(struct esp_packed *p, const uint8_t *name)
{
    if (is_used(p, name))
        return;
    if (p->n_used == p->n_room) {
        const size_t n = p->n_room ? 2 * p->n_room : 256;
        uint8_t(*more)[ESP_PACKED_NAME_BYTES] = realloc(p->used, n * sizeof *more);

        if (!more)
            return;
        p->used = more;
        p->n_room = n;
    }
    memcpy(p->used[p->n_used++], name, ESP_PACKED_NAME_BYTES);
}

esp_status esp_packed_open(struct esp_packed **out, const char *dir, uint64_t limit_bytes, bool all,
                           const struct esp_log *log, struct esp_err *err)
{
    struct esp_packed *p = calloc(1, sizeof *p);
    char known[4096];
    esp_status st;

    *out = NULL;
    if (!p)
        return esp_fail(err, ESP_E_NOMEM, "%s: a cache of packed weights", dir);
    p->all = all;
    p->log = log;
    st = snprintf(known, sizeof known, "%s/known", dir) < (int)sizeof known
             ? esp_store_open(&p->store, dir, limit_bytes, is_used, p, err)
             : esp_fail(err, ESP_E_ARG, "a path of more than %zu bytes", sizeof known);
    if (!st)
        st = esp_known_create(&p->known, known, log, err);
    if (st) {
        esp_packed_destroy(&p);
        return st;
    }
    *out = p;
    return ESP_OK;
}

void esp_packed_destroy(struct esp_packed **packed)
{
    struct esp_packed *p = *packed;

    *packed = NULL;
    if (!p)
        return;
    esp_known_destroy(&p->known);
    esp_store_destroy(&p->store);
    free(p->used);
    free(p);
}

bool esp_packed_takes_all(const struct esp_packed *p)
{
    return p->all;
}

struct esp_known *esp_packed_known(struct esp_packed *p)
{
    return p->known;
}

void esp_packed_count(const struct esp_packed *p, struct esp_packed_count *out)
{
    *out = p->count;
}

/* ---- files ---- */

static void file_free(struct esp_packed_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    free(f->sum);
    free(f);
}

static struct esp_packed_file *file_make(struct esp_packed *p, const uint8_t *name, uint32_t n_unit,
                                         uint64_t unit_bytes)
{
    struct esp_packed_file *f = n_unit <= MAX_SUM ? calloc(1, sizeof *f) : NULL;

    if (!f)
        return NULL;
    f->packed = p;
    f->fd = -1;
    memcpy(f->name, name, sizeof f->name);
    f->n_unit = n_unit;
    f->unit_bytes = unit_bytes;
    f->sum = calloc((size_t)n_unit + 1, sizeof *f->sum);
    if (f->sum)
        return f;
    file_free(f);
    return NULL;
}

static uint64_t file_bytes(const struct esp_packed_file *f)
{
    return f->n_unit * (f->unit_bytes + sizeof *f->sum) + sizeof(struct trailer);
}

static void fill_trailer(struct trailer *t, const struct esp_packed_file *f)
{
    memset(t, 0, sizeof *t);
    t->magic = MAGIC;
    t->n_unit = f->n_unit;
    t->unit_bytes = f->unit_bytes;
    memcpy(t->name, f->name, sizeof t->name);
    t->sum_of_sums = esp_packed_sum(f->sum, f->n_unit * sizeof *f->sum);
    t->sum = esp_packed_sum(t, offsetof(struct trailer, sum));
}

/* What is wrong with a file; NULL: nothing but perhaps its units. */
static const char *check(struct esp_packed_file *f, uint64_t n_found)
{
    struct trailer want, t;
    const uint64_t at = f->n_unit * f->unit_bytes, n_sums = f->n_unit * sizeof *f->sum;

    if (n_found != file_bytes(f))
        return "of another size";
    if (!esp_store_read_at(f->fd, f->sum, n_sums, at) || !esp_store_read_at(f->fd, &t, sizeof t, at + n_sums))
        return errno ? strerror(errno) : "became shorter while read";
    fill_trailer(&want, f);
    return memcmp(&t, &want, sizeof t) == 0 ? NULL : "no packed matrix of that name";
}

static void say_damaged(struct esp_packed *p, const uint8_t *name, const char *why)
{
    char path[ESP_STORE_PATH];

    p->count.damaged++;
    esp_store_remove(p->store, name);
    esp_store_path(path, name);
    esp_log(p->log, ESP_LOG_WARN, "packed_damaged file=%s/%s why=\"%s\" action=pack_again",
            esp_store_dir(p->store), path, why);
}

esp_status esp_packed_find(struct esp_packed_file **out, struct esp_packed *p,
                           const uint8_t name[ESP_PACKED_NAME_BYTES], uint32_t n_unit, uint64_t unit_bytes,
                           struct esp_err *err)
{
    struct esp_packed_file *f = file_make(p, name, n_unit, unit_bytes);
    struct esp_err why = {0};
    const char *wrong;
    uint64_t n_found;
    esp_status st;

    *out = NULL;
    if (!f)
        return esp_fail(err, ESP_E_NOMEM, "a file of packed weights");
    st = esp_store_find(&f->fd, &n_found, p->store, name, &why);
    wrong = st == ESP_E_FORMAT ? why.text : NULL;
    if (!st)
        wrong = check(f, n_found);
    if (wrong) {
        say_damaged(p, name, wrong);
        st = esp_fail(err, ESP_E_FORMAT, "%s", wrong);
    } else if (st) {
        (void)esp_fail(err, st, "%s", why.text);
    }
    if (st) {
        file_free(f);
        return st;
    }
    esp_store_used(f->fd);
    set_used(p, name);
    *out = f;
    return ESP_OK;
}

static size_t page_bytes(void)
{
    const long n = sysconf(_SC_PAGESIZE);

    return n > 0 ? (size_t)n : 4096;
}

static esp_status fresh(void *to, uint64_t n_bytes, struct esp_err *err)
{
    if (mmap(to, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == to)
        return ESP_OK;
    return esp_fail(err, ESP_E_NOMEM, "memory of weights: %s", strerror(errno));
}

esp_status esp_packed_lay(struct esp_packed_file *f, uint32_t unit, uint32_t n, void *to, struct esp_err *err)
{
    const uint64_t at = unit * f->unit_bytes, n_bytes = n * f->unit_bytes;
    const size_t page = page_bytes();
    esp_status st;

    if (n == 0 || at % page || (uintptr_t)to % page)
        return esp_fail(err, ESP_E_UNSUPPORTED, "units that do not begin at a page");
    if (mmap(to, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, f->fd, (off_t)at) != to) {
        const int e = errno;
        st = fresh(to, n_bytes, err); /* what was there may be gone */
        return st ? st : esp_fail(err, ESP_E_UNSUPPORTED, "%s", strerror(e));
    }
    f->laid = to;
    f->laid_unit = unit;
    f->n_laid = n;
    f->n_asked = 0;
    return ESP_OK;
}

esp_status esp_packed_unlay(struct esp_packed_file *f, uint32_t unit, struct esp_err *err)
{
    const size_t page = page_bytes();
    char *from = f->laid + (unit - f->laid_unit) * f->unit_bytes, *end = f->laid + f->n_laid * f->unit_bytes;
    const size_t n_before = (uintptr_t)from % page;
    char *before = malloc(page);
    esp_status st;

    if (!before)
        return esp_fail(err, ESP_E_NOMEM, "a page of weights");
    memcpy(before, from - n_before, n_before);
    f->n_laid = unit - f->laid_unit;
    st = fresh(from - n_before, (uint64_t)(end - from) + n_before, err);
    if (!st)
        memcpy(from - n_before, before, n_before);
    free(before);
    return st;
}

void esp_packed_soon(struct esp_packed_file *f, uint32_t unit, uint64_t n_bytes)
{
    const uint64_t all = f->n_laid * f->unit_bytes;
    uint64_t to;

    if (!f->laid || unit < f->laid_unit)
        return;
    to = (unit - f->laid_unit) * f->unit_bytes + n_bytes;
    for (to = to < all ? to : all; f->n_asked < to; f->n_asked += SOON_BYTES) {
        char *at = f->laid + f->n_asked;
        unsigned char here = 0;

        if (mincore(at, 1, &here) == 0 && here & 1) /* then so are those behind it, mostly */
            continue;
        (void)madvise(at, SOON_BYTES < all - f->n_asked ? SOON_BYTES : all - f->n_asked, MADV_WILLNEED);
    }
}

bool esp_packed_is_laid(const struct esp_packed_file *f, uint32_t unit, const void *to)
{
    return f->laid && unit >= f->laid_unit && unit - f->laid_unit < f->n_laid &&
           to == f->laid + (unit - f->laid_unit) * f->unit_bytes;
}

/* Of laid pages. Kernels that cannot say, or not now, are believed. */
static bool is_readable(const char *at, uint64_t n_bytes)
{
    const int e = esp_file_populate(at, n_bytes);

    return e != EFAULT && e != EIO && e != EHWPOISON;
}

esp_status esp_packed_read(const struct esp_packed_file *f, uint32_t unit, uint32_t n, void *to,
                           struct esp_err *err)
{
    char *at = to;
    const bool read = esp_packed_is_laid(f, unit, to)
                          ? is_readable(to, n * f->unit_bytes)
                          : esp_store_read_at(f->fd, to, n * f->unit_bytes, unit * f->unit_bytes);

    if (!read)
        return esp_fail(err, ESP_E_FORMAT, "%s", errno ? strerror(errno) : "became shorter while read");
    for (uint32_t i = 0; i < n; i++, at += f->unit_bytes)
        if (esp_packed_sum(at, f->unit_bytes) != f->sum[unit + i])
            return esp_fail(err, ESP_E_FORMAT, "unit %u has another sum", unit + i);
    return ESP_OK;
}

static void say_failed(struct esp_packed *p, const char *why)
{
    p->count.failed++;
    if (!p->told)
        esp_log(p->log, ESP_LOG_WARN, "packed_not_kept dir=%s why=\"%s\" action=go_on",
                esp_store_dir(p->store), why);
    p->told = true;
}

esp_status esp_packed_begin(struct esp_packed_file **out, struct esp_packed *p,
                            const uint8_t name[ESP_PACKED_NAME_BYTES], uint32_t n_unit, uint64_t unit_bytes,
                            struct esp_err *err)
{
    struct esp_packed_file *f = file_make(p, name, n_unit, unit_bytes);
    struct esp_err why = {0};
    esp_status st;

    *out = NULL;
    if (!f)
        return esp_fail(err, ESP_E_NOMEM, "a file of packed weights");
    st = esp_store_begin(&f->draft, p->store, file_bytes(f), &why);
    if (st) {
        say_failed(p, why.text);
        file_free(f);
        return esp_fail(err, st, "%s", why.text);
    }
    f->fd = f->draft.fd;
    f->writing = true;
    atomic_init(&f->failed, 0);
    *out = f;
    return ESP_OK;
}

void esp_packed_write(struct esp_packed_file *f, uint32_t unit, uint32_t n, const void *from)
{
    const char *at = from;

    if (atomic_load(&f->failed))
        return;
    for (uint32_t i = 0; i < n; i++, at += f->unit_bytes)
        f->sum[unit + i] = esp_packed_sum(at, f->unit_bytes);
    if (!esp_store_write_at(f->fd, from, n * f->unit_bytes, unit * f->unit_bytes))
        atomic_store(&f->failed, errno ? errno : EIO);
}

static bool finish(struct esp_packed_file *f)
{
    const uint64_t at = f->n_unit * f->unit_bytes, n_sums = f->n_unit * sizeof *f->sum;
    struct trailer t;
    int failed = atomic_load(&f->failed);
    struct esp_err err = {0};

    fill_trailer(&t, f);
    if (!failed && (!esp_store_write_at(f->fd, f->sum, n_sums, at) ||
                    !esp_store_write_at(f->fd, &t, sizeof t, at + n_sums)))
        failed = errno ? errno : EIO;
    if (failed) {
        esp_store_abandon(f->packed->store, &f->draft);
        say_failed(f->packed, strerror(failed));
        return false;
    }
    if (esp_store_commit(f->packed->store, &f->draft, file_bytes(f), f->name, &err)) {
        say_failed(f->packed, err.text);
        return false;
    }
    set_used(f->packed, f->name);
    return true;
}

void esp_packed_close(struct esp_packed_file **file, bool whole)
{
    struct esp_packed_file *f = *file;
    struct esp_packed_count *c;

    *file = NULL;
    if (!f)
        return;
    c = &f->packed->count;
    if (f->writing && !whole) {
        esp_store_abandon(f->packed->store, &f->draft);
    } else if (f->writing) {
        if (finish(f)) {
            c->kept++;
            c->kept_bytes += f->n_unit * f->unit_bytes;
        }
    } else if (whole) {
        c->used++;
        c->laid += f->laid != NULL;
        c->used_bytes += f->n_unit * f->unit_bytes;
    }
    file_free(f);
}

void esp_packed_damaged(struct esp_packed_file **file, const char *why)
{
    struct esp_packed_file *f = *file;

    *file = NULL;
    say_damaged(f->packed, f->name, why);
    file_free(f);
}
