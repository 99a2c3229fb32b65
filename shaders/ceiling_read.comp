// Reads a buffer once, from end to end: what a device's memory can give to any kernel.
// A workgroup reads n_quad / workgroups quads that lie together, a round of it one piece of 16 bytes a lane; what it read
// is written only if it is one number in 2^32, so that nothing is left out and nothing is stored. The direct class reads
// eight words at a time for eight lanes together (direct.glsl).
// Grid: x = workgroups.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"
#ifdef ESP_DIRECT
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#include "direct.glsl"
#endif

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LANES = 64;
ESP_PUSH(esp_push_ceiling);

void main()
{
    const uint n = p.n_quad / gl_NumWorkGroups.x; // a multiple of 4 * LANES
#ifdef ESP_DIRECT
    know_lane();
    esp_eights w = esp_eights(p.w);
    uvec4 a = uvec4(0);
    uint i = gl_WorkGroupID.x * (n / 2), left = n / 2;
    do {
        [[unroll]] for (uint j = 0; j < 16; j++) {
            const Eight t = w.at[i + j];
            a[j % 4] ^= of_lane(t.a, t.b);
        }
        i += 16;
        left -= 16;
    } while (left > 0);
#else
    const uint end = (gl_WorkGroupID.x + 1) * n;
    uvec4 a = uvec4(0), b = uvec4(0), c = uvec4(0), d = uvec4(0);
    for (uint i = gl_WorkGroupID.x * n + gl_LocalInvocationID.x; i < end; i += 4 * LANES) {
        a ^= W_LOAD(i);
        b ^= W_LOAD(i + LANES);
        c ^= W_LOAD(i + 2 * LANES);
        d ^= W_LOAD(i + 3 * LANES);
    }
    a ^= b ^ c ^ d;
#endif
    if ((a.x ^ a.y ^ a.z ^ a.w) == p.magic)
        ACT_STORE(gl_LocalInvocationID.x, vec4(1.0));
}
