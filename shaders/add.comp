// y += a small float32 matrix: SigLIP's learned position embedding.
// Grid: x = rows, y = quads / 64.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_add);

void main()
{
    const uint t = gl_WorkGroupID.x;
    const uint q = gl_GlobalInvocationID.y * 64 + gl_LocalInvocationID.x;
    if (t >= p.step.at[p.count] || q >= p.n_quad)
        return;
    const uint y = p.y_at + t * p.y_stride + q;
    ACT_STORE(y, ACT_LOAD(y) + VEC4(p.vec_at + (t * p.n_quad + q) * 4));
}
