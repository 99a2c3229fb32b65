#include "worker/piece.h"

#include <string.h>

#include "model/roles.h"

uint32_t esp_piece_count(const struct esp_config *c)
{
    return ESP_N_PIECE_END + c->vision.n_layer + c->text.n_layer;
}

bool esp_piece_of(uint32_t piece, const struct esp_config *c, const struct esp_stage_spec *spec)
{
    uint32_t layer = piece - ESP_N_PIECE_END;

    switch (piece) {
    case ESP_PIECE_PATCH:
        return spec->patch;
    case ESP_PIECE_PROJECTOR:
        return spec->projector;
    case ESP_PIECE_EMBED:
        return spec->embed || spec->head;
    default:
        if (layer < c->vision.n_layer)
            return layer >= spec->enc_lo && layer < spec->enc_hi;
        layer -= c->vision.n_layer;
        return layer >= spec->dec_lo && layer < spec->dec_hi;
    }
}

/* @param want  what esp_role_wtype says of it */
static void add_mat(struct esp_piece *p, const struct esp_pack_spec *spec, const struct esp_pack_part *bias,
                    enum esp_wtype want)
{
    struct esp_piece_mat *m = &p->mat[p->n_mat++];

    m->spec = *spec;
    m->spec.cls = p->cls;
    m->spec.want = want;
    esp_pack_dims(&m->dims, &m->spec);
    m->mat.n = m->dims.n;
    m->mat.np = m->dims.np;
    m->mat.kp = m->dims.kp;
    m->mat.wtype = m->dims.wtype;
    m->mat.bias = ESP_NONE;
    m->biased = bias != NULL;
    for (uint32_t i = 0; i < spec->n_part; i++) {
        p->tensor[p->n_tensor++] = spec->part[i].tensor;
        if (bias) {
            m->bias[i] = bias[i];
            p->tensor[p->n_tensor++] = bias[i].tensor;
        }
    }
}

/* One tensor as it is. */
static void add_simple(struct esp_piece *p, const struct esp_tensor *t, const struct esp_tensor *bias,
                       struct esp_pack_heads k_heads, enum esp_wtype want)
{
    const struct esp_pack_spec spec = {.n_part = 1, .part = {{.tensor = t}}, .k_heads = k_heads};
    const struct esp_pack_part b = {.tensor = bias};

    add_mat(p, &spec, bias ? &b : NULL, want);
}

static void add_vec(struct esp_piece *p, uint32_t which, const struct esp_tensor *t)
{
    p->vec[which] = t;
    p->tensor[p->n_tensor++] = t;
}

static void encoder_layer(struct esp_piece *p, const struct esp_checkpoint *ck, uint32_t layer)
{
    const struct esp_vision_config *c = &esp_checkpoint_config(ck)->vision;
    const struct esp_pack_heads heads = {c->n_head, c->head_dim}, none = {0};
#define T(role)    esp_checkpoint_tensor(ck, ESP_V_##role, layer)
#define WANT(role) esp_role_wtype(esp_checkpoint_config(ck), ESP_V_##role, p->want)
    const struct esp_pack_spec qkv = {.n_part = 3,
                                      .part = {{T(Q_W), heads}, {T(K_W), heads}, {T(V_W), heads}}};
    const struct esp_pack_part bias[3] = {{T(Q_B), heads}, {T(K_B), heads}, {T(V_B), heads}};

    /* in the order of enum esp_piece_enc_mat */
    add_mat(p, &qkv, bias, WANT(Q_W));
    add_simple(p, T(O_W), T(O_B), heads, WANT(O_W));
    add_simple(p, T(FC1_W), T(FC1_B), none, WANT(FC1_W));
    add_simple(p, T(FC2_W), T(FC2_B), none, WANT(FC2_W));
    add_vec(p, ESP_ENC_NORM1_W, T(LN1_W));
    add_vec(p, ESP_ENC_NORM1_B, T(LN1_B));
    add_vec(p, ESP_ENC_NORM2_W, T(LN2_W));
    add_vec(p, ESP_ENC_NORM2_B, T(LN2_B));
#undef T
#undef WANT
}

static void decoder_layer(struct esp_piece *p, const struct esp_checkpoint *ck, uint32_t layer)
{
    const struct esp_text_config *c = &esp_checkpoint_config(ck)->text;
    const struct esp_pack_heads q = {c->n_head, c->head_dim}, kv = {c->n_kv_head, c->head_dim}, none = {0};
#define T(role)    esp_checkpoint_tensor(ck, ESP_T_##role, layer)
#define WANT(role) esp_role_wtype(esp_checkpoint_config(ck), ESP_T_##role, p->want)
    const struct esp_pack_spec qkv = {.n_part = 3, .part = {{T(Q_W), q}, {T(K_W), kv}, {T(V_W), kv}}};
    const struct esp_pack_spec gate_up = {
        .n_part = 2, .part = {{.tensor = T(GATE_W)}, {.tensor = T(UP_W)}}, .interleave = true};

    /* in the order of enum esp_piece_dec_mat */
    add_mat(p, &qkv, NULL, WANT(Q_W));
    add_simple(p, T(O_W), NULL, q, WANT(O_W));
    add_mat(p, &gate_up, NULL, WANT(GATE_W));
    add_simple(p, T(DOWN_W), NULL, none, WANT(DOWN_W));
    add_vec(p, ESP_DEC_NORM_ATTN, T(NORM_ATTN));
    add_vec(p, ESP_DEC_NORM_MLP, T(NORM_MLP));
    if (c->post_norms) {
        add_vec(p, ESP_DEC_NORM_POST_ATTN, T(NORM_POST_ATTN));
        add_vec(p, ESP_DEC_NORM_POST_MLP, T(NORM_POST_MLP));
    }
#undef T
#undef WANT
}

