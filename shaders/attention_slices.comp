// Attention of decode rows over paged keys and values, on GPUs. Formula and tiles: attention.glsl.
// Reference: model/reference.c esp_ref_attention.
//
// Decoding has a few query vectors and many positions. A workgroup of 128 takes one slice of ESP_SLICE positions and the
// up to eight query vectors of a tile, which share every load of keys and values. With SPLIT it leaves what attention_join
// puts together; without, for steps of more rows than there is room for that, it goes through all slices itself. Slices lie
// at multiples of ESP_SLICE, so a row's bits depend on its own range alone, and are the same both ways.
//
// Scores: a thread is a key, for half of the dimensions; eight neighbours read 128 bytes in one piece. Values: a thread is
// a quad of dimensions, for all keys or, where quads are few, for half or a quarter of them.
// Grid: x = items (tiles without SPLIT), y = KV heads * parts of G. 13 KiB of shared memory for heads of 256.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 128) in;
layout(constant_id = 5) const uint SPLIT = 1;
ESP_PUSH(esp_push_attention);
#include "attention.glsl"
#include "attention_merge.glsl"

const uint KEYS = ESP_SLICE;
const uint AHEAD = 8; // loads under way; what decoding waits for is memory
const uint KEY_PARTS = H4 <= 32 ? 4 : (H4 <= 64 ? 2 : 1); // of a slice, in the pass over values

shared vec4 q[TILE * H4];           // queries, then sums on their way from one part to another
shared float s[2][TILE][KEYS];      // scores by halves of the dimensions
shared vec4 w[KEYS][TILE / 4];      // weights
shared float fold[TILE][16];
shared float m_slice[TILE], l_slice[TILE];

// Loads one of this slice's keys or values; beyond the positions of the tile any that is there, and masked.
uint block_at(const Tile t, const uint pos)
{
    return keys_at(t, min(pos, t.hi - 1));
}

