#include "coordinator/token_model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the wire format ---- */

enum { WIRE_VARINT = 0, WIRE_I64 = 1, WIRE_BYTES = 2, WIRE_I32 = 5 };

struct span {
    const uint8_t *at;
    size_t left;
};

struct field {
    uint32_t number;
    uint32_t wire;
    uint64_t value; /* WIRE_VARINT, WIRE_I64, WIRE_I32 */
    struct span bytes;
};

static bool take_varint(uint64_t *out, struct span *in)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (in->left == 0)
            return false;
        const uint8_t byte = *in->at++;
        in->left--;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool take_fixed(uint64_t *out, struct span *in, unsigned n)
{
    if (in->left < n)
        return false;
    *out = 0;
    for (unsigned i = 0; i < n; i++)
        *out |= (uint64_t)in->at[i] << (8 * i);
    in->at += n;
    in->left -= n;
    return true;
}

/* The next field; false if the bytes are none. */
static bool take_field(struct field *out, struct span *in)
{
    uint64_t tag, n;

    memset(out, 0, sizeof *out);
    if (!take_varint(&tag, in) || tag >> 3 == 0 || tag >> 3 > UINT32_C(0x1fffffff))
        return false;
    out->number = (uint32_t)(tag >> 3);
    out->wire = (uint32_t)(tag & 7);
    switch (out->wire) {
    case WIRE_VARINT:
        return take_varint(&out->value, in);
    case WIRE_I64:
        return take_fixed(&out->value, in, 8);
    case WIRE_I32:
        return take_fixed(&out->value, in, 4);
    case WIRE_BYTES:
        if (!take_varint(&n, in) || n > in->left)
            return false;
        out->bytes = (struct span){in->at, (size_t)n};
        in->at += n;
        in->left -= (size_t)n;
        return true;
    default: /* groups: the schema has none */
        return false;
    }
}

static esp_status damaged(struct esp_err *err, const char *where)
{
    return esp_fail(err, ESP_E_FORMAT, "damaged or truncated SentencePiece model (%s)", where);
}

int esp_utf8_len(const uint8_t *bytes, size_t n)
{
    uint32_t low = 0x80, high = 0xbf; /* what the second byte may be */
    int want;

    if (n == 0)
        return 0;
    if (bytes[0] < 0x80)
        return 1;
    if (bytes[0] < 0xc2 || bytes[0] > 0xf4)
        return -1;
    if (bytes[0] < 0xe0)
        want = 2;
    else if (bytes[0] < 0xf0)
        want = 3;
    else
        want = 4;
    if (bytes[0] == 0xe0)
        low = 0xa0; /* else overlong */
    else if (bytes[0] == 0xed)
        high = 0x9f; /* else a surrogate */
    else if (bytes[0] == 0xf0)
        low = 0x90; /* else overlong */
    else if (bytes[0] == 0xf4)
        high = 0x8f; /* else above U+10FFFF */
    for (int i = 1; i < want; i++) {
        if ((size_t)i >= n)
            return 0;
        if (bytes[i] < low || bytes[i] > high)
            return -1;
        low = 0x80;
        high = 0xbf;
    }
    return want;
}

static bool is_utf8(const uint8_t *bytes, size_t n)
{
    while (n > 0) {
        const int len = esp_utf8_len(bytes, n);

        if (len <= 0)
            return false;
        bytes += len;
        n -= (size_t)len;
    }
    return true;
}

/* ---- the messages ---- */

/* What decides whether the model is one of ours. Defaults as in sentencepiece_model.proto. */
struct settings {
    uint64_t model_type; /* 1 unigram, 2 BPE, 3 word, 4 char */
    bool byte_fallback, suffix_space, dummy_prefix, remove_space, escape_space, rules;
};

