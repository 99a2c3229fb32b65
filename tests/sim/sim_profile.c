#include "tests/sim/sim_profile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/cost.h"
#include "model/file.h"
#include "model/json.h"

#define MAX_SECONDS 3600.0
#define MAX_RATE    1e15
#define MAX_MIB     (1u << 24)
#define MAX_FILE    (64u << 10)
#define N_TEXT      32   /* tokens of a typical prompt: as the placement has it */
#define FIXED       0.9  /* of a decoding step: weights are read once for all its rows */
#define NO_TIME     1e-9 /* seconds: what no time counts as, where something is divided by it */

const struct sim_profile sim_profile_default = {
    .name = "Simulated", .memory_bytes = (uint64_t)1 << 30, .seed = 1};

static const char *const keys[] = {"name",
                                   "memory_mib",
                                   "encode_layer_seconds",
                                   "step_layer_seconds",
                                   "decode_row_seconds",
                                   "prefill_row_seconds",
                                   "head_seconds",
                                   "head_row_seconds",
                                   "load_bytes_per_second",
                                   "kv_bytes_per_second",
                                   "jitter",
                                   "seed"};

static bool known(const char *key)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (strcmp(keys[i], key) == 0)
            return true;
    return false;
}

esp_status sim_profile_parse(struct sim_profile *out, const char *text, size_t n_bytes, const char *file,
                             struct esp_err *err)
{
    struct sim_profile p = sim_profile_default;
    struct esp_json_reader r = {.file = file, .section = "", .err = err};
    json_t *root = NULL, *value;
    const char *key, *name;
    char shown[ESP_SHOWN];
    esp_status st = esp_json_parse(&root, text, n_bytes, file, err);

    if (st)
        return st;
    r.object = root;
    json_object_foreach(root, key, value)
    {
        if (!known(key))
            esp_json_fail(&r, ESP_E_FORMAT, esp_shown(shown, key), "a profile has no such field");
    }
    name = esp_json_string(&r, "name", p.name);
    if (!r.st && (!*name || strlen(name) >= sizeof p.name))
        esp_json_fail(&r, ESP_E_FORMAT, "name", "takes 1 to %zu bytes", sizeof p.name - 1);
    if (!r.st)
        memmove(p.name, name, strlen(name) + 1);
    p.memory_bytes = (uint64_t)esp_json_u32(&r, "memory_mib", (uint32_t)(p.memory_bytes >> 20), 1, MAX_MIB)
                     << 20;
    p.encode_layer_s = esp_json_real(&r, "encode_layer_seconds", p.encode_layer_s, 0, MAX_SECONDS);
    p.step_layer_s = esp_json_real(&r, "step_layer_seconds", p.step_layer_s, 0, MAX_SECONDS);
    p.decode_row_s = esp_json_real(&r, "decode_row_seconds", p.decode_row_s, 0, MAX_SECONDS);
    p.prefill_row_s = esp_json_real(&r, "prefill_row_seconds", p.prefill_row_s, 0, MAX_SECONDS);
    p.head_s = esp_json_real(&r, "head_seconds", p.head_s, 0, MAX_SECONDS);
    p.head_row_s = esp_json_real(&r, "head_row_seconds", p.head_row_s, 0, MAX_SECONDS);
    p.load_rate = esp_json_real(&r, "load_bytes_per_second", p.load_rate, 0, MAX_RATE);
    p.kv_rate = esp_json_real(&r, "kv_bytes_per_second", p.kv_rate, 0, MAX_RATE);
    p.jitter = esp_json_real(&r, "jitter", p.jitter, 0, 1);
    p.seed = esp_json_u32(&r, "seed", p.seed, 0, UINT32_MAX);
    if (!r.st)
        *out = p;
    json_decref(root);
    return r.st;
}

esp_status sim_profile_load(struct sim_profile *out, const char *path, struct esp_err *err)
{
    char *text = NULL;
    size_t n;
    esp_status st = esp_file_read(&text, &n, path, MAX_FILE, err);

    if (!st)
        st = sim_profile_parse(out, text, n, path, err);
    free(text);
    return st;
}

static esp_status costs(struct esp_model_cost *out, double *prompt, const struct esp_config *config,
                        struct esp_err *err)
{
    const struct esp_cost_options options = {
        .bytes_per_weight = 2, .n_image = 1, .n_text = N_TEXT, .max_rows = 1};

    *prompt = (double)config->vision.n_token + N_TEXT;
    return esp_model_cost_fill(out, config, &options, err);
}

esp_status sim_profile_rates(double *bandwidth, double *matmul_rate, const struct sim_profile *p,
                             const struct esp_config *config, struct esp_err *err)
{
    struct esp_model_cost c;
    double prompt, products_s;
    esp_status st = costs(&c, &prompt, config, err);

    if (st)
        return st;
    products_s = c.n_enc * p->encode_layer_s + c.n_dec * (p->step_layer_s + prompt * p->prefill_row_s);
    *bandwidth = c.dec_layer.decode.n_bytes / fmax(p->step_layer_s + p->decode_row_s, NO_TIME);
    *matmul_rate =
        (c.n_enc * c.enc_layer.encode.flop + c.n_dec * c.dec_layer.prefill.flop) / fmax(products_s, NO_TIME);
    return ESP_OK;
}

esp_status sim_profile_device(struct sim_profile *p, double bandwidth, double matmul_rate,
                              const struct esp_config *config, struct esp_err *err)
{
    struct esp_model_cost c;
    double prompt, decode_s, prefill_s, head_s;
    esp_status st = costs(&c, &prompt, config, err);

    if (st)
        return st;
    decode_s = fmax(c.dec_layer.decode.flop / matmul_rate, c.dec_layer.decode.n_bytes / bandwidth);
    prefill_s = fmax(c.dec_layer.prefill.flop / matmul_rate, c.dec_layer.prefill.n_bytes / bandwidth);
    head_s = fmax(c.head.decode.flop / matmul_rate, c.head.decode.n_bytes / bandwidth);
    p->encode_layer_s = fmax(c.enc_layer.encode.flop / matmul_rate, c.enc_layer.encode.n_bytes / bandwidth);
    p->step_layer_s = FIXED * decode_s;
    p->decode_row_s = (1 - FIXED) * decode_s;
    p->prefill_row_s = fmax(prefill_s - p->step_layer_s, 0) / prompt;
    p->head_s = FIXED * head_s;
    p->head_row_s = (1 - FIXED) * head_s;
    return ESP_OK;
}
