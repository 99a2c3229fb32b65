// Rows of activations into a host-visible buffer, tight.
// Grid: x = rows, y = quads / 64.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_io);

void main()
{
    const uint t = gl_WorkGroupID.x;
    const uint q = gl_GlobalInvocationID.y * 64 + gl_LocalInvocationID.x;
    if (t >= p.step.at[p.count] || q >= p.n_quad)
        return;
    const vec4 v = ACT_LOAD(p.y_at + t * p.y_stride + q);
    for (uint i = 0; i < 4; i++)
        if (4 * q + i < p.width)
            p.host.at[p.host_at + t * p.width + 4 * q + i] = v[i];
}
