#include "proto/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

esp_status esp_fail(struct esp_err *err, esp_status code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        err->code = code;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
    }
    return code;
}

esp_status esp_err_prefix(struct esp_err *err, const char *fmt, ...)
{
    char head[ESP_ERR_TEXT_MAX];
    size_t n_head, n_text;
    va_list ap;

    if (!err)
        return ESP_E_INTERNAL;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    n_head = strlen(head);
    n_text = strlen(err->text);
    if (n_head + n_text >= sizeof err->text)
        n_text = sizeof err->text - 1 - n_head; /* the cause loses its tail, never its head */
    memmove(err->text + n_head, err->text, n_text);
    memcpy(err->text, head, n_head);
    err->text[n_head + n_text] = '\0';
    return err->code;
}

const char *esp_status_name(esp_status code)
{
    switch (code) {
    case ESP_OK:
        return "ok";
    case ESP_E_ARG:
        return "bad argument";
    case ESP_E_NOMEM:
        return "out of memory";
    case ESP_E_IO:
        return "input/output error";
    case ESP_E_FORMAT:
        return "bad file";
    case ESP_E_PROTO:
        return "bad message";
    case ESP_E_DEVICE:
        return "device error";
    case ESP_E_TIMEOUT:
        return "timed out";
    case ESP_E_CLOSED:
        return "connection closed";
    case ESP_E_CANCELLED:
        return "cancelled";
    case ESP_E_UNSUPPORTED:
        return "not supported";
    case ESP_E_LIMIT:
        return "limit exceeded";
    case ESP_E_INTERNAL:
        return "internal error";
    case ESP_E_NUMBERS:
        return "no finite result";
    }
    return "no such code";
}

bool esp_mul(size_t *out, size_t a, size_t b)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

bool esp_add(size_t *out, size_t a, size_t b)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}
