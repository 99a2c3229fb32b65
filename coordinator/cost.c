#include "coordinator/cost.h"

/* All products in double: dimensions are at most 2^32, and a planner's bytes need no exact last digit. */

static uint64_t bytes_of(double n, double bytes_each)
{
    double b = n * bytes_each;
    return b < 9e18 ? (uint64_t)b : (uint64_t)9e18;
}

static void fill_vision(struct esp_model_cost *c, const struct esp_vision_config *v, double text_width,
                        double bpw, double n_image)
{
    double D = v->width, F = v->mlp_dim, T = v->n_token,
           patch = (double)v->n_channel * v->patch_size * v->patch_size;
    double layer = 4 * D * D + 2 * D * F, small = 9 * D + F; /* matrices; biases and norms, which stay f32 */

    c->enc_layer.weight_bytes = bytes_of(layer, bpw) + bytes_of(small, 4);
    c->enc_layer.alloc_bytes = bytes_of(D * (F > D ? F : D), bpw);
    c->enc_layer.encode.flop = n_image * (2 * T * layer + 4 * T * T * D);
    c->enc_layer.encode.n_bytes = n_image * (layer * bpw + T * (10 * D + 2 * F) * 4);
    c->patch.weight_bytes = bytes_of(patch * D, bpw) + bytes_of(D + T * D, 4);
    c->patch.alloc_bytes = bytes_of(T * D, 4);
    c->patch.encode.flop = n_image * 2 * T * patch * D;
    c->patch.encode.n_bytes = n_image * (patch * D * bpw + T * (patch + 2 * D) * 4);
    c->projector.weight_bytes = bytes_of(D * text_width, bpw) + bytes_of(2 * D + text_width, 4);
    c->projector.alloc_bytes = bytes_of(D * text_width, bpw);
    c->projector.encode.flop = n_image * 2 * T * D * text_width;
    c->projector.encode.n_bytes = n_image * (D * text_width * bpw + T * (D + text_width) * 4);
    /* residual, norm, q, k, v, attention out, MLP; the patches on the way in */
    c->enc_scratch_bytes = bytes_of(T * (6 * D + F + patch + text_width), 4);
    c->enc_hop_bytes = n_image * T * D * 4;
    c->feature_hop_bytes = n_image * T * text_width * 4;
}

/* @param careful  bytes a weight of the embedding table and of Q, K and V; bpw of the rest */
static void fill_text(struct esp_model_cost *c, const struct esp_text_config *t, double bpw, double careful,
                      double prompt, const struct esp_cost_options *o)
{
    double D = t->width, F = t->mlp_dim, NH = (double)t->n_head * t->head_dim,
           KH = (double)t->n_kv_head * t->head_dim;
    double V = t->vocab, qkv = D * (NH + 2 * KH), rest = NH * D + 3 * D * F, layer = qkv + rest;
    double layer_bytes = qkv * careful + rest * bpw, wide = NH * careful > F * bpw ? NH * careful : F * bpw;
    double behind = prompt + 0.5 * c->n_answer; /* tokens that a decoded one sees, on average */

    c->kv_token_bytes = bytes_of(2 * KH, 4);
    c->dec_layer.weight_bytes = bytes_of(layer_bytes, 1) + bytes_of((t->post_norms ? 4 : 2) * D, 4);
    c->dec_layer.alloc_bytes = bytes_of(D * wide, 1);
    c->dec_layer.prefill.flop = 2 * prompt * layer + 4 * prompt * prompt * NH;
    c->dec_layer.prefill.n_bytes = layer_bytes + prompt * (6 * D + 2 * NH + 4 * KH + 4 * F) * 4;
    c->dec_layer.decode.flop = 2 * layer + 4 * behind * NH;
    c->dec_layer.decode.n_bytes = layer_bytes + behind * 2 * KH * 4;
    c->embed.weight_bytes = bytes_of(V * D, careful);
    c->embed.alloc_bytes = c->embed.weight_bytes;
    c->embed.prefill.n_bytes = prompt * D * (careful + 4);
    c->embed.decode.n_bytes = D * (careful + 4);
    c->head.weight_bytes = bytes_of(D, 4);
    c->head.alloc_bytes = c->embed.weight_bytes;
    c->head.prefill =
        (struct esp_work){.flop = 2 * V * D, .n_bytes = V * D * careful}; /* one row: the last */
    c->head.decode = c->head.prefill;
    c->dec_scratch_bytes = bytes_of((double)o->max_rows * (3 * D + 2 * NH + 2 * KH + 2 * F), 4);
    c->head_scratch_bytes = bytes_of((o->max_seqs ? o->max_seqs : 1) * V, 4);
    c->prefill_hop_bytes = prompt * D * 4;
    c->decode_hop_bytes = D * 4;
}

esp_status esp_model_cost_fill(struct esp_model_cost *out, const struct esp_config *config,
                               const struct esp_cost_options *options, struct esp_err *err)
{
    struct esp_model_cost c = {0};
    double prompt =
        (double)options->n_image * config->vision.n_token + (options->n_text ? options->n_text : 32);

    const double careful = options->careful_bytes != 0 ? options->careful_bytes : options->bytes_per_weight;
    const double vision = options->vision_bytes != 0 ? options->vision_bytes : options->bytes_per_weight;

    if (!(options->bytes_per_weight > 0.0 && options->bytes_per_weight <= 8.0 && careful > 0.0 &&
          careful <= 8.0 && vision > 0.0 && vision <= 8.0))
        return esp_fail(err, ESP_E_ARG, "%g, %g and %g bytes a weight", options->bytes_per_weight, careful,
                        vision);
    if (options->n_image == 0 || options->max_rows == 0)
        return esp_fail(err, ESP_E_ARG, "a typical request has at least 1 image and 1 row");
    c.n_enc = config->vision.n_layer;
    c.n_dec = config->text.n_layer;
    c.n_answer = options->n_answer ? options->n_answer : 32;
    fill_vision(&c, &config->vision, config->text.width, vision, options->n_image);
    fill_text(&c, &config->text, options->bytes_per_weight, careful, prompt, options);
    *out = c;
    return ESP_OK;
}
