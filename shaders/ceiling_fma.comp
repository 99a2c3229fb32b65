// Multiplies and adds in registers and nothing else: what a device's float32 units can do.
// 12 independent sums a lane, 24 flop a step; n_round steps of 8: enough to hide a latency of 8 cycles, few enough for a
// CPU's 16 vector registers. The result is written only if it is what it cannot be.
// Grid: x = workgroups.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint LANES = 64;
ESP_PUSH(esp_push_ceiling);

void main()
{
    const float m = p.scale + 1e-7 * float(gl_LocalInvocationID.x);
    vec4 a = vec4(1.0, 1.1, 1.2, 1.3) + m, b = vec4(2.0, 2.1, 2.2, 2.3) + m, c = vec4(3.0, 3.1, 3.2, 3.3) + m;
#define STEP                                                                                                       \
    a = fma(a, vec4(m), vec4(m));                                                                                  \
    b = fma(b, vec4(m), vec4(m));                                                                                  \
    c = fma(c, vec4(m), vec4(m));
    for (uint i = 0; i < p.n_round; i++) {
        STEP STEP STEP STEP STEP STEP STEP STEP
    }
    a += b + c;
    if (a.x + a.y + a.z + a.w == -1.0)
        ACT_STORE(gl_LocalInvocationID.x, a);
}
