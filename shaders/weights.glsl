// Packed weights (worker/pack.h): 8 rows of W side by side. Of a group of 8 output columns g, row r (0..7), w_load8
// gives the 8 weights k = 8*kc .. 8*kc+7 as float32: exactly, but that a driver may take float16 subnormals for zero.
//   16-bit types: a texel is 8 k of one row, at ((g * K/8) + kc) * 8 + r
//   float32:      a texel is 4 k of one row, at ((g * K/4) + k/4) * 8 + r
//   q8, q4:       17 or 9 texels a block of 32 k, from (g * K/32 + k/32) * 17 or 9 on: a texel of scales, 16 bits a row,
//                 then 16 (q8) or 32 (q4) k of one row a texel; formulas in model/quant.h
//                 But on CPU drivers: weights_panel.glsl.
// Exactly one of ESP_W_BF16, ESP_W_F16, ESP_W_F32, ESP_W_Q8, ESP_W_Q4 is defined.
#if defined(ESP_TEXEL) && (defined(ESP_W_Q8) || defined(ESP_W_Q4))
#include "weights_panel.glsl"
#elif defined(ESP_W_Q8) || defined(ESP_W_Q4)
// The 16 bits of row r in a block's texel of scales.
uint w_scale_of(const uvec4 t, const uint r)
{
    const uint word = r < 4 ? (r < 2 ? t.x : t.y) : (r < 6 ? t.z : t.w);
    return word >> (r % 2 * 16) & 0xffffu;
}

#if defined(ESP_W_Q8)
vec4 w_q8_ints(const uint q)
{
    return vec4((ivec4(int(q)) << ivec4(24, 16, 8, 0)) >> 24);
}

// Four weights: their bytes, and the scale.
vec4 w_q8(const uint d, const uint q)
{
    return uintBitsToFloat(d << 16) * w_q8_ints(q);
}
#else
// Four weights: their 4-bit numbers in the low half of q, and what stands beside their block.
vec4 w_q4(const uint side, const uint q)
{
    const float d = uintBitsToFloat(((side & 0xffc0u) << 13) + 0x2b800000u);
    return d * (vec4(uvec4(q) >> uvec4(0, 4, 8, 12) & 15u) - float(side & 63u) * 0.25);
}
#endif

void w_load8(const uint w_at, const uint k4, const uint g, const uint kc, const uint r, out vec4 a, out vec4 b)
{
#if defined(ESP_W_Q8)
    const uint block = w_at + (g * (k4 / 8) + kc / 4) * 17;
    const uint d = w_scale_of(W_LOAD(block), r);
    const uvec4 t = W_LOAD(block + 1 + kc / 2 % 2 * 8 + r);
    const uvec2 q = kc % 2 == 0 ? t.xy : t.zw;
    a = w_q8(d, q.x);
    b = w_q8(d, q.y);
#else
    const uint block = w_at + (g * (k4 / 8) + kc / 4) * 9;
    const uint side = w_scale_of(W_LOAD(block), r);
    const uvec4 t = W_LOAD(block + 1 + r);
    const uint q = kc % 4 < 2 ? (kc % 2 == 0 ? t.x : t.y) : (kc % 2 == 0 ? t.z : t.w);
    a = w_q4(side, q);
    b = w_q4(side, q >> 16);
#endif
}
#else
void w_unpack8(const uvec4 t, out vec4 a, out vec4 b)
{
#if defined(ESP_W_BF16)
    const uvec4 lo = t << 16;
    const uvec4 hi = t & 0xffff0000u;
    a = uintBitsToFloat(uvec4(lo.x, hi.x, lo.y, hi.y));
    b = uintBitsToFloat(uvec4(lo.z, hi.z, lo.w, hi.w));
#else
    a = vec4(unpackHalf2x16(t.x), unpackHalf2x16(t.y));
    b = vec4(unpackHalf2x16(t.z), unpackHalf2x16(t.w));
#endif
}

void w_load8(const uint w_at, const uint k4, const uint g, const uint kc, const uint r, out vec4 a, out vec4 b)
{
#if defined(ESP_W_F32)
    const uint i = w_at + (g * k4 + 2 * kc) * 8 + r;
    a = uintBitsToFloat(W_LOAD(i));
    b = uintBitsToFloat(W_LOAD(i + 8));
#else
    w_unpack8(W_LOAD(w_at + (g * (k4 / 2) + kc) * 8 + r), a, b);
#endif
}
#endif
