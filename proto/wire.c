/*
 * Packing and unpacking, both by the tables of wire_table.c: our structures to protobuf-c's and back.
 *
 * Memory: protobuf-c asks for every string, array and message inside a header by itself, and a few bytes can
 * name a structure of a hundred. So all of it, and what we add, comes from one store with a budget that grows
 * with the header, and goes with the store. Since the store knows the size of each block, it also tells a
 * string with a NUL inside (its block is longer than strlen says), which protobuf-c's strings cannot.
 */
#include "proto/wire.h"

#include <stdlib.h>
#include <string.h>

#include "proto/espalier.pb-c.h"
#include "proto/wire_table.h"

/* A legitimate header needs at most about 45 bytes a byte where it is small (one Want, with protobuf-c's note
 * of where it was) and 10 where it is large (packed arrays). */
#define STORE_BASE   (1u << 20)
#define STORE_FACTOR 32u
#define STORE_MAX    (64u << 20)

struct block {
    struct block *next;
    size_t n_bytes; /* asked for */
    _Alignas(max_align_t) unsigned char bytes[];
};

struct esp_msg_store {
    struct block *blocks;
    size_t n_used, budget;
    bool refused; /* the budget did not suffice */
    bool starved; /* malloc did not */
};

static void *store_alloc(void *data, size_t n_bytes)
{
    struct esp_msg_store *store = data;
    struct block *b;
    size_t n;

    if (!esp_add(&n, n_bytes, sizeof *b) || n > store->budget - store->n_used) {
        store->refused = true;
        return NULL;
    }
    b = malloc(n);
    if (!b) {
        store->starved = true;
        return NULL;
    }
    b->next = store->blocks;
    b->n_bytes = n_bytes;
    store->blocks = b;
    store->n_used += n;
    return b->bytes;
}

static void store_free(void *data, void *pointer)
{
    (void)data; /* goes with the store */
    (void)pointer;
}

static void store_destroy(struct esp_msg_store **store)
{
    if (!*store)
        return;
    while ((*store)->blocks) {
        struct block *b = (*store)->blocks;
        (*store)->blocks = b->next;
        free(b);
    }
    free(*store);
    *store = NULL;
}

static struct esp_msg_store *store_create(size_t budget)
{
    struct esp_msg_store *store = calloc(1, sizeof *store);
    if (store)
        store->budget = budget;
    return store;
}

/* Why the store said no. */
static esp_status store_fail(const struct esp_msg_store *store, struct esp_err *err)
{
    if (store->refused && !store->starved)
        return esp_fail(err, ESP_E_PROTO, "header: would take more than %zu bytes unpacked", store->budget);
    return esp_fail(err, ESP_E_NOMEM, "message of %zu bytes and more", store->n_used);
}

static Espalier__DType dtype_of(uint32_t payload)
{
    return payload == ESP_PAYLOAD_TOKENS ? ESPALIER__DTYPE__DTYPE_I32 : ESPALIER__DTYPE__DTYPE_F32;
}

static void *pointer_at(const void *at)
{
    void *p; /* members differ in the type pointed at, so no cast: copy */
    memcpy(&p, at, sizeof p);
    return p;
}

static void put_pointer(void *at, const void *p)
{
    memcpy(at, &p, sizeof p);
}

/* ---- ours to protobuf-c's; the message was checked ---- */

static ProtobufCMessage *to_pb(struct esp_msg_store *store, const char *c, const struct esp_wire_table *t);

/* A string to send; NULL when memory runs out. */
static const char *line_to_pb(struct esp_msg_store *store, const char *s, const struct esp_wire_field *f)
{
    size_t n;
    char *clean;

    if (!s)
        return protobuf_c_empty_string;
    if (f->rule != ESP_RULE_LINE)
        return s;
    n = strlen(s);
    n = n > f->max ? (size_t)f->max : n;
    clean = store_alloc(store, n + 1);
    if (clean)
        esp_wire_clean_line(clean, n + 1, s);
    return clean;
}

static bool array_to_pb(struct esp_msg_store *store, char *p, const char *c, const struct esp_wire_field *f)
{
    uint32_t n = *(const uint32_t *)(c + f->c_n);
    const char *from = pointer_at(c + f->c);
    const void **to;

    *(size_t *)(p + f->p_n) = n;
    if (n == 0 || (f->type != ESP_WIRE_SUBS && f->type != ESP_WIRE_STRS)) {
        put_pointer(p + f->p, n ? from : NULL); /* packing only reads */
        return true;
    }
    to = store_alloc(store, n * sizeof *to);
    if (!to)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        if (f->type == ESP_WIRE_SUBS)
            to[i] = to_pb(store, from + i * f->sub->n_bytes, f->sub);
        else
            to[i] = line_to_pb(store, pointer_at(from + i * sizeof(char *)), f);
        if (!to[i])
            return false;
    }
    put_pointer(p + f->p, to);
    return true;
}

