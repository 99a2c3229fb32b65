/*
 * Peers that mean no good, on real sockets of real processes: a coordinator, two workers with layers each, and a client that
 * asks again and again while thousands of messages come that nobody should send: random bytes, good messages cut and with
 * bits turned, well-formed ones with the present epoch and the right shapes, replayed ones, floods. The client's answers
 * stay the same, nobody loses a worker or a byte of memory for good, and the logs stay short.
 *
 * Without keys, so that every message gets as far as it can. What keys alone keep out is left out here: who takes over
 * the routing id of another (proto/link.h), and who is the first to send a stage anything in a placement.
 *
 * ESPALIER_SOAK=1: 10,000 messages instead of 2,500. ESPALIER_TEST_SEED=N: others.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/checkpoint.h"
#include "proto/clock.h"
#include "tests/fault/hostile_rig.h"
#include "tests/support/file.h"
#include "tests/support/messages.h"
#include "tests/support/rand.h"

#define N_MESSAGES   2500
#define N_SOAK       10000
#define N_CAPTURED   128
#define N_PEERS      6  /* connections at a time: two to each */
#define LOG_A_SECOND 40 /* lines of each process: what it says of strangers, and a little of its own */
#define GROWTH_KIB   (8 * 1024) /* of a process from the first fifth on: what allocators keep */

#if defined(__SANITIZE_ADDRESS__)
#define GROWTH_ALLOWED (100 * GROWTH_KIB) /* the quarantine of freed memory */
#else
#define GROWTH_ALLOWED GROWTH_KIB
#endif

static struct hostile_proc coordinator, worker[2];
static char at[3][ESP_MAX_ENDPOINT + 1]; /* the coordinator's endpoint, and the workers' data endpoints */
static struct esp_config config;

/* ---- what they send ---- */

struct attack {
    struct esp_rand rand;
    struct hostile_peer peer[N_PEERS];
    struct hostile_frames captured[N_CAPTURED]; /* of what came and went */
    uint32_t n_captured;
    unsigned n_sent, n_named;
};

static uint32_t below(struct attack *a, uint32_t n)
{
    return esp_rand_below(&a->rand, n);
}

/* Where connection i goes. */
static const char *target(uint32_t i)
{
    return at[i % 3];
}

static void keep(struct attack *a, const struct hostile_frames *f)
{
    struct hostile_frames *to = &a->captured[below(a, N_CAPTURED)];
    size_t n_bytes = 0;

    for (uint32_t i = 0; i < f->n; i++)
        n_bytes += f->at[i].n;
    if (n_bytes > 1 << 16)
        return;
    hostile_frames_finish(to);
    for (uint32_t i = 0; i < f->n; i++)
        hostile_frames_add(to, f->at[i].bytes, f->at[i].n);
}

static void send_to(struct attack *a, uint32_t i, const struct hostile_frames *f)
{
    hostile_peer_send(&a->peer[i], f);
    a->n_sent++;
}

static void random_bytes(struct attack *a, struct hostile_frames *f)
{
    uint8_t bytes[400];

    for (uint32_t n = 1 + below(a, 6); n > 0; n--) {
        const size_t size = below(a, sizeof bytes);

        for (size_t i = 0; i < size; i++)
            bytes[i] = (uint8_t)esp_rand_u64(&a->rand);
        if (f->n == 0 && size > 2 && below(a, 2)) { /* past the version */
            bytes[0] = 8;
            bytes[1] = 1;
        }
        hostile_frames_add(f, bytes, size);
    }
}

static void good_message(struct attack *a, struct hostile_frames *f)
{
    assert_true(hostile_frames_pack(f, &esp_test_messages[below(a, (uint32_t)esp_test_n_messages)].msg));
}

/* Turns bits, cuts and repeats. */
static void damage(struct attack *a, struct hostile_frames *f)
{
    const uint32_t i = below(a, f->n);

    switch (below(a, 5)) {
    case 0:
        f->at[i].n = f->at[i].n ? below(a, (uint32_t)f->at[i].n) : 0;
        break;
    case 1:
        free(f->at[--f->n].bytes);
        if (f->n == 0)
            hostile_frames_add(f, "", 0);
        break;
    case 2:
        if (f->n < HOSTILE_FRAMES)
            hostile_frames_add(f, f->at[i].bytes, f->at[i].n);
        break;
    default:
        for (uint32_t n = 1 + below(a, 8); n > 0 && f->at[i].n > 0; n--)
            f->at[i].bytes[below(a, (uint32_t)f->at[i].n)] ^= (uint8_t)(1u << below(a, 8));
        break;
    }
}

