#include "worker/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One matrix or vector to load. */
struct esp_weight_item {
    struct esp_mat *mat; /* NULL: a vector */
    struct esp_pack_spec spec;
    struct esp_pack_dims dims;
    uint32_t vec_at, vec_n;     /* vector: where, and floats with padding */
    uint32_t vec_rows, vec_row; /* a matrix kept as float32: rows, and floats a row with padding */
};

static struct esp_weight_item *item_add(struct esp_weights *w)
{
    if (w->n_items == w->cap_items) {
        uint32_t cap = w->cap_items ? 2 * w->cap_items : 64;
        struct esp_weight_item *items = realloc(w->items, cap * sizeof *items);
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

/* A planned vector of padded length np, made of parts; its index. */
static uint32_t plan_vec(struct esp_weights *w, uint32_t np, const struct esp_pack_part *parts,
                         uint32_t n_part)
{
    struct esp_weight_item *it = item_add(w);

    if (!it)
        return ESP_NONE;
    it->spec.n_part = n_part;
    memcpy(it->spec.part, parts, n_part * sizeof *parts);
    it->vec_n = np;
    it->vec_at = vec_reserve(w, np);
    return it->vec_at;
}

static uint32_t plan_norm(struct esp_weights *w, const struct esp_tensor *t)
{
    const struct esp_pack_part part = {.tensor = t};
    return plan_vec(w, (uint32_t)esp_round_up(t->shape[0], 32), &part, 1);
}

static bool plan_mat(struct esp_weights *w, struct esp_mat *mat, const struct esp_pack_spec *spec,
                     const struct esp_pack_part *bias)
{
    struct esp_weight_item *it = item_add(w);
    struct esp_pack_dims dims;

    if (!it)
        return false;
    esp_pack_dims(&dims, spec);
    it->mat = mat;
    it->spec = *spec;
    it->dims = dims;
    mat->n = dims.n;
    mat->np = dims.np;
    mat->kp = dims.kp;
    mat->dtype = dims.dtype;
    mat->bias = ESP_NONE;
    if (bias) {
        mat->bias = plan_vec(w, dims.np, bias, spec->n_part);
        return mat->bias != ESP_NONE;
    }
    return true;
}

/* One tensor as it is. */
static bool plan_simple(struct esp_weights *w, struct esp_mat *mat, const struct esp_tensor *t,
                        const struct esp_tensor *bias, struct esp_pack_heads k_heads)
{
    const struct esp_pack_spec spec = {.n_part = 1, .part = {{.tensor = t}}, .k_heads = k_heads};
    const struct esp_pack_part b = {.tensor = bias};
    return plan_mat(w, mat, &spec, bias ? &b : NULL);
}

static bool plan_encoder_layer(struct esp_weights *w, struct esp_enc_layer *l,
                               const struct esp_checkpoint *ck, uint32_t layer)
{
    const struct esp_vision_config *c = &esp_checkpoint_config(ck)->vision;
    const struct esp_pack_heads heads = {c->n_head, c->head_dim}, none = {0};
#define T(role) esp_checkpoint_tensor(ck, ESP_V_##role, layer)
    const struct esp_pack_spec qkv = {.n_part = 3,
                                      .part = {{T(Q_W), heads}, {T(K_W), heads}, {T(V_W), heads}}};
    const struct esp_pack_part bias[3] = {{T(Q_B), heads}, {T(K_B), heads}, {T(V_B), heads}};

    l->norm1_w = plan_norm(w, T(LN1_W));
    l->norm1_b = plan_norm(w, T(LN1_B));
    l->norm2_w = plan_norm(w, T(LN2_W));
    l->norm2_b = plan_norm(w, T(LN2_B));
    return plan_mat(w, &l->qkv, &qkv, bias) && plan_simple(w, &l->o, T(O_W), T(O_B), heads) &&
           plan_simple(w, &l->fc1, T(FC1_W), T(FC1_B), none) &&
           plan_simple(w, &l->fc2, T(FC2_W), T(FC2_B), none);
#undef T
}

static bool plan_decoder_layer(struct esp_weights *w, struct esp_dec_layer *l,
                               const struct esp_checkpoint *ck, uint32_t layer)
{
    const struct esp_text_config *c = &esp_checkpoint_config(ck)->text;
    const struct esp_pack_heads q = {c->n_head, c->head_dim}, kv = {c->n_kv_head, c->head_dim}, none = {0};
#define T(role) esp_checkpoint_tensor(ck, ESP_T_##role, layer)
    const struct esp_pack_spec qkv = {.n_part = 3, .part = {{T(Q_W), q}, {T(K_W), kv}, {T(V_W), kv}}};
    const struct esp_pack_spec gate_up = {
        .n_part = 2, .part = {{.tensor = T(GATE_W)}, {.tensor = T(UP_W)}}, .interleave = true};

    l->norm_post_attn = l->norm_post_mlp = ESP_NONE;
    l->norm_attn = plan_norm(w, T(NORM_ATTN));
    l->norm_mlp = plan_norm(w, T(NORM_MLP));
    if (c->post_norms) {
        l->norm_post_attn = plan_norm(w, T(NORM_POST_ATTN));
        l->norm_post_mlp = plan_norm(w, T(NORM_POST_MLP));
    }
    return plan_mat(w, &l->qkv, &qkv, NULL) && plan_simple(w, &l->o, T(O_W), NULL, q) &&
           plan_mat(w, &l->gate_up, &gate_up, NULL) && plan_simple(w, &l->down, T(DOWN_W), NULL, none);
#undef T
}

static bool plan_ends(struct esp_weights *w, const struct esp_checkpoint *ck,
                      const struct esp_stage_spec *spec, uint32_t n_pos)
{
    const struct esp_config *c = esp_checkpoint_config(ck);
    const struct esp_pack_heads none = {0};
#define T(role) esp_checkpoint_tensor(ck, ESP_##role, 0)
    if (spec->patch) {
        struct esp_weight_item *it;
        if (!plan_simple(w, &w->patch, T(V_PATCH_W), T(V_PATCH_B), none) || !(it = item_add(w)))
            return false;
        it->spec.n_part = 1;
        it->spec.part[0].tensor = T(V_POS);
        it->vec_rows = c->vision.n_token;
        it->vec_row = (uint32_t)esp_round_up(c->vision.width, 32);
        it->vec_n = it->vec_rows * it->vec_row;
        it->vec_at = w->pos = vec_reserve(w, it->vec_n);
    }
    if (spec->projector) {
        w->post_w = plan_norm(w, T(V_POST_W));
        w->post_b = plan_norm(w, T(V_POST_B));
        if (!plan_simple(w, &w->proj, T(P_W), T(P_B), none))
            return false;
    }
    if ((spec->embed || spec->head) && !plan_simple(w, &w->embed, T(T_EMBED), NULL, none))
        return false;
    if (spec->head)
        w->norm_final = plan_norm(w, T(T_NORM_FINAL));
    if (spec->dec_lo < spec->dec_hi) {
        const uint64_t n = (uint64_t)n_pos * esp_pack_head_dim(c->text.head_dim) / 2;
        w->rope_cos = vec_reserve(w, n);
        w->rope_sin = vec_reserve(w, n);
    }
#undef T
    return true;
}

/* Lays the matrices into chunks one after the other; one that does not fit whole is cut between groups of
 * rows. */
static esp_status plan_chunks(struct esp_weights *w, uint64_t max_bytes, struct esp_err *err)
{
    uint32_t chunk = 0;
    uint64_t used = 0;

    for (uint32_t i = 0; i < w->n_items; i++) {
        struct esp_weight_item *it = &w->items[i];
        const uint32_t unit = 4; /* groups that a kernel takes together: a panel of 32 columns */
        uint32_t group = 0, n_group;
        if (!it->mat)
            continue;
        n_group = it->dims.np / 8;
        if ((uint64_t)it->dims.group_bytes * unit > max_bytes)
            return esp_fail(err, ESP_E_NOMEM, "%s: eight rows pass the device's largest buffer, %.1f MiB",
                            it->spec.part[0].tensor->name, (double)max_bytes / (1 << 20));
        if (used && used + (uint64_t)n_group * it->dims.group_bytes > max_bytes) {
            chunk++;
            used = 0;
        }
        while (group < n_group) {
            uint64_t room = (max_bytes - used) / it->dims.group_bytes / unit * unit;
            uint32_t n = room < n_group - group ? (uint32_t)room : n_group - group;
            if (chunk >= ESP_MAX_CHUNKS || it->mat->n_part == ESP_MAT_PARTS)
                return esp_fail(err, ESP_E_NOMEM, "%s: the device's buffers, %.1f MiB at most, are too small",
                                it->spec.part[0].tensor->name, (double)max_bytes / (1 << 20));
            it->mat->part[it->mat->n_part].chunk = chunk;
            it->mat->part[it->mat->n_part].at = (uint32_t)(used / 16);
            it->mat->part[it->mat->n_part].row0 = group * 8;
            it->mat->part[it->mat->n_part].n_row = n * 8;
            it->mat->n_part++;
            used += (uint64_t)n * it->dims.group_bytes;
            w->n_chunk_bytes[chunk] = used;
            group += n;
            if (group < n_group) {
                chunk++;
                used = 0;
            }
        }
    }
    w->n_chunk = chunk + 1; /* one even when empty: kernels bind something */
    return ESP_OK;
}

esp_status esp_weights_plan(struct esp_weights *w, const struct esp_vk *vk, const struct esp_checkpoint *ck,
                            const struct esp_stage_spec *spec, uint32_t n_pos, struct esp_err *err)
{
    const uint32_t n_enc = spec->enc_hi - spec->enc_lo, n_dec = spec->dec_hi - spec->dec_lo;
    bool ok;
    esp_status st;

    memset(w, 0, sizeof *w);
    w->enc = calloc(n_enc + 1, sizeof *w->enc);
    w->dec = calloc(n_dec + 1, sizeof *w->dec);
    ok = w->enc && w->dec && plan_ends(w, ck, spec, n_pos);
    for (uint32_t i = 0; ok && i < n_enc; i++)
        ok = plan_encoder_layer(w, &w->enc[i], ck, spec->enc_lo + i);
    for (uint32_t i = 0; ok && i < n_dec; i++)
        ok = plan_decoder_layer(w, &w->dec[i], ck, spec->dec_lo + i);
    if (!ok)
        st = esp_fail(err, ESP_E_NOMEM, "list of weights");
    else if (w->n_vec > UINT32_MAX / 8)
        st = esp_fail(err, ESP_E_NOMEM, "%llu floats of small vectors", (unsigned long long)w->n_vec);
    else
        st = plan_chunks(w, vk->max_alloc_bytes, err);
    if (st) {
        esp_weights_finish(w);
        return st;
    }
    for (uint32_t i = 0; i < w->n_chunk; i++)
        w->n_bytes += w->n_chunk_bytes[i];
    w->n_bytes += w->n_vec * sizeof(float);
    return ESP_OK;
}

void esp_weights_finish(struct esp_weights *w)
{
    free(w->enc);
    free(w->dec);
    free(w->items);
    memset(w, 0, sizeof *w);
}

struct load {
    struct esp_space *space;
    struct esp_upload up;
    esp_load_progress progress;
    void *arg;
    uint64_t done, total;
};

static void tell(struct load *ld, uint64_t more)
{
    ld->done += more;
    if (ld->progress)
        ld->progress(ld->arg, ld->done, ld->total);
}

static esp_status load_mat(struct load *ld, const struct esp_weight_item *it, void *row, struct esp_err *err)
{
    esp_status st = ESP_OK;
    uint32_t at_once = ESP_UPLOAD_BYTES / it->dims.group_bytes;

    if (at_once == 0)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: rows too long", it->spec.part[0].tensor->name);
    for (uint32_t p = 0; p < it->mat->n_part; p++) {
        const uint32_t n_group = it->mat->part[p].n_row / 8;
        struct esp_buf *to = &ld->space->chunk[it->mat->part[p].chunk];
        for (uint32_t g = 0; !st && g < n_group; g += at_once) {
            const uint32_t n = n_group - g < at_once ? n_group - g : at_once;
            const uint64_t bytes = (uint64_t)n * it->dims.group_bytes;
            void *dst = esp_upload_map(
                &ld->up, to, (uint64_t)it->mat->part[p].at * 16 + (uint64_t)g * it->dims.group_bytes, bytes);
            esp_pack_groups(dst, &it->spec, &it->dims, it->mat->part[p].row0 / 8 + g, n, row);
            st = esp_upload_commit(&ld->up, err);
            tell(ld, bytes);
        }
    }
    for (uint32_t i = 0; i < it->spec.n_part; i++)
        esp_tensor_done(it->spec.part[i].tensor);
    return st;
}

static void fill_vec(float *vec, const struct esp_weight_item *it)
{
    if (!it->vec_rows) {
        esp_pack_vector(vec + it->vec_at, it->vec_n, it->spec.part, it->spec.n_part);
        return;
    }
    const struct esp_tensor *t = it->spec.part[0].tensor;
    const size_t n_col = t->shape[1];
    const size_t b = esp_dtype_n_bytes(t->dtype);
    for (uint32_t r = 0; r < it->vec_rows; r++)
        esp_dtype_to_f32(vec + it->vec_at + (size_t)r * it->vec_row, (const char *)t->data + r * n_col * b,
                         t->dtype, n_col);
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

static esp_status load_vecs(struct load *ld, const struct esp_weights *w, const struct esp_config *c,
                            uint32_t n_pos, struct esp_err *err)
{
    const size_t n_bytes = w->n_vec * sizeof(float);
    float *vec = calloc(w->n_vec ? w->n_vec : 1, sizeof *vec);
    esp_status st = ESP_OK;

    if (!vec)
        return esp_fail(err, ESP_E_NOMEM, "small vectors, %zu bytes", n_bytes);
    for (uint32_t i = 0; i < w->n_items; i++)
        if (!w->items[i].mat)
            fill_vec(vec, &w->items[i]);
    if (w->rope_sin > w->rope_cos)
        fill_rope(vec + w->rope_cos, vec + w->rope_sin, &c->text, n_pos);
    for (size_t at = 0; !st && at < n_bytes; at += ESP_UPLOAD_BYTES) {
        const size_t n = n_bytes - at < ESP_UPLOAD_BYTES ? n_bytes - at : ESP_UPLOAD_BYTES;
        memcpy(esp_upload_map(&ld->up, &ld->space->vec, at, n), (char *)vec + at, n);
        st = esp_upload_commit(&ld->up, err);
    }
    free(vec);
    tell(ld, n_bytes);
    return st;
}

esp_status esp_weights_load(struct esp_weights *w, struct esp_space *space, const struct esp_checkpoint *ck,
                            uint32_t n_pos, esp_load_progress progress, void *arg, struct esp_err *err)
{
    struct load ld = {.space = space, .progress = progress, .arg = arg, .total = w->n_bytes};
    uint32_t max_row = 0;
    void *row = NULL;
    esp_status st;

    for (uint32_t i = 0; i < w->n_items; i++)
        if (w->items[i].mat && w->items[i].dims.kp > max_row)
            max_row = w->items[i].dims.kp;
    row = malloc((size_t)max_row * sizeof(float) + 1);
    if (!row)
        return esp_fail(err, ESP_E_NOMEM, "a row of weights");
    st = esp_upload_init(&ld.up, space->vk, err);
    for (uint32_t i = 0; !st && i < w->n_chunk; i++) {
        st = esp_buf_create(&space->chunk[i], space->vk, ESP_BUF_DEVICE, w->n_chunk_bytes[i],
                            VK_FORMAT_R32G32B32A32_UINT, "weights", err);
        if (!st)
            space->n_chunk++;
    }
    if (!st)
        st = esp_buf_create(&space->vec, space->vk, ESP_BUF_DEVICE, w->n_vec * sizeof(float),
                            VK_FORMAT_UNDEFINED, "small vectors", err);
    for (uint32_t i = 0; !st && i < w->n_items; i++)
        if (w->items[i].mat)
            st = load_mat(&ld, &w->items[i], row, err);
    if (!st)
        st = load_vecs(&ld, w, esp_checkpoint_config(ck), n_pos, err);
    esp_upload_finish(&ld.up);
    free(row);
    free(w->items);
    w->items = NULL;
    return st;
}
