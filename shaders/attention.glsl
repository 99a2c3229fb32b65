// What the attention kernels share: how a tile of rows and heads becomes up to TILE query vectors.
//   y[t,n] = sum_s softmax_s(cap(q[t,n] . k[s,n/G])) v[s,n/G] over the positions s in [lo_t, hi_t)
// Sources: arXiv 1706.03762 (attention), 1805.02867 (online softmax), 2408.00118 (cap(x) = c tanh(x/c), Gemma 2).
// Bidirectional, prefix-LM, sliding-window and decode attention differ only in the row records' [lo, hi).
// q comes scaled. Keys are taken ESP_KV_BLOCK at a time, at positions that are multiples of it, so a row's bits do not
// depend on the rows that share its tile: what is masked contributes exp(-inf) = 0 and a rescale by 1.
//
// Query vector r of a tile: row r / GB of the tile, head part * GB + r % GB of the G that share the KV head.
layout(constant_id = 0) const uint H4 = 18;     // padded head_dim / 4, even
layout(constant_id = 1) const uint G = 1;       // query heads a KV head
layout(constant_id = 2) const uint GB = 1;      // of them in one tile: min(G, TILE)
layout(constant_id = 3) const uint WINDOW = 0;  // 1: this layer looks at LO_WIN
layout(constant_id = 4) const uint SOFTCAP = 0; // 1: cap the scores
#ifndef QUERIES
#define QUERIES 8
#endif
const uint TILE = QUERIES;

struct Tile {
    uint row0, n_row, table, lo, hi;
    uint kv_head, part;
};

Tile tile_of(const uint index, const uint y)
{
    const uint at = p.step.at[ESP_STEP_TILES] + index * ESP_TILE;
    const uint n_part = (G + GB - 1) / GB;
    Tile t;
    t.row0 = p.step.at[at + ESP_TILE_ROW];
    t.n_row = p.step.at[at + ESP_TILE_N];
    t.table = p.step.at[at + ESP_TILE_TABLE];
    t.hi = p.step.at[at + ESP_TILE_HI];
    t.lo = p.step.at[at + (WINDOW != 0 ? ESP_TILE_LO_WIN : ESP_TILE_LO)];
    t.kv_head = y / n_part;
    t.part = y % n_part;
    return t;
}

bool live(const Tile t, const uint r)
{
    return r / GB < t.n_row && t.part * GB + r % GB < G;
}

uint query_at(const Tile t, const uint r) // texel of q; any valid one where r is not live
{
    const uint head = t.kv_head * G + min(t.part * GB + r % GB, G - 1);
    return p.q_at + (t.row0 + min(r / GB, t.n_row - 1)) * p.q_stride + head * H4;
}

uint result_at(const Tile t, const uint r)
{
    return p.y_at + (t.row0 + r / GB) * p.y_stride + (t.kv_head * G + t.part * GB + r % GB) * H4;
}

uvec2 reach(const Tile t, const uint r) // [lo, hi) of query vector r
{
    const uint row = p.step.at[ESP_STEP_ROWS] + (t.row0 + min(r / GB, t.n_row - 1)) * ESP_ROW;
    return uvec2(p.step.at[row + (WINDOW != 0 ? ESP_ROW_LO_WIN : ESP_ROW_LO)], p.step.at[row + ESP_ROW_HI]);
}

// First texels of the KV head's keys and values in the block that holds position s.
uint keys_at(const Tile t, const uint s)
{
    return p.kv_at + p.step.at[t.table + s / ESP_KV_BLOCK] * p.block_stride + t.kv_head * ESP_KV_BLOCK * H4;
}

float capped(const float s)
{
    return SOFTCAP != 0 ? p.softcap * esp_tanh(s / p.softcap) : s;
}
