/*
 * A device's check of itself (worker/verify.h), on the golden checkpoints: every part is right at every split of the
 * layers, a stage whose weights were damaged names the layer and no other, and nothing of it stays on the device.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cli/command.h"
#include "tests/support/chain.h"
#include "tests/support/temp.h"
#include "worker/stage_state.h"
#include "worker/verify.h"
#include "worker/vk_cmd.h"

#define MAX_ROWS  128
#define MAX_PARTS 64

static struct esp_vk *vk;

static const char *const fixtures[] = {"tiny", "odd", "tiny-pg2"};

static struct esp_checkpoint *open_fixture(const char *name)
{
    struct esp_checkpoint *ck;
    struct esp_err err = {0};
    char path[64];

    snprintf(path, sizeof path, "tests/golden/data/%s", name);
    esp_must(esp_checkpoint_open(&ck, path, &err), &err);
    return ck;
}

struct report {
    uint32_t n;
    struct esp_verify_result part[MAX_PARTS];
};

static void check_stage(struct esp_stage *stage, struct report *out)
{
    struct esp_verify *v;
    struct esp_err err = {0};
    bool more = true;

    esp_must(esp_verify_create(&v, &err), &err);
    while (more)
        esp_must(esp_verify_run(v, stage, &more, &err), &err);
    out->n = esp_verify_n_parts(v);
    assert_in_range(out->n, 1, MAX_PARTS);
    for (uint32_t i = 0; i < out->n; i++)
        esp_must(esp_verify_part(v, i, NULL, NULL, &out->part[i], &err), &err);
    esp_verify_destroy(&v);
}

/* Checks every stage of a chain; the number of parts, all of which must be right, and the worst error of all. */
static uint32_t check_chain(struct esp_chain *chain, double *worst)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < chain->n; i++) {
        struct esp_stage_info_out before, after;
        struct report r;

        if (!chain->stage[i] ||
            (esp_stage_spec(chain->stage[i])->enc_lo == esp_stage_spec(chain->stage[i])->enc_hi &&
             esp_stage_spec(chain->stage[i])->dec_lo == esp_stage_spec(chain->stage[i])->dec_hi))
            continue;
        esp_stage_info(chain->stage[i], &before);
        check_stage(chain->stage[i], &r);
        esp_stage_info(chain->stage[i], &after);
        assert_int_equal(after.kv_used_blocks, before.kv_used_blocks);
        assert_int_equal(after.n_seqs, before.n_seqs);
        assert_int_equal(after.n_images, before.n_images);
        for (uint32_t k = 0; k < r.n; k++) {
            if (r.part[k].error > r.part[k].limit)
                fail_msg("stage %u: %s is off by %g", i, r.part[k].layer, r.part[k].error);
            if (r.part[k].error > *worst)
                *worst = r.part[k].error;
        }
        n += r.n;
    }
    return n;
}

/* Every way to cut each tower once, and every layer on a stage of its own. */
static void test_splits(void **state)
{
    for (size_t f = 0; f < sizeof fixtures / sizeof fixtures[0]; f++) {
        struct esp_checkpoint *ck = open_fixture(fixtures[f]);
        const uint32_t E = esp_checkpoint_config(ck)->vision.n_layer,
                       D = esp_checkpoint_config(ck)->text.n_layer;
        const uint32_t n_parts = 2 + E + 2 + 1 + 2 * D + 5;
        uint32_t n_enc[ESP_CHAIN_MAX] = {0}, n_dec[ESP_CHAIN_MAX] = {0};
        double worst = 0;
        struct esp_chain chain;

        for (uint32_t i = 0; i <= (E > D ? E : D); i++) {
            const uint32_t e = i < E ? i : E, d = i < D ? i : D;
            uint32_t two_e[2] = {e, E - e}, two_d[2] = {d, D - d};

            esp_chain_open(&chain, vk, ck, 2, two_e, two_d, MAX_ROWS);
            assert_int_equal(check_chain(&chain, &worst), n_parts);
            esp_chain_close(&chain);
        }
        for (uint32_t i = 0; i < E; i++)
            n_enc[i] = 1;
        for (uint32_t i = 0; i < D; i++)
            n_dec[E + i] = 1;
        esp_chain_open(&chain, vk, ck, E + D, n_enc, n_dec, MAX_ROWS);
        assert_int_equal(check_chain(&chain, &worst), n_parts);
        esp_chain_close(&chain);
        print_message("%s: worst error %.2g of %.2g\n", fixtures[f], worst, ESP_VERIFY_LIMIT);
        esp_checkpoint_destroy(&ck);
    }
}

