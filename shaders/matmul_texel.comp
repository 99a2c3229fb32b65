// y = epilogue(x W^T + b) for many rows, on CPU drivers: prefill and encoder.
// Reference: model/reference.c esp_ref_matmul. Sums in float32, k rising, so a row's bits depend on that row alone.
//
// A subgroup of 8 lanes takes 8 rows by 32 columns: lane r loads x of row r and column c of each group of 8, and
// x travels by broadcast. 32 accumulators a lane, no shared memory, no barrier: both cost more here than they save.
// Grid: x = rows / 8 (neighbours share a panel of W, which stays in cache), y = panels of 32 columns / 4.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 32) in; // four subgroups
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"

#define A(r) acc##r
#define ROW(r, xc, c)                                                                                              \
    {                                                                                                              \
        const float s = subgroupBroadcast(xc, r);                                                                  \
        A(r) = fma(vec4(s), vec4(c), A(r));                                                                        \
    }
#define ROWS(xc, c)                                                                                                \
    ROW(0, xc, c) ROW(1, xc, c) ROW(2, xc, c) ROW(3, xc, c) ROW(4, xc, c) ROW(5, xc, c) ROW(6, xc, c) ROW(7, xc, c)

void put_row(const uint row, const uint n_row, const uint group, const uint lane, const vec4 v)
{
    if (row >= n_row)
        return;
    if (EPI == ESP_EPI_GEGLU) {
        put(row, group / 2, lane, esp_gelu(v.x) * v.y);
        put(row, group / 2 + 1, lane, esp_gelu(v.z) * v.w);
        return;
    }
    finish(row, group, lane, v.x);
    finish(row, group + 1, lane, v.y);
    finish(row, group + 2, lane, v.z);
    finish(row, group + 3, lane, v.w);
}

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.x * 8;
    const uint g = (gl_WorkGroupID.y * gl_NumSubgroups + gl_SubgroupID) * 4;
    if (row0 >= n_row || g >= p.n_group)
        return;
    const uint x = p.x_at + min(row0 + lane, n_row - 1) * p.x_stride; // past the end: any row, never stored
    vec4 acc0 = vec4(0.0), acc1 = vec4(0.0), acc2 = vec4(0.0), acc3 = vec4(0.0);
    vec4 acc4 = vec4(0.0), acc5 = vec4(0.0), acc6 = vec4(0.0), acc7 = vec4(0.0);

    for (uint kc = 0; kc < p.k4 / 2; kc++) {
        vec4 a0, b0, a1, b1, a2, b2, a3, b3; // columns of groups g .. g+3, eight k
        w_load8(p.w_at, p.k4, g, kc, lane, a0, b0);
        w_load8(p.w_at, p.k4, g + 1, kc, lane, a1, b1);
        w_load8(p.w_at, p.k4, g + 2, kc, lane, a2, b2);
        w_load8(p.w_at, p.k4, g + 3, kc, lane, a3, b3);
        const vec4 xa = ACT_LOAD(x + 2 * kc);
        const vec4 xb = ACT_LOAD(x + 2 * kc + 1);
        ROWS(xa.x, vec4(a0.x, a1.x, a2.x, a3.x))
        ROWS(xa.y, vec4(a0.y, a1.y, a2.y, a3.y))
        ROWS(xa.z, vec4(a0.z, a1.z, a2.z, a3.z))
        ROWS(xa.w, vec4(a0.w, a1.w, a2.w, a3.w))
        ROWS(xb.x, vec4(b0.x, b1.x, b2.x, b3.x))
        ROWS(xb.y, vec4(b0.y, b1.y, b2.y, b3.y))
        ROWS(xb.z, vec4(b0.z, b1.z, b2.z, b3.z))
        ROWS(xb.w, vec4(b0.w, b1.w, b2.w, b3.w))
    }
    put_row(row0, n_row, g, lane, acc0);
    put_row(row0 + 1, n_row, g, lane, acc1);
    put_row(row0 + 2, n_row, g, lane, acc2);
    put_row(row0 + 3, n_row, g, lane, acc3);
    put_row(row0 + 4, n_row, g, lane, acc4);
    put_row(row0 + 5, n_row, g, lane, acc5);
    put_row(row0 + 6, n_row, g, lane, acc6);
    put_row(row0 + 7, n_row, g, lane, acc7);
}