void main()
{
    const uint id = gl_LocalInvocationID.x;
    const uint item = p.step.at[ESP_STEP_ITEMS] + gl_WorkGroupID.x * ESP_ITEM;
    const Tile t = tile_of(SPLIT != 0 ? p.step.at[item + ESP_ITEM_TILE] : gl_WorkGroupID.x, gl_WorkGroupID.y);
    uint s0 = t.lo / KEYS * KEYS, end = t.hi;
    if (SPLIT != 0) {
        s0 = p.step.at[item + ESP_ITEM_SLICE] * KEYS;
        end = min(t.hi, s0 + KEYS);
        if (end <= t.lo)
            return; // out of the window, all of the workgroup: attention_join knows
    }
    const uint quad = id % H4, key_part = id / H4; // of the pass over values
    const uint r16 = id / 16, j16 = id % 16;       // of the softmax: query, and one of 16 threads
    const uvec2 range = reach(t, r16);
    vec4 acc[TILE];
    float m[TILE], l[TILE];
    [[unroll]] for (uint r = 0; r < TILE; r++) {
        acc[r] = vec4(0.0);
        m[r] = LOWEST;
        l[r] = 0.0;
    }

    for (; s0 < end; s0 += KEYS) {
        barrier(); // sums of the slice before have been taken from q
        for (uint i = id; i < TILE * H4; i += 128)
            q[i] = ACT_LOAD(query_at(t, i / H4) + i % H4);
        barrier(); // the queries are there

        const uint key = id / 16 * 8 + id % 8, part = id / 8 % 2;
        const uint k = block_at(t, s0 + key) + key % ESP_KV_BLOCK / 8 * H4 * 8 + key % 8;
        float dots[TILE];
        [[unroll]] for (uint r = 0; r < TILE; r++)
            dots[r] = 0.0;
        for (uint i0 = 0; i0 < H4 / 2; i0 += AHEAD) { // H4 is even
            vec4 ahead[AHEAD];
            [[unroll]] for (uint i = 0; i < AHEAD; i++) // past the end: any, not used
                ahead[i] = KV_LOAD(k + 8 * (2 * min(i0 + i, H4 / 2 - 1) + part));
            [[unroll]] for (uint i = 0; i < AHEAD; i++) {
                if (i0 + i >= H4 / 2)
                    break;
                const vec4 b = ahead[i];
                [[unroll]] for (uint r = 0; r < TILE; r++) {
                    const vec4 a = q[r * H4 + 2 * (i0 + i) + part];
                    dots[r] = fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, dots[r]))));
                }
            }
        }
        [[unroll]] for (uint r = 0; r < TILE; r++)
            s[part][r][key] = dots[r];
        barrier(); // the scores are there

        float mine[4];
        float top = LOWEST;
        [[unroll]] for (uint i = 0; i < 4; i++) {
            const uint pos = s0 + j16 + 16 * i;
            const float v = s[0][r16][j16 + 16 * i] + s[1][r16][j16 + 16 * i];
            mine[i] = pos >= range.x && pos < range.y ? capped(v) : LOWEST;
            top = max(top, mine[i]);
        }
        fold[r16][j16] = top;
        barrier(); // each thread's largest is there
        for (uint i = 0; i < 16; i++)
            top = max(top, fold[r16][i]);
        const float base = top == LOWEST ? 0.0 : top; // nothing seen: every weight is 0
        float sum = 0.0;
        [[unroll]] for (uint i = 0; i < 4; i++) {
            const float e = esp_exp(mine[i] - base);
            w[j16 + 16 * i][r16 / 4][r16 % 4] = e;
            sum += e;
        }
        barrier(); // the largest have been read
        fold[r16][j16] = sum;
        barrier(); // weights and each thread's sum are there
        if (j16 == 0) {
            sum = 0.0;
            for (uint i = 0; i < 16; i++)
                sum += fold[r16][i];
            m_slice[r16] = top;
            l_slice[r16] = sum;
        }

        vec4 part_acc[TILE];
        [[unroll]] for (uint r = 0; r < TILE; r++)
            part_acc[r] = vec4(0.0);
        if (key_part < KEY_PARTS) {
            const uint n = KEYS / KEY_PARTS;
            for (uint i0 = key_part * n; i0 < key_part * n + n; i0 += AHEAD) {
                const uint at = block_at(t, s0 + i0) + (p.n_kv * ESP_KV_BLOCK + i0 % ESP_KV_BLOCK) * H4 + quad;
                vec4 ahead[AHEAD];
                [[unroll]] for (uint i = 0; i < AHEAD; i++)
                    ahead[i] = KV_LOAD(at + i * H4);
                [[unroll]] for (uint i = 0; i < AHEAD; i++) {
                    const vec4 v = ahead[i];
                    const vec4 lo = w[i0 + i][0], hi = w[i0 + i][1];
                    part_acc[0] = fma(vec4(lo.x), v, part_acc[0]);
                    part_acc[1] = fma(vec4(lo.y), v, part_acc[1]);
                    part_acc[2] = fma(vec4(lo.z), v, part_acc[2]);
                    part_acc[3] = fma(vec4(lo.w), v, part_acc[3]);
                    part_acc[4] = fma(vec4(hi.x), v, part_acc[4]);
                    part_acc[5] = fma(vec4(hi.y), v, part_acc[5]);
                    part_acc[6] = fma(vec4(hi.z), v, part_acc[6]);
                    part_acc[7] = fma(vec4(hi.w), v, part_acc[7]);
                }
            }
        }
        [[unroll]] for (uint from = 1; from < KEY_PARTS; from++) { // q is not needed any more
            if (key_part == from)
                [[unroll]] for (uint r = 0; r < TILE; r++)
                    q[r * H4 + quad] = part_acc[r];
            barrier(); // the sums are there
            if (key_part == 0)
                [[unroll]] for (uint r = 0; r < TILE; r++)
                    part_acc[r] += q[r * H4 + quad];
            barrier(); // they have been taken
        }
        if (KEY_PARTS == 1)
            barrier(); // m_slice and l_slice are there
        if (key_part == 0) {
            [[unroll]] for (uint r = 0; r < TILE; r++) {
                if (SPLIT != 0) {
                    const uint at = part_at(gl_WorkGroupID.x, gl_WorkGroupID.y, r);
                    ACT_STORE(at + quad, part_acc[r]);
                    if (quad == 0)
                        ACT_STORE(at + H4, vec4(m_slice[r], l_slice[r], 0.0, 0.0));
                } else {
                    const Merge by = merge(m[r], l[r], m_slice[r], l_slice[r]);
                    acc[r] = merged(by, acc[r], part_acc[r]);
                }
            }
        }
    }
    if (SPLIT != 0 || key_part != 0)
        return;
    [[unroll]] for (uint r = 0; r < TILE; r++)
        if (live(t, r))
            ACT_STORE(result_at(t, r) + quad, acc[r] / l[r]);
}