/* Logits after a prefill and after a token more, f32[2, V], malloc'ed. */
static float *logits_of(struct esp_chain *chain)
{
    const uint32_t vocab = esp_checkpoint_config(chain->ck)->text.vocab;
    struct esp_seq_rows seq = {.seq = 1, .n_tok = 20, .n_prefix = 20};
    const struct esp_msg_release release = {.n_seqs = 1, .seqs = &seq.seq};
    float *logits = malloc((size_t)2 * vocab * sizeof *logits);
    int32_t ids[21];

    assert_non_null(logits);
    for (int i = 0; i < 21; i++)
        ids[i] = 3 + 7 * i;
    for (int i = 0; i < 2; i++) {
        struct esp_stage_out out;

        esp_chain_seq(chain, &seq, ids + seq.pos, 3, 1, &out, NULL, NULL);
        memcpy(logits + (size_t)i * vocab, out.full, vocab * sizeof *logits);
        esp_stage_out_finish(&out);
        seq.pos = 20;
        seq.n_tok = 1;
    }
    esp_chain_release(chain, &release);
    return logits;
}

/* Whatever weights are held as: right by the values that the device has, and with the same bits at every split. */
static void test_weight_types(void **state)
{
    static const enum esp_wtype types[] = {ESP_W_BF16, ESP_W_F16, ESP_W_F32, ESP_W_Q8, ESP_W_Q4};

    for (size_t f = 0; f < sizeof fixtures / sizeof fixtures[0]; f++) {
        struct esp_checkpoint *ck = open_fixture(fixtures[f]);
        const uint32_t E = esp_checkpoint_config(ck)->vision.n_layer,
                       D = esp_checkpoint_config(ck)->text.n_layer,
                       vocab = esp_checkpoint_config(ck)->text.vocab;

        for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
            float *want = NULL;
            double worst = 0;

            for (uint32_t cut = 0; cut < 3; cut++) {
                const uint32_t n_enc[2] = {cut * E / 2, E - cut * E / 2},
                               n_dec[2] = {cut * D / 2, D - cut * D / 2};
                struct esp_chain chain;
                float *got;

                esp_chain_open_as(&chain, vk, ck, types[t], 2, n_enc, n_dec, MAX_ROWS);
                assert_int_equal(check_chain(&chain, &worst), 2 + E + 2 + 1 + 2 * D + 5);
                got = logits_of(&chain);
                esp_chain_close(&chain);
                if (want && memcmp(got, want, (size_t)2 * vocab * sizeof *got) != 0)
                    fail_msg("%s as %s: other logits at another split", fixtures[f],
                             esp_wtype_name(types[t]));
                free(want);
                want = got;
            }
            free(want);
            print_message("%s as %s: worst error %.2g\n", fixtures[f], esp_wtype_name(types[t]), worst);
        }
        esp_checkpoint_destroy(&ck);
    }
}

