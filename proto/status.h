/**
 * Status codes, causes and checked size arithmetic.
 *
 * What can fail returns an esp_status and, where the caller passes a struct esp_err, the cause in words.
 * Both cross the network, so the numbers below are part of the protocol: never reuse one.
 */
#ifndef ESP_PROTO_STATUS_H
#define ESP_PROTO_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum esp_status {
    ESP_OK = 0,
    ESP_E_ARG = 1,          /* the caller or user asked for something that makes no sense */
    ESP_E_NOMEM = 2,        /* host or device memory, or a budget, does not suffice */
    ESP_E_IO = 3,           /* a file or socket could not be opened, read or written */
    ESP_E_FORMAT = 4,       /* a file's contents are not what they must be */
    ESP_E_PROTO = 5,        /* a peer's message is not what it must be */
    ESP_E_DEVICE = 6,       /* Vulkan said no, or the device computed nonsense */
    ESP_E_TIMEOUT = 7,      /* nothing came in time */
    ESP_E_CLOSED = 8,       /* the peer, worker or cluster is gone */
    ESP_E_CANCELLED = 9,    /* the client asked for the end */
    ESP_E_UNSUPPORTED = 10, /* well-formed, but not something this build or device can do */
    ESP_E_LIMIT = 11,       /* a stated limit would be passed (context, images, queue) */
    ESP_E_INTERNAL = 12,    /* a bug of ours */
    ESP_E_NUMBERS =
        13 /* a result is no finite number: weights that overflow float32, or a device that errs */
} esp_status;

#define ESP_ERR_TEXT_MAX 512

/** The cause of a failure. `text` is always NUL-terminated UTF-8, without a final newline. */
struct esp_err {
    esp_status code;
    char text[ESP_ERR_TEXT_MAX];
};

/** Stores code and text in *err (NULL is fine), cutting the text to fit; returns code. */
esp_status esp_fail(struct esp_err *err, esp_status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/** Puts text in front of the cause already in *err ("w2: layer 7: " ...); returns err->code. */
esp_status esp_err_prefix(struct esp_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/** Short stable name of a code, "no such code" for others: "bad argument", "out of memory", ... */
const char *esp_status_name(esp_status code);

/** a * b and a + b in *out; false, with *out untouched, on overflow. */
bool esp_mul(size_t *out, size_t a, size_t b);
bool esp_add(size_t *out, size_t a, size_t b);

/** n rounded up to a multiple of m (m >= 1); the caller knows that it cannot overflow. */
static inline size_t esp_round_up(size_t n, size_t m)
{
    return (n + m - 1) / m * m;
}

#endif
