// y = epilogue(x W^T + b) for a few rows, on GPUs: decode and logits. One pass over the weights.
// Reference: model/reference.c esp_ref_matmul. A row's bits do not depend on ROWS or on the rows beside it.
//
// A workgroup owns a group of 8 columns (with GEGLU a gate group and the up group beside it): thread (s, r) sums
// k chunks s, s+S, ... of column r, S = LANES / 8, so that a subgroup of 32 reads 512 bytes in one piece. Four chunks
// are asked for before the first is used: what decoding waits for is memory. LANES is large where columns are few, so that
// every part of the device has enough to ask for.
// The S partial sums of a column are added as a binary tree, neighbours first: by shuffles as far as a subgroup reaches,
// beyond it through shared memory. The tree is the same one whatever the size of a subgroup.
// Grid: x = groups (pairs with GEGLU), y = rows / ROWS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_EXT_control_flow_attributes : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x_id = 2) in;
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint ROWS = 1;   // 1, 2, 4 or 8
layout(constant_id = 2) const uint LANES = 64; // 64, 128 or 256
layout(constant_id = 3) const uint WAVE = 32;  // the size of the subgroups, all of them full
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"

const uint S = LANES / 8;
const uint PAIR = EPI == ESP_EPI_GEGLU ? 2 : 1;
const uint LEFT = WAVE > 8 ? LANES / WAVE : S; // partial sums of a column that shuffles leave
const uint AHEAD = 4;

shared float part[PAIR * ROWS * 8 * LEFT];

// Column r of sum `which`: the rest of the tree. Called by one thread a column.
float sum_of(const uint which, const uint r)
{
    const uint at = (which * 8 + r) * LEFT;
    for (uint n = 1; n < LEFT; n *= 2)
        for (uint i = 0; i < LEFT; i += 2 * n)
            part[at + i] += part[at + i + n];
    return part[at];
}

void main()
{
    const uint id = gl_SubgroupID * WAVE + gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.y * ROWS;
    const uint g = PAIR * gl_WorkGroupID.x;
    if (row0 >= n_row || g >= p.n_group)
        return; // the whole workgroup leaves together
    const uint n_chunk = p.k4 / 2;
    const uint r8 = id % 8;
    vec2 acc[PAIR * ROWS];
    uint x[ROWS];
    [[unroll]] for (uint r = 0; r < PAIR * ROWS; r++)
        acc[r] = vec2(0.0);
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        x[r] = p.x_at + min(row0 + r, n_row - 1) * p.x_stride;

    for (uint kc = id / 8; kc < n_chunk; kc += AHEAD * S) {
        vec4 a[AHEAD * PAIR], b[AHEAD * PAIR];
        [[unroll]] for (uint i = 0; i < AHEAD; i++)
            [[unroll]] for (uint j = 0; j < PAIR; j++) // past the end: any chunk, not used
                w_load8(p.w_at, p.k4, g + j, min(kc + i * S, n_chunk - 1), r8, a[PAIR * i + j], b[PAIR * i + j]);
        [[unroll]] for (uint i = 0; i < AHEAD; i++) {
            const uint c = kc + i * S;
            if (c >= n_chunk)
                break;
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
                const vec4 xa = ACT_LOAD(x[r] + 2 * c);
                const vec4 xb = ACT_LOAD(x[r] + 2 * c + 1);
                [[unroll]] for (uint j = 0; j < PAIR; j++) {
                    const vec4 wa = a[PAIR * i + j];
                    const vec4 wb = b[PAIR * i + j];
                    vec2 v = acc[PAIR * r + j];
                    v = fma(xa.xy, wa.xy, v);
                    v = fma(xa.zw, wa.zw, v);
                    v = fma(xb.xy, wb.xy, v);
                    acc[PAIR * r + j] = fma(xb.zw, wb.zw, v);
                }
            }
        }
    }
    [[unroll]] for (uint r = 0; r < PAIR * ROWS; r++) {
        float v = acc[r].x + acc[r].y;
        [[unroll]] for (uint n = 8; n < WAVE; n *= 2)
            v += subgroupShuffleXor(v, n);
        if (WAVE <= 8)
            part[(r * 8 + r8) * LEFT + id / 8] = v;
        else if (gl_SubgroupInvocationID < 8)
            part[(r * 8 + r8) * LEFT + gl_SubgroupID] = v;
    }
    barrier(); // all partial sums are there
    for (uint i = id; i < ROWS * 8; i += LANES) { // thread (r, column) finishes row r
        const uint r = i / 8;
        if (row0 + r >= n_row)
            return;
        if (EPI == ESP_EPI_GEGLU)
            put(row0 + r, g / 2, i % 8, esp_gelu(sum_of(2 * r, i % 8)) * sum_of(2 * r + 1, i % 8));
        else
            finish(row0 + r, g, i % 8, sum_of(r, i % 8));
    }
}
