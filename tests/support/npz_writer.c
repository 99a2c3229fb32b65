#include "tests/support/npz_writer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define NPY_HEAD 128 /* bytes before the numbers */

static void *check(void *p)
{
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

static void append(uint8_t **to, size_t *n_to, const void *data, size_t n)
{
    *to = check(realloc(*to, *n_to + n + 1));
    if (n)
        memcpy(*to + *n_to, data, n);
    *n_to += n;
}

static void put(uint8_t *p, uint32_t v, int n)
{
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static uint8_t *deflate_all(size_t *n_out, const void *data, size_t n)
{
    z_stream s = {0};
    uint8_t *out;

    if (deflateInit2(&s, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        check(NULL);
    *n_out = deflateBound(&s, n);
    out = check(malloc(*n_out));
    s.next_in = (Bytef *)(uintptr_t)data;
    s.avail_in = (uInt)n;
    s.next_out = out;
    s.avail_out = (uInt)*n_out;
    if (deflate(&s, Z_FINISH) != Z_STREAM_END) {
        fprintf(stderr, "deflate did not end\n");
        exit(1);
    }
    *n_out = s.total_out;
    deflateEnd(&s);
    return out;
}

void esp_npz_out_raw(struct esp_npz_out *z, const char *entry, const void *data, size_t n, bool deflated)
{
    size_t n_name = strlen(entry), n_packed = n, at = z->n_bytes;
    uint8_t *packed = deflated ? deflate_all(&n_packed, data, n) : NULL;
    uint32_t crc = (uint32_t)crc32(crc32(0, NULL, 0), data, (uInt)n);
    uint8_t local[30] = "PK\3\4\24", central[46] = "PK\1\2\24\0\24";

    put(local + 8, deflated ? 8 : 0, 2);
    put(local + 14, crc, 4);
    put(local + 18, (uint32_t)n_packed, 4);
    put(local + 22, (uint32_t)n, 4);
    put(local + 26, (uint32_t)n_name, 2);
    memcpy(central + 10, local + 8, 2);
    memcpy(central + 16, local + 14, 14);
    put(central + 42, (uint32_t)at, 4);
    append(&z->bytes, &z->n_bytes, local, sizeof local);
    append(&z->bytes, &z->n_bytes, entry, n_name);
    append(&z->bytes, &z->n_bytes, deflated ? packed : data, n_packed);
    append(&z->dir, &z->n_dir, central, sizeof central);
    append(&z->dir, &z->n_dir, entry, n_name);
    z->n_entries++;
    free(packed);
}

/* A float that is a normal half or zero. */
static uint16_t half_of(float v)
{
    int e;
    float m = frexpf(fabsf(v), &e);

    if (v == 0.0f)
        return 0;
    return (uint16_t)((v < 0 ? 0x8000 : 0) | (e + 14) << 10 | ((int)(m * 2048.0f) & 1023));
}

void esp_npz_out_array(struct esp_npz_out *z, const char *name, const float *values, const size_t *shape,
                       size_t n_dim, bool half, bool deflated)
{
    char entry[256], dict[256];
    uint8_t *npy;
    size_t n_elem = 1, each = half ? 2 : 4, n;

    n = (size_t)snprintf(dict, sizeof dict, "{'descr': '<f%zu', 'fortran_order': False, 'shape': (", each);
    for (size_t i = 0; i < n_dim; i++) {
        n += (size_t)snprintf(dict + n, sizeof dict - n, "%zu,", shape[i]);
        n_elem *= shape[i];
    }
    n += (size_t)snprintf(dict + n, sizeof dict - n, "), }");
    npy = check(malloc(NPY_HEAD + n_elem * each));
    memcpy(npy, "\x93NUMPY\1\0", 8);
    put(npy + 8, NPY_HEAD - 10, 2);
    memset(npy + 10, ' ', NPY_HEAD - 11);
    memcpy(npy + 10, dict, n);
    npy[NPY_HEAD - 1] = '\n';
    if (!half)
        memcpy(npy + NPY_HEAD, values, n_elem * each);
    for (size_t i = 0; half && i < n_elem; i++)
        put(npy + NPY_HEAD + i * each, half_of(values[i]), 2);
    snprintf(entry, sizeof entry, "%s.npy", name);
    esp_npz_out_raw(z, entry, npy, NPY_HEAD + n_elem * each, deflated);
    free(npy);
}

void esp_npz_out_end(struct esp_npz_out *z)
{
    uint8_t end[22] = "PK\5\6", *exact;

    put(end + 8, z->n_entries, 2);
    put(end + 10, z->n_entries, 2);
    put(end + 12, (uint32_t)z->n_dir, 4);
    put(end + 16, (uint32_t)z->n_bytes, 4);
    append(&z->bytes, &z->n_bytes, z->dir, z->n_dir);
    append(&z->bytes, &z->n_bytes, end, sizeof end);
    exact = check(malloc(z->n_bytes)); /* so that ASan sees the first byte too many */
    memcpy(exact, z->bytes, z->n_bytes);
    free(z->bytes);
    free(z->dir);
    z->bytes = exact;
    z->dir = NULL;
}
