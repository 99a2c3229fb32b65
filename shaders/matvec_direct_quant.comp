// y = epilogue(x W^T + b) for a few rows and quantised weights, on CPU drivers of the direct class: decode and logits.
// Reference: model/reference.c esp_ref_matmul on the weights of model/quant.h.
//   sum_k w x = sum over blocks of d * (sum_k q x - z * sum_k x)
// A row's bits do not depend on ROWS or on the rows beside it: sums within a block are exact, and blocks rise.
//
// A subgroup owns 8 groups of 8 columns, in one or two panels (weights_panel.glsl): lane l column l of each group. x was
// made integers of 15 and 14 bits before (row_fixed.comp). Their products with the weights' are of 16 bits and summed in
// 32 without loss, 32 k at a time: one instruction where processors have VNNI, two elsewhere, and a field needs no
// conversion; so this is faster than float32, and as exact.
//
// Mesa's LLVM makes multiply-adds of the sums only as long as little else stands in the loop: what is the same for all k
// waits for its end.
// Grid: x = groups / 8, y = rows / ROWS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "mem.glsl"
#include "direct.glsl"
#include "math.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint ROWS = 1; // 1, 2, 4 or 8
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"

const uint GROUPS = 8;
const uint STREAMS = GROUPS / PANEL; // panels
const uint BLOCK_EIGHTS = BLOCK_TEXELS / 2;

// Field j of a word, at most 15 bits, as it counts: q * 2^up(j). Three shifts are saved where fields stay in place.
#if defined(ESP_W_Q4)
uint up(const uint j)
{
    return j % 3 * 4;
}

int field(const uint word, const uint j)
{
    return int((word >> (j / 3 * 12)) & (15u << up(j)));
}
#else
uint up(const uint j)
{
    return 0;
}

int field(const uint word, const uint j)
{
    return int((word >> (8 * j)) & 255u);
}
#endif

// Over the lanes.
float over_lanes_sum(float v)
{
    const uint lane = gl_SubgroupInvocationID;
    v += subgroupShuffle(v, lane ^ 4);
    v += subgroupShuffle(v, lane ^ 2);
    return v + subgroupShuffle(v, lane ^ 1);
}

void main()
{
    know_lane();
    const uint lane = gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint last = min(gl_WorkGroupID.y * ROWS + ROWS, n_row);
    const uint g = gl_WorkGroupID.x * GROUPS;
    const uint k4 = p.k4, x_stride = p.x_stride, panel_eights = k4 / 8 * BLOCK_EIGHTS;
    const uint n_panel = (p.n_group + PANEL - 1) / PANEL;
    esp_eights w = esp_eights(p.w);
    esp_fixed x = esp_fixed(p.act);

    uint row = gl_WorkGroupID.y * ROWS;
    if (row < last) do {
        uint x_at = p.x_at + row * x_stride;
        uint block[STREAMS];
        const float unit = esp_floats(p.act).at[p.scale_at * 4 + row];
        float sum[GROUPS];
        [[unroll]] for (uint i = 0; i < STREAMS; i++) // the last one's neighbour may not exist
            block[i] = p.w_at / 2 + min(gl_WorkGroupID.x * STREAMS + i, n_panel - 1) * panel_eights;
        [[unroll]] for (uint j = 0; j < GROUPS; j++)
            sum[j] = 0.0;
        uint k = 0;
        do {
            int part[GROUPS], low[GROUPS];
            int all_a = 0, all_b = 0;
            [[unroll]] for (uint i = 0; i < 8; i += 2) {
                const int n = int(of_lane(uvec4(x.at[x_at + i]), uvec4(x.at[x_at + i + 1])));
                all_a += n >> 16;
                all_b += n & 0x3fff;
            }
            const float all = over_lanes_sum(fma(float(all_b), 1.0 / 16384.0, float(all_a)));
            [[unroll]] for (uint j = 0; j < GROUPS; j++)
                part[j] = low[j] = 0;
            [[unroll]] for (uint c = 0; c < 32; c++) {
                const int n = x.at[x_at + c / 4][c % 4], a = n >> 16, b = n & 0x3fff;
                [[unroll]] for (uint i = 0; i < STREAMS; i++) {
                    const Eight t = w.at[block[i] + c];
                    const uint word = of_lane(t.a, t.b);
                    [[unroll]] for (uint j = 0; j < PANEL; j++) {
                        part[i * PANEL + j] += field(word, j) * a;
                        low[i * PANEL + j] += field(word, j) * b;
                    }
                }
            }
            [[unroll]] for (uint i = 0; i < STREAMS; i++) {
                [[unroll]] for (uint j = 0; j < PANEL; j++) {
                    const uint c = i * PANEL + j;
                    const Eight t = w.at[block[i] + 32 + j / 2];
                    const uint side = of_lane(t.a, t.b) >> (j % 2 * 16) & 0xffffu;
                    const float down = uintBitsToFloat((127 - up(j)) << 23);
                    const float v = fma(float(low[c]), down / 16384.0, float(part[c]) * down);
                    sum[c] = fma(scale_of(side), fma(-zero_of(side), all, v), sum[c]);
                }
                block[i] += BLOCK_EIGHTS;
            }
            x_at += 8;
            k += 8;
        } while (k < k4);
        [[unroll]] for (uint j = 0; j < GROUPS; j++)
            sum[j] *= unit;
        if (EPI == ESP_EPI_GEGLU) {
            [[unroll]] for (uint j = 0; j < GROUPS; j += 2)
                if (g + j < p.n_group && fits((g + j) / 2))
                    put(row, (g + j) / 2, lane, esp_gelu(sum[j]) * sum[j + 1]);
        } else {
            [[unroll]] for (uint j = 0; j < GROUPS; j++)
                if (g + j < p.n_group && fits(g + j))
                    finish(row, g + j, lane, sum[j]);
        }
        row++;
    } while (row < last);
}
