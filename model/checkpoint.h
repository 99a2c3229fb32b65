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
#include "proto/status.h"

/** Shapes are the stored ones: a linear layer is [out, in], as PyTorch has it. D, F of the tower in question. */
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

/** A stored tensor, borrowed from the checkpoint: row-major, little-endian, of any alignment. */
struct esp_tensor {
    enum esp_dtype dtype; /* ESP_F32, ESP_F16 or ESP_BF16 */
    uint32_t n_dim;       /* 1 to 4 */
    uint64_t shape[4];
    const void *data;
    size_t n_bytes;
    const char *name; /* as stored */
    const char *file; /* path, for messages */
};

#define ESP_FINGERPRINT_BYTES 32

struct esp_checkpoint;

/**
 * Opens and checks a checkpoint directory: config.json, model.safetensors or the shards that
 * model.safetensors.index.json lists.
 *
 * @param out  a new checkpoint; esp_checkpoint_destroy frees it. NULL on failure.
 * Errors: as esp_config_load, and ESP_E_FORMAT naming file and tensor for missing, surplus-rank, misshapen,
 * truncated, overlapping or wrongly typed tensors and broken safetensors headers.
 * The files stay mapped; a file truncated later by someone else is the user's to mend.
 */
esp_status esp_checkpoint_open(struct esp_checkpoint **out, const char *dir, struct esp_err *err);
void esp_checkpoint_destroy(struct esp_checkpoint **ck);

/** Borrowed; valid until destroy. */
const struct esp_config *esp_checkpoint_config(const struct esp_checkpoint *ck);
const char *esp_checkpoint_dir(const struct esp_checkpoint *ck);

/**
 * View of a tensor. `layer` counts from 0 and is ignored for roles without layers. NULL only for the two
 * post norms of a model that has none, or a layer that is out of range. Safe from any thread.
 */
const struct esp_tensor *esp_checkpoint_tensor(const struct esp_checkpoint *ck, enum esp_role role, uint32_t layer);

/**
 * BLAKE2b over the config in canonical form, every tensor's role, dtype and shape, and samples of its bytes
 * (all of a small tensor; of a large one the first and last 4 KiB and 64 blocks between). Independent of naming
 * layout and sharding; two fine-tunes of one model differ. Takes milliseconds, not a read of 6 GB.
 */
void esp_checkpoint_fingerprint(const struct esp_checkpoint *ck, uint8_t out[ESP_FINGERPRINT_BYTES]);

/** Bytes of the tensors of one encoder layer, one decoder layer, and of everything, as stored. */
uint64_t esp_checkpoint_n_bytes(const struct esp_checkpoint *ck);

#endif
