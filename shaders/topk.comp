// Second half of top-k and log-sum-exp: largest logit, exact sum of exp, the target's logit, and the k best logits in
// order (value falling, id rising where values tie). k rounds: the best slice head leaves, and its slice is searched
// for the next in order. Greedy decoding (k = 1) takes one round.
// Grid: x = wants. The slices' heads (topk_slices.comp) are consumed.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"
#include "math.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_topk);

shared float best[64];
shared uint best_id[64];
shared float fold[64];

// The heads as they change hands: one lane writes what all look at, and only coherent memory promises them to see it.
layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer esp_heads { uint at[]; };

// The lanes' best (value, id) into best[0], best_id[0].
void reduce(const float v, const uint id)
{
    const uint lane = gl_LocalInvocationID.x;
    barrier(); // whoever still reads the result before is done
    best[lane] = v;
    best_id[lane] = id;
    barrier(); // complete
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
}

void main()
{
    const uint lane = gl_LocalInvocationID.x;
    const uint want = gl_WorkGroupID.x;
    if (want >= p.step.at[ESP_STEP_N_WANTS])
        return; // the whole workgroup leaves together
    const uint record = p.step.at[ESP_STEP_WANTS] + want * ESP_WANT;
    const uint x = (p.x_at + want * p.x_stride) * 4;
    const uint heads = (p.slice_at + want * p.slice_stride) * 4;
    const uint to = want * ESP_TOP;
    float v = LOWEST;

    for (uint s = lane; s < p.n_slice; s += 64)
        v = max(v, esp_floats(p.act).at[heads + 4 * s + 2]);
    reduce(v, 0);
    const float top = best[0];
    float sum = 0.0;
    for (uint s = lane; s < p.n_slice; s += 64)
        sum += esp_floats(p.act).at[heads + 4 * s + 3] * esp_exp(esp_floats(p.act).at[heads + 4 * s + 2] - top);
    fold[lane] = sum;
    barrier(); // fold[] is complete
    for (uint n = 32; n > 0; n /= 2) {
        if (lane < n)
            fold[lane] += fold[lane + n];
        barrier(); // every lane must arrive
    }
    if (lane == 0) {
        const uint target = p.step.at[record + ESP_WANT_TARGET];
        p.dst.at[to + ESP_TOP_MAX] = floatBitsToUint(top);
        p.dst.at[to + ESP_TOP_SUM] = floatBitsToUint(fold[0]);
        p.dst.at[to + ESP_TOP_TARGET] = target < p.vocab ? floatBitsToUint(esp_floats(p.act).at[x + target]) : 0;
    }

    const uint k = min(min(p.step.at[record + ESP_WANT_K], ESP_TOP_K), p.vocab);
    for (uint i = 0; i < k; i++) {
        v = LOWEST;
        uint id = ESP_NONE;
        for (uint s = lane; s < p.n_slice; s += 64) {
            const float w = uintBitsToFloat(esp_heads(p.act).at[heads + 4 * s]);
            const uint wid = esp_heads(p.act).at[heads + 4 * s + 1];
            if (w > v || (w == v && wid < id)) {
                v = w;
                id = wid;
            }
        }
        reduce(v, id);
        const float won = best[0];
        const uint won_id = best_id[0];
        const uint slice = won_id / ESP_TOP_SLICE;
        if (won_id >= p.vocab)
            return; // only when logits are no numbers: the sum says so
        // the next of that slice, in the same order
        v = LOWEST;
        id = ESP_NONE;
        for (uint j = slice * ESP_TOP_SLICE + lane; j < min((slice + 1) * ESP_TOP_SLICE, p.vocab); j += 64) {
            const float w = esp_floats(p.act).at[x + j];
            const bool after = w < won || (w == won && j > won_id);
            if (after && (w > v || (w == v && j < id))) {
                v = w;
                id = j;
            }
        }
        reduce(v, id);
        if (lane == 0) {
            p.dst.at[to + ESP_TOP_IDS + i] = won_id;
            p.dst.at[to + ESP_TOP_LOGITS + i] = floatBitsToUint(won);
            esp_heads(p.act).at[heads + 4 * slice] = floatBitsToUint(best[0]);
            esp_heads(p.act).at[heads + 4 * slice + 1] = best_id[0];
        }
        memoryBarrierBuffer(); // the new head is there ...
        barrier();             // ... before any lane looks again
    }
}
