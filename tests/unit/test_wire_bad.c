/*
 * Bad messages: what the wire refuses, and in what words.
 *
 * A bad message is a good one with a change, written "field=value" in the words of espalier.proto, and made
 * through protobuf-c itself, so that it is the receiver that says no.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "proto/espalier.pb-c.h"
#include "proto/wire.h"
#include "tests/support/messages.h"

/* Unpacks from a block of exactly n bytes, so that a sanitizer sees the first byte too many. */
static esp_status unpack_exact(struct esp_msg *out, const uint8_t *bytes, size_t n,
                               const struct esp_blob *blobs, uint32_t n_blobs, struct esp_err *err)
{
    uint8_t *copy = malloc(n ? n : 1);
    esp_status st;

    assert_non_null(copy);
    memcpy(copy, bytes, n);
    st = esp_wire_unpack(out, copy, n, blobs, n_blobs, err);
    free(copy);
    return st;
}

static void pack_good(uint8_t **bytes, size_t *n, const struct esp_msg *msg)
{
    struct esp_err err = {0};

    if (esp_wire_pack(bytes, n, msg, &err) != ESP_OK)
        fail_msg("%s: %s", esp_msg_name(msg->kind), err.text);
}

struct bad_case {
    const char *from;   /* the good message */
    const char *change; /* "a.b[1].c=VALUE;...": fields of espalier.proto; LIST#=N cuts a list; blobs=N,
                           blob0=BYTES */
    const char *expect; /* fragment of the cause */
};

