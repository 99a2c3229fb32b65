#include "tests/support/fake_stage.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "worker/shelf.h"

struct fake_seq {
    uint64_t id; /* 0: unused */
    uint32_t n_tok;
    float h[FAKE_LAYERS][FAKE_WIDTH];
};

struct fake_image {
    uint64_t id;
    float x[FAKE_PICTURE_ROWS][FAKE_WIDTH];
};

struct esp_stage {
    struct esp_stage_spec spec;
    uint64_t loaded_bytes;
    bool has_books; /* its sequences are the model's, not those of a stage that has yet to get any */
    struct fake_seq seq[FAKE_SEQS];
    struct fake_image image[FAKE_IMAGES];
};

static void sleep_ms(long ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    nanosleep(&t, NULL);
}

struct esp_shelf {
    uint32_t layers; /* it holds: a bit each, the encoder's first */
};

/** A placement's layers, likewise. */
static uint32_t layers_of(const struct esp_stage_spec *spec)
{
    uint32_t bits = 0;

    for (uint32_t l = spec->enc_lo; l < spec->enc_hi; l++)
        bits |= 1u << l;
    for (uint32_t l = spec->dec_lo; l < spec->dec_hi; l++)
        bits |= 1u << (FAKE_LAYERS + l);
    return bits;
}

esp_status esp_shelf_create(struct esp_shelf **out, struct esp_vk *vk, const struct esp_checkpoint *ck,
                            esp_shelf_need need, void *need_arg, struct esp_err *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "fake shelf");
}

void esp_shelf_destroy(struct esp_shelf **shelf)
{
    free(*shelf);
    *shelf = NULL;
}

atomic_ullong fake_slice_bytes;

/* Of 6000 bytes: all at once, or FAKE_KV_SLOW: 100 a slice of 10 ms. */
esp_status esp_shelf_load(struct esp_shelf *shelf, const struct esp_stage_spec *spec, uint64_t max_bytes,
                          struct esp_shelf_slice *out, struct esp_err *err)
{
    static _Thread_local uint64_t n_done; /* a runner's thread loads one placement at a time */

    memset(out, 0, sizeof *out);
    if (spec->kv_tokens == FAKE_KV_NOMEM)
        return esp_fail(err, ESP_E_NOMEM, "weights: 9999 MiB, 12 MiB left");
    out->weight_bytes = 6000;
    out->loaded_bytes = 6000;
    if (spec->kv_tokens == FAKE_KV_SLOW) {
        sleep_ms(10);
        out->loaded_bytes = 100;
        n_done += 100;
        out->lacking_bytes = 6000 - n_done;
    }
    if (spec->kv_tokens == FAKE_KV_CRAWL) {
        out->weight_bytes = 64u << 20;
        out->loaded_bytes = max_bytes < out->weight_bytes - n_done ? max_bytes : out->weight_bytes - n_done;
        sleep_ms((long)(out->loaded_bytes / 100000));
        n_done += out->loaded_bytes;
        out->lacking_bytes = out->weight_bytes - n_done;
        atomic_store(&fake_slice_bytes, max_bytes);
    }
    if (out->lacking_bytes == 0) {
        n_done = 0;
        shelf->layers |= layers_of(spec);
    }
    return ESP_OK;
}