/* Well-formed, of the present epoch or one near it, with shapes that a stage would take. */
static void plausible(struct attack *a, struct hostile_frames *f)
{
    static float data[64 * 1024];
    static const float logits[] = {9, 8, 7};
    static const uint32_t ids[] = {1, 2, 999999999};
    const uint64_t epochs[] = {1, 1, 1, 0, 2, UINT64_MAX}, epoch = epochs[below(a, 6)];
    const uint64_t seq = 1 + below(a, 30), image = 1 + below(a, 8),
                   step = below(a, 2) ? 1 + below(a, 400) : UINT64_MAX;
    const uint32_t n = 1 + below(a, 4), d = config.text.width, blocks[] = {0};
    const struct esp_seq_rows rows = {
        .seq = seq, .pos = below(a, 2) ? below(a, 60) : 0, .n_tok = n, .n_prefix = n};
    const struct esp_want want = {.row = n - 1, .k = 4};
    const struct esp_row_result result = {
        .row = below(a, 30), .lse = 1, .n = 3, .ids = ids, .logits = logits};
    const struct esp_kv_seq kv = {.seq = seq, .n_tok = 5, .n_blocks = 1, .blocks = blocks};
    struct esp_msg m = {.n_blobs = 0};

    switch (below(a, 16)) {
    case 0:
    case 1:
    case 2:
        m.kind = ESP_MSG_STEP;
        m.step = (struct esp_msg_step){.epoch = epoch,
                                       .id = step,
                                       .payload = below(a, 4) ? ESP_PAYLOAD_ROWS : ESP_PAYLOAD_TOKENS,
                                       .rows = n,
                                       .n_seqs = 1,
                                       .seqs = &rows,
                                       .n_wants = 1,
                                       .wants = &want};
        m.step.width = m.step.payload == ESP_PAYLOAD_ROWS ? d : 1;
        m.n_blobs = 1;
        m.blob[0] = (struct esp_blob){.data = data, .n_bytes = (size_t)n * m.step.width * 4};
        break;
    case 3:
    case 4:
        m.kind = ESP_MSG_RELEASE;
        m.release = (struct esp_msg_release){
            .epoch = epoch, .n_seqs = 1, .seqs = &seq, .n_images = 1, .images = &image};
        break;
    case 5:
    case 6:
    case 7:
        m.kind = ESP_MSG_ENCODE;
        m.encode = (struct esp_msg_encode){.epoch = epoch,
                                           .image = image,
                                           .payload = (enum esp_payload)(1 + below(a, 3)),
                                           .rows = config.vision.n_token,
                                           .width = config.vision.width};
        if (m.encode.payload == ESP_PAYLOAD_PIXELS) {
            m.encode.rows = 3 * config.vision.image_size;
            m.encode.width = config.vision.image_size;
        } else if (m.encode.payload == ESP_PAYLOAD_FEATURES) {
            m.encode.width = d;
        }
        m.n_blobs = 1;
        m.blob[0] = (struct esp_blob){.data = data, .n_bytes = (size_t)m.encode.rows * m.encode.width * 4};
        assert_true(m.blob[0].n_bytes <= sizeof data);
        break;
    case 8:
        m.kind = ESP_MSG_KV_BLOCKS;
        m.kv_blocks = (struct esp_msg_kv_blocks){.epoch = epoch,
                                                 .layer = below(a, config.text.n_layer),
                                                 .n_blocks = 1,
                                                 .total_blocks = 1,
                                                 .block_tokens = 32,
                                                 .width = 2 * config.text.n_kv_head * config.text.head_dim,
                                                 .n_seqs = 1,
                                                 .seqs = &kv};
        m.n_blobs = 1;
        m.blob[0] = (struct esp_blob){.data = data, .n_bytes = (size_t)32 * m.kv_blocks.width * 4};
        break;
    case 9:
        m.kind = ESP_MSG_RESULT;
        m.result = (struct esp_msg_result){.epoch = epoch, .step = step, .n_rows = 1, .rows = &result};
        break;
    case 10:
        m.kind = ESP_MSG_STORED;
        m.stored = (struct esp_msg_stored){.epoch = epoch, .image = image};
        break;
    case 11:
        m.kind = ESP_MSG_ERROR;
        m.error = (struct esp_msg_error){.code = ESP_E_DEVICE, .text = "lost", .epoch = epoch, .step = step};
        break;
    case 12:
        m.kind = ESP_MSG_PLACE;
        m.place =
            (struct esp_msg_place){.epoch = 2, .dec_hi = 1, .embed = true, .next_dec = at[1 + below(a, 2)]};
        m.place.max_rows = m.place.kv_tokens = m.place.max_seqs = m.place.max_images = 64;
        break;
    case 13:
        m.kind = ESP_MSG_HELLO;
        m.hello =
            (struct esp_msg_hello){.name = below(a, 2) ? "w0" : "w1",
                                   .device = {"GPU", "driver", "plain", 2, 1 << 30, 1 << 30, 1e12, 1e14},
                                   .endpoint = at[1],
                                   .fingerprint = {(uint8_t)below(a, 256)}};
        break;
    case 14:
        m.kind = ESP_MSG_FETCH;
        m.fetch = (struct esp_msg_fetch){below(a, 1000), below(a, 1000)};
        break;
    default:
        m.kind = ESP_MSG_RESUME;
        m.resume = (struct esp_msg_resume){.id = 1 + below(a, 5), .have = below(a, 100)};
        m.resume.ticket[below(a, ESP_TICKET_BYTES)] = (uint8_t)(1 + below(a, 255));
        break;
    }
    for (size_t i = 0; i < 256; i++)
        data[below(a, 64 * 1024)] = (float)esp_rand_normal(&a->rand);
    if (!hostile_frames_pack(f, &m)) /* an epoch of 0 */
        good_message(a, f);
}

