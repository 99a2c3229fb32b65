#include "proto/wire_table.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "proto/keys.h"

esp_status esp_wire_bad(struct esp_err *err, const char *fmt, ...)
{
    char text[ESP_ERR_TEXT_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return esp_fail(err, ESP_E_PROTO, "%s", text);
}

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
        return n >= f->min ? ESP_OK : esp_wire_bad(err, "is empty");
    if (n < f->min)
        return esp_wire_bad(err, "is empty");
    if (n > f->max)
        return esp_wire_bad(err, "%zu bytes, at most %llu", n, (unsigned long long)f->max);
    if (f->rule == ESP_RULE_NAME) {
        for (size_t i = 0; i < n; i++) {
            if (!is_name_char(s[i]))
                return esp_wire_bad(err, "byte 0x%02x, takes letters, digits, '.', '_' and '-'",
                                    (unsigned char)s[i]);
        }
    } else if (f->rule == ESP_RULE_KEY) {
        uint8_t key[ESP_KEY_BYTES];
        if (n > 0 && !esp_key_parse(key, s, n))
            return esp_wire_bad(err, "not a key, which is %d characters of Z85", ESP_KEY_TEXT);
    } else if (f->rule == ESP_RULE_ENDPOINT) {
        bool known = n == 0;
        for (size_t i = 0; i < sizeof transports / sizeof transports[0]; i++)
            known |= strncmp(s, transports[i], strlen(transports[i])) == 0 && s[strlen(transports[i])];
        if (!known)
            return esp_wire_bad(err, "not an endpoint such as tcp://HOST:PORT or ipc://PATH");
        for (size_t i = 0; i < n; i++) {
            if (s[i] <= 0x20 || s[i] >= 0x7f)
                return esp_wire_bad(err, "byte 0x%02x in an endpoint", (unsigned char)s[i]);
        }
    } else {
        for (size_t i = 0; i < n;) {
            uint32_t c;
            size_t step = utf8_next(&c, s + i);
            if (step == 0)
                return esp_wire_bad(err, "not UTF-8 at byte %zu", i);
            if (f->rule == ESP_RULE_LINE && is_control(c))
                return esp_wire_bad(err, "control character 0x%02x", c);
            i += step;
        }
    }
    return ESP_OK;
}

static esp_status check_integer(uint64_t v, const struct esp_wire_field *f, struct esp_err *err)
{
    if (v < f->min || v > f->max)
        return esp_wire_bad(err, "%llu, takes %llu .. %llu", (unsigned long long)v,
                            (unsigned long long)f->min, (unsigned long long)f->max);
    return ESP_OK;
}

static esp_status check_real(double v, const struct esp_wire_field *f, struct esp_err *err)
{
    if (!isfinite(v))
        return esp_wire_bad(err, "%g is not finite", v);
    if (f->rule == ESP_RULE_NOT_NEGATIVE && v < 0)
        return esp_wire_bad(err, "%g is negative", v);
    if (f->rule == ESP_RULE_POSITIVE && v <= 0)
        return esp_wire_bad(err, "%g is not positive", v);
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
        return esp_wire_bad(err, "%s: %u entries, at most %u", f->name, n, f->max_n);
    if (n > 0 && !array)
        return esp_wire_bad(err, "%s: %u entries and no array", f->name, n);
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
        return esp_wire_bad(err, "unknown kind of message %u", (unsigned)msg->kind);
    if (msg->n_blobs > ESP_MAX_BLOBS)
        return esp_wire_bad(err, "%s: %u raw frames, at most %u", kind->name, msg->n_blobs, ESP_MAX_BLOBS);
    for (uint32_t i = 0; i < msg->n_blobs; i++) {
        if (msg->blob[i].n_bytes > ESP_MAX_FRAME)
            return esp_wire_bad(err, "%s: raw frame of %zu bytes, at most %u", kind->name,
                                msg->blob[i].n_bytes, ESP_MAX_FRAME);
        if (msg->blob[i].n_bytes > 0 && !msg->blob[i].data)
            return esp_wire_bad(err, "%s: raw frame without data", kind->name);
    }
    st = check_table((const char *)msg + kind->c, kind->table, sending, err);
    if (!st)
        st = kind->check(msg, err);
    if (st)
        esp_err_prefix(err, "%s: ", kind->name);
    return st;
}
