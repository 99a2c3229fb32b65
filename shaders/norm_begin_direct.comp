// norm_begin.comp in the direct class, for products with quantised weights: z is left as integers (fixed.glsl), and squares are
// of 64 columns. To the same bits as matvec_direct_quant.comp leaves.
// Grid: x = rows, y = D / 64.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#include "direct.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint MOST = ESP_FIXED_MOST_Q4;
ESP_PUSH(esp_push_norm);
#include "lanes.glsl"
#include "fixed.glsl"
#include "squares.glsl"
#include "begin_fixed.glsl"

void main()
{
    know_lane();
    const uint t = gl_WorkGroupID.x;
    const uint i = gl_WorkGroupID.y;
    const uint width = p.n_quad * 4; // padding is zero
    if (t < p.step.at[p.count] && 64 * i < width) {
        esp_eights x = esp_eights(texels_on(p.act, p.x_at + t * p.x_stride + 16 * i));
        float v[8];
        [[unroll]] for (uint j = 0; j < 8; j++) {
            v[j] = 0.0;
            if (64 * i + 8 * j < width) {
                const Eight e = x.at[j];
                v[j] = uintBitsToFloat(of_lane(e.a, e.b));
            }
        }
        begin_fixed(begin_at(p.y_at + t * p.y_stride, p.squares_at + t * p.squares_stride, i, width), v, MOST);
    }
}
