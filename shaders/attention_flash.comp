// Attention of many rows over paged keys and values, on GPUs: prefill and encoder. Formula and tiles: attention.glsl.
// Reference: model/reference.c esp_ref_attention. No score matrix in memory: a block of keys at a time.
//
// A workgroup of 128 takes 32 query vectors (32 rows of a head, or 4 rows of eight heads that share keys) against a block
// of 32 keys. Scores go through shared memory, CHUNK quads of dimensions at a time; a thread has 4 queries by 2 keys of
// them. Values: a thread is a quad of dimensions for every NG-th run of PER queries, so that each load of a value serves
// PER queries. At most 25 KiB of shared memory: no 32 queries of 256 dimensions fit, so with such heads they come again
// with each block of keys, from cache.
// Grid: x = tiles, y = KV heads * parts of G.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#define QUERIES 32
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 128) in;
layout(constant_id = 5) const uint CHUNK = 16; // a divisor of H4, at most 18
ESP_PUSH(esp_push_attention);
#include "attention.glsl"

const uint NG = 128 / H4 < TILE ? 128 / H4 : TILE;
const uint PER = (TILE + NG - 1) / NG;
const uint ROW = TILE + 1; // one more, so that stores spread over the banks

shared vec4 qs[CHUNK * ROW]; // [quad][query]
shared vec4 ks[CHUNK * ROW]; // [quad][key]
shared float s[ESP_KV_BLOCK * ROW]; // [key][query]: scores, then weights
shared float fold[128];
shared float scale[TILE], l_of[TILE];

void main()
{
    const uint id = gl_LocalInvocationID.x;
    const uint tile = p.tile0 + gl_WorkGroupID.x * p.tile_by;
    if (tile >= p.step.at[ESP_STEP_N_TILES])
        return; // the whole workgroup leaves together
    const Tile t = tile_of(tile, gl_WorkGroupID.y);
    const uint q0 = id / 16 * 4, k0 = id % 16; // scores: queries q0 .. q0+3, keys k0 and k0+16
    const uint qm = id / 4;                    // softmax: query, four threads each
    const uint quad = id % H4, qv = id / H4 * PER; // values: queries qv .. of a quad of dimensions
    const uvec2 range = reach(t, qm);
    float m = LOWEST, l = 0.0; // of query qm
    vec4 acc[PER];
    [[unroll]] for (uint i = 0; i < PER; i++)
        acc[i] = vec4(0.0);

    for (uint s0 = t.lo / ESP_KV_BLOCK * ESP_KV_BLOCK; s0 < t.hi; s0 += ESP_KV_BLOCK) {
        const uint keys = keys_at(t, s0);
        const uint values = keys + p.n_kv * ESP_KV_BLOCK * H4;
        float dots[8];
        [[unroll]] for (uint i = 0; i < 8; i++)
            dots[i] = 0.0;
        for (uint c = 0; c < H4; c += CHUNK) {
            barrier(); // what was there has been used: the chunk before, and the weights
            if (CHUNK != H4 || s0 <= t.lo) // queries that fit stay
                for (uint e = id; e < TILE * CHUNK; e += 128)
                    qs[e % CHUNK * ROW + e / CHUNK] = ACT_LOAD(query_at(t, e / CHUNK) + c + e % CHUNK);
            for (uint e = id; e < ESP_KV_BLOCK * CHUNK; e += 128) {
                const uint d = e / 8 % CHUNK, group = e / (8 * CHUNK);
                ks[d * ROW + group * 8 + e % 8] = KV_LOAD(keys + (group * H4 + c + d) * 8 + e % 8);
            }
            barrier(); // the chunk is there
            for (uint d = 0; d < CHUNK; d++) {
                const vec4 ka = ks[d * ROW + k0];
                const vec4 kb = ks[d * ROW + k0 + 16];
                [[unroll]] for (uint i = 0; i < 4; i++) {
                    const vec4 a = qs[d * ROW + q0 + i];
                    dots[i] = fma(a.w, ka.w, fma(a.z, ka.z, fma(a.y, ka.y, fma(a.x, ka.x, dots[i]))));
                    dots[4 + i] = fma(a.w, kb.w, fma(a.z, kb.z, fma(a.y, kb.y, fma(a.x, kb.x, dots[4 + i]))));
                }
            }
        }
        [[unroll]] for (uint i = 0; i < 4; i++) {
            s[k0 * ROW + q0 + i] = dots[i];
            s[(k0 + 16) * ROW + q0 + i] = dots[4 + i];
        }
        barrier(); // the scores are there

        float mine[8];
        float top = m;
        [[unroll]] for (uint i = 0; i < 8; i++) {
            const uint key = id % 4 * 8 + i;
            const bool seen = s0 + key >= range.x && s0 + key < range.y;
            mine[i] = seen ? capped(s[key * ROW + qm]) : LOWEST;
            top = max(top, mine[i]);
        }
        fold[id] = top;
        barrier(); // each thread's largest is there
        top = max(max(fold[4 * qm], fold[4 * qm + 1]), max(fold[4 * qm + 2], fold[4 * qm + 3]));
        const float base = top == LOWEST ? 0.0 : top; // nothing seen yet: every weight is 0
        float sum = 0.0;
        [[unroll]] for (uint i = 0; i < 8; i++) {
            const float e = esp_exp(mine[i] - base);
            s[(id % 4 * 8 + i) * ROW + qm] = e;
            sum += e;
        }
        barrier(); // the largest have been read
        fold[id] = sum;
        const float by = esp_exp(m - base);
        if (id % 4 == 0)
            scale[qm] = by;
        barrier(); // weights, sums and scales are there
        l = l * by + ((fold[4 * qm] + fold[4 * qm + 1]) + (fold[4 * qm + 2] + fold[4 * qm + 3]));
        m = top;
        if (qv < TILE) {
            [[unroll]] for (uint i = 0; i < PER; i++)
                acc[i] *= scale[min(qv + i, TILE - 1)];
            for (uint k = 0; k < ESP_KV_BLOCK; k += 4) {
                vec4 v[4];
                [[unroll]] for (uint j = 0; j < 4; j++)
                    v[j] = KV_LOAD(values + (k + j) * H4 + quad);
                [[unroll]] for (uint j = 0; j < 4; j++)
                    [[unroll]] for (uint i = 0; i < PER; i++)
                        acc[i] = fma(vec4(s[(k + j) * ROW + min(qv + i, TILE - 1)]), v[j], acc[i]);
            }
        }
    }
    if (id % 4 == 0)
        l_of[qm] = l;
    barrier(); // the sums are there
    [[unroll]] for (uint i = 0; i < PER; i++)
        if (qv + i < TILE && live(t, qv + i))
            ACT_STORE(result_at(t, qv + i) + quad, acc[i] / l_of[qv + i]);
}
