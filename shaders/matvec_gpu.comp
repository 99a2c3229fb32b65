// y = epilogue(x W^T + b) for a few rows, on GPUs: decode and logits. One pass over the weights.
// Reference: model/reference.c esp_ref_matmul. A row's bits do not depend on ROWS or on the rows beside it.
//
// A workgroup owns a group of 8 columns (with GEGLU a gate group and the up group beside it): thread (s, r) sums
// units s, s+S, ... of column r, S = LANES / 8. A unit is what a texel of 16 bytes holds of a row, 8 k of 16-bit types (of
// float32 it is two texels), 16 of q8, 32 of q4, so that a subgroup of 32 reads 512 bytes in one piece. Several units
// are asked for before the first is used: what decoding waits for is memory. LANES is large where columns are few, so that
// every part of the device has enough to ask for.
// The S partial sums of a column are added as a binary tree, neighbours first: by shuffles as far as a subgroup reaches,
// beyond it through shared memory. The tree is the same one whatever the size of a subgroup.
// With SPLIT it does half of a norm beside (ESP_SPLIT_* in push.h): what a dispatch and a barrier more would cost small models
// most, and reads nothing twice.
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
layout(constant_id = 4) const uint SPLIT = ESP_SPLIT_NONE;
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"
#include "squares.glsl"

const uint S = LANES / 8;
const uint PAIR = EPI == ESP_EPI_GEGLU ? 2 : 1;
const uint LEFT = WAVE > 8 ? LANES / WAVE : S; // partial sums of a column that shuffles leave
#if defined(ESP_W_Q4)
const uint QUADS = 8; // of k in a unit
const uint AHEAD = 2; // units under way
#elif defined(ESP_W_Q8)
const uint QUADS = 4;
const uint AHEAD = 4;
#else
const uint QUADS = 2;
const uint AHEAD = 4;
#endif

// What is loaded of a unit, and its weights: the same values that w_load8 gives.
struct Unit {
    uvec4 t;
#if defined(ESP_W_F32)
    uvec4 more;
#elif defined(ESP_W_Q8) || defined(ESP_W_Q4)
    uint scale; // 16 bits
#endif
};

Unit unit_load(const uint g, const uint u, const uint r)
{
    Unit v;
#if defined(ESP_W_F32)
    const uint i = p.w_at + (g * p.k4 + 2 * u) * 8 + r;
    v.t = W_LOAD(i);
    v.more = W_LOAD(i + 8);
#elif defined(ESP_W_Q8)
    const uint block = p.w_at + (g * (p.k4 / 8) + u / 2) * 17;
    v.scale = W_LOAD(block)[r / 2] >> (r % 2 * 16) & 0xffffu;
    v.t = W_LOAD(block + 1 + u % 2 * 8 + r);
#elif defined(ESP_W_Q4)
    const uint block = p.w_at + (g * (p.k4 / 8) + u) * 9;
    v.scale = W_LOAD(block)[r / 2] >> (r % 2 * 16) & 0xffffu;
    v.t = W_LOAD(block + 1 + r);
#else
    v.t = W_LOAD(p.w_at + (g * (p.k4 / 2) + u) * 8 + r);
#endif
    return v;
}

vec4 unit_quad(const Unit v, const uint q)
{
#if defined(ESP_W_F32)
    return uintBitsToFloat(q == 0 ? v.t : v.more);
#elif defined(ESP_W_Q8)
    return w_q8(v.scale, v.t[q]);
#elif defined(ESP_W_Q4)
    return w_q4(v.scale, v.t[q / 2] >> (q % 2 * 16));
#else
    vec4 a, b;
    w_unpack8(v.t, a, b);
    return q == 0 ? a : b;
#endif
}

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

const uint N_WAVE = LANES / WAVE;
// begun: squares of the workgroup's columns; ended: sums of squares, one a subgroup
shared float sq[SPLIT == ESP_SPLIT_BEGIN ? ROWS * 8 : (SPLIT == ESP_SPLIT_END ? ROWS * N_WAVE : 1)];

// This thread's part of a row's sum of squares, added up over its subgroup.
float squares_of(const uint row, const uint id)
{
    float sum = 0.0;
    for (uint i = id; i < p.k4 / 8; i += LANES) {
        const vec4 v = ACT_LOAD(p.squares_at + row * p.squares_stride + i);
        sum += (v.x + v.y) + (v.z + v.w);
    }
    [[unroll]] for (uint n = 1; n < WAVE; n *= 2)
        sum += subgroupShuffleXor(sum, n);
    return sum;
}

