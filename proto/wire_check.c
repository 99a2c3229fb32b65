#include "proto/wire_table.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "proto/keys.h"

static esp_status bad(struct esp_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static esp_status bad(struct esp_err *err, const char *fmt, ...)
{
    char text[ESP_ERR_TEXT_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return esp_fail(err, ESP_E_PROTO, "%s", text);
}

/* ---- values ---- */

/**
 * Length in bytes of the UTF-8 sequence at s, 0 when it is none: overlong forms, surrogates and what lies
 * past U+10FFFF are not. *code gets the character. s is NUL-terminated, which ends every sequence cut short.
 */
static size_t utf8_next(uint32_t *code, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n;
    uint32_t c;

    if (s[0] < 0x80) {
        *code = s[0];
        return 1;
    }
    if (s[0] >= 0xc2 && s[0] < 0xe0) {
        n = 2;
        c = s[0] & 0x1fu;
    } else if (s[0] >= 0xe0 && s[0] < 0xf0) {
        n = 3;
        c = s[0] & 0x0fu;
    } else if (s[0] >= 0xf0 && s[0] < 0xf5) {
        n = 4;
        c = s[0] & 0x07u;
    } else {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return 0;
    *code = c;
    return n;
}

static bool is_control(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0);
}

void esp_wire_clean_line(char *out, size_t n_out, const char *text)
{
    size_t n = 0;

    while (*text) {
        uint32_t c;
        size_t step = utf8_next(&c, text);
        bool good = step > 0 && !is_control(c);
        size_t n_put = good ? step : 1;
        if (n + n_put >= n_out)
            break; /* no half character at the cut */
        if (good)
            memcpy(out + n, text, step);
        else
            out[n] = '?';
        n += n_put;
        text += step ? step : 1;
    }
    out[n] = '\0';
}

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
}

static esp_status check_string(const char *s, const struct esp_wire_field *f, bool sending,
                               struct esp_err *err)
{
    static const char *const transports[] = {"tcp://", "ipc://", "inproc://"};
    size_t n;

    if (!s)
        s = "";
    n = strlen(s);
    if (sending && f->rule == ESP_RULE_LINE)
        return n >= f->min ? ESP_OK : bad(err, "is empty");
    if (n < f->min)
        return bad(err, "is empty");
    if (n > f->max)
        return bad(err, "%zu bytes, at most %llu", n, (unsigned long long)f->max);
    if (f->rule == ESP_RULE_NAME) {
        for (size_t i = 0; i < n; i++) {
            if (!is_name_char(s[i]))
                return bad(err, "byte 0x%02x, takes letters, digits, '.', '_' and '-'", (unsigned char)s[i]);
        }
    } else if (f->rule == ESP_RULE_KEY) {
        uint8_t key[ESP_KEY_BYTES];
        if (n > 0 && !esp_key_parse(key, s, n))
            return bad(err, "not a key, which is %d characters of Z85", ESP_KEY_TEXT);
    } else if (f->rule == ESP_RULE_ENDPOINT) {
        bool known = n == 0;
        for (size_t i = 0; i < sizeof transports / sizeof transports[0]; i++)
            known |= strncmp(s, transports[i], strlen(transports[i])) == 0 && s[strlen(transports[i])];
        if (!known)
            return bad(err, "not an endpoint such as tcp://HOST:PORT or ipc://PATH");
        for (size_t i = 0; i < n; i++) {
            if (s[i] <= 0x20 || s[i] >= 0x7f)
                return bad(err, "byte 0x%02x in an endpoint", (unsigned char)s[i]);
        }
    } else {
        for (size_t i = 0; i < n;) {
            uint32_t c;
            size_t step = utf8_next(&c, s + i);
            if (step == 0)
                return bad(err, "not UTF-8 at byte %zu", i);
            if (f->rule == ESP_RULE_LINE && is_control(c))
                return bad(err, "control character 0x%02x", c);
            i += step;
        }
    }
    return ESP_OK;
}

static esp_status check_integer(uint64_t v, const struct esp_wire_field *f, struct esp_err *err)
{
    if (v < f->min || v > f->max)
        return bad(err, "%llu, takes %llu .. %llu", (unsigned long long)v, (unsigned long long)f->min,
                   (unsigned long long)f->max);
    return ESP_OK;
}

static esp_status check_real(double v, const struct esp_wire_field *f, struct esp_err *err)
{
    if (!isfinite(v))
        return bad(err, "%g is not finite", v);
    if (f->rule == ESP_RULE_NOT_NEGATIVE && v < 0)
        return bad(err, "%g is negative", v);
    if (f->rule == ESP_RULE_POSITIVE && v <= 0)
        return bad(err, "%g is not positive", v);
    return ESP_OK;
}

static esp_status check_table(const char *c, const struct esp_wire_table *t, bool sending,
                              struct esp_err *err);

static esp_status check_array(const char *c, const struct esp_wire_field *f, bool sending,
                              struct esp_err *err)
{
    esp_status st = ESP_OK;
    uint32_t n = *(const uint32_t *)(c + f->c_n);
    const void *array;

    memcpy(&array, c + f->c, sizeof array);
    if (n > f->max_n)
        return bad(err, "%s: %u entries, at most %u", f->name, n, f->max_n);
    if (n > 0 && !array)
        return bad(err, "%s: %u entries and no array", f->name, n);
    for (uint32_t i = 0; i < n && st == ESP_OK; i++) {
        switch (f->type) {
        case ESP_WIRE_U32S:
            st = check_integer(((const uint32_t *)array)[i], f, err);
            break;
        case ESP_WIRE_U64S:
            st = check_integer(((const uint64_t *)array)[i], f, err);
            break;
        case ESP_WIRE_F32S:
            st = check_real((double)((const float *)array)[i], f, err);
            break;
        case ESP_WIRE_F64S:
            st = check_real(((const double *)array)[i], f, err);
            break;
        case ESP_WIRE_STRS:
            st = check_string(((const char *const *)array)[i], f, sending, err);
            break;
        default: /* ESP_WIRE_SUBS */
            st = check_table((const char *)array + i * f->sub->n_bytes, f->sub, sending, err);
            if (st)
                esp_err_prefix(err, "%s[%u].", f->name, i);
            continue;
        }
        if (st)
            esp_err_prefix(err, "%s[%u]: ", f->name, i);
    }
    return st;
}

/* The rows of a table on our structure at c. */
static esp_status check_table(const char *c, const struct esp_wire_table *t, bool sending,
                              struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (size_t i = 0; i < t->n_field && st == ESP_OK; i++) {
        const struct esp_wire_field *f = &t->field[i];
        const char *at = c + f->c;
        const char *s;

        switch (f->type) {
        case ESP_WIRE_BOOL:
        case ESP_WIRE_KEY:
        case ESP_WIRE_DTYPE:
            continue; /* nothing to get wrong in our form */
        case ESP_WIRE_U32:
            st = check_integer(*(const uint32_t *)at, f, err);
            break;
        case ESP_WIRE_U64:
            st = check_integer(*(const uint64_t *)at, f, err);
            break;
        case ESP_WIRE_F32:
            st = check_real((double)*(const float *)at, f, err);
            break;
        case ESP_WIRE_F64:
            st = check_real(*(const double *)at, f, err);
            break;
        case ESP_WIRE_STR:
            memcpy(&s, at, sizeof s);
            st = check_string(s, f, sending, err);
            break;
        case ESP_WIRE_SUB:
            st = check_table(at, f->sub, sending, err);
            if (st)
                esp_err_prefix(err, "%s.", f->name);
            continue;
        default:
            st = check_array(c, f, sending, err);
            continue;
        }
        if (st)
            esp_err_prefix(err, "%s: ", f->name);
    }
    return st;
}

esp_status esp_wire_check(const struct esp_msg *msg, bool sending, struct esp_err *err)
{
    const struct esp_wire_kind *kind = esp_wire_kind_find(msg->kind);
    esp_status st;

    if (!kind)
        return bad(err, "unknown kind of message %u", (unsigned)msg->kind);
    if (msg->n_blobs > ESP_MAX_BLOBS)
        return bad(err, "%s: %u raw frames, at most %u", kind->name, msg->n_blobs, ESP_MAX_BLOBS);
    for (uint32_t i = 0; i < msg->n_blobs; i++) {
        if (msg->blob[i].n_bytes > ESP_MAX_FRAME)
            return bad(err, "%s: raw frame of %zu bytes, at most %u", kind->name, msg->blob[i].n_bytes,
                       ESP_MAX_FRAME);
        if (msg->blob[i].n_bytes > 0 && !msg->blob[i].data)
            return bad(err, "%s: raw frame without data", kind->name);
    }
    st = check_table((const char *)msg + kind->c, kind->table, sending, err);
    if (!st)
        st = kind->check(msg, err);
    if (st)
        esp_err_prefix(err, "%s: ", kind->name);
    return st;
}

/* ---- between fields ---- */

static esp_status no_frames(const struct esp_msg *msg, struct esp_err *err)
{
    return msg->n_blobs == 0 ? ESP_OK : bad(err, "%u raw frames, takes none", msg->n_blobs);
}

/* The one frame of a tensor of rows x width elements of 4 bytes (f32 or i32). */
static esp_status one_tensor(const struct esp_msg *msg, uint32_t rows, uint32_t width, struct esp_err *err)
{
    size_t want;

    if (msg->n_blobs != 1)
        return bad(err, "%u raw frames, takes 1", msg->n_blobs);
    if (!esp_mul(&want, rows, width) || !esp_mul(&want, want, 4) || msg->blob[0].n_bytes != want)
        return bad(err, "raw frame of %zu bytes for [%u,%u] of 4", msg->blob[0].n_bytes, rows, width);
    return ESP_OK;
}

static bool is_set(const char *s)
{
    return s && *s;
}

esp_status esp_check_plain(const struct esp_msg *msg, struct esp_err *err)
{
    return no_frames(msg, err);
}

esp_status esp_check_welcome(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_welcome *m = &msg->welcome;

    if (m->timeout_ms <= m->heartbeat_ms)
        return bad(err, "timeout_ms: %u, not above heartbeat_ms %u", m->timeout_ms, m->heartbeat_ms);
    return no_frames(msg, err);
}

esp_status esp_check_place(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_place *m = &msg->place;
    bool enc = m->enc_lo < m->enc_hi, dec = m->dec_lo < m->dec_hi;

    if (m->enc_lo > m->enc_hi || m->dec_lo > m->dec_hi)
        return bad(err, "layers [%u,%u) and [%u,%u)", m->enc_lo, m->enc_hi, m->dec_lo, m->dec_hi);
    if (m->patch != (enc && m->enc_lo == 0))
        return bad(err, "patch %d with encoder layers [%u,%u)", m->patch, m->enc_lo, m->enc_hi);
    if (m->embed != (dec && m->dec_lo == 0))
        return bad(err, "embed %d with decoder layers [%u,%u)", m->embed, m->dec_lo, m->dec_hi);
    if (m->projector && !enc)
        return bad(err, "projector without encoder layers");
    if (m->head && !dec)
        return bad(err, "head without decoder layers");
    if (is_set(m->next_enc) != (enc && !m->projector))
        return bad(err, "next_enc: \"%s\" with encoder layers [%u,%u) and projector %d",
                   is_set(m->next_enc) ? m->next_enc : "", m->enc_lo, m->enc_hi, m->projector);
    /* Where the first decoder stage is this very worker, features need not travel. */
    if (is_set(m->features_to) ? !m->projector : m->projector && !m->embed)
        return bad(err, "features_to: \"%s\" with projector %d", is_set(m->features_to) ? m->features_to : "",
                   m->projector);
    if (is_set(m->next_dec) != (dec && !m->head))
        return bad(err, "next_dec: \"%s\" with decoder layers [%u,%u) and head %d",
                   is_set(m->next_dec) ? m->next_dec : "", m->dec_lo, m->dec_hi, m->head);
    if ((is_set(m->next_enc_key) && !is_set(m->next_enc)) ||
        (is_set(m->features_to_key) && !is_set(m->features_to)) ||
        (is_set(m->next_dec_key) && !is_set(m->next_dec)))
        return bad(err, "a key of a stage that is not named");
    if (dec && (m->max_rows == 0 || m->kv_tokens == 0 || m->max_seqs == 0))
        return bad(err, "decoder layers with max_rows %u, kv_tokens %u, max_seqs %u", m->max_rows,
                   m->kv_tokens, m->max_seqs);
    if (m->carry >= m->epoch)
        return bad(err, "carry: epoch %llu into epoch %llu", (unsigned long long)m->carry,
                   (unsigned long long)m->epoch);
    if (m->n_moves > 0 && (m->carry == 0 || m->warm))
        return bad(err, "n_moves: %u, but nothing is carried", m->n_moves);
    return no_frames(msg, err);
}

esp_status esp_check_warmed(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_warmed *m = &msg->warmed;

    if (m->loaded_bytes > m->weight_bytes)
        return bad(err, "%llu bytes loaded of %llu", (unsigned long long)m->loaded_bytes,
                   (unsigned long long)m->weight_bytes);
    return no_frames(msg, err);
}

esp_status esp_check_move(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_move *m = &msg->move;

    if (m->dec_lo > m->dec_hi)
        return bad(err, "layers [%u,%u)", m->dec_lo, m->dec_hi);
    if (m->dec_lo == m->dec_hi && m->n_images == 0)
        return bad(err, "of nothing");
    return no_frames(msg, err);
}

/* ---- weights over the wire ---- */

esp_status esp_check_manifest(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_manifest *m = &msg->manifest;
    uint64_t n_chunk = 0;

    if (m->chunk_bytes & (m->chunk_bytes - 1))
        return bad(err, "chunk_bytes: %u is no power of two", m->chunk_bytes);
    if (m->n_tensors == 0)
        return bad(err, "no tensors");
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        const struct esp_tensor_info *t = &m->tensors[i];
        const bool quantised = t->dtype == 6 || t->dtype == 7;
        size_t n = t->dtype == 1 ? 4 : quantised ? 1 : 2; /* bytes */

        if (t->n_dim == 0)
            return bad(err, "tensors[%u]: no shape", i);
        for (uint32_t d = 0; d < t->n_dim; d++)
            if (!esp_mul(&n, n, t->shape[d]) || n > (size_t)1 << 40)
                return bad(err, "tensors[%u]: too large", i);
        if (t->dtype == 4 || t->dtype == 5)
            return bad(err, "tensors[%u]: dtype %u", i, t->dtype);
        if (quantised) { /* rows of blocks; all dimensions but the first are columns */
            const size_t n_row = t->shape[0], n_col = n_row ? n / n_row : 0;
            n = n_row * ((n_col + 31) / 32) * (t->dtype == 6 ? 34 : 18); /* at most 34 times 2^40 */
        }
        n_chunk += (n + m->chunk_bytes - 1) / m->chunk_bytes; /* 2^16 tensors of 2^24 chunks at most */
    }
    if (msg->n_blobs != 2)
        return bad(err, "%u raw frames, takes 2", msg->n_blobs);
    if (msg->blob[0].n_bytes == 0 || msg->blob[0].n_bytes > ESP_MAX_HEADER)
        return bad(err, "a config of %zu bytes, takes 1 .. %u", msg->blob[0].n_bytes, ESP_MAX_HEADER);
    if (msg->blob[1].n_bytes / ESP_HASH_BYTES != n_chunk || msg->blob[1].n_bytes % ESP_HASH_BYTES)
        return bad(err, "hashes of %zu bytes for %llu chunks", msg->blob[1].n_bytes,
                   (unsigned long long)n_chunk);
    return ESP_OK;
}

