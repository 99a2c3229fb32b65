/**
 * Messages as C structures: pack, unpack, validate.
 *
 * wire*.c alone see protobuf-c's types. What esp_wire_unpack hands out has passed every check that can be made
 * without knowing the receiver's state: version, kind, enum values, counts, string lengths and contents (UTF-8,
 * no control characters in names), number and sizes of the raw frames against the header. What depends on
 * state (epoch, positions, this worker's width) the receiver checks.
 *
 * A message is sent only if it would be accepted: packing makes the same checks. One thing it forgives: strings that are
 * one line for people (causes, names of devices, drivers and files) may hold anything when sent; what is not
 * UTF-8 and control characters become '?', and what is too long is cut, because a cause must get through.
 *
 * Conversation and meaning of every field: proto/espalier.proto.
 */
#ifndef ESP_PROTO_WIRE_H
#define ESP_PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_PROTO_VERSION  4u
#define ESP_MAX_NAME       63          /* bytes of a worker's name */
#define ESP_MAX_TEXT       65536       /* bytes of a prompt, a suffix, an error or a piece of text */
#define ESP_MAX_ENDPOINT   255         /* bytes */
#define ESP_MAX_HEADER     (8u << 20)  /* bytes of frame 0 */
#define ESP_MAX_FRAME      (1u << 30)  /* bytes of a raw frame */
#define ESP_MAX_IMAGE_FILE (64u << 20) /* bytes of an image file */
#define ESP_MAX_BLOBS      64          /* raw frames in one message: images of one request */
#define ESP_MAX_ROWS       131072      /* rows of a step */
#define ESP_MAX_SEQS       1024        /* sequences, forks, frees in one step */
#define ESP_SEQ_VERIFY     UINT64_MAX  /* the sequence of a worker's check of itself: refused from the wire */
#define ESP_MAX_K          256         /* candidates of a row */
#define ESP_MAX_STAGES     1024
#define ESP_MAX_BANS       4096
#define ESP_MAX_TENSORS    65536
#define ESP_MAX_KV_BLOCKS  (1u << 20) /* of a layer */
#define ESP_TICKET_BYTES   32
#define ESP_HASH_BYTES     32 /* of a chunk of weights */
#define ESP_MIN_CHUNK      (64u << 10)
#define ESP_MAX_CHUNK      (16u << 20)

/** The oneof's field numbers. */
enum esp_msg_kind {
    ESP_MSG_NONE = 0,
    ESP_MSG_HELLO = 10,
    ESP_MSG_WELCOME = 11,
    ESP_MSG_PLACE = 12,
    ESP_MSG_LOADING = 13,
    ESP_MSG_READY = 14,
    ESP_MSG_HEARTBEAT = 15,
    ESP_MSG_BYE = 16,
    ESP_MSG_ERROR = 17,
    ESP_MSG_WARMED = 18,
    ESP_MSG_MOVE = 19,
    ESP_MSG_ENCODE = 20,
    ESP_MSG_STORED = 21,
    ESP_MSG_STEP = 22,
    ESP_MSG_RESULT = 23,
    ESP_MSG_RELEASE = 24,
    ESP_MSG_TRACE = 25,
    ESP_MSG_KV_BLOCKS = 26,
    ESP_MSG_MOVED = 27,
    ESP_MSG_REQUEST = 30,
    ESP_MSG_ACCEPTED = 31,
    ESP_MSG_WAITING = 32,
    ESP_MSG_TOKEN = 33,
    ESP_MSG_DONE = 34,
    ESP_MSG_CANCEL = 35,
    ESP_MSG_STATUS_QUERY = 36,
    ESP_MSG_STATUS = 37,
    ESP_MSG_RESUME = 38,
    ESP_MSG_DRAIN = 39,
    ESP_MSG_DRAINED = 40,
    ESP_MSG_VERIFY_QUERY = 41,
    ESP_MSG_VERIFY_REPORT = 42,
    ESP_MSG_MANIFEST = 50,
    ESP_MSG_FETCH = 51,
    ESP_MSG_CHUNK = 52,
    ESP_MSG_VERIFY = 53,
    ESP_MSG_VERIFIED = 54
};

enum esp_payload {
    ESP_PAYLOAD_UNSET = 0,
    ESP_PAYLOAD_PIXELS = 1,   /* f32[3,S,S] */
    ESP_PAYLOAD_ROWS = 2,     /* f32[T,D] */
    ESP_PAYLOAD_FEATURES = 3, /* f32[N,D] */
    ESP_PAYLOAD_TOKENS = 4    /* i32[T] */
};

