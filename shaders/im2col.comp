// Pictures into patches: row (py, px), column (c, y, x) is pixel (c, py*P + y, px*P + x), so that SigLIP's patch
// convolution (P x P, stride P, no padding; arXiv 2303.15343) is a product with its weight [D, C*P*P].
// Grid: x = patches, y = quads of a row / 64. Padding columns become zero.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_im2col);

void main()
{
    const uint t = gl_WorkGroupID.x;
    const uint q = gl_GlobalInvocationID.y * 64 + gl_LocalInvocationID.x;
    if (t >= p.step.at[ESP_STEP_N_ROWS] || q >= p.y_stride)
        return;
    const uint area = p.side_px * p.side_px;
    vec4 v = vec4(0.0);
    for (uint i = 0; i < 4; i++) {
        const uint k = 4 * q + i;
        if (k >= p.channels * area)
            continue;
        const uint y = t / p.side * p.side_px + k % area / p.side_px;
        const uint x = t % p.side * p.side_px + k % p.side_px;
        v[i] = p.host.at[(k / area * p.size + y) * p.size + x];
    }
    ACT_STORE(p.y_at + t * p.y_stride + q, v);
}
