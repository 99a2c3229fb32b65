// The rows that enter the decoder: an embedding row times sqrt(D) for a text token, image features as they are.
// Source: arXiv 2407.07726, section 3; Gemma scales embeddings, not image features.
// The packed embedding serves as the output head too. One dispatch a part of it: rows of other parts stay untouched.
// Grid: x = rows, y = quads / 64.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_embed);
#include "weights.glsl"

void main()
{
    const uint t = gl_WorkGroupID.x;
    const uint kc = gl_GlobalInvocationID.y * 64 + gl_LocalInvocationID.x; // eight floats
    if (t >= p.step.at[ESP_STEP_N_ROWS] || kc >= p.k4 / 2)
        return;
    const uint src = p.step.at[p.step.at[ESP_STEP_ROWS] + t * ESP_ROW + ESP_ROW_SRC];
    const uint y = p.y_at + t * p.y_stride + 2 * kc;
    if ((src & ESP_ROW_FEATURE) != 0) {
        const uint f = p.features_at + (src & ~ESP_ROW_FEATURE) * p.y_stride + 2 * kc;
        if (p.row0 == 0) {
            ACT_STORE(y, ACT_LOAD(f));
            ACT_STORE(y + 1, ACT_LOAD(f + 1));
        }
        return;
    }
    if (src < p.row0 || src >= p.row0 + p.n_row)
        return;
    vec4 a, b;
    w_load8(p.w_at, p.k4, (src - p.row0) / 8, kc, (src - p.row0) % 8, a, b);
    ACT_STORE(y, a * p.scale);
    ACT_STORE(y + 1, b * p.scale);
}
