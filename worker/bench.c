/* espalier-worker --bench: a model and a stage of all its layers, what is run on it, and what is printed. */
#include <stdio.h>
#include <stdlib.h>

#include "model/shape.h"
#include "worker/bench_state.h"
#include "proto/clock.h"
#include "worker/piece.h"

static bool decodes(const struct esp_bench *b)
{
    return b->what.prefill || b->what.n_batch > 0;
}

static uint32_t max_batch(const struct esp_bench *b)
{
    uint32_t most = 1;

    for (uint32_t i = 0; i < b->what.n_batch; i++)
        most = b->what.batch[i] > most ? b->what.batch[i] : most;
    return most;
}

/* ---- telling ---- */

static esp_status print_line(FILE *out, json_t *o, bool ok, struct esp_err *err)
{
    char *text = o && ok ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    esp_status st = ESP_OK;

    if (!text)
        st = esp_fail(err, ESP_E_NOMEM, "results");
    else if (fprintf(out, "%s\n", text) < 0 || fflush(out) != 0)
        st = esp_fail(err, ESP_E_IO, "standard output cannot be written");
    free(text);
    json_decref(o);
    return st;
}

esp_status esp_bench_tell(const struct esp_bench *b, const char *what, uint64_t done, uint64_t total,
                          struct esp_err *err)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "progress", json_string(what));
    SET(o, "done", json_integer((json_int_t)done));
    SET(o, "total", json_integer((json_int_t)total));
    SET(o, "part", json_integer(b->part));
    SET(o, "parts", json_integer(b->n_part));
    return print_line(b->out, o, ok, err);
}

static bool on_load(void *arg, uint64_t done, uint64_t total)
{
    const struct esp_bench *b = arg;

    if (done == total)
        return esp_bench_tell(b, "preparing kernels", 0, 0, NULL) == ESP_OK;
    return esp_bench_tell(b, b->made ? "making weights, bytes" : "loading weights, bytes", done, total,
                          NULL) == ESP_OK;
}

/* ---- the stage ---- */

static esp_status inputs_make(struct esp_bench *b, struct esp_err *err)
{
    const struct esp_vision_config *v = &b->c->vision;
    const size_t n_pixel = (size_t)v->n_channel * v->image_size * v->image_size;
    const size_t n_feature = (size_t)v->n_token * b->c->text.width;
    const size_t n_id = b->prefix > max_batch(b) ? b->prefix : max_batch(b);

    b->pixels = malloc(n_pixel * sizeof *b->pixels);
    b->features = malloc(n_feature * sizeof *b->features);
    b->ids = malloc(n_id * sizeof *b->ids);
    if (!b->pixels || !b->features || !b->ids)
        return esp_fail(err, ESP_E_NOMEM, "a picture of %u pixels a side", v->image_size);
    for (size_t i = 0; i < n_pixel; i++)
        b->pixels[i] = (float)esp_bench_draw(b, 65536) / 32768.0f - 1.0f;
    for (size_t i = 0; i < n_feature; i++)
        b->features[i] = (float)esp_bench_draw(b, 65536) / 32768.0f - 1.0f;
    return ESP_OK;
}

static void spec_make(struct esp_bench *b)
{
    const uint32_t n_step = esp_bench_warm_steps(&b->what) + b->what.steps + 2, most = max_batch(b);
    const bool enc = b->what.encode, dec = decodes(b);
    /* of its own each sequence has what it decodes and a copy of the block that it shares in part */
    const uint64_t own = ((n_step + ESP_KV_BLOCK - 1) / ESP_KV_BLOCK + 1) * ESP_KV_BLOCK;

    b->spec = (struct esp_stage_spec){.enc_hi = enc ? b->c->vision.n_layer : 0,
                                      .patch = enc,
                                      .projector = enc,
                                      .weights = b->what.weights,
                                      .dec_hi = dec ? b->c->text.n_layer : 0,
                                      .embed = dec,
                                      .head = dec};
    if (!dec)
        return;
    b->spec.max_rows = b->prefix + n_step > most ? b->prefix + n_step : most;
    b->spec.kv_tokens = (uint32_t)(b->prefix + ESP_KV_BLOCK + most * own);
    b->spec.max_seqs = most + 1;
    b->spec.max_images = 1;
}

