// y = epilogue(x W^T + b) for a few rows and quantised weights, on CPU drivers: decode and logits.
// Reference: model/reference.c esp_ref_matmul on the weights of model/quant.h.
//   sum_k w x = sum over blocks of d * (sum_k q x - z * sum_k x)
// A row's bits do not depend on ROWS or on the rows beside it: within a block k rises, and blocks rise.
//
// A subgroup owns 8 groups of 8 columns, in one or two panels (weights_panel.glsl): lane l column l of each group,
// those of a panel in one word, so that one broadcast of x serves them all. A field stays where it is in its word:
// masked out and converted it is q times a power of two, which the scale takes back. Rows come one after the other;
// their panels stay in cache.
// Grid: x = groups / 8, y = rows / ROWS.
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

const uint GROUPS = 8;
const uint STREAMS = GROUPS / PANEL; // panels; the last one's neighbour may not exist

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
    const uint g = gl_WorkGroupID.x * GROUPS;
    const uint k4 = p.k4, x_stride = p.x_stride, panel_texels = k4 / 8 * BLOCK_TEXELS;

    for (uint row = gl_WorkGroupID.y * ROWS; row < last; row++) {
        uint x_at = p.x_at + row * x_stride + lane;
        uint block = p.w_at + gl_WorkGroupID.x * STREAMS * panel_texels;
        float sum[GROUPS];
        [[unroll]] for (uint j = 0; j < GROUPS; j++)
            sum[j] = 0.0;
        for (uint k = 0; k < k4; k += 8) {
            const vec4 x = ACT_LOAD(x_at); // of the block's 32 k, four a lane
            const float x4 = (x.x + x.y) + (x.z + x.w);
            uvec4 sides[STREAMS];
            float part[GROUPS], all = 0.0;
            [[unroll]] for (uint i = 0; i < STREAMS; i++)
                sides[i] = W_LOAD(side_at(block + i * panel_texels, lane));
            [[unroll]] for (uint j = 0; j < GROUPS; j++)
                part[j] = 0.0;
            [[unroll]] for (uint q = 0; q < 8; q++) {
                uvec4 t[STREAMS];
                [[unroll]] for (uint i = 0; i < STREAMS; i++)
                    t[i] = W_LOAD(block + i * panel_texels + 8 * q + lane);
                [[unroll]] for (uint c = 0; c < 4; c++) {
                    const float s = subgroupBroadcast(x[c], q);
                    [[unroll]] for (uint j = 0; j < GROUPS; j++)
                        part[j] = fma(s, field(t[j / PANEL][c], j % PANEL), part[j]);
                }
                all += subgroupBroadcast(x4, q);
            }
            [[unroll]] for (uint j = 0; j < GROUPS; j++) {
                const uint side = side_of(sides[j / PANEL], lane, j % PANEL);
                const uint at = j % PANEL == PANEL - 1 ? 0 : BITS * (j % PANEL); // where the field was
                const float up = uintBitsToFloat((127 + at) << 23), down = uintBitsToFloat((127 - at) << 23);
                sum[j] = fma(scale_of(side) * down, fma(-zero_of(side) * up, all, part[j]), sum[j]);
            }
            x_at += 8;
            block += BLOCK_TEXELS;
        }
        if (EPI == ESP_EPI_GEGLU) {
            [[unroll]] for (uint j = 0; j < GROUPS; j += 2)
                if (g + j < p.n_group && fits((g + j) / 2))
                    put(row, (g + j) / 2, lane, esp_gelu(sum[j]) * sum[j + 1]);
        } else {
            [[unroll]] for (uint j = 0; j < GROUPS; j++)
                if (g + j < p.n_group && fits(g + j))
                    finish(row, g + j, lane, sum[j]);
        }
    }
}
