/* What is between the products of an attention layer: rotation, the KV cache, attention. */
#include <string.h>

#include "worker/launch.h"

ESP_CHECK_PUSH(esp_push_rope);
ESP_CHECK_PUSH(esp_push_attention);

void esp_op_rope_kv(struct esp_rec *rec, struct esp_rows qkv, const struct esp_attn_how *how)
{
    const uint32_t spec[1] = {how->rotate};
    const uint32_t h8 = how->head_dim / 8;
    const struct esp_push_rope push = {ESP_PUSH_ADDRESSES(rec, 0), .x_at = qkv.at,
                                       .x_stride = qkv.stride,     .n_head = how->n_head,
                                       .n_kv = how->n_kv,          .h8 = h8,
                                       .table = how->table,        .table_sin = how->table_sin,
                                       .kv_at = how->kv_at,        .block_stride = how->block_stride,
                                       .q_scale = how->q_scale};

    esp_launch(rec, &(struct esp_launch){
                        .code = esp_launch_find(rec, ESP_K_ROPE_KV, ESP_W_NONE),
                        .spec = spec,
                        .n_spec = 1,
                        .push = &push,
                        .push_bytes = sizeof push,
                        .grid = {.count = ESP_COUNT_ROWS,
                                 .div = 1,
                                 .axis = 0,
                                 .dims = {1, esp_div_up((how->n_head + 2 * how->n_kv) * h8, 64), 1}}});
}

/* Query heads of one KV head that share a tile of so many query vectors. */
static uint32_t heads_a_tile(uint32_t n_head, uint32_t n_kv, uint32_t queries)
{
    uint32_t g = n_head / n_kv;
    return g < queries ? g : queries;
}

/* Quads of dimensions that attention_flash.comp stages at once: all, or the largest divisor of them that fits; 0 where it
 * cannot serve. */
static uint32_t flash_chunk(const struct esp_vk *vk, uint32_t h4)
{
    const uint32_t row = ESP_FLASH_QUERIES + 1;
    uint32_t chunk = h4 < 18 ? h4 : 18;

    while (chunk > 1 && h4 % chunk)
        chunk--;
    /* qs and ks, s, fold, scale and l_of */
    if (vk->cls != ESP_VK_GPU || h4 > 128 ||
        2 * chunk * row * 16 + (ESP_KV_BLOCK * row + 128 + 2 * ESP_FLASH_QUERIES) * 4 >
            vk->props.limits.maxComputeSharedMemorySize)
        return 0;
    return chunk;
}

/* Whether attention_slices.comp can serve: its q, s, w, fold, m_slice and l_slice. */
static bool slices_fit(const struct esp_vk *vk, uint32_t h4)
{
    return vk->cls == ESP_VK_GPU && h4 <= 128 &&
           (h4 * 4 + 3 * ESP_SLICE + 16 + 2) * ESP_TILE_QUERIES * 4 <=
               vk->props.limits.maxComputeSharedMemorySize;
}

/* The kernel, and the query vectors that a tile of it takes. */
static enum esp_kernel attention_kernel(const struct esp_vk *vk, bool few, uint32_t h4, uint32_t *queries)
{
    enum esp_kernel kernel = ESP_K_ATTENTION;

    *queries = ESP_TILE_QUERIES;
    if (few && slices_fit(vk, h4)) {
        kernel = ESP_K_ATTENTION_SLICES;
    } else if (!few && flash_chunk(vk, h4)) {
        kernel = ESP_K_ATTENTION_FLASH;
        *queries = ESP_FLASH_QUERIES;
    } else if (!few && esp_vk_has_texels(vk->cls)) {
        kernel = ESP_K_ATTENTION_WIDE;
        *queries = ESP_WIDE_QUERIES;
    }
    return kernel;
}

