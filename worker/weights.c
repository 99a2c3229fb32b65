#include "worker/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/piece.h"

/* One vector to make. */
struct esp_vec_item {
    uint32_t n_part;
    struct esp_pack_part part[ESP_PACK_PARTS];
    uint32_t at, n;     /* where, and floats with padding */
    uint32_t rows, row; /* a matrix kept as float32: rows, and floats a row with padding; 0: a vector */
};

static struct esp_vec_item *item_add(struct esp_weights *w)
{
    if (w->n_items == w->cap_items) {
        uint32_t cap = w->cap_items ? 2 * w->cap_items : 64;
        struct esp_vec_item *items = realloc(w->items, cap * sizeof *items);
        if (!items)
            return NULL;
        w->items = items;
        w->cap_items = cap;
    }
    memset(&w->items[w->n_items], 0, sizeof *w->items);
    return &w->items[w->n_items++];
}

static uint32_t vec_reserve(struct esp_weights *w, uint64_t n)
{
    uint32_t at = (uint32_t)w->n_vec;
    w->n_vec += esp_round_up(n, 32);
    return at;
}

/* A vector of padded length np, made of parts; its index. */
static bool plan_vec(struct esp_weights *w, uint32_t *at, uint32_t np, const struct esp_pack_part *parts,
                     uint32_t n_part)
{
    struct esp_vec_item *it = item_add(w);

    if (!it)
        return false;
    it->n_part = n_part;
    memcpy(it->part, parts, n_part * sizeof *parts);
    it->n = np;
    *at = it->at = vec_reserve(w, np);
    return true;
}

/* A norm's; ESP_NONE if the model has none. */
static bool plan_norm(struct esp_weights *w, uint32_t *at, const struct esp_tensor *t)
{
    const struct esp_pack_part part = {.tensor = t};

    *at = ESP_NONE;
    return !t || plan_vec(w, at, (uint32_t)esp_round_up(t->shape[0], 32), &part, 1);
}

/* The positions of pictures, added row by row. */
static bool plan_rows(struct esp_weights *w, uint32_t *at, const struct esp_tensor *t,
                      const struct esp_vision_config *c)
{
    struct esp_vec_item *it = item_add(w);

    if (!it)
        return false;
    it->n_part = 1;
    it->part[0].tensor = t;
    it->rows = c->n_token;
    it->row = (uint32_t)esp_round_up(c->width, 32);
    it->n = it->rows * it->row;
    *at = it->at = vec_reserve(w, it->n);
    return true;
}

/* A piece's matrix as the stage sees it: its chunks come after those of the pieces before. */
static bool plan_mat(struct esp_weights *w, struct esp_mat *mat, const struct esp_piece *piece,
                     uint32_t which)
{
    const struct esp_piece_mat *m = &piece->mat[which];

    *mat = m->mat;
    for (uint32_t i = 0; i < mat->n_part; i++)
        mat->part[i].chunk += w->n_chunk;
    return !m->biased || plan_vec(w, &mat->bias, m->dims.np, m->bias, m->spec.n_part);
}

static bool plan_encoder_layer(struct esp_weights *w, struct esp_enc_layer *l, const struct esp_piece *p)
{
    return plan_norm(w, &l->norm1_w, p->vec[ESP_ENC_NORM1_W]) &&
           plan_norm(w, &l->norm1_b, p->vec[ESP_ENC_NORM1_B]) &&
           plan_norm(w, &l->norm2_w, p->vec[ESP_ENC_NORM2_W]) &&
           plan_norm(w, &l->norm2_b, p->vec[ESP_ENC_NORM2_B]) && plan_mat(w, &l->qkv, p, ESP_ENC_QKV) &&
           plan_mat(w, &l->o, p, ESP_ENC_O) && plan_mat(w, &l->fc1, p, ESP_ENC_FC1) &&
           plan_mat(w, &l->fc2, p, ESP_ENC_FC2);
}

static bool plan_decoder_layer(struct esp_weights *w, struct esp_dec_layer *l, const struct esp_piece *p)
{
    return plan_norm(w, &l->norm_attn, p->vec[ESP_DEC_NORM_ATTN]) &&
           plan_norm(w, &l->norm_mlp, p->vec[ESP_DEC_NORM_MLP]) &&
           plan_norm(w, &l->norm_post_attn, p->vec[ESP_DEC_NORM_POST_ATTN]) &&
           plan_norm(w, &l->norm_post_mlp, p->vec[ESP_DEC_NORM_POST_MLP]) &&
           plan_mat(w, &l->qkv, p, ESP_DEC_QKV) && plan_mat(w, &l->o, p, ESP_DEC_O) &&
           plan_mat(w, &l->gate_up, p, ESP_DEC_GATE_UP) && plan_mat(w, &l->down, p, ESP_DEC_DOWN);
}

