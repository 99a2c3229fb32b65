// For each row of x the power of two that brings its largest element to [2^14, 2^15): what matmul_coop.comp multiplies it
// by before it becomes float16. 1 for a row of zeros; NaN where an element is no finite number, so that the whole row of
// the product is none.
// Grid: x = rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 128) in;
ESP_PUSH(esp_push_matmul);

shared uint part[128];

void main()
{
    const uint lane = gl_LocalInvocationID.x;
    const uint t = gl_WorkGroupID.x;
    if (t >= p.step.at[p.count])
        return; // the whole workgroup leaves together
    uint most = 0; // of the elements' bits without sign: as integers they are in the order of their values, NaN above all
    for (uint q = lane; q < p.k4; q += 128) {
        const uvec4 b = floatBitsToUint(ACT_LOAD(p.x_at + t * p.x_stride + q)) & 0x7fffffffu;
        most = max(most, max(max(b.x, b.y), max(b.z, b.w)));
    }
    part[lane] = most;
    barrier(); // part[] is complete before any lane folds it
    for (uint n = 64; n > 0; n /= 2) {
        if (lane < n)
            part[lane] = max(part[lane], part[lane + n]);
        barrier(); // every lane must arrive
    }
    if (lane != 0)
        return;
    const uint e = part[0] >> 23; // 2^(e - 127) <= largest < 2^(e - 126)
    // both 2^(14 - (e - 127)) and its inverse are to be normal numbers
    const uint scale = e == 0 ? 127u : uint(clamp(127 + 14 - (int(e) - 127), 1, 253));
    esp_floats(p.act).at[p.scale_at * 4 + t] = uintBitsToFloat(e == 255 ? 0x7fc00000u : scale << 23);
}
