/*
 * Messages: every kind there and back, every prefix and every flipped bit of each, the largest, and who owns
 * what.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "proto/espalier.pb-c.h"
#include "proto/wire.h"
#include "proto/wire_table.h"
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

static const char *text(const char *s)
{
    return s ? s : "";
}

/* The members of two structures that the rows of a table name. */
static void assert_same(const char *a, const char *b, const struct esp_wire_table *t)
{
    for (size_t i = 0; i < t->n_field; i++) {
        const struct esp_wire_field *f = &t->field[i];
        const char *pa, *pb;
        uint32_t n;

        if (f->type == ESP_WIRE_SUB) {
            assert_same(a + f->c, b + f->c, f->sub);
            continue;
        }
        memcpy(&pa, a + f->c, f->type >= ESP_WIRE_STR ? sizeof pa : 1);
        memcpy(&pb, b + f->c, f->type >= ESP_WIRE_STR ? sizeof pb : 1);
        if (f->type < ESP_WIRE_STR || f->type == ESP_WIRE_KEY || f->type == ESP_WIRE_DTYPE) {
            static const size_t n_bytes[] = {
                [ESP_WIRE_BOOL] = 1, [ESP_WIRE_U32] = 4,  [ESP_WIRE_U64] = 8,  [ESP_WIRE_F32] = 4,
                [ESP_WIRE_F64] = 8,  [ESP_WIRE_KEY] = 32, [ESP_WIRE_DTYPE] = 4};
            if (memcmp(a + f->c, b + f->c, n_bytes[f->type]) != 0)
                fail_msg("%s differs", f->name);
            continue;
        }
        if (f->type == ESP_WIRE_STR) {
            assert_string_equal(text(pa), pb); /* never NULL on receipt */
            continue;
        }
        n = *(const uint32_t *)(const void *)(a + f->c_n);
        assert_int_equal(n, *(const uint32_t *)(const void *)(b + f->c_n));
        for (uint32_t j = 0; j < n; j++) {
            if (f->type == ESP_WIRE_SUBS)
                assert_same(pa + j * f->sub->n_bytes, pb + j * f->sub->n_bytes, f->sub);
            else if (f->type == ESP_WIRE_STRS)
                assert_string_equal(text(((const char *const *)(const void *)pa)[j]),
                                    ((const char *const *)(const void *)pb)[j]);
            else if (f->type == ESP_WIRE_U32S || f->type == ESP_WIRE_F32S)
                assert_memory_equal(pa + 4 * j, pb + 4 * j, 4);
            else
                assert_memory_equal(pa + 8 * j, pb + 8 * j, 8);
        }
    }
}

static void test_round_trip(void **state)
{
    for (size_t i = 0; i < esp_test_n_messages; i++) {
        const struct esp_test_message *t = &esp_test_messages[i];
        const struct esp_wire_kind *kind = esp_wire_kind_find(t->msg.kind);
        struct esp_msg got;
        struct esp_err err = {0};
        uint8_t *bytes, *again;
        size_t n, n_again;

        pack_good(&bytes, &n, &t->msg);
        if (unpack_exact(&got, bytes, n, t->msg.blob, t->msg.n_blobs, &err) != ESP_OK)
            fail_msg("%s: %s", t->name, err.text);
        assert_int_equal(got.kind, t->msg.kind);
        assert_true(strncmp(t->name, esp_msg_name(got.kind), strlen(esp_msg_name(got.kind))) == 0);
        assert_same((const char *)&t->msg + kind->c, (const char *)&got + kind->c, kind->table);
        assert_int_equal(got.n_blobs, t->msg.n_blobs);
        for (uint32_t b = 0; b < got.n_blobs; b++) {
            assert_ptr_equal(got.blob[b].data, t->msg.blob[b].data);
            assert_int_equal(got.blob[b].n_bytes, t->msg.blob[b].n_bytes);
        }
        pack_good(&again, &n_again, &got);
        assert_int_equal(n, n_again);
        assert_memory_equal(bytes, again, n);
        free(again);
        free(bytes);
        esp_msg_finish(&got);
    }
}