/* Quantised ahead: nobody names a type, and the limits are those of what there is. */
static void test_quantised_ahead(void **state)
{
    static const char *const types[] = {"q8", "q4"};

    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        char dir[64], out[80];
        char *argv[] = {(char[]){"quantize"},
                        (char[]){"--model"},
                        (char[]){"tests/golden/data/tiny"},
                        (char[]){"--out"},
                        out,
                        (char[]){"--weights"},
                        (char *)(uintptr_t)types[t],
                        NULL};
        struct esp_checkpoint *ck;
        struct esp_chain chain;
        struct esp_err err;
        uint32_t n_enc, n_dec;
        double worst = 0;

        assert_int_equal(esp_temp_make(dir, sizeof dir), 0);
        snprintf(out, sizeof out, "%s/made", dir);
        assert_int_equal(esp_command_quantize(7, argv), 0);
        esp_must(esp_checkpoint_open(&ck, out, &err), &err);
        n_enc = esp_checkpoint_config(ck)->vision.n_layer;
        n_dec = esp_checkpoint_config(ck)->text.n_layer;
        esp_chain_open(&chain, vk, ck, 1, &n_enc, &n_dec, MAX_ROWS);
        check_chain(&chain, &worst);
        print_message("tiny, quantised to %s ahead: worst error %.2g\n", types[t], worst);
        esp_chain_close(&chain);
        esp_checkpoint_destroy(&ck);
        assert_int_equal(esp_temp_remove(dir), 0);
    }
}

/* 16 bytes of a matrix on the device. */
static void damage(struct esp_stage *s, const struct esp_mat *mat, uint32_t word)
{
    struct esp_upload up;
    struct esp_err err = {0};
    struct esp_buf *buf = (struct esp_buf *)(uintptr_t)s->space.chunk[mat->part[0].chunk];
    uint32_t *at;
    void *to;

    esp_must(esp_upload_init(&up, vk, &err), &err);
    esp_must(esp_upload_map(&to, &up, buf, (VkDeviceSize)mat->part[0].at * 16, 16, &err), &err);
    at = to;
    for (int i = 0; i < 4; i++)
        at[i] = word;
    esp_must(esp_upload_commit(&up, &err), &err);
    esp_upload_finish(&up);
}

/* Of a report, exactly the parts of these two names are wrong ("" for none). */
static void expect_wrong(const struct report *r, const char *one, const char *other)
{
    for (uint32_t i = 0; i < r->n; i++) {
        const bool named = strcmp(r->part[i].layer, one) == 0 || strcmp(r->part[i].layer, other) == 0;

        if (named != (r->part[i].error > r->part[i].limit))
            fail_msg("%s and %s are damaged: %s is off by %g", one, other, r->part[i].layer,
                     r->part[i].error);
    }
}

/* One matrix after the other of a layer in the middle, each with another stage. */
static void test_damage(void **state)
{
    struct esp_checkpoint *ck = open_fixture("tiny");
    const struct esp_config *c = esp_checkpoint_config(ck);
    const uint32_t n_enc[1] = {c->vision.n_layer}, n_dec[1] = {c->text.n_layer};
    const uint32_t e = c->vision.n_layer - 1, d = c->text.n_layer / 2;
    char vision[32], prefill[32], decode[32];
    static struct report r;

    snprintf(vision, sizeof vision, "vision.layer.%u", e);
    snprintf(prefill, sizeof prefill, "prefill.layer.%u", d);
    snprintf(decode, sizeof decode, "decode.layer.%u", d);
    for (int which = 0; which < 11; which++) {
        struct esp_chain chain;
        struct esp_stage *s;

        esp_chain_open(&chain, vk, ck, 1, n_enc, n_dec, MAX_ROWS);
        s = chain.stage[0];
        struct esp_enc_layer *le = &s->weights.enc[e];
        struct esp_dec_layer *ld = &s->weights.dec[d];
        const struct esp_mat *mats[] = {&le->qkv,          &le->o,          &le->fc1,     &le->fc2,
                                        &ld->qkv,          &ld->o,          &ld->gate_up, &ld->down,
                                        &s->weights.patch, &s->weights.proj};
        if (which < 10)
            damage(s, mats[which], 0);
        else
            damage(s, &ld->down, UINT32_MAX); /* NaN in every type */
        check_stage(s, &r);
        if (which < 4)
            expect_wrong(&r, vision, "");
        else if (which < 8)
            expect_wrong(&r, prefill, decode);
        else if (which < 10)
            expect_wrong(&r, which == 8 ? "vision.patch_embeddings" : "vision.projector", "");
        for (uint32_t i = 0; which == 10 && i < r.n; i++) { /* what follows it has nothing to go on */
            if (strcmp(r.part[i].layer, prefill) == 0) {
                assert_true(r.part[i].error == ESP_VERIFY_NO_NUMBER);
                break;
            }
            assert_true(r.part[i].error <= r.part[i].limit);
        }
        esp_chain_close(&chain);
    }
    esp_checkpoint_destroy(&ck);
}