/* Requests with pictures that are none, and with sampling that makes no sense; some are good ones. */
static void request(struct attack *a, struct hostile_frames *f)
{
    static const char *const files[] = {"interlaced.png", "progressive.jpg", "cmyk.jpg", "rgb.png",
                                        "palette2.png"};
    static const char *const names[] = {"picture", "again"};
    char path[96];
    uint8_t *bytes;
    size_t n_bytes;
    struct esp_msg m = {.kind = ESP_MSG_REQUEST};

    m.request = (struct esp_msg_request){.id = 1 + below(a, 4),
                                         .prompt = below(a, 2) ? "caption en" : "",
                                         .max_tokens = below(a, 4) ? 1 + below(a, 3) : UINT32_MAX,
                                         .n_images = 1 + below(a, 2),
                                         .image_names = names};
    if (below(a, 3) == 0)
        m.request.sampling =
            (struct esp_msg_sampling){.beams = below(a, 2000), .best_of = below(a, 2000), .top_k = 7};
    snprintf(path, sizeof path, "tests/fuzz/corpus/image/%s", files[below(a, 5)]);
    bytes = esp_slurp(&n_bytes, "%s", path);
    assert_non_null(bytes);
    for (uint32_t n = below(a, 3) ? 1 + below(a, 20) : 0; n > 0; n--)
        bytes[below(a, (uint32_t)n_bytes)] ^= (uint8_t)(1u << below(a, 8));
    if (below(a, 3) == 0)
        n_bytes = below(a, (uint32_t)n_bytes);
    for (uint32_t i = 0; i < m.request.n_images; i++)
        m.blob[i] = (struct esp_blob){.data = bytes, .n_bytes = n_bytes};
    m.n_blobs = m.request.n_images;
    if (!hostile_frames_pack(f, &m))
        random_bytes(a, f);
    free(bytes);
}