esp_status esp_check_chunk(const struct esp_msg *msg, struct esp_err *err)
{
    if (is_set(msg->chunk.why))
        return no_frames(msg, err);
    if (msg->n_blobs != 1 || msg->blob[0].n_bytes == 0 || msg->blob[0].n_bytes > ESP_MAX_CHUNK)
        return bad(err, "%u raw frames, takes 1 of 1 .. %u bytes", msg->n_blobs, ESP_MAX_CHUNK);
    return ESP_OK;
}

esp_status esp_check_loading(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_loading *m = &msg->loading;

    if (m->done_bytes > m->total_bytes)
        return bad(err, "%llu bytes done of %llu", (unsigned long long)m->done_bytes,
                   (unsigned long long)m->total_bytes);
    return no_frames(msg, err);
}

esp_status esp_check_ready(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_ready *m = &msg->ready;

    if (m->kv_blocks > 0 && m->block_tokens == 0)
        return bad(err, "KV blocks of no tokens");
    return no_frames(msg, err);
}

esp_status esp_check_encode(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_encode *m = &msg->encode;

    if (m->payload == ESP_PAYLOAD_TOKENS)
        return bad(err, "payload: tokens");
    if (m->payload == ESP_PAYLOAD_PIXELS && (m->rows % 3 != 0 || m->rows / 3 != m->width))
        return bad(err, "pixels of [%u,%u], not [3*S,S]", m->rows, m->width);
    return one_tensor(msg, m->rows, m->width, err);
}