static bool field_to_pb(struct esp_msg_store *store, char *p, const char *c, const struct esp_wire_field *f)
{
    char *to = p + f->p;
    const char *from = c + f->c;
    const void *made;
    ProtobufCBinaryData *key;

    switch (f->type) {
    case ESP_WIRE_BOOL:
        *(protobuf_c_boolean *)to = *(const bool *)from;
        return true;
    case ESP_WIRE_U32:
    case ESP_WIRE_F32:
        memcpy(to, from, 4);
        return true;
    case ESP_WIRE_U64:
    case ESP_WIRE_F64:
        memcpy(to, from, 8);
        return true;
    case ESP_WIRE_STR:
        made = line_to_pb(store, pointer_at(from), f);
        put_pointer(to, made);
        return made != NULL;
    case ESP_WIRE_KEY:
        key = (ProtobufCBinaryData *)to;
        key->len = 32;
        put_pointer(&key->data, from);
        return true;
    case ESP_WIRE_DTYPE:
        *(Espalier__DType *)to = dtype_of(*(const uint32_t *)from);
        return true;
    case ESP_WIRE_SUB:
        made = to_pb(store, from, f->sub);
        put_pointer(to, made);
        return made != NULL;
    default:
        return array_to_pb(store, p, c, f);
    }
}

static ProtobufCMessage *to_pb(struct esp_msg_store *store, const char *c, const struct esp_wire_table *t)
{
    ProtobufCMessage *pb = store_alloc(store, t->pb->sizeof_message);

    if (!pb)
        return NULL;
    protobuf_c_message_init(t->pb, pb);
    for (size_t i = 0; i < t->n_field; i++) {
        if (!field_to_pb(store, (char *)pb, c, &t->field[i]))
            return NULL;
    }
    return pb;
}

esp_status esp_wire_pack(uint8_t **bytes, size_t *n_bytes, const struct esp_msg *msg, struct esp_err *err)
{
    Espalier__Envelope env = ESPALIER__ENVELOPE__INIT;
    const struct esp_wire_kind *kind = esp_wire_kind_find(msg->kind);
    struct esp_msg_store *store = NULL;
    size_t n;
    esp_status st;

    *bytes = NULL;
    *n_bytes = 0;
    st = esp_wire_check(msg, true, err);
    if (st)
        return st;
    store = store_create(SIZE_MAX); /* our own message: nothing to be wary of */
    if (!store) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: no memory to pack it", kind->name);
        goto done;
    }
    env.version = ESP_PROTO_VERSION;
    env.body_case = (Espalier__Envelope__BodyCase)kind->kind;
    env.hello = (Espalier__Hello *)to_pb(store, (const char *)msg + kind->c,
                                         kind->table); /* any member of the oneof */
    if (!env.hello) {
        st = store_fail(store, err);
        goto done;
    }
    n = espalier__envelope__get_packed_size(&env);
    if (n > ESP_MAX_HEADER) {
        st = esp_fail(err, ESP_E_PROTO, "%s: header of %zu bytes, at most %u", kind->name, n, ESP_MAX_HEADER);
        goto done;
    }
    *bytes = malloc(n);
    if (!*bytes) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: header of %zu bytes", kind->name, n);
        goto done;
    }
    *n_bytes = espalier__envelope__pack(&env, *bytes);
done:
    store_destroy(&store);
    return st;
}

/* ---- protobuf-c's to ours ---- */

static esp_status from_pb(struct esp_msg_store *store, char *c, const ProtobufCMessage *pb,
                          const struct esp_wire_table *t, struct esp_err *err);

/* A string that protobuf-c unpacked into the store: is it as long as it says? */
static esp_status whole_string(const char *s, struct esp_err *err)
{
    const struct block *b;

    if (s == protobuf_c_empty_string)
        return ESP_OK;
    b = (const struct block *)(const void *)(s - offsetof(struct block, bytes));
    if (memchr(s, 0, b->n_bytes) != s + b->n_bytes - 1)
        return esp_fail(err, ESP_E_PROTO, "NUL inside");
    return ESP_OK;
}

