#include "cli/input.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/wire.h"

#define MAX_IMAGE_NAME 200 /* bytes of a picture's name that are sent */

bool esp_input_is_utf8(const char *text, size_t n)
{
    json_t *s = json_stringn(text, n); /* refuses what is not */
    json_decref(s);
    return s != NULL;
}

esp_status esp_input_read(void **out, size_t *n_out, int fd, const char *name, size_t n_hint, size_t max,
                          struct esp_err *err)
{
    size_t n = 0, n_room = n_hint < max ? n_hint + 1 : max + 1;
    char *bytes = malloc(n_room + 1);

    *out = NULL;
    for (;;) {
        ssize_t r;
        if (!bytes)
            return esp_fail(err, ESP_E_NOMEM, "%s: out of memory", name);
        r = read(fd, bytes + n, n_room - n);
        if (r < 0) {
            esp_fail(err, ESP_E_IO, "%s: %s", name, strerror(errno));
            break;
        }
        n += (size_t)r;
        if (r == 0) {
            bytes[n] = '\0';
            *out = bytes;
            *n_out = n;
            return ESP_OK;
        }
        if (n > max) {
            esp_fail(err, ESP_E_LIMIT, "%s: larger than %zu bytes", name, max);
            break;
        }
        if (n == n_room) {
            char *grown;
            n_room = n_room * 2 < max + 1 ? n_room * 2 : max + 1;
            grown = realloc(bytes, n_room + 1);
            if (!grown) {
                esp_fail(err, ESP_E_NOMEM, "%s: out of memory", name);
                break;
            }
            bytes = grown;
        }
    }
    free(bytes);
    return err ? err->code : ESP_E_IO;
}

/* A regular file of no more than a picture may have. @param fd  set in any case; -1: not open */
static esp_status open_image(int *fd, size_t *n_bytes, const char *path, struct esp_err *err)
{
    struct stat info;

    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a FIFO must not hold us here */
    if (*fd < 0 || fstat(*fd, &info) != 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return esp_fail(err, ESP_E_IO, "%s: not a regular file", path);
    if (info.st_size > (off_t)ESP_MAX_IMAGE_FILE)
        return esp_fail(err, ESP_E_LIMIT, "%s: %lld bytes; a picture may have %u", path,
                        (long long)info.st_size, ESP_MAX_IMAGE_FILE);
    *n_bytes = (size_t)info.st_size;
    return ESP_OK;
}

esp_status esp_input_picture(void **out, size_t *n_out, const char *path, struct esp_err *err)
{
    esp_status st = ESP_OK;
    bool from_stdin = strcmp(path, "-") == 0;
    size_t n_hint = 1u << 20;
    int fd = STDIN_FILENO;

    *out = NULL;
    if (from_stdin)
        path = "standard input";
    else
        st = open_image(&fd, &n_hint, path, err);
    if (st == ESP_OK)
        st = esp_input_read(out, n_out, fd, path, n_hint, ESP_MAX_IMAGE_FILE, err);
    if (st == ESP_OK && *n_out == 0) {
        free(*out);
        *out = NULL;
        st = esp_fail(err, ESP_E_FORMAT, "%s: empty", path);
    }
    if (!from_stdin && fd >= 0)
        close(fd);
    return st;
}

char *esp_input_wire_name(const char *path, bool elsewhere)
{
    const char *slash = strrchr(path, '/');
    char *name = strdup(slash && (elsewhere || strlen(path) > MAX_IMAGE_NAME) ? slash + 1 : path);

    if (!name)
        return NULL;
    if (strlen(name) > MAX_IMAGE_NAME)
        name[MAX_IMAGE_NAME] = '\0';
    for (char *p = name; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    }
    if (!esp_input_is_utf8(name, strlen(name))) {
        for (char *p = name; *p; p++) {
            if ((unsigned char)*p >= 0x80)
                *p = '?';
        }
    }
    return name;
}