/* assert_same goes by the tables; this does not. */
static void test_fields_by_hand(void **state)
{
    const struct esp_msg *step = esp_test_message_find("step"), *done = esp_test_message_find("done");
    struct esp_msg got;
    uint8_t *bytes;
    size_t n;

    pack_good(&bytes, &n, step);
    assert_int_equal(esp_wire_unpack(&got, bytes, n, step->blob, 1, NULL), ESP_OK);
    free(bytes);
    assert_true(got.step.epoch == 3 && got.step.id == 14 && got.step.rows == 6 && got.step.width == 3 &&
                got.step.trace);
    assert_true(got.step.n_free == 2 && got.step.free[1] == UINT64_MAX);
    assert_true(got.step.n_forks == 2 && got.step.forks[1].seq == 8 && got.step.forks[1].from == 3);
    assert_true(got.step.n_seqs == 2 && got.step.seqs[0].images[1] == 12 && got.step.seqs[1].pos == 40);
    assert_true(got.step.wants[1].target == 257152 && got.step.wants[1].has_target && got.step.wants[1].full);
    assert_true(got.step.n_times == 2 && got.step.times[0].compute_seconds == 0.5);
    esp_msg_finish(&got);
    pack_good(&bytes, &n, done);
    assert_int_equal(esp_wire_unpack(&got, bytes, n, NULL, 0, NULL), ESP_OK);
    free(bytes);
    assert_true(got.done.load == 1 && got.done.encode == 2 && got.done.prefill == 3 && got.done.decode == 4 &&
                got.done.queue == 5);
    assert_true(got.done.n_hypotheses == 2 && got.done.hypotheses[0].n_logprobs == 4 &&
                got.done.best.score == -3);
    esp_msg_finish(&got);
    esp_msg_finish(&got); /* cleared, so again is fine */
}

/* Every field of espalier.proto has its row, every kind its entry. */
static void assert_covered(const struct esp_wire_table *t)
{
    for (unsigned i = 0; i < t->pb->n_fields; i++) {
        const ProtobufCFieldDescriptor *d = &t->pb->fields[i];
        int n_found = 0;
        for (size_t j = 0; j < t->n_field; j++) {
            if (t->field[j].p == d->offset) {
                assert_string_equal(t->field[j].name, d->name);
                n_found++;
                if (t->field[j].sub) {
                    assert_ptr_equal(t->field[j].sub->pb, d->descriptor);
                    assert_covered(t->field[j].sub);
                }
            }
        }
        if (n_found != 1)
            fail_msg("%s.%s has %d rows", t->pb->name, d->name, n_found);
    }
    assert_int_equal(t->n_field, t->pb->n_fields);
}

static void test_tables_cover_proto(void **state)
{
    const ProtobufCMessageDescriptor *env = &espalier__envelope__descriptor;

    for (unsigned i = 0; i < env->n_fields; i++) {
        const struct esp_wire_kind *kind = esp_wire_kind_find((enum esp_msg_kind)env->fields[i].id);
        if (strcmp(env->fields[i].name, "version") == 0)
            continue;
        assert_non_null(kind);
        assert_string_equal(kind->name, env->fields[i].name);
        assert_non_null(esp_test_message_find(kind->name));
        assert_covered(kind->table);
    }
    assert_string_equal(esp_msg_name(ESP_MSG_NONE), "no such message");
}

static void test_cut_anywhere(void **state)
{
    for (size_t i = 0; i < esp_test_n_messages; i++) {
        const struct esp_msg *m = &esp_test_messages[i].msg;
        struct esp_msg got;
        struct esp_err err;
        uint8_t *bytes;
        size_t n;

        pack_good(&bytes, &n, m);
        for (size_t cut = 0; cut < n; cut++) {
            if (unpack_exact(&got, bytes, cut, m->blob, m->n_blobs, &err) != ESP_E_PROTO)
                fail_msg("%s: %zu of %zu bytes were taken", esp_test_messages[i].name, cut, n);
            assert_null(got.store);
        }
        free(bytes);
    }
}

