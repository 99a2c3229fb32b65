#include "coordinator/sizing.h"

#define TEXT_TOKENS  1024
#define BIG_PICTURE  1024 /* tokens; above that, two count as many */
#define SEQUENCES    4
#define IMAGES_LEAST 4
#define IMAGES_MOST  64
#define IMAGES_MAX   4096

esp_status esp_sizing_fill(struct esp_sizing *sizing, const struct esp_config *config, struct esp_err *err)
{
    const uint64_t n_token = config->vision.n_token;

    if (sizing->context == 0) {
        const uint64_t want = n_token * (n_token > BIG_PICTURE ? 2 : 4) + TEXT_TOKENS;
        sizing->context = want > ESP_MAX_CONTEXT ? ESP_MAX_CONTEXT : (uint32_t)want;
    }
    if (sizing->context < 2 || sizing->context > ESP_MAX_CONTEXT)
        return esp_fail(err, ESP_E_ARG, "--context %u: takes 2 to %d tokens", sizing->context,
                        ESP_MAX_CONTEXT);
    if (sizing->kv_tokens == 0)
        sizing->kv_tokens = SEQUENCES * sizing->context;
    if (sizing->kv_tokens < sizing->context)
        return esp_fail(err, ESP_E_ARG,
                        "--kv-tokens %u: must hold one sequence of --context %u tokens at least",
                        sizing->kv_tokens, sizing->context);
    if (sizing->max_images == 0) {
        const uint64_t n = n_token ? sizing->kv_tokens / n_token : IMAGES_LEAST;
        sizing->max_images = n < IMAGES_LEAST ? IMAGES_LEAST : n > IMAGES_MOST ? IMAGES_MOST : (uint32_t)n;
    }
    if (sizing->max_images > IMAGES_MAX)
        return esp_fail(err, ESP_E_ARG, "--max-images %u: %d at most", sizing->max_images, IMAGES_MAX);
    return ESP_OK;
}