/* The decoder has a picture, whether the encoder is here or not: any numbers of unit scale will do. */
static esp_status stage_open(struct esp_bench *b, struct esp_err *err)
{
    const struct esp_msg_encode picture = {.epoch = 1,
                                           .image = ESP_BENCH_IMAGE,
                                           .payload = ESP_PAYLOAD_FEATURES,
                                           .rows = b->c->vision.n_token,
                                           .width = b->c->text.width};
    const double t0 = esp_now_seconds();
    struct esp_stage_info_out info;
    esp_status st = esp_stage_create(&b->stage, b->shelf, &b->spec, NULL, on_load, b, err);

    if (st)
        return st;
    esp_stage_info(b->stage, &info);
    if (info.loaded_bytes > 0) {
        b->load_seconds = esp_now_seconds() - t0;
        b->load_bytes = info.loaded_bytes;
    }
    return decodes(b) ? esp_stage_store(b->stage, &picture, b->features, err) : ESP_OK;
}

static esp_status model_open(struct esp_bench *b, const char *model, struct esp_err *err)
{
    esp_status st = esp_checkpoint_open(&b->ck, model, err);

    if (st)
        return st;
    b->c = esp_checkpoint_config(b->ck);
    b->made = esp_shape_named(model);
    b->of_layers[0] = b->c->vision.n_layer;
    b->of_layers[1] = b->c->text.n_layer;
    if (b->what.layers[0])
        st = esp_checkpoint_cut(b->ck, b->what.layers[0], b->what.layers[1], err);
    b->prefix = b->c->vision.n_token + b->what.prompt;
    return st;
}

/* ---- results ---- */

static json_t *pair(uint32_t a, uint32_t b)
{
    return json_pack("[i,i]", (int)a, (int)b);
}

static json_t *device_json(const struct esp_vk_report *r)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "name", json_string(r->name));
    SET(o, "driver", json_string(r->driver));
    SET(o, "variant", json_string(r->variant));
    SET(o, "type", json_integer(r->type));
    SET(o, "software", json_boolean(r->type == VK_PHYSICAL_DEVICE_TYPE_CPU));
    SET(o, "memory_bytes", json_integer((json_int_t)r->memory_bytes));
    if (!ok)
        json_decref(o);
    return ok ? o : NULL;
}

static esp_status print_results(struct esp_bench *b, const char *model, const struct esp_stage_info_out *info,
                                struct esp_err *err)
{
    const struct esp_piece *layer; /* the first one that is here: all matrices are of its type, but for q4 */
    const uint32_t piece = ESP_N_PIECE_END + (decodes(b) ? b->c->vision.n_layer : 0);
    json_t *o;
    bool ok;
    esp_status st = esp_shelf_piece(&layer, b->shelf, piece, err);

    if (st)
        return st;
    o = json_object();
    ok = o != NULL;