/* A ZeroMQ peer by hand: its greeting, what says that it is a DEALER, and the beginning of a frame of any size. */
static size_t by_hand(struct attack *a, uint8_t out[160])
{
    static const uint8_t greeting[12] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0};
    static const uint8_t ready[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06"
                                   "DEALER";
    size_t n = 64;

    memset(out, 0, 160);
    memcpy(out, greeting, sizeof greeting);
    memcpy(out + 12, "NULL", 4);
    memcpy(out + n, ready, sizeof ready - 1);
    out[n + 1] = (uint8_t)(sizeof ready - 3);
    n += sizeof ready - 1;
    out[n++] = (uint8_t)(2 | below(a, 2)); /* long, and perhaps more to come */
    for (int i = 0; i < 8; i++)            /* 1 GiB and one byte, just what is allowed, or nonsense */
        out[n + (size_t)i] = below(a, 3) == 0 ? (uint8_t)esp_rand_u64(&a->rand) : i == 4 ? 0x40 : 0;
    return n + 8 + below(a, 20);
}

static void tcp_flood(struct attack *a)
{
    int fd[20];
    uint8_t bytes[160];

    for (size_t i = 0; i < 20; i++) {
        size_t n = by_hand(a, bytes);

        if (below(a, 3) == 0)
            n = below(a, (uint32_t)n);
        for (uint32_t k = below(a, 4) ? 0 : 8; k > 0; k--)
            bytes[below(a, sizeof bytes)] ^= (uint8_t)(1u << below(a, 8));
        fd[i] = hostile_tcp(target(below(a, 3)), bytes, n, true);
    }
    for (size_t i = 0; i < 20; i++)
        if (fd[i] >= 0)
            close(fd[i]);
}

static void many_frames(struct attack *a, struct hostile_frames *f)
{
    good_message(a, f);
    while (f->n < HOSTILE_FRAMES - 1)
        hostile_frames_add(f, "1234", below(a, 5));
}

static void strike(struct attack *a)
{
    const uint32_t i = below(a, N_PEERS);
    struct hostile_frames f = {0};
    char identity[16];

    switch (below(a, 14)) {
    case 0:
        random_bytes(a, &f);
        break;
    case 1:
        good_message(a, &f);
        break;
    case 2:
    case 3:
    case 4:
        good_message(a, &f);
        damage(a, &f);
        break;
    case 5:
    case 6:
    case 7:
        plausible(a, &f);
        break;
    case 8:
        plausible(a, &f);
        damage(a, &f);
        break;
    case 9:
        request(a, &f);
        send_to(a, 3 * below(a, N_PEERS / 3), &f);
        keep(a, &f);
        hostile_frames_finish(&f);
        return;
    case 10:
        many_frames(a, &f);
        break;
    case 11: /* another one */
        hostile_peer_close(&a->peer[i]);
        snprintf(identity, sizeof identity, "mallory-%u", a->n_named++);
        hostile_peer_open(&a->peer[i], target(i), below(a, 2) ? identity : NULL);
        if (below(a, 8) == 0)
            tcp_flood(a);
        return;
    default:
        if (a->captured[below(a, N_CAPTURED)].n > 0) {
            const struct hostile_frames *old = &a->captured[below(a, N_CAPTURED)];

            for (uint32_t k = 0; k < old->n; k++)
                hostile_frames_add(&f, old->at[k].bytes, old->at[k].n);
            if (f.n > 0 && below(a, 4) == 0)
                damage(a, &f);
        }
        if (f.n == 0)
            random_bytes(a, &f);
        break;
    }
    send_to(a, i, &f);
    keep(a, &f);
    hostile_frames_finish(&f);
    while (hostile_peer_take(&a->peer[i], &f)) {
        keep(a, &f);
        hostile_frames_finish(&f);
    }
    hostile_frames_finish(&f);
}

/* ---- the tests ---- */

static void still_there(void)
{
    struct hostile_proc *all[] = {&coordinator, &worker[0], &worker[1]};
    int status;

    for (size_t i = 0; i < 3; i++)
        if (!hostile_runs(all[i], &status))
            fail_msg("%s ended with %d", all[i]->name, status);
}

