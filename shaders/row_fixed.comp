// Rows of x as numbers of 30 bits, in place, for matvec_direct_quant.comp: x = (a + b / 2^14) * unit, a = n >> 16 in
// [-2^14, 2^14), b = n & (2^14 - 1), with one unit a row, the 2^-14 of a power of two that none of it reaches. What is
// lost is below 2^-28 of the row's largest. The unit is NaN where an element is no finite number, so that the whole row
// of the product is none.
// Grid: x = rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "mem.glsl"

layout(local_size_x = 8) in; // one subgroup
ESP_PUSH(esp_push_matmul);

uint larger(const uvec4 v)
{
    return max(max(v.x, v.y), max(v.z, v.w));
}

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const uint t = gl_WorkGroupID.x;
    if (t >= p.step.at[p.count])
        return;
    const uint x = p.x_at + t * p.x_stride + lane;
    uint most = 0; // of the elements' bits without sign: as integers they are in the order of their values, NaN above all
    for (uint q = 0; q < p.k4; q += 8)
        most = max(most, larger(floatBitsToUint(ACT_LOAD(x + q)) & 0x7fffffffu));
    most = max(most, subgroupShuffle(most, lane ^ 4));
    most = max(most, subgroupShuffle(most, lane ^ 2));
    most = max(most, subgroupShuffle(most, lane ^ 1));
    // |x| < 2^(e - 126); both units and their inverse are to be normal numbers
    const uint e = clamp(most >> 23, 30u, 254u);
    const float units = uintBitsToFloat((267 - e) << 23); // 2^(13 - (e - 127))
    for (uint q = 0; q < p.k4; q += 8) {
        const vec4 v = ACT_LOAD(x + q) * units;
        const vec4 a = floor(v);
        const ivec4 b = min(ivec4((v - a) * 16384.0 + 0.5), ivec4(16383));
        ACT_STORE(x + q, intBitsToFloat(ivec4(a) << 16 | b));
    }
    esp_floats(p.act).at[p.scale_at * 4 + t] =
        uintBitsToFloat(most >= 0x7f800000u ? 0x7fc00000u : (e - 13) << 23);
}
