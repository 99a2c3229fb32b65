/**
 * A model's weights in pieces: what a placement takes or leaves whole. Each layer is one, and so are the encoder's two
 * ends and the embedding table. Host memory only: which matrices and vectors a piece has, how they are packed
 * (worker/pack.h) and where in buffers of the piece's own they will lie.
 */
#ifndef ESP_WORKER_PIECE_H
#define ESP_WORKER_PIECE_H

#include "worker/ops.h"
#include "worker/stage.h"

#define ESP_PIECE_MATS    4
#define ESP_PIECE_VECS    4
#define ESP_PIECE_CHUNKS  16 /* device buffers */
#define ESP_PIECE_TENSORS 16
#define ESP_PIECE_ALIGN                                                                                      \
    4096 /* where a matrix begins in a buffer: a page, so that a file's can take its place (worker/packed.h) */

/** Pieces are numbered: these three, then the encoder's layers, then the decoder's. */
enum esp_piece_end { ESP_PIECE_PATCH, ESP_PIECE_PROJECTOR, ESP_PIECE_EMBED, ESP_N_PIECE_END };

/** Where a layer's matrices and vectors stand in its piece; the ends have one matrix each. */
enum esp_piece_enc_mat { ESP_ENC_QKV, ESP_ENC_O, ESP_ENC_FC1, ESP_ENC_FC2 };
enum esp_piece_dec_mat { ESP_DEC_QKV, ESP_DEC_O, ESP_DEC_GATE_UP, ESP_DEC_DOWN };
enum esp_piece_enc_vec { ESP_ENC_NORM1_W, ESP_ENC_NORM1_B, ESP_ENC_NORM2_W, ESP_ENC_NORM2_B };
enum esp_piece_dec_vec { ESP_DEC_NORM_ATTN, ESP_DEC_NORM_MLP, ESP_DEC_NORM_POST_ATTN, ESP_DEC_NORM_POST_MLP };

struct esp_piece_mat {
    struct esp_mat mat; /* chunks are the piece's own, from 0; no bias: that is a vector of the stage's */
    struct esp_pack_spec spec;
    struct esp_pack_dims dims;
    bool biased;
    struct esp_pack_part bias[ESP_PACK_PARTS]; /* spec.n_part of them */
};

struct esp_piece {
    enum esp_vk_class cls; /* whose kernels read it */
    enum esp_wtype want;   /* of its matrices */
    uint32_t n_mat;
    struct esp_piece_mat mat[ESP_PIECE_MATS];
    const struct esp_tensor *vec[ESP_PIECE_VECS]; /* norms; patch: positions; NULL: the model has none */
    uint32_t n_chunk;
    uint64_t chunk_bytes[ESP_PIECE_CHUNKS];
    uint64_t n_bytes;  /* of all chunks */
    uint32_t n_tensor; /* every tensor of the above */
    const struct esp_tensor *tensor[ESP_PIECE_TENSORS];
};

/** How many a model has. */
uint32_t esp_piece_count(const struct esp_config *config);

/** Whether a placement calls for a piece; piece < esp_piece_count. */
bool esp_piece_of(uint32_t piece, const struct esp_config *config, const struct esp_stage_spec *spec);

/**
 * @param cls, want  as in esp_pack_spec
 * @param max_bytes  of one buffer; a piece that is larger is cut, a matrix between groups of rows if need be
 * Errors: ESP_E_NOMEM (so small buffers cannot hold it; names the tensor).
 */
esp_status esp_piece_plan(struct esp_piece *out, const struct esp_checkpoint *ck, uint32_t piece,
                          enum esp_vk_class cls, enum esp_wtype want, uint64_t max_bytes,
                          struct esp_err *err);

#endif
