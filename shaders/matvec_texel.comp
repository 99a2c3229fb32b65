// y = epilogue(x W^T + b) for a few rows, on CPU drivers: decode and logits. One pass over the weights.
// Reference: model/reference.c esp_ref_matmul. A row's bits do not depend on ROWS or on the rows beside it: four
// sums by k mod 4, k rising, folded in one order.
//
// A subgroup owns a group of 8 columns, a lane a column; lane l holds 4 of the 32 x of a round and hands them
// out by broadcast. No reduction, no barrier. With GEGLU it owns a gate group and the up group beside it.
// Grid: x = groups (pairs with GEGLU) / 8, y = rows / ROWS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 64) in; // eight subgroups
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint ROWS = 1; // 1, 2, 4 or 8
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"

// eight k: x of lanes j and j+1
#define EIGHT(j)                                                                                                   \
    {                                                                                                              \
        vec4 a, b, a2, b2;                                                                                         \
        w_load8(p.w_at, p.k4, g, kc + j / 2, lane, a, b);                                                          \
        if (EPI == ESP_EPI_GEGLU)                                                                                  \
            w_load8(p.w_at, p.k4, g + 1, kc + j / 2, lane, a2, b2);                                                \
        for (uint r = 0; r < ROWS; r++) {                                                                          \
            const vec4 xa = subgroupBroadcast(x[r], j);                                                            \
            const vec4 xb = subgroupBroadcast(x[r], j + 1);                                                        \
            acc[r] = fma(xb, b, fma(xa, a, acc[r]));                                                               \
            if (EPI == ESP_EPI_GEGLU)                                                                              \
                acc2[r] = fma(xb, b2, fma(xa, a2, acc2[r]));                                                       \
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
    const uint mine = gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID;
    const uint g = EPI == ESP_EPI_GEGLU ? 2 * mine : mine;
    if (row0 >= n_row || g >= p.n_group)
        return;
    vec4 acc[ROWS], acc2[ROWS], x[ROWS];
    for (uint r = 0; r < ROWS; r++) {
        acc[r] = vec4(0.0);
        acc2[r] = vec4(0.0);
    }
    for (uint kc = 0; kc < p.k4 / 2; kc += 4) { // padded K is a multiple of 32
        for (uint r = 0; r < ROWS; r++)
            x[r] = ACT_LOAD(p.x_at + min(row0 + r, n_row - 1) * p.x_stride + 2 * kc + lane);
        EIGHT(0)
        EIGHT(2)
        EIGHT(4)
        EIGHT(6)
    }
    for (uint r = 0; r < ROWS; r++) {
        if (row0 + r >= n_row)
            continue;
        if (EPI == ESP_EPI_GEGLU)
            put(row0 + r, g / 2, lane, esp_gelu(fold(acc[r])) * fold(acc2[r]));
        else
            finish(row0 + r, g, lane, fold(acc[r]));
    }
}