esp_status esp_stage_create(struct esp_stage **out, struct esp_shelf *shelf,
                            const struct esp_stage_spec *spec, struct esp_stage *former,
                            esp_load_progress progress, void *progress_arg, struct esp_err *err)
{
    *out = NULL;
    if (spec->enc_hi > FAKE_LAYERS || spec->dec_hi > FAKE_LAYERS)
        return esp_fail(err, ESP_E_ARG, "layers up to %u and %u, has %d", spec->enc_hi, spec->dec_hi,
                        FAKE_LAYERS);
    if (spec->kv_tokens == FAKE_KV_NOMEM)
        return esp_fail(err, ESP_E_NOMEM, "KV cache: 9999 MiB, 12 MiB left");
    for (uint64_t i = 0; spec->kv_tokens == FAKE_KV_SLOW && i <= 60; i++) {
        if (!progress(progress_arg, i * 100, 6000))
            return esp_fail(err, ESP_E_CANCELLED, "given up");
        sleep_ms(10);
    }
    *out = calloc(1, sizeof **out);
    if (!*out)
        return esp_fail(err, ESP_E_NOMEM, "fake stage");
    (*out)->spec = *spec;
    (*out)->loaded_bytes = FAKE_LAYER_BYTES * (uint64_t)__builtin_popcount(layers_of(spec) & ~shelf->layers);
    shelf->layers = layers_of(spec);
    if (former && former->spec.dec_lo < former->spec.dec_hi && spec->dec_lo < spec->dec_hi) {
        (*out)->has_books = true;
        for (int i = 0; i < FAKE_SEQS; i++) {
            struct fake_seq *to = &(*out)->seq[i];

            *to = former->seq[i];
            memset(to->h, 0, sizeof to->h);
            for (uint32_t l = spec->dec_lo; l < spec->dec_hi; l++)
                if (l >= former->spec.dec_lo && l < former->spec.dec_hi)
                    memcpy(to->h[l], former->seq[i].h[l], sizeof to->h[l]);
        }
    }
    if (former && former->spec.embed && spec->embed)
        memcpy((*out)->image, former->image, sizeof(*out)->image);
    return ESP_OK;
}

esp_status esp_stage_prepare(struct esp_shelf *shelf, const struct esp_stage_spec *spec, bool few,
                             struct esp_err *err)
{
    (void)few;
    (void)shelf;
    (void)spec;
    (void)err;
    return ESP_OK;
}

void esp_stage_destroy(struct esp_stage **stage)
{
    free(*stage);
    *stage = NULL;
}

const struct esp_stage_spec *esp_stage_spec(const struct esp_stage *stage)
{
    return &stage->spec;
}

void esp_stage_info(const struct esp_stage *stage, struct esp_stage_info_out *out)
{
    memset(out, 0, sizeof *out);
    out->weight_bytes = 1000;
    out->loaded_bytes = stage->loaded_bytes;
    out->kv_bytes = 2000;
    out->scratch_bytes = 3000;
    out->kv_blocks = stage->spec.kv_tokens / FAKE_BLOCK_TOKENS + 1;
    out->block_tokens = FAKE_BLOCK_TOKENS;
    for (int i = 0; i < FAKE_SEQS; i++) {
        out->n_seqs += stage->seq[i].id != 0;
        out->kv_used_blocks += (stage->seq[i].n_tok + FAKE_BLOCK_TOKENS - 1) / FAKE_BLOCK_TOKENS;
    }
    for (int i = 0; i < FAKE_IMAGES; i++)
        out->n_images += stage->image[i].id != 0;
}

static void *get(size_t n, size_t n_bytes)
{
    void *p = calloc(n ? n : 1, n_bytes);

    if (!p)
        abort(); /* a test's machine has memory */
    return p;
}

static void add_trace(struct esp_stage_out *out, const char *kind, uint32_t layer, const float *x,
                      uint32_t rows)
{
    struct esp_stage_trace *t;

    if (!out->traces)
        out->traces = get(2 * FAKE_LAYERS, sizeof *out->traces);
    t = &out->traces[out->n_traces++];
    snprintf(t->name, sizeof t->name, "%s.layer.%u", kind, layer);
    t->rows = rows;
    t->width = FAKE_WIDTH;
    t->data = get((size_t)rows * FAKE_WIDTH, sizeof(float));
    memcpy(t->data, x, (size_t)rows * FAKE_WIDTH * sizeof(float));
}

esp_status esp_stage_encode(struct esp_stage *stage, const struct esp_msg_encode *msg, const void *data,
                            struct esp_stage_out *out, struct esp_err *err)
{
    float *x;