static esp_status array_from_pb(struct esp_msg_store *store, char *c, const char *p,
                                const struct esp_wire_field *f, struct esp_err *err)
{
    uint32_t *n = (uint32_t *)(void *)(c + f->c_n);
    size_t n_got = *(const size_t *)(const void *)(p + f->p_n);
    void *from = pointer_at(p + f->p);
    esp_status st = ESP_OK;
    char *to;

    if (n_got > f->max_n)
        return esp_fail(err, ESP_E_PROTO, "%s: %zu entries, at most %u", f->name, n_got, f->max_n);
    if (f->counted && n_got != *n)
        return esp_fail(err, ESP_E_PROTO, "%s: %zu entries, should be %u", f->name, n_got, *n);
    *n = (uint32_t)n_got;
    if (n_got == 0)
        return ESP_OK;
    if (f->type != ESP_WIRE_SUBS) {
        if (f->type == ESP_WIRE_STRS) {
            for (size_t i = 0; i < n_got && !st; i++) {
                st = whole_string(((char **)from)[i], err);
                if (st)
                    esp_err_prefix(err, "%s[%zu]: ", f->name, i);
            }
        }
        put_pointer(c + f->c, from); /* same form in both: protobuf-c's array serves */
        return st;
    }
    to = store_alloc(store, n_got * f->sub->n_bytes); /* max_n bounds it */
    if (!to)
        return store_fail(store, err);
    memset(to, 0, n_got * f->sub->n_bytes);
    put_pointer(c + f->c, to);
    for (size_t i = 0; i < n_got && !st; i++) {
        st = from_pb(store, to + i * f->sub->n_bytes, ((ProtobufCMessage **)from)[i], f->sub, err);
        if (st)
            esp_err_prefix(err, "%s[%zu].", f->name, i);
    }
    return st;
}

static esp_status field_from_pb(struct esp_msg_store *store, char *c, const char *p,
                                const struct esp_wire_field *f, struct esp_err *err)
{
    const char *from = p + f->p;
    char *to = c + f->c;
    const ProtobufCBinaryData *key;
    uint32_t got;
    esp_status st;

    switch (f->type) {
    case ESP_WIRE_BOOL:
        *(bool *)to = *(const protobuf_c_boolean *)(const void *)from != 0;
        return ESP_OK;
    case ESP_WIRE_U32:
    case ESP_WIRE_F32:
        memcpy(to, from, 4);
        return ESP_OK;
    case ESP_WIRE_U64:
    case ESP_WIRE_F64:
        memcpy(to, from, 8);
        return ESP_OK;
    case ESP_WIRE_STR:
        st = whole_string(pointer_at(from), err);
        if (st)
            esp_err_prefix(err, "%s: ", f->name);
        put_pointer(to, pointer_at(from));
        return st;
    case ESP_WIRE_KEY:
        key = (const ProtobufCBinaryData *)(const void *)from;
        if (key->len != 32)
            return esp_fail(err, ESP_E_PROTO, "%s: %zu bytes, takes 32", f->name, key->len);
        memcpy(to, key->data, 32);
        return ESP_OK;
    case ESP_WIRE_DTYPE:
        memcpy(&got, from, sizeof got);
        if (got != (uint32_t)dtype_of(*(const uint32_t *)(const void *)to))
            return esp_fail(err, ESP_E_PROTO, "%s: %u with payload %u", f->name, got,
                            *(const uint32_t *)(const void *)to);
        return ESP_OK;
    case ESP_WIRE_SUB:
        st = from_pb(store, to, pointer_at(from), f->sub, err);
        if (st)
            esp_err_prefix(err, "%s.", f->name);
        return st;
    default:
        return array_from_pb(store, c, p, f, err);
    }
}

/* `c` is zeroed; `pb` NULL is what an absent message inside looks like: every field at its default. */
static esp_status from_pb(struct esp_msg_store *store, char *c, const ProtobufCMessage *pb,
                          const struct esp_wire_table *t, struct esp_err *err)
{
    esp_status st = ESP_OK;

    if (!pb) {
        ProtobufCMessage *none = store_alloc(store, t->pb->sizeof_message);
        if (!none)
            return store_fail(store, err);
        protobuf_c_message_init(t->pb, none);
        pb = none;
    }
    if (pb->n_unknown_fields > 0)
        return esp_fail(err, ESP_E_PROTO, "unknown field %u", pb->unknown_fields[0].tag);
    for (size_t i = 0; i < t->n_field && !st; i++)
        st = field_from_pb(store, c, (const char *)pb, &t->field[i], err);
    return st;
}

static esp_status wrong_version(uint64_t theirs, struct esp_err *err)
{
    return esp_fail(err, ESP_E_PROTO, "protocol version %llu, this program speaks version %u",
                    (unsigned long long)theirs, ESP_PROTO_VERSION);
}

