// Eight k of 64 columns, TILE groups of 8, as float32: what matmul_texel.comp multiplies. Column l of each group for
// lane l. Quantised weights come out as what they are exactly (model/quant.h), so that a sum does not know of blocks.
const uint TILE = 8;

#if defined(ESP_W_Q8) || defined(ESP_W_Q4)
// d and d * z of the block of 32 k that begins with k = 32 * b.
void tile_begin(const uint w_at, const uint k4, const uint g, const uint b, const uint lane, out float d[TILE],
                out float dz[TILE])
{
    [[unroll]] for (uint i = 0; i < TILE / PANEL; i++) {
        const uint block = w_at + ((g / PANEL + i) * (k4 / 8) + b) * BLOCK_TEXELS;
        const uvec4 sides = W_LOAD(side_at(block, lane));
        [[unroll]] for (uint j = 0; j < PANEL; j++) {
            const uint side = side_of(sides, lane, j);
            d[i * PANEL + j] = scale_of(side);
            dz[i * PANEL + j] = scale_of(side) * zero_of(side);
        }
    }
}

void tile_load(const uint w_at, const uint k4, const uint g, const uint kc, const uint lane, const float d[TILE],
               const float dz[TILE], out vec4 a[TILE], out vec4 b[TILE])
{
    [[unroll]] for (uint i = 0; i < TILE / PANEL; i++) {
        const uint at = w_at + ((g / PANEL + i) * (k4 / 8) + kc / 4) * BLOCK_TEXELS + kc % 4 * 16 + lane;
        const uvec4 t = W_LOAD(at);
        const uvec4 u = W_LOAD(at + 8);
        [[unroll]] for (uint j = 0; j < PANEL; j++) {
            const uint c = i * PANEL + j;
            a[c] = d[c] * vec4(ivec4(t >> (BITS * j) & MASK)) - dz[c];
            b[c] = d[c] * vec4(ivec4(u >> (BITS * j) & MASK)) - dz[c];
        }
    }
}
#else
void tile_begin(const uint w_at, const uint k4, const uint g, const uint b, const uint lane, out float d[TILE],
                out float dz[TILE])
{
}

void tile_load(const uint w_at, const uint k4, const uint g, const uint kc, const uint lane, const float d[TILE],
               const float dz[TILE], out vec4 a[TILE], out vec4 b[TILE])
{
    [[unroll]] for (uint c = 0; c < TILE; c++)
        w_load8(w_at, k4, g + c, kc, lane, a[c], b[c]);
}
#endif
