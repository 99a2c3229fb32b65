// Rows of x as integers of 16 bits, or of 15 for q4, which row_fixed.comp writes and matvec_direct_quant.comp reads: 32 k at
// a time, in the place that they had as float32. x = unit * a, |a| <= MOST.
struct Fixed {
    ivec4 pair[4]; // of a, k even in the lower half
    float unit;    // NaN where an element is no finite number, so that the whole row of the product is none
    float all;     // the sum of a, a whole number
    vec2 free[7];
};
layout(buffer_reference, std430, buffer_reference_align = 16) buffer esp_fixed { Fixed at[]; };

int fixed_of(const int pair, const uint k)
{
    return k % 2 == 0 ? pair << 16 >> 16 : pair >> 16;
}

// The address so many texels behind another.
uvec2 texels_on(const uvec2 address, const uint texels)
{
    uint carry;
    const uint low = uaddCarry(address.x, texels << 4, carry);
    return uvec2(low, address.y + (texels >> 28) + carry);
}
