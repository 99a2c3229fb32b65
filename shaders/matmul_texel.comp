// y = epilogue(x W^T + b) for many rows, on CPU drivers: prefill and encoder.
// Reference: model/reference.c esp_ref_matmul. Sums in float32, k rising, so a row's bits depend on that row alone.
//
// A subgroup of 8 lanes takes 16 rows by 64 columns, eight k at a time: lane r loads x of rows r and 8 + r, and column
// r of each group of 8; x travels by broadcast. No shared memory, no barrier: both cost more here than they save.
// Every load is a call, around which nothing stays in a register, so the 128 sums of a lane wait in memory anyway:
// what counts is how many products there are between two calls, and that they come row by row, a chain of sums at a
// time.
// Grid: x = rows / 16 (neighbours share a panel of W, which stays in cache), y = panels of 64 columns.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#ifdef ESP_DIRECT
#include "direct.glsl"
#endif
#include "math.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "tile.glsl"
#include "epilogue.glsl"

const uint ROWS = 16;

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.x * ROWS;
    const uint g = gl_WorkGroupID.y * TILE;
    const uint w_at = p.w_at, k4 = p.k4, n_group = p.n_group;
#ifdef ESP_DIRECT
    know_lane();
    const uint k_end = k4 / 2 - 1; // where a loop has ended weights are loaded all the same
#else
    const uint k_end = k4 / 2;
#endif
    if (row0 >= n_row)
        return;
    uint x_at[ROWS / 8];
    vec4 acc[ROWS][TILE / 4];
    [[unroll]] for (uint i = 0; i < ROWS / 8; i++)
        x_at[i] = p.x_at + min(row0 + 8 * i + lane, n_row - 1) * p.x_stride; // past the end: any row, never stored
    [[unroll]] for (uint r = 0; r < ROWS; r++)
        acc[r][0] = acc[r][1] = vec4(0.0);

    float d[TILE], dz[TILE];
    for (uint kc = 0; kc < k4 / 2; kc++) { // in one loop: two would mask every sum twice
        if (kc % 4 == 0)
            tile_begin(w_at, k4, g, min(kc, k_end) / 4, lane, d, dz);
        vec4 w[2][TILE], x[2][ROWS / 8]; // four k and four more
        tile_load(w_at, k4, g, min(kc, k_end), lane, d, dz, w[0], w[1]); // beyond the last group: anything, never stored
        [[unroll]] for (uint i = 0; i < ROWS / 8; i++) {
            x[0][i] = ACT_LOAD(x_at[i] + 2 * kc);
            x[1][i] = ACT_LOAD(x_at[i] + 2 * kc + 1);
        }
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            [[unroll]] for (uint k = 0; k < 8; k++) {
                const vec4 s = vec4(subgroupBroadcast(x[k / 4][r / 8][k % 4], r % 8));
                [[unroll]] for (uint c = 0; c < TILE; c += 4)
                    acc[r][c / 4] = fma(s, vec4(w[k / 4][c][k % 4], w[k / 4][c + 1][k % 4],
                                                w[k / 4][c + 2][k % 4], w[k / 4][c + 3][k % 4]), acc[r][c / 4]);
            }
        }
    }
    // what does not vary from row to row is fetched once, and functions stand here once: compiling takes time too
    const bool pairs = EPI == ESP_EPI_GEGLU;
    const uint y_stride = p.y_stride * 4;
    const uint y_at = p.y_at * 4 + row0 * y_stride + (p.group0 + (pairs ? g / 2 : g)) * 8 + lane;
    const uint n = min(ROWS, n_row - row0);
    esp_floats y = esp_floats(p.act);
    [[unroll]] for (uint c = 0; c < TILE / 4; c++) {
        if (g + 4 * c >= n_group || !fits(pairs ? g / 2 + 2 * c : g + 4 * c))
            continue;
        const uint at = y_at + c * (pairs ? 16 : 32);
        vec4 bias = vec4(0.0);
        if (p.bias != ESP_NONE) {
            const uint b = p.bias + (g + 4 * c) * 8 + lane;
            bias = vec4(p.vec.at[b], p.vec.at[b + 8], p.vec.at[b + 16], p.vec.at[b + 24]);
        }
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            if (r >= n)
                continue;
            const uint to = at + r * y_stride;
            const vec4 v = acc[r][c] + bias;
            if (pairs) {
                y.at[to] = esp_gelu(v.x) * v.y;
                y.at[to + 8] = esp_gelu(v.z) * v.w;
            } else {
                y.at[to] = EPI == ESP_EPI_ADD ? y.at[to] + v.x : v.x;
                y.at[to + 8] = EPI == ESP_EPI_ADD ? y.at[to + 8] + v.y : v.y;
                y.at[to + 16] = EPI == ESP_EPI_ADD ? y.at[to + 16] + v.z : v.z;
                y.at[to + 24] = EPI == ESP_EPI_ADD ? y.at[to + 24] + v.w : v.w;
            }
        }
    }
    if (EPI == ESP_EPI_GELU || EPI == ESP_EPI_SOFTCAP)
        for (uint r = 0; r < n; r++)
            for (uint c = 0; c < min(TILE, n_group - g) && fits(g + c); c++)
                y.at[y_at + r * y_stride + c * 8] = bent(y.at[y_at + r * y_stride + c * 8]);
}
