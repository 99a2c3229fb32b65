// Multiplies and adds in registers and nothing else: what a device's float32 units can do.
// 16 independent sums a lane, 32 flop a step; n_round steps of 8. The result is written only if it is what it cannot be.
// Grid: x = workgroups.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LANES = 64;
ESP_PUSH(esp_push_ceiling);

void main()
{
    const vec4 m = vec4(p.scale) + vec4(0.0, 1e-7, 2e-7, 3e-7) * float(gl_LocalInvocationID.x);
    vec4 a = vec4(1.0) + m, b = vec4(2.0) + m, c = vec4(3.0) + m, d = vec4(4.0) + m;
#define STEP                                                                                                       \
    a = fma(a, m, m);                                                                                              \
    b = fma(b, m, m);                                                                                              \
    c = fma(c, m, m);                                                                                              \
    d = fma(d, m, m);
    for (uint i = 0; i < p.n_round; i++) {
        STEP STEP STEP STEP STEP STEP STEP STEP
    }
    a += b + c + d;
    if (a.x + a.y + a.z + a.w == -1.0)
        ACT_STORE(gl_LocalInvocationID.x, a);
}