    if (stage->spec.patch != (msg->payload == ESP_PAYLOAD_PIXELS))
        return esp_fail(err, ESP_E_PROTO, "not what this stage encodes");
    if (msg->payload == ESP_PAYLOAD_ROWS && (msg->rows != FAKE_PICTURE_ROWS || msg->width != FAKE_WIDTH))
        return esp_fail(err, ESP_E_PROTO, "f32[%u,%u], takes [%d,%d]", msg->rows, msg->width,
                        FAKE_PICTURE_ROWS, FAKE_WIDTH);
    x = get(FAKE_PICTURE_ROWS * FAKE_WIDTH, sizeof *x);
    if (msg->payload == ESP_PAYLOAD_PIXELS) {
        memcpy(x, data, sizeof *x);
        for (int i = FAKE_PICTURE_ROWS * FAKE_WIDTH - 1; i >= 0; i--)
            x[i] = x[0] + (float)i;
    } else {
        memcpy(x, data, FAKE_PICTURE_ROWS * FAKE_WIDTH * sizeof *x);
    }
    for (uint32_t l = stage->spec.enc_lo; l < stage->spec.enc_hi; l++) {
        for (int i = 0; i < FAKE_PICTURE_ROWS * FAKE_WIDTH; i++)
            x[i] += (float)(l + 1) / 4;
        if (msg->trace)
            add_trace(out, "vision", l, x, FAKE_PICTURE_ROWS);
    }
    for (int i = 0; stage->spec.projector && i < FAKE_PICTURE_ROWS * FAKE_WIDTH; i++)
        x[i] *= 2;
    out->rows = x;
    out->n_rows = FAKE_PICTURE_ROWS;
    out->width = FAKE_WIDTH;
    out->payload = stage->spec.projector ? ESP_PAYLOAD_FEATURES : ESP_PAYLOAD_ROWS;
    out->compute_seconds = 0.001;
    return ESP_OK;
}

static struct fake_image *find_image(struct esp_stage *stage, uint64_t id)
{
    for (int i = 0; i < FAKE_IMAGES; i++) {
        if (stage->image[i].id == id)
            return &stage->image[i];
    }
    return NULL;
}

static struct fake_seq *find_seq(struct esp_stage *stage, uint64_t id)
{
    for (int i = 0; i < FAKE_SEQS; i++) {
        if (stage->seq[i].id == id)
            return &stage->seq[i];
    }
    return NULL;
}

esp_status esp_stage_store(struct esp_stage *stage, const struct esp_msg_encode *msg, const void *data,
                           struct esp_err *err)
{
    struct fake_image *image = find_image(stage, msg->image);

    if (!image)
        image = find_image(stage, 0);
    if (!image)
        return esp_fail(err, ESP_E_LIMIT, "%d images stored, takes no more", FAKE_IMAGES);
    if (msg->rows != FAKE_PICTURE_ROWS || msg->width != FAKE_WIDTH)
        return esp_fail(err, ESP_E_PROTO, "features f32[%u,%u]", msg->rows, msg->width);
    image->id = msg->image;
    memcpy(image->x, data, sizeof image->x);
    return ESP_OK;
}

static void forget_seq(struct esp_stage *stage, uint64_t id)
{
    struct fake_seq *s = find_seq(stage, id);

    if (s)
        memset(s, 0, sizeof *s);
}

static esp_status check_step(struct esp_stage *stage, const struct esp_msg_step *msg, struct esp_err *err)
{
    for (uint32_t i = 0; i < msg->n_seqs; i++) {
        const struct esp_seq_rows *r = &msg->seqs[i];
        struct fake_seq *s = find_seq(stage, r->seq);

        if (r->pos != (s ? s->n_tok : 0))
            return esp_fail(err, ESP_E_PROTO, "sequence %" PRIu64 ": position %u, expected %u", r->seq,
                            r->pos, s ? s->n_tok : 0);
        if (!s && !find_seq(stage, 0))
            return esp_fail(err, ESP_E_LIMIT, "too many sequences");
        for (uint32_t k = 0; stage->spec.embed && k < r->n_images; k++) {
            if (!find_image(stage, r->images[k]))
                return esp_fail(err, ESP_E_PROTO, "image %" PRIu64 " is not stored", r->images[k]);
        }
        if (stage->spec.head && r->seq == FAKE_SEQ_LIMIT)
            return esp_fail(err, ESP_E_LIMIT, "KV cache: needs 3 blocks, 1 of 64 free");
        if (stage->spec.head && r->seq == FAKE_SEQ_DEVICE)
            return esp_fail(err, ESP_E_DEVICE, "vkQueueSubmit: VK_ERROR_DEVICE_LOST");
        if (stage->spec.head && r->seq == FAKE_SEQ_SLOW)
            sleep_ms(FAKE_SLOW_MS);
        if (stage->spec.head && r->seq == FAKE_SEQ_STUCK)
            sleep_ms(4000);
    }
    return ESP_OK;
}

