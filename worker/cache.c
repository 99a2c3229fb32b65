/*
 * No fsync: a file that a power cut tore is found out by its hash when it is read, and fetched again. Waiting for the
 * disk chunk by chunk would cost more than that. But writing is set off at once, so that little is lost.
 *
 * A writer holds a lock on its unfinished file. One that nobody has locked is what a killed process left.
 */
#include "worker/cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "model/file.h"

#define UNFINISHED   "unfinished" /* the directory of files without a name */
#define LEFT_SECONDS 60 /* how old an unlocked one must be: its writer may just be about to lock it */
#define FREE_PART    16 /* when the limit is met, a sixteenth of it is freed */
#define HEX_BYTES    (2 * ESP_CACHE_HASH_BYTES)
#define PATH_BYTES   (HEX_BYTES + 2) /* "ab/cdef..." and its NUL */

struct esp_cache {
    char *dir;
    int fd; /* of dir */
    uint64_t limit_bytes;
    uint64_t n_bytes; /* of all files, as far as we know; only with a limit */
    esp_cache_keep keep;
    void *keep_arg;
    const struct esp_log *log;
};

void esp_cache_hash(uint8_t out[ESP_CACHE_HASH_BYTES], const void *data, size_t n_bytes)
{
    crypto_generichash(out, ESP_CACHE_HASH_BYTES, data, n_bytes, NULL, 0);
}

static void path_of(char out[PATH_BYTES], const uint8_t *hash)
{
    sodium_bin2hex(out + 1, HEX_BYTES + 1, hash, ESP_CACHE_HASH_BYTES);
    out[0] = out[1];
    out[1] = out[2];
    out[2] = '/';
}

/* The hash that such a path names; false for files that are none of ours. */
static bool hash_of(uint8_t *out, const char *folder, const char *name)
{
    char hex[HEX_BYTES + 1];

    if (strlen(folder) != 2 || strlen(name) != HEX_BYTES - 2)
        return false;
    snprintf(hex, sizeof hex, "%s%s", folder, name);
    return sodium_hex2bin(out, ESP_CACHE_HASH_BYTES, hex, HEX_BYTES, NULL, NULL, NULL) == 0;
}

static DIR *open_folder(int at, const char *name)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

    if (!d && fd >= 0)
        close(fd);
    return d;
}

/* ---- the limit ---- */

struct entry {
    uint8_t hash[ESP_CACHE_HASH_BYTES];
    uint64_t n_bytes;
    struct timespec used;
};

static int compare_used(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->used.tv_sec != y->used.tv_sec)
        return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
    return (x->used.tv_nsec > y->used.tv_nsec) - (x->used.tv_nsec < y->used.tv_nsec);
}

/* All files there are; false when memory is out, with those that fit. */
static bool list(struct entry **out, size_t *n, const struct esp_cache *c)
{
    size_t room = 0;
    DIR *top = open_folder(c->fd, ".");
    bool good = true;

    *out = NULL;
    *n = 0;
    for (struct dirent *f; top && good && (f = readdir(top));) {
        DIR *d = strlen(f->d_name) == 2 && f->d_name[0] != '.' ? open_folder(c->fd, f->d_name) : NULL;

        for (struct dirent *e; d && good && (e = readdir(d));) {
            struct entry one;
            struct stat sb;

            if (!hash_of(one.hash, f->d_name, e->d_name) ||
                fstatat(dirfd(d), e->d_name, &sb, AT_SYMLINK_NOFOLLOW) != 0)
                continue;
            if (*n == room) {
                struct entry *more = realloc(*out, (room ? 2 * room : 256) * sizeof *more);
                if (!more) {
                    good = false;
                    break;
                }
                *out = more;
                room = room ? 2 * room : 256;
            }
            one.n_bytes = (uint64_t)sb.st_size;
            one.used = sb.st_mtim;
            (*out)[(*n)++] = one;
        }
        if (d)
            closedir(d);
    }
    if (top)
        closedir(top);
    return good;
}

