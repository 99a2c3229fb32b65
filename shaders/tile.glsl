// Eight k of 64 columns, TILE groups of 8, as float32: what matmul_texel.comp multiplies. Column l of each group for
// lane l. Quantised weights come out as what they are exactly (model/quant.h), so that a sum does not know of blocks.
const uint TILE = 8;

#if defined(ESP_W_Q8) || defined(ESP_W_Q4)
#ifdef ESP_DIRECT
// The panel of groups from g + i * PANEL on, the last one for those that are not there.
uint panel_of(const uint g, const uint i)
{
    return min(g / PANEL + i, (p.n_group + PANEL - 1) / PANEL - 1);
}

uint eight(const uint at)
{
    const Eight t = esp_eights(p.w).at[at];
    return of_lane(t.a, t.b);
}
#else
uint panel_of(const uint g, const uint i)
{
    return g / PANEL + i;
}
#endif

// d and d * z of the block of 32 k that begins with k = 32 * b.
void tile_begin(const uint w_at, const uint k4, const uint g, const uint b, const uint lane, out float d[TILE],
                out float dz[TILE])
{
    [[unroll]] for (uint i = 0; i < TILE / PANEL; i++) {
        const uint block = w_at + (panel_of(g, i) * (k4 / 8) + b) * BLOCK_TEXELS;
#ifdef ESP_DIRECT
        uint sides[PANEL];
        [[unroll]] for (uint j = 0; j < PANEL; j++)
            sides[j] = eight(block / 2 + 32 + j / 2) >> (j % 2 * 16) & 0xffffu;
#else
        const uvec4 texel = W_LOAD(side_at(block, lane));
        uint sides[PANEL];
        [[unroll]] for (uint j = 0; j < PANEL; j++)
            sides[j] = side_of(texel, lane, j);
#endif
        [[unroll]] for (uint j = 0; j < PANEL; j++) {
            const uint side = sides[j];
            d[i * PANEL + j] = scale_of(side);
            dz[i * PANEL + j] = scale_of(side) * zero_of(side);
        }
    }
}

void tile_load(const uint w_at, const uint k4, const uint g, const uint kc, const uint lane, const float d[TILE],
               const float dz[TILE], out vec4 a[TILE], out vec4 b[TILE])
{
    [[unroll]] for (uint i = 0; i < TILE / PANEL; i++) {
        const uint at = w_at + (panel_of(g, i) * (k4 / 8) + kc / 4) * BLOCK_TEXELS + kc % 4 * 16;
#ifdef ESP_DIRECT
        uvec4 t, u;
        [[unroll]] for (uint k = 0; k < 4; k++) {
            t[k] = eight(at / 2 + k);
            u[k] = eight(at / 2 + 4 + k);
        }
#else
        const uvec4 t = W_LOAD(at + lane);
        const uvec4 u = W_LOAD(at + lane + 8);
#endif
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