/** The stage's first rows: what came, or token ids spread over the width, with pictures in their places. */
static float *rows_in(struct esp_stage *stage, const struct esp_msg_step *msg, const void *data)
{
    float *x = get((size_t)msg->rows * FAKE_WIDTH, sizeof *x);
    uint32_t row = 0;

    if (msg->payload == ESP_PAYLOAD_ROWS) {
        memcpy(x, data, (size_t)msg->rows * FAKE_WIDTH * sizeof *x);
        return x;
    }
    for (uint32_t i = 0; i < msg->rows; i++) {
        int32_t id;
        memcpy(&id, (const char *)data + i * sizeof id, sizeof id);
        for (uint32_t d = 0; d < FAKE_WIDTH; d++)
            x[i * FAKE_WIDTH + d] = (float)(id * (int32_t)(d + 1));
    }
    for (uint32_t i = 0; i < msg->n_seqs; row += msg->seqs[i++].n_tok) {
        for (uint32_t k = 0; k < msg->seqs[i].n_images && (k + 1) * FAKE_PICTURE_ROWS <= msg->seqs[i].n_tok;
             k++)
            memcpy(x + (row + k * FAKE_PICTURE_ROWS) * FAKE_WIDTH,
                   find_image(stage, msg->seqs[i].images[k])->x, sizeof stage->image[0].x);
    }
    return x;
}

static void results(struct esp_stage_out *out, const struct esp_msg_step *msg, const float *x)
{
    out->results = get(msg->n_wants, sizeof *out->results);
    out->full = get((size_t)msg->n_wants * FAKE_VOCAB, sizeof *out->full);
    out->vocab = FAKE_VOCAB;
    for (uint32_t i = 0; i < msg->n_wants; i++) {
        const struct esp_want *w = &msg->wants[i];
        const float *row = x + (size_t)w->row * FAKE_WIDTH;
        uint32_t n = w->k < FAKE_VOCAB ? w->k : FAKE_VOCAB;
        uint32_t *ids = get(n, sizeof *ids);
        float *logits = get(n, sizeof *logits);

        for (uint32_t k = 0; k < n; k++) {
            ids[k] = k;
            logits[k] = row[0] - (float)k;
        }
        out->results[out->n_results++] = (struct esp_row_result){.row = w->row,
                                                                 .lse = row[0],
                                                                 .target_logit = w->has_target ? row[1] : 0,
                                                                 .n = n,
                                                                 .ids = ids,
                                                                 .logits = logits};
        for (uint32_t v = 0; w->full && v < FAKE_VOCAB; v++)
            out->full[(size_t)out->n_full * FAKE_VOCAB + v] = row[v % FAKE_WIDTH] + (float)v;
        out->n_full += w->full;
    }
}

esp_status esp_stage_step(struct esp_stage *stage, const struct esp_msg_step *msg, const void *data,
                          struct esp_stage_out *out, struct esp_err *err)
{
    esp_status st;
    float *x;

    for (uint32_t i = 0; i < msg->n_free; i++)
        forget_seq(stage, msg->free[i]);
    for (uint32_t i = 0; i < msg->n_forks; i++) {
        struct fake_seq *from = find_seq(stage, msg->forks[i].from), *to = find_seq(stage, 0);
        if (!from || !to || find_seq(stage, msg->forks[i].seq))
            return esp_fail(err, ESP_E_PROTO, "fork of %" PRIu64, msg->forks[i].from);
        *to = *from;
        to->id = msg->forks[i].seq;
    }
    if (msg->payload == ESP_PAYLOAD_ROWS && msg->width != FAKE_WIDTH)
        return esp_fail(err, ESP_E_PROTO, "rows of width %u, expected %d", msg->width, FAKE_WIDTH);
    st = check_step(stage, msg, err);
    if (st)
        return st;
    x = rows_in(stage, msg, data);
    for (uint32_t l = stage->spec.dec_lo; l < stage->spec.dec_hi; l++) {
        float *at = x;

        for (uint32_t i = 0; i < msg->n_seqs; i++) {
            struct fake_seq *s = find_seq(stage, msg->seqs[i].seq);
            if (!s) {
                s = find_seq(stage, 0);
                s->id = msg->seqs[i].seq;
            }
            for (uint32_t t = 0; t < msg->seqs[i].n_tok; t++, at += FAKE_WIDTH) {
                for (uint32_t d = 0; d < FAKE_WIDTH; d++) {
                    s->h[l][d] += at[d];
                    at[d] += (float)(l + 1) + s->h[l][d] / 2;
                }
            }
            if (l + 1 == stage->spec.dec_hi)
                s->n_tok += msg->seqs[i].n_tok;
        }
        if (msg->trace)
            add_trace(out, "prefill", l, x, msg->rows);
    }
    if (stage->spec.head) {
        results(out, msg, x);
        free(x);
    } else {
        out->rows = x;
        out->n_rows = msg->rows;
        out->width = FAKE_WIDTH;
        out->payload = ESP_PAYLOAD_ROWS;
    }
    out->compute_seconds = 0.001;
    return ESP_OK;
}

