#include "tests/cluster/move_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "proto/clock.h"

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t rig_below(uint32_t n)
{
    static uint64_t rng = 11;

    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng >> 33) % n);
}

struct rig_cut rig_random_cut(uint32_t n_enc, uint32_t n_dec)
{
    struct rig_cut c = {.n_enc = n_enc, .n_dec = n_dec};
    int order[RIG_WORKERS] = {0, 1, 2};

    for (int tower = 0; tower < 2; tower++) {
        const uint32_t n = tower ? n_dec : n_enc;
        uint32_t *lo = tower ? c.dec_lo : c.enc_lo, *hi = tower ? c.dec_hi : c.enc_hi, at = 0;

        for (int i = RIG_WORKERS - 1; i > 0; i--) {
            int j = (int)rig_below((uint32_t)i + 1), k = order[i];
            order[i] = order[j];
            order[j] = k;
        }
        for (int i = 0; i < RIG_WORKERS && at < n; i++) {
            uint32_t some = i + 1 == RIG_WORKERS ? n - at : 1 + rig_below(n - at);
            lo[order[i]] = at;
            hi[order[i]] = at += some;
        }
    }
    return c;
}

bool rig_has_dec(const struct rig_cut *c, int i)
{
    return c->dec_lo[i] < c->dec_hi[i];
}

int rig_at_dec(const struct rig_cut *c, uint32_t lo)
{
    for (int i = 0; i < RIG_WORKERS; i++)
        if (rig_has_dec(c, i) && c->dec_lo[i] == lo)
            return i;
    return -1;
}

int rig_at_enc(const struct rig_cut *c, uint32_t lo)
{
    for (int i = 0; i < RIG_WORKERS; i++)
        if (c->enc_lo[i] < c->enc_hi[i] && c->enc_lo[i] == lo)
            return i;
    return -1;
}

int rig_last_dec(const struct rig_cut *c)
{
    for (int i = 0; i < RIG_WORKERS; i++)
        if (rig_has_dec(c, i) && c->dec_hi[i] == c->n_dec)
            return i;
    fail_msg("no head");
    return -1;
}

bool rig_passes(const struct rig_cut *from, const struct rig_cut *to, int i, int j, uint32_t *lo,
                uint32_t *hi)
{
    *lo = max_u32(from->dec_lo[i], to->dec_lo[j]);
    *hi = min_u32(from->dec_hi[i], to->dec_hi[j]);
    return i != j && rig_has_dec(from, i) && rig_has_dec(to, j) && *lo < *hi;
}

void rig_put(struct rig *rig, int i, const struct rig_cut *c, uint64_t epoch, uint64_t carry,
             uint32_t n_moves, bool warm)
{
    const bool enc = c->enc_lo[i] < c->enc_hi[i], dec = rig_has_dec(c, i);
    const struct rig_place p = {
        .epoch = epoch,
        .enc_lo = c->enc_lo[i],
        .enc_hi = c->enc_hi[i],
        .dec_lo = c->dec_lo[i],
        .dec_hi = c->dec_hi[i],
        .n_enc = c->n_enc,
        .n_dec = c->n_dec,
        .next_enc = enc && c->enc_hi[i] < c->n_enc ? rig_at_enc(c, c->enc_hi[i]) : -1,
        .features_to = enc && c->enc_hi[i] == c->n_enc ? rig_at_dec(c, 0) : -1,
        .next_dec = dec && c->dec_hi[i] < c->n_dec ? rig_at_dec(c, c->dec_hi[i]) : -1,
    };
    rig_place_on(rig, i, &p, carry, n_moves, warm);
}

uint64_t rig_take_ready(struct rig *rig, uint64_t epoch, int n)
{
    uint64_t loaded = 0;

    for (int i = 0; i < n; i++) {
        struct esp_msg msg;

        rig_take(rig, -1, ESP_MSG_READY, &msg);
        assert_int_equal(msg.ready.epoch, epoch);
        loaded += msg.ready.loaded_bytes;
        esp_msg_finish(&msg);
    }
    return loaded;
}

