// Attention over paged keys and values, on any device. Formula and tiles: attention.glsl.
// Reference: model/reference.c esp_ref_attention. No score matrix in memory: a block of keys at a time.
//
// A workgroup of 128 takes a tile of 8 query vectors. Scores: a thread is a key (neighbouring threads read
// neighbouring texels) and two of the eight queries. Values: a thread is a quad of dimensions and one or more queries.
// Grid: x = tiles, y = KV heads * parts of G.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 128) in;
ESP_PUSH(esp_push_attention);
#include "attention.glsl"

const uint PER_THREAD = (TILE * H4 + 127) / 128;

shared vec4 q[TILE * H4];
shared float s[TILE][ESP_KV_BLOCK]; // scores, then weights
shared float m[TILE], l[TILE], scale[TILE];
shared uvec2 range[TILE];

void main()
{
    const uint id = gl_LocalInvocationID.x;
    const uint tile = p.tile0 + gl_WorkGroupID.x * p.tile_by;
    if (tile >= p.step.at[ESP_STEP_N_TILES])
        return; // the whole workgroup leaves together
    const Tile t = tile_of(tile, gl_WorkGroupID.y);
    vec4 acc[PER_THREAD];

    for (uint i = 0; i < PER_THREAD; i++)
        acc[i] = vec4(0.0);
    for (uint i = id; i < TILE * H4; i += 128)
        q[i] = ACT_LOAD(query_at(t, i / H4) + i % H4);
    if (id < TILE) {
        m[id] = LOWEST;
        l[id] = 0.0;
        range[id] = reach(t, id);
    }
    barrier(); // q, m, l and range are there

    for (uint s0 = t.lo / ESP_KV_BLOCK * ESP_KV_BLOCK; s0 < t.hi; s0 += ESP_KV_BLOCK) {
        const uint keys = keys_at(t, s0);
        const uint values = keys + p.n_kv * ESP_KV_BLOCK * H4;
        const uint key = id % 32;
        for (uint r = id / 32; r < TILE; r += 4) {
            float dots = 0.0;
            for (uint d = 0; d < H4; d++) {
                const vec4 k = KV_LOAD(keys + (key / 8 * H4 + d) * 8 + key % 8);
                const vec4 a = q[r * H4 + d];
                dots = fma(a.w, k.w, fma(a.z, k.z, fma(a.y, k.y, fma(a.x, k.x, dots))));
            }
            const bool seen = s0 + key >= range[r].x && s0 + key < range[r].y;
            s[r][key] = seen ? capped(dots) : LOWEST;
        }
        barrier(); // the scores are there
        if (id < TILE) {
            float top = m[id];
            for (uint i = 0; i < ESP_KV_BLOCK; i++)
                top = max(top, s[id][i]);
            const float base = top == LOWEST ? 0.0 : top; // nothing seen yet: every weight is 0
            float sum = 0.0;
            for (uint i = 0; i < ESP_KV_BLOCK; i++) {
                const float w = esp_exp(s[id][i] - base);
                s[id][i] = w;
                sum += w;
            }
            scale[id] = esp_exp(m[id] - base);
            l[id] = l[id] * scale[id] + sum;
            m[id] = top;
        }
        barrier(); // the weights are there
        for (uint i = 0; i < PER_THREAD; i++) {
            const uint e = id + 128 * i;
            if (e >= TILE * H4)
                break;
            const uint r = e / H4;
            vec4 a = acc[i] * scale[r];
            for (uint k = 0; k < ESP_KV_BLOCK; k++)
                a = fma(vec4(s[r][k]), KV_LOAD(values + k * H4 + e % H4), a);
            acc[i] = a;
        }
        barrier(); // the weights have been used
    }
    for (uint i = 0; i < PER_THREAD; i++) {
        const uint e = id + 128 * i;
        if (e < TILE * H4 && live(t, e / H4))
            ACT_STORE(result_at(t, e / H4) + e % H4, acc[i] / l[e / H4]);
    }
}
