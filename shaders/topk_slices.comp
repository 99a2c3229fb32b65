// First half of top-k and log-sum-exp: for each slice of ESP_TOP_SLICE logits its best one (value, id; the lower id
// where values tie) and the sum of exp(logit - best). A logit that is no finite number makes the sum NaN.
// Grid: x = slices, y = wants.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_topk);

shared float best[64];
shared uint best_id[64];
shared float sums[64];

bool finite(const float v)
{
    return (floatBitsToUint(v) & 0x7f800000u) != 0x7f800000u;
}

void main()
{
    const uint lane = gl_LocalInvocationID.x;
    const uint slice = gl_WorkGroupID.x;
    const uint want = gl_WorkGroupID.y;
    if (want >= p.step.at[ESP_STEP_N_WANTS])
        return; // the whole workgroup leaves together
    const uint x = (p.x_at + want * p.x_stride) * 4;
    const uint id0 = slice * ESP_TOP_SLICE + lane;
    float v = LOWEST;
    uint id = ESP_NONE;
    bool bad = false;

    for (uint i = id0; i < min((slice + 1) * ESP_TOP_SLICE, p.vocab); i += 64) {
        const float l = esp_floats(p.act).at[x + i];
        bad = bad || !finite(l);
        if (l > v || id == ESP_NONE) {
            v = l;
            id = i;
        }
    }
    best[lane] = v;
    best_id[lane] = id;
    barrier(); // best[] is complete
    for (uint n = 32; n > 0; n /= 2) {
        if (lane < n) {
            const float w = best[lane + n];
            const uint wid = best_id[lane + n];
            if (w > best[lane] || (w == best[lane] && wid < best_id[lane])) {
                best[lane] = w;
                best_id[lane] = wid;
            }
        }
        barrier(); // every lane must arrive
    }
    float sum = 0.0;
    for (uint i = id0; i < min((slice + 1) * ESP_TOP_SLICE, p.vocab); i += 64)
        sum += esp_exp(esp_floats(p.act).at[x + i] - best[0]);
    sums[lane] = bad ? uintBitsToFloat(0x7fc00000u) : sum;
    barrier(); // sums[] is complete
    for (uint n = 32; n > 0; n /= 2) {
        if (lane < n)
            sums[lane] += sums[lane + n];
        barrier(); // every lane must arrive
    }
    if (lane == 0) {
        const uint out_at = (p.slice_at + want * p.slice_stride + slice) * 4;
        esp_floats(p.act).at[out_at] = best[0];
        esp_words(p.act).at[out_at + 1] = best_id[0]; // as an integer: a float move may flush it to zero
        esp_floats(p.act).at[out_at + 2] = best[0];
        esp_floats(p.act).at[out_at + 3] = sums[0];
    }
}
