/* Operations on rows: norms, the embedding, what comes from the host and goes there. */
#include "worker/ops.h"

#include "worker/launch.h"

ESP_CHECK_PUSH(esp_push_norm);
ESP_CHECK_PUSH(esp_push_embed);
ESP_CHECK_PUSH(esp_push_io);
ESP_CHECK_PUSH(esp_push_im2col);
ESP_CHECK_PUSH(esp_push_add);
ESP_CHECK_PUSH(esp_push_topk);
ESP_CHECK_PUSH(esp_push_kv_copy);

void esp_op_norm(struct esp_rec *rec, struct esp_rows y, struct esp_rows x, const struct esp_norm_how *how)
{
    const enum esp_count count = how->pick ? ESP_COUNT_WANTS : ESP_COUNT_ROWS;
    const uint32_t spec[1] = {how->mode};
    const struct esp_push_norm push = {ESP_PUSH_ADDRESSES(rec, 0), .x_at = x.at,
                                       .x_stride = x.stride,       .y_at = y.at,
                                       .y_stride = y.stride,       .width = how->width,
                                       .n_quad = x.stride,         .weight = how->weight,
                                       .bias = how->bias,          .count = esp_count_word(count),
                                       .pick = how->pick,          .eps = how->eps};

    esp_launch(rec, &(struct esp_launch){.code = esp_launch_find(rec, ESP_K_NORM, ESP_W_NONE),
                                         .spec = spec,
                                         .n_spec = 1,
                                         .push = &push,
                                         .push_bytes = sizeof push,
                                         .grid = {.count = count, .div = 1, .axis = 0, .dims = {1, 1, 1}}});
}

uint32_t esp_norm_squares(const struct esp_vk *vk, uint32_t width)
{
    /* a group of columns each (gpu), or what a workgroup computes (direct) */
    return vk->cls == ESP_VK_GPU      ? (uint32_t)esp_round_up(width, 32) / 8
           : vk->cls == ESP_VK_DIRECT ? esp_div_up(width, 64)
                                      : 0;
}

void esp_op_norm_begin(struct esp_rec *rec, struct esp_rows x, const struct esp_split_norm *norm,
                       uint32_t most)
{
    const bool direct = rec->space->vk->cls == ESP_VK_DIRECT; /* a workgroup: one square, else 64 */
    const uint32_t n_square = esp_norm_squares(rec->space->vk, 4 * x.stride);
    const struct esp_push_norm push = {ESP_PUSH_ADDRESSES(rec, 0),
                                       .x_at = x.at,
                                       .x_stride = x.stride,
                                       .y_at = norm->z.at,
                                       .y_stride = norm->z.stride,
                                       .width = norm->width,
                                       .n_quad = x.stride,
                                       .weight = norm->weight,
                                       .count = esp_count_word(ESP_COUNT_ROWS),
                                       .squares_at = norm->squares.at,
                                       .squares_stride = norm->squares.stride};

    if (direct && !most && !rec->st)
        rec->st = esp_fail(rec->err, ESP_E_INTERNAL, "a norm begun for weights that take no integers");
    esp_launch(rec,
               &(struct esp_launch){.code = esp_launch_find(rec, ESP_K_NORM_BEGIN, ESP_W_NONE),
                                    .spec = &most,
                                    .n_spec = direct,
                                    .push = &push,
                                    .push_bytes = sizeof push,
                                    .grid = {.count = ESP_COUNT_ROWS,
                                             .div = 1,
                                             .dims = {1, direct ? n_square : esp_div_up(n_square, 64), 1}}});
}

void esp_op_embed(struct esp_rec *rec, struct esp_rows y, struct esp_rows features, const struct esp_mat *w,
                  float scale)
{
    for (uint32_t i = 0; i < w->n_part; i++) {
        const struct esp_push_embed push = {ESP_PUSH_ADDRESSES(rec, w->part[i].chunk),
                                            .y_at = y.at,
                                            .y_stride = y.stride,
                                            .features_at = features.at,
                                            .w_at = w->part[i].at,
                                            .k4 = w->kp / 4,
                                            .row0 = w->part[i].row0,
                                            .n_row = w->part[i].n_row,
                                            .scale = scale};
        esp_launch(rec, &(struct esp_launch){.code = esp_launch_find(rec, ESP_K_EMBED, w->wtype),
                                             .push = &push,
                                             .push_bytes = sizeof push,
                                             .chunk = w->part[i].chunk,
                                             .grid = {.count = ESP_COUNT_ROWS,
                                                      .div = 1,
                                                      .axis = 0,
                                                      .dims = {1, esp_div_up(w->kp / 8, 64), 1}}});
    }
}

