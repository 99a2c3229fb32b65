/**
 * A Hugging Face checkpoint directory, opened: its config and a view of every tensor, memory-mapped.
 *
 * Tensors are asked for by role and layer; which of the four naming layouts in circulation the files use, and
 * how many shards there are, is known here alone. Opening checks every tensor the config calls for: present,
 * of a float dtype, of the right shape, wholly inside its file, overlapping no other.
 */
#ifndef ESP_MODEL_CHECKPOINT_H
#define ESP_MODEL_CHECKPOINT_H

#include "model/config.h"
#include "model/dtype.h"
#include "model/tensor.h"
#include "proto/status.h"

/**
 * What a tensor is for. Shapes are the stored ones: a linear layer is [out, in], as PyTorch has it. D, F of
 * the tower in question. model/roles.h has names and shapes of each.
 */
enum esp_role {
    /* SigLIP */
    ESP_V_PATCH_W, /* [D, C, P, P] */
    ESP_V_PATCH_B, /* [D] */
    ESP_V_POS,     /* [n_token, D] */
    ESP_V_LN1_W,   /* [D], per layer from here */
    ESP_V_LN1_B,
    ESP_V_Q_W, /* [D, D] */
    ESP_V_Q_B, /* [D] */
    ESP_V_K_W,
    ESP_V_K_B,
    ESP_V_V_W,
    ESP_V_V_B,
    ESP_V_O_W,
    ESP_V_O_B,
    ESP_V_LN2_W,
    ESP_V_LN2_B,
    ESP_V_FC1_W, /* [F, D] */
    ESP_V_FC1_B, /* [F] */
    ESP_V_FC2_W, /* [D, F] */
    ESP_V_FC2_B, /* [D]; last per-layer role */
    ESP_V_POST_W,
    ESP_V_POST_B,
    /* projector */
    ESP_P_W, /* [text D, vision D] */
    ESP_P_B, /* [text D] */
    /* Gemma */
    ESP_T_EMBED,     /* [V, D]; the output head too */
    ESP_T_NORM_ATTN, /* [D]: input_layernorm; per layer from here */
    ESP_T_Q_W,       /* [N*H, D] */
    ESP_T_K_W,       /* [K*H, D] */
    ESP_T_V_W,
    ESP_T_O_W,            /* [D, N*H] */
    ESP_T_NORM_POST_ATTN, /* Gemma 2's post_attention_layernorm; absent in Gemma */
    ESP_T_NORM_MLP,       /* Gemma: post_attention_layernorm; Gemma 2: pre_feedforward_layernorm */
    ESP_T_GATE_W,         /* [F, D] */
    ESP_T_UP_W,
    ESP_T_DOWN_W,        /* [D, F] */
    ESP_T_NORM_POST_MLP, /* Gemma 2's post_feedforward_layernorm; last per-layer role */
    ESP_T_NORM_FINAL,
    ESP_N_ROLE
};

#define ESP_FINGERPRINT_BYTES 32

struct esp_checkpoint;

/**
 * Opens and checks a checkpoint: a directory, or by `shape:NAME` a published model's shape with random weights
 * (model/shape.h). Of a directory: config.json, model.safetensors or the shards that
 * model.safetensors.index.json lists (model.safetensors wins where both are there, as in the reference).
 *
 * @param out  a new checkpoint; esp_checkpoint_destroy frees it. NULL on failure.
 * Errors: as esp_config_load, and ESP_E_FORMAT naming file and tensor for missing, surplus-rank, misshapen,
 * truncated, overlapping or wrongly typed tensors and broken safetensors headers, for an index that names
 * files outside the directory or tensors that are not there, and for a tensor in two shards. Tensors without
 * a role (a vision head, position ids, a copy of the tied output head) are held to the file format and
 * otherwise ignored. The files stay mapped; a file truncated later by someone else is the user's to mend.
 */
esp_status esp_checkpoint_open(struct esp_checkpoint **out, const char *dir, struct esp_err *err);
void esp_checkpoint_destroy(struct esp_checkpoint **ck);

/** Borrowed; valid until destroy. */
const struct esp_config *esp_checkpoint_config(const struct esp_checkpoint *ck);
const char *esp_checkpoint_dir(const struct esp_checkpoint *ck);

/**
 * View of a tensor. `layer` counts from 0 and is ignored for roles without layers. NULL only for the two
 * post norms of a model that has none, a layer that is out of range, or no role. Safe from any thread.
 */
const struct esp_tensor *esp_checkpoint_tensor(const struct esp_checkpoint *ck, enum esp_role role,
                                               uint32_t layer);

/**
 * BLAKE2b-256 over both towers' dimensions and constants, the <image> id, and of every tensor its role,
 * layer, dtype, shape and samples of its bytes: all of a small one; of a larger one the first and last 4 KiB
 * and 64 blocks of 256 bytes spread evenly between. Independent of naming layout, sharding, preprocessing and
 * special tokens; two fine-tunes of one model differ. Some milliseconds when the files are in memory, about
 * 20000 page reads of a 3B model, asked for all at once, when they are not.
 */
void esp_checkpoint_fingerprint(const struct esp_checkpoint *ck, uint8_t out[ESP_FINGERPRINT_BYTES]);

/**
 * Makes it a model of its first layers alone, to measure what is too large as a whole.
 * Errors: ESP_E_ARG (no layer left, or more than there are).
 */
esp_status esp_checkpoint_cut(struct esp_checkpoint *ck, uint32_t n_vision, uint32_t n_text,
                              struct esp_err *err);

/** Bytes of all tensors that have a role, as stored. */
uint64_t esp_checkpoint_n_bytes(const struct esp_checkpoint *ck);

#endif