/* Frees what was not used for the longest time until so many bytes have room. */
static esp_status make_room(struct esp_cache *c, size_t n_bytes, struct esp_err *err)
{
    const uint64_t limit = c->limit_bytes, spare = limit / FREE_PART;
    const uint64_t aim = limit > n_bytes + spare ? limit - n_bytes - spare : 0;
    struct entry *entries;
    size_t n;
    uint64_t kept = 0;

    if (limit == 0 || c->n_bytes + n_bytes <= limit)
        return ESP_OK;
    if (!list(&entries, &n, c)) {
        free(entries);
        return esp_fail(err, ESP_E_NOMEM, "%s: its list of files", c->dir);
    }
    c->n_bytes = 0; /* counted anew: other processes add and remove as well */
    for (size_t i = 0; i < n; i++)
        c->n_bytes += entries[i].n_bytes;
    if (n > 0)
        qsort(entries, n, sizeof *entries, compare_used);
    for (size_t i = 0; i < n && c->n_bytes > aim; i++) {
        char path[PATH_BYTES];

        if (c->keep && c->keep(c->keep_arg, entries[i].hash)) {
            kept += entries[i].n_bytes;
            continue;
        }
        path_of(path, entries[i].hash);
        if (unlinkat(c->fd, path, 0) == 0 || errno == ENOENT)
            c->n_bytes -= entries[i].n_bytes;
    }
    free(entries);
    if (c->n_bytes + n_bytes > limit)
        return esp_fail(err, ESP_E_LIMIT, "%s: %llu MiB of it are in use, its limit is %llu MiB", c->dir,
                        (unsigned long long)(kept >> 20), (unsigned long long)(limit >> 20));
    return ESP_OK;
}

/* ---- opening ---- */

/* Files that a process was writing when it was killed. */
static void remove_left(const struct esp_cache *c)
{
    DIR *d = open_folder(c->fd, UNFINISHED);
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat sb;
        int fd;

        if (e->d_name[0] == '.')
            continue;
        fd = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd >= 0 && fstat(fd, &sb) == 0 && sb.st_mtim.tv_sec + LEFT_SECONDS < now.tv_sec &&
            flock(fd, LOCK_EX | LOCK_NB) == 0)
            unlinkat(dirfd(d), e->d_name, 0);
        if (fd >= 0)
            close(fd);
    }
    if (d)
        closedir(d);
}

esp_status esp_cache_open(struct esp_cache **out, const char *dir, uint64_t limit_bytes, esp_cache_keep keep,
                          void *keep_arg, const struct esp_log *log, struct esp_err *err)
{
    struct esp_cache *c = calloc(1, sizeof *c);
    struct entry *entries = NULL;
    size_t n;
    esp_status st;

    *out = NULL;
    if (c) {
        c->fd = -1;
        c->dir = strdup(dir);
    }
    if (!c || !c->dir) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: a cache of weights", dir);
        goto done;
    }
    c->limit_bytes = limit_bytes;
    c->keep = keep;
    c->keep_arg = keep_arg;
    c->log = log;
    st = esp_file_make_dir(dir, err);
    if (st)
        goto done;
    c->fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (c->fd < 0 || (mkdirat(c->fd, UNFINISHED, 0700) != 0 && errno != EEXIST) ||
        faccessat(c->fd, UNFINISHED, W_OK | X_OK, 0) != 0) {
        st = esp_fail(err, ESP_E_IO, "%s: %s", dir, strerror(errno));
        goto done;
    }
    remove_left(c);
    if (limit_bytes > 0 && !list(&entries, &n, c)) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: its list of files", dir);
        goto done;
    }
    for (size_t i = 0; entries && i < n; i++)
        c->n_bytes += entries[i].n_bytes;
    *out = c;
    c = NULL;
done:
    free(entries);
    esp_cache_destroy(&c);
    return st;
}

void esp_cache_destroy(struct esp_cache **cache)
{
    struct esp_cache *c = *cache;

    *cache = NULL;
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd);
    free(c->dir);
    free(c);
}

/* ---- chunks ---- */

