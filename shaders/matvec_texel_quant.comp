// y = epilogue(x W^T + b) for a few rows and quantised weights, on CPU drivers: decode and logits.
// Reference: model/reference.c esp_ref_matmul on the weights of model/quant.h.
//   sum_k w x = sum over blocks of d * (sum_k q x - z * sum_k x)
// A row's bits do not depend on ROWS or on the rows beside it: within a block k rises, and blocks rise.
//
// A subgroup owns a panel of PANEL groups of 8 columns (weights_panel.glsl): lane l column l of each group, all of them in
// one word, so that one broadcast of x serves them all. A field stays where it is in its word: masked out and converted it
// is q times a power of two, which the scale takes back. Rows come one after the other; their panel stays in cache.
// Grid: x = panels, y = rows / ROWS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint ROWS = 1; // 1, 2, 4 or 8
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"

// What field j of a word counts where it is: q * 2^(BITS * j).
float field(const uint word, const uint j)
{
    if (j == PANEL - 1)
        return float(int(word >> (BITS * j))); // the sign bit is its own
    return float(int(word & (MASK << (BITS * j))));
}

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint last = min(gl_WorkGroupID.y * ROWS + ROWS, n_row);
    const uint g = gl_WorkGroupID.x * PANEL;
    const uint k4 = p.k4, x_stride = p.x_stride;

    for (uint row = gl_WorkGroupID.y * ROWS; row < last; row++) {
        uint x_at = p.x_at + row * x_stride + lane;
        uint block = p.w_at + gl_WorkGroupID.x * (k4 / 8) * BLOCK_TEXELS;
        float sum[PANEL];
        [[unroll]] for (uint j = 0; j < PANEL; j++)
            sum[j] = 0.0;
        for (uint k = 0; k < k4; k += 8) {
            const vec4 x = ACT_LOAD(x_at); // of the block's 32 k, four a lane
            const float x4 = (x.x + x.y) + (x.z + x.w);
            const uvec4 sides = W_LOAD(side_at(block, lane));
            float part[PANEL], all = 0.0;
            [[unroll]] for (uint j = 0; j < PANEL; j++)
                part[j] = 0.0;
            [[unroll]] for (uint i = 0; i < 8; i++) {
                const uvec4 t = W_LOAD(block + 8 * i + lane);
                [[unroll]] for (uint c = 0; c < 4; c++) {
                    const float s = subgroupBroadcast(x[c], i);
                    [[unroll]] for (uint j = 0; j < PANEL; j++)
                        part[j] = fma(s, field(t[c], j), part[j]);
                }
                all += subgroupBroadcast(x4, i);
            }
            [[unroll]] for (uint j = 0; j < PANEL; j++) {
                const uint side = side_of(sides, lane, j);
                const uint at = j == PANEL - 1 ? 0 : BITS * j; // where the field was
                const float up = uintBitsToFloat((127 + at) << 23), down = uintBitsToFloat((127 - at) << 23);
                sum[j] = fma(scale_of(side) * down, fma(-zero_of(side) * up, all, part[j]), sum[j]);
            }
            x_at += 8;
            block += BLOCK_TEXELS;
        }
        if (EPI == ESP_EPI_GEGLU) {
            [[unroll]] for (uint j = 0; j < PANEL; j += 2)
                if (fits(g / 2 + j / 2))
                    put(row, g / 2 + j / 2, lane, esp_gelu(sum[j]) * sum[j + 1]);
        } else {
            [[unroll]] for (uint j = 0; j < PANEL; j++)
                if (fits(g + j))
                    finish(row, g + j, lane, sum[j]);
        }
    }
}