static bool plan_piece(struct esp_weights *w, uint32_t piece, const struct esp_piece *p,
                       const struct esp_config *c, const struct esp_stage_spec *spec)
{
    uint32_t layer = piece - ESP_N_PIECE_END;

    switch (piece) {
    case ESP_PIECE_PATCH:
        return plan_mat(w, &w->patch, p, 0) && plan_rows(w, &w->pos, p->vec[0], &c->vision);
    case ESP_PIECE_PROJECTOR:
        return plan_norm(w, &w->post_w, p->vec[0]) && plan_norm(w, &w->post_b, p->vec[1]) &&
               plan_mat(w, &w->proj, p, 0);
    case ESP_PIECE_EMBED:
        return plan_mat(w, &w->embed, p, 0) && (!spec->head || plan_norm(w, &w->norm_final, p->vec[0]));
    default:
        if (layer < c->vision.n_layer)
            return plan_encoder_layer(w, &w->enc[layer - spec->enc_lo], p);
        layer -= c->vision.n_layer;
        return plan_decoder_layer(w, &w->dec[layer - spec->dec_lo], p);
    }
}

esp_status esp_weights_plan(struct esp_weights *w, struct esp_shelf *shelf, const struct esp_stage_spec *spec,
                            uint32_t n_pos, struct esp_err *err)
{
    const struct esp_config *c = esp_checkpoint_config(esp_shelf_checkpoint(shelf));
    const uint32_t n_enc = spec->enc_hi - spec->enc_lo, n_dec = spec->dec_hi - spec->dec_lo;
    const struct esp_piece *p;
    esp_status st = ESP_OK;

    memset(w, 0, sizeof *w);
    w->enc = calloc(n_enc + 1, sizeof *w->enc);
    w->dec = calloc(n_dec + 1, sizeof *w->dec);
    if (!w->enc || !w->dec)
        st = esp_fail(err, ESP_E_NOMEM, "list of weights");
    else
        st = esp_shelf_hold_as(shelf, spec->weights, err);
    for (uint32_t i = 0; !st && i < esp_piece_count(c); i++) {
        if (!esp_piece_of(i, c, spec) || (st = esp_shelf_piece(&p, shelf, i, err)))
            continue;
        if (!plan_piece(w, i, p, c, spec))
            st = esp_fail(err, ESP_E_NOMEM, "list of weights");
        w->n_chunk += p->n_chunk;
        w->n_bytes += p->n_bytes;
    }
    if (spec->dec_lo < spec->dec_hi) {
        const uint64_t n = (uint64_t)n_pos * esp_pack_head_dim(c->text.head_dim) / 2;
        w->rope_cos = vec_reserve(w, n);
        w->rope_sin = vec_reserve(w, n);
    }
    w->n_bytes += w->n_vec * sizeof(float);
    if (!st && w->n_vec > UINT32_MAX / 8)
        st = esp_fail(err, ESP_E_NOMEM, "%llu floats of small vectors", (unsigned long long)w->n_vec);
    if (!st && w->n_chunk > ESP_MAX_CHUNKS)
        st = esp_fail(err, ESP_E_NOMEM,
                      "weights in %u buffers, takes %d: the device's are too small, %.1f MiB", w->n_chunk,
                      ESP_MAX_CHUNKS, (double)esp_shelf_vk(shelf)->max_alloc_bytes / (1 << 20));
    if (st)
        esp_weights_finish(w);
    return st;
}

void esp_weights_finish(struct esp_weights *w)
{
    free(w->enc);
    free(w->dec);
    free(w->items);
    memset(w, 0, sizeof *w);
}

static void fill_vec(float *vec, const struct esp_vec_item *it)
{
    if (!it->rows) {
        esp_pack_vector(vec + it->at, it->n, it->part, it->n_part);
        return;
    }
    const struct esp_tensor *t = it->part[0].tensor;
    const size_t n_col = t->shape[1];
    const size_t b = esp_dtype_n_bytes(t->dtype);
    for (uint32_t r = 0; r < it->rows; r++)
        esp_dtype_to_f32(vec + it->at + (size_t)r * it->row, (const char *)t->data + r * n_col * b, t->dtype,
                         n_col);
}

