#include "worker/kernels.h"

#include "esp_spv_add_plain.h"
#include "esp_spv_add_texel.h"
#include "esp_spv_attention_flash_gpu.h"
#include "esp_spv_attention_join_gpu.h"
#include "esp_spv_attention_plain.h"
#include "esp_spv_attention_slices_gpu.h"
#include "esp_spv_attention_texel.h"
#include "esp_spv_attention_wide_texel.h"
#include "esp_spv_embed_direct_q4.h"
#include "esp_spv_embed_direct_q8.h"
#include "esp_spv_embed_plain_bf16.h"
#include "esp_spv_embed_plain_f16.h"
#include "esp_spv_embed_plain_f32.h"
#include "esp_spv_embed_plain_q4.h"
#include "esp_spv_embed_plain_q8.h"
#include "esp_spv_embed_texel_bf16.h"
#include "esp_spv_embed_texel_f16.h"
#include "esp_spv_embed_texel_f32.h"
#include "esp_spv_embed_texel_q4.h"
#include "esp_spv_embed_texel_q8.h"
#include "esp_spv_im2col_plain.h"
#include "esp_spv_im2col_texel.h"
#include "esp_spv_kv_copy_plain.h"
#include "esp_spv_kv_copy_texel.h"
#ifdef ESP_COOP
#include "esp_spv_matmul_coop_bf16.h"
#include "esp_spv_matmul_coop_f16.h"
#include "esp_spv_matmul_coop_q4.h"
#include "esp_spv_matmul_coop_q8.h"
#endif
#include "esp_spv_matmul_direct_q4.h"
#include "esp_spv_matmul_direct_q8.h"
#include "esp_spv_matmul_plain_bf16.h"
#include "esp_spv_matmul_plain_f16.h"
#include "esp_spv_matmul_plain_f32.h"
#include "esp_spv_matmul_plain_q4.h"
#include "esp_spv_matmul_plain_q8.h"
#include "esp_spv_matmul_texel_bf16.h"
#include "esp_spv_matmul_texel_f16.h"
#include "esp_spv_matmul_texel_f32.h"
#include "esp_spv_matmul_texel_q4.h"
#include "esp_spv_matmul_texel_q8.h"
#include "esp_spv_matvec_direct_bf16.h"
#include "esp_spv_matvec_direct_f16.h"
#include "esp_spv_matvec_direct_q4.h"
#include "esp_spv_matvec_direct_q8.h"
#include "esp_spv_matvec_gpu_bf16.h"
#include "esp_spv_matvec_gpu_f16.h"
#include "esp_spv_matvec_gpu_f32.h"
#include "esp_spv_matvec_gpu_q4.h"
#include "esp_spv_matvec_gpu_q8.h"
#include "esp_spv_matvec_plain_bf16.h"
#include "esp_spv_matvec_plain_f16.h"
#include "esp_spv_matvec_plain_f32.h"
#include "esp_spv_matvec_plain_q4.h"
#include "esp_spv_matvec_plain_q8.h"
#include "esp_spv_matvec_texel_bf16.h"
#include "esp_spv_matvec_texel_f16.h"
#include "esp_spv_matvec_texel_f32.h"
#include "esp_spv_matvec_texel_q4.h"
#include "esp_spv_matvec_texel_q8.h"
#include "esp_spv_norm_begin_direct.h"
#include "esp_spv_norm_begin_gpu.h"
#include "esp_spv_norm_plain.h"
#include "esp_spv_norm_texel.h"
#include "esp_spv_rope_kv_plain.h"
#include "esp_spv_rope_kv_texel.h"
#include "esp_spv_row_fixed_direct.h"
#include "esp_spv_row_scale_plain.h"
#include "esp_spv_rows_in_plain.h"
#include "esp_spv_rows_in_texel.h"
#include "esp_spv_rows_out_plain.h"
#include "esp_spv_rows_out_texel.h"
#include "esp_spv_topk_plain.h"
#include "esp_spv_topk_slices_plain.h"
#include "esp_spv_topk_slices_texel.h"
#include "esp_spv_topk_texel.h"

