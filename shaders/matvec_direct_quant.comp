// y = epilogue(x W^T + b) for a few rows and quantised weights, on CPU drivers of the direct class: decode and logits.
// Reference: model/reference.c esp_ref_matmul on the weights of model/quant.h, and on x as row_fixed.comp rounds it.
//   sum_k w x = sum over blocks of d * unit * (sum_k q a - z * sum_k a)
// A row's bits do not depend on ROWS or on the rows beside it: sums within a block are exact, and blocks rise.
//
// A subgroup owns 8 groups of 8 columns, in one or two panels (weights_panel.glsl): lane l column l of each group. x was
// made integers of 15 or 16 bits, block by block. They and the weights' are multiplied as 16 bits and summed in 32 without
// loss, 32 k at a time: one instruction where processors have VNNI, two elsewhere, and a field needs no conversion; so
// this is faster than float32.
//
// A round of a loop costs as much as a fourth of a block, for all that changes in it goes through masks and memory: so
// it is of two blocks, or of several rows. A block's words are at constants from one address, which is told once.
// Grid: x = groups / 8, y = rows / ROWS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#include "mem.glsl"
#include "direct.glsl"
#include "math.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint ROWS = 1; // 1, 2, 4 or 8
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"
#include "fixed.glsl"

const uint GROUPS = 8;
const uint STREAMS = GROUPS / PANEL; // panels
const uint AT_ONCE = ROWS < 2 ? ROWS : 2; // rows
const uint BLOCKS = PANEL == 8 && ROWS == 1 ? 2 : 1; // a round

// Mesa's LLVM takes every multiply-add of a round apart into two instructions, or none, which is faster by a fourth: by
// whether one instruction more would make the round longer, as it reckons. Instructions that do nothing tip that; so many
// do with LLVM 21 and its model of Sapphire Rapids. Elsewhere they are a thousandth of the work.
#if defined(ESP_W_Q4)
const uint IDLE = ROWS == 1 ? (EPI == ESP_EPI_GEGLU ? 1 : 3) : (EPI == ESP_EPI_GEGLU ? 0 : 1);
#else
const uint IDLE = EPI == ESP_EPI_GEGLU ? 0 : 1;
#endif

struct Block {
    Eight word[32], side[BLOCK_TEXELS / 2 - 32];
};
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer esp_blocks { Block at[]; };

// Field j of a word, at most 15 bits, as it counts: q * 2^up(j). Three shifts are saved where fields stay in place.
#if defined(ESP_W_Q4)
uint up(const uint j)
{
    return j % 3 * 4;
}

int field(const uint word, const uint j)
{
    return int((word >> (j / 3 * 12)) & (15u << up(j)));
}
#else
uint up(const uint j)
{
    return 0;
}

int field(const uint word, const uint j)
{
    return int((word >> (8 * j)) & 255u);
}
#endif

void main()
{
    know_lane();
    const uint lane = gl_SubgroupInvocationID;
    const uint nothing = lane & (p.count >> 31); // 0, but that is not known before
    const uint n_row = p.step.at[p.count];
    const uint last = min(gl_WorkGroupID.y * ROWS + ROWS, n_row);
    const uint g = gl_WorkGroupID.x * GROUPS;
    const uint n_block = p.k4 / 8;
    const uint n_panel = (p.n_group + PANEL - 1) / PANEL;
    esp_blocks w = esp_blocks(texels_on(uvec2(p.w), p.w_at));
    esp_fixed x = esp_fixed(texels_on(p.act, p.x_at));
    uint row = gl_WorkGroupID.y * ROWS;

    if (row < last) do {
        uint x_at[AT_ONCE], w_at[STREAMS];
        float sum[AT_ONCE][GROUPS];
        [[unroll]] for (uint i = 0; i < STREAMS; i++) // the last one's neighbour may not exist
            w_at[i] = min(gl_WorkGroupID.x * STREAMS + i, n_panel - 1) * n_block;
        [[unroll]] for (uint r = 0; r < AT_ONCE; r++) {
            x_at[r] = min(row + r, last - 1) * (p.x_stride / 8);
            [[unroll]] for (uint j = 0; j < GROUPS; j++)
                sum[r][j] = 0.0;
        }
        uint round = 0;
        do {
            [[unroll]] for (uint h = 0; h < BLOCKS; h++) {
                const uint b = h == 0 ? round : min(round + h, n_block - 1);
                int part[AT_ONCE][GROUPS];
                [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
                    [[unroll]] for (uint j = 0; j < GROUPS; j++)
                        part[r][j] = 0;
                [[unroll]] for (uint k = 0; k < 32; k++) {
                    int a[AT_ONCE];
                    [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
                        a[r] = fixed_of(x.at[x_at[r] + b].pair[k / 8][k / 2 % 4], k);
                    [[unroll]] for (uint j = 0; j < GROUPS; j++) {
                        const Eight t = w.at[w_at[j / PANEL] + b].word[k];
                        const int q = field(of_lane(t.a, t.b), j % PANEL);
                        [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
                            part[r][j] += q * a[r];
                    }
                }
                [[unroll]] for (uint j = 0; j < GROUPS; j++) {
                    const uint of = up(j % PANEL);
                    const Eight t = w.at[w_at[j / PANEL] + b].side[j % PANEL / 2];
                    const uint side = of_lane(t.a, t.b) >> (j % 2 * 16) & 0xffffu;
                    const float scale = uintBitsToFloat(floatBitsToUint(scale_of(side)) - (of << 23));
                    [[unroll]] for (uint r = 0; r < AT_ONCE; r++) {
                        const float all = x.at[x_at[r] + b].all * (ZERO_UNIT * float(1 << of));
                        // a block beyond the last one counts nothing
                        const float unit = h == 0 || round + h < n_block ? x.at[x_at[r] + b].unit : 0.0;
                        sum[r][j] = fma(scale * unit, fma(-zeros_of(side), all, float(part[r][j])), sum[r][j]);
                    }
                }
            }
            [[unroll]] for (uint i = 0; i < IDLE; i++)
                sum[0][i] = uintBitsToFloat(floatBitsToUint(sum[0][i]) ^ (nothing << i));
            round += BLOCKS;
        } while (round < n_block);
        [[unroll]] for (uint r = 0; r < AT_ONCE; r++) {
            if (row + r < last) {
                if (EPI == ESP_EPI_GEGLU) {
                    [[unroll]] for (uint j = 0; j < GROUPS; j += 2)
                        if (g + j < p.n_group && fits((g + j) / 2))
                            put(row + r, (g + j) / 2, lane, esp_gelu(sum[r][j]) * sum[r][j + 1]);
                } else {
                    [[unroll]] for (uint j = 0; j < GROUPS; j++)
                        if (g + j < p.n_group && fits(g + j))
                            finish(row + r, g + j, lane, sum[r][j]);
                }
            }
        }
        row += AT_ONCE;
    } while (ROWS > AT_ONCE && row < last);
}