void esp_stage_release(struct esp_stage *stage, const struct esp_msg_release *msg)
{
    for (uint32_t i = 0; i < msg->n_seqs; i++)
        forget_seq(stage, msg->seqs[i]);
    for (uint32_t i = 0; i < msg->n_images; i++) {
        struct fake_image *image = find_image(stage, msg->images[i]);
        if (image)
            memset(image, 0, sizeof *image);
    }
}

/* ---- moving ---- */

void esp_stage_retire(struct esp_stage *stage)
{
    (void)stage;
}

static uint32_t blocks_of(uint32_t n_tok)
{
    return (n_tok + FAKE_BLOCK_TOKENS - 1) / FAKE_BLOCK_TOKENS;
}

/** What fills block `at` of a sequence, but for its last one. */
static float filler(uint64_t seq, uint32_t at)
{
    return (float)(seq * 100 + at);
}

enum { BLOCK_FLOATS = FAKE_BLOCK_TOKENS * FAKE_WIDTH };

/** The floats of block `number`, counted over all sequences. */
static void block_out(const struct esp_stage *stage, uint32_t layer, uint32_t number, float *out)
{
    for (int i = 0; i < FAKE_SEQS; i++) {
        const struct fake_seq *s = &stage->seq[i];
        uint32_t n = s->id ? blocks_of(s->n_tok) : 0;

        if (number < n) {
            for (int f = 0; f < BLOCK_FLOATS; f++)
                out[f] = filler(s->id, number);
            if (number + 1 == n)
                memcpy(out, s->h[layer], sizeof s->h[layer]);
            return;
        }
        number -= n;
    }
}

esp_status esp_stage_export_kv(struct esp_stage *stage, uint32_t layer, uint32_t first, size_t max_bytes,
                               struct esp_stage_kv *out, struct esp_err *err)
{
    uint32_t n = 0, at = 0;

    (void)max_bytes;
    memset(out, 0, sizeof *out);
    if (layer < stage->spec.dec_lo || layer >= stage->spec.dec_hi)
        return esp_fail(err, ESP_E_PROTO, "no KV of layer %u", layer);
    out->books.seqs = get(FAKE_SEQS, sizeof *out->books.seqs);
    for (int i = 0; i < FAKE_SEQS; i++)
        n += stage->seq[i].id ? blocks_of(stage->seq[i].n_tok) : 0;
    out->books.lists = get(n, sizeof *out->books.lists);
    for (int i = 0; i < FAKE_SEQS; i++) {
        const struct fake_seq *s = &stage->seq[i];

        if (!s->id)
            continue;
        out->books.seqs[out->books.n_seqs++] =
            (struct esp_kv_seq){s->id, s->n_tok, blocks_of(s->n_tok), out->books.lists + at};
        for (uint32_t b = 0; b < blocks_of(s->n_tok); b++, at++)
            out->books.lists[at] = at;
    }
    out->books.n_blocks = n;
    if (first > n)
        return esp_fail(err, ESP_E_PROTO, "no block %u", first);
    out->msg = (struct esp_msg_kv_blocks){
        .layer = layer,
        .first = first,
        .n_blocks = n - first < FAKE_MOVE_BLOCKS ? n - first : FAKE_MOVE_BLOCKS,
        .total_blocks = n,
        .block_tokens = FAKE_BLOCK_TOKENS,
        .width = FAKE_WIDTH,
        .n_seqs = out->books.n_seqs,
        .seqs = out->books.seqs,
    };
    out->data = out->msg.n_blocks ? get((size_t)out->msg.n_blocks * BLOCK_FLOATS, sizeof(float)) : NULL;
    for (uint32_t b = 0; b < out->msg.n_blocks; b++)
        block_out(stage, layer, first + b, out->data + (size_t)b * BLOCK_FLOATS);
    return ESP_OK;
}

