#include "worker/pack.h"

#include <string.h>

#define NO_SOURCE UINT32_MAX

uint32_t esp_pack_head_dim(uint32_t head_dim)
{
    return 2 * (uint32_t)esp_round_up((head_dim + 1) / 2, 4);
}

/* Entries of a padded axis: n elements stored, in heads or not. */
static uint32_t axis_len(uint32_t n, const struct esp_pack_heads *heads)
{
    return heads->n ? heads->n * esp_pack_head_dim(heads->head_dim) : n;
}

/* Where entry i of the padded axis is stored; NO_SOURCE for padding. */
static uint32_t axis_source(uint32_t i, uint32_t n, const struct esp_pack_heads *heads)
{
    const uint32_t h = heads->head_dim;
    uint32_t hp, half, low, j;

    if (!heads->n)
        return i < n ? i : NO_SOURCE;
    hp = esp_pack_head_dim(h);
    half = hp / 2;
    low = (h + 1) / 2; /* dimensions in the first half */
    j = i % hp;
    if (i / hp >= heads->n)
        return NO_SOURCE;
    if (j < half)
        return j < low ? i / hp * h + j : NO_SOURCE;
    return j - half < h - low ? i / hp * h + low + (j - half) : NO_SOURCE;
}

static uint32_t tensor_rows(const struct esp_tensor *t)
{
    return (uint32_t)t->shape[0];
}

static uint32_t tensor_cols(const struct esp_tensor *t)
{
    uint64_t k = 1;
    for (uint32_t d = 1; d < t->n_dim; d++)
        k *= t->shape[d];
    return (uint32_t)k;
}

void esp_pack_dims(struct esp_pack_dims *out, const struct esp_pack_spec *spec)
{
    const struct esp_tensor *first = spec->part[0].tensor;

    memset(out, 0, sizeof *out);
    out->wtype = esp_wtype_of(first->dtype);
    for (uint32_t i = 0; i < spec->n_part; i++) {
        const struct esp_pack_part *p = &spec->part[i];
        if (esp_wtype_of(p->tensor->dtype) != out->wtype)
            out->wtype = ESP_W_F32;
        out->n += axis_len(tensor_rows(p->tensor), &p->heads);
    }
    if (spec->want != ESP_W_STORED)
        out->wtype = spec->want;
    out->k = axis_len(tensor_cols(first), &spec->k_heads);
    out->np = (uint32_t)esp_round_up(out->n, 32);
    if (spec->interleave)
        out->np = 2 * (uint32_t)esp_round_up(tensor_rows(first), 32);
    out->kp = (uint32_t)esp_round_up(out->k, 32);
    out->panel = 1;
    out->by_k = spec->cls == ESP_VK_DIRECT;
    if (esp_vk_has_texels(spec->cls) &&
        esp_wtype_quantised(out->wtype)) { /* as many rows as a word has fields */
        out->panel = out->wtype == ESP_W_Q8 ? 4 : 8;
        out->np = (uint32_t)esp_round_up(out->np, 8 * out->panel);
    }
    out->group_bytes = 8 * (uint32_t)esp_wtype_n_bytes(out->wtype, out->kp);
}

/* Which part and stored row packed row r comes from; false for padding. */
static bool find_row(const struct esp_pack_part **part, uint32_t *row, const struct esp_pack_spec *spec,
                     uint32_t r)
{
    if (spec->interleave) {
        *part = &spec->part[r / 8 % 2];
        *row = r / 16 * 8 + r % 8;
        return *row < tensor_rows((*part)->tensor);
    }
    for (uint32_t i = 0; i < spec->n_part; i++) {
        const struct esp_pack_part *p = &spec->part[i];
        uint32_t n = axis_len(tensor_rows(p->tensor), &p->heads);
        if (r < n) {
            *part = p;
            *row = axis_source(r, tensor_rows(p->tensor), &p->heads);
            return *row != NO_SOURCE;
        }
        r -= n;
    }
    return false;
}