static esp_status read_all(int fd, void *to, size_t n_bytes, struct esp_err *err)
{
    for (size_t n = 0; n < n_bytes;) {
        ssize_t got = pread(fd, (char *)to + n, n_bytes - n, (off_t)n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return esp_fail(err, ESP_E_FORMAT, "%s", got < 0 ? strerror(errno) : "became shorter while read");
        n += (size_t)got;
    }
    return ESP_OK;
}

esp_status esp_cache_get(int *out, struct esp_cache *c, const uint8_t hash[ESP_CACHE_HASH_BYTES],
                         void *scratch, size_t n_bytes, struct esp_err *err)
{
    uint8_t found[ESP_CACHE_HASH_BYTES];
    struct esp_err why = {0};
    char path[PATH_BYTES];
    struct stat sb;
    int fd;

    *out = -1;
    path_of(path, hash);
    fd = openat(c->fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return esp_fail(err, ESP_E_CLOSED, "%s/%s: not there", c->dir, path);
    if (fd < 0 || fstat(fd, &sb) != 0) {
        esp_status st = esp_fail(err, ESP_E_IO, "%s/%s: %s", c->dir, path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return st;
    }
    if (!S_ISREG(sb.st_mode)) {
        esp_fail(&why, ESP_E_FORMAT, "not a regular file");
    } else if ((uint64_t)sb.st_size != n_bytes) {
        esp_fail(&why, ESP_E_FORMAT, "%lld bytes, expected %zu", (long long)sb.st_size, n_bytes);
    } else if (!read_all(fd, scratch, n_bytes, &why)) {
        esp_cache_hash(found, scratch, n_bytes);
        if (memcmp(found, hash, sizeof found) != 0)
            esp_fail(&why, ESP_E_FORMAT, "its bytes have another hash");
    }
    if (!why.code) {
        (void)futimens(fd, NULL); /* used now; where that cannot be said it counts as older */
        *out = fd;
        return ESP_OK;
    }
    close(fd);
    if (unlinkat(c->fd, path, 0) == 0 && S_ISREG(sb.st_mode) && c->n_bytes >= (uint64_t)sb.st_size)
        c->n_bytes -= (uint64_t)sb.st_size;
    esp_log(c->log, ESP_LOG_WARN, "cache_corrupt chunk=%s/%s why=\"%s\" action=refetch", c->dir, path,
            why.text);
    return esp_fail(err, ESP_E_FORMAT, "%s/%s: %s", c->dir, path, why.text);
}

static bool write_all(int fd, const void *from, size_t n_bytes)
{
    for (size_t n = 0; n < n_bytes;) {
        ssize_t put = write(fd, (const char *)from + n, n_bytes - n);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        n += (size_t)put;
    }
    return true;
}

esp_status esp_cache_put(int *out, struct esp_cache *c, const uint8_t hash[ESP_CACHE_HASH_BYTES],
                         const void *data, size_t n_bytes, struct esp_err *err)
{
    char path[PATH_BYTES], folder[3], left[sizeof UNFINISHED + 40];
    uint64_t mark;
    esp_status st;
    int fd;

    *out = -1;
    st = make_room(c, n_bytes, err);
    if (st)
        return st;
    path_of(path, hash);
    memcpy(folder, path, 2);
    folder[2] = '\0';
    randombytes_buf(&mark, sizeof mark);
    snprintf(left, sizeof left, UNFINISHED "/%016llx", (unsigned long long)mark);
    fd = openat(c->fd, left, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "%s/%s: %s", c->dir, left, strerror(errno));
    (void)flock(fd, LOCK_EX | LOCK_NB); /* without locks its age alone protects it */
    if (!write_all(fd, data, n_bytes) || (mkdirat(c->fd, folder, 0700) != 0 && errno != EEXIST) ||
        renameat(c->fd, left, c->fd, path) != 0) {
        st = esp_fail(err, ESP_E_IO, "%s/%s: %s", c->dir, path, strerror(errno));
        unlinkat(c->fd, left, 0);
        close(fd);
        return st;
    }
    (void)sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* a hint */
    c->n_bytes += n_bytes;
    *out = fd;
    return ESP_OK;
}