static const struct bad_case bad_cases[] = {
    {"hello", "name=", "hello: name: is empty"},
    {"hello", "name=w 1", "hello: name: byte 0x20"},
    {"hello", "name=w/1", "hello: name: byte 0x2f"},
    {"hello", "name=0123456789012345678901234567890123456789012345678901234567890123",
     "hello: name: 64 bytes, at most 63"},
    {"hello", "software=1\x1b[31m", "hello: software: control character 0x1b"},
    {"hello", "software=\xc2\x9b", "hello: software: control character 0x9b"},
    {"hello", "software=\xff", "hello: software: not UTF-8 at byte 0"},
    {"hello", "endpoint=", "hello: endpoint: is empty"},
    {"hello", "endpoint=http://a", "hello: endpoint: not an endpoint"},
    {"hello", "endpoint=tcp://", "hello: endpoint: not an endpoint"},
    {"hello", "endpoint=tcp://a b:1", "hello: endpoint: byte 0x20"},
    {"hello", "fingerprint=0123", "hello: fingerprint: 4 bytes, takes 32"},
    {"hello", "fingerprint=", "hello: fingerprint: 0 bytes, takes 32"},
    {"hello", "key=rq:rM", "hello: key: not a key"},
    {"hello", "key=#####>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", "hello: key: not a key"}, /* beyond 2^32 */
    {"hello", "key=rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf70", "hello: key: 41 bytes, at most 40"},
    {"hello", "device=", "hello: device.memory_bytes: 0"},
    {"hello", "device.type=5", "hello: device.type: 5, takes 0 .. 4"},
    {"hello", "device.memory_bytes=0", "hello: device.memory_bytes: 0"},
    {"hello", "device.bandwidth=0", "hello: device.bandwidth: 0 is not positive"},
    {"hello", "device.bandwidth=nan", "hello: device.bandwidth: "},
    {"hello", "device.matmul_rate=inf", "hello: device.matmul_rate: inf is not finite"},
    {"hello", "device.matmul_rate=-1", "hello: device.matmul_rate: -1 is not positive"},
    {"hello", "device.name=\xed\xa0\x80", "hello: device.name: not UTF-8 at byte 0"}, /* a surrogate */
    {"hello", "blobs=1", "hello: 1 raw frames, takes none"},
    {"welcome", "heartbeat_ms=0", "welcome: heartbeat_ms: 0"},
    {"welcome", "timeout_ms=1000", "welcome: timeout_ms: 1000, not above"},
    {"welcome", "timeout_ms=4000000000", "welcome: timeout_ms: 4000000000"},
    {"place", "weights=6", "place: weights: 6, takes 0 .. 5"},
    {"place", "epoch=0", "place: epoch: 0"},
    {"place", "enc_lo=28", "place: layers [28,27)"},
    {"place", "dec_lo=10", "place: layers [0,27) and [10,9)"},
    {"place", "patch=0", "place: patch 0 with encoder layers [0,27)"},
    {"place", "enc_lo=1", "place: patch 1 with encoder layers [1,27)"},
    {"place", "embed=0", "place: embed 0 with decoder layers [0,9)"},
    {"place", "dec_hi=0", "place: embed 1 with decoder layers [0,0)"},
    {"place", "projector=0", "place: next_enc: \"\" with encoder layers"},
    {"place", "next_enc=ipc://z", "place: next_enc: \"ipc://z\""},
    {"place", "head=1", "place: next_dec: \"ipc:///tmp/x/w2\""},
    {"place", "next_dec=", "place: next_dec: \"\""},
    {"place", "next_dec=file:///etc", "place: next_dec: not an endpoint"},
    {"place", "next_dec_key=short", "place: next_dec_key: not a key"},
    {"place.last_decoder", "next_dec_key=rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
     "place: a key of a stage that is not named"},
    {"place", "max_rows=0", "place: decoder layers with max_rows 0"},
    {"place", "max_rows=131073", "place: max_rows: 131073"},
    {"place", "kv_tokens=0", "kv_tokens 0"},
    {"place", "max_seqs=0", "max_seqs 0"},
    {"place.spare", "projector=1", "place: projector without encoder layers"},
    {"place.spare", "head=1", "place: head without decoder layers"},
    {"place.first_encoder", "features_to=ipc://z", "place: features_to: \"ipc://z\""},
    {"place.first_encoder", "projector=1;next_enc=", "place: features_to: \"\""},
    {"place.carry", "carry=3", "place: carry: epoch 3 into epoch 3"},
    {"place.carry", "carry=0", "place: n_moves: 4, but nothing is carried"},
    {"place.carry", "warm=1", "place: n_moves: 4, but nothing is carried"},
    {"warmed", "loaded_bytes=6000000001", "warmed: 6000000001 bytes loaded of"},
    {"warmed", "epoch=0", "warmed: epoch: 0"},
    {"move", "dec_lo=10", "move: layers [10,9)"},
    {"move.least", "dec_hi=0", "move: of nothing"},
    {"move", "to=", "move: to: is empty"},
    {"move", "to_key=short", "move: to_key: not a key"},
    {"kv_blocks", "first=2", "kv_blocks: blocks [2,4) of 3"},
    {"kv_blocks", "n_blocks=0;blobs=0", "kv_blocks: no blocks of 3"},
    {"kv_blocks", "seqs[0].n_tok=7", "kv_blocks: seqs[0]: 3 blocks of 2 for 7 tokens"},
    {"kv_blocks", "seqs[0].n_tok=0", "kv_blocks: seqs[0].n_tok: 0"},
    {"kv_blocks", "seqs[1].seq=3", "kv_blocks: seqs[1]: sequence 3 twice"},
    {"kv_blocks", "total_blocks=1048577", "kv_blocks: total_blocks: 1048577"},
    {"kv_blocks", "total_blocks=2;first=0", "kv_blocks: seqs[0]: block 2 of 2"},
    {"kv_blocks", "width=5", "kv_blocks: raw frame of 64 bytes for [2,10]"},
    {"kv_blocks", "block_tokens=0", "kv_blocks: block_tokens: 0"},
    {"kv_blocks.none", "blobs=1", "kv_blocks: 1 raw frames, takes none"},
    {"manifest", "fingerprint=12", "manifest: fingerprint: 2 bytes, takes 32"},
    {"manifest", "chunk_bytes=65535", "manifest: chunk_bytes: 65535"},
    {"manifest", "chunk_bytes=65537", "manifest: chunk_bytes: 65537 is no power of two"},
    {"manifest", "tensors#=0", "manifest: no tensors"},
    {"manifest", "tensors[0].dtype=8", "manifest: tensors[0].dtype: 8, takes 1 .. 7"},
    {"manifest", "tensors[0].dtype=4", "manifest: tensors[0]: dtype 4"},
    {"manifest", "tensors[0].dtype=5", "manifest: tensors[0]: dtype 5"},
    {"manifest", "tensors[0].shape#=0", "manifest: tensors[0]: no shape"},
    {"manifest", "tensors[0].shape[0]=4000000;tensors[0].shape[1]=4000000",
     "manifest: tensors[0]: too large"},
    {"manifest", "tensors#=1", "manifest: hashes of 64 bytes for 1 chunks"},
    {"manifest", "blobs=1", "manifest: 1 raw frames, takes 2"},
    {"fetch", "tensor=65536", "fetch: tensor: 65536"},
    {"chunk", "blobs=0", "chunk: 0 raw frames, takes 1"},
    {"chunk.not", "blobs=1", "chunk: 1 raw frames, takes none"},
    {"drain", "worker=", "drain: worker: is empty"},
    {"resume", "ticket=", "resume: ticket: 0 bytes, takes 32"},
    {"resume", "id=0", "resume: id: 0"},
    {"verified", "done=28", "verified: 28 done of 27"},
    {"verified", "error=nan", "verified: error: "},
    {"verify_report", "n_left=4", "verify_report: 8 done of 9, 4 left of 3 workers"},
    {"loading", "epoch=0", "loading: epoch: 0"},
    {"loading", "done_bytes=6000000001", "loading: 6000000001 bytes done of 6000000000"},
    {"ready", "load_seconds=-1", "ready: load_seconds: -1 is negative"},
    {"ready", "block_tokens=0", "ready: KV blocks of no tokens"},
    {"bye", "why=a\nb", "bye: why: control character 0x0a"},
    {"error", "code=0", "error: code: 0, takes 1 .. 13"},
    {"error", "code=14", "error: code: 14"},
    {"encode", "epoch=0", "encode: epoch: 0"},
    {"encode", "image=0", "encode: image: 0"},
    {"encode", "payload=0", "encode: payload: 0"},
    {"encode", "payload=9", "encode: payload: 9"},
    {"encode", "payload=-1", "encode: payload: 4294967295"},
    {"encode", "payload=4;dtype=4", "encode: payload: tokens"},
    {"encode", "dtype=0", "encode: dtype: 0 with payload 1"},
    {"encode", "dtype=2", "encode: dtype: 2 with payload 1"},
    {"encode", "rows=0", "encode: rows: 0"},
    {"encode", "rows=131073", "encode: rows: 131073"},
    {"encode", "rows=7", "encode: pixels of [7,2]"},
    {"encode", "rows=3", "encode: pixels of [3,2]"},
    {"encode", "blobs=0", "encode: 0 raw frames, takes 1"},
    {"encode", "blobs=2", "encode: 2 raw frames, takes 1"},
    {"encode", "blob0=47", "encode: raw frame of 47 bytes for [6,2]"},
    {"encode.rows", "width=0", "encode: width: 0"},
    {"encode.rows", "rows=65536;width=65536", "encode: raw frame of 4 bytes for [65536,65536]"},
    {"encode.rows", "rows=131072;width=4294967295", "encode: raw frame of 4 bytes"},
    {"encode", "times[1].worker=", "encode: times[1].worker: is empty"},
    {"encode", "times[0].queue_seconds=-0.5", "encode: times[0].queue_seconds: -0.5 is negative"},
    {"encode", "times[0].compute_seconds=nan", "encode: times[0].compute_seconds: "},
    {"stored", "image=0", "stored: image: 0"},
    {"step", "id=0", "step: id: 0"},
    {"step", "payload=1", "step: payload: 1, takes tokens or rows"},
    {"step", "payload=4;dtype=4", "step: width: 3, is 1 for tokens"},
    {"step", "dtype=4", "step: dtype: 4 with payload 2"},
    {"step", "rows=0", "step: rows: 0"},
    {"step", "rows=7", "step: 7 rows, but the sequences have 6"},
    {"step", "seqs[0].n_tok=0", "step: seqs[0].n_tok: 0"},
    {"step", "seqs[1].n_tok=131073", "step: seqs[1].n_tok: 131073"},
    {"step", "seqs[1].n_tok=131072;seqs[0].n_tok=131072", "step: 6 rows, but the sequences have 262144"},
    {"step", "seqs[1].seq=0", "step: seqs[1].seq: 0"},
    {"step", "seqs[1].seq=3", "step: seqs[1]: sequence 3 twice"},
    {"step", "seqs[1].pos=4294967294", "step: seqs[1]: 2 rows from position 4294967294"},
    {"step", "seqs[1].pos=5", "step: seqs[1]: 2 rows from position 5 do not hold the whole prefix of 9"},
    {"step", "seqs[0].n_prefix=5", "step: seqs[0]: 4 rows from position 0 do not hold"},
    {"step", "seqs[0].pos=9", "step: seqs[0]: images at position 9"},
    {"step", "seqs[0].images[1]=0", "step: seqs[0].images[1]: 0"},
    {"step", "seqs#=1", "step: 6 rows, but the sequences have 4"},
    {"step", "free[0]=0", "step: free[0]: 0"},
    {"step", "forks[0].seq=0", "step: forks[0].seq: 0"},
    {"step", "forks[1].from=0", "step: forks[1].from: 0"},
    {"step", "forks[1].from=8", "step: forks[1]: of itself"},
    {"step", "wants[1].k=257", "step: wants[1].k: 257"},
    {"step", "wants[1].row=0", "step: wants[1]: row 0 after row 0"},
    {"step", "wants[2].row=1", "step: wants[2]: row 1 after row 3"},
    {"step", "wants[2].row=6", "step: wants[2]: row 6 of 6"},
    {"step", "blob0=76", "step: raw frame of 76 bytes for [6,3]"},
    {"step", "times[0].worker=a b", "step: times[0].worker: byte 0x20"},
    {"result", "step=0", "result: step: 0"},
    {"result", "rows[0].lse=nan", "result: rows[0].lse: "},
    {"result", "rows[1].lse=-inf", "result: rows[1].lse: -inf is not finite"},
    {"result", "rows[0].target_logit=inf", "result: rows[0].target_logit: inf"},
    {"result", "rows[0].logits[1]=nan", "result: rows[0].logits[1]: "},
    {"result", "rows[0].logits[1]=12.75", "result: rows[0]: candidate 1 (id 9, 12.75) after (id 5, 12.5)"},
    {"result", "rows[0].ids[1]=4", "result: rows[0]: candidate 1 (id 4, 12.5) after (id 5, 12.5)"},
    {"result", "rows[0].logits#=3", "result: rows[0].logits: 3 entries, should be 4"},
    {"result", "rows[0].ids#=0", "result: rows[0].logits: 4 entries, should be 0"},
    {"result", "rows[1].row=3", "result: rows[1]: row 3 after row 3"},
    {"result", "n_full=3", "result: n_full: 3 of 2 rows"},
    {"result", "n_full=0", "result: 1 raw frames, takes none"},
    {"result", "n_full=2", "result: raw frame of 20 bytes for [2,5]"},
    {"result", "vocab=0", "result: vocab: 0 with full logits"},
    {"result", "blobs=0", "result: 0 raw frames, takes 1"},
    {"release", "epoch=0", "release: epoch: 0"},
    {"release", "seqs[1]=0", "release: seqs[1]: 0"},
    {"release", "images[0]=0", "release: images[0]: 0"},
    {"trace", "name=../x", "trace: name: byte 0x2f"},
    {"trace", "image=2", "trace: of a step and of an image"},
    {"trace", "step=0;session=0", "trace: of no session, step or image"},
    {"trace", "epoch=0;session=0", "trace: of no session, step or image"},
    {"trace", "width=4", "trace: raw frame of 24 bytes for [2,4]"},
    {"request", "id=0", "request: id: 0"},
    {"request", "prompt=\xc0\xaf", "request: prompt: not UTF-8 at byte 0"},           /* overlong */
    {"request", "prompt=ab\xf4\x90\x80\x80", "request: prompt: not UTF-8 at byte 2"}, /* past U+10FFFF */
    {"request", "suffix=\xe2\x82", "request: suffix: not UTF-8 at byte 0"},           /* cut short */
    {"request", "max_tokens=0;score=0", "request: max_tokens: 0"},
    {"request", "sampling.temperature=-0.1", "request: sampling.temperature: -0.1 is negative"},
    {"request", "sampling.temperature=nan", "request: sampling.temperature: "},
    {"request", "sampling.top_p=1.5", "request: sampling.top_p: 1.5, takes 0 .. 1"},
    {"request", "sampling.top_p=-1", "request: sampling.top_p: -1 is negative"},
    {"request", "sampling.length_penalty=inf", "request: sampling.length_penalty: inf"},
    {"request", "sampling.best_of=1025", "request: sampling.best_of: 1025"},
    {"request", "sampling.beams=4000000000", "request: sampling.beams: 4000000000"},
    {"request", "n_images=65", "request: "},
    {"request", "n_images=1", "request: image_names: 2 entries, should be 1"},
    {"request", "image_names#=1", "request: image_names: 1 entries, should be 2"},
    {"request", "image_names[0]=a\nb", "request: image_names[0]: control character 0x0a"},
    {"request", "blobs=1", "request: 1 raw frames for 2 images"},
    {"request", "blob1=0", "request: image 1: a file of 0 bytes"},
    {"request", "blob1=67108865", "request: image 1: a file of 67108865 bytes"},
    {"accepted", "session=0", "accepted: session: 0"},
    {"accepted", "stages[1].worker=", "accepted: stages[1]: no worker's name"},
    {"accepted", "stages[0].enc_lo=28", "accepted: stages[0]: layers [28,27)"},
    {"waiting", "what=", "waiting: what: is empty"},
    {"waiting", "what=a\x1b]", "waiting: what: control character 0x1b"},
    {"token", "session=0", "token: session: 0"},
    {"token", "logprob=-inf", "token: logprob: -inf is not finite"},
    {"token", "text=\x80", "token: text: not UTF-8 at byte 0"},
    {"done", "session=0", "done: session: 0"},
    {"done", "best.finish=stop", "done: best: finish: \"stop\""},
    {"done", "best.logprobs#=2", "done: best: 2 logprobs for 3 ids"},
    {"done", "best.logprobs[0]=nan", "done: best.logprobs[0]: "},
    {"done", "hypotheses[0].ids#=2", "done: hypotheses[0]: 4 logprobs for 2 ids"},
    {"done", "hypotheses[1].sum=inf", "done: hypotheses[1].sum: inf"},
    {"done", "timing.queue=-1", "done: timing.queue: -1 is negative"},
    {"cancel", "session=0", "cancel: session: 0"},
    {"status_query", "id=0", "status_query: id: 0"},
    {"status", "id=0", "status: id: 0"},
    {"status", "workers[0].state=asleep", "status: workers[0]: state: \"asleep\""},
    {"status", "workers[0].name=", "status: workers[0].name: is empty"},
    {"status", "workers[0].stage.dec_lo=10", "status: workers[0]: layers"},
    {"status", "workers[1].done_bytes=1", "status: workers[1]: 1 bytes done of 0"},
    {"status", "workers[1].device.memory_bytes=0", "status: workers[1].device.memory_bytes: 0"},
};