void rig_send_move(struct rig *rig, int i, uint64_t epoch, uint32_t lo, uint32_t hi, int to,
                   const uint64_t *images, uint32_t n_images)
{
    const struct esp_msg msg = {.kind = ESP_MSG_MOVE,
                                .move = {.epoch = epoch,
                                         .dec_lo = lo,
                                         .dec_hi = hi,
                                         .n_images = n_images,
                                         .images = images,
                                         .to = rig->w[to].endpoint}};
    rig_send(rig, i, &msg);
}

void rig_take_moved(struct rig *rig, uint64_t epoch, uint32_t n_layers, uint32_t n_images,
                    struct rig_moved *m)
{
    const uint64_t end = esp_now_ns() + ESP_PATIENCE_MS * UINT64_C(1000000);

    memset(m, 0, sizeof *m);
    while (m->n_layers < n_layers || m->n_images < n_images) {
        struct esp_peer from;
        struct esp_msg msg;

        if (esp_now_ns() > end)
            fail_msg("%u of %u layers and %u of %u pictures came in time", m->n_layers, n_layers, m->n_images,
                     n_images);
        assert_int_equal(esp_link_wait(&(struct esp_wait){.link = rig->link}, 1, ESP_PATIENCE_MS, NULL),
                         ESP_OK);
        if (esp_link_recv(rig->link, &from, &msg, NULL))
            continue;
        if (msg.kind == ESP_MSG_MOVED) {
            assert_int_equal(msg.moved.epoch, epoch);
            m->n_layers++;
            m->kv_blocks += msg.moved.kv_blocks;
            m->n_bytes += msg.moved.n_bytes;
        } else if (msg.kind == ESP_MSG_STORED) {
            assert_int_equal(msg.stored.epoch, epoch);
            m->n_images++;
        } else if (msg.kind != ESP_MSG_HEARTBEAT && msg.kind != ESP_MSG_LOADING) {
            fail_msg("%s%s%s", esp_msg_name(msg.kind), msg.kind == ESP_MSG_ERROR ? ": " : "",
                     msg.kind == ESP_MSG_ERROR ? msg.error.text : "");
        }
        esp_msg_finish(&msg);
    }
    assert_int_equal(m->n_layers, n_layers);
    assert_int_equal(m->n_images, n_images);
}

struct rig_moved rig_replace(struct rig *rig, uint64_t epoch, const struct rig_cut *from,
                             const struct rig_cut *to, const uint64_t *images, uint32_t n_images)
{
    const int embed0 = rig_at_dec(from, 0), embed1 = rig_at_dec(to, 0);
    uint32_t lo, hi, n_layers = 0;
    uint64_t loaded_bytes;
    struct rig_moved m;

    for (int i = 0; i < RIG_WORKERS; i++) {
        uint32_t n_moves = 0;

        for (int j = 0; j < RIG_WORKERS; j++)
            n_moves += rig_passes(from, to, i, j, &lo, &hi); /* layer 0 takes the pictures along */
        rig_put(rig, i, to, epoch, epoch - 1, n_moves, false);
    }
    loaded_bytes = rig_take_ready(rig, epoch, RIG_WORKERS);
    for (int i = 0; i < RIG_WORKERS; i++) {
        for (int j = 0; j < RIG_WORKERS; j++) {
            if (!rig_passes(from, to, i, j, &lo, &hi))
                continue;
            rig_send_move(rig, i, epoch, lo, hi, j, images, lo == 0 ? n_images : 0);
            n_layers += hi - lo;
        }
    }
    rig_take_moved(rig, epoch, n_layers, embed0 != embed1 ? n_images : 0, &m);
    m.loaded_bytes = loaded_bytes;
    return m;
}

void rig_expect_held(struct rig *rig, int i, uint64_t epoch, uint32_t n_seqs, uint32_t n_images)
{
    const uint64_t end = esp_now_ns() + ESP_PATIENCE_MS * UINT64_C(1000000);

    for (;;) {
        struct esp_msg msg;
        bool is;

        if (esp_now_ns() > end)
            fail_msg("worker %d does not come to hold %u sequences and %u pictures", i, n_seqs, n_images);

        rig_take(rig, i, ESP_MSG_HEARTBEAT, &msg);
        is = msg.heartbeat.epoch == epoch && msg.heartbeat.n_seqs == n_seqs &&
             msg.heartbeat.n_images == n_images;
        esp_msg_finish(&msg);
        if (is)
            return;
    }
}
