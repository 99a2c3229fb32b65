#include "model/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ /* Linux 5.14 */
#define MADV_POPULATE_READ 22
#endif

static int64_t ns(const struct timespec *t)
{
    return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

static esp_status open_regular(int *out, size_t *n_bytes, struct esp_file_id *id, const char *path,
                               struct esp_err *err)
{
    struct stat sb;
    /* O_NONBLOCK: opening a FIFO would otherwise wait for its writer. It changes nothing for a regular file.
     */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    *out = -1;
    *n_bytes = 0;
    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &sb) != 0) {
        int e = errno;
        close(fd);
        return esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(e));
    }
    if (!S_ISREG(sb.st_mode)) {
        close(fd);
        return esp_fail(err, ESP_E_IO, "%s: not a regular file%s", path,
                        S_ISDIR(sb.st_mode) ? " but a directory" : "");
    }
    if (id)
        *id = (struct esp_file_id){.device = (uint64_t)sb.st_dev,
                                   .inode = (uint64_t)sb.st_ino,
                                   .n_bytes = (uint64_t)sb.st_size,
                                   .modified = ns(&sb.st_mtim),
                                   .changed = ns(&sb.st_ctim)};
    *n_bytes = (size_t)sb.st_size; /* 64 bits on both platforms; never negative for a regular file */
    *out = fd;
    return ESP_OK;
}

esp_status esp_file_read(char **out, size_t *n_bytes, const char *path, size_t n_max, struct esp_err *err)
{
    esp_status st;
    char *data = NULL;
    size_t n_file, n = 0;
    int fd;

    *out = NULL;
    *n_bytes = 0;
    st = open_regular(&fd, &n_file, NULL, path, err);
    if (st)
        return st;
    if (n_file > n_max) {
        st = esp_fail(err, ESP_E_FORMAT, "%s: %zu bytes, expected at most %zu", path, n_file, n_max);
        goto done;
    }
    data = malloc(n_file + 1);
    if (!data) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: %zu bytes", path, n_file);
        goto done;
    }
    while (n < n_file) {
        ssize_t got = read(fd, data + n, n_file - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            st = esp_fail(err, ESP_E_IO, "%s: %s", path,
                          got < 0 ? strerror(errno) : "became shorter while read");
            goto done;
        }
        n += (size_t)got;
    }
    data[n] = '\0';
    *out = data;
    *n_bytes = n;
    data = NULL;
done:
    free(data);
    close(fd);
    return st;
}

esp_status esp_file_map(const void **out, size_t *n_bytes, struct esp_file_id *id, const char *path,
                        struct esp_err *err)
{
    esp_status st;
    void *data = NULL;
    size_t n_file;
    int fd;

    *out = NULL;
    *n_bytes = 0;
    st = open_regular(&fd, &n_file, id, path, err);
    if (st)
        return st;
    if (n_file > 0) { /* an empty mapping is no mapping */
        data = mmap(NULL, n_file, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            st = esp_fail(err, ESP_E_IO, "%s: cannot be mapped: %s", path, strerror(errno));
            data = NULL;
            n_file = 0;
        }
    }
    close(fd); /* the mapping holds the file */
    *out = data;
    *n_bytes = n_file;
    return st;
}

int esp_file_populate(const void *data, size_t n_bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)data / page * page;

    return madvise((void *)from, (uintptr_t)data + n_bytes - from, MADV_POPULATE_READ) == 0 ? 0 : errno;
}

void esp_file_unmap(const void *data, size_t n_bytes)
{
    if (data)
        munmap((void *)(uintptr_t)data, n_bytes);
}

bool esp_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

esp_status esp_file_make_dir(const char *path, struct esp_err *err)
{
    struct stat sb;
    char part[4096];
    size_t n = strlen(path);

    if (n == 0 || n >= sizeof part)
        return esp_fail(err, ESP_E_IO, "a path of %zu bytes for a directory", n);
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (part[i] != '/' && part[i] != '\0')
            continue;
        part[i] = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST)
            return esp_fail(err, ESP_E_IO, "%s: %s", part, strerror(errno));
        if (i < n)
            part[i] = '/';
    }
    if (stat(part, &sb) != 0 || !S_ISDIR(sb.st_mode))
        return esp_fail(err, ESP_E_IO, "%s: not a directory", path);
    return ESP_OK;
}

esp_status esp_file_cache_dir(char *out, size_t n_out, const char *sub, struct esp_err *err)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n;

    if (xdg && *xdg == '/')
        n = snprintf(out, n_out, "%s/espalier/%s", xdg, sub);
    else if (home && *home == '/')
        n = snprintf(out, n_out, "%s/.cache/espalier/%s", home, sub);
    else
        return esp_fail(err, ESP_E_ARG,
                        "no place for a cache: neither XDG_CACHE_HOME nor HOME is an absolute path");
    if (n < 0 || (size_t)n >= n_out)
        return esp_fail(err, ESP_E_ARG, "the path of the cache is too long");
    return ESP_OK;
}
