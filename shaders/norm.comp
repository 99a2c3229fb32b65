// LayerNorm and RMSNorm, row by row; formulas at ESP_NORM_* in push.h.
// Sources: SigLIP's blocks (arXiv 2303.15343; eps 1e-6), Gemma's RMSNorm with its 1 + w (arXiv 2403.08295).
// Reference: model/reference.c esp_ref_layernorm, esp_ref_rmsnorm. The variance takes a second pass over the row:
// E[x^2] - E[x]^2 would cancel on rows with outliers.
// Grid: one workgroup a row of y.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 64) in;
layout(constant_id = 0) const uint MODE = ESP_NORM_LAYER;
ESP_PUSH(esp_push_norm);

shared float part[64];

float sum_over_lanes(const float mine)
{
    const uint lane = gl_LocalInvocationID.x;
    barrier(); // whoever still reads part[0] of the sum before is done
    part[lane] = mine;
    barrier(); // part[] is complete before any lane folds it
    for (uint n = 32; n > 0; n /= 2) {
        if (lane < n)
            part[lane] += part[lane + n];
        barrier(); // outside the if: every lane must arrive
    }
    return part[0];
}

void main()
{
    const uint lane = gl_LocalInvocationID.x;
    const uint t = gl_WorkGroupID.x;
    if (t >= p.step.at[p.count])
        return; // the whole workgroup leaves together
    const uint from = p.pick == 0 ? t : p.step.at[p.step.at[ESP_STEP_WANTS] + t * ESP_WANT + ESP_WANT_ROW];
    const uint x = p.x_at + from * p.x_stride;
    const uint y = p.y_at + t * p.y_stride;
    float mean = 0.0;
    float sum = 0.0;

    if (MODE == ESP_NORM_LAYER) {
        for (uint q = lane; q < p.n_quad; q += 64) {
            const vec4 v = ACT_LOAD(x + q); // padding is zero
            sum += (v.x + v.y) + (v.z + v.w);
        }
        mean = sum_over_lanes(sum) / float(p.width);
        sum = 0.0;
    }
    for (uint q = lane; q < p.n_quad; q += 64) {
        vec4 v = ACT_LOAD(x + q);
        if (MODE == ESP_NORM_LAYER) {
            const uvec4 d = uvec4(0, 1, 2, 3) + 4 * q;
            v = mix(vec4(0.0), v - mean, lessThan(d, uvec4(p.width)));
        }
        sum += dot(v, v);
    }
    const float inv = 1.0 / sqrt(sum_over_lanes(sum) / float(p.width) + p.eps);
    for (uint q = lane; q < p.n_quad; q += 64) {
        const vec4 v = ACT_LOAD(x + q);
        const vec4 w = VEC4(p.weight + 4 * q); // padded with zeros, so the padding of y comes out zero
        if (MODE == ESP_NORM_LAYER)
            ACT_STORE(y + q, (v - mean) * inv * w + VEC4(p.bias + 4 * q));
        else if (MODE == ESP_NORM_RMS)
            ACT_STORE(y + q, v * inv * (1.0 + w));
        else
            ACT_STORE(y + q, ACT_LOAD(y + q) + v * inv * (1.0 + w));
    }
}
