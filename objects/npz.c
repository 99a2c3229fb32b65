#include "objects/npz.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "model/dtype.h"
#include "model/json.h"
#include "objects/npy.h"

/* Sizes of zip's records without their variable parts, and their marks. */
#define END_BYTES     22
#define LOCATOR_BYTES 20
#define CENTRAL_BYTES 46
#define LOCAL_BYTES   30
#define END_MARK      0x06054b50u
#define LOCATOR_MARK  0x07064b50u
#define CENTRAL_MARK  0x02014b50u
#define LOCAL_MARK    0x04034b50u

enum { STORED = 0, DEFLATED = 8 };

struct entry {
    char *name;           /* without ".npy" */
    const uint8_t *local; /* its local header; n_left bytes from there to the directory */
    size_t n_left;
    size_t n_packed, n_bytes;
    uint32_t crc;
    unsigned flags, method;
};

struct esp_npz {
    char *file;
    size_t n_entry;
    struct entry *entry; /* by name */
};

static uint32_t u16_at(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32_at(const uint8_t *p)
{
    return u16_at(p) | u16_at(p + 2) << 16;
}

/* The end record, which is last but for a comment; NULL when there is none. */
static const uint8_t *find_end(const uint8_t *bytes, size_t n_bytes)
{
    for (size_t n = END_BYTES; n <= n_bytes && n <= END_BYTES + 65535; n++) {
        const uint8_t *p = bytes + n_bytes - n;
        if (u32_at(p) == END_MARK && u16_at(p + 20) == n - END_BYTES)
            return p;
    }
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* One record of the directory at p, of which n_left bytes are there; *n_used of them are its own. Entries that are no
 * .npy are passed over. */
static esp_status parse_entry(struct esp_npz *npz, size_t *n_used, const uint8_t *p, size_t n_left,
                              const uint8_t *bytes, size_t n_before, struct esp_err *err)
{
    struct entry *e = &npz->entry[npz->n_entry];
    size_t n_name, at;

    if (n_left < CENTRAL_BYTES || u32_at(p) != CENTRAL_MARK)
        return esp_fail(err, ESP_E_FORMAT, "%s: its directory is damaged", npz->file);
    n_name = u16_at(p + 28);
    *n_used = CENTRAL_BYTES + n_name + u16_at(p + 30) + u16_at(p + 32);
    if (*n_used > n_left)
        return esp_fail(err, ESP_E_FORMAT, "%s: its directory is damaged", npz->file);
    if (n_name < 5 || memcmp(p + CENTRAL_BYTES + n_name - 4, ".npy", 4) != 0)
        return ESP_OK;
    n_name -= 4;
    if (n_name > ESP_NPZ_MAX_NAME || memchr(p + CENTRAL_BYTES, 0, n_name))
        return esp_fail(err, ESP_E_FORMAT, "%s: an entry's name is longer than %d bytes or holds NUL",
                        npz->file, ESP_NPZ_MAX_NAME);
    e->name = strndup((const char *)p + CENTRAL_BYTES, n_name);
    if (!e->name)
        return esp_fail(err, ESP_E_NOMEM, "%s: a name", npz->file);
    npz->n_entry++; /* from here esp_npz_destroy frees it */
    e->flags = u16_at(p + 8);
    e->method = u16_at(p + 10);
    e->crc = u32_at(p + 16);
    e->n_packed = u32_at(p + 20);
    e->n_bytes = u32_at(p + 24);
    at = u32_at(p + 42);
    if (e->n_packed == UINT32_MAX || e->n_bytes == UINT32_MAX || at == UINT32_MAX)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: a zip64 archive, which is not read", npz->file);
    if (u16_at(p + 34) != 0)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: an archive in several parts", npz->file);
    if (at > n_before || n_before - at < LOCAL_BYTES)
        return esp_fail(err, ESP_E_FORMAT, "%s: its directory points outside of it", npz->file);
    e->local = bytes + at;
    e->n_left = n_before - at;
    return ESP_OK;
}

esp_status esp_npz_parse(struct esp_npz **out, const void *bytes, size_t n_bytes, const char *file,
                         struct esp_err *err)
{
    struct esp_npz *npz = NULL;
    const uint8_t *b = bytes, *end;
    size_t n_entries, n_dir, dir_at, n_used = 0;
    char shown[ESP_SHOWN];
    esp_status st = ESP_OK;

    *out = NULL;
    end = find_end(b, n_bytes);
    if (!end)
        return esp_fail(err, ESP_E_FORMAT,
                        "%s: no .npz file, or cut off: there is no zip directory at its end", file);
    n_entries = u16_at(end + 10);
    n_dir = u32_at(end + 12);
    dir_at = u32_at(end + 16);
    if (n_entries == UINT16_MAX || n_dir == UINT32_MAX || dir_at == UINT32_MAX ||
        (end - b >= LOCATOR_BYTES && u32_at(end - LOCATOR_BYTES) == LOCATOR_MARK))
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: a zip64 archive, which is not read", file);
    if (u16_at(end + 4) != 0 || u16_at(end + 6) != 0 || u16_at(end + 8) != n_entries)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: an archive in several parts", file);
    if (n_entries > ESP_NPZ_MAX_ENTRIES)
        return esp_fail(err, ESP_E_FORMAT, "%s: %zu entries, takes at most %d", file, n_entries,
                        ESP_NPZ_MAX_ENTRIES);
    if (dir_at > (size_t)(end - b) || n_dir > (size_t)(end - b) - dir_at)
        return esp_fail(err, ESP_E_FORMAT, "%s: its directory lies outside of it: cut off?", file);

    npz = calloc(1, sizeof *npz);
    if (npz) {
        npz->file = strdup(file);
        npz->entry = calloc(n_entries ? n_entries : 1, sizeof *npz->entry);
    }
    if (!npz || !npz->file || !npz->entry) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: %zu entries", file, n_entries);
        goto done;
    }
    for (size_t i = 0, at = dir_at; i < n_entries; i++, at += n_used) {
        st = parse_entry(npz, &n_used, b + at, dir_at + n_dir - at, b, dir_at, err);
        if (st)
            goto done;
    }
    qsort(npz->entry, npz->n_entry, sizeof *npz->entry, by_name);
    for (size_t i = 1; i < npz->n_entry; i++) {
        if (strcmp(npz->entry[i - 1].name, npz->entry[i].name) == 0) {
            st = esp_fail(err, ESP_E_FORMAT, "%s: array %s is there twice", file,
                          esp_shown(shown, npz->entry[i].name));
            goto done;
        }
    }
    *out = npz;
    npz = NULL;
done:
    esp_npz_destroy(&npz);
    return st;
}

void esp_npz_destroy(struct esp_npz **npz)
{
    struct esp_npz *z = *npz;

    *npz = NULL;
    if (!z)
        return;
    for (size_t i = 0; z->entry && i < z->n_entry; i++)
        free(z->entry[i].name);
    free(z->entry);
    free(z->file);
    free(z);
}

size_t esp_npz_n_arrays(const struct esp_npz *npz)
{
    return npz->n_entry;
}

const char *esp_npz_name(const struct esp_npz *npz, size_t i)
{
    return npz->entry[i].name;
}

static const struct entry *find(const struct esp_npz *npz, const char *name)
{
    struct entry key = {.name = (char *)(uintptr_t)name};

    return bsearch(&key, npz->entry, npz->n_entry, sizeof key, by_name);
}

bool esp_npz_has(const struct esp_npz *npz, const char *name)
{
    return find(npz, name) != NULL;
}

/* Where the packed bytes begin: behind the local header, whose lengths may differ from those of the directory (NumPy adds
 * a zip64 field there that says nothing new). */
static esp_status find_data(const uint8_t **out, const struct entry *e, const char *what, struct esp_err *err)
{
    size_t n_head, n_name = strlen(e->name);

    if (u32_at(e->local) != LOCAL_MARK)
        return esp_fail(err, ESP_E_FORMAT, "%s: the directory points to where no entry is", what);
    n_head = LOCAL_BYTES + u16_at(e->local + 26) + u16_at(e->local + 28);
    if (n_head > e->n_left || e->n_packed > e->n_left - n_head)
        return esp_fail(err, ESP_E_FORMAT, "%s: runs into the directory: cut off?", what);
    if (u16_at(e->local + 8) != e->method || u16_at(e->local + 26) != n_name + 4 ||
        memcmp(e->local + LOCAL_BYTES, e->name, n_name) != 0)
        return esp_fail(err, ESP_E_FORMAT, "%s: its header and the directory differ", what);
    *out = e->local + n_head;
    return ESP_OK;
}

/* Inflates exactly n_bytes out of exactly n_packed. */
static esp_status inflate_all(uint8_t *out, size_t n_bytes, const uint8_t *packed, size_t n_packed,
                              const char *what, struct esp_err *err)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)packed,
                  .avail_in = (uInt)n_packed, /* of a 32-bit field, as is the next */
                  .next_out = out,
                  .avail_out = (uInt)n_bytes};
    int code = inflateInit2(&z, -MAX_WBITS); /* raw deflate, without zlib's header */

    if (code != Z_OK)
        return esp_fail(err, ESP_E_NOMEM, "%s: zlib's state", what);
    code = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    if (code == Z_MEM_ERROR)
        return esp_fail(err, ESP_E_NOMEM, "%s: zlib's window", what);
    if (code != Z_STREAM_END || z.avail_in > 0 || z.avail_out > 0)
        return esp_fail(err, ESP_E_FORMAT, "%s: its compressed data is damaged or not of the stated size",
                        what);
    return ESP_OK;
}