static esp_status read_piece(struct esp_piece *out, struct span in, uint32_t id, struct esp_err *err)
{
    uint64_t type = ESP_PIECE_NORMAL;
    struct span name = {NULL, 0};
    struct field f;

    while (in.left > 0) {
        if (!take_field(&f, &in))
            return damaged(err, "inside a piece");
        if (f.number == 1 && f.wire == WIRE_BYTES) {
            name = f.bytes;
        } else if (f.number == 2 && f.wire == WIRE_I32) {
            const uint32_t bits = (uint32_t)f.value;
            float score;
            memcpy(&score, &bits, sizeof score);
            if (!isfinite(score))
                return esp_fail(err, ESP_E_FORMAT, "piece %u has no finite score", id);
        } else if (f.number == 3 && f.wire == WIRE_VARINT) {
            type = f.value;
        } else if (f.number <= 3) {
            return damaged(err, "a piece's field has the wrong type");
        }
    }
    if (name.left == 0)
        return esp_fail(err, ESP_E_FORMAT, "piece %u is empty", id);
    if (name.left > ESP_TOKEN_MAX_NAME)
        return esp_fail(err, ESP_E_LIMIT, "piece %u has %zu bytes, at most %u", id, name.left,
                        ESP_TOKEN_MAX_NAME);
    if (memchr(name.at, 0, name.left) || !is_utf8(name.at, name.left))
        return esp_fail(err, ESP_E_FORMAT, "piece %u is not UTF-8 text", id);
    if (type < ESP_PIECE_NORMAL || type > ESP_PIECE_BYTE)
        return esp_fail(err, ESP_E_FORMAT, "piece %u is of no known type (%" PRIu64 ")", id, type);
    out->name = (const char *)name.at;
    out->n_name = (uint16_t)name.left;
    out->type = (uint8_t)type;
    if (type == ESP_PIECE_BYTE) {
        static const char hex[] = "0123456789ABCDEF";
        const char *high = name.left == 6 ? strchr(hex, out->name[3]) : NULL;
        const char *low = name.left == 6 ? strchr(hex, out->name[4]) : NULL;

        if (!high || !low || memcmp(out->name, "<0x", 3) != 0 || out->name[5] != '>')
            return esp_fail(err, ESP_E_FORMAT, "byte piece %u is not called <0x00> to <0xFF>", id);
        out->byte = (uint8_t)((high - hex) * 16 + (low - hex));
    }
    return ESP_OK;
}

static esp_status read_trainer(struct settings *set, struct esp_token_model *model, struct span in,
                               struct esp_err *err)
{
    struct field f;

    while (in.left > 0) {
        if (!take_field(&f, &in))
            return damaged(err, "inside the trainer settings");
        if (f.number == 3 && f.wire == WIRE_VARINT) {
            set->model_type = f.value;
        } else if (f.number == 24 && f.wire == WIRE_VARINT) {
            set->suffix_space = f.value != 0;
        } else if (f.number == 35 && f.wire == WIRE_VARINT) {
            set->byte_fallback = f.value != 0;
        } else if (f.number == 44 && f.wire == WIRE_BYTES) {
            if (f.bytes.left > ESP_TOKEN_MAX_NAME || !is_utf8(f.bytes.at, f.bytes.left) ||
                memchr(f.bytes.at, 0, f.bytes.left))
                return esp_fail(err, ESP_E_FORMAT, "the surface of <unk> is not short UTF-8 text");
            model->unk_surface = (const char *)f.bytes.at;
            model->n_unk_surface = f.bytes.left;
        } else if (f.number == 3 || f.number == 24 || f.number == 35 || f.number == 44) {
            return damaged(err, "a trainer setting has the wrong type");
        }
    }
    return ESP_OK;
}

static esp_status read_normalizer(struct settings *set, struct span in, bool is_denormalizer,
                                  struct esp_err *err)
{
    struct field f;

    while (in.left > 0) {
        if (!take_field(&f, &in))
            return damaged(err, "inside the normaliser");
        if (f.number == 2 && f.wire == WIRE_BYTES)
            set->rules |= f.bytes.left > 0;
        else if (f.number == 3 && f.wire == WIRE_VARINT && !is_denormalizer)
            set->dummy_prefix = f.value != 0;
        else if (f.number == 4 && f.wire == WIRE_VARINT && !is_denormalizer)
            set->remove_space = f.value != 0;
        else if (f.number == 5 && f.wire == WIRE_VARINT && !is_denormalizer)
            set->escape_space = f.value != 0;
        else if (f.number >= 2 && f.number <= 5 && !is_denormalizer)
            return damaged(err, "a setting of the normaliser has the wrong type");
    }
    return ESP_OK;
}