    SET(o, "model", json_string(model));
    SET(o, "made", json_boolean(b->made));
    SET(o, "layers", pair(b->what.encode ? b->c->vision.n_layer : 0, decodes(b) ? b->c->text.n_layer : 0));
    SET(o, "of_layers", pair(b->of_layers[0], b->of_layers[1]));
    SET(o, "device", device_json(esp_vk_report(b->vk)));
    SET(o, "weights",
        json_string(esp_wtype_name(esp_wtype_quantised(b->what.weights) ? b->what.weights
                                                                        : layer->mat[0].mat.wtype)));
    SET(o, "image_tokens", json_integer(b->c->vision.n_token));
    SET(o, "prefix", json_integer(b->prefix));
    SET(o, "ceilings",
        json_pack("{s:f,s:f,s:I}", "read_rate", b->ceilings.read_rate, "flop_rate", b->ceilings.flop_rate,
                  "read_bytes", (json_int_t)b->ceilings.read_bytes));
    SET(o, "load", json_pack("{s:f,s:I}", "seconds", b->load_seconds, "bytes", (json_int_t)b->load_bytes));
    SET(o, "weight_bytes", json_integer((json_int_t)info->weight_bytes));
    SET(o, "kv_bytes", json_integer((json_int_t)info->kv_bytes));
    SET(o, "scratch_bytes", json_integer((json_int_t)info->scratch_bytes));
    SET(o, "phases", b->phases);
    b->phases = NULL;
    return print_line(b->out, o, ok, err);
}

/* Measured again: on a machine that has other work too the better of two says more of the device. What was measured
 * first stands where there is no room any more. */
static void ceilings_again(struct esp_bench *b)
{
    struct esp_ceilings c;

    if (esp_vk_ceilings(&c, b->vk, NULL) != ESP_OK)
        return;
    if (c.read_rate > b->ceilings.read_rate)
        b->ceilings.read_rate = c.read_rate;
    if (c.flop_rate > b->ceilings.flop_rate)
        b->ceilings.flop_rate = c.flop_rate;
}

esp_status esp_bench_run(const struct esp_bench_options *options, FILE *out, const struct esp_log *log,
                         struct esp_err *err)
{
    const struct esp_vk_options vk_options = {.memory_limit_bytes = options->memory_bytes, .force_class = -1};
    struct esp_bench b = {.out = out, .random = 1};
    struct esp_stage_info_out info = {0};
    esp_status st = esp_bench_what(&b.what, options->what, err);

    if (!st)
        st = model_open(&b, options->model, err);
    if (!st)
        st = esp_vk_open(&b.vk, options->device, &vk_options, log, err);
    if (st)
        goto done;
    b.vk->packed = options->packed;
    b.phases = json_array();
    if (!b.phases) {
        st = esp_fail(err, ESP_E_NOMEM, "results");
        goto done;
    }
    b.part = 1; /* the ceilings, the weights, the phases, the ceilings again */
    b.n_part = 3 + esp_bench_n_phase(&b.what) * (b.what.profile ? 2 : 1);
    if ((st = esp_bench_tell(&b, "measuring what the device can do", 0, 0, err)) ||
        (st = esp_vk_ceilings(&b.ceilings, b.vk, err)) || (st = inputs_make(&b, err)) ||
        (st = esp_shelf_create(&b.shelf, b.vk, b.ck, NULL, NULL, err)))
        goto done;
    if (b.made)
        esp_shelf_make_up(b.shelf);
    spec_make(&b);
    b.part++;
    st = stage_open(&b, err);
    if (st)
        goto done;
    esp_stage_info(b.stage, &info);
    st = esp_bench_phases(&b, false, err);
    if (!st && b.what.profile) { /* timestamps cost time, so those runs are others; the weights stay */
        esp_stage_destroy(&b.stage);
        st = esp_vk_set_profile(b.vk, true, err);
        if (!st)
            st = esp_bench_tell(&b, "preparing kernels to be profiled", 0, 0, err);
        if (!st)
            st = stage_open(&b, err);
        if (!st)
            st = esp_bench_phases(&b, true, err);
    }
    b.part++;
    if (!st && !(st = esp_bench_tell(&b, "measuring what the device can do", 0, 0, err)))
        ceilings_again(&b);
    if (!st)
        st = print_results(&b, options->model, &info, err);
done:
    esp_stage_destroy(&b.stage);
    esp_shelf_destroy(&b.shelf);
    esp_vk_close(&b.vk);
    esp_checkpoint_destroy(&b.ck);
    json_decref(b.phases);
    free(b.pixels);
    free(b.features);
    free(b.ids);
    return st;
}