static void end_piece(struct esp_piece *p, const struct esp_checkpoint *ck, uint32_t piece)
{
    const struct esp_pack_heads none = {0};
#define T(role)    esp_checkpoint_tensor(ck, ESP_##role, 0)
#define WANT(role) esp_role_wtype(esp_checkpoint_config(ck), ESP_##role, p->want)
    if (piece == ESP_PIECE_PATCH) {
        add_simple(p, T(V_PATCH_W), T(V_PATCH_B), none, WANT(V_PATCH_W));
        add_vec(p, 0, T(V_POS));
    } else if (piece == ESP_PIECE_PROJECTOR) {
        add_simple(p, T(P_W), T(P_B), none, WANT(P_W));
        add_vec(p, 0, T(V_POST_W));
        add_vec(p, 1, T(V_POST_B));
    } else {
        add_simple(p, T(T_EMBED), NULL, none, WANT(T_EMBED));
        add_vec(p, 0, T(T_NORM_FINAL));
    }
#undef T
#undef WANT
}

/* Lays the matrices into chunks one after the other; one that does not fit whole is cut between groups of
 * rows. */
static esp_status plan_chunks(struct esp_piece *p, uint64_t max_bytes, struct esp_err *err)
{
    uint32_t chunk = 0;
    uint64_t used = 0;

    for (uint32_t i = 0; i < p->n_mat; i++) {
        struct esp_mat *mat = &p->mat[i].mat;
        const struct esp_pack_dims *dims = &p->mat[i].dims;
        const char *name = p->mat[i].spec.part[0].tensor->name;
        const uint32_t n_group = dims->np / 8;
        const uint32_t unit =
            dims->panel > 4 ? dims->panel : 4; /* a kernel takes 32 columns together, or more */
        uint32_t group = 0;

        if ((uint64_t)dims->group_bytes * unit > max_bytes)
            return esp_fail(err, ESP_E_NOMEM, "%s: %u rows pass the device's largest buffer, %.1f MiB", name,
                            8 * unit, (double)max_bytes / (1 << 20));
        used = (used + ESP_PIECE_ALIGN - 1) / ESP_PIECE_ALIGN * ESP_PIECE_ALIGN;
        if (used && used + (uint64_t)n_group * dims->group_bytes > max_bytes) {
            chunk++;
            used = 0;
        }
        while (group < n_group) {
            uint64_t room = (max_bytes - used) / dims->group_bytes / unit * unit;
            uint32_t n = room < n_group - group ? (uint32_t)room : n_group - group;
            if (chunk >= ESP_PIECE_CHUNKS || mat->n_part == ESP_MAT_PARTS)
                return esp_fail(err, ESP_E_NOMEM, "%s: the device's buffers, %.1f MiB at most, are too small",
                                name, (double)max_bytes / (1 << 20));
            mat->part[mat->n_part].chunk = chunk;
            mat->part[mat->n_part].at = (uint32_t)(used / 16);
            mat->part[mat->n_part].row0 = group * 8;
            mat->part[mat->n_part].n_row = n * 8;
            mat->n_part++;
            used += (uint64_t)n * dims->group_bytes;
            p->chunk_bytes[chunk] = used;
            p->n_bytes += (uint64_t)n * dims->group_bytes;
            group += n;
            if (group < n_group) {
                chunk++;
                used = 0;
            }
        }
    }
    p->n_chunk = chunk + 1;
    return ESP_OK;
}

esp_status esp_piece_plan(struct esp_piece *out, const struct esp_checkpoint *ck, uint32_t piece,
                          enum esp_vk_class cls, enum esp_wtype want, uint64_t max_bytes, struct esp_err *err)
{
    const uint32_t n_enc = esp_checkpoint_config(ck)->vision.n_layer;

    memset(out, 0, sizeof *out);
    out->cls = cls;
    out->want = want;
    if (piece < ESP_N_PIECE_END)
        end_piece(out, ck, piece);
    else if (piece - ESP_N_PIECE_END < n_enc)
        encoder_layer(out, ck, piece - ESP_N_PIECE_END);
    else
        decoder_layer(out, ck, piece - ESP_N_PIECE_END - n_enc);
    return plan_chunks(out, max_bytes, err);
}
