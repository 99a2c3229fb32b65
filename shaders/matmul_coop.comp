// y = epilogue(x W^T + b) for many rows, on GPUs with cooperative matrices: prefill and encoder.
// Reference: model/reference.c esp_ref_matmul.
//
// Matrix units multiply float16 and add in float32. float16 alone would cost x 13 of its 24 bits and overflow where
// activations have outliers. So each row of x is scaled by a power of two that brings its largest element to [2^14, 2^15)
// (row_scale.comp), and taken as hi + lo, both float16: exact to 22 bits for all that is within 2^-26 of the largest, at
// two products instead of one. Weights: float16 are themselves; bfloat16 fit exactly from 2^-17 up to 65504, below they
// are rounded to multiples of 2^-24. A weight of q4 is d (q - z / 4): 16 .. 31 times -63 .. 60 and a power of two, which
// float16's 11 bits hold, so q4 goes the same way, exactly for every d from 2^-18 up to 2^11. q8 has 15 bits: rounded to
// float16 it would cost the sums half of their digits, and as hi + lo one product more. So the units multiply q itself, an
// integer, and each block's sum of 32 k is multiplied by d as it is added, in float32: exact for every d, at an eighth or so
// of the products' time.
//
// A workgroup of four subgroups takes BM rows by BN columns, a quarter a subgroup, 32 k at a time through shared memory;
// while a round is multiplied the next one is on its way. k rises in every sum, and a unit's rows do not meet, so a row's
// bits depend on that row alone.
// Grid: x = rows / BM, y = columns / BN.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_control_flow_attributes : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x_id = 1) in;
layout(constant_id = 0) const uint EPI = ESP_EPI_NONE;
layout(constant_id = 1) const uint THREADS = 128; // four subgroups, full
layout(constant_id = 2) const uint TM = 16;       // what a unit multiplies: TM x TK by TK x TN; 8, 16 or 32
layout(constant_id = 3) const uint TN = 16;
layout(constant_id = 4) const uint TK = 16;
layout(constant_id = 5) const uint BM = 64;
layout(constant_id = 6) const uint BN = 64;
ESP_PUSH(esp_push_matmul);
#include "weights.glsl"
#include "epilogue.glsl"

const uint WAVE = THREADS / 4;
const uint BK = 32;
const uint STRIDE = BK / 4 + 2; // quads of a row in shared memory, two more so that loads spread over the banks
const uint FM = BM / 2 / TM, FN = BN / 2 / TN; // products of a subgroup
const uint NX = BM * (BK / 4) / THREADS;       // quads of x that a thread brings along in a round
const uint NW = BN * (BK / 8) / THREADS;       // the same of W, eight k each
const uint NK = BK / TK;                       // units along k in a round, which is a block of quantised weights
const uint ND = (BN + THREADS - 1) / THREADS;  // q8: words of scales that a thread brings along
const uint W = TN < 16 ? 16 : TN;              // columns finished together: a gate group and its up group at least

shared f16vec4 xh[BM * STRIDE], xl[BM * STRIDE], ws[BN * STRIDE];
shared float done[4 * TM * W];
shared float scales[BM];

// What a thread brings along of W: eight k of a row as they are stored, so that nothing waits for them until the round
// before has been multiplied.
struct Piece {
#if defined(ESP_W_Q8)
    uvec2 t;
#elif defined(ESP_W_Q4)
    uint t, side; // of two rows
#else
    uvec4 t;
#endif
};

// Row r of group g, columns from 8 * kc on.
Piece piece_load(const uint g, const uint kc, const uint r)
{
    Piece v;
#if defined(ESP_W_Q8)
    const uint i = p.w_at + (g * (p.k4 / 8) + kc / 4) * 17 + 1 + kc / 2 % 2 * 8 + r;
    v.t = uvec2(W_LOAD(i)[kc % 2 * 2], W_LOAD(i)[kc % 2 * 2 + 1]);
#elif defined(ESP_W_Q4)
    const uint block = p.w_at + (g * (p.k4 / 8) + kc / 4) * 9;
    v.side = W_LOAD(block)[r / 2];
    v.t = W_LOAD(block + 1 + r)[kc % 4];
#else
    v.t = W_LOAD(p.w_at + (g * (p.k4 / 2) + kc) * 8 + r);
#endif
    return v;
}

