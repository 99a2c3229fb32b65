/* What espalier-worker --bench is asked to run: a JSON object. */
#include <string.h>

#include "worker/bench_state.h"

static esp_status bad_what(struct esp_err *err, const char *key, const char *takes)
{
    return esp_fail(err, ESP_E_ARG, "--bench: %s: takes %s", key, takes);
}

static bool number(uint32_t *out, const json_t *v, uint32_t min, uint32_t max)
{
    const json_int_t n = json_integer_value(v);

    if (!json_is_integer(v) || n < min || n > max)
        return false;
    *out = (uint32_t)n;
    return true;
}

static bool numbers(uint32_t *out, uint32_t *n_out, const json_t *v, size_t n_max, uint32_t min, uint32_t max)
{
    if (!json_is_array(v) || json_array_size(v) > n_max)
        return false;
    *n_out = (uint32_t)json_array_size(v);
    for (uint32_t i = 0; i < *n_out; i++)
        if (!number(&out[i], json_array_get(v, i), min, max))
            return false;
    return true;
}

static esp_status what_take(struct esp_bench_what *w, const char *key, const json_t *v, struct esp_err *err)
{
    uint32_t n;

    if (strcmp(key, "encode") == 0 || strcmp(key, "prefill") == 0 || strcmp(key, "profile") == 0) {
        if (!json_is_boolean(v))
            return bad_what(err, key, "true or false");
        *(key[0] == 'e'                 ? &w->encode
          : strcmp(key, "prefill") == 0 ? &w->prefill
                                        : &w->profile) = json_is_true(v);
    } else if (strcmp(key, "batch") == 0) {
        if (!numbers(w->batch, &w->n_batch, v, ESP_BENCH_BATCHES, 1, 256))
            return bad_what(err, key, "a list of at most 16 numbers of 1 to 256");
    } else if (strcmp(key, "weights") == 0) {
        if (!json_is_string(v) || !esp_wtype_parse(&w->weights, json_string_value(v)))
            return bad_what(err, key, "stored, bf16, f16, f32, q8 or q4");
    } else if (strcmp(key, "layers") == 0) {
        if (!numbers(w->layers, &n, v, 2, 1, ESP_MAX_LAYERS) || n != 2)
            return bad_what(err, key, "two numbers, of encoder and decoder layers, each at least 1");
    } else if (strcmp(key, "prompt") == 0) {
        return number(&w->prompt, v, 1, 32768) ? ESP_OK : bad_what(err, key, "1 to 32768");
    } else if (strcmp(key, "repeats") == 0) {
        return number(&w->repeats, v, 1, 1000) ? ESP_OK : bad_what(err, key, "1 to 1000");
    } else if (strcmp(key, "warm_up") == 0) {
        return number(&w->warm_up, v, 0, 100) ? ESP_OK : bad_what(err, key, "0 to 100");
    } else if (strcmp(key, "steps") == 0) {
        return number(&w->steps, v, 1, 10000) ? ESP_OK : bad_what(err, key, "1 to 10000");
    } else {
        return esp_fail(err, ESP_E_ARG, "--bench: %s: no such field", key);
    }
    return ESP_OK;
}

esp_status esp_bench_what(struct esp_bench_what *w, const char *text, struct esp_err *err)
{
    json_error_t why;
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, &why), *v;
    const char *key;
    esp_status st = ESP_OK;

    *w = (struct esp_bench_what){.encode = true,
                                 .prefill = true,
                                 .n_batch = 5,
                                 .batch = {1, 2, 4, 8, 16},
                                 .prompt = 4,
                                 .repeats = 5,
                                 .warm_up = 1,
                                 .steps = 32};
    if (!json_is_object(o)) {
        json_decref(o);
        return esp_fail(err, ESP_E_ARG, "--bench: takes a JSON object");
    }
    json_object_foreach(o, key, v)
    {
        st = what_take(w, key, v, err);
        if (st)
            break;
    }
    json_decref(o);
    if (!st && !w->encode && !w->prefill && w->n_batch == 0)
        st = esp_fail(err, ESP_E_ARG, "--bench: nothing to run");
    return st;
}