/* Sets one field of *m by its path; fails the test if there is no such field. */
static void set_field(ProtobufCMessage *m, const char *path, const char *value)
{
    char name[64];
    size_t n = strcspn(path, ".[#");
    const ProtobufCFieldDescriptor *f;
    char *at;
    size_t i = 0;

    assert_true(n < sizeof name);
    memcpy(name, path, n);
    name[n] = '\0';
    path += n;
    f = protobuf_c_message_descriptor_get_field_by_name(m->descriptor, name);
    if (!f)
        fail_msg("%s has no field %s", m->descriptor->name, name);
    at = (char *)m + f->offset;
    if (*path == '#') {
        size_t n_new = strtoul(value, NULL, 10);
        size_t *count = (size_t *)(void *)((char *)m + f->quantifier_offset);
        assert_true(n_new < *count);
        *count = n_new;
        return;
    }
    if (*path == '[') {
        i = strtoul(path + 1, (char **)&path, 10);
        path++;
        assert_true(i < *(size_t *)(void *)((char *)m + f->quantifier_offset));
        at = *(char **)(void *)at;
    }
    switch (f->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        if (*path == '.')
            set_field(((ProtobufCMessage **)(void *)at)[i], path + 1, value);
        else
            *(ProtobufCMessage **)(void *)at = NULL; /* leaves it out */
        return;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_ENUM:
        ((uint32_t *)(void *)at)[i] = (uint32_t)strtoll(value, NULL, 10);
        return;
    case PROTOBUF_C_TYPE_UINT64:
        ((uint64_t *)(void *)at)[i] = strtoull(value, NULL, 10);
        return;
    case PROTOBUF_C_TYPE_BOOL:
        ((protobuf_c_boolean *)(void *)at)[i] = atoi(value);
        return;
    case PROTOBUF_C_TYPE_FLOAT:
        ((float *)(void *)at)[i] = strtof(value, NULL);
        return;
    case PROTOBUF_C_TYPE_DOUBLE:
        ((double *)(void *)at)[i] = strtod(value, NULL);
        return;
    case PROTOBUF_C_TYPE_STRING:
        ((const char **)(void *)at)[i] = value;
        return;
    case PROTOBUF_C_TYPE_BYTES:
        *(ProtobufCBinaryData *)(void *)at =
            (ProtobufCBinaryData){strlen(value), (uint8_t *)(uintptr_t)value};
        return;
    default:
        fail_msg("%s is of a type this test does not know", f->name);
    }
}

