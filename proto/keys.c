/* Key files. Z85 is read here rather than by libzmq, whose decoder takes groups that pass 2^32 for others. */
#include "proto/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char z85[] =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

const char *esp_member_name(enum esp_member role)
{
    return role == ESP_MEMBER_COORDINATOR ? "coordinator"
           : role == ESP_MEMBER_WORKER    ? "worker"
           : role == ESP_MEMBER_CLIENT    ? "client"
                                          : "nobody";
}

/* ---- one key ---- */

void esp_key_format(char out[ESP_KEY_TEXT + 1], const uint8_t key[ESP_KEY_BYTES])
{
    for (int group = 0; group < ESP_KEY_BYTES / 4; group++) {
        const uint8_t *k = key + 4 * group;
        uint32_t v = (uint32_t)k[0] << 24 | (uint32_t)k[1] << 16 | (uint32_t)k[2] << 8 | k[3];

        for (int i = 4; i >= 0; i--, v /= 85)
            out[5 * group + i] = z85[v % 85];
    }
    out[ESP_KEY_TEXT] = '\0';
}

bool esp_key_parse(uint8_t out[ESP_KEY_BYTES], const char *text, size_t n)
{
    bool good = n == ESP_KEY_TEXT;

    memset(out, 0, ESP_KEY_BYTES);
    for (size_t group = 0; good && group < ESP_KEY_BYTES / 4; group++) {
        uint64_t v = 0;

        for (size_t i = 0; good && i < 5; i++) {
            const char c = text[5 * group + i];
            const char *digit = c ? strchr(z85, c) : NULL;

            good = digit != NULL;
            v = v * 85 + (good ? (uint64_t)(digit - z85) : 0);
        }
        good &= v <= UINT32_MAX; /* 85^5 is a little more */
        for (int i = 0; i < 4; i++)
            out[4 * group + (size_t)i] = (uint8_t)(v >> (24 - 8 * i));
    }
    if (!good)
        memset(out, 0, ESP_KEY_BYTES);
    return good;
}

bool esp_key_equal(const uint8_t *a, const uint8_t *b)
{
    return sodium_memcmp(a, b, ESP_KEY_BYTES) == 0;
}

esp_status esp_key_pair_make(uint8_t public_key[ESP_KEY_BYTES], uint8_t secret[ESP_KEY_BYTES],
                             struct esp_err *err)
{
    _Static_assert(crypto_box_PUBLICKEYBYTES == ESP_KEY_BYTES && crypto_box_SECRETKEYBYTES == ESP_KEY_BYTES,
                   "CURVE keys are those of crypto_box");

    if (sodium_init() < 0 || crypto_box_keypair(public_key, secret) != 0)
        return esp_fail(err, ESP_E_INTERNAL, "libsodium makes no keys");
    return ESP_OK;
}

esp_status esp_key_public(uint8_t public_key[ESP_KEY_BYTES], const uint8_t secret[ESP_KEY_BYTES],
                          struct esp_err *err)
{
    if (crypto_scalarmult_base(public_key, secret) != 0)
        return esp_fail(err, ESP_E_FORMAT, "not a secret key");
    return ESP_OK;
}

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
}

static bool name_ok(const char *name, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!is_name_char(name[i]))
            return false;
    return n >= 1 && n <= ESP_MAX_NAME && name[0] != '.' && name[0] != '-';
}

bool esp_key_name_ok(const char *name)
{
    return name_ok(name, strlen(name));
}

/* ---- lists ---- */

void esp_key_list_finish(struct esp_key_list *list)
{
    if (list->at)
        sodium_memzero(list->at, list->n * sizeof *list->at);
    free(list->at);
    memset(list, 0, sizeof *list);
}

const struct esp_key_entry *esp_key_list_named(const struct esp_key_list *list, const char *name)
{
    for (uint32_t i = 0; i < list->n; i++)
        if (strcmp(list->at[i].name, name) == 0)
            return &list->at[i];
    return NULL;
}

const struct esp_key_entry *esp_key_list_find(const struct esp_key_list *list,
                                              const uint8_t key[ESP_KEY_BYTES])
{
    for (uint32_t i = 0; i < list->n; i++)
        if (esp_key_equal(list->at[i].key, key))
            return &list->at[i];
    return NULL;
}

