// The first half of an RMSNorm (ESP_SPLIT_* in push.h) in the direct class: z as integers, and a sum of squares for every 64
// columns. What begins one must compute it to the same bits.
// Needs: fixed.glsl, squares.glsl, p with act, vec and weight.
// Columns 64 i .. 64 i + 63 of a row: v[j] is column 8 j + lane of them; those from `width` on, a multiple of 32, are none. z and
// squares: the row's texels.
void begin_fixed(const uint z, const uint squares, const uint i, const uint width, const float v[8], const uint most)
{
    const uint lane = gl_SubgroupInvocationID;
    float s[8];
    [[unroll]] for (uint j = 0; j < 8; j++)
        s[j] = square(v[j]);
    const float all = total(sum_of_8(s));
    if (lane == 0)
        esp_floats(p.act).at[squares * 4 + i] = all;
    [[unroll]] for (uint h = 0; h < 2; h++) {
        const uint column = 64 * i + 32 * h;
        if (column < width) {
            float w[4];
            [[unroll]] for (uint j = 0; j < 4; j++)
                w[j] = weighted(v[4 * h + j], p.vec.at[p.weight + column + 8 * j + lane]);
            put_fixed(texels_on(p.act, z + column / 4), w, most);
        }
    }
}
