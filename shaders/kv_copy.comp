// Copies whole KV blocks, all layers: a sequence that shares its last block with another gets one of its own before
// it writes there. Pairs (from, to) stand in the step buffer.
// Grid: x = texels of a block / 64, y = layers, z = pairs.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "mem.glsl"

layout(local_size_x = 64) in;
ESP_PUSH(esp_push_kv_copy);

void main()
{
    const uint i = gl_GlobalInvocationID.x;
    if (i >= p.block_stride)
        return;
    const uint pair = p.step.at[ESP_STEP_COPIES] + 2 * gl_WorkGroupID.z;
    const uint layer = gl_WorkGroupID.y * p.layer_stride;
    KV_STORE(layer + p.step.at[pair + 1] * p.block_stride + i,
             KV_LOAD(layer + p.step.at[pair] * p.block_stride + i));
}
