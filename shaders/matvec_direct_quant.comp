// y = epilogue(x W^T + b) for a few rows and quantised weights, on CPU drivers of the direct class: decode and logits.
// Reference: model/reference.c esp_ref_matmul on the weights of model/quant.h, and on x as fixed.glsl rounds it.
//   sum_k w x = sum over blocks of d * unit * (sum_k q a - z * sum_k a)
// A row's bits do not depend on ROWS or on the rows beside it: sums within a block are exact, and blocks rise.
//
// A subgroup owns 8 or 16 groups of 8 columns, in one or two panels (weights_panel.glsl): lane l column l of each group. x was
// made integers of 15 or 16 bits, block by block. They and the weights' are multiplied as 16 bits and summed in 32 without
// loss, 32 k at a time: one instruction where processors have VNNI, two elsewhere, and a field needs no conversion; so
// this is faster than float32.
//
// A round of a loop costs as much as a fourth of a block, for all that changes in it goes through masks and memory: so
// it is of two blocks of q4, or of two rows, or of 16 groups. A block's words are at constants from one address, which is told once.
// With SPLIT it does half of a norm beside (ESP_SPLIT_* in push.h); with MOST it leaves integers where another such product will
// read: what comes out of GEGLU, and z.
// Grid: x = groups / GROUPS, y = rows / ROWS.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#include "direct.glsl"
#include "math.glsl"

layout(local_size_x = 8) in; // one subgroup
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint ROWS = 1; // 1, 2, 4 or 8
layout(constant_id = 2) const uint SPLIT = ESP_SPLIT_NONE;
layout(constant_id = 3) const uint MOST = 0; // of the integers that it leaves; 0: floats
layout(constant_id = 4) const uint SQUARES = 1; // that a row of x has, with ESP_SPLIT_END
layout(constant_id = 5) const uint GROUPS = 8; // 16: q4 with GEGLU and one row
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"
#include "lanes.glsl"
#include "fixed.glsl"
#include "squares.glsl"
#include "begin_fixed.glsl"

const uint MOST_GROUPS = 16;         // arrays that go from function to function have a size that is known
const uint STREAMS = GROUPS / PANEL; // panels
const uint AT_ONCE = ROWS < 2 ? ROWS : 2; // rows
const uint BLOCKS = PANEL == 8 && ROWS == 1 && GROUPS == 8 ? 2 : 1; // a round

// Mesa's LLVM takes every multiply-add of a round apart into two instructions, or none, which is faster by a fourth: by
// whether one instruction more would make the round longer, as it reckons. Instructions that do nothing tip that; so many
// do with LLVM 21 and its model of Sapphire Rapids. Elsewhere they are a thousandth of the work.
const uint IDLE_BEGIN = PANEL == 4 && ROWS > 2 ? 6 : 3;
const uint IDLE_END = EPI == ESP_EPI_GEGLU && ROWS > 1 ? 1 : 0;
const uint IDLE_ELSE = EPI != ESP_EPI_GEGLU ? 1 : (GROUPS > 8 ? 3 : 0);
const uint IDLE = SPLIT == ESP_SPLIT_BEGIN ? IDLE_BEGIN : (SPLIT == ESP_SPLIT_END ? IDLE_END : IDLE_ELSE);

struct Block {
    Eight word[32], side[BLOCK_TEXELS / 2 - 32];
};
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer esp_blocks { Block at[]; };

// Of a pair of x, either.
int half_of(const uint pair, const uint upper)
{
    return upper > 0 ? int(pair) >> 16 : int(pair) << 16 >> 16;
}

// Field j of a word, at most 15 bits, as it counts: q * 2^up(j). Three shifts are saved where fields stay in place. The last of q4
// comes with the one below it, whose sum is taken off theirs: that saves a mask.
#if defined(ESP_W_Q4)
uint up(const uint j)
{
    return j % 3 * 4;
}

int field(const uint word, const uint j)
{
    return int(j == 7 ? word >> 24 : (word >> (j / 3 * 12)) & (15u << up(j)));
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

// 1 / rms of a row: the sum of what its 64 columns each left. No loop: see know_lane in direct.glsl.
float inv_rms(const uint row)
{
    esp_eights squares = esp_eights(texels_on(p.act, p.squares_at + row * p.squares_stride));
    float sum = 0.0;
    [[unroll]] for (uint i = 0; i < SQUARES; i += 8) {
        const Eight e = squares.at[i / 8];
        sum += i + gl_SubgroupInvocationID < SQUARES ? uintBitsToFloat(of_lane(e.a, e.b)) : 0.0;
    }
    return 1.0 / sqrt(total(sum) / float(p.width) + p.eps);
}

// What becomes of a row's sums, of groups from g on, as far as it can be told before the loop.
struct Leave {
    float by;
    FixedAt at[MOST_GROUPS / 8]; // GEGLU
    Begin begin;
};

Leave leave_at(const uint row, const uint g)
{
    Leave l;
    l.by = SPLIT == ESP_SPLIT_END ? inv_rms(row) : 1.0;
    if (EPI == ESP_EPI_GEGLU)
        [[unroll]] for (uint i = 0; i < GROUPS / 8; i++)
            l.at[i] = fixed_at(p.y_at + row * p.y_stride + (p.group0 + g / 2) * 2 + 8 * i);
    if (SPLIT == ESP_SPLIT_BEGIN)
        l.begin = begin_at(p.z_at + row * p.z_stride, p.squares_at + row * p.squares_stride, (p.group0 + g) / 8,
                           p.z_stride * 4);
    return l;
}

void leave(const Leave l, const uint row, const uint g, const uint lane, const float sum[MOST_GROUPS])
{
    float v[MOST_GROUPS];
    if (EPI == ESP_EPI_GEGLU) {
        [[unroll]] for (uint j = 0; j < GROUPS / 2; j++)
            v[j] = g + 2 * j < p.n_group ? esp_gelu(sum[2 * j] * l.by) * (sum[2 * j + 1] * l.by) : 0.0;
        if (MOST > 0) {
            [[unroll]] for (uint i = 0; i < GROUPS / 8; i++)
                if (g + 8 * i < p.n_group && fits(g / 2 + 4 * i)) // what is beyond a part is another's
                    put_fixed(l.at[i], float[4](v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]), MOST);
        } else {
            [[unroll]] for (uint j = 0; j < GROUPS / 2; j++)
                if (g + 2 * j < p.n_group && fits(g / 2 + j))
                    put(row, g / 2 + j, lane, v[j]);
        }
    } else {
        [[unroll]] for (uint j = 0; j < GROUPS; j++) {
            v[j] = 0.0;
            if (g + j < p.n_group && fits(g + j)) {
                v[j] = bent(whole(row, g + j, lane, sum[j] * l.by));
                put(row, g + j, lane, v[j]);
            }
        }
        if (SPLIT == ESP_SPLIT_BEGIN) {
            float w[8];
            [[unroll]] for (uint j = 0; j < 8; j++)
                w[j] = v[j];
            begin_fixed(l.begin, w, MOST);
        }
    }
}

