#include "objects/npy.h"

#include <string.h>

#include "model/json.h"

/* What is left of the dictionary's text. */
struct text {
    const char *p, *end;
};

static void skip_space(struct text *t)
{
    while (t->p < t->end && (*t->p == ' ' || *t->p == '\t' || *t->p == '\n' || *t->p == '\r'))
        t->p++;
}

/* Takes the character, after white space. */
static bool take(struct text *t, char c)
{
    skip_space(t);
    if (t->p == t->end || *t->p != c)
        return false;
    t->p++;
    return true;
}

/* Takes a word such as True, after white space; what may follow it is the caller's to see. */
static bool take_word(struct text *t, const char *word)
{
    size_t n = strlen(word);

    skip_space(t);
    if ((size_t)(t->end - t->p) < n || memcmp(t->p, word, n) != 0)
        return false;
    t->p += n;
    return true;
}

/* A string without escapes, in quotes of either kind, into out. */
static bool take_string(struct text *t, char *out, size_t n_out)
{
    const char *close;
    char quote;

    skip_space(t);
    if (t->p == t->end || (*t->p != '\'' && *t->p != '"'))
        return false;
    quote = *t->p++;
    close = memchr(t->p, quote, (size_t)(t->end - t->p));
    if (!close || (size_t)(close - t->p) >= n_out || memchr(t->p, '\\', (size_t)(close - t->p)))
        return false;
    memcpy(out, t->p, (size_t)(close - t->p));
    out[close - t->p] = '\0';
    t->p = close + 1;
    return true;
}

static bool take_size(struct text *t, size_t *out)
{
    size_t n = 0;
    bool any = false;

    skip_space(t);
    for (; t->p < t->end && *t->p >= '0' && *t->p <= '9'; t->p++, any = true)
        if (!esp_mul(&n, n, 10) || !esp_add(&n, n, (size_t)(*t->p - '0')))
            return false;
    *out = n;
    return any;
}

/* A tuple: (), (3,), (3, 4) or (3, 4,). */
static bool take_shape(struct text *t, struct esp_npy_header *h)
{
    bool comma = true;

    h->n_dim = 0;
    if (!take(t, '('))
        return false;
    while (!take(t, ')')) {
        if (!comma || h->n_dim == ESP_NPZ_MAX_DIM || !take_size(t, &h->shape[h->n_dim]))
            return false;
        h->n_dim++;
        comma = take(t, ',');
    }
    return h->n_dim != 1 || comma; /* (3) is a number, no tuple */
}

static esp_status parse_dict(struct esp_npy_header *h, char descr[64], bool *fortran, struct text *t,
                             const char *what, struct esp_err *err)
{
    bool have_descr = false, have_order = false, have_shape = false, more = true;

    if (!take(t, '{'))
        return esp_fail(err, ESP_E_FORMAT, "%s: its header is no dictionary", what);
    while (!take(t, '}')) {
        char key[64], shown[ESP_SHOWN];

        if (!more || !take_string(t, key, sizeof key) || !take(t, ':'))
            return esp_fail(err, ESP_E_FORMAT, "%s: its header is no dictionary", what);
        if (strcmp(key, "descr") == 0 && !have_descr) {
            have_descr = take_string(t, descr, 64);
            if (!have_descr)
                return esp_fail(err, ESP_E_UNSUPPORTED, "%s: descr is no plain type", what);
        } else if (strcmp(key, "fortran_order") == 0 && !have_order) {
            *fortran = take_word(t, "True");
            have_order = *fortran || take_word(t, "False");
            if (!have_order)
                return esp_fail(err, ESP_E_FORMAT, "%s: fortran_order is neither True nor False", what);
        } else if (strcmp(key, "shape") == 0 && !have_shape) {
            have_shape = take_shape(t, h);
            if (!have_shape)
                return esp_fail(err, ESP_E_FORMAT, "%s: shape is no tuple of at most %d sizes", what,
                                ESP_NPZ_MAX_DIM);
        } else {
            return esp_fail(err, ESP_E_FORMAT, "%s: its header has the key %s, unknown or twice", what,
                            esp_shown(shown, key));
        }
        more = take(t, ',');
    }
    skip_space(t);
    if (t->p != t->end || !have_descr || !have_order || !have_shape)
        return esp_fail(err, ESP_E_FORMAT, "%s: its header is not descr, fortran_order and shape alone",
                        what);
    return ESP_OK;
}

esp_status esp_npy_parse(struct esp_npy_header *out, const uint8_t *bytes, size_t n_bytes, const char *what,
                         struct esp_err *err)
{
    struct esp_npy_header h = {.n_elem = 1};
    char descr[64], shown[ESP_SHOWN];
    bool fortran = false;
    size_t n_fixed, n_text, n_want, n_long = 0; /* n_long: dimensions beyond 1 */
    struct text t;
    esp_status st;

    if (n_bytes < 10 || memcmp(bytes, "\x93NUMPY", 6) != 0)
        return esp_fail(err, ESP_E_FORMAT, "%s: no .npy data", what);
    if (bytes[6] < 1 || bytes[6] > 3)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: .npy version %u, known are 1 to 3", what, bytes[6]);
    n_fixed = bytes[6] == 1 ? 10 : 12;
    if (n_bytes < n_fixed)
        return esp_fail(err, ESP_E_FORMAT, "%s: cut off in its header", what);
    n_text = bytes[8] | (size_t)bytes[9] << 8;
    if (bytes[6] > 1)
        n_text |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (n_text > ESP_NPY_MAX_HEADER - n_fixed)
        return esp_fail(err, ESP_E_FORMAT, "%s: a header of %zu bytes, takes at most %zu", what, n_text,
                        ESP_NPY_MAX_HEADER - n_fixed);
    if (n_text > n_bytes - n_fixed)
        return esp_fail(err, ESP_E_FORMAT, "%s: cut off in its header", what);
    h.data_at = n_fixed + n_text;
    t.p = (const char *)bytes + n_fixed;
    t.end = t.p + n_text;
    st = parse_dict(&h, descr, &fortran, &t, what, err);
    if (st)
        return st;
    if (strcmp(descr, "<f4") == 0)
        h.dtype = ESP_F32;
    else if (strcmp(descr, "<f2") == 0)
        h.dtype = ESP_F16;
    else
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: type %s, read are <f4 and <f2", what,
                        esp_shown(shown, descr));
    for (uint32_t i = 0; i < h.n_dim; i++) {
        n_long += h.shape[i] > 1;
        if (!esp_mul(&h.n_elem, h.n_elem, h.shape[i]))
            return esp_fail(err, ESP_E_FORMAT, "%s: the product of its dimensions overflows", what);
    }
    if (fortran && n_long > 1)
        return esp_fail(err, ESP_E_UNSUPPORTED,
                        "%s: stored columns first; save it again after numpy.ascontiguousarray", what);
    if (!esp_mul(&n_want, h.n_elem, esp_dtype_n_bytes(h.dtype)) || n_want != n_bytes - h.data_at)
        return esp_fail(err, ESP_E_FORMAT, "%s: %zu bytes of numbers, its shape and type (%s) say otherwise",
                        what, n_bytes - h.data_at, descr);
    *out = h;
    return ESP_OK;
}