/* Rows of the sequences: positions that fit, whole prefixes, images at their place, and the sum. */
static esp_status check_seqs(const struct esp_msg_step *m, struct esp_err *err)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct esp_seq_rows *s = &m->seqs[i];
        if (s->n_tok > UINT32_MAX - s->pos)
            return bad(err, "seqs[%u]: %u rows from position %u", i, s->n_tok, s->pos);
        /* The prefix attends both ways, so its keys and values must all be there before any row of it
         * attends. */
        if (s->pos < s->n_prefix && (s->pos > 0 || s->n_tok < s->n_prefix))
            return bad(err, "seqs[%u]: %u rows from position %u do not hold the whole prefix of %u", i,
                       s->n_tok, s->pos, s->n_prefix);
        if (s->n_images > 0 && s->pos > 0)
            return bad(err, "seqs[%u]: images at position %u", i, s->pos);
        for (uint32_t j = 0; j < i; j++) { /* at most 1024 of them */
            if (m->seqs[j].seq == s->seq)
                return bad(err, "seqs[%u]: sequence %llu twice", i, (unsigned long long)s->seq);
        }
        sum += s->n_tok; /* 1024 * 131072 at most */
    }
    if (sum != m->rows)
        return bad(err, "%u rows, but the sequences have %llu", m->rows, (unsigned long long)sum);
    return ESP_OK;
}

