// Attention over paged keys and values, on CPU drivers. Formula and tiles: attention.glsl.
// Reference: model/reference.c esp_ref_attention. No score matrix in memory: a block of keys at a time.
//
// A subgroup of 8 lanes takes a tile of 8 query vectors and a block of 32 keys. Scores: a lane is a key of each
// group of 8, queries travel by broadcast. Values: a lane is a quad of dimensions, weights travel by broadcast; what
// does not fit into registers of the sums waits in private memory, touched once a block.
// Grid: x = tiles, y = KV heads * parts of G.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 8) in;
ESP_PUSH(esp_push_attention);
#include "attention.glsl"

const uint ROUNDS = (H4 + 7) / 8; // of 8 lanes over the quads of a head

// dimension quad 8*d8 + i of the keys of all four groups against the eight queries
#define QUAD(i)                                                                                                    \
    if (8 * d8 + i < H4) {                                                                                         \
        const vec4 k0 = KV_LOAD(keys + (8 * d8 + i) * 8 + lane);                                                   \
        const vec4 k1 = KV_LOAD(keys + (H4 + 8 * d8 + i) * 8 + lane);                                              \
        const vec4 k2 = KV_LOAD(keys + (2 * H4 + 8 * d8 + i) * 8 + lane);                                          \
        const vec4 k3 = KV_LOAD(keys + (3 * H4 + 8 * d8 + i) * 8 + lane);                                          \
        for (uint r = 0; r < TILE; r++) {                                                                          \
            const vec4 a = subgroupBroadcast(q[r], i);                                                             \
            s[r] = fma(vec4(a.x), vec4(k0.x, k1.x, k2.x, k3.x), s[r]);                                             \
            s[r] = fma(vec4(a.y), vec4(k0.y, k1.y, k2.y, k3.y), s[r]);                                             \
            s[r] = fma(vec4(a.z), vec4(k0.z, k1.z, k2.z, k3.z), s[r]);                                             \
            s[r] = fma(vec4(a.w), vec4(k0.w, k1.w, k2.w, k3.w), s[r]);                                             \
        }                                                                                                          \
    }

// key 8*g + i of the block, weights in component c of w
#define KEY(g, i, c)                                                                                               \
    {                                                                                                              \
        const vec4 v = KV_LOAD(value + (8 * g + i) * H4);                                                          \
        for (uint r = 0; r < TILE; r++)                                                                            \
            a[r] = fma(vec4(subgroupBroadcast(w[r].c, i)), v, a[r]);                                               \
    }
#define KEYS(g, c)                                                                                                 \
    KEY(g, 0, c) KEY(g, 1, c) KEY(g, 2, c) KEY(g, 3, c) KEY(g, 4, c) KEY(g, 5, c) KEY(g, 6, c) KEY(g, 7, c)

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const Tile t = tile_of(gl_WorkGroupID.x, gl_WorkGroupID.y);
    vec4 acc[TILE * ROUNDS];
    float m[TILE], l[TILE];
    uvec2 range[TILE];
    uint from[TILE];

    for (uint i = 0; i < TILE * ROUNDS; i++)
        acc[i] = vec4(0.0);
    for (uint r = 0; r < TILE; r++) {
        m[r] = LOWEST;
        l[r] = 0.0;
        range[r] = reach(t, r);
        from[r] = query_at(t, r);
    }
    for (uint s0 = t.lo / ESP_KV_BLOCK * ESP_KV_BLOCK; s0 < t.hi; s0 += ESP_KV_BLOCK) {
        const uint keys = keys_at(t, s0);
        vec4 s[TILE]; // scores of keys lane, 8 + lane, 16 + lane, 24 + lane
        vec4 w[TILE];
        float scale[TILE];
        for (uint r = 0; r < TILE; r++)
            s[r] = vec4(0.0);
        for (uint d8 = 0; d8 < ROUNDS; d8++) {
            vec4 q[TILE];
            for (uint r = 0; r < TILE; r++)
                q[r] = ACT_LOAD(from[r] + min(8 * d8 + lane, H4 - 1));
            QUAD(0)
            QUAD(1)
            QUAD(2)
            QUAD(3)
            QUAD(4)
            QUAD(5)
            QUAD(6)
            QUAD(7)
        }
        const uvec4 at = s0 + lane + uvec4(0, 8, 16, 24);
        for (uint r = 0; r < TILE; r++) {
            if (SOFTCAP != 0)
                s[r] = vec4(capped(s[r].x), capped(s[r].y), capped(s[r].z), capped(s[r].w));
            s[r] = mix(vec4(LOWEST), s[r],
                       bvec4(uvec4(greaterThanEqual(at, uvec4(range[r].x))) & uvec4(lessThan(at, uvec4(range[r].y)))));
            const float top = max(m[r], subgroupMax(max(max(s[r].x, s[r].y), max(s[r].z, s[r].w))));
            const float base = top == LOWEST ? 0.0 : top; // nothing seen yet: every weight is 0
            w[r] = vec4(esp_exp(s[r].x - base), esp_exp(s[r].y - base), esp_exp(s[r].z - base),
                        esp_exp(s[r].w - base));
            scale[r] = esp_exp(m[r] - base);
            l[r] = l[r] * scale[r] + subgroupAdd((w[r].x + w[r].y) + (w[r].z + w[r].w));
            m[r] = top;
        }
        for (uint d8 = 0; d8 < ROUNDS; d8++) {
            const uint value = keys + p.n_kv * ESP_KV_BLOCK * H4 + min(8 * d8 + lane, H4 - 1);
            vec4 a[TILE];
            for (uint r = 0; r < TILE; r++)
                a[r] = acc[r * ROUNDS + d8] * scale[r];
            KEYS(0, x)
            KEYS(1, y)
            KEYS(2, z)
            KEYS(3, w)
            for (uint r = 0; r < TILE; r++)
                acc[r * ROUNDS + d8] = a[r];
        }
    }
    for (uint r = 0; r < TILE; r++)
        for (uint d8 = 0; d8 < ROUNDS; d8++)
            if (live(t, r) && 8 * d8 + lane < H4)
                ACT_STORE(result_at(t, r) + 8 * d8 + lane, acc[r * ROUNDS + d8] / l[r]);
}