/* All pointers below are borrowed: on receipt from the message (until esp_msg_finish), for sending from the caller.
 * Strings are NUL-terminated UTF-8 and never NULL on receipt; NULL means "" for sending. */

struct esp_msg_device {
    const char *name, *driver, *variant;
    uint32_t type; /* VkPhysicalDeviceType */
    uint64_t memory_bytes, max_alloc_bytes;
    double bandwidth, matmul_rate;
};

struct esp_msg_hello {
    const char *name;
    struct esp_msg_device device;
    const char *endpoint;
    uint8_t fingerprint[32];
    const char *software;
    const char *key; /* of the data socket, in Z85; "" without keys */
    bool wants_weights;
    uint64_t epoch;
};

struct esp_msg_welcome {
    uint32_t heartbeat_ms, timeout_ms;
};

struct esp_msg_heartbeat {
    uint64_t epoch;
    uint32_t n_queued;
    uint64_t kv_used_blocks;
    uint64_t stamp, echo;
    uint32_t n_seqs, n_images;
};

struct esp_msg_bye {
    const char *why;
};

struct esp_msg_error {
    esp_status code;
    const char *text;
    uint64_t epoch, step, image, session;
};

struct esp_msg_place {
    uint64_t epoch;
    uint32_t enc_lo, enc_hi, dec_lo, dec_hi;
    bool patch, projector, embed, head;
    const char *next_enc, *features_to, *next_dec;
    uint32_t max_rows, kv_tokens, max_seqs, max_images;
    bool final_softcap;
    const char *next_enc_key, *features_to_key, *next_dec_key; /* Z85; "" without keys */
    uint64_t carry;
    uint32_t n_moves;
    bool warm;
    uint32_t weights; /* model/wtype.h: enum esp_wtype */
};

struct esp_msg_warmed {
    uint64_t epoch, loaded_bytes, weight_bytes;
    double seconds;
};

struct esp_msg_move {
    uint64_t epoch;
    uint32_t dec_lo, dec_hi, n_images;
    const uint64_t *images;
    const char *to, *to_key;
};

struct esp_msg_loading {
    uint64_t epoch, done_bytes, total_bytes;
};

struct esp_msg_ready {
    uint64_t epoch, weight_bytes, kv_bytes, scratch_bytes;
    double load_seconds;
    uint64_t kv_blocks;
    uint32_t block_tokens;
    uint64_t loaded_bytes;
};

struct esp_tensor_info {
    uint32_t role, layer, dtype; /* dtype: 1 f32, 2 f16, 3 bf16, 6 q8, 7 q4 */
    uint32_t n_dim;
    const uint64_t *shape;
};

struct esp_msg_manifest { /* blob[0]: config.json; blob[1]: hashes, ESP_HASH_BYTES each */
    uint8_t fingerprint[32];
    uint32_t chunk_bytes, n_tensors;
    const struct esp_tensor_info *tensors;
};

struct esp_msg_fetch {
    uint32_t tensor, chunk;
};

struct esp_msg_chunk { /* blob[0]: 1 .. ESP_MAX_CHUNK bytes, unless `why` */
    uint32_t tensor, chunk;
    const char *why;
};

struct esp_stage_time {
    const char *worker;
    double queue_seconds, compute_seconds;
    uint64_t received_bytes; /* of the message that brought the work */
};

struct esp_msg_encode { /* blob[0]: f32, rows * width elements */
    uint64_t epoch, image;
    enum esp_payload payload; /* PIXELS, ROWS or FEATURES */
    uint32_t rows, width;
    bool trace;
    uint32_t n_times;
    const struct esp_stage_time *times;
};

struct esp_msg_stored {
    uint64_t epoch, image;
    uint32_t n_times;
    const struct esp_stage_time *times;
};

struct esp_seq_rows {
    uint64_t seq;
    uint32_t pos, n_tok, n_prefix;
    uint32_t n_images;
    const uint64_t *images;
};

struct esp_fork {
    uint64_t seq, from;
};

struct esp_want {
    uint32_t row, k;
    bool has_target, full;
    uint32_t target;
};

struct esp_msg_step { /* blob[0]: i32[rows] for TOKENS, f32[rows,width] for ROWS */
    uint64_t epoch, id;
    enum esp_payload payload; /* TOKENS or ROWS */
    uint32_t rows, width;
    uint32_t n_free, n_forks, n_seqs, n_wants, n_times;
    const uint64_t *free;
    const struct esp_fork *forks;
    const struct esp_seq_rows *seqs; /* n_tok sum to rows */
    const struct esp_want *wants;    /* rows grow and are < rows */
    bool trace;
    const struct esp_stage_time *times;
};

struct esp_row_result {
    uint32_t row;
    float lse, target_logit;
    uint32_t n; /* candidates */
    const uint32_t *ids;
    const float *logits;
};

