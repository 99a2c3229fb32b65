/*
 * The whole way of a moved layer: three workers with the real engine, each on a device of its own, talk over real sockets,
 * and the test is their coordinator. The model is cut anew again and again while sequences live; every step's logits equal,
 * bit for bit, those of the same model in one stage that never moved.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/move_rig.h"
#include "tests/support/chain.h"
#include "tests/support/rand.h"

#define MAX_ROWS 64 /* of the undisturbed stage */
#define SEQS     3
#define ROUNDS   6

static struct esp_vk *vk[RIG_WORKERS + 1]; /* a device each, and one for the undisturbed stage */

/** The same step to the workers and the stage that stands still. */
static void step(struct rig *rig, const struct rig_cut *cut, struct esp_chain *still,
                 const struct esp_msg_step *msg, const int32_t *ids)
{
    struct esp_stage_out want;
    struct esp_msg got;

    rig_send_step(rig, rig_at_dec(cut, 0), *msg, ids);
    esp_chain_step(still, msg, ids, &want, NULL, NULL);
    rig_take(rig, rig_last_dec(cut), ESP_MSG_RESULT, &got);
    assert_int_equal(got.result.step, msg->id);
    assert_int_equal(got.result.n_full, want.n_full);
    assert_int_equal(got.blob[0].n_bytes, (size_t)want.n_full * want.vocab * sizeof *want.full);
    assert_memory_equal(got.blob[0].data, want.full, got.blob[0].n_bytes);
    esp_msg_finish(&got);
    esp_stage_out_finish(&want);
}

/** The picture into both. */
static void encode(struct rig *rig, const struct rig_cut *cut, struct esp_chain *still, uint64_t image,
                   const float *pixels)
{
    const struct esp_vision_config *v = &esp_checkpoint_config(still->ck)->vision;
    struct esp_msg msg = {.kind = ESP_MSG_ENCODE, .n_blobs = 1};

    msg.encode = (struct esp_msg_encode){.epoch = 1,
                                         .image = image,
                                         .payload = ESP_PAYLOAD_PIXELS,
                                         .rows = v->n_channel * v->image_size,
                                         .width = v->image_size};
    msg.blob[0] = (struct esp_blob){.data = pixels,
                                    .n_bytes = (size_t)msg.encode.rows * msg.encode.width * sizeof *pixels};
    rig_send(rig, rig_at_enc(cut, 0), &msg);
    esp_chain_encode(still, image, pixels, NULL, NULL);
    rig_take(rig, rig_at_dec(cut, 0), ESP_MSG_STORED, &msg);
    assert_int_equal(msg.stored.image, image);
    esp_msg_finish(&msg);
}

static void run(struct rig *rig, const char *dir)
{
    struct esp_checkpoint *ck = NULL;
    const struct esp_config *c;
    struct esp_chain still;
    struct esp_rand r;
    struct rig_cut now;
    const uint64_t image = 7;
    uint32_t n[SEQS], n_prefix[SEQS], n_moved = 0;
    float *pixels;
    size_t n_pixel;
    struct esp_err err = {0};

    esp_must(esp_checkpoint_open(&ck, dir, &err), &err);
    c = esp_checkpoint_config(ck);
    n_pixel = (size_t)c->vision.n_channel * c->vision.image_size * c->vision.image_size;
    pixels = malloc(n_pixel * sizeof *pixels);
    assert_non_null(pixels);
    esp_rand_init(&r, 1);
    esp_rand_fill_uniform(&r, pixels, n_pixel, -1.0, 1.0);
    esp_chain_open(&still, vk[RIG_WORKERS], ck, 1, &c->vision.n_layer, &c->text.n_layer, MAX_ROWS);
    for (int i = 0; i < RIG_WORKERS; i++) {
        rig->w[i].vk = vk[i];
        rig->w[i].ck = ck;
    }
    rig_join(rig, RIG_WORKERS);
    now = rig_random_cut(c->vision.n_layer, c->text.n_layer);
    for (int i = 0; i < RIG_WORKERS; i++)
        rig_put(rig, i, &now, 1, 0, 0, false);
    rig_take_ready(rig, 1, RIG_WORKERS);
    encode(rig, &now, &still, image, pixels);
    for (uint64_t epoch = 1; epoch <= ROUNDS; epoch++) {
        struct rig_cut next = rig_random_cut(c->vision.n_layer, c->text.n_layer);
        uint64_t id = 1;

        if (epoch <= SEQS) { /* one sequence more: a picture and some text, all of it prefix */
            const uint32_t s = (uint32_t)epoch - 1;
            const uint32_t n_tok = c->vision.n_token + 5 + 9 * s;
            const struct esp_seq_rows seq = {
                .seq = s + 1, .n_tok = n_tok, .n_prefix = n_tok, .n_images = 1, .images = &image};
            const struct esp_want want = {.row = n_tok - 1, .k = 2, .full = true};
            int32_t ids[MAX_ROWS] = {0};

            for (uint32_t i = c->vision.n_token; i < n_tok; i++)
                ids[i] = (int32_t)rig_below(c->text.vocab);
            step(rig, &now, &still,
                 &(struct esp_msg_step){.epoch = epoch,
                                        .id = id++,
                                        .rows = n_tok,
                                        .n_seqs = 1,
                                        .seqs = &seq,
                                        .n_wants = 1,
                                        .wants = &want},
                 ids);
            n[s] = n_prefix[s] = n_tok;
        }
        for (uint32_t t = 0; t < 3; t++) { /* all of them go on */
            const uint32_t n_seqs = epoch < SEQS ? (uint32_t)epoch : SEQS;
            struct esp_seq_rows seqs[SEQS];
            struct esp_want wants[SEQS];
            int32_t ids[SEQS];

            for (uint32_t s = 0; s < n_seqs; s++) {
                ids[s] = (int32_t)rig_below(c->text.vocab);
                seqs[s] =
                    (struct esp_seq_rows){.seq = s + 1, .pos = n[s]++, .n_tok = 1, .n_prefix = n_prefix[s]};
                wants[s] = (struct esp_want){.row = s, .k = 1, .full = true};
            }
            step(rig, &now, &still,
                 &(struct esp_msg_step){.epoch = epoch,
                                        .id = id++,
                                        .rows = n_seqs,
                                        .n_seqs = n_seqs,
                                        .seqs = seqs,
                                        .n_wants = n_seqs,
                                        .wants = wants},
                 ids);
        }
        n_moved += rig_replace(rig, epoch + 1, &now, &next, &image, 1).n_layers;
        now = next;
    }
    assert_true(n_moved > 0);
    for (int i = 0; i < RIG_WORKERS; i++) {
        rig_stop(rig, i);
        assert_int_equal(rig_wait(rig, i), ESP_OK);
    }
    esp_chain_close(&still);
    esp_checkpoint_destroy(&ck);
    free(pixels);
}

static void test_gemma(void **state)
{
    run(*state, "tests/golden/data/tiny");
}

static void test_gemma2(void **state)
{
    run(*state, "tests/golden/data/tiny-pg2");
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {WITH_RIG(test_gemma), WITH_RIG(test_gemma2)};
    int failed;

    for (int i = 0; i <= RIG_WORKERS; i++)
        vk[i] = esp_test_device_open();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i <= RIG_WORKERS; i++)
        failed += esp_test_device_close(&vk[i]);
    return failed;
}
