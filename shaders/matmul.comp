// y = epilogue(x W^T + b) for many rows, on any device: prefill and encoder.
// Reference: model/reference.c esp_ref_matmul. Sums in float32, k rising, so a row's bits depend on that row alone.
//
// A workgroup of 128 takes 64 rows by 64 columns, 16 k at a time through shared memory (8 KiB of the guaranteed 16);
// a thread takes 8 rows by 4 columns: two neighbouring ones and their twins 8 further on, so that with GEGLU it holds
// gate and up of the same outputs.
// Grid: x = rows / 64, y = columns / 64.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 128) in;
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"

shared vec4 xs[16][17]; // [k][rows / 4], one column more so that stores spread over the banks
shared vec2 ws[16][34]; // [k][columns / 2]

void main()
{
    const uint id = gl_LocalInvocationID.x;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.x * 64;
    const uint g0 = gl_WorkGroupID.y * 8;
    if (row0 >= n_row)
        return; // the whole workgroup leaves together
    const uint tr = id / 16;                        // rows row0 + 8*tr ..
    const uint tc = (id % 16) / 4 * 16 + id % 4 * 2; // columns tc, tc+1, tc+8, tc+9 of the 64
    vec4 acc[8]; // one a row
    for (uint r = 0; r < 8; r++)
        acc[r] = vec4(0.0);

    const uint lr = id / 2; // this thread loads 8 k of row lr of x ...
    const uint lk = id % 2;
    const uint x = p.x_at + min(row0 + lr, n_row - 1) * p.x_stride + 2 * lk;
    const uint wr = id % 8; // ... and 8 k of row wr of group g0 + wg of W
    const uint wg = id / 16;
    const uint wk = id / 8 % 2;

    for (uint kc = 0; kc < p.k4 / 2; kc += 2) {
        const vec4 xa = ACT_LOAD(x + 2 * kc);
        const vec4 xb = ACT_LOAD(x + 2 * kc + 1);
        vec4 a = vec4(0.0), b = vec4(0.0);
        if (g0 + wg < p.n_group)
            w_load8(p.w_at, p.k4, g0 + wg, kc + wk, wr, a, b);
        barrier(); // the tiles of the round before have been read
        for (uint i = 0; i < 4; i++) {
            xs[8 * lk + i][lr / 4][lr % 4] = xa[i];
            xs[8 * lk + 4 + i][lr / 4][lr % 4] = xb[i];
            ws[8 * wk + i][(8 * wg + wr) / 2][wr % 2] = a[i];
            ws[8 * wk + 4 + i][(8 * wg + wr) / 2][wr % 2] = b[i];
        }
        barrier(); // the tiles are complete
        for (uint k = 0; k < 16; k++) {
            const vec4 lo = xs[k][2 * tr];
            const vec4 hi = xs[k][2 * tr + 1];
            const vec4 w = vec4(ws[k][tc / 2], ws[k][tc / 2 + 4]);
            acc[0] = fma(vec4(lo.x), w, acc[0]);
            acc[1] = fma(vec4(lo.y), w, acc[1]);
            acc[2] = fma(vec4(lo.z), w, acc[2]);
            acc[3] = fma(vec4(lo.w), w, acc[3]);
            acc[4] = fma(vec4(hi.x), w, acc[4]);
            acc[5] = fma(vec4(hi.y), w, acc[5]);
            acc[6] = fma(vec4(hi.z), w, acc[6]);
            acc[7] = fma(vec4(hi.w), w, acc[7]);
        }
    }
    const uint group = g0 + tc / 8; // of the first two columns; the twins are in group + 1
    if (group >= p.n_group)
        return;
    for (uint r = 0; r < 8; r++) {
        const uint row = row0 + 8 * tr + r;
        if (row >= n_row)
            return;
        if (EPI == ESP_EPI_GEGLU) {
            put(row, group / 2, tc % 8, esp_gelu(acc[r].x) * acc[r].z);
            put(row, group / 2, tc % 8 + 1, esp_gelu(acc[r].y) * acc[r].w);
            continue;
        }
        finish(row, group, tc % 8, acc[r].x);
        finish(row, group, tc % 8 + 1, acc[r].y);
        finish(row, group + 1, tc % 8, acc[r].z);
        finish(row, group + 1, tc % 8 + 1, acc[r].w);
    }
}
