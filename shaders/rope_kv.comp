// Rotary positions and the KV cache: q is scaled and (Gemma) rotated in place, k rotated and stored, v stored.
//   (a, b) -> (a cos - b sin, b cos + a sin) for a = x[j], b = x[j + H/2], angle pos * theta^(-2j/H)
// Source: arXiv 2104.09864, in the rotate-halves form of Gemma. The table of cosines and sines comes from the host in
// float64 precision: GLSL's own may be off by 2^-11. Reference: model/reference.c esp_ref_rope.
// For SigLIP (ROTATE 0) it only scales q and moves k and v to where attention looks for them.
// Grid: x = rows, y = (N + 2K) * H/8 pairs of quads / 64.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 64) in;
layout(constant_id = 0) const uint ROTATE = 1;
ESP_PUSH(esp_push_rope);

void main()
{
    const uint t = gl_WorkGroupID.x;
    const uint i = gl_GlobalInvocationID.y * 64 + gl_LocalInvocationID.x;
    if (t >= p.step.at[ESP_STEP_N_ROWS] || i >= (p.n_head + 2 * p.n_kv) * p.h8)
        return;
    const uint row = p.step.at[ESP_STEP_ROWS] + t * ESP_ROW;
    const uint head = i / p.h8;
    const uint j = i % p.h8; // quad j of the first half and of the second
    const uint at = p.x_at + t * p.x_stride + head * 2 * p.h8 + j;
    vec4 a = ACT_LOAD(at);
    vec4 b = ACT_LOAD(at + p.h8);

    if (ROTATE != 0 && head < p.n_head + p.n_kv) {
        const uint angle = p.step.at[row + ESP_ROW_POS] * p.h8 * 4 + 4 * j;
        const vec4 c = VEC4(p.table + angle);
        const vec4 s = VEC4(p.table_sin + angle);
        const vec4 ra = a * c - b * s;
        b = b * c + a * s;
        a = ra;
    }
    if (head < p.n_head) {
        ACT_STORE(at, a * p.q_scale);
        ACT_STORE(at + p.h8, b * p.q_scale);
        return;
    }
    const uint slot = p.step.at[row + ESP_ROW_SLOT];
    const uint block = p.kv_at + slot / ESP_KV_BLOCK * p.block_stride;
    const uint token = slot % ESP_KV_BLOCK;
    const uint h4 = 2 * p.h8;
    if (head < p.n_head + p.n_kv) {
        const uint k = head - p.n_head;
        const uint to = block + ((k * (ESP_KV_BLOCK / 8) + token / 8) * h4 + j) * 8 + token % 8;
        KV_STORE(to, a);
        KV_STORE(to + 8 * p.h8, b);
    } else {
        const uint k = head - p.n_head - p.n_kv;
        const uint to = block + (p.n_kv * ESP_KV_BLOCK + k * ESP_KV_BLOCK + token) * h4 + j;
        KV_STORE(to, a);
        KV_STORE(to + p.h8, b);
    }
}