struct esp_msg_result { /* blob[0], when n_full > 0: f32[n_full, vocab] */
    uint64_t epoch, step;
    uint32_t n_rows, n_full, vocab, n_times;
    const struct esp_row_result *rows;
    const struct esp_stage_time *times;
};

struct esp_msg_release {
    uint64_t epoch;
    uint32_t n_seqs, n_images;
    const uint64_t *seqs, *images;
};

struct esp_kv_seq {
    uint64_t seq;
    uint32_t n_tok, n_blocks;
    const uint32_t *blocks; /* each below total_blocks */
};

struct esp_msg_kv_blocks { /* blob[0], when n_blocks > 0: f32[n_blocks, block_tokens, width] */
    uint64_t epoch;
    uint32_t layer, first, n_blocks, total_blocks, block_tokens, width;
    uint32_t n_seqs;
    const struct esp_kv_seq *seqs;
};

struct esp_msg_moved {
    uint64_t epoch;
    uint32_t layer;
    uint64_t kv_blocks, n_bytes;
};

struct esp_msg_trace { /* blob[0]: f32[rows, width] */
    uint64_t epoch, step, image, session;
    const char *name;
    uint32_t rows, width;
};

struct esp_msg_sampling {
    double temperature, top_p, length_penalty;
    uint64_t seed;
    uint32_t top_k, best_of, beams;
    bool has_length_penalty, ignore_eos, has_eos;
    uint32_t eos, n_ban;
    const uint32_t *ban;
};

struct esp_msg_request { /* blob[0 .. n_images-1]: image files */
    uint64_t id;
    const char *prompt;
    uint32_t max_tokens;
    struct esp_msg_sampling sampling;
    const char *suffix;
    bool score, no_eos, trace;
    uint32_t n_images;
    const char *const *image_names;
    uint8_t ticket[ESP_TICKET_BYTES]; /* zeros: none */
};

struct esp_msg_resume {
    uint8_t ticket[ESP_TICKET_BYTES];
    uint64_t id;
    uint32_t have;
};

struct esp_stage_info {
    const char *worker, *device, *driver, *variant;
    uint32_t enc_lo, enc_hi, dec_lo, dec_hi;
    uint64_t weight_bytes, kv_bytes, scratch_bytes;
    bool software;
};

struct esp_msg_accepted {
    uint64_t session;
    uint32_t n_prompt_ids, image_tokens, n_stages;
    const uint32_t *prompt_ids;
    const struct esp_stage_info *stages;
};

struct esp_msg_waiting {
    uint64_t session;
    const char *what;
    uint64_t done, total;
};

struct esp_msg_token {
    uint64_t session;
    uint32_t index, id;
    double logprob;
    const char *text;
};

struct esp_hypothesis {
    const char *text, *finish; /* finish: "eos" or "length" */
    uint32_t n_ids;            /* without the end token */
    const uint32_t *ids;
    uint32_t n_logprobs; /* n_ids, or one more: the end token's */
    const double *logprobs;
    double sum, score;
};

struct esp_msg_done {
    uint64_t session;
    struct esp_hypothesis best;
    uint32_t n_hypotheses, n_times;
    const struct esp_hypothesis *hypotheses;
    double load, encode, prefill, decode, queue; /* seconds */
    uint32_t images_cached, rebuilds;
    const struct esp_stage_time *times;
    uint32_t n_decode_times, decode_steps; /* decoding steps alone */
    const struct esp_stage_time *decode_times;
    uint64_t result_bytes;
};

struct esp_msg_cancel {
    uint64_t session;
};

struct esp_msg_status_query {
    uint64_t id;
};

struct esp_stage_plan {
    double encode, prefill, decode; /* seconds: of a request's pictures, its prompt, one token */
};

struct esp_worker_status {
    const char *name, *state, *cause;
    struct esp_msg_device device;
    struct esp_stage_info stage;
    uint64_t done_bytes, total_bytes;
    struct esp_stage_plan predicted, measured;
    double rtt, busy;
    uint32_t n_queued, n_seqs, n_images;
    uint64_t kv_used_blocks, kv_blocks;
    bool streams;
};

struct esp_msg_status {
    uint64_t id, epoch;
    bool ready;
    uint32_t n_sessions, n_queued, n_workers;
    const struct esp_worker_status *workers;
    const char *why, *doing;
    uint32_t n_waiting;
    double tokens_per_second, uptime;
    uint64_t n_tokens, n_steps, n_prefills, n_rebuilds, n_encodes, n_cached, n_losses, n_moves,
        kv_moved_bytes, n_requests, kv_blocks, kv_used_blocks;
    double latency, bottleneck;
    uint32_t fewer;
    double fewer_latency;
    uint8_t fingerprint[32]; /* of the checkpoint that is served; zeros: not told */
    uint32_t weights;        /* enum esp_wtype: what they are held as */
};

