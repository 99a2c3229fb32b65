// Rows of x as integers, block by block and in place (fixed.glsl), for matvec_direct_quant.comp. An element is off by half a
// unit at most: 3e-5 of x in relative L2 or so with 16 bits (q8), 6e-5 with 15 (q4). Weights are off by 5e-3 and 7e-2.
// Grid: x = rows, y = blocks of 32 k / ESP_FIXED_BLOCKS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "mem.glsl"
#include "fixed.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint MOST = ESP_FIXED_MOST_Q4;
ESP_PUSH(esp_push_matmul);

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const uint t = gl_WorkGroupID.x;
    const uint b = gl_WorkGroupID.y * ESP_FIXED_BLOCKS, last = min(b + ESP_FIXED_BLOCKS, p.k4 / 8);
    if (t >= p.step.at[p.count])
        return;
    const float limit = float(MOST);
    for (uint i = b; i < last; i++) {
        const uint at = p.x_at + t * p.x_stride + i * 8;
        esp_fixed x = esp_fixed(texels_on(p.act, at));
        const vec4 v = ACT_LOAD(at + lane);
        const uvec4 size = floatBitsToUint(v) & 0x7fffffffu; // as integers they are in their order, NaN above all
        uint most = max(max(size.x, size.y), max(size.z, size.w));
        [[unroll]] for (uint d = 4; d > 0; d /= 2)
            most = max(most, subgroupShuffle(most, lane ^ d));
        // the unit and its inverse are to be normal numbers
        const float unit = max(uintBitsToFloat(most), 1e-30) / limit;
        const ivec4 a = ivec4(clamp(roundEven(v / unit), -limit, limit));
        int all = a.x + a.y + a.z + a.w;
        [[unroll]] for (uint d = 4; d > 0; d /= 2)
            all += subgroupShuffle(all, lane ^ d);
        const ivec2 pairs = a.yw << 16 | a.xz & 0xffff;
        esp_words words = esp_words(uvec2(x));
        words.at[2 * lane] = uint(pairs.x);
        words.at[2 * lane + 1] = uint(pairs.y);
        if (lane == 0) {
            x.at[0].unit = most >= 0x7f800000u ? uintBitsToFloat(0x7fc00000u) : unit;
            x.at[0].all = float(all);
        }
    }
}
