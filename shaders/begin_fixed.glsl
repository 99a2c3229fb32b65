// The first half of an RMSNorm (ESP_SPLIT_* in push.h) in the direct class: z as integers, and a sum of squares for every 64
// columns. What begins one must compute it to the same bits.
// Needs: lanes.glsl, fixed.glsl, squares.glsl, p with weight.

// What is known of columns 64 i .. 64 i + 63 of a row before they are; those from `width` on, a multiple of 32, are none.
struct Begin {
    bool is[2]; // halves that there are
    FixedAt at[2];
    float weight[8];
    uint square;
};

// z and squares: the row's texels.
Begin begin_at(const uint z, const uint squares, const uint i, const uint width)
{
    Begin b;
    b.square = squares * 4 + i;
    [[unroll]] for (uint h = 0; h < 2; h++) {
        const uint column = 64 * i + 32 * h;
        b.is[h] = column < width;
        b.at[h] = fixed_at(z + column / 4);
        [[unroll]] for (uint j = 0; j < 4; j++)
            b.weight[4 * h + j] = b.is[h] ? p.vec.at[p.weight + column + 8 * j + gl_SubgroupInvocationID] : 0.0;
    }
    return b;
}

// v[j] is column 8 j + lane of them.
void begin_fixed(const Begin b, const float v[8], const uint most)
{
    float s[8];
    [[unroll]] for (uint j = 0; j < 8; j++)
        s[j] = square(v[j]);
    const float all = total(sum_of_8(s));
    if (gl_SubgroupInvocationID == 0)
        esp_floats(p.act).at[b.square] = all;
    [[unroll]] for (uint h = 0; h < 2; h++) {
        if (b.is[h]) {
            float w[4];
            [[unroll]] for (uint j = 0; j < 4; j++)
                w[j] = weighted(v[4 * h + j], b.weight[4 * h + j]);
            put_fixed(b.at[h], w, most);
        }
    }
}