#define NONE_ ESP_W_NONE
#define BF16_ ESP_W_BF16
#define F16_  ESP_W_F16
#define F32_  ESP_W_F32
#define Q8_   ESP_W_Q8
#define Q4_   ESP_W_Q4
#define CODE(op, cls_, type, blob, rows_, cols_, panels_)                                                    \
    {                                                                                                        \
        .kernel = ESP_K_##op, .cls = ESP_VK_##cls_, .weights = type, .name = #blob, .spirv = esp_spv_##blob, \
        .n_bytes = sizeof esp_spv_##blob, .tile = {                                                          \
            .rows = rows_,                                                                                   \
            .cols = cols_,                                                                                   \
            .panels = panels_                                                                                \
        }                                                                                                    \
    }
#define ROW(op, cls_, type, blob, rows_, cols_) CODE(op, cls_, type, blob, rows_, cols_, false)

static const struct esp_kernel_code table[] = {
    ROW(NORM, PLAIN, NONE_, norm_plain, 0, 0),
    ROW(NORM, TEXEL, NONE_, norm_texel, 0, 0),
    ROW(ROPE_KV, PLAIN, NONE_, rope_kv_plain, 0, 0),
    ROW(ROPE_KV, TEXEL, NONE_, rope_kv_texel, 0, 0),
    ROW(ROWS_IN, PLAIN, NONE_, rows_in_plain, 0, 0),
    ROW(ROWS_IN, TEXEL, NONE_, rows_in_texel, 0, 0),
    ROW(ROWS_OUT, PLAIN, NONE_, rows_out_plain, 0, 0),
    ROW(ROWS_OUT, TEXEL, NONE_, rows_out_texel, 0, 0),
    ROW(IM2COL, PLAIN, NONE_, im2col_plain, 0, 0),
    ROW(IM2COL, TEXEL, NONE_, im2col_texel, 0, 0),
    ROW(ADD, PLAIN, NONE_, add_plain, 0, 0),
    ROW(ADD, TEXEL, NONE_, add_texel, 0, 0),
    ROW(KV_COPY, PLAIN, NONE_, kv_copy_plain, 0, 0),
    ROW(KV_COPY, TEXEL, NONE_, kv_copy_texel, 0, 0),
    ROW(TOPK_SLICES, PLAIN, NONE_, topk_slices_plain, 0, 0),
    ROW(TOPK_SLICES, TEXEL, NONE_, topk_slices_texel, 0, 0),
    ROW(TOPK, PLAIN, NONE_, topk_plain, 0, 0),
    ROW(TOPK, TEXEL, NONE_, topk_texel, 0, 0),
    ROW(ATTENTION, PLAIN, NONE_, attention_plain, 0, 0),
    ROW(ATTENTION, TEXEL, NONE_, attention_texel, 0, 0),
    ROW(ATTENTION_WIDE, TEXEL, NONE_, attention_wide_texel, 0, 0),
    ROW(ATTENTION_FLASH, GPU, NONE_, attention_flash_gpu, 0, 0),
    ROW(ATTENTION_SLICES, GPU, NONE_, attention_slices_gpu, 0, 0),
    ROW(ATTENTION_JOIN, GPU, NONE_, attention_join_gpu, 0, 0),
    ROW(NORM_BEGIN, GPU, NONE_, norm_begin_gpu, 0, 0),
    ROW(NORM_BEGIN, DIRECT, NONE_, norm_begin_direct, 0, 0),
    ROW(ROW_SCALE, PLAIN, NONE_, row_scale_plain, 0, 0),
    ROW(ROW_FIXED, DIRECT, NONE_, row_fixed_direct, 0, 0),
#ifdef ESP_COOP
    ROW(MATMUL_COOP, GPU, BF16_, matmul_coop_bf16, 0, 0), /* tiles: struct esp_vk_choice */
    ROW(MATMUL_COOP, GPU, F16_, matmul_coop_f16, 0, 0),
    ROW(MATMUL_COOP, GPU, Q8_, matmul_coop_q8, 0, 0),
    ROW(MATMUL_COOP, GPU, Q4_, matmul_coop_q4, 0, 0),
#endif
    ROW(MATMUL, PLAIN, BF16_, matmul_plain_bf16, 64, 8),
    ROW(MATMUL, PLAIN, F16_, matmul_plain_f16, 64, 8),
    ROW(MATMUL, PLAIN, F32_, matmul_plain_f32, 64, 8),
    ROW(MATMUL, PLAIN, Q8_, matmul_plain_q8, 64, 8),
    ROW(MATMUL, PLAIN, Q4_, matmul_plain_q4, 64, 8),
    ROW(MATMUL, TEXEL, BF16_, matmul_texel_bf16, 16, 8),
    ROW(MATMUL, TEXEL, F16_, matmul_texel_f16, 16, 8),
    ROW(MATMUL, TEXEL, F32_, matmul_texel_f32, 16, 8),
    ROW(MATMUL, TEXEL, Q8_, matmul_texel_q8, 16, 8),
    ROW(MATMUL, TEXEL, Q4_, matmul_texel_q4, 16, 8),
    ROW(MATMUL, DIRECT, Q8_, matmul_direct_q8, 16, 8),
    ROW(MATMUL, DIRECT, Q4_, matmul_direct_q4, 16, 8),
    ROW(MATVEC, GPU, BF16_, matvec_gpu_bf16, 0, 1),
    ROW(MATVEC, GPU, F16_, matvec_gpu_f16, 0, 1),
    ROW(MATVEC, GPU, F32_, matvec_gpu_f32, 0, 1),
    ROW(MATVEC, GPU, Q8_, matvec_gpu_q8, 0, 1),
    ROW(MATVEC, GPU, Q4_, matvec_gpu_q4, 0, 1),
    ROW(MATVEC, PLAIN, BF16_, matvec_plain_bf16, 0, 1),
    ROW(MATVEC, PLAIN, F16_, matvec_plain_f16, 0, 1),
    ROW(MATVEC, PLAIN, F32_, matvec_plain_f32, 0, 1),
    ROW(MATVEC, PLAIN, Q8_, matvec_plain_q8, 0, 1),
    ROW(MATVEC, PLAIN, Q4_, matvec_plain_q4, 0, 1),
    CODE(MATVEC, TEXEL, BF16_, matvec_texel_bf16, 0, 2, true),
    CODE(MATVEC, TEXEL, F16_, matvec_texel_f16, 0, 2, true),
    CODE(MATVEC, TEXEL, F32_, matvec_texel_f32, 0, 2, true),
    CODE(MATVEC, TEXEL, Q8_, matvec_texel_q8, 0, 8, true),
    CODE(MATVEC, TEXEL, Q4_, matvec_texel_q4, 0, 8, true),
    CODE(MATVEC, DIRECT, BF16_, matvec_direct_bf16, 0, 4, true),
    CODE(MATVEC, DIRECT, F16_, matvec_direct_f16, 0, 4, true),
    CODE(MATVEC, DIRECT, Q8_, matvec_direct_q8, 0, 8, true),
    CODE(MATVEC, DIRECT, Q4_, matvec_direct_q4, 0, 8, true),
    ROW(EMBED, PLAIN, BF16_, embed_plain_bf16, 0, 0),
    ROW(EMBED, PLAIN, F16_, embed_plain_f16, 0, 0),
    ROW(EMBED, PLAIN, F32_, embed_plain_f32, 0, 0),
    ROW(EMBED, PLAIN, Q8_, embed_plain_q8, 0, 0),
    ROW(EMBED, PLAIN, Q4_, embed_plain_q4, 0, 0),
    ROW(EMBED, TEXEL, BF16_, embed_texel_bf16, 0, 0),
    ROW(EMBED, TEXEL, F16_, embed_texel_f16, 0, 0),
    ROW(EMBED, TEXEL, F32_, embed_texel_f32, 0, 0),
    ROW(EMBED, TEXEL, Q8_, embed_texel_q8, 0, 0),
    ROW(EMBED, TEXEL, Q4_, embed_texel_q4, 0, 0),
    ROW(EMBED, DIRECT, Q8_, embed_direct_q8, 0, 0),
    ROW(EMBED, DIRECT, Q4_, embed_direct_q4, 0, 0),
};

const struct esp_kernel_code *esp_kernel_find(enum esp_kernel kernel, enum esp_vk_class cls,
                                              enum esp_wtype weights)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].kernel == kernel && table[i].cls == cls && table[i].weights == weights)
            return &table[i];
    return cls == ESP_VK_GPU      ? esp_kernel_find(kernel, ESP_VK_PLAIN, weights)
           : cls == ESP_VK_DIRECT ? esp_kernel_find(kernel, ESP_VK_TEXEL, weights)
                                  : NULL;
}
