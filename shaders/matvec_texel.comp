// y = epilogue(x W^T + b) for a few rows, on CPU drivers: decode and logits. One pass over the weights.
// Reference: model/reference.c esp_ref_matmul. A row's bits do not depend on ROWS or on the rows beside it: four
// sums by k mod 4, k rising, folded in one order.
//
// A subgroup owns GROUPS groups of 8 columns, a lane a column of each; lane l holds 4 of the 32 x of a round and hands
// them out by broadcast. No reduction, no barrier. Several groups are as many streams from memory, of which a core
// follows a few at once better than one. With GEGLU they are pairs of a gate group and an up group.
// Grid: x = groups / GROUPS, y = rows / ROWS.
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

const uint GROUPS = 2; // divides the groups of every matrix

// eight k: x of lanes j and j+1
#define EIGHT(j)                                                                                                   \
    {                                                                                                              \
        vec4 a[GROUPS], b[GROUPS];                                                                                 \
        [[unroll]] for (uint c = 0; c < GROUPS; c++)                                                               \
            w_load8(w_at, k4, g + c, kc + j / 2, lane, a[c], b[c]);                                                \
        [[unroll]] for (uint r = 0; r < ROWS; r++) {                                                               \
            const vec4 xa = subgroupBroadcast(x[r], j);                                                            \
            const vec4 xb = subgroupBroadcast(x[r], j + 1);                                                        \
            [[unroll]] for (uint c = 0; c < GROUPS; c++)                                                           \
                acc[r][c] = fma(xb, b[c], fma(xa, a[c], acc[r][c]));                                               \
        }                                                                                                          \
    }

float fold(const vec4 v)
{
    return (v.x + v.y) + (v.z + v.w);
}

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.y * ROWS;
    const uint g = gl_WorkGroupID.x * GROUPS;
    const uint w_at = p.w_at, k4 = p.k4;
    if (row0 >= n_row)
        return;
    uint x_at[ROWS];
    vec4 acc[ROWS][GROUPS], x[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        x_at[r] = p.x_at + min(row0 + r, n_row - 1) * p.x_stride + lane;
        [[unroll]] for (uint c = 0; c < GROUPS; c++)
            acc[r][c] = vec4(0.0);
    }
    for (uint kc = 0; kc < k4 / 2; kc += 4) { // padded K is a multiple of 32
        [[unroll]] for (uint r = 0; r < ROWS; r++)
            x[r] = ACT_LOAD(x_at[r] + 2 * kc);
        EIGHT(0)
        EIGHT(2)
        EIGHT(4)
        EIGHT(6)
    }
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        if (row0 + r >= n_row)
            continue;
        if (EPI == ESP_EPI_GEGLU) {
            [[unroll]] for (uint c = 0; c < GROUPS; c += 2)
                put(row0 + r, (g + c) / 2, lane, esp_gelu(fold(acc[r][c])) * fold(acc[r][c + 1]));
        } else {
            [[unroll]] for (uint c = 0; c < GROUPS; c++)
                finish(row0 + r, g + c, lane, fold(acc[r][c]));
        }
    }
}
