/*
 * A writer holds a lock on its unfinished file. One that nobody has locked is what a killed process left.
 */
#include "worker/store.h"

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
#define HEX_BYTES    (2 * ESP_STORE_NAME_BYTES)
#define LEFT_PATH    (sizeof UNFINISHED + 40)

struct esp_store {
    char *dir;
    int fd; /* of dir */
    uint64_t limit_bytes;
    uint64_t n_bytes; /* of all files, as far as we know; only with a limit */
    esp_store_keep keep;
    void *keep_arg;
};

void esp_store_path(char out[ESP_STORE_PATH], const uint8_t name[ESP_STORE_NAME_BYTES])
{
    sodium_bin2hex(out + 1, HEX_BYTES + 1, name, ESP_STORE_NAME_BYTES);
    out[0] = out[1];
    out[1] = out[2];
    out[2] = '/';
}

/* The name that such a path has; false for files that are none of ours. */
static bool name_of(uint8_t *out, const char *folder, const char *rest)
{
    char hex[HEX_BYTES + 1];

    if (strlen(folder) != 2 || strlen(rest) != HEX_BYTES - 2)
        return false;
    snprintf(hex, sizeof hex, "%s%s", folder, rest);
    return sodium_hex2bin(out, ESP_STORE_NAME_BYTES, hex, HEX_BYTES, NULL, NULL, NULL) == 0;
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
    uint8_t name[ESP_STORE_NAME_BYTES];
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
static bool list(struct entry **out, size_t *n, const struct esp_store *c)
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

            if (!name_of(one.name, f->d_name, e->d_name) ||
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
static esp_status make_room(struct esp_store *c, uint64_t n_bytes, struct esp_err *err)
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
        char path[ESP_STORE_PATH];

        if (c->keep && c->keep(c->keep_arg, entries[i].name)) {
            kept += entries[i].n_bytes;
            continue;
        }
        esp_store_path(path, entries[i].name);
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
static void remove_left(const struct esp_store *c)
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

esp_status esp_store_open(struct esp_store **out, const char *dir, uint64_t limit_bytes, esp_store_keep keep,
                          void *keep_arg, struct esp_err *err)
{
    struct esp_store *c = calloc(1, sizeof *c);
    struct entry *entries = NULL;
    size_t n;
    esp_status st;

    *out = NULL;
    if (c) {
        c->fd = -1;
        c->dir = strdup(dir);
    }
    if (!c || !c->dir) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: a directory of weights", dir);
        goto done;
    }
    c->limit_bytes = limit_bytes;
    c->keep = keep;
    c->keep_arg = keep_arg;
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
    esp_store_destroy(&c);
    return st;
}

void esp_store_destroy(struct esp_store **store)
{
    struct esp_store *c = *store;

    *store = NULL;
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd);
    free(c->dir);
    free(c);
}

const char *esp_store_dir(const struct esp_store *c)
{
    return c->dir;
}

/* ---- files ---- */

esp_status esp_store_find(int *out, uint64_t *n_bytes, const struct esp_store *c,
                          const uint8_t name[ESP_STORE_NAME_BYTES], struct esp_err *err)
{
    char path[ESP_STORE_PATH];
    struct stat sb;
    esp_status st = ESP_OK;
    int fd;

    *out = -1;
    *n_bytes = 0;
    esp_store_path(path, name);
    fd = openat(c->fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return esp_fail(err, ESP_E_CLOSED, "%s/%s: not there", c->dir, path);
    if (fd < 0 || fstat(fd, &sb) != 0)
        st = esp_fail(err, ESP_E_IO, "%s/%s: %s", c->dir, path, strerror(errno));
    else if (!S_ISREG(sb.st_mode))
        st = esp_fail(err, ESP_E_FORMAT, "%s/%s: not a regular file", c->dir, path);
    if (st) {
        if (fd >= 0)
            close(fd);
        return st;
    }
    *out = fd;
    *n_bytes = (uint64_t)sb.st_size;
    return ESP_OK;
}

void esp_store_used(int fd)
{
    (void)futimens(fd, NULL);
}

void esp_store_remove(struct esp_store *c, const uint8_t name[ESP_STORE_NAME_BYTES])
{
    char path[ESP_STORE_PATH];
    struct stat sb;

    esp_store_path(path, name);
    if (fstatat(c->fd, path, &sb, AT_SYMLINK_NOFOLLOW) == 0 && unlinkat(c->fd, path, 0) == 0 &&
        S_ISREG(sb.st_mode) && c->n_bytes >= (uint64_t)sb.st_size)
        c->n_bytes -= (uint64_t)sb.st_size;
}

static void left_path(char out[LEFT_PATH], uint64_t mark)
{
    snprintf(out, LEFT_PATH, UNFINISHED "/%016llx", (unsigned long long)mark);
}

esp_status esp_store_begin(struct esp_store_draft *out, struct esp_store *c, uint64_t n_bytes,
                           struct esp_err *err)
{
    char left[LEFT_PATH];
    esp_status st;

    out->fd = -1;
    st = make_room(c, n_bytes, err);
    if (st)
        return st;
    randombytes_buf(&out->mark, sizeof out->mark);
    left_path(left, out->mark);
    out->fd = openat(c->fd, left, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (out->fd < 0)
        return esp_fail(err, ESP_E_IO, "%s/%s: %s", c->dir, left, strerror(errno));
    (void)flock(out->fd, LOCK_EX | LOCK_NB); /* without locks its age alone protects it */
    return ESP_OK;
}

esp_status esp_store_commit(struct esp_store *c, const struct esp_store_draft *draft, uint64_t n_bytes,
                            const uint8_t name[ESP_STORE_NAME_BYTES], struct esp_err *err)
{
    char path[ESP_STORE_PATH], folder[3], left[LEFT_PATH];

    esp_store_path(path, name);
    memcpy(folder, path, 2);
    folder[2] = '\0';
    left_path(left, draft->mark);
    if ((mkdirat(c->fd, folder, 0700) != 0 && errno != EEXIST) || renameat(c->fd, left, c->fd, path) != 0) {
        esp_status st = esp_fail(err, ESP_E_IO, "%s/%s: %s", c->dir, path, strerror(errno));
        unlinkat(c->fd, left, 0);
        return st;
    }
    (void)sync_file_range(draft->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* a hint: little is lost with the power */
    c->n_bytes += n_bytes;
    return ESP_OK;
}

void esp_store_abandon(struct esp_store *c, const struct esp_store_draft *draft)
{
    char left[LEFT_PATH];

    left_path(left, draft->mark);
    unlinkat(c->fd, left, 0);
}

bool esp_store_read_at(int fd, void *to, size_t n_bytes, uint64_t at)
{
    for (size_t n = 0; n < n_bytes;) {
        ssize_t got = pread(fd, (char *)to + n, n_bytes - n, (off_t)(at + n));

        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0)
            errno = 0;
        if (got <= 0)
            return false;
        n += (size_t)got;
    }
    return true;
}

bool esp_store_write_at(int fd, const void *from, size_t n_bytes, uint64_t at)
{
    for (size_t n = 0; n < n_bytes;) {
        ssize_t put = pwrite(fd, (const char *)from + n, n_bytes - n, (off_t)(at + n));

        if (put < 0 && errno == EINTR)
            continue;
        if (put == 0)
            errno = ENOSPC;
        if (put <= 0)
            return false;
        n += (size_t)put;
    }
    return true;
}