/* Stored row `row` of t as it is, columns padded: kp elements. */
static void copy_row(void *out, const struct esp_pack_spec *spec, const struct esp_pack_dims *dims,
                     const struct esp_tensor *t, uint32_t row)
{
    const uint32_t n_col = tensor_cols(t);
    const size_t b = esp_dtype_n_bytes(t->dtype), row_bytes = esp_tensor_row_bytes(t);
    const char *src = (const char *)t->data + (size_t)row * row_bytes;
    char *dst = out;

    if (esp_wtype_quantised(
            dims->wtype)) { /* heads that would need padding are not quantised: the same columns */
        memcpy(dst, src, row_bytes);
        return;
    }

    if (!spec->k_heads.n) {
        memcpy(dst, src, n_col * b);
        memset(dst + n_col * b, 0, (dims->kp - n_col) * b);
        return;
    }
    for (uint32_t k = 0; k < dims->kp; k++) {
        const uint32_t s = k < dims->k ? axis_source(k, n_col, &spec->k_heads) : NO_SOURCE;
        if (s == NO_SOURCE)
            memset(dst + k * b, 0, b);
        else
            memcpy(dst + k * b, src + s * b, b);
    }
}

/* The same as float32. */
static void widen_row(float *out, const struct esp_pack_spec *spec, const struct esp_pack_dims *dims,
                      const struct esp_tensor *t, uint32_t row)
{
    const uint32_t n_col = tensor_cols(t);
    const size_t b = esp_dtype_n_bytes(t->dtype);
    const char *src = (const char *)t->data + (size_t)row * esp_tensor_row_bytes(t);

    memset(out, 0, dims->kp * sizeof *out);
    if (!spec->k_heads.n || esp_wtype_quantised(esp_wtype_of(t->dtype))) {
        esp_tensor_rows_f32(out, t, row, 1);
        return;
    }
    for (uint32_t k = 0; k < dims->k; k++) {
        const uint32_t s = axis_source(k, n_col, &spec->k_heads);
        if (s != NO_SOURCE)
            esp_dtype_to_f32(out + k, src + s * b, t->dtype, 1);
    }
}

/* x as 16-bit numbers; n, or the first that has none. */
static size_t narrow_row(uint16_t *out, enum esp_wtype type, const float *x, size_t n)
{
    const uint16_t infinity = type == ESP_W_F16 ? 0x7c00 : 0x7f80;

    for (size_t i = 0; i < n; i++) {
        out[i] = type == ESP_W_F16 ? esp_f32_to_f16(x[i]) : esp_f32_to_bf16(x[i]);
        if ((out[i] & 0x7fff) >= infinity)
            return i;
    }
    return n;
}

static esp_status no_such_weight(const struct esp_tensor *t, uint32_t row, uint32_t col, float x,
                                 enum esp_wtype type, struct esp_err *err)
{
    return esp_fail(
        err, ESP_E_FORMAT,
        "%s: tensor %s: row %u, column %u: %g cannot be a weight of type %s; take another with --weights",
        t->file, t->name, row, col, (double)x, esp_wtype_name(type));
}

esp_status esp_pack_row(void *out, const struct esp_pack_spec *spec, const struct esp_pack_dims *dims,
                        uint32_t r, float *scratch, struct esp_err *err)
{
    const struct esp_pack_part *part = NULL;
    uint32_t source = 0;
    size_t done;

    if (!find_row(&part, &source, spec, r)) {
        memset(out, 0, esp_wtype_n_bytes(dims->wtype, dims->kp)); /* zero weights of any type */
        return ESP_OK;
    }
    if (esp_wtype_of(part->tensor->dtype) == dims->wtype) {
        copy_row(out, spec, dims, part->tensor, source);
        return ESP_OK;
    }
    if (dims->wtype == ESP_W_F32) {
        widen_row(out, spec, dims, part->tensor, source);
        return ESP_OK;
    }
    widen_row(scratch, spec, dims, part->tensor, source);
    if (esp_wtype_quantised(dims->wtype))
        done = esp_quant_row(out, dims->wtype, scratch,
                             dims->k); /* what fills up the last block is exactly zero */
    else
        done = narrow_row(out, dims->wtype, scratch, dims->kp);
    if (done >= dims->k)
        return ESP_OK;
    return no_such_weight(part->tensor, source,
                          axis_source((uint32_t)done, tensor_cols(part->tensor), &spec->k_heads),
                          scratch[done], dims->wtype, err);
}

/* A packed row among its group's eight. */
static void place_row(char *group, const struct esp_pack_dims *dims, uint32_t r, const void *row)
{
    const uint32_t n_block = dims->kp / ESP_QUANT_BLOCK;
    const uint32_t n_texel = dims->group_bytes / 128; /* a row of the other types */

    if (dims->wtype == ESP_W_Q8) {
        const struct esp_q8_block *b = row;
        for (uint32_t i = 0; i < n_block; i++, group += 8 * sizeof *b) {
            memcpy(group + 2 * r, &b[i].d, 2);
            memcpy(group + 16 * (1 + r), b[i].q, 16);
            memcpy(group + 16 * (9 + r), b[i].q + 16, 16);
        }
    } else if (dims->wtype == ESP_W_Q4) {
        const struct esp_q4_block *b = row;
        for (uint32_t i = 0; i < n_block; i++, group += 8 * sizeof *b) {
            memcpy(group + 2 * r, &b[i].side, 2);
            memcpy(group + 16 * (1 + r), b[i].q, 16);
        }
    } else {
        for (uint32_t c = 0; c < n_texel; c++)
            memcpy(group + (c * 8 + r) * 16, (const char *)row + c * 16, 16);
    }
}

