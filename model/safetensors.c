#include "model/safetensors.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/file.h"
#include "model/json.h"

struct esp_safetensors {
    char *file;
    const void *mapping; /* NULL when the bytes are the caller's */
    size_t n_mapping;
    struct esp_file_id id; /* of the mapped file */
    json_t *header;        /* keeps the strings that the tensors borrow */
    size_t n_tensor;
    struct esp_tensor *tensor; /* by name */
};

/* What the format knows. Types without a dtype of ours are only measured. */
static const struct {
    const char *name;
    uint32_t n_bits;
    enum esp_dtype dtype;
} dtypes[] = {
    {"F32", 32, ESP_F32}, {"F16", 16, ESP_F16}, {"BF16", 16, ESP_BF16}, {"I32", 32, ESP_I32},
    {"U8", 8, ESP_U8},    {"BOOL", 8, 0},       {"I8", 8, 0},           {"I16", 16, 0},
    {"U16", 16, 0},       {"U32", 32, 0},       {"I64", 64, 0},         {"U64", 64, 0},
    {"F64", 64, 0},       {"C64", 64, 0},       {"F8_E4M3", 8, 0},      {"F8_E5M2", 8, 0},
    {"F8_E8M0", 8, 0},    {"F6_E2M3", 6, 0},    {"F6_E3M2", 6, 0},      {"F4", 4, 0},
};

static esp_status bad(const char *file, const char *name, struct esp_err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static esp_status bad(const char *file, const char *name, struct esp_err *err, const char *fmt, ...)
{
    char text[ESP_ERR_TEXT_MAX], shown[ESP_SHOWN];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s: %s", file, esp_shown(shown, name), text);
}

/* A count or offset: an integer from 0 up; jansson refuses what does not fit in 63 bits. */
static bool get_u64(uint64_t *out, const json_t *value)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static esp_status parse_shape(struct esp_tensor *t, size_t *n_elem, const json_t *shape, struct esp_err *err)
{
    char found[ESP_SHOWN];

    if (!json_is_array(shape) || json_array_size(shape) > ESP_TENSOR_MAX_DIM)
        return bad(t->file, t->name, err, "shape: found %s, expected a list of at most %d",
                   shape ? esp_json_describe(found, shape) : "nothing", ESP_TENSOR_MAX_DIM);
    t->n_dim = (uint32_t)json_array_size(shape);
    *n_elem = 1;
    for (uint32_t i = 0; i < t->n_dim; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!get_u64(&t->shape[i], dim))
            return bad(t->file, t->name, err, "shape: found %s, expected an integer from 0 up",
                       esp_json_describe(found, dim));
        if (!esp_mul(n_elem, *n_elem, t->shape[i]))
            return bad(t->file, t->name, err, "shape: the product of its dimensions overflows");
    }
    return ESP_OK;
}

