#include "proto/wire_table.h"

#include <stddef.h>

#include "proto/espalier.pb-c.h"
#include "proto/keys.h"

/*
 * A row is made by a macro named for its type. Its first argument names both structures (the HELLO, STEP, ...
 * below); the field has the same name in both unless the row says otherwise. IS() makes a row of the wrong
 * type a compile error.
 */
#define IS(type, expr)    (uint16_t)(0 * sizeof(char[_Generic((expr), type : 1, default : -1)]))
#define C_AT(cs, f, type) (uint16_t)(offsetof(struct cs, f) + IS(type, ((struct cs *)0)->f))
#define P_AT(ps, f, type) (uint16_t)(offsetof(ps, f) + IS(type, ((ps *)0)->f))

#define ROW(cs, ps, f, kind, ctype, ptype, ...)                                                              \
    {                                                                                                        \
        .name = #f, .type = ESP_WIRE_##kind, .c = C_AT(cs, f, ctype), .p = P_AT(ps, f, ptype), __VA_ARGS__   \
    }
#define ARRAY(cs, ps, f, cn, kind, ctype, ptype, n, ...)                                                     \
    {                                                                                                        \
        .name = #f, .type = ESP_WIRE_##kind, .c = C_AT(cs, f, ctype), .c_n = C_AT(cs, cn, uint32_t),         \
        .p = P_AT(ps, f, ptype), .p_n = P_AT(ps, n_##f, size_t), .max_n = (n), __VA_ARGS__                   \
    }

/* One more expansion, so that M may stand for two arguments. */
#define ROW_(...)   ROW(__VA_ARGS__)
#define ARRAY_(...) ARRAY(__VA_ARGS__)

#define BOOL(M, f)                             ROW_(M, f, BOOL, bool, protobuf_c_boolean, .max = 1)
#define U32(M, f, lo, hi)                      ROW_(M, f, U32, uint32_t, uint32_t, .min = (lo), .max = (hi))
#define ENUM_(cs, ps, f, lo, hi, ctype, ptype) ROW(cs, ps, f, U32, ctype, ptype, .min = (lo), .max = (hi))
#define ENUM(...)                              ENUM_(__VA_ARGS__)
#define U64(M, f, lo)                          ROW_(M, f, U64, uint64_t, uint64_t, .min = (lo), .max = UINT64_MAX)
#define SEQ(M, f)                              ROW_(M, f, U64, uint64_t, uint64_t, .min = 1, .max = ESP_SEQ_VERIFY - 1)
#define F32(M, f, r)                           ROW_(M, f, F32, float, float, .rule = ESP_RULE_##r)
#define F64(M, f, r)                           ROW_(M, f, F64, double, double, .rule = ESP_RULE_##r)
#define STR(M, f, r, lo, hi)                                                                                 \
    ROW_(M, f, STR, const char *, char *, .rule = ESP_RULE_##r, .min = (lo), .max = (hi))
#define SUB_(cs, ps, f, t)                                                                                   \
    {                                                                                                        \
        .name = #f, .type = ESP_WIRE_SUB, .c = offsetof(struct cs, f), .p = offsetof(ps, f),                 \
        .sub = &t##_table                                                                                    \
    }
#define SUB__(...)   SUB_(__VA_ARGS__)
#define SUB(M, f, t) SUB__(M, f, t)
/* A message inside whose fields lie in the outer structure. */
#define FLAT_(cs, ps, f, t)                                                                                  \
    {                                                                                                        \
        .name = #f, .type = ESP_WIRE_SUB, .c = 0, .p = offsetof(ps, f), .sub = &t##_table                    \
    }
#define FLAT__(...)   FLAT_(__VA_ARGS__)
#define FLAT(M, f, t) FLAT__(M, f, t)

#define BYTES32_(cs, ps, f)                                                                                  \
    {                                                                                                        \
        .name = #f, .type = ESP_WIRE_KEY, .c = offsetof(struct cs, f), .p = offsetof(ps, f)                  \
    }
#define BYTES32__(...) BYTES32_(__VA_ARGS__)
#define BYTES32(M, f)  BYTES32__(M, f)

#define U32S(M, f, n) ARRAY_(M, f, n_##f, U32S, const uint32_t *, uint32_t *, n, .max = UINT32_MAX)
#define U64S(M, f, n) ARRAY_(M, f, n_##f, U64S, const uint64_t *, uint64_t *, n, .min = 1, .max = UINT64_MAX)
#define F64S(M, f, n) ARRAY_(M, f, n_##f, F64S, const double *, double *, n, .rule = ESP_RULE_FINITE)
#define SUBS_(cs, ps, f, t, ctype, ptype, n)                                                                 \
    ARRAY(cs, ps, f, n_##f, SUBS, const struct ctype *, ptype **, n, .sub = &t##_table)
#define SUBS(...) SUBS_(__VA_ARGS__)

#define TABLE_(t, cs, ps, d)                                                                                 \
    static const struct esp_wire_table t##_table = {t##_fields, sizeof t##_fields / sizeof t##_fields[0],    \
                                                    sizeof(struct cs), &d##__descriptor}
#define TABLE__(...)   TABLE_(__VA_ARGS__)
#define TABLE(t, M, d) TABLE__(t, M, espalier__##d)

#define LABEL_MAX 255     /* bytes of a device's, driver's or file's name, a version, a state */
#define MS_MAX    3600000 /* an hour: fits every timer */

/* ---- joining ---- */

#define DEVICE esp_msg_device, Espalier__Device
static const struct esp_wire_field device_fields[] = {
    STR(DEVICE, name, LINE, 0, LABEL_MAX),
    STR(DEVICE, driver, LINE, 0, LABEL_MAX),
    U32(DEVICE, type, 0, 4),
    STR(DEVICE, variant, LINE, 0, LABEL_MAX),
    U64(DEVICE, memory_bytes, 1),
    U64(DEVICE, max_alloc_bytes, 0),
    F64(DEVICE, bandwidth, POSITIVE),
    F64(DEVICE, matmul_rate, POSITIVE),
};
TABLE(device, DEVICE, device);

#define HELLO esp_msg_hello, Espalier__Hello
static const struct esp_wire_field hello_fields[] = {
    STR(HELLO, name, NAME, 1, ESP_MAX_NAME),
    SUB(HELLO, device, device),
    STR(HELLO, endpoint, ENDPOINT, 1, ESP_MAX_ENDPOINT),
    BYTES32(HELLO, fingerprint),
    STR(HELLO, software, LINE, 0, LABEL_MAX),
    STR(HELLO, key, KEY, 0, ESP_KEY_TEXT),
    BOOL(HELLO, wants_weights),
    U64(HELLO, epoch, 0),
};
TABLE(hello, HELLO, hello);

#define WELCOME esp_msg_welcome, Espalier__Welcome
static const struct esp_wire_field welcome_fields[] = {
    U32(WELCOME, heartbeat_ms, 1, MS_MAX),
    U32(WELCOME, timeout_ms, 1, MS_MAX),
};
TABLE(welcome, WELCOME, welcome);

#define HEARTBEAT esp_msg_heartbeat, Espalier__Heartbeat
static const struct esp_wire_field heartbeat_fields[] = {
    U64(HEARTBEAT, epoch, 0),
    U32(HEARTBEAT, n_queued, 0, UINT32_MAX),
    U64(HEARTBEAT, kv_used_blocks, 0),
    U64(HEARTBEAT, stamp, 0),
    U64(HEARTBEAT, echo, 0),
    U32(HEARTBEAT, n_seqs, 0, UINT32_MAX),
    U32(HEARTBEAT, n_images, 0, UINT32_MAX),
};
TABLE(heartbeat, HEARTBEAT, heartbeat);

#define BYE esp_msg_bye, Espalier__Bye
static const struct esp_wire_field bye_fields[] = {
    STR(BYE, why, LINE, 0, ESP_MAX_TEXT),
};
TABLE(bye, BYE, bye);

#define ERROR esp_msg_error, Espalier__Error
static const struct esp_wire_field error_fields[] = {
    ENUM(ERROR, code, ESP_E_ARG, ESP_E_NUMBERS, esp_status, uint32_t),
    STR(ERROR, text, LINE, 0, ESP_MAX_TEXT),
    U64(ERROR, epoch, 0),
    U64(ERROR, step, 0),
    U64(ERROR, image, 0),
    U64(ERROR, session, 0),
};
TABLE(error, ERROR, error);

/* ---- placing ---- */

#define PLACE esp_msg_place, Espalier__Place
static const struct esp_wire_field place_fields[] = {
    U64(PLACE, epoch, 1),
    U32(PLACE, enc_lo, 0, UINT32_MAX),
    U32(PLACE, enc_hi, 0, UINT32_MAX),
    U32(PLACE, dec_lo, 0, UINT32_MAX),
    U32(PLACE, dec_hi, 0, UINT32_MAX),
    BOOL(PLACE, patch),
    BOOL(PLACE, projector),
    BOOL(PLACE, embed),
    BOOL(PLACE, head),
    STR(PLACE, next_enc, ENDPOINT, 0, ESP_MAX_ENDPOINT),
    STR(PLACE, features_to, ENDPOINT, 0, ESP_MAX_ENDPOINT),
    STR(PLACE, next_dec, ENDPOINT, 0, ESP_MAX_ENDPOINT),
    U32(PLACE, max_rows, 0, ESP_MAX_ROWS),
    U32(PLACE, kv_tokens, 0, UINT32_MAX),
    U32(PLACE, max_seqs, 0, UINT32_MAX),
    U32(PLACE, max_images, 0, UINT32_MAX),
    BOOL(PLACE, final_softcap),
    STR(PLACE, next_enc_key, KEY, 0, ESP_KEY_TEXT),
    STR(PLACE, features_to_key, KEY, 0, ESP_KEY_TEXT),
    STR(PLACE, next_dec_key, KEY, 0, ESP_KEY_TEXT),
    U64(PLACE, carry, 0),
    U32(PLACE, n_moves, 0, ESP_MAX_STAGES),
    BOOL(PLACE, warm),
    U32(PLACE, weights, 0, 5),
};
TABLE(place, PLACE, place);

#define WARMED esp_msg_warmed, Espalier__Warmed
static const struct esp_wire_field warmed_fields[] = {
    U64(WARMED, epoch, 1),
    U64(WARMED, loaded_bytes, 0),
    U64(WARMED, weight_bytes, 0),
    F64(WARMED, seconds, NOT_NEGATIVE),
};
TABLE(warmed, WARMED, warmed);

#define MOVE esp_msg_move, Espalier__Move
static const struct esp_wire_field move_fields[] = {
    U64(MOVE, epoch, 1),
    U32(MOVE, dec_lo, 0, UINT32_MAX),
    U32(MOVE, dec_hi, 0, UINT32_MAX),
    U64S(MOVE, images, ESP_MAX_SEQS),
    STR(MOVE, to, ENDPOINT, 1, ESP_MAX_ENDPOINT),
    STR(MOVE, to_key, KEY, 0, ESP_KEY_TEXT),
};
TABLE(move, MOVE, move);

#define LOADING esp_msg_loading, Espalier__Loading
static const struct esp_wire_field loading_fields[] = {
    U64(LOADING, epoch, 1),
    U64(LOADING, done_bytes, 0),
    U64(LOADING, total_bytes, 0),
};
TABLE(loading, LOADING, loading);

#define READY esp_msg_ready, Espalier__Ready
static const struct esp_wire_field ready_fields[] = {
    U64(READY, epoch, 1),
    U64(READY, weight_bytes, 0),
    U64(READY, kv_bytes, 0),
    U64(READY, scratch_bytes, 0),
    F64(READY, load_seconds, NOT_NEGATIVE),
    U64(READY, kv_blocks, 0),
    U32(READY, block_tokens, 0, UINT32_MAX),
    U64(READY, loaded_bytes, 0),
};
TABLE(ready, READY, ready);

/* ---- weights over the wire ---- */

#define TENSOR_INFO esp_tensor_info, Espalier__TensorInfo
static const struct esp_wire_field tensor_info_fields[] = {
    U32(TENSOR_INFO, role, 0, UINT32_MAX),
    U32(TENSOR_INFO, layer, 0, UINT32_MAX),
    U32(TENSOR_INFO, dtype, 1, 7),
    ARRAY_(TENSOR_INFO, shape, n_dim, U64S, const uint64_t *, uint64_t *, 4, .min = 1, .max = UINT32_MAX),
};
TABLE(tensor_info, TENSOR_INFO, tensor_info);

#define MANIFEST esp_msg_manifest, Espalier__Manifest
static const struct esp_wire_field manifest_fields[] = {
    BYTES32(MANIFEST, fingerprint),
    U32(MANIFEST, chunk_bytes, ESP_MIN_CHUNK, ESP_MAX_CHUNK),
    SUBS(MANIFEST, tensors, tensor_info, esp_tensor_info, Espalier__TensorInfo, ESP_MAX_TENSORS),
};
TABLE(manifest, MANIFEST, manifest);

#define FETCH esp_msg_fetch, Espalier__Fetch
static const struct esp_wire_field fetch_fields[] = {
    U32(FETCH, tensor, 0, ESP_MAX_TENSORS - 1),
    U32(FETCH, chunk, 0, UINT32_MAX),
};
TABLE(fetch, FETCH, fetch);

#define CHUNK esp_msg_chunk, Espalier__Chunk
static const struct esp_wire_field chunk_fields[] = {
    U32(CHUNK, tensor, 0, ESP_MAX_TENSORS - 1),
    U32(CHUNK, chunk, 0, UINT32_MAX),
    STR(CHUNK, why, LINE, 0, ESP_MAX_TEXT),
};
TABLE(chunk, CHUNK, chunk);

/* ---- data path ---- */

#define STAGE_TIME esp_stage_time, Espalier__StageTime
static const struct esp_wire_field stage_time_fields[] = {
    STR(STAGE_TIME, worker, NAME, 1, ESP_MAX_NAME),
    F64(STAGE_TIME, queue_seconds, NOT_NEGATIVE),
    F64(STAGE_TIME, compute_seconds, NOT_NEGATIVE),
    U64(STAGE_TIME, received_bytes, 0),
};
TABLE(stage_time, STAGE_TIME, stage_time);
#define TIMES(M) SUBS(M, times, stage_time, esp_stage_time, Espalier__StageTime, ESP_MAX_STAGES)

#define PAYLOAD(M)                                                                                           \
    ENUM(M, payload, ESP_PAYLOAD_PIXELS, ESP_PAYLOAD_TOKENS, enum esp_payload, Espalier__Payload)
#define DTYPE_(cs, ps)                                                                                       \
    {                                                                                                        \
        .name = "dtype", .type = ESP_WIRE_DTYPE, .c = offsetof(struct cs, payload), .p = offsetof(ps, dtype) \
    }
#define DTYPE__(...) DTYPE_(__VA_ARGS__)
#define DTYPE(M)     DTYPE__(M)

#define ENCODE esp_msg_encode, Espalier__Encode
static const struct esp_wire_field encode_fields[] = {
    U64(ENCODE, epoch, 1),
    U64(ENCODE, image, 1),
    PAYLOAD(ENCODE),
    DTYPE(ENCODE),
    U32(ENCODE, rows, 1, ESP_MAX_ROWS),
    U32(ENCODE, width, 1, UINT32_MAX),
    BOOL(ENCODE, trace),
    TIMES(ENCODE),
};
TABLE(encode, ENCODE, encode);

#define STORED esp_msg_stored, Espalier__Stored
static const struct esp_wire_field stored_fields[] = {
    U64(STORED, epoch, 1),
    U64(STORED, image, 1),
    TIMES(STORED),
};
TABLE(stored, STORED, stored);

#define SEQ_ROWS esp_seq_rows, Espalier__SeqRows
static const struct esp_wire_field seq_rows_fields[] = {
    SEQ(SEQ_ROWS, seq),
    U32(SEQ_ROWS, pos, 0, UINT32_MAX),
    U32(SEQ_ROWS, n_tok, 1, ESP_MAX_ROWS),
    U32(SEQ_ROWS, n_prefix, 0, UINT32_MAX),
    U64S(SEQ_ROWS, images, ESP_MAX_BLOBS),
};
TABLE(seq_rows, SEQ_ROWS, seq_rows);

#define FORK esp_fork, Espalier__Fork
static const struct esp_wire_field fork_fields[] = {
    SEQ(FORK, seq),
    U64(FORK, from, 1),
};
TABLE(fork, FORK, fork);

#define WANT esp_want, Espalier__Want
static const struct esp_wire_field want_fields[] = {
    U32(WANT, row, 0, ESP_MAX_ROWS - 1), U32(WANT, k, 0, ESP_MAX_K), BOOL(WANT, has_target),
    U32(WANT, target, 0, UINT32_MAX),    BOOL(WANT, full),
};
TABLE(want, WANT, want);

#define STEP esp_msg_step, Espalier__Step
static const struct esp_wire_field step_fields[] = {
    U64(STEP, epoch, 1),
    U64(STEP, id, 1),
    PAYLOAD(STEP),
    DTYPE(STEP),
    U32(STEP, rows, 1, ESP_MAX_ROWS),
    U32(STEP, width, 1, UINT32_MAX),
    U64S(STEP, free, ESP_MAX_SEQS),
    SUBS(STEP, forks, fork, esp_fork, Espalier__Fork, ESP_MAX_SEQS),
    SUBS(STEP, seqs, seq_rows, esp_seq_rows, Espalier__SeqRows, ESP_MAX_SEQS),
    SUBS(STEP, wants, want, esp_want, Espalier__Want, ESP_MAX_ROWS),
    BOOL(STEP, trace),
    TIMES(STEP),
};
TABLE(step, STEP, step);

#define ROW_RESULT esp_row_result, Espalier__RowResult
static const struct esp_wire_field row_result_fields[] = {
    U32(ROW_RESULT, row, 0, ESP_MAX_ROWS - 1),
    F32(ROW_RESULT, lse, FINITE),
    F32(ROW_RESULT, target_logit, FINITE),
    ARRAY_(ROW_RESULT, ids, n, U32S, const uint32_t *, uint32_t *, ESP_MAX_K, .max = UINT32_MAX),
    ARRAY_(ROW_RESULT, logits, n, F32S, const float *, float *, ESP_MAX_K, .rule = ESP_RULE_FINITE,
           .counted = true),
};
TABLE(row_result, ROW_RESULT, row_result);

#define RESULT esp_msg_result, Espalier__Result
static const struct esp_wire_field result_fields[] = {
    U64(RESULT, epoch, 1),
    U64(RESULT, step, 1),
    SUBS(RESULT, rows, row_result, esp_row_result, Espalier__RowResult, ESP_MAX_ROWS),
    U32(RESULT, n_full, 0, ESP_MAX_ROWS),
    U32(RESULT, vocab, 0, UINT32_MAX),
    TIMES(RESULT),
};
TABLE(result, RESULT, result);

#define RELEASE esp_msg_release, Espalier__Release
static const struct esp_wire_field release_fields[] = {
    U64(RELEASE, epoch, 1),
    U64S(RELEASE, seqs, ESP_MAX_SEQS),
    U64S(RELEASE, images, ESP_MAX_SEQS),
};
TABLE(release, RELEASE, release);

#define KV_SEQ esp_kv_seq, Espalier__KvSeq
static const struct esp_wire_field kv_seq_fields[] = {
    SEQ(KV_SEQ, seq),
    U32(KV_SEQ, n_tok, 1, UINT32_MAX),
    U32S(KV_SEQ, blocks, ESP_MAX_KV_BLOCKS),
};
TABLE(kv_seq, KV_SEQ, kv_seq);

#define KV_BLOCKS esp_msg_kv_blocks, Espalier__KvBlocks
static const struct esp_wire_field kv_blocks_fields[] = {
    U64(KV_BLOCKS, epoch, 1),
    U32(KV_BLOCKS, layer, 0, UINT32_MAX),
    U32(KV_BLOCKS, first, 0, ESP_MAX_KV_BLOCKS),
    U32(KV_BLOCKS, n_blocks, 0, ESP_MAX_KV_BLOCKS),
    U32(KV_BLOCKS, total_blocks, 0, ESP_MAX_KV_BLOCKS),
    U32(KV_BLOCKS, block_tokens, 1, ESP_MAX_ROWS),
    U32(KV_BLOCKS, width, 1, UINT32_MAX),
    SUBS(KV_BLOCKS, seqs, kv_seq, esp_kv_seq, Espalier__KvSeq, ESP_MAX_SEQS),
};
TABLE(kv_blocks, KV_BLOCKS, kv_blocks);

#define MOVED esp_msg_moved, Espalier__Moved
static const struct esp_wire_field moved_fields[] = {
    U64(MOVED, epoch, 1),
    U32(MOVED, layer, 0, UINT32_MAX),
    U64(MOVED, kv_blocks, 0),
    U64(MOVED, n_bytes, 0),
};
TABLE(moved, MOVED, moved);

#define TRACE esp_msg_trace, Espalier__Trace
static const struct esp_wire_field trace_fields[] = {
    U64(TRACE, epoch, 0),
    U64(TRACE, step, 0),
    U64(TRACE, image, 0),
    STR(TRACE, name, NAME, 1, ESP_MAX_NAME),
    U32(TRACE, rows, 1, ESP_MAX_ROWS),
    U32(TRACE, width, 1, UINT32_MAX),
    U64(TRACE, session, 0),
};
TABLE(trace, TRACE, trace);

/* ---- clients ---- */

#define SAMPLING esp_msg_sampling, Espalier__Sampling
static const struct esp_wire_field sampling_fields[] = {
    F64(SAMPLING, temperature, NOT_NEGATIVE),
    U32(SAMPLING, top_k, 0, UINT32_MAX),
    F64(SAMPLING, top_p, NOT_NEGATIVE),
    U64(SAMPLING, seed, 0),
    U32(SAMPLING, best_of, 0, ESP_MAX_SEQS),
    U32(SAMPLING, beams, 0, ESP_MAX_SEQS),
    BOOL(SAMPLING, has_length_penalty),
    F64(SAMPLING, length_penalty, FINITE),
    U32S(SAMPLING, ban, ESP_MAX_BANS),
    BOOL(SAMPLING, ignore_eos),
    BOOL(SAMPLING, has_eos),
    U32(SAMPLING, eos, 0, UINT32_MAX),
};
TABLE(sampling, SAMPLING, sampling);

#define REQUEST esp_msg_request, Espalier__Request
static const struct esp_wire_field request_fields[] = {
    U64(REQUEST, id, 1),
    STR(REQUEST, prompt, TEXT, 0, ESP_MAX_TEXT),
    U32(REQUEST, max_tokens, 0, UINT32_MAX),
    SUB(REQUEST, sampling, sampling),
    STR(REQUEST, suffix, TEXT, 0, ESP_MAX_TEXT),
    BOOL(REQUEST, score),
    BOOL(REQUEST, no_eos),
    BOOL(REQUEST, trace),
    U32(REQUEST, n_images, 0, ESP_MAX_BLOBS),
    ARRAY_(REQUEST, image_names, n_images, STRS, const char *const *, char **, ESP_MAX_BLOBS,
           .rule = ESP_RULE_LINE, .max = LABEL_MAX, .counted = true),
    BYTES32(REQUEST, ticket),
};
TABLE(request, REQUEST, request);

#define RESUME esp_msg_resume, Espalier__Resume
static const struct esp_wire_field resume_fields[] = {
    BYTES32(RESUME, ticket),
    U64(RESUME, id, 1),
    U32(RESUME, have, 0, UINT32_MAX),
};
TABLE(resume, RESUME, resume);

#define STAGE_INFO esp_stage_info, Espalier__StageInfo
static const struct esp_wire_field stage_info_fields[] = {
    STR(STAGE_INFO, worker, NAME, 0, ESP_MAX_NAME), /* "": no stage, in a Status */
    STR(STAGE_INFO, device, LINE, 0, LABEL_MAX),
    STR(STAGE_INFO, driver, LINE, 0, LABEL_MAX),
    U32(STAGE_INFO, enc_lo, 0, UINT32_MAX),
    U32(STAGE_INFO, enc_hi, 0, UINT32_MAX),
    U32(STAGE_INFO, dec_lo, 0, UINT32_MAX),
    U32(STAGE_INFO, dec_hi, 0, UINT32_MAX),
    U64(STAGE_INFO, weight_bytes, 0),
    U64(STAGE_INFO, kv_bytes, 0),
    U64(STAGE_INFO, scratch_bytes, 0),
    BOOL(STAGE_INFO, software),
    STR(STAGE_INFO, variant, LINE, 0, LABEL_MAX),
};
TABLE(stage_info, STAGE_INFO, stage_info);

#define ACCEPTED esp_msg_accepted, Espalier__Accepted
static const struct esp_wire_field accepted_fields[] = {
    U64(ACCEPTED, session, 1),
    U32S(ACCEPTED, prompt_ids, ESP_MAX_ROWS),
    U32(ACCEPTED, image_tokens, 0, UINT32_MAX),
    SUBS(ACCEPTED, stages, stage_info, esp_stage_info, Espalier__StageInfo, ESP_MAX_STAGES),
};
TABLE(accepted, ACCEPTED, accepted);

#define WAITING esp_msg_waiting, Espalier__Waiting
static const struct esp_wire_field waiting_fields[] = {
    U64(WAITING, session, 1),
    STR(WAITING, what, LINE, 1, LABEL_MAX),
    U64(WAITING, done, 0),
    U64(WAITING, total, 0),
};
TABLE(waiting, WAITING, waiting);

#define TOKEN esp_msg_token, Espalier__Token
static const struct esp_wire_field token_fields[] = {
    U64(TOKEN, session, 1),      U32(TOKEN, index, 0, UINT32_MAX),        U32(TOKEN, id, 0, UINT32_MAX),
    F64(TOKEN, logprob, FINITE), STR(TOKEN, text, TEXT, 0, ESP_MAX_TEXT),
};
TABLE(token, TOKEN, token);

#define HYPOTHESIS esp_hypothesis, Espalier__Hypothesis
static const struct esp_wire_field hypothesis_fields[] = {
    STR(HYPOTHESIS, text, TEXT, 0, ESP_MAX_HEADER),
    U32S(HYPOTHESIS, ids, ESP_MAX_ROWS),
    F64S(HYPOTHESIS, logprobs, ESP_MAX_ROWS + 1),
    F64(HYPOTHESIS, sum, FINITE),
    F64(HYPOTHESIS, score, FINITE),
    STR(HYPOTHESIS, finish, NAME, 0, LABEL_MAX),
};
TABLE(hypothesis, HYPOTHESIS, hypothesis);

#define TIMING esp_msg_done, Espalier__Timing
static const struct esp_wire_field timing_fields[] = {
    F64(TIMING, load, NOT_NEGATIVE),      F64(TIMING, encode, NOT_NEGATIVE),
    F64(TIMING, prefill, NOT_NEGATIVE),   F64(TIMING, decode, NOT_NEGATIVE),
    F64(TIMING, queue, NOT_NEGATIVE),     U32(TIMING, images_cached, 0, UINT32_MAX),
    U32(TIMING, rebuilds, 0, UINT32_MAX),
};
TABLE(timing, TIMING, timing);

#define DONE esp_msg_done, Espalier__Done
static const struct esp_wire_field done_fields[] = {
    U64(DONE, session, 1),
    SUB(DONE, best, hypothesis),
    SUBS(DONE, hypotheses, hypothesis, esp_hypothesis, Espalier__Hypothesis, ESP_MAX_SEQS),
    FLAT(DONE, timing, timing),
    TIMES(DONE),
    SUBS(DONE, decode_times, stage_time, esp_stage_time, Espalier__StageTime, ESP_MAX_STAGES),
    U32(DONE, decode_steps, 0, UINT32_MAX),
    U64(DONE, result_bytes, 0),
};
TABLE(done, DONE, done);

#define CANCEL esp_msg_cancel, Espalier__Cancel
static const struct esp_wire_field cancel_fields[] = {
    U64(CANCEL, session, 1),
};
TABLE(cancel, CANCEL, cancel);

#define STATUS_QUERY esp_msg_status_query, Espalier__StatusQuery
static const struct esp_wire_field status_query_fields[] = {
    U64(STATUS_QUERY, id, 1),
};
TABLE(status_query, STATUS_QUERY, status_query);

#define STAGE_PLAN esp_stage_plan, Espalier__StagePlan
static const struct esp_wire_field stage_plan_fields[] = {
    F64(STAGE_PLAN, encode, NOT_NEGATIVE),
    F64(STAGE_PLAN, prefill, NOT_NEGATIVE),
    F64(STAGE_PLAN, decode, NOT_NEGATIVE),
};
TABLE(stage_plan, STAGE_PLAN, stage_plan);

#define WORKER_STATUS esp_worker_status, Espalier__WorkerStatus
static const struct esp_wire_field worker_status_fields[] = {
    STR(WORKER_STATUS, name, NAME, 1, ESP_MAX_NAME),
    SUB(WORKER_STATUS, device, device),
    STR(WORKER_STATUS, state, NAME, 1, LABEL_MAX),
    SUB(WORKER_STATUS, stage, stage_info),
    U64(WORKER_STATUS, done_bytes, 0),
    U64(WORKER_STATUS, total_bytes, 0),
    SUB(WORKER_STATUS, predicted, stage_plan),
    SUB(WORKER_STATUS, measured, stage_plan),
    F64(WORKER_STATUS, rtt, NOT_NEGATIVE),
    U32(WORKER_STATUS, n_queued, 0, UINT32_MAX),
    U64(WORKER_STATUS, kv_used_blocks, 0),
    U64(WORKER_STATUS, kv_blocks, 0),
    U32(WORKER_STATUS, n_seqs, 0, UINT32_MAX),
    U32(WORKER_STATUS, n_images, 0, UINT32_MAX),
    F64(WORKER_STATUS, busy, NOT_NEGATIVE),
    STR(WORKER_STATUS, cause, LINE, 0, ESP_MAX_TEXT),
    BOOL(WORKER_STATUS, streams),
};
TABLE(worker_status, WORKER_STATUS, worker_status);

#define STATUS esp_msg_status, Espalier__Status
static const struct esp_wire_field status_fields[] = {
    U64(STATUS, id, 1),
    U64(STATUS, epoch, 0),
    BOOL(STATUS, ready),
    U32(STATUS, n_sessions, 0, UINT32_MAX),
    U32(STATUS, n_queued, 0, UINT32_MAX),
    SUBS(STATUS, workers, worker_status, esp_worker_status, Espalier__WorkerStatus, ESP_MAX_STAGES),
    STR(STATUS, why, LINE, 0, ESP_MAX_TEXT),
    U32(STATUS, n_waiting, 0, UINT32_MAX),
    F64(STATUS, tokens_per_second, NOT_NEGATIVE),
    F64(STATUS, uptime, NOT_NEGATIVE),
    U64(STATUS, n_tokens, 0),
    U64(STATUS, n_steps, 0),
    U64(STATUS, n_prefills, 0),
    U64(STATUS, n_rebuilds, 0),
    U64(STATUS, n_encodes, 0),
    U64(STATUS, n_cached, 0),
    U64(STATUS, n_losses, 0),
    U64(STATUS, n_moves, 0),
    U64(STATUS, kv_moved_bytes, 0),
    U64(STATUS, n_requests, 0),
    U64(STATUS, kv_blocks, 0),
    U64(STATUS, kv_used_blocks, 0),
    F64(STATUS, latency, NOT_NEGATIVE),
    F64(STATUS, bottleneck, NOT_NEGATIVE),
    U32(STATUS, fewer, 0, UINT32_MAX),
    F64(STATUS, fewer_latency, NOT_NEGATIVE),
    STR(STATUS, doing, LINE, 0, ESP_MAX_TEXT),
    BYTES32(STATUS, fingerprint),
    U32(STATUS, weights, 0, 5),
};
TABLE(status, STATUS, status);

/* ---- operating ---- */

#define DRAIN esp_msg_drain, Espalier__Drain
static const struct esp_wire_field drain_fields[] = {
    U64(DRAIN, id, 1),
    STR(DRAIN, worker, NAME, 1, ESP_MAX_NAME),
};
TABLE(drain, DRAIN, drain);

#define DRAINED esp_msg_drained, Espalier__Drained
static const struct esp_wire_field drained_fields[] = {
    U64(DRAINED, id, 1),
    STR(DRAINED, worker, NAME, 1, ESP_MAX_NAME),
    U64(DRAINED, epoch, 0),
    U32(DRAINED, n_layers, 0, UINT32_MAX),
    U64(DRAINED, kv_bytes, 0),
    U32(DRAINED, n_images, 0, UINT32_MAX),
    F64(DRAINED, seconds, NOT_NEGATIVE),
    F64(DRAINED, pause, NOT_NEGATIVE),
};
TABLE(drained, DRAINED, drained);

#define VERIFY esp_msg_verify, Espalier__Verify
static const struct esp_wire_field verify_fields[] = {
    U64(VERIFY, id, 1),
    U64(VERIFY, epoch, 1),
};
TABLE(verify, VERIFY, verify);

#define VERIFIED esp_msg_verified, Espalier__Verified
static const struct esp_wire_field verified_fields[] = {
    U64(VERIFIED, id, 1),
    U64(VERIFIED, epoch, 1),
    STR(VERIFIED, layer, NAME, 1, ESP_MAX_NAME),
    F64(VERIFIED, error, NOT_NEGATIVE),
    F64(VERIFIED, limit, NOT_NEGATIVE),
    U32(VERIFIED, done, 1, UINT32_MAX),
    U32(VERIFIED, total, 1, UINT32_MAX),
};
TABLE(verified, VERIFIED, verified);

#define VERIFY_QUERY esp_msg_verify_query, Espalier__VerifyQuery
static const struct esp_wire_field verify_query_fields[] = {
    U64(VERIFY_QUERY, id, 1),
};
TABLE(verify_query, VERIFY_QUERY, verify_query);

#define VERIFY_REPORT esp_msg_verify_report, Espalier__VerifyReport
static const struct esp_wire_field verify_report_fields[] = {
    U64(VERIFY_REPORT, id, 1),
    STR(VERIFY_REPORT, worker, NAME, 0, ESP_MAX_NAME),
    STR(VERIFY_REPORT, device, LINE, 0, LABEL_MAX),
    STR(VERIFY_REPORT, driver, LINE, 0, LABEL_MAX),
    STR(VERIFY_REPORT, layer, NAME, 0, ESP_MAX_NAME),
    F64(VERIFY_REPORT, error, NOT_NEGATIVE),
    F64(VERIFY_REPORT, limit, NOT_NEGATIVE),
    U32(VERIFY_REPORT, done, 0, UINT32_MAX),
    U32(VERIFY_REPORT, total, 0, UINT32_MAX),
    U32(VERIFY_REPORT, n_workers, 0, ESP_MAX_STAGES),
    U32(VERIFY_REPORT, n_left, 0, ESP_MAX_STAGES),
    STR(VERIFY_REPORT, why, LINE, 0, ESP_MAX_TEXT),
};
TABLE(verify_report, VERIFY_REPORT, verify_report);

/* ---- kinds ---- */

#define KIND(K, f, chk)                                                                                      \
    {                                                                                                        \
        (enum esp_msg_kind)(                                                                                 \
            ESP_MSG_##K + 0 * sizeof(char[(int)ESP_MSG_##K == (int)ESPALIER__ENVELOPE__BODY_##K ? 1 : -1])), \
            #f, &f##_table, offsetof(struct esp_msg, f), chk                                                 \
    }
static const struct esp_wire_kind kinds[] = {
    KIND(HELLO, hello, esp_check_plain),
    KIND(WELCOME, welcome, esp_check_welcome),
    KIND(PLACE, place, esp_check_place),
    KIND(LOADING, loading, esp_check_loading),
    KIND(READY, ready, esp_check_ready),
    KIND(HEARTBEAT, heartbeat, esp_check_plain),
    KIND(BYE, bye, esp_check_plain),
    KIND(ERROR, error, esp_check_plain),
    KIND(ENCODE, encode, esp_check_encode),
    KIND(STORED, stored, esp_check_plain),
    KIND(STEP, step, esp_check_step),
    KIND(RESULT, result, esp_check_result),
    KIND(RELEASE, release, esp_check_plain),
    KIND(TRACE, trace, esp_check_trace),
    KIND(REQUEST, request, esp_check_request),
    KIND(ACCEPTED, accepted, esp_check_accepted),
    KIND(WAITING, waiting, esp_check_plain),
    KIND(TOKEN, token, esp_check_plain),
    KIND(DONE, done, esp_check_done),
    KIND(CANCEL, cancel, esp_check_plain),
    KIND(STATUS_QUERY, status_query, esp_check_plain),
    KIND(STATUS, status, esp_check_status),
    KIND(WARMED, warmed, esp_check_warmed),
    KIND(MOVE, move, esp_check_move),
    KIND(KV_BLOCKS, kv_blocks, esp_check_kv_blocks),
    KIND(MOVED, moved, esp_check_plain),
    KIND(RESUME, resume, esp_check_resume),
    KIND(DRAIN, drain, esp_check_plain),
    KIND(DRAINED, drained, esp_check_plain),
    KIND(VERIFY_QUERY, verify_query, esp_check_plain),
    KIND(VERIFY_REPORT, verify_report, esp_check_verify_report),
    KIND(MANIFEST, manifest, esp_check_manifest),
    KIND(FETCH, fetch, esp_check_plain),
    KIND(CHUNK, chunk, esp_check_chunk),
    KIND(VERIFY, verify, esp_check_plain),
    KIND(VERIFIED, verified, esp_check_verified),
};

const struct esp_wire_kind *esp_wire_kind_find(enum esp_msg_kind kind)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (kinds[i].kind == kind)
            return &kinds[i];
    }
    return NULL;
}

const char *esp_msg_name(enum esp_msg_kind kind)
{
    const struct esp_wire_kind *k = esp_wire_kind_find(kind);
    return k ? k->name : "no such message";
}