/* Where in a block of a panel column k is, in bytes from a lane's first word on. */
static uint32_t k_at(const struct esp_pack_dims *dims, uint32_t k)
{
    return dims->by_k ? k * 32 : k / 4 * 128 + k % 4 * 4;
}

/* A packed row among those of its panel (out->panel > 1), whose bytes were zero: row 8 * j + l is field j of lane l. */
static void place_field(unsigned char *panel, const struct esp_pack_dims *dims, uint32_t r, const void *row)
{
    const uint32_t n_block = dims->kp / ESP_QUANT_BLOCK,
                   block_bytes = dims->panel * dims->group_bytes / n_block;
    const uint32_t j = r / 8, l = r % 8;

    for (uint32_t i = 0; i < n_block; i++, panel += block_bytes) {
        unsigned char *word = panel + (dims->by_k ? 4 : 16) * l;
        unsigned char *side =
            panel + 1024 + (dims->by_k ? j / 2 * 32 + l * 4 + j % 2 * 2 : (l * dims->panel + j) * 2);
        if (dims->wtype == ESP_W_Q8) {
            const struct esp_q8_block *b = (const struct esp_q8_block *)row + i;
            memcpy(side, &b->d, 2);
            for (uint32_t k = 0; k < ESP_QUANT_BLOCK; k++)
                word[k_at(dims, k) + j] = (unsigned char)b->q[k] ^ 0x80;
        } else {
            const struct esp_q4_block *b = (const struct esp_q4_block *)row + i;
            memcpy(side, &b->side, 2);
            for (uint32_t k = 0; k < ESP_QUANT_BLOCK; k++)
                word[k_at(dims, k) + j / 2] |= (b->q[k / 2] >> k % 2 * 4 & 15) << j % 2 * 4;
        }
    }
}

/* Where a packed row lies as it is packed, but for what pads its end; NULL: it has to be made. */
static const char *row_as_is(const struct esp_pack_spec *spec, const struct esp_pack_dims *dims, uint32_t r)
{
    const struct esp_pack_heads *h = &spec->k_heads;
    const struct esp_pack_part *part;
    uint32_t source;

    if ((h->n && esp_pack_head_dim(h->head_dim) != h->head_dim) || !find_row(&part, &source, spec, r) ||
        esp_wtype_of(part->tensor->dtype) != dims->wtype)
        return NULL;
    return (const char *)part->tensor->data +
           (size_t)source * tensor_cols(part->tensor) * esp_dtype_n_bytes(part->tensor->dtype);
}

/* Texels of eight rows by turns. Spelt out, since compilers keep a loop over the rows, and then it is its counting that takes
 * the time. */
static void interleave(char *restrict out, const char *const row[8], size_t n_texel)
{
    const char *a = row[0], *b = row[1], *c = row[2], *d = row[3];
    const char *e = row[4], *f = row[5], *g = row[6], *h = row[7];

    for (size_t i = 0; i < 16 * n_texel; i += 16, out += 128) {
        memcpy(out, a + i, 16);
        memcpy(out + 16, b + i, 16);
        memcpy(out + 32, c + i, 16);
        memcpy(out + 48, d + i, 16);
        memcpy(out + 64, e + i, 16);
        memcpy(out + 80, f + i, 16);
        memcpy(out + 96, g + i, 16);
        memcpy(out + 112, h + i, 16);
    }
}

/*
 * A group of eight such rows, without a copy in between: one pass that reads eight streams and writes one. False: they
 * are not all such, or do not end with a texel.
 */
static bool group_as_is(char *group, const struct esp_pack_spec *spec, const struct esp_pack_dims *dims,
                        uint32_t g)
{
    const uint32_t n_texel = dims->group_bytes / 128;
    const size_t row_bytes = tensor_cols(spec->part[0].tensor) * esp_wtype_n_bytes(dims->wtype, 32) / 32;
    const uint32_t n_stored = (uint32_t)(row_bytes / 16);
    const char *row[8];

    if (row_bytes % 16)
        return false;
    for (uint32_t r = 0; r < 8; r++) {
        row[r] = row_as_is(spec, dims, g * 8 + r);
        if (!row[r])
            return false;
    }
    interleave(group, row, n_stored);
    memset(group + n_stored * 128, 0, (size_t)(n_texel - n_stored) * 128);
    return true;
}