esp_status esp_key_list_add(struct esp_key_list *list, const char *name, const uint8_t key[ESP_KEY_BYTES],
                            struct esp_err *err)
{
    struct esp_key_entry *grown;

    if (esp_key_list_named(list, name))
        return esp_fail(err, ESP_E_ARG, "%s is there twice", name);
    if (esp_key_list_find(list, key))
        return esp_fail(err, ESP_E_ARG, "%s has the key of %s", name, esp_key_list_find(list, key)->name);
    if (list->n == ESP_KEYS_A_FILE)
        return esp_fail(err, ESP_E_LIMIT, "more than %d keys", ESP_KEYS_A_FILE);
    /* A list may hold secrets, so what it grows out of is wiped: no realloc. */
    grown = calloc(list->n + 1, sizeof *grown);
    if (!grown)
        return esp_fail(err, ESP_E_NOMEM, "a list of %u keys", list->n + 1);
    if (list->n > 0)
        memcpy(grown, list->at, list->n * sizeof *grown);
    snprintf(grown[list->n].name, sizeof grown[list->n].name, "%s", name);
    memcpy(grown[list->n].key, key, ESP_KEY_BYTES);
    if (list->at)
        sodium_memzero(list->at, list->n * sizeof *list->at);
    free(list->at);
    list->at = grown;
    list->n++;
    return ESP_OK;
}

/* ---- text ---- */

struct word {
    const char *at;
    size_t n;
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* The next word of a line of n bytes from *at on; n 0: none is left. */
static struct word next_word(const char *line, size_t n, size_t *at)
{
    struct word w;

    while (*at < n && is_space(line[*at]))
        (*at)++;
    w.at = line + *at;
    while (*at < n && !is_space(line[*at]))
        (*at)++;
    w.n = (size_t)(line + *at - w.at);
    return w;
}

static bool is_word(struct word w, const char *text)
{
    return w.n == strlen(text) && memcmp(w.at, text, w.n) == 0;
}

static esp_status take_line(struct esp_key_list *out, const char *line, size_t n, bool secret,
                            struct esp_err *err)
{
    const char *want = secret ? "secret" : "public", *other = secret ? "public" : "secret";
    uint8_t key[ESP_KEY_BYTES];
    char name[ESP_MAX_NAME + 1] = "";
    size_t at = 0;
    struct word kind = next_word(line, n, &at), called, text;
    esp_status st;

    if (kind.n == 0 || kind.at[0] == '#')
        return ESP_OK;
    if (is_word(kind, other))
        return esp_fail(err, ESP_E_FORMAT, "a %s key, where a %s one belongs", other, want);
    if (!is_word(kind, want))
        return esp_fail(err, ESP_E_FORMAT, "does not begin with '%s'", want);
    called = next_word(line, n, &at);
    if (!name_ok(called.at, called.n))
        return esp_fail(
            err, ESP_E_FORMAT,
            "a name has 1 to %d of A-Z, a-z, 0-9, '.', '_' and '-', and begins with neither '.' nor '-'",
            ESP_MAX_NAME);
    memcpy(name, called.at, called.n);
    text = next_word(line, n, &at);
    if (!esp_key_parse(key, text.at,
                       text.n)) /* what is there instead may be half a secret: it is not shown */
        return esp_fail(err, ESP_E_FORMAT, "%s: not a key, which is %d characters of Z85", name,
                        ESP_KEY_TEXT);
    if (next_word(line, n, &at).n > 0)
        st = esp_fail(err, ESP_E_FORMAT, "%s: something follows the key", name);
    else
        st = esp_key_list_add(out, name, key, err);
    sodium_memzero(key, sizeof key);
    return st == ESP_E_ARG ? esp_fail(err, ESP_E_FORMAT, "%s is there already, by name or by key", name) : st;
}

esp_status esp_key_list_parse(struct esp_key_list *out, const void *text, size_t n, bool secret,
                              struct esp_err *err)
{
    const char *line = text;
    uint32_t number = 1;
    esp_status st = ESP_OK;