// Rows from `row` on, as many as AT_ONCE.
void pass(const uint row, const uint last)
{
    const uint lane = gl_SubgroupInvocationID;
    const uint nothing = lane & (p.count >> 31); // 0, but that is not known before
    const uint g = gl_WorkGroupID.x * GROUPS;
    const uint n_block = p.k4 / 8;
    const uint n_panel = (p.n_group + PANEL - 1) / PANEL;
    esp_blocks w = esp_blocks(texels_on(uvec2(p.w), p.w_at));
    esp_fixed x = esp_fixed(texels_on(p.act, p.x_at));
    uint x_at[AT_ONCE], w_at[STREAMS];
    float sum[AT_ONCE][MOST_GROUPS];
    [[unroll]] for (uint i = 0; i < STREAMS; i++) // the last one's neighbour may not exist
        w_at[i] = min(gl_WorkGroupID.x * STREAMS + i, n_panel - 1) * n_block;
    [[unroll]] for (uint r = 0; r < AT_ONCE; r++) {
        x_at[r] = min(row + r, last - 1) * (p.x_stride / 8);
        [[unroll]] for (uint j = 0; j < GROUPS; j++)
            sum[r][j] = 0.0;
    }
    Leave to[AT_ONCE];
    [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
        to[r] = leave_at(min(row + r, last - 1), g);
    uint round = 0;
    do {
        [[unroll]] for (uint h = 0; h < BLOCKS; h++) {
            const uint b = h == 0 ? round : min(round + h, n_block - 1);
            int part[AT_ONCE][MOST_GROUPS];
            [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
                [[unroll]] for (uint j = 0; j < GROUPS; j++)
                    part[r][j] = 0;
            [[unroll]] for (uint k = 0; k < 32; k++) {
                int a[AT_ONCE];
                [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
                    a[r] = half_of(x.at[x_at[r] + b].pair[k / 16 * 2 + k % 8 / 4][k % 4], k / 8 % 2);
                [[unroll]] for (uint j = 0; j < GROUPS; j++) {
                    const Eight t = w.at[w_at[j / PANEL] + b].word[k];
                    const int q = field(of_lane(t.a, t.b), j % PANEL);
                    [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
                        part[r][j] += q * a[r];
                }
            }
            if (PANEL == 8)
                [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
                    [[unroll]] for (uint j = 7; j < GROUPS; j += 8)
                        part[r][j] -= part[r][j - 1];
            [[unroll]] for (uint j = 0; j < GROUPS; j++) {
                const uint of = up(j % PANEL);
                const Eight t = w.at[w_at[j / PANEL] + b].side[j % PANEL / 2];
                const uint side = of_lane(t.a, t.b) >> (j % 2 * 16) & 0xffffu;
                const float scale = uintBitsToFloat(floatBitsToUint(scale_of(side)) - (of << 23));
                [[unroll]] for (uint r = 0; r < AT_ONCE; r++) {
                    const float all = x.at[x_at[r] + b].all * (ZERO_UNIT * float(1 << of));
                    // a block beyond the last one counts nothing
                    const float counts = h == 0 ? 1.0 : float(min(n_block - round - h, 1));
                    const float unit = x.at[x_at[r] + b].unit * counts;
                    sum[r][j] = fma(scale * unit, fma(-zeros_of(side), all, float(part[r][j])), sum[r][j]);
                }
            }
        }
        [[unroll]] for (uint i = 0; i < IDLE; i++)
            sum[0][i] = uintBitsToFloat(floatBitsToUint(sum[0][i]) ^ (nothing << i));
        round += BLOCKS;
    } while (round < n_block);
    [[unroll]] for (uint r = 0; r < AT_ONCE; r++)
        if (row + r < last)
            leave(to[r], row + r, g, lane, sum[r]);
}

void main()
{
    know_lane();
    const uint last = min(gl_WorkGroupID.y * ROWS + ROWS, p.step.at[p.count]);
    uint row = gl_WorkGroupID.y * ROWS;

    if (row < last) {
        if (ROWS == AT_ONCE) { // a loop around the loop of blocks, even of one turn, is as bad as one behind it
            pass(row, last);
        } else {
            do {
                pass(row, last);
                row += AT_ONCE;
            } while (row < last);
        }
    }
}