/* Memory that protobuf-c gets here and that goes at once, however the message was changed meanwhile. */
struct pool {
    void *block[4096];
    size_t n;
};

static void *pool_alloc(void *data, size_t n)
{
    struct pool *pool = data;
    assert_true(pool->n < sizeof pool->block / sizeof pool->block[0]);
    return pool->block[pool->n++] = malloc(n);
}

static void pool_free(void *data, void *pointer)
{
    (void)data;
    (void)pointer;
}

static void run_bad_case(const struct bad_case *c)
{
    const struct esp_msg *good = esp_test_message_find(c->from);
    static struct pool pool;
    ProtobufCAllocator allocator = {pool_alloc, pool_free, &pool};
    struct esp_blob blob[ESP_MAX_BLOBS];
    uint32_t n_blobs;
    Espalier__Envelope *env;
    struct esp_msg got;
    struct esp_err err = {0};
    char change[512], *save = NULL;
    uint8_t *bytes;
    size_t n;
    esp_status st;

    pool.n = 0;
    assert_non_null(good);
    memcpy(blob, good->blob, sizeof blob);
    n_blobs = good->n_blobs;
    pack_good(&bytes, &n, good);
    env = espalier__envelope__unpack(&allocator, n, bytes);
    assert_non_null(env);
    free(bytes);
    assert_true(strlen(c->change) < sizeof change);
    strcpy(change, c->change);
    for (char *one = strtok_r(change, ";", &save); one; one = strtok_r(NULL, ";", &save)) {
        char *value = strchr(one, '=');
        assert_non_null(value);
        *value++ = '\0';
        if (strcmp(one, "blobs") == 0) {
            n_blobs = (uint32_t)strtoul(value, NULL, 10);
            blob[n_blobs ? n_blobs - 1 : 0] = (struct esp_blob){.data = "four", .n_bytes = 4};
        } else if (strncmp(one, "blob", 4) == 0) {
            blob[one[4] - '0'].n_bytes = strtoul(value, NULL, 10); /* nobody reads them here */
        } else {
            set_field(&env->hello->base, one, value);
        }
    }
    n = espalier__envelope__get_packed_size(env);
    bytes = malloc(n);
    assert_non_null(bytes);
    espalier__envelope__pack(env, bytes);
    st = unpack_exact(&got, bytes, n, blob, n_blobs, &err);
    if (st != ESP_E_PROTO || !strstr(err.text, c->expect))
        fail_msg("%s with %s: status %d \"%s\", expected \"%s\"", c->from, c->change, st, err.text,
                 c->expect);
    assert_null(got.store);
    assert_int_equal(got.kind, ESP_MSG_NONE);
    free(bytes);
    while (pool.n > 0)
        free(pool.block[--pool.n]);
}

