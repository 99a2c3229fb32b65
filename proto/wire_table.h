/**
 * How wire.h's structures and protobuf-c's correspond: one row a field, one entry a kind of message.
 *
 * wire.c walks the rows in both directions and wire_check.c walks them to check values, so a new field is a
 * line in espalier.proto, a member in wire.h and a row in wire_table.c; what holds between fields goes into
 * the kind's check function in wire_agree.c. Internal to the protocol library.
 */
#ifndef ESP_PROTO_WIRE_TABLE_H
#define ESP_PROTO_WIRE_TABLE_H

#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "proto/wire.h"

enum esp_wire_type {
    ESP_WIRE_BOOL,
    ESP_WIRE_U32, /* enums as well */
    ESP_WIRE_U64,
    ESP_WIRE_F32,
    ESP_WIRE_F64,
    ESP_WIRE_STR,
    ESP_WIRE_KEY,   /* bytes, 32 of them */
    ESP_WIRE_DTYPE, /* on the wire only: follows from the payload, which `c` points at */
    ESP_WIRE_SUB,   /* a message inside */
    ESP_WIRE_U32S,  /* from here on arrays: a pointer and a count */
    ESP_WIRE_U64S,
    ESP_WIRE_F32S,
    ESP_WIRE_F64S,
    ESP_WIRE_STRS,
    ESP_WIRE_SUBS
};

/** For strings and floating point; integers have min and max. */
enum esp_wire_rule {
    ESP_RULE_TEXT,     /* UTF-8 without NUL, what people wrote or the model said */
    ESP_RULE_LINE,     /* the same without control characters; made so when sent: causes hold others' words */
    ESP_RULE_NAME,     /* [A-Za-z0-9._-] */
    ESP_RULE_ENDPOINT, /* printable ASCII that starts with a transport */
    ESP_RULE_KEY,      /* "" or a key in Z85 */
    ESP_RULE_FINITE,
    ESP_RULE_NOT_NEGATIVE, /* and finite */
    ESP_RULE_POSITIVE      /* and finite */
};

struct esp_wire_table;

struct esp_wire_field {
    const char *name; /* in causes */
    enum esp_wire_type type;
    enum esp_wire_rule rule;
    uint64_t min,
        max; /* integers: the value; strings: bytes without the NUL; both inclusive; each element of arrays */
    uint32_t max_n;          /* arrays: elements */
    bool counted;            /* arrays: an earlier row set the count; this one must agree */
    uint16_t c, c_n, p, p_n; /* where it and its count are in our structure and in protobuf-c's */
    const struct esp_wire_table *sub;
};

struct esp_wire_table {
    const struct esp_wire_field *field;
    size_t n_field;
    size_t n_bytes; /* of our structure */
    const ProtobufCMessageDescriptor *pb;
};

struct esp_wire_kind {
    enum esp_msg_kind kind;
    const char *name;
    const struct esp_wire_table *table;
    size_t c; /* where in struct esp_msg */
    esp_status (*check)(const struct esp_msg *msg,
                        struct esp_err *err); /* what no row says, raw frames included */
};

/** The entry of a kind; NULL when there is none. */
const struct esp_wire_kind *esp_wire_kind_find(enum esp_msg_kind kind);

/**
 * Every check of wire.h on a message of known kind. `sending` excuses the contents of ESP_RULE_LINE strings,
 * which packing cleans. Errors: ESP_E_PROTO.
 */
esp_status esp_wire_check(const struct esp_msg *msg, bool sending, struct esp_err *err);

/** ESP_E_PROTO, with the cause. */
esp_status esp_wire_bad(struct esp_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/** Copies a string, at most n_out - 1 bytes, with '?' for each byte that ESP_RULE_LINE would refuse. */
void esp_wire_clean_line(char *out, size_t n_out, const char *text);

/* What holds between the fields of each kind (wire_agree.c). The ones without raw frames and without anything
 * to say beyond their rows share esp_check_plain. */
esp_status esp_check_plain(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_welcome(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_place(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_loading(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_warmed(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_move(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_manifest(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_chunk(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_kv_blocks(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_resume(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_verified(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_verify_report(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_ready(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_encode(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_step(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_result(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_trace(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_request(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_accepted(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_done(const struct esp_msg *msg, struct esp_err *err);
esp_status esp_check_status(const struct esp_msg *msg, struct esp_err *err);

#endif