/* The version stands first in what every sender packs, so a message of another version gets its true name
 * even if the rest has become unreadable to us. */
static esp_status check_version_first(const uint8_t *h, size_t n, struct esp_err *err)
{
    uint64_t v = 0;
    size_t i;

    if (h[0] != 0x08) /* field 1, a varint */
        return ESP_OK;
    for (i = 1; i < n && i <= 5; i++) {
        v |= (uint64_t)(h[i] & 0x7f) << (7 * (i - 1));
        if (h[i] < 0x80)
            return v == ESP_PROTO_VERSION ? ESP_OK : wrong_version(v, err);
    }
    return ESP_OK; /* not a version at all: the rest will tell */
}

static esp_status unpack_envelope(Espalier__Envelope **out, struct esp_msg_store *store, const void *header,
                                  size_t n_header, struct esp_err *err)
{
    ProtobufCAllocator allocator = {.alloc = store_alloc, .free = store_free, .allocator_data = store};
    Espalier__Envelope *env;

    *out = NULL;
    env = espalier__envelope__unpack(&allocator, n_header, header);
    if (!env)
        return store->refused || store->starved
                   ? store_fail(store, err)
                   : esp_fail(err, ESP_E_PROTO, "header: %zu bytes that are no Envelope", n_header);
    if (env->version != ESP_PROTO_VERSION)
        return wrong_version(env->version, err);
    if (env->base.n_unknown_fields > 0)
        return esp_fail(err, ESP_E_PROTO, "unknown kind of message %u", env->base.unknown_fields[0].tag);
    if (env->body_case == ESPALIER__ENVELOPE__BODY__NOT_SET)
        return esp_fail(err, ESP_E_PROTO, "header: no message inside");
    *out = env;
    return ESP_OK;
}

esp_status esp_wire_unpack(struct esp_msg *out, const void *header, size_t n_header,
                           const struct esp_blob *blobs, uint32_t n_blobs, struct esp_err *err)
{
    size_t budget = STORE_BASE + (n_header < STORE_MAX / STORE_FACTOR ? n_header * STORE_FACTOR : STORE_MAX);
    const struct esp_wire_kind *kind;
    Espalier__Envelope *env;
    esp_status st;

    memset(out, 0, sizeof *out);
    if (n_header == 0)
        return esp_fail(err, ESP_E_PROTO, "header: empty");
    if (n_header > ESP_MAX_HEADER)
        return esp_fail(err, ESP_E_PROTO, "header: %zu bytes, at most %u", n_header, ESP_MAX_HEADER);
    if (n_blobs > ESP_MAX_BLOBS)
        return esp_fail(err, ESP_E_PROTO, "%u raw frames, at most %u", n_blobs, ESP_MAX_BLOBS);
    st = check_version_first(header, n_header, err);
    if (st)
        return st;
    out->store = store_create(budget < STORE_MAX ? budget : STORE_MAX);
    if (!out->store)
        return esp_fail(err, ESP_E_NOMEM, "message of %zu bytes", n_header);
    st = unpack_envelope(&env, out->store, header, n_header, err);
    if (st)
        goto fail;
    out->n_bytes = n_header;
    for (uint32_t i = 0; i < n_blobs; i++)
        out->n_bytes += blobs[i].n_bytes;
    kind = esp_wire_kind_find((enum esp_msg_kind)env->body_case);
    if (!kind) { /* in espalier.proto and not in the table */
        st = esp_fail(err, ESP_E_INTERNAL, "no table for message kind %u", (unsigned)env->body_case);
        goto fail;
    }
    out->kind = kind->kind;
    st = from_pb(out->store, (char *)out + kind->c, (const ProtobufCMessage *)env->hello, kind->table, err);
    if (st) {
        esp_err_prefix(err, "%s: ", kind->name);
        goto fail;
    }
    if (n_blobs > 0)
        memcpy(out->blob, blobs, n_blobs * sizeof *blobs);
    out->n_blobs = n_blobs;
    st = esp_wire_check(out, false, err);
    if (st)
        goto fail;
    return ESP_OK;
fail:
    store_destroy(&out->store);
    memset(out, 0, sizeof *out); /* the blobs stay the caller's */
    return st;
}

void esp_msg_finish(struct esp_msg *msg)
{
    if (!msg)
        return;
    for (uint32_t i = 0; i < msg->n_blobs && i < ESP_MAX_BLOBS; i++) {
        struct esp_blob *b = &msg->blob[i];
        if (b->release)
            b->release((void *)(uintptr_t)b->data, b->hint);
    }
    store_destroy(&msg->store);
    memset(msg, 0, sizeof *msg);
}