struct esp_msg_drain {
    uint64_t id;
    const char *worker;
};

struct esp_msg_drained {
    uint64_t id, epoch, kv_bytes;
    const char *worker;
    uint32_t n_layers, n_images;
    double seconds, pause;
};

struct esp_msg_verify {
    uint64_t id, epoch;
};

struct esp_msg_verified {
    uint64_t id, epoch;
    const char *layer;
    double error, limit;
    uint32_t done, total;
};

struct esp_msg_verify_query {
    uint64_t id;
};

struct esp_msg_verify_report {
    uint64_t id;
    const char *worker, *device, *driver, *layer, *why;
    double error, limit;
    uint32_t done, total, n_workers, n_left;
};

/**
 * A raw frame. Sending: if release is set, the bytes belong to the message from the call on (also when it fails) and
 * are sent without a copy; release is then called once, perhaps from another thread and after the call.
 * Received: release is set by the link; whoever wants to keep the bytes past esp_msg_finish may take the whole
 * esp_blob, leave zeroes there, and call release(data, hint) itself.
 */
struct esp_blob {
    const void *data; /* of no promised alignment on receipt: memcpy */
    size_t n_bytes;
    void (*release)(void *data, void *hint);
    void *hint;
};

struct esp_msg_store; /* what a received message keeps alive */

struct esp_msg {
    enum esp_msg_kind kind;
    union {
        struct esp_msg_hello hello;
        struct esp_msg_welcome welcome;
        struct esp_msg_place place;
        struct esp_msg_loading loading;
        struct esp_msg_ready ready;
        struct esp_msg_heartbeat heartbeat;
        struct esp_msg_bye bye;
        struct esp_msg_error error;
        struct esp_msg_encode encode;
        struct esp_msg_stored stored;
        struct esp_msg_step step;
        struct esp_msg_result result;
        struct esp_msg_release release;
        struct esp_msg_trace trace;
        struct esp_msg_request request;
        struct esp_msg_accepted accepted;
        struct esp_msg_waiting waiting;
        struct esp_msg_token token;
        struct esp_msg_done done;
        struct esp_msg_cancel cancel;
        struct esp_msg_status_query status_query;
        struct esp_msg_status status;
        struct esp_msg_warmed warmed;
        struct esp_msg_move move;
        struct esp_msg_kv_blocks kv_blocks;
        struct esp_msg_moved moved;
        struct esp_msg_resume resume;
        struct esp_msg_drain drain;
        struct esp_msg_drained drained;
        struct esp_msg_verify_query verify_query;
        struct esp_msg_verify_report verify_report;
        struct esp_msg_manifest manifest;
        struct esp_msg_fetch fetch;
        struct esp_msg_chunk chunk;
        struct esp_msg_verify verify;
        struct esp_msg_verified verified;
    };
    uint64_t n_bytes; /* of a received message: all frames */
    uint32_t n_blobs;
    struct esp_blob blob[ESP_MAX_BLOBS];
    struct esp_msg_store *store; /* NULL in a message made for sending */
};

/**
 * Frame 0 of a message. Checks what it packs as strictly as esp_wire_unpack does, so that a bug of ours shows here.
 * @param bytes  malloc'ed, the caller's; NULL on failure
 * Errors: ESP_E_PROTO with the reason, ESP_E_NOMEM.
 */
esp_status esp_wire_pack(uint8_t **bytes, size_t *n_bytes, const struct esp_msg *msg, struct esp_err *err);

/**
 * A message from its frames: frame 0 (borrowed for the call) and n_blobs raw ones, which *out points into. Blobs with a
 * release are *out's on success and stay the caller's on failure; the others are borrowed until esp_msg_finish.
 * Memory: at most 1 MiB + 32 bytes a header byte, never more than 64 MiB.
 * Errors: ESP_E_PROTO with the reason, ESP_E_NOMEM; *out is zeroed then. A version other than ours: ESP_E_PROTO naming
 * both.
 */
esp_status esp_wire_unpack(struct esp_msg *out, const void *header, size_t n_header,
                           const struct esp_blob *blobs, uint32_t n_blobs, struct esp_err *err);

/** Frees what a received message holds, and any blob with a release; clears it. A zeroed message is fine. */
void esp_msg_finish(struct esp_msg *msg);

/** "hello", "step", ...: for log lines. */
const char *esp_msg_name(enum esp_msg_kind kind);

#endif