esp_status esp_check_step(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_step *m = &msg->step;
    esp_status st;

    if (m->payload != ESP_PAYLOAD_TOKENS && m->payload != ESP_PAYLOAD_ROWS)
        return bad(err, "payload: %u, takes tokens or rows", (unsigned)m->payload);
    if (m->payload == ESP_PAYLOAD_TOKENS && m->width != 1)
        return bad(err, "width: %u, is 1 for tokens", m->width);
    for (uint32_t i = 0; i < m->n_forks; i++) {
        if (m->forks[i].seq == m->forks[i].from)
            return bad(err, "forks[%u]: of itself", i);
    }
    st = check_seqs(m, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < m->n_wants; i++) {
        const struct esp_want *w = &m->wants[i];
        if (w->row >= m->rows)
            return bad(err, "wants[%u]: row %u of %u", i, w->row, m->rows);
        if (i > 0 && w->row <= m->wants[i - 1].row)
            return bad(err, "wants[%u]: row %u after row %u", i, w->row, m->wants[i - 1].row);
    }
    return one_tensor(msg, m->rows, m->width, err);
}

esp_status esp_check_result(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_result *m = &msg->result;

    for (uint32_t i = 0; i < m->n_rows; i++) {
        const struct esp_row_result *r = &m->rows[i];
        if (i > 0 && r->row <= m->rows[i - 1].row)
            return bad(err, "rows[%u]: row %u after row %u", i, r->row, m->rows[i - 1].row);
        if (r->n > 0 && (!r->ids || !r->logits))
            return bad(err, "rows[%u]: %u candidates and no array", i, r->n);
        for (uint32_t j = 1; j < r->n; j++) {
            if (r->logits[j] > r->logits[j - 1] ||
                (r->logits[j] == r->logits[j - 1] && r->ids[j] <= r->ids[j - 1]))
                return bad(err, "rows[%u]: candidate %u (id %u, %g) after (id %u, %g)", i, j, r->ids[j],
                           (double)r->logits[j], r->ids[j - 1], (double)r->logits[j - 1]);
        }
    }
    if (m->n_full > m->n_rows)
        return bad(err, "n_full: %u of %u rows", m->n_full, m->n_rows);
    if (m->n_full == 0)
        return no_frames(msg, err);
    if (m->vocab == 0)
        return bad(err, "vocab: 0 with full logits");
    return one_tensor(msg, m->n_full, m->vocab, err);
}