/* That a busy machine keeps a worker silent for a while is nobody's hostility. */
static void cluster_up(void)
{
    hostile_start(&coordinator, "coordinator", COORDINATOR,
                  (const char *[]){"--model", HOSTILE_MODEL, "--bind", "tcp://127.0.0.1:*", "--workers", "2",
                                   "--split", "1/1,1/2", "--timeout-ms", "60000", NULL});
    hostile_wait_for(&coordinator, "listening endpoint=", 1);
    hostile_word(&coordinator, "endpoint=", at[0], sizeof at[0]);
    for (int i = 0; i < 2; i++)
        hostile_start(
            &worker[i], i ? "w1" : "w0", WORKER,
            (const char *[]){"--model", HOSTILE_MODEL, "--connect", at[0], "--name", i ? "w1" : "w0", NULL});
    for (int i = 0; i < 2; i++) {
        hostile_wait_for(&worker[i], " data=", 1);
        hostile_word(&worker[i], " data=", at[1 + i], sizeof at[0]);
    }
    hostile_wait_for(&coordinator, "ready epoch=1", 1);
}

static void cluster_down(void)
{
    hostile_stop(&coordinator);
    for (int i = 0; i < 2; i++)
        hostile_stop(&worker[i]);
}

static void test_strangers(void **state)
{
    struct hostile_proc *all[] = {&coordinator, &worker[0], &worker[1]};
    const char *seed = getenv("ESPALIER_TEST_SEED");
    const unsigned n = getenv("ESPALIER_SOAK") ? N_SOAK : N_MESSAGES, n_answers = n / 200;
    struct hostile_proc verify;
    static struct attack a;
    struct hostile_client client;
    unsigned lines[3], answers, n_rounds = 0;
    bool marked = false;
    double begun;

    cluster_up();
    hostile_client_open(&client, at[0]);
    hostile_client_wait(&client, 3);
    /* What memory is taken once, such as for kernels that only a check needs, is taken before it is measured. */
    hostile_start(&verify, "verify", ESPALIER, (const char *[]){"verify", "--connect", at[0], NULL});
    hostile_ended(&verify);
    esp_rand_init(&a.rand, seed ? strtoull(seed, NULL, 10) : 1);
    for (uint32_t i = 0; i < N_PEERS; i++)
        hostile_peer_open(&a.peer[i], target(i), NULL);
    begun = esp_now_seconds();
    answers = client.n_answers;
    for (size_t i = 0; i < 3; i++)
        lines[i] = hostile_count(all[i], "\n");
    while (a.n_sent < n || client.n_answers < answers + n_answers) {
        if (a.n_sent < n * (client.n_answers + 1 - answers) / n_answers) /* some for every answer */
            strike(&a);
        else
            nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        if (++n_rounds % 16 == 0) {
            hostile_client_poll(&client, true);
            still_there();
        }
        if (!marked && a.n_sent >= n / 5 && client.n_answers > 3) {
            for (size_t i = 0; i < 3; i++)
                all[i]->rss_kib = hostile_rss(all[i]);
            marked = true;
        }
    }
    for (uint32_t i = 0; i < N_PEERS; i++)
        hostile_peer_close(&a.peer[i]);
    for (size_t i = 0; i < N_CAPTURED; i++)
        hostile_frames_finish(&a.captured[i]);
    hostile_client_wait(&client, 2);
    still_there();
    print_message("%u messages in %.1f s, %u answers\n", a.n_sent, esp_now_seconds() - begun,
                  client.n_answers);
    for (size_t i = 0; i < 3; i++) {
        const long rss = hostile_rss(all[i]);
        const unsigned said = hostile_count(all[i], "\n") - lines[i];

        print_message("%s: %ld MiB, %+ld KiB; %u lines\n", all[i]->name, rss / 1024, rss - all[i]->rss_kib,
                      said);
        if (rss - all[i]->rss_kib > GROWTH_ALLOWED)
            fail_msg("%s has grown by %ld KiB", all[i]->name, rss - all[i]->rss_kib);
        if (said > LOG_A_SECOND * (esp_now_seconds() - begun + 2))
            fail_msg("%s has logged %u lines", all[i]->name, said);
    }
    assert_int_equal(hostile_count(&coordinator, " lost why="), 0); /* nobody was lost on the way */
    hostile_client_close(&client);
    cluster_down();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_strangers)};
    struct esp_err err;

    if (esp_config_load(&config, HOSTILE_MODEL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    return cmocka_run_group_tests(tests, hostile_setup, hostile_teardown);
}