/* A flipped bit may make another good message; then it passes all checks again. */
static void test_flip_every_bit(void **state)
{
    for (size_t i = 0; i < esp_test_n_messages; i++) {
        const struct esp_msg *m = &esp_test_messages[i].msg;
        struct esp_msg got;
        uint8_t *bytes, *again;
        size_t n, n_again;

        pack_good(&bytes, &n, m);
        for (size_t bit = 0; bit < 8 * n; bit++) {
            struct esp_err err = {0};
            esp_status st;
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
            st = unpack_exact(&got, bytes, n, m->blob, m->n_blobs, &err);
            if (st == ESP_OK)
                st = esp_wire_pack(&again, &n_again, &got, &err);
            else
                again = NULL;
            if (st != ESP_OK && st != ESP_E_PROTO)
                fail_msg("%s: bit %zu: %s", esp_test_messages[i].name, bit, err.text);
            free(again);
            esp_msg_finish(&got);
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        free(bytes);
    }
}

/* The largest messages that are legitimate fit the limits. */
static void test_large_messages(void **state)
{
    struct esp_seq_rows seq = {.seq = 1, .n_tok = ESP_MAX_ROWS};
    struct esp_want *wants = calloc(ESP_MAX_ROWS, sizeof *wants);
    int32_t *tokens = calloc(ESP_MAX_ROWS, sizeof *tokens);
    uint32_t ids[ESP_MAX_K];
    float logits[ESP_MAX_K];
    struct esp_row_result *rows = calloc(1024, sizeof *rows);
    struct esp_msg msg = {0}, got;
    struct esp_err err = {0};
    uint8_t *bytes;
    size_t n;

    assert_true(wants && tokens && rows);
    for (uint32_t i = 0; i < ESP_MAX_ROWS; i++)
        wants[i].row = i; /* the least that a want can say */
    msg.kind = ESP_MSG_STEP;
    msg.step = (struct esp_msg_step){.epoch = 1,
                                     .id = 1,
                                     .payload = ESP_PAYLOAD_TOKENS,
                                     .rows = ESP_MAX_ROWS,
                                     .width = 1,
                                     .n_seqs = 1,
                                     .seqs = &seq,
                                     .n_wants = ESP_MAX_ROWS,
                                     .wants = wants};
    msg.n_blobs = 1;
    msg.blob[0] = (struct esp_blob){.data = tokens, .n_bytes = ESP_MAX_ROWS * 4};
    pack_good(&bytes, &n, &msg);
    if (esp_wire_unpack(&got, bytes, n, msg.blob, 1, &err) != ESP_OK)
        fail_msg("%s", err.text);
    assert_int_equal(got.step.wants[ESP_MAX_ROWS - 1].row, ESP_MAX_ROWS - 1);
    esp_msg_finish(&got);
    free(bytes);

    for (uint32_t j = 0; j < ESP_MAX_K; j++) {
        ids[j] = 257000 + j;
        logits[j] = 10;
    }
    for (uint32_t i = 0; i < 1024; i++)
        rows[i] = (struct esp_row_result){.row = i, .lse = 20, .n = ESP_MAX_K, .ids = ids, .logits = logits};
    memset(&msg, 0, sizeof msg);
    msg.kind = ESP_MSG_RESULT;
    msg.result = (struct esp_msg_result){.epoch = 1, .step = 1, .n_rows = 1024, .rows = rows};
    pack_good(&bytes, &n, &msg);
    if (esp_wire_unpack(&got, bytes, n, NULL, 0, &err) != ESP_OK)
        fail_msg("%s", err.text);
    esp_msg_finish(&got);
    free(bytes);
    rows[3].n = ESP_MAX_K + 1;
    assert_int_equal(esp_wire_pack(&bytes, &n, &msg, &err), ESP_E_PROTO);
    assert_non_null(strstr(err.text, "result: rows[3].ids: 257 entries, at most 256"));
    free(rows);
    free(tokens);
    free(wants);
}

/* What we would send wrongly does not leave. */
static void test_pack_refuses(void **state)
{
    static const struct esp_msg none = {.kind = ESP_MSG_NONE}, odd = {.kind = (enum esp_msg_kind)28};
    static const struct esp_msg no_array = {.kind = ESP_MSG_RELEASE, .release = {.epoch = 1, .n_seqs = 1}};
    static const struct esp_msg no_data = {.kind = ESP_MSG_ENCODE, .n_blobs = 1, .blob = {{.n_bytes = 4}}};
    static const struct esp_msg many = {.kind = ESP_MSG_BYE, .n_blobs = ESP_MAX_BLOBS + 1};
    static const struct esp_msg zero = {.kind = ESP_MSG_CANCEL};
    char *long_text = malloc(ESP_MAX_TEXT + 2);
    struct esp_msg text_msg = {.kind = ESP_MSG_REQUEST,
                               .request = {.id = 1, .max_tokens = 1, .prompt = long_text}};
    struct esp_hypothesis *hyps = calloc(200, sizeof *hyps);
    struct esp_msg wide = {.kind = ESP_MSG_DONE,
                           .done = {.session = 1, .n_hypotheses = 200, .hypotheses = hyps}};
    const struct {
        const struct esp_msg *msg;
        const char *expect;
    } cases[] = {
        {&none, "unknown kind of message 0"},
        {&odd, "unknown kind of message 28"},
        {&no_array, "release: seqs: 1 entries and no array"},
        {&no_data, "encode: raw frame without data"},
        {&many, "bye: 65 raw frames, at most 64"},
        {&zero, "cancel: session: 0"},
        {&text_msg, "request: prompt: 65537 bytes, at most 65536"},
        {&wide, "done: header of 13109014 bytes, at most 8388608"}, /* 200 texts of 64 KiB */
    };

    assert_true(long_text && hyps);
    memset(long_text, 'x', ESP_MAX_TEXT + 1);
    long_text[ESP_MAX_TEXT + 1] = '\0';
    for (int i = 0; i < 200; i++)
        hyps[i].text = long_text;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_err err = {0};
        uint8_t *bytes;
        size_t n;
        assert_int_equal(esp_wire_pack(&bytes, &n, cases[i].msg, &err), ESP_E_PROTO);
        assert_null(bytes);
        if (!strstr(err.text, cases[i].expect))
            fail_msg("case %zu: \"%s\", expected \"%s\"", i, err.text, cases[i].expect);
    }
    free(hyps);
    free(long_text);
}

