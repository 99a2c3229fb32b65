/* Products: which kernel serves one, and how it is cut. */
#include <string.h>

#include "worker/launch.h"

ESP_CHECK_PUSH(esp_push_matmul);

/* Threads of a matvec workgroup of the gpu class: where columns are few, more share the k of each, as long as there is
 * more than one unit (matvec_gpu.comp) for each of them. A row's sums follow from it, so it follows from the whole matrix
 * and the device alone. */
static uint32_t matvec_lanes(const struct esp_vk *vk, const struct esp_mat *w, bool pairs)
{
    const uint32_t n_group = pairs ? w->np / 16 : w->np / 8;
    const uint32_t unit = w->wtype == ESP_W_Q4 ? 32 : w->wtype == ESP_W_Q8 ? 16 : 8;
    const uint32_t most = vk->max_lanes < 256 || vk->wave < 8 ? 128 : 256;
    uint32_t lanes = 64;

    while (lanes < vk->wave ||
           (lanes < most && n_group * (uint64_t)lanes < vk->choice[w->wtype].matvec_threads &&
            2 * lanes * unit / 8 < w->kp))
        lanes *= 2;
    return lanes;
}

/* matvec_direct_quant.comp sums 32 products in an int, of q4 with fields up to bit 12. */
_Static_assert(32LL * 255 * ESP_FIXED_MOST_Q8 < 1LL << 31, "q8's integers");
_Static_assert(32LL * (15 << 8) * ESP_FIXED_MOST_Q4 < 1LL << 31, "q4's integers");

/* How a product is served: kernel, specialization, tile. */
struct product {
    const struct esp_kernel_code *code;
    uint32_t spec[7], n_spec;
    struct esp_kernel_tile tile;
    bool coop;
    enum esp_kernel first; /* what x goes through before; ESP_N_KERNEL: nothing */
};

static struct product product_plan(const struct esp_rec *rec, const struct esp_mat *w,
                                   const struct esp_matmul_how *how)
{
    const struct esp_vk *vk = rec->space->vk;
    const struct esp_vk_choice *c = &vk->choice[w->wtype];
    struct product p = {.spec = {how->epilogue, how->few}, .n_spec = how->few ? 2 : 1, .first = ESP_N_KERNEL};

    if (!how->few && how->scale_at && c->coop.m)
        p.code = esp_launch_find(rec, ESP_K_MATMUL_COOP, w->wtype);
    if (p.code) {
        const uint32_t spec[7] = {how->epilogue, 4 * vk->coop_wave, c->coop.m, c->coop.n,
                                  c->coop.k,     c->tile_m,         c->tile_n};
        memcpy(p.spec, spec, sizeof spec);
        p.n_spec = 7;
        p.tile = (struct esp_kernel_tile){.rows = c->tile_m, .cols = c->tile_n / 8};
        p.coop = true;
        p.first = ESP_K_ROW_SCALE;
        return p;
    }
    p.code = esp_launch_find(rec, how->few ? ESP_K_MATVEC : ESP_K_MATMUL, w->wtype);
    if (p.code)
        p.tile = p.code->tile;
    if (p.code && how->few && p.code->cls == ESP_VK_DIRECT && esp_wtype_quantised(w->wtype))
        p.first = ESP_K_ROW_FIXED;
    if (p.code && how->few && p.code->cls == ESP_VK_GPU) {
        p.spec[2] = matvec_lanes(vk, w, how->epilogue == ESP_EPI_GEGLU);
        p.spec[3] = vk->wave;
        p.spec[4] = how->norm.how;
        p.n_spec = 5;
    }
    if (p.first == ESP_K_ROW_FIXED) {
        p.spec[2] = how->norm.how;
        p.spec[3] = how->most;
        p.spec[4] = how->norm.how == ESP_SPLIT_END ? esp_norm_squares(vk, w->kp) : 1;
        /* what is loaded of x serves twice as many columns: where one row is all that it serves, and columns are many */
        if (w->wtype == ESP_W_Q4 && how->few == 1 && how->epilogue == ESP_EPI_GEGLU && p.tile.cols == 8)
            p.tile.cols = 16;
        p.spec[5] = p.tile.cols;
        p.n_spec = 6;
        if (how->fixed)
            p.first = ESP_N_KERNEL;
    }
    return p;
}

static uint32_t fixed_most(enum esp_wtype type)
{
    return type == ESP_W_Q8 ? ESP_FIXED_MOST_Q8 : ESP_FIXED_MOST_Q4;
}

uint32_t esp_mat_fixed(const struct esp_vk *vk, const struct esp_mat *w)
{
    if (vk->cls != ESP_VK_DIRECT || !esp_wtype_quantised(w->wtype))
        return 0;
    for (uint32_t i = 0; i < w->n_part; i++)
        if (w->part[i].row0 % 64)
            return 0;
    return fixed_most(w->wtype);
}