esp_status esp_check_kv_blocks(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_kv_blocks *m = &msg->kv_blocks;
    size_t row;

    if (m->first > m->total_blocks || m->n_blocks > m->total_blocks - m->first)
        return bad(err, "blocks [%u,%llu) of %u", m->first, (unsigned long long)m->first + m->n_blocks,
                   m->total_blocks);
    if (m->n_blocks == 0 && m->total_blocks > 0)
        return bad(err, "no blocks of %u", m->total_blocks);
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct esp_kv_seq *s = &m->seqs[i];

        if (((uint64_t)s->n_tok + m->block_tokens - 1) / m->block_tokens != s->n_blocks)
            return bad(err, "seqs[%u]: %u blocks of %u for %u tokens", i, s->n_blocks, m->block_tokens,
                       s->n_tok);
        for (uint32_t j = 0; j < s->n_blocks; j++)
            if (s->blocks[j] >= m->total_blocks)
                return bad(err, "seqs[%u]: block %u of %u", i, s->blocks[j], m->total_blocks);
        for (uint32_t j = 0; j < i; j++) /* at most 1024 of them */
            if (m->seqs[j].seq == s->seq)
                return bad(err, "seqs[%u]: sequence %llu twice", i, (unsigned long long)s->seq);
    }
    if (m->n_blocks == 0)
        return no_frames(msg, err);
    if (!esp_mul(&row, m->block_tokens, m->width) || row > UINT32_MAX)
        return bad(err, "blocks of [%u,%u]", m->block_tokens, m->width);
    return one_tensor(msg, m->n_blocks, (uint32_t)row, err);
}