    memset(out, 0, sizeof *out);
    while (!st && n > 0) {
        const char *end = memchr(line, '\n', n);
        const size_t n_line = end ? (size_t)(end - line) : n;

        st = take_line(out, line, n_line, secret, err);
        if (st)
            esp_err_prefix(err, "line %u: ", number);
        number++;
        n -= n_line + (end != NULL);
        line += n_line + (end != NULL);
    }
    if (st)
        esp_key_list_finish(out);
    return st;
}

/* ---- files ---- */

static esp_status read_whole(char **out, size_t *n, int fd, bool secret, struct esp_err *err)
{
    struct stat info;

    if (fstat(fd, &info) != 0)
        return esp_fail(err, ESP_E_IO, "%s", strerror(errno));
    if (!S_ISREG(info.st_mode))
        return esp_fail(err, ESP_E_IO, "not a regular file");
    if (secret && (info.st_mode & (S_IRWXG | S_IRWXO)))
        return esp_fail(err, ESP_E_ARG, "others can get at this secret (mode %04o): chmod 600 it",
                        (unsigned)info.st_mode & 07777u);
    if (info.st_size > (off_t)ESP_KEY_FILE_MAX)
        return esp_fail(err, ESP_E_LIMIT, "more than %u bytes", ESP_KEY_FILE_MAX);
    *out = malloc((size_t)info.st_size + 1);
    if (!*out)
        return esp_fail(err, ESP_E_NOMEM, "%lld bytes", (long long)info.st_size);
    *n = 0;
    while (*n < (size_t)info.st_size) {
        const ssize_t got = read(fd, *out + *n, (size_t)info.st_size - *n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return esp_fail(err, ESP_E_IO, "%s", strerror(errno));
        if (got == 0)
            break;
        *n += (size_t)got;
    }
    return ESP_OK;
}

esp_status esp_key_file_read(struct esp_key_list *out, const char *path, bool secret, struct esp_err *err)
{
    char *text = NULL;
    size_t n = 0;
    esp_status st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hold us */

    memset(out, 0, sizeof *out);
    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    st = read_whole(&text, &n, fd, secret, err);
    if (!st)
        st = esp_key_list_parse(out, text, n, secret, err);
    if (st)
        esp_err_prefix(err, "%s: ", path);
    if (text)
        sodium_memzero(text, n);
    free(text);
    close(fd);
    return st;
}

static esp_status write_lines(FILE *f, const struct esp_key_list *list, bool secret, const char *comment)
{
    char text[ESP_KEY_TEXT + 1];
    bool good = fprintf(f, "# %s\n", comment) > 0;

    for (uint32_t i = 0; good && i < list->n; i++) {
        esp_key_format(text, list->at[i].key);
        good = fprintf(f, "%s %s %s\n", secret ? "secret" : "public", list->at[i].name, text) > 0;
    }
    sodium_memzero(text, sizeof text);
    return good && fflush(f) == 0 && fsync(fileno(f)) == 0 ? ESP_OK : ESP_E_IO;
}

esp_status esp_key_file_write(const char *path, const struct esp_key_list *list, bool secret,
                              const char *comment, struct esp_err *err)
{
    char fresh[4096];
    FILE *f = NULL;
    esp_status st = ESP_OK;
    int fd;

    if (snprintf(fresh, sizeof fresh, "%s.XXXXXX", path) >= (int)sizeof fresh)
        return esp_fail(err, ESP_E_ARG, "a path of more than %zu bytes", sizeof fresh);
    fd = mkstemp(fresh); /* made with mode 0600 */
    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", fresh, strerror(errno));
    f = fdopen(fd, "w");
    if (!f)
        close(fd);
    if (!f || (!secret && fchmod(fd, 0644) != 0) || write_lines(f, list, secret, comment) != ESP_OK)
        st = esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    if (f && fclose(f) != 0 && !st)
        st = esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    if (!st && rename(fresh, path) != 0)
        st = esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    if (st)
        unlink(fresh);
    return st;
}

/* ---- a role's directory ---- */

static esp_status path_in(char *out, size_t n_out, const char *dir, const char *file, struct esp_err *err)
{
    if (snprintf(out, n_out, "%s/%s", dir, file) >= (int)n_out)
        return esp_fail(err, ESP_E_ARG, "--keys %s: too long a path", dir);
    return ESP_OK;
}

/* The one key of a file. */
static esp_status read_one(struct esp_key_entry *out, const char *dir, const char *file, bool secret,
                           struct esp_err *err)
{
    struct esp_key_list list = {0};
    char path[1200];
    esp_status st = path_in(path, sizeof path, dir, file, err);

    if (!st)
        st = esp_key_file_read(&list, path, secret, err);
    if (!st && list.n != 1)
        st = esp_fail(err, ESP_E_FORMAT, "%s: %u keys, takes one", path, list.n);
    if (!st)
        *out = list.at[0];
    esp_key_list_finish(&list);
    return st;
}

static esp_status read_list(struct esp_key_list *out, const char *dir, const char *file, struct esp_err *err)
{
    char path[1200];
    esp_status st = path_in(path, sizeof path, dir, file, err);

    return st ? st : esp_key_file_read(out, path, false, err);
}

esp_status esp_keys_open(struct esp_keys **out, const char *dir, enum esp_member role, struct esp_err *err)
{
    struct esp_keys *keys = calloc(1, sizeof *keys);
    struct esp_key_entry entry = {0};
    esp_status st = ESP_OK;

    *out = NULL;
    if (!keys)
        return esp_fail(err, ESP_E_NOMEM, "keys");
    keys->member = role;
    if (snprintf(keys->dir, sizeof keys->dir, "%s", dir) >= (int)sizeof keys->dir) {
        st = esp_fail(err, ESP_E_ARG, "--keys %s: too long a path", dir);
        goto done;
    }
    if (sodium_init() < 0) {
        st = esp_fail(err, ESP_E_INTERNAL, "libsodium does not start");
        goto done;
    }
    st = read_one(&entry, dir, ESP_FILE_SECRET, true, err);
    if (st == ESP_E_IO)
        esp_err_prefix(err, "not a %s's keys ('espalier keygen' makes them, a folder for each): ",
                       esp_member_name(role));
    if (st)
        goto done;
    memcpy(keys->name, entry.name, sizeof keys->name);
    memcpy(keys->secret, entry.key, sizeof keys->secret);
    st = esp_key_public(keys->public_key, keys->secret, err);
    if (!st && role == ESP_MEMBER_COORDINATOR)
        memcpy(keys->coordinator, keys->public_key, sizeof keys->coordinator);
    if (!st && role != ESP_MEMBER_COORDINATOR) {
        st = read_one(&entry, dir, ESP_FILE_SERVER, false, err);
        memcpy(keys->coordinator, entry.key, sizeof keys->coordinator);
    }
    if (!st && role != ESP_MEMBER_CLIENT)
        st = read_list(&keys->workers, dir, ESP_FILE_WORKERS, err);
    if (!st && role == ESP_MEMBER_COORDINATOR)
        st = read_list(&keys->clients, dir, ESP_FILE_CLIENTS, err);
    if (st)
        goto done;
    *out = keys;
    keys = NULL;
done:
    sodium_memzero(&entry, sizeof entry);
    esp_keys_destroy(&keys);
    return st;
}

void esp_keys_destroy(struct esp_keys **keys)
{
    if (!*keys)
        return;
    esp_key_list_finish(&(*keys)->workers);
    esp_key_list_finish(&(*keys)->clients);
    sodium_memzero(*keys, sizeof **keys);
    free(*keys);
    *keys = NULL;
}

void esp_keys_identity(char out[ESP_MAX_NAME + 18], const struct esp_keys *keys, const char *name)
{
    uint8_t hash[crypto_generichash_BYTES_MIN]; /* 16 */

    crypto_generichash(hash, crypto_generichash_BYTES_MIN, (const uint8_t *)name, strlen(name), keys->secret,
                       sizeof keys->secret);
    snprintf(out, ESP_MAX_NAME + 18, "%.*s/%02x%02x%02x%02x%02x%02x%02x%02x", ESP_MAX_NAME, name, hash[0],
             hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]);
}
