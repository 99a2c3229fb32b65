// y = epilogue(x W^T + b) for a few rows, on any device: decode and logits. One pass over the weights.
// Reference: model/reference.c esp_ref_matmul. A row's bits do not depend on ROWS or on the rows beside it.
//
// A workgroup of 64 owns a group of 8 columns (with GEGLU a gate group and the up group beside it): thread (s, r) sums
// k chunks s, s+8, ... of column r, so that a round of the workgroup reads 1 KiB in one piece; eight partial sums
// are folded through shared memory, in one order.
// Grid: x = groups (pairs with GEGLU), y = rows / ROWS.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 64) in;
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint ROWS = 1; // 1, 2, 4 or 8
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"

shared float part[2 * ROWS][64];

float fold(const vec4 v)
{
    return (v.x + v.y) + (v.z + v.w);
}

float sum_of(const uint which, const uint r)
{
    float v = 0.0;
    for (uint s = 0; s < 8; s++)
        v += part[which][8 * s + r];
    return v;
}

void main()
{
    const uint id = gl_LocalInvocationID.x;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.y * ROWS;
    const uint g = EPI == ESP_EPI_GEGLU ? 2 * gl_WorkGroupID.x : gl_WorkGroupID.x;
    if (row0 >= n_row || g >= p.n_group)
        return; // the whole workgroup leaves together
    vec4 acc[ROWS], acc2[ROWS];
    for (uint r = 0; r < ROWS; r++) {
        acc[r] = vec4(0.0);
        acc2[r] = vec4(0.0);
    }
    for (uint kc = id / 8; kc < p.k4 / 2; kc += 8) {
        vec4 a, b, a2, b2;
        w_load8(p.w_at, p.k4, g, kc, id % 8, a, b);
        if (EPI == ESP_EPI_GEGLU)
            w_load8(p.w_at, p.k4, g + 1, kc, id % 8, a2, b2);
        for (uint r = 0; r < ROWS; r++) {
            const uint x = p.x_at + min(row0 + r, n_row - 1) * p.x_stride + 2 * kc;
            const vec4 xa = ACT_LOAD(x);
            const vec4 xb = ACT_LOAD(x + 1);
            acc[r] = fma(xb, b, fma(xa, a, acc[r]));
            if (EPI == ESP_EPI_GEGLU)
                acc2[r] = fma(xb, b2, fma(xa, a2, acc2[r]));
        }
    }
    for (uint r = 0; r < ROWS; r++) {
        part[r][id] = fold(acc[r]);
        if (EPI == ESP_EPI_GEGLU)
            part[ROWS + r][id] = fold(acc2[r]);
    }
    barrier(); // all partial sums are there
    const uint r = id / 8; // thread (r, column) finishes row r
    if (r >= ROWS || row0 + r >= n_row)
        return;
    if (EPI == ESP_EPI_GEGLU)
        put(row0 + r, g / 2, id % 8, esp_gelu(sum_of(r, id % 8)) * sum_of(ROWS + r, id % 8));
    else
        finish(row0 + r, g, id % 8, sum_of(r, id % 8));
}