esp_status esp_check_trace(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_trace *m = &msg->trace;

    if (m->step != 0 && m->image != 0)
        return bad(err, "of a step and of an image");
    if (m->session == 0 && (m->epoch == 0 || (m->step == 0 && m->image == 0)))
        return bad(err, "of no session, step or image");
    return one_tensor(msg, m->rows, m->width, err);
}

esp_status esp_check_request(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_request *m = &msg->request;

    if (m->max_tokens == 0 && !m->score)
        return bad(err, "max_tokens: 0");
    if (m->sampling.top_p > 1)
        return bad(err, "sampling.top_p: %g, takes 0 .. 1", m->sampling.top_p);
    if (msg->n_blobs != m->n_images)
        return bad(err, "%u raw frames for %u images", msg->n_blobs, m->n_images);
    for (uint32_t i = 0; i < msg->n_blobs; i++) {
        if (msg->blob[i].n_bytes == 0 || msg->blob[i].n_bytes > ESP_MAX_IMAGE_FILE)
            return bad(err, "image %u: a file of %zu bytes, takes 1 .. %u", i, msg->blob[i].n_bytes,
                       ESP_MAX_IMAGE_FILE);
    }
    return ESP_OK;
}

esp_status esp_check_resume(const struct esp_msg *msg, struct esp_err *err)
{
    static const uint8_t none[ESP_TICKET_BYTES];

    if (memcmp(msg->resume.ticket, none, sizeof none) == 0)
        return bad(err, "ticket: zeros");
    return no_frames(msg, err);
}