void piece_store(const uint at, const Piece v, const uint r)
{
    vec4 a, b;
#if defined(ESP_W_Q8)
    a = w_q8_ints(v.t.x);
    b = w_q8_ints(v.t.y);
#elif defined(ESP_W_Q4)
    const uint side = v.side >> (r % 2 * 16) & 0xffffu;
    a = w_q4(side, v.t);
    b = w_q4(side, v.t >> 16);
#else
    w_unpack8(v.t, a, b);
#endif
    ws[at] = f16vec4(a);
    ws[at + 1] = f16vec4(b);
}

#if defined(ESP_W_Q8)
shared float ds[BN]; // d of the blocks at hand, one a column

// Of column c of the workgroup and its neighbour, in the block that begins with quad q0.
uint d_load(const uint g0, const uint q0, const uint c)
{
    return W_LOAD(p.w_at + (min(g0 + c / 8, p.n_group - 1) * (p.k4 / 8) + q0 / 8) * 17)[c % 8 / 2];
}

void d_store(const uint c, const uint two)
{
    ds[c] = uintBitsToFloat(c % 2 == 0 ? two << 16 : two & 0xffff0000u);
}
#endif

void main()
{
    const uint id = gl_SubgroupID * WAVE + gl_SubgroupInvocationID;
    const uint lane = gl_SubgroupInvocationID;
    const uint n_row = p.step.at[p.count];
    const uint row0 = gl_WorkGroupID.x * BM;
    const uint g0 = gl_WorkGroupID.y * (BN / 8);
    if (row0 >= n_row)
        return; // the whole workgroup leaves together
    const uint sm = gl_SubgroupID % 2 * (BM / 2), sn = gl_SubgroupID / 2 * (BN / 2);
    coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> acc[FM * FN];
    [[unroll]] for (uint i = 0; i < FM * FN; i++)
        acc[i] = coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>(0.0);

    vec4 x[NX];
    Piece w[NW];
    uint x_from[NX];
    [[unroll]] for (uint i = 0; i < NX; i++) { // rows past the end: any, never stored
        const uint e = id + THREADS * i;
        x_from[i] = p.x_at + min(row0 + e / 8, n_row - 1) * p.x_stride + e % 8;
        x[i] = ACT_LOAD(x_from[i]);
    }
    [[unroll]] for (uint i = 0; i < NW; i++) {
        const uint e = id + THREADS * i;
        w[i] = piece_load(min(g0 + e / 32, p.n_group - 1), e / 8 % 4, e % 8);
    }
#if defined(ESP_W_Q8)
    uint d[ND];
    [[unroll]] for (uint i = 0; i < ND; i++)
        d[i] = d_load(g0, 0, min(id + THREADS * i, BN - 1));
#endif
    for (uint i = id; i < BM; i += THREADS)
        scales[i] = esp_floats(p.act).at[p.scale_at * 4 + min(row0 + i, n_row - 1)];

    for (uint q0 = 0; q0 < p.k4; q0 += BK / 4) {
        barrier(); // the round before has been multiplied; at first: scales are there
        [[unroll]] for (uint i = 0; i < NX; i++) {
            const uint e = id + THREADS * i;
            const vec4 v = x[i] * scales[e / 8];
            // to 11 bits, in integers: a compiler may take float16(v) for v where it sees it come back
            const vec4 hi = uintBitsToFloat((floatBitsToUint(v) + 0x1000u) & 0xffffe000u);
            xh[e / 8 * STRIDE + e % 8] = f16vec4(hi);
            xl[e / 8 * STRIDE + e % 8] = f16vec4(v - hi);
        }
        [[unroll]] for (uint i = 0; i < NW; i++) {
            const uint e = id + THREADS * i;
            piece_store((e / 32 * 8 + e % 8) * STRIDE + e / 8 % 4 * 2, w[i], e % 8);
        }
#if defined(ESP_W_Q8)
        [[unroll]] for (uint i = 0; i < ND; i++)
            if (id + THREADS * i < BN)
                d_store(id + THREADS * i, d[i]);
#endif
        barrier(); // the round is there
        if (q0 + BK / 4 < p.k4) {
            [[unroll]] for (uint i = 0; i < NX; i++)
                x[i] = ACT_LOAD(x_from[i] + q0 + BK / 4);
            [[unroll]] for (uint i = 0; i < NW; i++) {
                const uint e = id + THREADS * i;
                w[i] = piece_load(min(g0 + e / 32, p.n_group - 1), (q0 + BK / 4) / 2 + e / 8 % 4, e % 8);
            }
#if defined(ESP_W_Q8)
            [[unroll]] for (uint i = 0; i < ND; i++)
                d[i] = d_load(g0, q0 + BK / 4, min(id + THREADS * i, BN - 1));
#endif
        }
#if defined(ESP_W_Q8)
        coopmat<float16_t, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB> b[FN * NK];
        coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> by[FN];
        [[unroll]] for (uint j = 0; j < FN; j++) {
            coopMatLoad(by[j], ds, sn + j * TN, 0, gl_CooperativeMatrixLayoutRowMajor); // every row the same
            [[unroll]] for (uint k = 0; k < NK; k++)
                coopMatLoad(b[j * NK + k], ws, (sn + j * TN) * STRIDE + k * TK / 4, STRIDE,
                            gl_CooperativeMatrixLayoutColumnMajor);
        }
        [[unroll]] for (uint i = 0; i < FM; i++) {
            coopmat<float16_t, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA> hi[NK], lo[NK];
            [[unroll]] for (uint k = 0; k < NK; k++) {
                const uint at = (sm + i * TM) * STRIDE + k * TK / 4;
                coopMatLoad(hi[k], xh, at, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
                coopMatLoad(lo[k], xl, at, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            }
            [[unroll]] for (uint j = 0; j < FN; j++) {
                coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> part =
                    coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>(0.0);
                [[unroll]] for (uint k = 0; k < NK; k++) {
                    part = coopMatMulAdd(hi[k], b[j * NK + k], part);
                    part = coopMatMulAdd(lo[k], b[j * NK + k], part);
                }
                acc[i * FN + j] = acc[i * FN + j] + part * by[j];
            }
        }
#else
        [[dont_unroll]] for (uint k = 0; k < BK; k += TK) {
            coopmat<float16_t, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB> b[FN];
            [[unroll]] for (uint j = 0; j < FN; j++)
                coopMatLoad(b[j], ws, (sn + j * TN) * STRIDE + k / 4, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
            [[unroll]] for (uint i = 0; i < FM; i++) {
                coopmat<float16_t, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA> hi, lo;
                coopMatLoad(hi, xh, (sm + i * TM) * STRIDE + k / 4, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
                coopMatLoad(lo, xl, (sm + i * TM) * STRIDE + k / 4, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint j = 0; j < FN; j++)
                    acc[i * FN + j] = coopMatMulAdd(hi, b[j], acc[i * FN + j]);
                [[unroll]] for (uint j = 0; j < FN; j++)
                    acc[i * FN + j] = coopMatMulAdd(lo, b[j], acc[i * FN + j]);
            }
        }
#endif
    }

    const uint mine = gl_SubgroupID * TM * W;
    const uint width = EPI == ESP_EPI_GEGLU ? W / 2 : W; // outputs of W columns
    [[unroll]] for (uint i = 0; i < FM; i++) {
        [[unroll]] for (uint j = 0; j < FN; j += W / TN) {
            [[unroll]] for (uint c = 0; c < W / TN; c++)
                coopMatStore(acc[i * FN + j + c], done, mine + c * TN, W, gl_CooperativeMatrixLayoutRowMajor);
            subgroupBarrier(); // the sums are there
            const uint group0 = g0 + (sn + j * TN) / 8;
            for (uint e = lane; e < TM * width; e += WAVE) {
                const uint m = sm + i * TM + e / width;
                const uint c = e % width;
                const uint at = mine + e / width * W + (EPI == ESP_EPI_GEGLU ? c / 8 * 16 + c % 8 : c);
                const uint group = group0 + (EPI == ESP_EPI_GEGLU ? c / 8 * 2 : c / 8);
                if (row0 + m >= n_row || group >= p.n_group)
                    continue;
                const float by = 1.0 / scales[m]; // a power of two
                if (EPI == ESP_EPI_GEGLU)
                    put(row0 + m, group / 2, c % 8, esp_gelu(done[at] * by) * (done[at + 8] * by));
                else
                    finish(row0 + m, group, c % 8, done[at] * by);
            }
            subgroupBarrier(); // they have been taken
        }
    }
}
