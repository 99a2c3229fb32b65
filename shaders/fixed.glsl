// Rows of x as integers of 16 bits, or of 15 for q4, which matvec_direct_quant.comp reads: 32 k at a time, in the place that
// they have as float32. x = unit * a, |a| <= MOST. What makes x leaves it so (put_fixed), or row_fixed.comp does it after.
// Needs: mem.glsl, and p with act.
struct Fixed {
    uvec4 pair[4]; // of a: word i holds k = i / 8 * 16 + i % 8 in its lower half, and k + 8
    float unit;    // NaN where an element is no finite number, so that the whole row of the product is none
    float all;     // the sum of a, a whole number
    vec2 free[7];
};
layout(buffer_reference, std430, buffer_reference_align = 16) buffer esp_fixed { Fixed at[]; };

// The address so many texels behind another.
uvec2 texels_on(const uvec2 address, const uint texels)
{
    uint carry;
    const uint low = uaddCarry(address.x, texels << 4, carry);
    return uvec2(low, address.y + (texels >> 28) + carry);
}

// Where a block from a texel of p.act on takes what put_fixed leaves, in words: this lane's two of pairs, and in lanes 0 and 1 unit
// and all. Told apart from it so that it can be known before a loop (know_lane in direct.glsl).
struct FixedAt {
    uint low, high, side;
};

FixedAt fixed_at(const uint texel)
{
    const uint low = texel * 4 + gl_SubgroupInvocationID;
    return FixedAt(low, low + 8, low + 16);
}

// Leaves a block: v[j] is its element 8 j + lane. An element is off by half a unit at most: 3e-5 of x in relative L2 or so with
// 16 bits (q8), 6e-5 with 15 (q4). Weights are off by 5e-3 and 7e-2.
void put_fixed(const FixedAt at, const float v[4], const uint most_of_all)
{
    const uint lane = gl_SubgroupInvocationID;
    const float limit = float(most_of_all);
    uint size = 0, most = 0; // as integers sizes are in their order, NaN above all
    int a[4], mine = 0, all = 0;
    [[unroll]] for (uint j = 0; j < 4; j++)
        size = max(size, floatBitsToUint(v[j]) & 0x7fffffffu);
    [[unroll]] for (uint l = 0; l < 8; l++)
        most = max(most, subgroupBroadcast(size, l));
    const float unit = max(uintBitsToFloat(most), 1e-30) / limit; // it and its inverse are to be normal numbers
    [[unroll]] for (uint j = 0; j < 4; j++) {
        a[j] = int(clamp(roundEven(v[j] / unit), -limit, limit));
        mine += a[j];
    }
    [[unroll]] for (uint l = 0; l < 8; l++)
        all += subgroupBroadcast(mine, l);
    esp_words(p.act).at[at.low] = uint(a[1] << 16 | a[0] & 0xffff);
    esp_words(p.act).at[at.high] = uint(a[3] << 16 | a[2] & 0xffff);
    if (lane < 2)
        esp_floats(p.act).at[at.side] =
            lane == 1 ? float(all) : most >= 0x7f800000u ? uintBitsToFloat(0x7fc00000u) : unit;
}