static esp_status check_settings(const struct settings *set, struct esp_err *err)
{
    if (set->model_type != 2)
        return esp_fail(err, ESP_E_UNSUPPORTED,
                        "a SentencePiece model of type %" PRIu64 "; PaliGemma's is BPE (2)", set->model_type);
    if (set->rules)
        return esp_fail(err, ESP_E_UNSUPPORTED,
                        "the SentencePiece model has a normalisation table; PaliGemma's "
                        "leaves text as it is");
    if (set->dummy_prefix || set->remove_space || !set->escape_space || set->suffix_space)
        return esp_fail(err, ESP_E_UNSUPPORTED,
                        "the SentencePiece model adds or removes white space; PaliGemma's "
                        "leaves text as it is");
    return ESP_OK;
}

/* ---- the pieces as a whole ---- */

struct named {
    const struct esp_piece *piece;
    uint32_t id;
};

static int compare_names(const char *a, size_t n_a, const char *b, size_t n_b)
{
    const int order = memcmp(a, b, n_a < n_b ? n_a : n_b);

    return order ? order : (n_a > n_b) - (n_a < n_b);
}

static int compare_named(const void *a, const void *b)
{
    const struct named *x = a, *y = b;

    return compare_names(x->piece->name, x->piece->n_name, y->piece->name, y->piece->n_name);
}

static bool begins_with(const struct esp_piece *piece, const struct esp_piece *start)
{
    return piece->n_name >= start->n_name && memcmp(piece->name, start->name, start->n_name) == 0;
}

static esp_status index_names(struct esp_token_model *model, struct esp_err *err)
{
    struct named *sorted = calloc(model->n_piece, sizeof *sorted);
    const struct esp_piece *nest[ESP_TOKEN_MAX_NEST]; /* user-defined, each the start of the next */
    unsigned n_nest = 0;
    esp_status st = ESP_OK;

    model->by_name = calloc(model->n_piece, sizeof *model->by_name);
    if (!sorted || !model->by_name) {
        st = esp_fail(err, ESP_E_NOMEM, "%u pieces", model->n_piece);
        goto done;
    }
    for (uint32_t i = 0; i < model->n_piece; i++)
        sorted[i] = (struct named){&model->piece[i], i};
    qsort(sorted, model->n_piece, sizeof *sorted, compare_named);
    for (uint32_t i = 0; i < model->n_piece; i++) {
        const struct esp_piece *piece = sorted[i].piece;

        model->by_name[i] = sorted[i].id;
        if (i > 0 && compare_named(&sorted[i - 1], &sorted[i]) == 0) {
            st = esp_fail(err, ESP_E_FORMAT, "pieces %u and %u are the same", sorted[i - 1].id, sorted[i].id);
            goto done;
        }
        if (piece->type != ESP_PIECE_USER_DEFINED)
            continue;
        while (n_nest > 0 && !begins_with(piece, nest[n_nest - 1]))
            n_nest--;
        if (n_nest == ESP_TOKEN_MAX_NEST) {
            st = esp_fail(err, ESP_E_LIMIT,
                          "more than %u user-defined pieces that begin with one another (%u)",
                          ESP_TOKEN_MAX_NEST, sorted[i].id);
            goto done;
        }
        nest[n_nest++] = piece;
    }
done:
    free(sorted);
    return st;
}

static esp_status check_pieces(const struct esp_token_model *model, const struct settings *set,
                               struct esp_err *err)
{
    uint32_t n_unk = 0, n_byte = 0;

