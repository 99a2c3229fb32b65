/* A check of the stage that fake_stage.c makes: worker/verify.h without arithmetic. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/support/fake_stage.h"
#include "worker/verify.h"

struct esp_verify {
    struct esp_stage_spec spec;
    bool encoded;
    uint32_t n;
};

esp_status esp_verify_create(struct esp_verify **out, struct esp_err *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "fake check");
}

void esp_verify_destroy(struct esp_verify **verify)
{
    free(*verify);
    *verify = NULL;
}

/* A picture, then, another time, a sequence of one row. */
esp_status esp_verify_run(struct esp_verify *v, struct esp_stage *stage, bool *more, struct esp_err *err)
{
    static const float rows[FAKE_PICTURE_ROWS * FAKE_WIDTH];
    const struct esp_seq_rows seq = {.seq = ESP_SEQ_VERIFY, .n_tok = 1, .n_prefix = 1};
    struct esp_stage_out out = {0};
    esp_status st;

    v->spec = *esp_stage_spec(stage);
    v->n = v->spec.enc_hi - v->spec.enc_lo + v->spec.dec_hi - v->spec.dec_lo;
    *more = false;
    if (!v->encoded && v->spec.enc_lo < v->spec.enc_hi) {
        const struct esp_msg_encode msg = {.payload = v->spec.patch ? ESP_PAYLOAD_PIXELS : ESP_PAYLOAD_ROWS,
                                           .rows = FAKE_PICTURE_ROWS,
                                           .width = FAKE_WIDTH};
        st = esp_stage_encode(stage, &msg, rows, &out, err);
        *more = v->spec.dec_lo < v->spec.dec_hi;
        v->encoded = true;
    } else {
        const struct esp_msg_step msg = {.payload = v->spec.embed ? ESP_PAYLOAD_TOKENS : ESP_PAYLOAD_ROWS,
                                         .rows = 1,
                                         .width = v->spec.embed ? 1 : FAKE_WIDTH,
                                         .n_seqs = 1,
                                         .seqs = &seq};
        const struct esp_msg_release release = {.n_seqs = 1, .seqs = &seq.seq};

        st = esp_stage_step(stage, &msg, rows, &out, err);
        esp_stage_release(stage, &release);
    }
    esp_stage_out_finish(&out);
    return st;
}

uint32_t esp_verify_n_parts(const struct esp_verify *v)
{
    return v->n;
}

esp_status esp_verify_part(struct esp_verify *v, uint32_t i, bool (*stop)(void *arg), void *arg,
                           struct esp_verify_result *out, struct esp_err *err)
{
    const uint32_t n_enc = v->spec.enc_hi - v->spec.enc_lo;

    while (v->spec.kv_tokens == FAKE_KV_ENDLESS && i > 0) {
        const struct timespec t = {.tv_nsec = 1000000};

        if (stop(arg))
            return esp_fail(err, ESP_E_CANCELLED, "stopped");
        nanosleep(&t, NULL);
    }
    if (i < n_enc)
        snprintf(out->layer, sizeof out->layer, "vision.layer.%u", v->spec.enc_lo + i);
    else
        snprintf(out->layer, sizeof out->layer, "prefill.layer.%u", v->spec.dec_lo + i - n_enc);
    out->limit = ESP_VERIFY_LIMIT;
    out->error = v->spec.kv_tokens == FAKE_KV_WRONG && i + 1 == v->n ? 0.5 : 1e-6;
    return ESP_OK;
}
