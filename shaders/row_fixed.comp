// Rows of x as integers, block by block and in place (fixed.glsl), for matvec_direct_quant.comp: where what made x left floats.
// Grid: x = rows, y = blocks of 32 k / ESP_FIXED_BLOCKS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#include "direct.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint MOST = ESP_FIXED_MOST_Q4;
ESP_PUSH(esp_push_matmul);
#include "fixed.glsl"

void main()
{
    know_lane();
    const uint t = gl_WorkGroupID.x;
    const uint last = min((gl_WorkGroupID.y + 1) * ESP_FIXED_BLOCKS, p.k4 / 8);
    uint b = gl_WorkGroupID.y * ESP_FIXED_BLOCKS;
    if (t < p.step.at[p.count] && b < last) do {
        const uint at = p.x_at + t * p.x_stride + b * 8;
        esp_eights x = esp_eights(texels_on(p.act, at));
        float v[4];
        [[unroll]] for (uint j = 0; j < 4; j++) {
            const Eight e = x.at[j];
            v[j] = uintBitsToFloat(of_lane(e.a, e.b));
        }
        put_fixed(fixed_at(at), v, MOST);
        b++;
    } while (b < last);
}