// 1 / rms of row r; the rest of the tree.
float inv_rms(const uint r)
{
    float s[N_WAVE];
    for (uint i = 0; i < N_WAVE; i++)
        s[i] = sq[r * N_WAVE + i];
    for (uint n = 1; n < N_WAVE; n *= 2)
        for (uint i = 0; i < N_WAVE; i += 2 * n)
            s[i] += s[i + n];
    return 1.0 / sqrt(s[0] / float(p.width) + p.eps);
}

// Column r8 of row r is v, all told: y, and z; the squares once all columns are there.
void begin_norm(const uint row, const uint g, const uint i, const float v)
{
    const uint column = (p.group0 + g) * 8 + i % 8;
    put(row, g, i % 8, v);
    esp_floats(p.act).at[(p.z_at + row * p.z_stride) * 4 + column] = weighted(v, p.vec.at[p.weight + column]);
    sq[i] = square(v);
}

void main()
{
    const uint id = gl_SubgroupID * WAVE + gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.y * ROWS;
    const uint g = PAIR * gl_WorkGroupID.x;
    if (row0 >= n_row || g >= p.n_group)
        return; // the whole workgroup leaves together
    const uint n_unit = p.k4 / QUADS;
    const uint r8 = id % 8;
    vec2 acc[PAIR * ROWS];
    uint x[ROWS];
    [[unroll]] for (uint r = 0; r < PAIR * ROWS; r++)
        acc[r] = vec2(0.0);
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        x[r] = p.x_at + min(row0 + r, n_row - 1) * p.x_stride;

    if (SPLIT == ESP_SPLIT_END)
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            const float v = squares_of(min(row0 + r, n_row - 1), id);
            if (gl_SubgroupInvocationID == 0)
                sq[r * N_WAVE + gl_SubgroupID] = v;
        }

    for (uint u0 = id / 8; u0 < n_unit; u0 += AHEAD * S) {
        Unit w[AHEAD * PAIR];
        [[unroll]] for (uint i = 0; i < AHEAD; i++)
            [[unroll]] for (uint j = 0; j < PAIR; j++) // past the end: any unit, not used
                w[PAIR * i + j] = unit_load(g + j, min(u0 + i * S, n_unit - 1), r8);
        [[unroll]] for (uint i = 0; i < AHEAD; i++) {
            const uint u = u0 + i * S;
            if (u >= n_unit)
                break;
            [[unroll]] for (uint q = 0; q < QUADS; q++) {
                const vec4 a = unit_quad(w[PAIR * i], q);
                const vec4 b = unit_quad(w[PAIR * i + PAIR - 1], q);
                [[unroll]] for (uint r = 0; r < ROWS; r++) {
                    const vec4 v = ACT_LOAD(x[r] + QUADS * u + q);
                    acc[PAIR * r] = fma(v.zw, a.zw, fma(v.xy, a.xy, acc[PAIR * r]));
                    if (PAIR == 2)
                        acc[PAIR * r + 1] = fma(v.zw, b.zw, fma(v.xy, b.xy, acc[PAIR * r + 1]));
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
            break;
        const float by = SPLIT == ESP_SPLIT_END ? inv_rms(r) : 1.0;
        if (EPI == ESP_EPI_GEGLU)
            put(row0 + r, g / 2, i % 8, esp_gelu(sum_of(2 * r, i % 8) * by) * (sum_of(2 * r + 1, i % 8) * by));
        else if (SPLIT == ESP_SPLIT_BEGIN)
            begin_norm(row0 + r, g, i, whole(row0 + r, g, i % 8, sum_of(r, i % 8)));
        else
            finish(row0 + r, g, i % 8, sum_of(r, i % 8) * by);
    }
    if (SPLIT != ESP_SPLIT_BEGIN)
        return;
    barrier(); // all squares are there
    if (id < ROWS && row0 + id < n_row) {
        float s[8];
        for (uint i = 0; i < 8; i++)
            s[i] = sq[id * 8 + i];
        esp_floats(p.act).at[(p.squares_at + (row0 + id) * p.squares_stride) * 4 + p.group0 + g] = sum_of_8(s);
    }
}
