// How kernels reach memory. Weights, activations and KV are read through storage texel buffers where ESP_TEXEL is
// defined, else through buffer addresses; single floats and small vectors always through addresses, and so is all that
// is written: CPU drivers store texels one word at a time. Both ways see the same bytes; no kernel reads what another
// invocation of the same dispatch writes, except topk, which uses addresses alone; nor through a texel buffer what it
// has written itself.
//
// Needs: ESP_GLSL, and the op's push constants as `p`, declared by ESP_PUSH(struct).
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require

layout(buffer_reference, std430, buffer_reference_align = 4) buffer esp_words { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer esp_floats { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer esp_vec4s { vec4 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer esp_quads { uvec4 at[]; };

#include "push.h"

#define ESP_PUSH(type) layout(push_constant, std430) uniform Push { type p; }

#ifdef ESP_TEXEL
layout(set = 0, binding = 0, rgba32ui) uniform readonly uimageBuffer esp_w_texels;
layout(set = 0, binding = 1, rgba32f) uniform readonly imageBuffer esp_act_texels;
layout(set = 0, binding = 2, rgba32f) uniform readonly imageBuffer esp_kv_texels;
#define W_LOAD(i)       imageLoad(esp_w_texels, int(i))
#define ACT_LOAD(i)     imageLoad(esp_act_texels, int(i))
#define KV_LOAD(i)      imageLoad(esp_kv_texels, int(i))
#else
#define W_LOAD(i)       p.w.at[i]
#define ACT_LOAD(i)     esp_vec4s(p.act).at[i]
#define KV_LOAD(i)      esp_vec4s(p.kv).at[i]
#endif
#define ACT_STORE(i, v) esp_vec4s(p.act).at[i] = (v)
#define KV_STORE(i, v)  esp_vec4s(p.kv).at[i] = (v)

// Four consecutive floats of the small vectors, from index i on.
#define VEC4(i) vec4(p.vec.at[i], p.vec.at[(i) + 1], p.vec.at[(i) + 2], p.vec.at[(i) + 3])