esp_status esp_npz_read(struct esp_npz_array *out, const struct esp_npz *npz, const char *name, size_t n_max,
                        struct esp_err *err)
{
    const struct entry *e = find(npz, name);
    struct esp_npy_header h;
    const uint8_t *packed = NULL, *data;
    uint8_t *unpacked = NULL;
    float *values = NULL;
    char what[ESP_ERR_TEXT_MAX - 100], shown[ESP_SHOWN];
    size_t n_most;
    esp_status st;

    *out = (struct esp_npz_array){0};
    if (!e)
        return esp_fail(err, ESP_E_FORMAT, "%s: no array %s", npz->file, esp_shown(shown, name));
    snprintf(what, sizeof what, "%.200s: array %s", npz->file, esp_shown(shown, name));
    if (e->flags & 1)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: encrypted", what);
    if (e->method != STORED && e->method != DEFLATED)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: compression method %u, read are 0 and 8", what,
                        e->method);
    if (!esp_mul(&n_most, n_max, sizeof(float)) || !esp_add(&n_most, n_most, ESP_NPY_MAX_HEADER))
        return esp_fail(err, ESP_E_ARG, "%s: a limit of %zu elements", what, n_max);
    if (e->n_bytes > n_most)
        return esp_fail(err, ESP_E_FORMAT, "%s: %zu bytes, takes at most %zu numbers", what, e->n_bytes,
                        n_max);
    /* Deflate packs at most 1032 to 1: a larger promise is a lie, and no memory is asked for it. */
    if (e->method == STORED ? e->n_packed != e->n_bytes : e->n_bytes / 1032 > e->n_packed)
        return esp_fail(err, ESP_E_FORMAT, "%s: %zu bytes cannot come of %zu", what, e->n_bytes, e->n_packed);
    st = find_data(&packed, e, what, err);
    if (st)
        goto done;
    data = packed;
    if (e->method == DEFLATED) {
        unpacked = malloc(e->n_bytes ? e->n_bytes : 1);
        if (!unpacked) {
            st = esp_fail(err, ESP_E_NOMEM, "%s: %zu bytes", what, e->n_bytes);
            goto done;
        }
        st = inflate_all(unpacked, e->n_bytes, packed, e->n_packed, what, err);
        if (st)
            goto done;
        data = unpacked;
    }
    if (crc32(crc32(0, NULL, 0), data, (uInt)e->n_bytes) != e->crc) {
        st = esp_fail(err, ESP_E_FORMAT, "%s: its checksum is wrong", what);
        goto done;
    }
    st = esp_npy_parse(&h, data, e->n_bytes, what, err);
    if (st)
        goto done;
    if (h.n_elem > n_max) {
        st = esp_fail(err, ESP_E_FORMAT, "%s: %zu numbers, takes at most %zu", what, h.n_elem, n_max);
        goto done;
    }
    values = malloc(h.n_elem ? h.n_elem * sizeof *values : 1); /* cannot overflow: n_max did not */
    if (!values) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: %zu numbers", what, h.n_elem);
        goto done;
    }
    esp_dtype_to_f32(values, data + h.data_at, h.dtype, h.n_elem);
    out->n_dim = h.n_dim;
    memcpy(out->shape, h.shape, sizeof out->shape);
    out->n_elem = h.n_elem;
    out->values = values;
done:
    free(unpacked);
    return st;
}

void esp_npz_array_finish(struct esp_npz_array *array)
{
    free(array->values);
    *array = (struct esp_npz_array){0};
}