bool esp_pack_quantises(const struct esp_pack_spec *spec, const struct esp_pack_dims *dims)
{
    bool as_stored = true;

    for (uint32_t i = 0; i < spec->n_part; i++)
        as_stored &= esp_wtype_of(spec->part[i].tensor->dtype) == dims->wtype;
    return esp_wtype_quantised(dims->wtype) && !as_stored;
}

size_t esp_pack_scratch_bytes(const struct esp_pack_dims *dims)
{
    return dims->kp * sizeof(float) + esp_wtype_n_bytes(dims->wtype, dims->kp);
}

esp_status esp_pack_groups(void *out, const struct esp_pack_spec *spec, const struct esp_pack_dims *dims,
                           uint32_t group0, uint32_t n_group, void *scratch, struct esp_err *err)
{
    float *wide = scratch;
    void *row = wide + dims->kp;
    const bool as_is = dims->panel == 1 && !esp_wtype_quantised(dims->wtype);
    esp_status st = ESP_OK;

    for (uint32_t g = 0; !st && g < n_group; g++) {
        char *group = (char *)out + (size_t)g * dims->group_bytes;
        char *panel = (char *)out + (size_t)(g / dims->panel * dims->panel) * dims->group_bytes;
        if (as_is && group_as_is(group, spec, dims, group0 + g))
            continue;
        if (panel == group && dims->panel > 1)
            memset(panel, 0, (size_t)dims->panel * dims->group_bytes);
        for (uint32_t r = 0; !st && r < 8; r++) {
            st = esp_pack_row(row, spec, dims, (group0 + g) * 8 + r, wide, err);
            if (!st && dims->panel > 1)
                place_field((unsigned char *)panel, dims, g % dims->panel * 8 + r, row);
            else if (!st)
                place_row(group, dims, r, row);
        }
    }
    return st;
}

void esp_pack_source(uint64_t *at, uint64_t *n_bytes, const struct esp_pack_spec *spec, uint32_t i,
                     uint32_t group0, uint32_t n_group)
{
    const struct esp_tensor *t = spec->part[i].tensor;
    const uint64_t n_row = tensor_rows(t), row_bytes = esp_tensor_row_bytes(t);
    const uint64_t len = axis_len(tensor_rows(t), &spec->part[i].heads);
    uint64_t from = (uint64_t)group0 * 8, to = from + (uint64_t)n_group * 8, before = 0;

    if (spec->interleave) { /* groups by turns: even ones are part 0's */
        from = ((uint64_t)group0 + 1 - i) / 2 * 8;
        to = ((uint64_t)group0 + n_group + 1 - i) / 2 * 8;
    }
    for (uint32_t j = 0; j < i && !spec->interleave; j++)
        before += axis_len(tensor_rows(spec->part[j].tensor), &spec->part[j].heads);
    from = from > before ? from - before : 0;
    to = to > before ? to - before : 0;
    to = to < len ? to : len;
    *at = *n_bytes = 0;
    if (from >= to)
        return;
    /* heads are padded evenly, so a share of the packed rows is that share of the stored ones, to within a head */
    from = from * n_row / len;
    to = (to * n_row + len - 1) / len;
    if (spec->part[i].heads.n) {
        const uint64_t h = spec->part[i].heads.head_dim;
        from = from / h * h;
        to = (to + h - 1) / h * h;
    }
    *at = from * row_bytes;
    *n_bytes = (to - from) * row_bytes;
}

void esp_pack_vector(float *out, uint32_t np, const struct esp_pack_part *parts, uint32_t n_part)
{
    uint32_t at = 0;

    memset(out, 0, np * sizeof *out);
    for (uint32_t i = 0; i < n_part; i++) {
        const struct esp_tensor *t = parts[i].tensor;
        const uint32_t n = tensor_rows(t);
        const size_t b = esp_dtype_n_bytes(t->dtype);
        const uint32_t len = axis_len(n, &parts[i].heads);
        for (uint32_t j = 0; j < len && at + j < np; j++) {
            uint32_t s = axis_source(j, n, &parts[i].heads);
            if (s != NO_SOURCE)
                esp_dtype_to_f32(out + at + j, (const char *)t->data + s * b, t->dtype, 1);
        }
        at += len;
    }
}