/* cos and sin of pos * theta^(-2j/H) in float64; columns of padding stay zero. arXiv 2104.09864, section 3.2.
 */
static void fill_rope(float *cos_table, float *sin_table, const struct esp_text_config *c, uint32_t n_pos)
{
    const uint32_t half = c->head_dim / 2, half_p = esp_pack_head_dim(c->head_dim) / 2;

    for (uint32_t j = 0; j < half; j++) {
        const double freq = pow((double)c->rope_theta, -2.0 * j / c->head_dim);
        for (uint32_t pos = 0; pos < n_pos; pos++) {
            cos_table[(size_t)pos * half_p + j] = (float)cos(pos * freq);
            sin_table[(size_t)pos * half_p + j] = (float)sin(pos * freq);
        }
    }
}

/* Their bytes may have to be fetched first, also where the matrices beside them are on the shelf. */
static esp_status await_vecs(const struct esp_weights *w, struct esp_shelf *shelf, esp_load_progress progress,
                             void *arg, struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (uint32_t i = 0; !st && i < w->n_items; i++) {
        const struct esp_tensor *tensors[ESP_PACK_PARTS];
        for (uint32_t k = 0; k < w->items[i].n_part; k++)
            tensors[k] = w->items[i].part[k].tensor;
        st = esp_shelf_await(shelf, tensors, w->items[i].n_part, progress, arg, err);
    }
    return st;
}

static esp_status load_vecs(const struct esp_weights *w, struct esp_buf *to, struct esp_vk *vk,
                            const struct esp_config *c, uint32_t n_pos, struct esp_err *err)
{
    const size_t n_bytes = w->n_vec * sizeof(float);
    float *vec = calloc(w->n_vec ? w->n_vec : 1, sizeof *vec);
    struct esp_upload up = {0};
    esp_status st;

    if (!vec)
        return esp_fail(err, ESP_E_NOMEM, "small vectors, %zu bytes", n_bytes);
    for (uint32_t i = 0; i < w->n_items; i++)
        fill_vec(vec, &w->items[i]);
    if (w->rope_sin > w->rope_cos)
        fill_rope(vec + w->rope_cos, vec + w->rope_sin, &c->text, n_pos);
    st = esp_buf_create(to, vk, ESP_BUF_DEVICE, n_bytes, VK_FORMAT_UNDEFINED, "small vectors", err);
    if (!st)
        st = esp_upload_init(&up, vk, err);
    for (size_t at = 0; !st && at < n_bytes; at += ESP_UPLOAD_BYTES) {
        const size_t n = n_bytes - at < ESP_UPLOAD_BYTES ? n_bytes - at : ESP_UPLOAD_BYTES;
        void *dst;
        if ((st = esp_upload_map(&dst, &up, to, at, n, err)))
            break;
        memcpy(dst, (char *)vec + at, n);
        st = esp_upload_commit(&up, err);
    }
    if (!st)
        st = esp_upload_wait(&up, err);
    esp_upload_finish(&up);
    free(vec);
    return st;
}

esp_status esp_weights_load(struct esp_weights *w, struct esp_space *space, struct esp_shelf *shelf,
                            const struct esp_stage_spec *spec, uint32_t n_pos, esp_load_progress progress,
                            void *arg, struct esp_err *err)
{
    const struct esp_config *c = esp_checkpoint_config(esp_shelf_checkpoint(shelf));
    const struct esp_piece *p;
    esp_status st = esp_shelf_fill(shelf, spec, progress, arg, &w->read_bytes, err);

    for (uint32_t i = 0; !st && i < esp_piece_count(c); i++) {
        if (!esp_piece_of(i, c, spec) || (st = esp_shelf_piece(&p, shelf, i, err)))
            continue;
        for (uint32_t k = 0; k < p->n_chunk; k++) /* as many as planned, in the same order */
            space->chunk[space->n_chunk++] = &esp_shelf_chunks(shelf, i)[k];
    }
    if (!st)
        st = await_vecs(w, shelf, progress, arg, err);
    if (!st)
        st = load_vecs(w, &space->vec, space->vk, c, n_pos, err);
    free(w->items);
    w->items = NULL;
    return st;
}
