#include "tests/support/ref_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/reference_layer.h"

static void *must_alloc(size_t n, size_t each)
{
    void *p = calloc(n ? n : 1, each);
    if (!p)
        abort();
    return p;
}

static void must(esp_status st, const struct esp_err *err)
{
    if (st) {
        fprintf(stderr, "%s\n", err->text);
        abort();
    }
}

void esp_ref_features(float *out, const struct esp_checkpoint *ck, const float *pixels)
{
    const struct esp_config *c = esp_checkpoint_config(ck);
    const struct esp_ref_source src = {.ck = ck};
    const size_t n = c->vision.n_token, d = c->vision.width;
    uint32_t *rows = must_alloc(n, sizeof *rows);
    double *y = must_alloc(n * (d > c->text.width ? d : c->text.width), sizeof *y);
    float *x = must_alloc(n * d, sizeof *x);
    struct esp_err err;

    for (uint32_t i = 0; i < n; i++)
        rows[i] = i;
    must(esp_ref_vision_patches(y, &src, pixels, n, &err), &err);
    esp_ref_narrow(x, y, n * d);
    must(esp_ref_vision_positions(y, &src, x, n, &err), &err);
    esp_ref_narrow(x, y, n * d);
    for (uint32_t l = 0; l < c->vision.n_layer; l++) {
        must(esp_ref_vision_layer(y, &src, l, x, n, rows, n, &err), &err);
        esp_ref_narrow(x, y, n * d);
    }
    must(esp_ref_vision_post(y, &src, x, n, &err), &err);
    esp_ref_narrow(x, y, n * d);
    must(esp_ref_projector(y, &src, x, n, &err), &err);
    esp_ref_narrow(out, y, n * c->text.width);
    free(rows);
    free(y);
    free(x);
}

void esp_ref_logits(float *out, const struct esp_checkpoint *ck, const float *features, uint32_t n_images,
                    const int32_t *ids, uint32_t n, uint32_t n_prefix)
{
    const struct esp_config *c = esp_checkpoint_config(ck);
    const struct esp_ref_source src = {.ck = ck};
    const size_t n_feature = (size_t)n_images * c->vision.n_token, d = c->text.width, vocab = c->text.vocab;
    double *y = must_alloc(n * (d > vocab ? d : vocab), sizeof *y);
    float *x = must_alloc(n * d, sizeof *x);
    struct esp_err err;

    must(esp_ref_text_embed(y, &src, ids + n_feature, n - n_feature, &err), &err);
    memcpy(x, features, n_feature * d * sizeof *x);
    esp_ref_narrow(x + n_feature * d, y, (n - n_feature) * d);
    for (uint32_t l = 0; l < c->text.n_layer; l++) {
        must(esp_ref_text_layer(y, &src, l, x, n, n_prefix, &err), &err);
        esp_ref_narrow(x, y, n * d);
    }
    must(esp_ref_text_norm(y, &src, x, n, &err), &err);
    esp_ref_narrow(x, y, n * d);
    must(esp_ref_text_logits(y, &src, x, n, &err), &err);
    esp_ref_narrow(out, y, n * vocab);
    free(y);
    free(x);
}
