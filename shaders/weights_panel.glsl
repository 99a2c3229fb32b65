// Quantised weights as CPU drivers read them (worker/pack.h): a panel is PANEL groups of 8 rows of W, and a 32-bit
// word holds one k of row l of every group, group j in BITS bits from bit BITS * j on. A texel is four consecutive k
// of such rows. A block of 32 k of a panel is BLOCK_TEXELS texels: [8][8] of words, texel 8 * (k / 4 % 8) + l; then row
// by row l the 16 bits of scale of each group.
// Kernels of the direct class (ESP_DIRECT) have the same words as [32][8], k after k, and then [group / 2][8] of scales.
// q8 is stored as q + 128; formulas in model/quant.h.
// Exactly one of ESP_W_Q8, ESP_W_Q4 is defined.
#if defined(ESP_W_Q8)
const uint PANEL = 4;
const uint BITS = 8;
const uint MASK = 255;
const uint BLOCK_TEXELS = 68;

uint side_at(const uint block, const uint lane)
{
    return block + 64 + lane / 2;
}

uint side_of(const uvec4 t, const uint lane, const uint j)
{
    const uint word = lane % 2 == 0 ? t[j / 2] : t[2 + j / 2];
    return word >> (j % 2 * 16) & 0xffffu;
}

float scale_of(const uint side)
{
    return uintBitsToFloat(side << 16);
}

// The zero point in units of ZERO_UNIT, a whole number.
const float ZERO_UNIT = 128.0;

float zeros_of(const uint side)
{
    return 1.0;
}
#else
const uint PANEL = 8;
const uint BITS = 4;
const uint MASK = 15;
const uint BLOCK_TEXELS = 72;

uint side_at(const uint block, const uint lane)
{
    return block + 64 + lane;
}

uint side_of(const uvec4 t, const uint lane, const uint j)
{
    return t[j / 2] >> (j % 2 * 16) & 0xffffu;
}

float scale_of(const uint side)
{
    return uintBitsToFloat(((side & 0xffc0u) << 13) + 0x2b800000u);
}

const float ZERO_UNIT = 0.25;

float zeros_of(const uint side)
{
    return float(side & 63u);
}
#endif

float zero_of(const uint side)
{
    return zeros_of(side) * ZERO_UNIT;
}

#ifdef ESP_DIRECT
uint w_word(const uint block, const uint k, const uint r)
{
    return W_LOAD(block + 2 * k + r / 4)[r % 4];
}
#endif

// As in weights.glsl: eight k of row r of group g.
void w_load8(const uint w_at, const uint k4, const uint g, const uint kc, const uint r, out vec4 a, out vec4 b)
{
    const uint block = w_at + (g / PANEL * (k4 / 8) + kc / 4) * BLOCK_TEXELS;
    const uint j = g % PANEL;
#ifdef ESP_DIRECT
    const uint side = w_word(block, 32 + j / 2, r) >> (j % 2 * 16) & 0xffffu, k = kc % 4 * 8;
    const uvec4 t = uvec4(w_word(block, k, r), w_word(block, k + 1, r), w_word(block, k + 2, r), w_word(block, k + 3, r));
    const uvec4 u = uvec4(w_word(block, k + 4, r), w_word(block, k + 5, r), w_word(block, k + 6, r), w_word(block, k + 7, r));
#else
    const uint side = side_of(W_LOAD(side_at(block, r)), r, j);
    const uvec4 t = W_LOAD(block + kc % 4 * 16 + r);
    const uvec4 u = W_LOAD(block + kc % 4 * 16 + 8 + r);
#endif
    a = scale_of(side) * (vec4(t >> (BITS * j) & MASK) - zero_of(side));
    b = scale_of(side) * (vec4(u >> (BITS * j) & MASK) - zero_of(side));
}
