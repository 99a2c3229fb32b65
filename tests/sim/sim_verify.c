/* A device that computes nothing has nothing to be checked: worker/verify.h, refusing. */
#include <stdlib.h>

#include "worker/verify.h"

struct esp_verify {
    char none;
};

esp_status esp_verify_create(struct esp_verify **out, struct esp_err *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "simulated check");
}

void esp_verify_destroy(struct esp_verify **verify)
{
    free(*verify);
    *verify = NULL;
}

esp_status esp_verify_run(struct esp_verify *v, struct esp_stage *stage, bool *more, struct esp_err *err)
{
    *more = false;
    return esp_fail(err, ESP_E_UNSUPPORTED, "a simulated device computes nothing that could be checked");
}

uint32_t esp_verify_n_parts(const struct esp_verify *v)
{
    return 0;
}

esp_status esp_verify_part(struct esp_verify *v, uint32_t i, bool (*stop)(void *arg), void *arg,
                           struct esp_verify_result *out, struct esp_err *err)
{
    return esp_fail(err, ESP_E_INTERNAL, "no part %u", i);
}
