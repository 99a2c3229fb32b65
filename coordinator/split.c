#include "coordinator/split.h"

#include <inttypes.h>
#include <stdbool.h>

/* A decimal number of at most six digits at **at, which moves behind it. */
static bool number(uint32_t *out, const char **at)
{
    const char *p = *at;
    uint32_t n = 0, n_digit = 0;

    for (; *p >= '0' && *p <= '9'; p++) {
        if (++n_digit > 6)
            return false;
        n = n * 10 + (uint32_t)(*p - '0');
    }
    *out = n;
    *at = p;
    return n_digit > 0;
}

esp_status esp_split_parse(struct esp_split *out, const char *text, uint32_t n_enc, uint32_t n_dec,
                           struct esp_err *err)
{
    struct esp_split split = {0};
    uint64_t enc = 0, dec = 0;
    const char *at = text;

    for (;;) {
        uint32_t e, d;
        if (split.n_stage == ESP_PLACE_MAX_WORKERS)
            return esp_fail(err, ESP_E_ARG, "--split names more than %d stages", ESP_PLACE_MAX_WORKERS);
        if (!number(&e, &at) || *at++ != '/' || !number(&d, &at) || (*at != ',' && *at != '\0'))
            return esp_fail(err, ESP_E_ARG,
                            "--split: stage %" PRIu32 " must be ENCODER/DECODER layers, as in \"%" PRIu32
                            "/0,0/%" PRIu32 "\"",
                            split.n_stage, n_enc, n_dec);
        if (e == 0 && d == 0)
            return esp_fail(err, ESP_E_ARG, "--split: stage %" PRIu32 " is 0/0: a stage needs layers",
                            split.n_stage);
        split.stage[split.n_stage].n_enc = e;
        split.stage[split.n_stage++].n_dec = d;
        enc += e;
        dec += d;
        if (*at == '\0')
            break;
        at++;
    }
    if (enc != n_enc || dec != n_dec)
        return esp_fail(err, ESP_E_ARG,
                        "--split sums to %" PRIu64 "/%" PRIu64 " layers, must sum to %" PRIu32 "/%" PRIu32
                        " (encoder/decoder)",
                        enc, dec, n_enc, n_dec);
    *out = split;
    return ESP_OK;
}
