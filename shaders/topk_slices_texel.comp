// First half of top-k and log-sum-exp on CPU drivers; what it leaves is what topk_slices.comp leaves. A subgroup of 8
// lanes takes a slice and needs no barrier; a workgroup of 64 spends more time in barriers than in all else.
// Grid: x = slices, y = wants.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 8) in;
ESP_PUSH(esp_push_topk);

const uint LOADS = ESP_TOP_SLICE / 32; // of four logits a lane

bool finite(const float v)
{
    return (floatBitsToUint(v) & 0x7f800000u) != 0x7f800000u;
}

void main()
{
    const uint lane = gl_SubgroupInvocationID;
    const uint slice = gl_WorkGroupID.x;
    const uint want = gl_WorkGroupID.y;
    if (want >= p.step.at[ESP_STEP_N_WANTS])
        return;
    const uint id0 = slice * ESP_TOP_SLICE + 4 * lane;
    const uint x = p.x_at + want * p.x_stride + id0 / 4;
    const uint vocab = p.vocab;
    vec4 l[LOADS];
    float best = LOWEST;
    uint best_id = ESP_NONE;
    bool bad = false;

    [[unroll]] for (uint i = 0; i < LOADS; i++) {
        l[i] = ACT_LOAD(x + 8 * i);
        [[unroll]] for (uint c = 0; c < 4; c++) {
            const uint id = id0 + 32 * i + c;
            bad = bad || (id < vocab && !finite(l[i][c]));
            if (id < vocab && (l[i][c] > best || best_id == ESP_NONE)) {
                best = l[i][c];
                best_id = id;
            }
        }
    }
    float top = LOWEST;
    uint top_id = ESP_NONE;
    [[unroll]] for (uint i = 0; i < 8; i++) {
        const float v = subgroupBroadcast(best, i);
        const uint id = subgroupBroadcast(best_id, i);
        if (v > top || (v == top && id < top_id)) {
            top = v;
            top_id = id;
        }
    }
    float sum = 0.0;
    [[unroll]] for (uint i = 0; i < LOADS; i++)
        [[unroll]] for (uint c = 0; c < 4; c++)
            sum += id0 + 32 * i + c < vocab ? esp_exp(l[i][c] - top) : 0.0;
    sum = bad ? uintBitsToFloat(0x7fc00000u) : sum;
    float all = 0.0;
    [[unroll]] for (uint i = 0; i < 8; i++)
        all += subgroupBroadcast(sum, i);
    if (lane == 0) {
        const uint out_at = (p.slice_at + want * p.slice_stride + slice) * 4;
        esp_floats(p.act).at[out_at] = top;
        esp_words(p.act).at[out_at + 1] = top_id; // as an integer: a float move may flush it to zero
        esp_floats(p.act).at[out_at + 2] = top;
        esp_floats(p.act).at[out_at + 3] = all;
    }
}