static esp_status check_stage_info(const struct esp_stage_info *s, struct esp_err *err)
{
    if (s->enc_lo > s->enc_hi || s->dec_lo > s->dec_hi)
        return bad(err, "layers [%u,%u) and [%u,%u)", s->enc_lo, s->enc_hi, s->dec_lo, s->dec_hi);
    return ESP_OK;
}

esp_status esp_check_accepted(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_accepted *m = &msg->accepted;

    for (uint32_t i = 0; i < m->n_stages; i++) {
        esp_status st = check_stage_info(&m->stages[i], err);
        if (!st && !is_set(m->stages[i].worker))
            st = bad(err, "no worker's name");
        if (st) {
            esp_err_prefix(err, "stages[%u]: ", i);
            return st;
        }
    }
    return no_frames(msg, err);
}

static esp_status check_hypothesis(const struct esp_hypothesis *h, struct esp_err *err)
{
    if (h->n_logprobs != h->n_ids && h->n_logprobs != h->n_ids + 1)
        return bad(err, "%u logprobs for %u ids", h->n_logprobs, h->n_ids);
    if (is_set(h->finish) && strcmp(h->finish, "eos") != 0 && strcmp(h->finish, "length") != 0)
        return bad(err, "finish: \"%s\"", h->finish);
    return ESP_OK;
}

esp_status esp_check_done(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_done *m = &msg->done;
    esp_status st = check_hypothesis(&m->best, err);

    if (st) {
        esp_err_prefix(err, "best: ");
        return st;
    }
    for (uint32_t i = 0; i < m->n_hypotheses; i++) {
        st = check_hypothesis(&m->hypotheses[i], err);
        if (st) {
            esp_err_prefix(err, "hypotheses[%u]: ", i);
            return st;
        }
    }
    return no_frames(msg, err);
}

esp_status esp_check_status(const struct esp_msg *msg, struct esp_err *err)
{
    static const char *const states[] = {"joining", "loading", "ready", "spare", "draining", "failed"};
    const struct esp_msg_status *m = &msg->status;

    for (uint32_t i = 0; i < m->n_workers; i++) {
        const struct esp_worker_status *w = &m->workers[i];
        esp_status st = check_stage_info(&w->stage, err);
        bool known = false;
        for (size_t j = 0; j < sizeof states / sizeof states[0]; j++)
            known |= strcmp(w->state, states[j]) == 0;
        if (!st && !known)
            st = bad(err, "state: \"%s\"", w->state);
        if (!st && w->done_bytes > w->total_bytes)
            st = bad(err, "%llu bytes done of %llu", (unsigned long long)w->done_bytes,
                     (unsigned long long)w->total_bytes);
        if (st) {
            esp_err_prefix(err, "workers[%u]: ", i);
            return st;
        }
    }
    return no_frames(msg, err);
}

esp_status esp_check_verified(const struct esp_msg *msg, struct esp_err *err)
{
    if (msg->verified.done > msg->verified.total)
        return bad(err, "%u done of %u", msg->verified.done, msg->verified.total);
    return no_frames(msg, err);
}

esp_status esp_check_verify_report(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_verify_report *m = &msg->verify_report;

    if (m->done > m->total || m->n_left > m->n_workers)
        return bad(err, "%u done of %u, %u left of %u workers", m->done, m->total, m->n_left, m->n_workers);
    return no_frames(msg, err);
}
