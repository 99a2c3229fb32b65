/**
 * JSON from outside: strict parsing, and a reader of one object's fields that says what was wrong where.
 *
 * A reader's errors are sticky: after the first one every call returns the default and the first cause
 * stays, so that a struct is filled line by line and checked once, in the end.
 */
#ifndef ESP_MODEL_JSON_H
#define ESP_MODEL_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

/**
 * Parses one JSON object; a key twice in an object, NUL characters, bad UTF-8, nesting beyond jansson's 2048
 * and anything after the object but white space are errors.
 *
 * @param out   json_decref frees it; NULL on failure
 * @param file  for messages
 * Errors: ESP_E_FORMAT with line and column.
 */
esp_status esp_json_parse(json_t **out, const char *text, size_t n_bytes, const char *file,
                          struct esp_err *err);

#define ESP_SHOWN 160

/** A string from a file, fit for a message: cut at a character's end, control characters as '?'. Returns buf.
 */
const char *esp_shown(char buf[ESP_SHOWN], const char *text);

struct esp_json_reader {
    const json_t *object; /* borrowed */
    const char *file;     /* for messages, borrowed */
    const char *section;  /* "text_config." or "" */
    esp_status st;        /* first failure */
    struct esp_err *err;
};

/** The field, or NULL when it is absent or null. */
const json_t *esp_json_field(const struct esp_json_reader *r, const char *key);

/** Stores a failure about a field, unless there was one before: "FILE: SECTION.KEY: text". */
void esp_json_fail(struct esp_json_reader *r, esp_status code, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/** An integer in min..max; absent or null gives the default, which need not lie there. */
uint32_t esp_json_u32(struct esp_json_reader *r, const char *key, uint32_t absent, uint32_t min,
                      uint32_t max);

/** A number, integers too, in min..max, both included. */
double esp_json_real(struct esp_json_reader *r, const char *key, double absent, double min, double max);

bool esp_json_bool(struct esp_json_reader *r, const char *key, bool absent);

/** A string, borrowed from the object. */
const char *esp_json_string(struct esp_json_reader *r, const char *key, const char *absent);

/** A short description of a value for messages: "-3", "\"abc\"", "a list", ... Returns buf. */
const char *esp_json_describe(char buf[ESP_SHOWN], const json_t *value);

#endif