uint32_t esp_attn_tile_rows(const struct esp_vk *vk, bool few, uint32_t n_head, uint32_t n_kv,
                            uint32_t head_dim)
{
    uint32_t queries;

    attention_kernel(vk, few, head_dim / 4, &queries);
    return queries / heads_a_tile(n_head, n_kv, queries);
}

uint32_t esp_attn_part_texels(const struct esp_vk *vk, uint32_t n_head, uint32_t n_kv, uint32_t head_dim)
{
    const uint32_t gb = heads_a_tile(n_head, n_kv, ESP_TILE_QUERIES);
    return slices_fit(vk, head_dim / 4)
               ? n_kv * esp_div_up(n_head / n_kv, gb) * ESP_TILE_QUERIES * (head_dim / 4 + 1)
               : 0;
}

uint32_t esp_attn_shared_bytes(const struct esp_vk *vk, uint32_t head_dim)
{
    /* attention.comp: q, s, then m, l, scale and range; the texel kernel has none */
    const uint32_t a_query = head_dim * 4 + ESP_KV_BLOCK * 4 + 3 * 4 + 8;
    return esp_vk_has_texels(vk->cls) ? 0 : ESP_TILE_QUERIES * a_query;
}

void esp_op_attention_piece(struct esp_rec *rec, struct esp_rows y, struct esp_rows qkv,
                            const struct esp_attn_how *how, uint32_t piece, uint32_t n_piece)
{
    const struct esp_vk *vk = rec->space->vk;
    const uint32_t h4 = how->head_dim / 4;
    const uint32_t g = how->n_head / how->n_kv;
    uint32_t queries;
    const enum esp_kernel kernel = attention_kernel(vk, how->few, h4, &queries);
    const bool slices = kernel == ESP_K_ATTENTION_SLICES;
    const uint32_t gb = heads_a_tile(how->n_head, how->n_kv, queries);
    const uint32_t spec[6] = {
        h4, g, gb, how->window, how->softcap > 0, slices ? !how->whole : flash_chunk(vk, h4)};
    const struct esp_push_attention push = {ESP_PUSH_ADDRESSES(rec, 0),
                                            .q_at = qkv.at,
                                            .q_stride = qkv.stride,
                                            .y_at = y.at,
                                            .y_stride = y.stride,
                                            .kv_at = how->kv_at,
                                            .block_stride = how->block_stride,
                                            .n_kv = how->n_kv,
                                            .softcap = how->softcap,
                                            .parts_at = how->parts_at,
                                            .tile0 = piece,
                                            .tile_by = n_piece};
    struct esp_launch l = {
        .code = esp_launch_find(rec, kernel, ESP_W_NONE),
        .spec = spec,
        .n_spec = slices || kernel == ESP_K_ATTENTION_FLASH ? 6 : 5,
        .push = &push,
        .push_bytes = sizeof push,
        .grid = {.count = slices && !how->whole ? ESP_COUNT_ITEMS : ESP_COUNT_TILES,
                 .div = n_piece,
                 .axis = 0,
                 .dims = {1, how->n_kv * esp_div_up(g, gb), 1}},
        .work = {.window = how->window,
                 .pair_flop = 4.0 * how->n_head * how->head_dim / n_piece,
                 .position_bytes = 2.0 * how->n_kv * how->head_dim * sizeof(float) / n_piece}};

    esp_launch(rec, &l);
    if (!slices || how->whole)
        return;
    l.code = esp_launch_find(rec, ESP_K_ATTENTION_JOIN, ESP_W_NONE);
    l.n_spec = 5;
    memset(&l.work, 0, sizeof l.work);
    l.grid.count = ESP_COUNT_TILES;
    l.grid.dims[2] = ESP_TILE_QUERIES;
    esp_launch(rec, &l);
}

void esp_op_attention(struct esp_rec *rec, struct esp_rows y, struct esp_rows qkv,
                      const struct esp_attn_how *how)
{
    esp_op_attention_piece(rec, y, qkv, how, 0, 1);
}