    for (uint32_t i = 0; i < model->n_piece; i++) {
        n_unk += model->piece[i].type == ESP_PIECE_UNKNOWN;
        n_byte += model->piece[i].type == ESP_PIECE_BYTE;
    }
    if (n_unk != 1)
        return esp_fail(err, ESP_E_FORMAT, "%u pieces for the unknown, must be one", n_unk);
    if (n_byte != (set->byte_fallback ? 256 : 0)) /* distinct names, so 256 are all of them */
        return esp_fail(err, ESP_E_FORMAT, "%u byte pieces, must be %u", n_byte,
                        set->byte_fallback ? 256u : 0u);
    return ESP_OK;
}

static esp_status count_pieces(uint32_t *out, struct span in, struct esp_err *err)
{
    struct field f;

    *out = 0;
    while (in.left > 0) {
        if (!take_field(&f, &in))
            return damaged(err, "at the top");
        if (f.number == 1 && f.wire == WIRE_BYTES && ++*out > ESP_TOKEN_MAX_PIECE)
            return esp_fail(err, ESP_E_LIMIT, "more than %u pieces", ESP_TOKEN_MAX_PIECE);
        if (f.number <= 5 && f.wire != WIRE_BYTES)
            return damaged(err, "a part has the wrong type");
    }
    if (*out == 0)
        return esp_fail(err, ESP_E_FORMAT, "a SentencePiece model without pieces");
    return ESP_OK;
}

size_t esp_token_model_strip(uint8_t *bytes, size_t n_bytes)
{
    struct span in = {bytes, n_bytes};
    struct field f;
    size_t n_kept = 0;

    while (in.left > 0) {
        const size_t start = n_bytes - in.left;
        const bool sound = take_field(&f, &in);
        const size_t end = sound ? n_bytes - in.left : n_bytes;

        if (!sound || f.number <= 3 || f.number == 5) {
            memmove(bytes + n_kept, bytes + start, end - start);
            n_kept += end - start;
        }
        if (!sound)
            break;
    }
    return n_kept;
}

esp_status esp_token_model_parse(struct esp_token_model *out, const uint8_t *bytes, size_t n_bytes,
                                 struct esp_err *err)
{
    struct settings set = {.model_type = 1, .dummy_prefix = true, .remove_space = true, .escape_space = true};
    struct span in = {bytes, n_bytes};
    struct field f;
    uint32_t n_piece, id = 0;
    esp_status st;

    memset(out, 0, sizeof *out);
    if (n_bytes > ESP_TOKEN_MAX_FILE)
        return esp_fail(err, ESP_E_LIMIT, "a SentencePiece model of %zu bytes, at most %zu", n_bytes,
                        ESP_TOKEN_MAX_FILE);
    st = count_pieces(&n_piece, in, err);
    if (st)
        return st;
    out->piece = calloc(n_piece, sizeof *out->piece);
    if (!out->piece)
        return esp_fail(err, ESP_E_NOMEM, "%u pieces", n_piece);
    out->n_piece = n_piece;
    out->unk_surface = " \xe2\x81\x87 "; /* U+2047 */
    out->n_unk_surface = 5;
    while (!st && in.left > 0 && take_field(&f, &in)) {
        if (f.number == 1) {
            st = read_piece(&out->piece[id], f.bytes, id, err);
            id++;
        } else if (f.number == 2) {
            st = read_trainer(&set, out, f.bytes, err);
        } else if (f.number == 3 || f.number == 5) {
            st = read_normalizer(&set, f.bytes, f.number == 5, err);
        }
    }
    if (!st)
        st = check_settings(&set, err);
    if (!st)
        st = check_pieces(out, &set, err);
    if (!st)
        st = index_names(out, err);
    if (st)
        esp_token_model_finish(out);
    return st;
}

void esp_token_model_finish(struct esp_token_model *model)
{
    if (!model)
        return;
    free(model->piece);
    free(model->by_name);
    memset(model, 0, sizeof *model);
}

bool esp_token_model_find(const struct esp_token_model *model, uint32_t *id, const char *name, size_t n_name)
{
    uint32_t low = 0, high = model->n_piece;

    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const struct esp_piece *piece = &model->piece[model->by_name[middle]];
        const int order = compare_names(name, n_name, piece->name, piece->n_name);

        if (order == 0) {
            *id = model->by_name[middle];
            return true;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return false;
}
