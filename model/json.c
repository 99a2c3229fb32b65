#include "model/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

esp_status esp_json_parse(json_t **out, const char *text, size_t n_bytes, const char *file,
                          struct esp_err *err)
{
    json_error_t cause;
    char shown[ESP_SHOWN];
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &cause);

    *out = NULL;
    if (!root)
        return esp_fail(err, ESP_E_FORMAT, "%s: not JSON: line %d, column %d: %s", file, cause.line,
                        cause.column, esp_shown(shown, cause.text));
    if (!json_is_object(root)) {
        esp_fail(err, ESP_E_FORMAT, "%s: found %s, expected a JSON object", file,
                 esp_json_describe(shown, root));
        json_decref(root);
        return ESP_E_FORMAT;
    }
    *out = root;
    return ESP_OK;
}

const char *esp_shown(char buf[ESP_SHOWN], const char *text)
{
    size_t n = 0;

    for (; text[n] && n + 1 < ESP_SHOWN; n++) {
        unsigned char c = (unsigned char)text[n];
        buf[n] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    if (text[n]) { /* cut: not through a UTF-8 sequence, and visibly */
        n -= 3;
        while (n > 0 && ((unsigned char)text[n] & 0xc0u) == 0x80)
            n--;
        memcpy(buf + n, "...", 3);
        n += 3;
    }
    buf[n] = '\0';
    return buf;
}

const char *esp_json_describe(char buf[ESP_SHOWN], const json_t *value)
{
    char text[ESP_SHOWN];

    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return strcpy(buf, "an object");
    case JSON_ARRAY:
        snprintf(buf, ESP_SHOWN, "a list of %zu", json_array_size(value));
        return buf;
    case JSON_STRING:
        snprintf(buf, ESP_SHOWN, "\"%.100s\"", esp_shown(text, json_string_value(value)));
        return buf;
    case JSON_INTEGER:
        snprintf(buf, ESP_SHOWN, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return buf;
    case JSON_REAL:
        snprintf(buf, ESP_SHOWN, "%.9g", json_real_value(value));
        return buf;
    case JSON_TRUE:
        return strcpy(buf, "true");
    case JSON_FALSE:
        return strcpy(buf, "false");
    case JSON_NULL:
        break;
    }
    return strcpy(buf, "null");
}

const json_t *esp_json_field(const struct esp_json_reader *r, const char *key)
{
    const json_t *value = json_object_get(r->object, key);
    return json_is_null(value) ? NULL : value;
}

void esp_json_fail(struct esp_json_reader *r, esp_status code, const char *key, const char *fmt, ...)
{
    char text[ESP_ERR_TEXT_MAX];
    va_list ap;

    if (r->st)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    r->st = esp_fail(r->err, code, "%s: %s%s: %s", r->file, r->section, key, text);
}

uint32_t esp_json_u32(struct esp_json_reader *r, const char *key, uint32_t absent, uint32_t min, uint32_t max)
{
    const json_t *value = esp_json_field(r, key);
    char found[ESP_SHOWN];

    if (!value)
        return absent;
    if (!json_is_integer(value) || json_integer_value(value) < min || json_integer_value(value) > max) {
        esp_json_fail(r, ESP_E_FORMAT, key, "found %s, expected an integer in %u..%u",
                      esp_json_describe(found, value), min, max);
        return absent;
    }
    return (uint32_t)json_integer_value(value);
}

double esp_json_real(struct esp_json_reader *r, const char *key, double absent, double min, double max)
{
    const json_t *value = esp_json_field(r, key);
    char found[ESP_SHOWN];

    if (!value)
        return absent;
    if (!json_is_number(value) || !(json_number_value(value) >= min && json_number_value(value) <= max)) {
        esp_json_fail(r, ESP_E_FORMAT, key, "found %s, expected a number in %g..%g",
                      esp_json_describe(found, value), min, max);
        return absent;
    }
    return json_number_value(value);
}

bool esp_json_bool(struct esp_json_reader *r, const char *key, bool absent)
{
    const json_t *value = esp_json_field(r, key);
    char found[ESP_SHOWN];

    if (!value)
        return absent;
    if (!json_is_boolean(value)) {
        esp_json_fail(r, ESP_E_FORMAT, key, "found %s, expected true or false",
                      esp_json_describe(found, value));
        return absent;
    }
    return json_is_true(value);
}

const char *esp_json_string(struct esp_json_reader *r, const char *key, const char *absent)
{
    const json_t *value = esp_json_field(r, key);
    char found[ESP_SHOWN];

    if (!value)
        return absent;
    if (!json_is_string(value)) {
        esp_json_fail(r, ESP_E_FORMAT, key, "found %s, expected a string", esp_json_describe(found, value));
        return absent;
    }
    return json_string_value(value);
}
