// The first half of an RMSNorm taken apart (ESP_SPLIT_* in push.h) where no product made x: at the beginning of a stage.
//   z = x (1 + w); squares[t, i] = the sum of squares of columns 8 i .. 8 i + 7
// To the same bits as matvec_gpu.comp leaves, so that a layer does not know where the stage before ended.
// Grid: x = rows, y = D / 8 / 64.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_norm);
#include "squares.glsl"

void main()
{
    const uint t = gl_WorkGroupID.x;
    const uint i = gl_WorkGroupID.y * 64 + gl_LocalInvocationID.x; // eight columns
    if (t >= p.step.at[p.count] || i >= p.n_quad / 2)
        return;
    const uint x = p.x_at + t * p.x_stride + 2 * i;
    const vec4 a = ACT_LOAD(x);
    const vec4 b = ACT_LOAD(x + 1);
    const float s[8] =
        float[8](square(a.x), square(a.y), square(a.z), square(a.w), square(b.x), square(b.y), square(b.z), square(b.w));
    const uint z = (p.y_at + t * p.y_stride) * 4 + 8 * i;
    for (uint c = 0; c < 4; c++) {
        esp_floats(p.act).at[z + c] = weighted(a[c], p.vec.at[p.weight + 8 * i + c]);
        esp_floats(p.act).at[z + 4 + c] = weighted(b[c], p.vec.at[p.weight + 8 * i + 4 + c]);
    }
    esp_floats(p.act).at[(p.squares_at + t * p.squares_stride) * 4 + i] = sum_of_8(s);
}