/* Operations on whole rows: a workgroup column a row, 64 quads a workgroup. */
static void launch_rows(struct esp_rec *rec, enum esp_kernel k, const void *push, uint32_t push_bytes,
                        uint32_t n_quad, enum esp_count count)
{
    esp_launch(rec,
               &(struct esp_launch){
                   .code = esp_launch_find(rec, k, ESP_W_NONE),
                   .push = push,
                   .push_bytes = push_bytes,
                   .grid = {.count = count, .div = 1, .axis = 0, .dims = {1, esp_div_up(n_quad, 64), 1}}});
}

void esp_op_im2col(struct esp_rec *rec, struct esp_rows y, uint32_t channels, uint32_t size, uint32_t patch)
{
    const struct esp_push_im2col push = {
        ESP_PUSH_ADDRESSES(rec, 0), .host = rec->space->in.addr, .y_at = y.at,
        .y_stride = y.stride,       .channels = channels,        .size = size,
        .side_px = patch,           .side = size / patch};
    launch_rows(rec, ESP_K_IM2COL, &push, sizeof push, y.stride, ESP_COUNT_ROWS);
}

void esp_op_add_vec(struct esp_rec *rec, struct esp_rows y, uint32_t vec_at)
{
    const struct esp_push_add push = {ESP_PUSH_ADDRESSES(rec, 0), .y_at = y.at,     .y_stride = y.stride,
                                      .n_quad = y.stride,         .vec_at = vec_at, .count = ESP_STEP_N_ROWS};
    launch_rows(rec, ESP_K_ADD, &push, sizeof push, y.stride, ESP_COUNT_ROWS);
}

void esp_op_rows_in(struct esp_rec *rec, struct esp_rows y, uint32_t width)
{
    const struct esp_push_io push = {ESP_PUSH_ADDRESSES(rec, 0),
                                     .host = rec->space->in.addr,
                                     .y_at = y.at,
                                     .y_stride = y.stride,
                                     .width = width,
                                     .n_quad = y.stride,
                                     .count = ESP_STEP_N_ROWS};
    launch_rows(rec, ESP_K_ROWS_IN, &push, sizeof push, y.stride, ESP_COUNT_ROWS);
}

void esp_op_rows_out(struct esp_rec *rec, struct esp_rows x, uint32_t width, uint32_t out_at,
                     enum esp_count count)
{
    const struct esp_push_io push = {ESP_PUSH_ADDRESSES(rec, 0),
                                     .host = rec->space->out.addr,
                                     .y_at = x.at,
                                     .y_stride = x.stride,
                                     .width = width,
                                     .n_quad = esp_div_up(width, 4),
                                     .host_at = out_at,
                                     .count = esp_count_word(count)};
    launch_rows(rec, ESP_K_ROWS_OUT, &push, sizeof push, push.n_quad, count);
}

void esp_op_kv_copy(struct esp_rec *rec, uint32_t block_stride, uint32_t layer_stride, uint32_t n_layer)
{
    const struct esp_push_kv_copy push = {ESP_PUSH_ADDRESSES(rec, 0), .block_stride = block_stride,
                                          .layer_stride = layer_stride};

    esp_launch(rec, &(struct esp_launch){.code = esp_launch_find(rec, ESP_K_KV_COPY, ESP_W_NONE),
                                         .push = &push,
                                         .push_bytes = sizeof push,
                                         .grid = {.count = ESP_COUNT_COPIES,
                                                  .div = 1,
                                                  .axis = 2,
                                                  .dims = {esp_div_up(block_stride, 64), n_layer, 1}}});
}

void esp_op_topk(struct esp_rec *rec, struct esp_rows logits, struct esp_rows slices, uint32_t vocab)
{
    const uint32_t n_slice = esp_div_up(vocab, ESP_TOP_SLICE);
    const struct esp_push_topk push = {ESP_PUSH_ADDRESSES(rec, 0),
                                       .dst = rec->space->out.addr,
                                       .x_at = logits.at,
                                       .x_stride = logits.stride,
                                       .slice_at = slices.at,
                                       .slice_stride = slices.stride,
                                       .vocab = vocab,
                                       .n_slice = n_slice};

    esp_launch(rec, &(struct esp_launch){
                        .code = esp_launch_find(rec, ESP_K_TOPK_SLICES, ESP_W_NONE),
                        .push = &push,
                        .push_bytes = sizeof push,
                        .grid = {.count = ESP_COUNT_WANTS, .div = 1, .axis = 1, .dims = {n_slice, 1, 1}}});
    esp_launch(rec, &(struct esp_launch){
                        .code = esp_launch_find(rec, ESP_K_TOPK, ESP_W_NONE),
                        .push = &push,
                        .push_bytes = sizeof push,
                        .grid = {.count = ESP_COUNT_WANTS, .div = 1, .axis = 0, .dims = {1, 1, 1}}});
}