/* Causes get through whatever they hold. */
static void test_lines_are_cleaned(void **state)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"w2: out of memory", "w2: out of memory"},
        {"a\nb\tc\x7f", "a?b?c?"},
        {"gr\xc3\xb6\xc3\x9f"
         "er",
         "gr\xc3\xb6\xc3\x9f"
         "er"},
        {"\xc3", "?"},
        {"\xff\xfe"
         "a",
         "??a"},
        {"\xc2\x85"
         "a",
         "?a"}, /* a C1 control: one character, one '?' */
        {"", ""},
        {NULL, ""},
    };
    char cut[6];

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_msg msg = {.kind = ESP_MSG_ERROR, .error = {.code = ESP_E_IO, .text = cases[i].in}}, got;
        uint8_t *bytes;
        size_t n;
        pack_good(&bytes, &n, &msg);
        assert_int_equal(esp_wire_unpack(&got, bytes, n, NULL, 0, NULL), ESP_OK);
        assert_string_equal(got.error.text, cases[i].out);
        esp_msg_finish(&got);
        free(bytes);
    }
    esp_wire_clean_line(cut, sizeof cut, "abcd\xc3\xb6");
    assert_string_equal(cut, "abcd"); /* no half character */
    esp_wire_clean_line(cut, sizeof cut, "abc\xc3\xb6");
    assert_string_equal(cut, "abc\xc3\xb6");
}

static void count_release(void *data, void *hint)
{
    assert_non_null(data);
    *(int *)hint += 1;
}

/* Blobs with a release: the message's on success, the caller's on failure. */
static void test_blob_ownership(void **state)
{
    const struct esp_msg *m = esp_test_message_find("encode");
    struct esp_msg got;
    int n_released = 0;
    struct esp_blob blob = m->blob[0];
    uint8_t *bytes;
    size_t n;

    blob.release = count_release;
    blob.hint = &n_released;
    pack_good(&bytes, &n, m);
    assert_int_equal(esp_wire_unpack(&got, bytes, n, &blob, 1, NULL), ESP_OK);
    assert_int_equal(n_released, 0);
    esp_msg_finish(&got);
    assert_int_equal(n_released, 1);
    esp_msg_finish(&got);
    assert_int_equal(n_released, 1);
    blob.n_bytes--;
    assert_int_equal(esp_wire_unpack(&got, bytes, n, &blob, 1, NULL), ESP_E_PROTO);
    esp_msg_finish(&got);
    assert_int_equal(n_released, 1);
    blob.n_bytes = (size_t)ESP_MAX_FRAME + 1;
    assert_int_equal(esp_wire_unpack(&got, bytes, n, &blob, 1, NULL), ESP_E_PROTO);
    assert_int_equal(esp_wire_unpack(&got, bytes, n, &blob, ESP_MAX_BLOBS + 1, NULL), ESP_E_PROTO);
    assert_int_equal(esp_wire_unpack(&got, bytes, ESP_MAX_HEADER + 1, &blob, 1, NULL), ESP_E_PROTO);
    assert_int_equal(n_released, 1);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),         cmocka_unit_test(test_fields_by_hand),
        cmocka_unit_test(test_tables_cover_proto), cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_flip_every_bit),     cmocka_unit_test(test_large_messages),
        cmocka_unit_test(test_pack_refuses),       cmocka_unit_test(test_lines_are_cleaned),
        cmocka_unit_test(test_blob_ownership),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
