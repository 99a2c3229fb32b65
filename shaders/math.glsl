// Elementary functions with known accuracy. GLSL's own exp may lose 3 + 2|x| units in the last place, its tanh may
// overflow inside, and drivers use that freedom; these give the same bits on every device that rounds to nearest and
// neither splits nor makes fused multiply-adds (Vulkan permits both).

// Below or equal to every finite number: where a maximum starts. Not -inf, which a driver may assume never to meet.
#define LOWEST uintBitsToFloat(0xff7fffffu)

// e^x, within about 2 ulp; 0 below -87.3 (and for -inf), +inf above 88.7, NaN for NaN. exp(0) is exactly 1.
// n = round(x / ln 2); e^x = 2^n e^r with |r| <= ln(2)/2 in two pieces (Cody, Waite), e^r by its Taylor series.
float esp_exp(const float x)
{
    const float c = clamp(x, -87.3, 88.7);
    const float n = floor(c * 1.44269504 + 0.5);
    float r = fma(n, -0.693145752, x); // of x, not of c: what clamp makes of NaN is anybody's guess
    r = fma(n, -1.42860677e-6, r);
    float s = 1.98412698e-4;
    s = fma(s, r, 1.38888889e-3);
    s = fma(s, r, 8.33333333e-3);
    s = fma(s, r, 4.16666667e-2);
    s = fma(s, r, 1.66666667e-1);
    s = fma(s, r, 0.5);
    s = fma(s, r, 1.0);
    s = fma(s, r, 1.0);
    // 2^n in two factors: n may be 128 or -126
    const int half_n = int(n) / 2;
    const float y = s * intBitsToFloat((half_n + 127) << 23) * intBitsToFloat((int(n) - half_n + 127) << 23);
    return x < -87.3 ? 0.0 : (x > 88.7 ? intBitsToFloat(0x7f800000) : y);
}

// tanh x, within a few ulp: an odd polynomial where 1 - e would cancel, else through e^(-2|x|).
float esp_tanh(const float x)
{
    const float a = abs(x);
    const float q = x * x;
    const float e = esp_exp(-2.0 * a);
    float s = fma(q, -0.00886323553, 0.0218694885); // x^11, x^9
    s = fma(s, q, -0.0539682540);
    s = fma(s, q, 0.133333333);
    s = fma(s, q, -0.333333333);
    const float small = fma(x * q, s, x);
    const float large = (1.0 - e) / (1.0 + e);
    return a < 0.3 ? small : (x < 0.0 ? -large : large);
}

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^(-2u)); arXiv 1606.08415, section 2.
float esp_gelu(const float x)
{
    const float u = 0.797884561 * fma(0.044715 * x * x, x, x);
    return x / (1.0 + esp_exp(-2.0 * u));
}
