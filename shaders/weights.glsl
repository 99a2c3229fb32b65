// Packed weights (worker/pack.h): 8 rows of W side by side. Of a group of 8 output columns g, row r (0..7), w_load8
// gives the 8 weights k = 8*kc .. 8*kc+7 as float32: exactly, but that a driver may take float16 subnormals for zero.
//   16-bit types: a texel is 8 k of one row, at ((g * K/8) + kc) * 8 + r
//   float32:      a texel is 4 k of one row, at ((g * K/4) + k/4) * 8 + r
// Exactly one of ESP_W_BF16, ESP_W_F16, ESP_W_F32 is defined.
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
