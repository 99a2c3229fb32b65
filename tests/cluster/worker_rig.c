#include "tests/cluster/worker_rig.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"

static uint64_t now_ms(void)
{
    return esp_now_ns() / 1000000;
}

int rig_setup(void **state)
{
    struct rig *rig = calloc(1, sizeof *rig);

    if (!rig)
        return -1;
    strcpy(rig->dir, "/tmp/espalier-test-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    snprintf(rig->at, sizeof rig->at, "ipc://%s/c", rig->dir);
    esp_log_init(&rig->log, "workers");
    rig->log.level = ESP_LOG_DEBUG;
    rig->log.fd = memfd_create("log", MFD_CLOEXEC);
    assert_true(rig->log.fd >= 0);
    rig->heartbeat_ms = 100;
    rig->timeout_ms = ESP_PATIENCE_MS; /* a loaded machine must not look like a lost coordinator */
    assert_int_equal(esp_net_create(&rig->net, NULL), ESP_OK);
    rig_open(rig);
    *state = rig;
    return 0;
}

int rig_teardown(void **state)
{
    struct rig *rig = *state;

    for (int i = 0; i < RIG_WORKERS; i++) {
        if (rig->w[i].started) {
            rig_stop(rig, i);
            rig_wait(rig, i);
        }
    }
    rig_close(rig);
    esp_net_destroy(&rig->net);
    close(rig->log.fd);
    for (int i = 0; i < RIG_WORKERS; i++)
        unlink(rig->w[i].bind + strlen("ipc://"));
    unlink(rig->at + strlen("ipc://"));
    rmdir(rig->dir);
    free(rig);
    return 0;
}

void rig_open(struct rig *rig)
{
    struct esp_err err;

    assert_int_equal(esp_link_create(&rig->link, rig->net,
                                     &(struct esp_link_options){.type = ESP_LINK_SERVE, .linger_ms = 1000},
                                     &err),
                     ESP_OK);
    /* After rig_close, libzmq may take a moment to let go of the path. */
    for (uint64_t end = now_ms() + ESP_PATIENCE_MS; esp_link_bind(rig->link, rig->at, false, NULL, &err);) {
        if (now_ms() > end)
            fail_msg("%s", err.text);
        usleep(1000);
    }
}

void rig_close(struct rig *rig)
{
    esp_link_destroy(&rig->link);
}

static void *worker_main(void *arg)
{
    struct rig_worker *w = arg;
    struct esp_shelf *shelf = NULL;
    bool still_busy;

    w->status = w->options.streams ? ESP_OK : esp_shelf_create(&shelf, w->vk, w->ck, NULL, NULL, &w->err);
    if (!w->status)
        w->status = esp_worker_serve(&w->options, shelf, &still_busy, &w->err);
    esp_shelf_destroy(&shelf);
    atomic_store(&w->ended, true);
    return NULL;
}

void rig_start(struct rig *rig, int i)
{
    struct rig_worker *w = &rig->w[i];
    char dir[sizeof rig->dir];

    snprintf(w->name, sizeof w->name, "w%d", i);
    strcpy(dir, rig->dir);
    snprintf(w->bind, sizeof w->bind, "ipc://%s/w%d", dir, i);
    w->stop_fd = eventfd(0, EFD_CLOEXEC);
    assert_true(w->stop_fd >= 0);
    w->options = (struct esp_worker_options){
        .name = w->name,
        .connect = rig->at,
        .bind = w->bind,
        .device = {"Fake", "fake 1", "fake", 4, 1 << 30, 1 << 30, 1e9, 1e10},
        .fingerprint = {7, 7, 7},
        .streams = w->cache != NULL,
        .cache_dir = w->cache,
        .stop_fd = w->stop_fd,
        .stop_timeout_ms = ESP_PATIENCE_MS,
        .log = &rig->log,
    };
    if (w->cache)
        memset(w->options.fingerprint, 0, sizeof w->options.fingerprint);
    atomic_store(&w->ended, false);
    assert_int_equal(pthread_create(&w->thread, NULL, worker_main, w), 0);
    w->started = true;
}

void rig_stop(struct rig *rig, int i)
{
    uint64_t one = 1;

    assert_int_equal(write(rig->w[i].stop_fd, &one, sizeof one), sizeof one);
}

esp_status rig_wait(struct rig *rig, int i)
{
    struct rig_worker *w = &rig->w[i];

    for (uint64_t end = now_ms() + ESP_PATIENCE_MS; !atomic_load(&w->ended); usleep(1000)) {
        if (now_ms() > end)
            fail_msg("%s does not end", w->name);
    }
    pthread_join(w->thread, NULL);
    w->started = false;
    close(w->stop_fd);
    return w->status;
}

void rig_send(struct rig *rig, int i, const struct esp_msg *msg)
{
    struct esp_err err;

    for (uint64_t end = now_ms() + ESP_PATIENCE_MS;; usleep(1000)) {
        struct esp_msg copy = *msg;
        esp_status st = esp_link_send(rig->link, &rig->w[i].peer, &copy, &err);
        if (!st)
            return;
        if (st != ESP_E_LIMIT || now_ms() > end)
            fail_msg("to %s: %s", rig->w[i].name, err.text);
    }
}

/** Next message of the coordinator's link before `end`; false: none came. */
static bool next(struct rig *rig, uint64_t end, struct esp_peer *from, struct esp_msg *msg)
{
    struct esp_err err;

    for (;;) {
        esp_status st = esp_link_recv(rig->link, from, msg, &err);
        uint64_t now = now_ms();

        if (!st)
            return true;
        if (st != ESP_E_TIMEOUT)
            fail_msg("a worker sent a bad message: %s", err.text);
        if (now >= end)
            return false;
        esp_link_wait(&(struct esp_wait){.link = rig->link}, 1, (int)(end - now), NULL);
    }
}

void rig_take(struct rig *rig, int i, enum esp_msg_kind kind, struct esp_msg *msg)
{
    uint64_t end = now_ms() + ESP_PATIENCE_MS;
    struct esp_peer from;

    while (next(rig, end, &from, msg)) {
        char who[64];

        if (msg->kind == kind && (i < 0 || esp_peer_equal(&from, &rig->w[i].peer)))
            return;
        if (msg->kind != ESP_MSG_HEARTBEAT && msg->kind != ESP_MSG_LOADING)
            fail_msg("waiting for %s of worker %d: %s of %s%s%s", esp_msg_name(kind), i,
                     esp_msg_name(msg->kind), esp_peer_text(&from, who, sizeof who),
                     msg->kind == ESP_MSG_ERROR ? ": " : "",
                     msg->kind == ESP_MSG_ERROR ? msg->error.text : "");
        esp_msg_finish(msg);
    }
    fail_msg("no %s of worker %d in time", esp_msg_name(kind), i);
}

void rig_take_error(struct rig *rig, int i, esp_status code, const char *fragment, uint64_t epoch,
                    uint64_t step, uint64_t image)
{
    struct esp_msg msg;

    rig_take(rig, i, ESP_MSG_ERROR, &msg);
    if (msg.error.code != code || !strstr(msg.error.text, fragment))
        fail_msg("code %d \"%s\", expected %d \"%s\"", (int)msg.error.code, msg.error.text, (int)code,
                 fragment);
    assert_int_equal(msg.error.epoch, epoch);
    assert_int_equal(msg.error.step, step);
    assert_int_equal(msg.error.image, image);
    esp_msg_finish(&msg);
}

void rig_expect_silence(struct rig *rig, int ms)
{
    uint64_t end = now_ms() + (uint64_t)ms;
    struct esp_peer from;
    struct esp_msg msg;

    while (next(rig, end, &from, &msg)) {
        if (msg.kind != ESP_MSG_HEARTBEAT && msg.kind != ESP_MSG_LOADING)
            fail_msg("expected nothing, got %s%s%s", esp_msg_name(msg.kind),
                     msg.kind == ESP_MSG_ERROR ? ": " : "", msg.kind == ESP_MSG_ERROR ? msg.error.text : "");
        esp_msg_finish(&msg);
    }
}

void rig_welcome(struct rig *rig, int i)
{
    struct rig_worker *w = &rig->w[i];
    struct esp_msg msg, welcome = {.kind = ESP_MSG_WELCOME, .welcome = {rig->heartbeat_ms, rig->timeout_ms}};

    w->peer.n = (uint8_t)strlen(w->name);
    memcpy(w->peer.id, w->name, w->peer.n); /* a worker's identity is its name */
    rig_take(rig, i, ESP_MSG_HELLO, &msg);
    assert_string_equal(msg.hello.name, w->name);
    strcpy(w->endpoint, msg.hello.endpoint);
    esp_msg_finish(&msg);
    rig_send(rig, i, &welcome);
}

void rig_join(struct rig *rig, int n)
{
    for (int i = 0; i < n; i++) {
        rig_start(rig, i);
        rig_welcome(rig, i);
    }
}

void rig_place(struct rig *rig, int i, const struct rig_place *p)
{
    rig_place_on(rig, i, p, 0, 0, false);
}

void rig_place_on(struct rig *rig, int i, const struct rig_place *p, uint64_t carry, uint32_t n_moves,
                  bool warm)
{
    bool enc = p->enc_lo < p->enc_hi, dec = p->dec_lo < p->dec_hi;
    struct esp_msg msg = {.kind = ESP_MSG_PLACE};

    msg.place = (struct esp_msg_place){
        .epoch = p->epoch,
        .enc_lo = p->enc_lo,
        .enc_hi = p->enc_hi,
        .dec_lo = p->dec_lo,
        .dec_hi = p->dec_hi,
        .patch = enc && p->enc_lo == 0,
        .projector = enc && p->enc_hi == p->n_enc,
        .embed = dec && p->dec_lo == 0,
        .head = dec && p->dec_hi == p->n_dec,
        .next_enc = p->next_enc >= 0 ? rig->w[p->next_enc].endpoint : "",
        .features_to = p->features_to >= 0 ? rig->w[p->features_to].endpoint : "",
        .next_dec = p->next_dec >= 0 ? rig->w[p->next_dec].endpoint : "",
        .max_rows = 4096,
        .kv_tokens = p->kv_tokens ? p->kv_tokens : 256,
        .max_seqs = 16,
        .max_images = 8,
        .carry = carry,
        .n_moves = n_moves,
        .warm = warm,
    };
    rig_send(rig, i, &msg);
}

void rig_place_all(struct rig *rig, int n, uint64_t epoch)
{
    for (int i = 0; i < n; i++) {
        bool last = i + 1 == n;
        struct rig_place p = {
            .epoch = epoch,
            .enc_lo = (uint32_t)(4 * i / n),
            .enc_hi = (uint32_t)(4 * (i + 1) / n),
            .dec_lo = (uint32_t)(6 * i / n),
            .dec_hi = (uint32_t)(6 * (i + 1) / n),
            .n_enc = 4,
            .n_dec = 6,
            .next_enc = last ? -1 : i + 1,
            .features_to = last ? 0 : -1,
            .next_dec = last ? -1 : i + 1,
        };
        rig_place(rig, i, &p);
    }
    for (int i = 0; i < n; i++) {
        struct esp_msg msg;

        rig_take(rig, -1, ESP_MSG_READY, &msg); /* whoever is first */
        assert_int_equal(msg.ready.epoch, epoch);
        assert_int_equal(msg.ready.weight_bytes, 1000);
        esp_msg_finish(&msg);
    }
}

struct esp_link *rig_dial(struct rig *rig, int i, const char *identity)
{
    const struct esp_link_options options = {.type = ESP_LINK_DIAL, .identity = identity, .linger_ms = 1000};
    struct esp_link *link;

    assert_int_equal(esp_link_create(&link, rig->net, &options, NULL), ESP_OK);
    assert_int_equal(esp_link_connect(link, rig->w[i].endpoint, NULL), ESP_OK);
    return link;
}

int rig_count_log(struct rig *rig, const char *fragment)
{
    struct stat st;
    char *text;
    int n = 0;

    assert_int_equal(fstat(rig->log.fd, &st), 0);
    text = calloc(1, (size_t)st.st_size + 1);
    assert_non_null(text);
    assert_int_equal(pread(rig->log.fd, text, (size_t)st.st_size, 0), st.st_size);
    for (const char *at = text; (at = strstr(at, fragment)); at++)
        n++;
    free(text);
    return n;
}

void rig_expect_log(struct rig *rig, const char *fragment, int n)
{
    for (uint64_t end = now_ms() + ESP_PATIENCE_MS; rig_count_log(rig, fragment) < n; usleep(2000)) {
        if (now_ms() > end)
            fail_msg("the log does not hold \"%s\" %d times", fragment, n);
    }
}

/* ---- messages ---- */

void rig_send_step(struct rig *rig, int i, struct esp_msg_step step, const int32_t *ids)
{
    struct esp_msg msg = {.kind = ESP_MSG_STEP, .step = step, .n_blobs = 1};

    msg.step.payload = ESP_PAYLOAD_TOKENS;
    msg.step.width = 1;
    msg.blob[0] = (struct esp_blob){.data = ids, .n_bytes = step.rows * sizeof *ids};
    rig_send(rig, i, &msg);
}

void rig_send_rows(struct rig *rig, int i, uint64_t epoch, uint64_t id, uint64_t seq, uint32_t pos,
                   const int32_t *ids, uint32_t n)
{
    const struct esp_seq_rows rows = {.seq = seq, .pos = pos, .n_tok = n};
    const struct esp_want want = {.row = n - 1, .k = 2};

    rig_send_step(
        rig, i,
        (struct esp_msg_step){
            .epoch = epoch, .id = id, .rows = n, .n_seqs = 1, .seqs = &rows, .n_wants = 1, .wants = &want},
        ids);
}

void rig_send_pixels(struct rig *rig, int i, uint64_t epoch, uint64_t image, float first, bool trace)
{
    float pixels[3 * 4 * 4] = {first};
    struct esp_msg msg = {.kind = ESP_MSG_ENCODE, .n_blobs = 1};

    msg.encode = (struct esp_msg_encode){.epoch = epoch,
                                         .image = image,
                                         .payload = ESP_PAYLOAD_PIXELS,
                                         .rows = 12,
                                         .width = 4,
                                         .trace = trace};
    msg.blob[0] = (struct esp_blob){.data = pixels, .n_bytes = sizeof pixels};
    rig_send(rig, i, &msg);
}

float rig_take_result(struct rig *rig, int i, uint64_t epoch, uint64_t step)
{
    struct esp_msg msg;
    float lse;

    rig_take(rig, i, ESP_MSG_RESULT, &msg);
    assert_int_equal(msg.result.epoch, epoch);
    assert_int_equal(msg.result.step, step);
    assert_int_equal(msg.result.n_rows, 1);
    lse = msg.result.rows[0].lse;
    esp_msg_finish(&msg);
    return lse;
}

float rig_expected(const int32_t *ids, uint32_t n)
{
    float h[6] = {0}, x = 0;

    for (uint32_t t = 0; t < n; t++) {
        x = (float)ids[t];
        for (int l = 0; l < 6; l++) {
            h[l] += x;
            x += (float)(l + 1) + h[l] / 2;
        }
    }
    return x;
}