/* A cache that sessions have filled: said, nothing taken, and right once there is room. */
static void test_no_room(void **state)
{
    struct esp_checkpoint *ck = open_fixture("tiny");
    const struct esp_config *c = esp_checkpoint_config(ck);
    const uint32_t n_enc[1] = {0}, n_dec[1] = {c->text.n_layer};
    struct esp_seq_rows seq = {.n_tok = MAX_ROWS, .n_prefix = MAX_ROWS};
    const uint64_t last = 4;
    int32_t ids[MAX_ROWS] = {0};
    struct esp_stage_info_out full, now;
    struct esp_stage_out out;
    struct esp_chain chain;
    struct esp_verify *v;
    struct esp_err err = {0};
    double worst = 0;
    bool more;

    esp_chain_open(&chain, vk, ck, 1, n_enc, n_dec, MAX_ROWS);
    for (seq.seq = 1; seq.seq <= last; seq.seq++) {
        esp_chain_seq(&chain, &seq, ids, 1, 1, &out, NULL, NULL);
        esp_stage_out_finish(&out);
    }
    esp_stage_info(chain.stage[0], &full);
    assert_int_equal(full.kv_used_blocks, full.kv_blocks);
    esp_must(esp_verify_create(&v, &err), &err);
    assert_int_equal(esp_verify_run(v, chain.stage[0], &more, &err), ESP_E_LIMIT);
    esp_verify_destroy(&v);
    esp_stage_info(chain.stage[0], &now);
    assert_memory_equal(&now, &full, sizeof now);
    esp_stage_release(chain.stage[0], &(struct esp_msg_release){.n_seqs = 1, .seqs = &last});
    assert_int_equal(check_chain(&chain, &worst), 1 + 2 * c->text.n_layer + 5);
    esp_chain_close(&chain);
    esp_checkpoint_destroy(&ck);
}

static bool at_once(void *arg)
{
    (*(int *)arg)++;
    return true;
}

static void test_stop(void **state)
{
    struct esp_checkpoint *ck = open_fixture("tiny");
    const struct esp_config *c = esp_checkpoint_config(ck);
    const uint32_t n_enc[1] = {c->vision.n_layer}, n_dec[1] = {0};
    struct esp_verify_result r;
    struct esp_chain chain;
    struct esp_verify *v;
    struct esp_err err = {0};
    int n_asked = 0;
    bool more;

    esp_chain_open(&chain, vk, ck, 1, n_enc, n_dec, MAX_ROWS);
    esp_must(esp_verify_create(&v, &err), &err);
    esp_must(esp_verify_run(v, chain.stage[0], &more, &err), &err);
    assert_false(more);
    assert_int_equal(esp_verify_part(v, 2, at_once, &n_asked, &r, &err), ESP_E_CANCELLED);
    assert_true(n_asked >= 1);
    esp_must(esp_verify_part(v, 2, NULL, NULL, &r, &err), &err);
    assert_string_equal(r.layer, "vision.layer.0");
    esp_verify_destroy(&v);
    esp_chain_close(&chain);
    esp_checkpoint_destroy(&ck);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_splits),          cmocka_unit_test(test_weight_types),
        cmocka_unit_test(test_quantised_ahead), cmocka_unit_test(test_damage),
        cmocka_unit_test(test_no_room),         cmocka_unit_test(test_stop),
    };
    int failed;

    vk = esp_test_device_open();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + esp_test_device_close(&vk);
}