static void test_bad_messages(void **state)
{
    for (size_t i = 0; i < sizeof bad_cases / sizeof bad_cases[0]; i++)
        run_bad_case(&bad_cases[i]);
}

/* ---- bad bytes ---- */

#define BYTES(s) (const uint8_t *)(s), sizeof(s) - 1

static const struct {
    const char *name;
    const uint8_t *bytes;
    size_t n;
    const char *expect;
} bad_bytes[] = {
    {"nothing", BYTES(""), "header: empty"},
    {"text", BYTES("GET / HTTP/1.1\r\n\r\n"), "header: 18 bytes that are no Envelope"},
    {"zeros", BYTES("\0\0\0\0"), "no Envelope"},
    {"no version", BYTES("\xa2\x02\x00"), "protocol version 0, this program speaks version 4"},
    {"version alone", BYTES("\x08\x04"), "no message inside"},
    {"version 5", BYTES("\x08\x05\x7a\x00"), "protocol version 5, this program speaks version 4"},
    {"version 5, then unreadable", BYTES("\x08\x05\xff\xff"),
     "protocol version 5, this program speaks version 4"},
    {"version 300", BYTES("\x08\xac\x02\x7a\x00"), "protocol version 300, this program speaks version 4"},
    {"version later, 5", BYTES("\x7a\x00\x08\x05"), "protocol version 5, this program speaks version 4"},
    {"version twice, then 5", BYTES("\x08\x04\x08\x05\x7a\x00"),
     "protocol version 5, this program speaks version 4"},
    {"version without end", BYTES("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "no Envelope"},
    {"unknown kind 28", BYTES("\x08\x04\xe2\x01\x00"), "unknown kind of message 28"},
    {"unknown kind 1000", BYTES("\x08\x04\xc2\x3e\x00"), "unknown kind of message 1000"},
    {"kind of a wrong wire type", BYTES("\x08\x04\x78\x00"), "header"},
    {"unknown field inside", BYTES("\x08\x04\x9a\x02\x04\x08\x05\x10\x07"), "cancel: unknown field 2"},
    {"length past the end", BYTES("\x08\x04\x9a\x02\x7f\x08\x05"), "no Envelope"},
    {"length of 2^63", BYTES("\x08\x04\x9a\x02\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x08\x05"), "no Envelope"},
    {"string longer than its message", BYTES("\x08\x04\x82\x01\x02\x0a\x7f"), "no Envelope"},
    {"NUL in a cause",
     BYTES("\x08\x04\x82\x01\x05\x0a\x03"
           "a\0b"),
     "bye: why: NUL inside"},
    {"NUL at the end",
     BYTES("\x08\x04\x82\x01\x04\x0a\x02"
           "a\0"),
     "bye: why: NUL inside"},
    {"only a NUL", BYTES("\x08\x04\x82\x01\x03\x0a\x01\0"), "bye: why: NUL inside"},
    {"NUL in an image's name", BYTES("\x08\x04\xf2\x01\x09\x08\x01\x18\x01\x48\x01\x52\x01\0"),
     "request: image_names[0]: NUL inside"},
};

static void test_bad_bytes(void **state)
{
    struct esp_blob blob = {.data = "four", .n_bytes = 4};

    for (size_t i = 0; i < sizeof bad_bytes / sizeof bad_bytes[0]; i++) {
        struct esp_msg got;
        struct esp_err err = {0};
        esp_status st = unpack_exact(&got, bad_bytes[i].bytes, bad_bytes[i].n, &blob, 1, &err);
        if (st != ESP_E_PROTO || !strstr(err.text, bad_bytes[i].expect))
            fail_msg("%s: status %d \"%s\", expected \"%s\"", bad_bytes[i].name, st, err.text,
                     bad_bytes[i].expect);
    }
}

/* `n` times the bytes of `unit` as the contents of kind `tag` (two bytes of it, as it stands on the wire). */
static uint8_t *repeated(size_t *n_bytes, const char *tag, const char *unit, size_t n_unit, size_t n)
{
    size_t n_body = n_unit * n, at = 0;
    uint8_t *b = malloc(n_body + 32);

    assert_non_null(b);
    b[at++] = 0x08;
    b[at++] = ESP_PROTO_VERSION;
    b[at++] = (uint8_t)tag[0];
    b[at++] = (uint8_t)tag[1];
    for (size_t v = n_body;; v >>= 7) {
        b[at++] = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        if (v <= 0x7f)
            break;
    }
    for (size_t i = 0; i < n; i++, at += n_unit)
        memcpy(b + at, unit, n_unit);
    *n_bytes = at;
    return b;
}

/* Few bytes that name many structures: refused before the memory is taken. */
static void test_memory_bombs(void **state)
{
    static const struct {
        const char *name, *tag, *unit;
        size_t n_unit, n;
        const char *expect;
    } bombs[] = {
        {"empty hypotheses", "\x92\x02", "\x1a\x00", 2, 4000000,
         "header: would take more than 67108864 bytes"},
        {"a hundred thousand of them", "\x92\x02", "\x1a\x00", 2, 100000,
         "header: would take more than 7448"},
        {"empty workers", "\xaa\x02", "\x32\x00", 2, 4000000, "header: would take more than 67108864 bytes"},
        {"empty rows", "\xba\x01", "\x1a\x00", 2, 4000000, "header: would take more than 67108864 bytes"},
        {"empty names", "\xf2\x01", "\x52\x00", 2, 4000000, "header: would take more than 67108864 bytes"},
        {"the same text again and again", "\x82\x01", "\x0a\x01x", 3, 2700000,
         "header: would take more than 67108864 bytes"},
        {"unknown fields", "\x82\x01", "\x78\x00", 2, 4000000, "header: would take more than 67108864 bytes"},
        {"a few too many stages", "\xfa\x01", "\x22\x03\x0a\x01w", 5, 1025,
         "accepted: stages: 1025 entries, at most 1024"},
        {"a few too many sequences", "\xc2\x01", "\x10\x01", 2, 1025,
         "release: seqs: 1025 entries, at most 1024"},
    };

    for (size_t i = 0; i < sizeof bombs / sizeof bombs[0]; i++) {
        struct esp_msg got;
        struct esp_err err = {0};
        size_t n;
        uint8_t *bytes = repeated(&n, bombs[i].tag, bombs[i].unit, bombs[i].n_unit, bombs[i].n);
        esp_status st = esp_wire_unpack(&got, bytes, n, NULL, 0, &err);
        if (st != ESP_E_PROTO || !strstr(err.text, bombs[i].expect))
            fail_msg("%s: status %d \"%s\", expected \"%s\"", bombs[i].name, st, err.text, bombs[i].expect);
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_messages),
        cmocka_unit_test(test_bad_bytes),
        cmocka_unit_test(test_memory_bombs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