static esp_status parse_tensor(struct esp_tensor *t, const json_t *entry, const unsigned char *data,
                               size_t n_data, struct esp_err *err)
{
    const json_t *dtype = json_object_get(entry, "dtype");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint32_t n_bits = 0;
    uint64_t begin, end;
    size_t n_elem, n_want;
    char found[ESP_SHOWN];
    esp_status st;

    if (!json_is_object(entry))
        return bad(t->file, t->name, err, "found %s, expected an object with dtype, shape and data_offsets",
                   esp_json_describe(found, entry));
    if (!json_is_string(dtype))
        return bad(t->file, t->name, err, "dtype: found %s, expected a string",
                   dtype ? esp_json_describe(found, dtype) : "nothing");
    t->stored_dtype = json_string_value(dtype);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(t->stored_dtype, dtypes[i].name) == 0) {
            n_bits = dtypes[i].n_bits;
            t->dtype = dtypes[i].dtype;
        }
    }
    st = parse_shape(t, &n_elem, json_object_get(entry, "shape"), err);
    if (st)
        return st;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !get_u64(&begin, json_array_get(offsets, 0)) || !get_u64(&end, json_array_get(offsets, 1)))
        return bad(t->file, t->name, err, "data_offsets: found %s, expected a list of two integers from 0 up",
                   offsets ? esp_json_describe(found, offsets) : "nothing");
    if (begin > end)
        return bad(t->file, t->name, err, "data_offsets: begins at %" PRIu64 ", after its end at %" PRIu64,
                   begin, end);
    if (end > n_data)
        return bad(t->file, t->name, err,
                   "ends at byte %" PRIu64 " of the data, of which the file has %zu: truncated?", end,
                   n_data);
    if (n_bits > 0) { /* a dtype that nobody knows yet can only be kept inside the file */
        if (!esp_mul(&n_want, n_elem, n_bits) || n_want % 8 != 0)
            return bad(t->file, t->name, err,
                       "shape: %zu elements of %" PRIu32 " bits are no number of bytes", n_elem, n_bits);
        n_want /= 8;
        if (end - begin != n_want)
            return bad(t->file, t->name, err,
                       "data_offsets: %" PRIu64 " bytes, expected %zu for %zu elements of %s", end - begin,
                       n_want, n_elem, t->stored_dtype);
    }
    t->data = data + begin;
    t->n_bytes = (size_t)(end - begin);
    return ESP_OK;
}

static int by_name(const void *a, const void *b)
{
    const struct esp_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int by_place(const void *a, const void *b)
{
    const struct esp_tensor *x = *(const struct esp_tensor *const *)a,
                            *y = *(const struct esp_tensor *const *)b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;

    if (p != q)
        return p < q ? -1 : 1;
    return x->n_bytes < y->n_bytes ? -1 : x->n_bytes > y->n_bytes; /* an empty one before its neighbour */
}

/* The format's rule: in file order each tensor begins where the one before ended, the last ends with the
 * file. */
static esp_status check_cover(const struct esp_safetensors *s, const unsigned char *data, size_t n_data,
                              struct esp_err *err)
{
    esp_status st = ESP_OK;
    const struct esp_tensor **order = calloc(s->n_tensor ? s->n_tensor : 1, sizeof(struct esp_tensor *));
    size_t n_done = 0;
    char shown[ESP_SHOWN];

    if (!order)
        return esp_fail(err, ESP_E_NOMEM, "%s: %zu tensors", s->file, s->n_tensor);
    for (size_t i = 0; i < s->n_tensor; i++)
        order[i] = &s->tensor[i];
    qsort(order, s->n_tensor, sizeof *order, by_place);
    for (size_t i = 0; i < s->n_tensor && !st; i++) {
        size_t begin = (size_t)((const unsigned char *)order[i]->data - data);
        if (begin < n_done)
            st = bad(s->file, order[i]->name, err,
                     "begins at byte %zu of the data and overlaps %s, which ends at %zu", begin,
                     esp_shown(shown, order[i - 1]->name), n_done);
        else if (begin > n_done)
            st = bad(s->file, order[i]->name, err, "begins at byte %zu of the data, expected %zu: a gap",
                     begin, n_done);
        n_done = begin + order[i]->n_bytes;
    }
    if (!st && n_done != n_data)
        st = esp_fail(err, ESP_E_FORMAT, "%s: %zu bytes of data, but the last tensor ends at %zu", s->file,
                      n_data, n_done);
    free(order);
    return st;
}

static esp_status parse(struct esp_safetensors *s, const unsigned char *bytes, size_t n_bytes,
                        struct esp_err *err)
{
    uint64_t n_header = 0;
    size_t n_data, i = 0;
    const unsigned char *data;
    const char *name;
    json_t *entry;
    esp_status st;

    if (n_bytes < 8)
        return esp_fail(err, ESP_E_FORMAT,
                        "%s: %zu bytes, expected at least the 8 of a safetensors header's length", s->file,
                        n_bytes);
    for (int b = 7; b >= 0; b--)
        n_header = n_header << 8 | bytes[b];
    if (n_header > n_bytes - 8)
        return esp_fail(err, ESP_E_FORMAT,
                        "%s: a header of %" PRIu64
                        " bytes, but the file has %zu after its length: truncated, "
                        "or no safetensors file",
                        s->file, n_header, n_bytes - 8);
    if (n_header > ESP_SAFETENSORS_MAX_HEADER)
        return esp_fail(err, ESP_E_FORMAT, "%s: a header of %" PRIu64 " bytes, expected at most %zu", s->file,
                        n_header, ESP_SAFETENSORS_MAX_HEADER);
    data = bytes + 8 + n_header;
    n_data = n_bytes - 8 - (size_t)n_header;
    st = esp_json_parse(&s->header, (const char *)bytes + 8, (size_t)n_header, s->file, err);
    if (st)
        return st;
    s->tensor = calloc(json_object_size(s->header) + 1, sizeof *s->tensor);
    if (!s->tensor)
        return esp_fail(err, ESP_E_NOMEM, "%s: %zu tensors", s->file, json_object_size(s->header));
    json_object_foreach(s->header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) /* words about the file */
            continue;
        s->tensor[i].file = s->file;
        s->tensor[i].file_id = s->mapping ? &s->id : NULL;
        s->tensor[i].name = name;
        st = parse_tensor(&s->tensor[i], entry, data, n_data, err);
        if (st)
            return st;
        s->tensor[i].file_at = (uint64_t)((const unsigned char *)s->tensor[i].data - bytes);
        i++;
    }
    s->n_tensor = i;
    qsort(s->tensor, s->n_tensor, sizeof *s->tensor, by_name);
    return check_cover(s, data, n_data, err);
}