static esp_status check_books(struct esp_stage *stage, const struct esp_msg_kv_blocks *msg,
                              struct esp_err *err)
{
    uint32_t n = 0;

    if (msg->block_tokens != FAKE_BLOCK_TOKENS || msg->width != FAKE_WIDTH)
        return esp_fail(err, ESP_E_PROTO, "blocks of [%u,%u], takes [%d,%d]", msg->block_tokens, msg->width,
                        FAKE_BLOCK_TOKENS, FAKE_WIDTH);
    if (msg->n_seqs > FAKE_SEQS)
        return esp_fail(err, ESP_E_LIMIT, "%u sequences", msg->n_seqs);
    for (int i = 0; i < FAKE_SEQS; i++)
        n += stage->seq[i].id != 0;
    if (stage->has_books && n != msg->n_seqs)
        return esp_fail(err, ESP_E_PROTO, "books of %u sequences, but %u are here", msg->n_seqs, n);
    for (uint32_t i = 0; stage->has_books && i < msg->n_seqs; i++) {
        const struct fake_seq *s = find_seq(stage, msg->seqs[i].seq);

        if (!s || s->n_tok != msg->seqs[i].n_tok)
            return esp_fail(err, ESP_E_PROTO, "sequence %" PRIu64 " of %u tokens, here it has %u",
                            msg->seqs[i].seq, msg->seqs[i].n_tok, s ? s->n_tok : 0);
    }
    return ESP_OK;
}

esp_status esp_stage_import_kv(struct esp_stage *stage, const struct esp_msg_kv_blocks *msg, const void *data,
                               struct esp_err *err)
{
    esp_status st = check_books(stage, msg, err);

    if (st)
        return st;
    for (uint32_t i = 0; !stage->has_books && i < msg->n_seqs; i++) {
        struct fake_seq *s = find_seq(stage, 0);

        s->id = msg->seqs[i].seq;
        s->n_tok = msg->seqs[i].n_tok;
    }
    stage->has_books = true;
    for (uint32_t i = 0; i < msg->n_seqs; i++) {
        struct fake_seq *s = find_seq(stage, msg->seqs[i].seq);

        for (uint32_t b = 0; b < msg->seqs[i].n_blocks; b++) {
            const uint32_t number = msg->seqs[i].blocks[b];
            float block[BLOCK_FLOATS];

            if (number < msg->first || number >= msg->first + msg->n_blocks)
                continue;
            memcpy(block, (const char *)data + (size_t)(number - msg->first) * sizeof block, sizeof block);
            if (b + 1 == msg->seqs[i].n_blocks)
                memcpy(s->h[msg->layer], block, sizeof s->h[msg->layer]);
            else if (block[0] != filler(s->id, b))
                return esp_fail(err, ESP_E_NUMBERS, "block %u of sequence %" PRIu64 " holds another one", b,
                                s->id);
        }
    }
    return ESP_OK;
}

esp_status esp_stage_export_features(struct esp_stage *stage, uint64_t image, struct esp_stage_out *out,
                                     struct esp_err *err)
{
    const struct fake_image *from = image && stage->spec.embed ? find_image(stage, image) : NULL;

    memset(out, 0, sizeof *out);
    if (!from)
        return esp_fail(err, ESP_E_PROTO, "image %" PRIu64 " is not here", image);
    out->rows = get(FAKE_PICTURE_ROWS * FAKE_WIDTH, sizeof(float));
    memcpy(out->rows, from->x, sizeof from->x);
    out->n_rows = FAKE_PICTURE_ROWS;
    out->width = FAKE_WIDTH;
    out->payload = ESP_PAYLOAD_FEATURES;
    return ESP_OK;
}
