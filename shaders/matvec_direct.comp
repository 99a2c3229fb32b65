// y = epilogue(x W^T + b) for a few rows and weights of 16 bits, on CPU drivers of the direct class: decode and logits.
// Reference: model/reference.c esp_ref_matmul. A row's bits do not depend on ROWS or on the rows beside it: a lane sums
// every fourth pair of k, k rising, and four lanes are folded in one order.
//
// A subgroup owns GROUPS groups of 8 columns. Eight words of W that lie together are eight k of two columns, so lane l
// has pair l % 4 of column 2 i + l / 4 of load i, and the x of those pairs serve all loads of a round: nothing is handed
// out, nothing is called, and the sums stay in registers. Several groups are as many streams from memory.
// Grid: x = groups / GROUPS, y = rows / ROWS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "mem.glsl"
#include "direct.glsl"
#include "math.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint ROWS = 1; // 1, 2, 4 or 8
ESP_PUSH(esp_push_matmul);
#include "epilogue.glsl"

const uint GROUPS = 4;
const uint LOADS = 4; // of 8 words: a round of 8 k of a group

vec2 pair_of(const uint word)
{
#if defined(ESP_W_BF16)
    return uintBitsToFloat(uvec2(word << 16, word & 0xffff0000u));
#else
    return unpackHalf2x16(word);
#endif
}

// Column l of a group for lane l, of the sums that its loads have.
float column(const float v[LOADS])
{
    const uint lane = gl_SubgroupInvocationID;
    float out_of[LOADS];
    [[unroll]] for (uint i = 0; i < LOADS; i++) {
        float s = v[i] + subgroupShuffle(v[i], lane ^ 1);
        s += subgroupShuffle(s, lane ^ 2);
        out_of[i] = subgroupShuffle(s, lane % 2 * 4);
    }
    return lane < 4 ? (lane < 2 ? out_of[0] : out_of[1]) : (lane < 6 ? out_of[2] : out_of[3]);
}

void main()
{
    know_lane();
    const uint lane = gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.y * ROWS;
    const uint g = gl_WorkGroupID.x * GROUPS;
    const uint n_round = p.k4 / 2, even = lane % 4 * 2;
    esp_eights w = esp_eights(p.w);
    esp_quads x = esp_quads(p.act);

    if (row0 < n_row) {
        uint x_at[ROWS], w_at[GROUPS];
        float acc[ROWS][GROUPS][LOADS];
        [[unroll]] for (uint c = 0; c < GROUPS; c++)
            w_at[c] = p.w_at / 2 + min(g + c, p.n_group - 1) * n_round * LOADS; // there may be fewer
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            x_at[r] = p.x_at + min(row0 + r, n_row - 1) * p.x_stride;
            [[unroll]] for (uint c = 0; c < GROUPS; c++)
                [[unroll]] for (uint i = 0; i < LOADS; i++)
                    acc[r][c][i] = 0.0;
        }
        uint round = 0;
        do { // padded K is a multiple of 32
            [[unroll]] for (uint u = 0; u < 4; u++) {
                vec2 xs[ROWS];
                [[unroll]] for (uint r = 0; r < ROWS; r++) {
                    const uint of = of_lane(x.at[x_at[r] + 2 * u], x.at[x_at[r] + 2 * u + 1]);
                    xs[r] = uintBitsToFloat(uvec2(subgroupShuffle(of, even), subgroupShuffle(of, even + 1)));
                }
                [[unroll]] for (uint c = 0; c < GROUPS; c++) {
                    [[unroll]] for (uint i = 0; i < LOADS; i++) {
                        const Eight t = w.at[w_at[c] + u * LOADS + i];
                        const vec2 ws = pair_of(of_lane(t.a, t.b));
                        [[unroll]] for (uint r = 0; r < ROWS; r++)
                            acc[r][c][i] = fma(xs[r].y, ws.y, fma(xs[r].x, ws.x, acc[r][c][i]));
                    }
                }
            }
            [[unroll]] for (uint r = 0; r < ROWS; r++)
                x_at[r] += 8;
            [[unroll]] for (uint c = 0; c < GROUPS; c++)
                w_at[c] += 4 * LOADS;
            round += 4;
        } while (round < n_round);
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            if (row0 + r >= n_row)
                continue;
            if (EPI == ESP_EPI_GEGLU) {
                [[unroll]] for (uint c = 0; c < GROUPS; c += 2)
                    if (g + c < p.n_group && fits((g + c) / 2))
                        put(row0 + r, (g + c) / 2, lane, esp_gelu(column(acc[r][c])) * column(acc[r][c + 1]));
            } else {
                [[unroll]] for (uint c = 0; c < GROUPS; c++)
                    if (g + c < p.n_group && fits(g + c))
                        finish(row0 + r, g + c, lane, column(acc[r][c]));
            }
        }
    }
}