static esp_status create(struct esp_safetensors **out, const char *file, struct esp_err *err)
{
    struct esp_safetensors *s = calloc(1, sizeof *s);

    *out = NULL;
    if (s)
        s->file = strdup(file);
    if (!s || !s->file) {
        esp_safetensors_destroy(&s);
        return esp_fail(err, ESP_E_NOMEM, "%s: its description", file);
    }
    *out = s;
    return ESP_OK;
}

esp_status esp_safetensors_open(struct esp_safetensors **out, const char *path, struct esp_err *err)
{
    esp_status st = create(out, path, err);

    if (st)
        return st;
    st = esp_file_map(&(*out)->mapping, &(*out)->n_mapping, &(*out)->id, path, err);
    if (!st)
        st = parse(*out, (*out)->mapping, (*out)->n_mapping, err);
    if (st)
        esp_safetensors_destroy(out);
    return st;
}

esp_status esp_safetensors_parse(struct esp_safetensors **out, const void *data, size_t n_bytes,
                                 const char *file, struct esp_err *err)
{
    esp_status st = create(out, file, err);

    if (st)
        return st;
    st = parse(*out, data, n_bytes, err);
    if (st)
        esp_safetensors_destroy(out);
    return st;
}

void esp_safetensors_destroy(struct esp_safetensors **st)
{
    struct esp_safetensors *s = *st;

    *st = NULL;
    if (!s)
        return;
    free(s->tensor);
    json_decref(s->header);
    esp_file_unmap(s->mapping, s->n_mapping);
    free(s->file);
    free(s);
}

size_t esp_safetensors_n_tensor(const struct esp_safetensors *st)
{
    return st->n_tensor;
}

const struct esp_tensor *esp_safetensors_tensor(const struct esp_safetensors *st, size_t i)
{
    return &st->tensor[i];
}

const char *esp_safetensors_metadata(const struct esp_safetensors *st, const char *key)
{
    return json_string_value(json_object_get(json_object_get(st->header, "__metadata__"), key));
}

const struct esp_tensor *esp_safetensors_find(const struct esp_safetensors *st, const char *name)
{
    struct esp_tensor key = {.name = name};
    return bsearch(&key, st->tensor, st->n_tensor, sizeof *st->tensor, by_name);
}
