// The second half of split attention: a query's slices put together, in order. First half: attention_slices.comp.
// A thread is a quad of dimensions.
// Grid: x = tiles, y = KV heads * parts of G, z = query vectors of a tile.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_attention);
#include "attention.glsl"
#include "attention_merge.glsl"

void main()
{
    const Tile t = tile_of(gl_WorkGroupID.x, gl_WorkGroupID.y);
    const uint r = gl_WorkGroupID.z;
    const uint item = p.step.at[p.step.at[ESP_STEP_TILES] + gl_WorkGroupID.x * ESP_TILE + ESP_TILE_ITEM];
    if (!live(t, r))
        return;
    for (uint quad = gl_LocalInvocationID.x; quad < H4; quad += 64) {
        vec4 acc = vec4(0.0);
        float m = LOWEST, l = 0.0;
        for (uint i = t.lo / ESP_SLICE; i * ESP_SLICE < t.hi; i++) {
            // not past the last: CPU drivers look once more before they leave the loop
            const uint at = part_at(item + min(i, (t.hi - 1) / ESP_SLICE), gl_WorkGroupID.y, r);
            const vec4 ml = ACT_LOAD(at + H4);
            const Merge by = merge(m, l, ml.x, ml.y);
            acc = merged(by, acc, ACT_LOAD(at + quad));
        }
        ACT_STORE(result_at(t, r) + quad, acc / l);
    }
}
