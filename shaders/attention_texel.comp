// Attention over paged keys and values, on CPU drivers. Formula and tiles: attention.glsl.
// Reference: model/reference.c esp_ref_attention. No score matrix in memory: a block of keys at a time.
//
// A subgroup of 8 lanes takes a tile of 8 or 16 query vectors and a block of 32 keys. Scores: a lane is a key of each
// group of 8, queries travel by broadcast. What there is one of for each query (its range, its largest score) is kept by
// lane r % 8 for query r, so that eight cost one exponential. Values: a lane is a quad of dimensions, weights travel
// by broadcast. The sums wait in y itself between two blocks, each lane loading what it stored: an array that is
// indexed in a loop compiles far worse here. Loads are calls: 16 queries, where there are as many, share them.
// Grid: x = tiles, y = KV heads * parts of G.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#include "math.glsl"
#include "lanes.glsl"

layout(local_size_x = 8) in;
ESP_PUSH(esp_push_attention);
#include "attention.glsl"

const uint SETS = TILE / 8;       // of queries, a lane each
const uint ROUNDS = (H4 + 7) / 8; // of 8 lanes over the quads of a head
const uint AHEAD = 8;             // keys whose values are loaded at once

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const Tile t = tile_of(gl_WorkGroupID.x, gl_WorkGroupID.y);
    const uint start = t.lo / ESP_KV_BLOCK * ESP_KV_BLOCK;
    uint from[SETS];
    uvec2 range[SETS];
    float top[SETS];
    float sum[TILE]; // of this lane's keys
    uint to[TILE];
    bool put[TILE];

    [[unroll]] for (uint i = 0; i < SETS; i++) {
        from[i] = query_at(t, 8 * i + lane);
        range[i] = reach(t, 8 * i + lane);
        top[i] = LOWEST;
    }
    [[unroll]] for (uint r = 0; r < TILE; r++) {
        sum[r] = 0.0;
        to[r] = result_at(t, r);
        put[r] = live(t, r);
    }
    for (uint s0 = start; s0 < t.hi; s0 += ESP_KV_BLOCK) {
        const uint keys = keys_at(t, s0);
        vec4 s[TILE]; // scores of keys lane, 8 + lane, 16 + lane, 24 + lane; then their weights
        [[unroll]] for (uint r = 0; r < TILE; r++)
            s[r] = vec4(0.0);
        for (uint d = 0; d < H4; d += 2) {
            vec4 k[2][4], q[SETS][2];
            [[unroll]] for (uint i = 0; i < 2; i++) {
                [[unroll]] for (uint g = 0; g < 4; g++)
                    k[i][g] = KV_LOAD(keys + (g * H4 + d + i) * 8 + lane);
                [[unroll]] for (uint j = 0; j < SETS; j++)
                    q[j][i] = ACT_LOAD(from[j] + d + i);
            }
            [[unroll]] for (uint r = 0; r < TILE; r++)
                [[unroll]] for (uint c = 0; c < 8; c++)
                    s[r] = fma(vec4(subgroupBroadcast(q[r / 8][c / 4][c % 4], r % 8)),
                               vec4(k[c / 4][0][c % 4], k[c / 4][1][c % 4], k[c / 4][2][c % 4], k[c / 4][3][c % 4]),
                               s[r]);
        }

        const uvec4 at = s0 + lane + uvec4(0, 8, 16, 24);
        float most[SETS], base[SETS], scale[SETS];
        [[unroll]] for (uint i = 0; i < SETS; i++)
            most[i] = LOWEST;
        [[unroll]] for (uint r = 0; r < TILE; r++) {
            const uint lo = subgroupBroadcast(range[r / 8].x, r % 8), hi = subgroupBroadcast(range[r / 8].y, r % 8);
            if (SOFTCAP != 0)
                s[r] = vec4(capped(s[r].x), capped(s[r].y), capped(s[r].z), capped(s[r].w));
            s[r] = mix(vec4(LOWEST), s[r],
                       bvec4(uvec4(greaterThanEqual(at, uvec4(lo))) & uvec4(lessThan(at, uvec4(hi)))));
            const float best = largest(max(max(s[r].x, s[r].y), max(s[r].z, s[r].w)));
            most[r / 8] = lane == r % 8 ? best : most[r / 8];
        }
        [[unroll]] for (uint i = 0; i < SETS; i++) {
            most[i] = max(top[i], most[i]);
            base[i] = most[i] == LOWEST ? 0.0 : most[i]; // nothing seen yet: every weight is 0
            scale[i] = esp_exp(top[i] - base[i]);
            top[i] = most[i];
        }
        [[unroll]] for (uint r = 0; r < TILE; r++) {
            const float b = subgroupBroadcast(base[r / 8], r % 8);
            s[r] = vec4(esp_exp(s[r].x - b), esp_exp(s[r].y - b), esp_exp(s[r].z - b), esp_exp(s[r].w - b));
            sum[r] = sum[r] * subgroupBroadcast(scale[r / 8], r % 8) + ((s[r].x + s[r].y) + (s[r].z + s[r].w));
        }

        const bool last = s0 + ESP_KV_BLOCK >= t.hi;
        float all[TILE], scales[TILE];
        [[unroll]] for (uint r = 0; r < TILE; r++) {
            all[r] = last ? total(sum[r]) : 1.0;
            scales[r] = subgroupBroadcast(scale[r / 8], r % 8);
        }
        for (uint d = lane; d < 8 * ROUNDS; d += 8) {
            const uint value = keys + p.n_kv * ESP_KV_BLOCK * H4 + min(d, H4 - 1);
            vec4 a[TILE];
            [[unroll]] for (uint r = 0; r < TILE; r++) {
                a[r] = vec4(0.0);
                if (s0 != start && put[r] && d < H4)
                    a[r] = esp_vec4s(p.act).at[to[r] + d] * scales[r];
            }
            [[unroll]] for (uint i = 0; i < ESP_KV_BLOCK; i += AHEAD) {
                vec4 v[AHEAD];
                [[unroll]] for (uint j = 0; j < AHEAD; j++)
                    v[j] = KV_LOAD(value + (i + j) * H4);
                [[unroll]] for (uint r = 0; r < TILE; r++)
                    [[unroll]] for (uint j = 0; j < AHEAD; j++)
                        a[r] = fma(vec4(subgroupBroadcast(s[r][i / 8], (i + j) % 8)), v[j], a[r]);
            }
            [[unroll]] for (uint r = 0; r < TILE; r++)
                if (put[r] && d < H4)
                    ACT_STORE(to[r] + d, a[r] / all[r]);
        }
    }
}