void esp_mat_piece(struct esp_mat *out, const struct esp_mat *w, uint32_t piece, uint32_t n_piece)
{
    const uint64_t panel_texels = esp_wtype_n_bytes(w->wtype, w->kp) * 2; /* 32 rows of 1/16 texel a byte */
    const uint32_t n_panel = w->np / 32;
    const uint32_t from = (uint32_t)((uint64_t)n_panel * piece / n_piece) * 32;
    const uint32_t to = (uint32_t)((uint64_t)n_panel * (piece + 1) / n_piece) * 32;

    *out = *w;
    out->n_part = 0;
    for (uint32_t i = 0; i < w->n_part; i++) {
        const uint32_t end = w->part[i].row0 + w->part[i].n_row;
        const uint32_t lo = from > w->part[i].row0 ? from : w->part[i].row0, hi = to < end ? to : end;
        if (lo >= hi)
            continue;
        out->part[out->n_part] = w->part[i];
        out->part[out->n_part].at += (uint32_t)((lo - w->part[i].row0) / 32 * panel_texels);
        out->part[out->n_part].row0 = lo;
        out->part[out->n_part++].n_row = hi - lo;
    }
}

void esp_op_matmul(struct esp_rec *rec, struct esp_rows y, struct esp_rows x, const struct esp_mat *w,
                   const struct esp_matmul_how *how)
{
    const struct product pr = product_plan(rec, w, how);
    const bool pairs = how->epilogue == ESP_EPI_GEGLU;
    const uint32_t most = fixed_most(w->wtype);

    if (!pr.code) {
        rec->st = rec->st ? rec->st
                          : esp_fail(rec->err, ESP_E_UNSUPPORTED, "no kernel for %s weights",
                                     esp_wtype_name(w->wtype));
        return;
    }
    if (!rec->st && rec->space->vk->cls == ESP_VK_DIRECT && (how->most || how->norm.how) &&
        !esp_mat_fixed(rec->space->vk, w))
        rec->st = esp_fail(rec->err, ESP_E_INTERNAL, "%s: no integers from such weights", pr.code->name);
    if (pr.first == ESP_K_ROW_SCALE && !how->scale_at && !rec->st)
        rec->st = esp_fail(rec->err, ESP_E_INTERNAL, "%s: no scratch for scales of rows", pr.code->name);
    for (uint32_t i = 0; i < w->n_part; i++) {
        const uint32_t n_group = w->part[i].n_row / 8;
        const struct esp_push_matmul push = {ESP_PUSH_ADDRESSES(rec, w->part[i].chunk),
                                             .x_at = x.at,
                                             .x_stride = x.stride,
                                             .y_at = y.at,
                                             .y_stride = y.stride,
                                             .w_at = w->part[i].at,
                                             .k4 = w->kp / 4,
                                             .n_group = n_group,
                                             .group0 = w->part[i].row0 / (pairs ? 16 : 8),
                                             .bias =
                                                 w->bias == ESP_NONE ? ESP_NONE : w->bias + w->part[i].row0,
                                             .count = esp_count_word(how->count),
                                             .cap = how->cap,
                                             .scale_at = how->scale_at,
                                             .squares_at = how->norm.squares.at,
                                             .squares_stride = how->norm.squares.stride,
                                             .z_at = how->norm.z.at,
                                             .z_stride = how->norm.z.stride,
                                             .weight = how->norm.weight,
                                             .width = how->norm.width,
                                             .eps = how->norm.eps};
        struct esp_launch l = {
            .code = pr.code,
            .spec = pr.spec,
            .n_spec = pr.n_spec,
            .push = &push,
            .push_bytes = sizeof push,
            .chunk = w->part[i].chunk,
            .grid = {.count = how->count, .dims = {1, 1, 1}},
            .work = {.n = w->n,
                     .k = w->kp,
                     .pass_bytes = (uint64_t)w->part[i].n_row * esp_wtype_n_bytes(w->wtype, w->kp),
                     .pass_rows = how->few,
                     .wants = how->count == ESP_COUNT_WANTS,
                     .row_flop = 2.0 * w->part[i].n_row * w->kp}};
        if (pr.first != ESP_N_KERNEL && i == 0) {
            struct esp_launch before = l;
            before.code = esp_launch_find(rec, pr.first, ESP_W_NONE);
            before.spec = &most;
            before.n_spec = pr.first == ESP_K_ROW_FIXED;
            before.grid.div = 1;
            before.grid.dims[1] = pr.first == ESP_K_ROW_FIXED ? esp_div_up(w->kp / 32, ESP_FIXED_BLOCKS) : 1;
            memset(&before.work, 0, sizeof before.work);
            esp_launch(rec, &before);
        }
        if (how->few) {
            l.grid.axis = 1;
            l.grid.div = how->few;
            l.grid.dims[0] = esp_div_up(pairs && !pr.tile.panels ? n_group / 2 : n_group, pr.tile.cols);
        } else {
            l.grid.axis = 0;
            l.grid.div = pr.tile.rows;
            l.grid.dims[1] = esp_div_up(n_group, pr.tile.cols);
        }
        esp_launch(rec, &l);
    }
}
