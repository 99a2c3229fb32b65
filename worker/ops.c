#include "worker/ops.h"

#include <string.h>

#include "worker/vk_cmd.h"
#include "worker/vk_pipe.h"

#define MAX_GROUPS 65535u /* workgroups in one axis: what every device guarantees */

#define CHECK_PUSH(s) _Static_assert(sizeof(struct s) <= ESP_PUSH_MAX, #s)
CHECK_PUSH(esp_push_matmul);
CHECK_PUSH(esp_push_norm);
CHECK_PUSH(esp_push_rope);
CHECK_PUSH(esp_push_attention);
CHECK_PUSH(esp_push_embed);
CHECK_PUSH(esp_push_io);
CHECK_PUSH(esp_push_im2col);
CHECK_PUSH(esp_push_add);
CHECK_PUSH(esp_push_topk);
CHECK_PUSH(esp_push_kv_copy);

esp_status esp_space_bind(struct esp_space *sp, struct esp_err *err)
{
    const uint32_t n = sp->n_chunk;
    VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_TEXEL_BUFFER, .descriptorCount = 3 * n};
    VkDescriptorPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                       .maxSets = n,
                                       .poolSizeCount = 1,
                                       .pPoolSizes = &size};
    VkDescriptorSetLayout layout = esp_pipe_set_layout(sp->vk);
    VkDescriptorSetAllocateInfo alloc = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                         .descriptorSetCount = 1,
                                         .pSetLayouts = &layout};
    esp_status st;

    if (!esp_vk_has_texels(sp->vk->cls))
        return ESP_OK;
    st = esp_vk_check(vkCreateDescriptorPool(sp->vk->dev, &pool, NULL, &sp->pool), "vkCreateDescriptorPool",
                      err);
    alloc.descriptorPool = sp->pool;
    for (uint32_t c = 0; !st && c < n; c++) {
        const VkBufferView views[3] = {sp->chunk[c]->view, sp->act.view, sp->kv.view};
        VkWriteDescriptorSet write = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                      .descriptorCount = 1,
                                      .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_TEXEL_BUFFER};
        st = esp_vk_check(vkAllocateDescriptorSets(sp->vk->dev, &alloc, &sp->set[c]),
                          "vkAllocateDescriptorSets", err);
        for (uint32_t i = 0; !st && i < 3; i++) {
            write.dstSet = sp->set[c];
            write.dstBinding = i;
            write.pTexelBufferView = &views[i];
            vkUpdateDescriptorSets(sp->vk->dev, 1, &write, 0, NULL);
        }
    }
    return st;
}

void esp_space_retire(struct esp_space *sp, bool keep_act, bool keep_kv)
{
    struct esp_vk *vk = sp->vk;

    esp_profile_destroy(&sp->profile);
    if (sp->pool)
        vkDestroyDescriptorPool(vk->dev, sp->pool, NULL);
    sp->pool = VK_NULL_HANDLE;
    sp->n_chunk = 0;
    esp_buf_destroy(&sp->vec, vk);
    esp_buf_destroy(&sp->step, vk);
    esp_buf_destroy(&sp->in, vk);
    if (!keep_act)
        esp_buf_destroy(&sp->act, vk);
    if (!keep_kv)
        esp_buf_destroy(&sp->kv, vk);
}

void esp_space_finish(struct esp_space *sp)
{
    if (!sp->vk)
        return;
    esp_space_retire(sp, false, false);
    esp_buf_destroy(&sp->out, sp->vk);
    memset(sp, 0, sizeof *sp);
}

void esp_grids_write(const struct esp_grids *grids, const uint32_t count[ESP_N_COUNT], uint32_t *words)
{
    for (uint32_t i = 0; i < grids->n; i++) {
        const struct esp_grid *g = &grids->grid[i];
        uint32_t *to = words + ESP_STEP_GRIDS + i * ESP_STEP_GRID;
        memcpy(to, g->dims, sizeof g->dims);
        to[g->axis] = (count[g->count] + g->div - 1) / g->div;
    }
}

/* The step buffer's slot of a grid, shared by all dispatches that have the same. */
static uint32_t grid_slot(struct esp_rec *rec, const struct esp_grid *want)
{
    struct esp_grids *gs = rec->grids;

    for (uint32_t i = 0; i < gs->n; i++)
        if (memcmp(&gs->grid[i], want, sizeof *want) == 0)
            return i;
    if (gs->n == ESP_STEP_N_GRIDS) {
        rec->st = esp_fail(rec->err, ESP_E_INTERNAL, "more than %d kinds of dispatch", ESP_STEP_N_GRIDS);
        return 0;
    }
    gs->grid[gs->n] = *want;
    return gs->n++;
}

/* A dispatch to be: what varies from operation to operation. */
struct launch {
    const struct esp_kernel_code *code;
    const uint32_t *spec;
    uint32_t n_spec;
    const void *push;
    uint32_t push_bytes;
    uint32_t chunk;
    struct esp_grid grid;
    struct esp_profile_work work;
};

static void launch(struct esp_rec *rec, const struct launch *l)
{
    struct esp_space *sp = rec->space;
    const uint32_t n_pipe = esp_pipes_count(sp->vk->pipes);
    VkPipeline pipe;
    uint32_t slot;

    if (rec->st)
        return;
    for (uint32_t i = 0; i < 3; i++) {
        if (i != l->grid.axis && (l->grid.dims[i] == 0 || l->grid.dims[i] > MAX_GROUPS)) {
            rec->st = esp_fail(rec->err, ESP_E_UNSUPPORTED,
                               "%u workgroups in one axis: the model is too wide", l->grid.dims[i]);
            return;
        }
    }
    rec->st = esp_pipe_get(&pipe, sp->vk, l->code, l->spec, l->n_spec, rec->err);
    if (rec->dry && !rec->st && esp_pipes_count(sp->vk->pipes) > n_pipe)
        rec->st = ESP_E_TIMEOUT;
    if (rec->st || rec->dry)
        return;
    slot = grid_slot(rec, &l->grid);
    if (rec->st)
        return;
    esp_cmd_barrier_shaders(rec->cmd); /* every operation reads what the one before wrote */
    vkCmdBindPipeline(rec->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, pipe);
    if (esp_vk_has_texels(sp->vk->cls))
        vkCmdBindDescriptorSets(rec->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, esp_pipe_layout(sp->vk), 0, 1,
                                &sp->set[l->chunk], 0, NULL);
    vkCmdPushConstants(rec->cmd, esp_pipe_layout(sp->vk), VK_SHADER_STAGE_COMPUTE_BIT, 0, l->push_bytes,
                       l->push);
    esp_profile_begin(sp->profile, rec->cmd, l->code->name, &l->work);
    vkCmdDispatchIndirect(rec->cmd, sp->step.buf, (ESP_STEP_GRIDS + (VkDeviceSize)slot * ESP_STEP_GRID) * 4);
    esp_profile_end(sp->profile, rec->cmd);
}

/* The addresses every push structure begins with. */
#define HEAD(rec, chunk_)                                                                                    \
    .step = (rec)->space->step.addr, .act = (rec)->space->act.addr, .w = (rec)->space->chunk[chunk_]->addr,  \
    .vec = (rec)->space->vec.addr, .kv = (rec)->space->kv.addr

static const struct esp_kernel_code *find(const struct esp_rec *rec, enum esp_kernel k, enum esp_wtype wtype)
{
    return esp_kernel_find(k, rec->space->vk->cls, wtype);
}

static uint32_t count_word(enum esp_count count)
{
    return count == ESP_COUNT_WANTS ? ESP_STEP_N_WANTS : ESP_STEP_N_ROWS;
}

static uint32_t div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

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
        p.code = find(rec, ESP_K_MATMUL_COOP, w->wtype);
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
    p.code = find(rec, how->few ? ESP_K_MATVEC : ESP_K_MATMUL, w->wtype);
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
        p.spec[4] = how->norm.how == ESP_SPLIT_END ? div_up(w->kp, 64) : 1;
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
        const struct esp_push_matmul push = {HEAD(rec, w->part[i].chunk),
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
                                             .count = count_word(how->count),
                                             .cap = how->cap,
                                             .scale_at = how->scale_at,
                                             .squares_at = how->norm.squares.at,
                                             .squares_stride = how->norm.squares.stride,
                                             .z_at = how->norm.z.at,
                                             .z_stride = how->norm.z.stride,
                                             .weight = how->norm.weight,
                                             .width = how->norm.width,
                                             .eps = how->norm.eps};
        struct launch l = {
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
            struct launch before = l;
            before.code = find(rec, pr.first, ESP_W_NONE);
            before.spec = &most;
            before.n_spec = pr.first == ESP_K_ROW_FIXED;
            before.grid.div = 1;
            before.grid.dims[1] = pr.first == ESP_K_ROW_FIXED ? div_up(w->kp / 32, ESP_FIXED_BLOCKS) : 1;
            memset(&before.work, 0, sizeof before.work);
            launch(rec, &before);
        }
        if (how->few) {
            l.grid.axis = 1;
            l.grid.div = how->few;
            l.grid.dims[0] = div_up(pairs && !pr.tile.panels ? n_group / 2 : n_group, pr.tile.cols);
        } else {
            l.grid.axis = 0;
            l.grid.div = pr.tile.rows;
            l.grid.dims[1] = div_up(n_group, pr.tile.cols);
        }
        launch(rec, &l);
    }
}

void esp_op_norm(struct esp_rec *rec, struct esp_rows y, struct esp_rows x, const struct esp_norm_how *how)
{
    const enum esp_count count = how->pick ? ESP_COUNT_WANTS : ESP_COUNT_ROWS;
    const uint32_t spec[1] = {how->mode};
    const struct esp_push_norm push = {HEAD(rec, 0),         .x_at = x.at,
                                       .x_stride = x.stride, .y_at = y.at,
                                       .y_stride = y.stride, .width = how->width,
                                       .n_quad = x.stride,   .weight = how->weight,
                                       .bias = how->bias,    .count = count_word(count),
                                       .pick = how->pick,    .eps = how->eps};

    launch(rec, &(struct launch){.code = find(rec, ESP_K_NORM, ESP_W_NONE),
                                 .spec = spec,
                                 .n_spec = 1,
                                 .push = &push,
                                 .push_bytes = sizeof push,
                                 .grid = {.count = count, .div = 1, .axis = 0, .dims = {1, 1, 1}}});
}

bool esp_norm_splits(const struct esp_vk *vk)
{
    return vk->cls == ESP_VK_GPU || vk->cls == ESP_VK_DIRECT;
}

void esp_op_norm_begin(struct esp_rec *rec, struct esp_rows x, const struct esp_split_norm *norm,
                       uint32_t most)
{
    const bool direct = rec->space->vk->cls == ESP_VK_DIRECT; /* a workgroup: 64 columns, else 64 times 8 */
    const struct esp_push_norm push = {HEAD(rec, 0),
                                       .x_at = x.at,
                                       .x_stride = x.stride,
                                       .y_at = norm->z.at,
                                       .y_stride = norm->z.stride,
                                       .width = norm->width,
                                       .n_quad = x.stride,
                                       .weight = norm->weight,
                                       .count = count_word(ESP_COUNT_ROWS),
                                       .squares_at = norm->squares.at,
                                       .squares_stride = norm->squares.stride};

    if (direct && !most && !rec->st)
        rec->st = esp_fail(rec->err, ESP_E_INTERNAL, "a norm begun for weights that take no integers");
    launch(rec, &(struct launch){.code = find(rec, ESP_K_NORM_BEGIN, ESP_W_NONE),
                                 .spec = &most,
                                 .n_spec = direct,
                                 .push = &push,
                                 .push_bytes = sizeof push,
                                 .grid = {.count = ESP_COUNT_ROWS,
                                          .div = 1,
                                          .dims = {1, div_up(x.stride, direct ? 16 : 128), 1}}});
}

void esp_op_rope_kv(struct esp_rec *rec, struct esp_rows qkv, const struct esp_attn_how *how)
{
    const uint32_t spec[1] = {how->rotate};
    const uint32_t h8 = how->head_dim / 8;
    const struct esp_push_rope push = {HEAD(rec, 0),           .x_at = qkv.at,
                                       .x_stride = qkv.stride, .n_head = how->n_head,
                                       .n_kv = how->n_kv,      .h8 = h8,
                                       .table = how->table,    .table_sin = how->table_sin,
                                       .kv_at = how->kv_at,    .block_stride = how->block_stride,
                                       .q_scale = how->q_scale};

    launch(rec, &(struct launch){.code = find(rec, ESP_K_ROPE_KV, ESP_W_NONE),
                                 .spec = spec,
                                 .n_spec = 1,
                                 .push = &push,
                                 .push_bytes = sizeof push,
                                 .grid = {.count = ESP_COUNT_ROWS,
                                          .div = 1,
                                          .axis = 0,
                                          .dims = {1, div_up((how->n_head + 2 * how->n_kv) * h8, 64), 1}}});
}

/* Query heads of one KV head that share a tile of so many query vectors. */
static uint32_t heads_a_tile(uint32_t n_head, uint32_t n_kv, uint32_t queries)
{
    uint32_t g = n_head / n_kv;
    return g < queries ? g : queries;
}

/* Quads of dimensions that attention_flash.comp stages at once: all, or the largest divisor of them that fits; 0 where it
 * cannot serve. */
static uint32_t flash_chunk(const struct esp_vk *vk, uint32_t h4)
{
    const uint32_t row = ESP_FLASH_QUERIES + 1;
    uint32_t chunk = h4 < 18 ? h4 : 18;

    while (chunk > 1 && h4 % chunk)
        chunk--;
    /* qs and ks, s, fold, scale and l_of */
    if (vk->cls != ESP_VK_GPU || h4 > 128 ||
        2 * chunk * row * 16 + (ESP_KV_BLOCK * row + 128 + 2 * ESP_FLASH_QUERIES) * 4 >
            vk->props.limits.maxComputeSharedMemorySize)
        return 0;
    return chunk;
}

/* Whether attention_slices.comp can serve: its q, s, w, fold, m_slice and l_slice. */
static bool slices_fit(const struct esp_vk *vk, uint32_t h4)
{
    return vk->cls == ESP_VK_GPU && h4 <= 128 &&
           (h4 * 4 + 3 * ESP_SLICE + 16 + 2) * ESP_TILE_QUERIES * 4 <=
               vk->props.limits.maxComputeSharedMemorySize;
}

/* The kernel, and the query vectors that a tile of it takes. */
static enum esp_kernel attention_kernel(const struct esp_vk *vk, bool few, uint32_t h4, uint32_t *queries)
{
    enum esp_kernel kernel = ESP_K_ATTENTION;

    *queries = ESP_TILE_QUERIES;
    if (few && slices_fit(vk, h4)) {
        kernel = ESP_K_ATTENTION_SLICES;
    } else if (!few && flash_chunk(vk, h4)) {
        kernel = ESP_K_ATTENTION_FLASH;
        *queries = ESP_FLASH_QUERIES;
    } else if (!few && esp_vk_has_texels(vk->cls)) {
        kernel = ESP_K_ATTENTION_WIDE;
        *queries = ESP_WIDE_QUERIES;
    }
    return kernel;
}

uint32_t esp_attn_tile_rows(const struct esp_vk *vk, bool few, uint32_t n_head, uint32_t n_kv,
                            uint32_t head_dim)
{
    uint32_t queries;

    attention_kernel(vk, few, head_dim / 4, &queries);
    return queries / heads_a_tile(n_head, n_kv, queries);
}

uint32_t esp_attn_part_texels(const struct esp_vk *vk, uint32_t n_head, uint32_t n_kv, uint32_t head_dim)
{
    const uint32_t gb = heads_a_tile(n_head, n_kv, ESP_TILE_QUERIES);
    return slices_fit(vk, head_dim / 4)
               ? n_kv * div_up(n_head / n_kv, gb) * ESP_TILE_QUERIES * (head_dim / 4 + 1)
               : 0;
}

uint32_t esp_attn_shared_bytes(const struct esp_vk *vk, uint32_t head_dim)
{
    /* attention.comp: q, s, then m, l, scale and range; the texel kernel has none */
    const uint32_t a_query = head_dim * 4 + ESP_KV_BLOCK * 4 + 3 * 4 + 8;
    return esp_vk_has_texels(vk->cls) ? 0 : ESP_TILE_QUERIES * a_query;
}

void esp_op_attention_piece(struct esp_rec *rec, struct esp_rows y, struct esp_rows qkv,
                            const struct esp_attn_how *how, uint32_t piece, uint32_t n_piece)
{
    const struct esp_vk *vk = rec->space->vk;
    const uint32_t h4 = how->head_dim / 4;
    const uint32_t g = how->n_head / how->n_kv;
    uint32_t queries;
    const enum esp_kernel kernel = attention_kernel(vk, how->few, h4, &queries);
    const bool slices = kernel == ESP_K_ATTENTION_SLICES;
    const uint32_t gb = heads_a_tile(how->n_head, how->n_kv, queries);
    const uint32_t spec[6] = {
        h4, g, gb, how->window, how->softcap > 0, slices ? !how->whole : flash_chunk(vk, h4)};
    const struct esp_push_attention push = {HEAD(rec, 0),
                                            .q_at = qkv.at,
                                            .q_stride = qkv.stride,
                                            .y_at = y.at,
                                            .y_stride = y.stride,
                                            .kv_at = how->kv_at,
                                            .block_stride = how->block_stride,
                                            .n_kv = how->n_kv,
                                            .softcap = how->softcap,
                                            .parts_at = how->parts_at,
                                            .tile0 = piece,
                                            .tile_by = n_piece};
    struct launch l = {.code = find(rec, kernel, ESP_W_NONE),
                       .spec = spec,
                       .n_spec = slices || kernel == ESP_K_ATTENTION_FLASH ? 6 : 5,
                       .push = &push,
                       .push_bytes = sizeof push,
                       .grid = {.count = slices && !how->whole ? ESP_COUNT_ITEMS : ESP_COUNT_TILES,
                                .div = n_piece,
                                .axis = 0,
                                .dims = {1, how->n_kv * div_up(g, gb), 1}},
                       .work = {.window = how->window,
                                .pair_flop = 4.0 * how->n_head * how->head_dim / n_piece,
                                .position_bytes = 2.0 * how->n_kv * how->head_dim * sizeof(float) / n_piece}};

    launch(rec, &l);
    if (!slices || how->whole)
        return;
    l.code = find(rec, ESP_K_ATTENTION_JOIN, ESP_W_NONE);
    l.n_spec = 5;
    memset(&l.work, 0, sizeof l.work);
    l.grid.count = ESP_COUNT_TILES;
    l.grid.dims[2] = ESP_TILE_QUERIES;
    launch(rec, &l);
}

void esp_op_attention(struct esp_rec *rec, struct esp_rows y, struct esp_rows qkv,
                      const struct esp_attn_how *how)
{
    esp_op_attention_piece(rec, y, qkv, how, 0, 1);
}

void esp_op_embed(struct esp_rec *rec, struct esp_rows y, struct esp_rows features, const struct esp_mat *w,
                  float scale)
{
    for (uint32_t i = 0; i < w->n_part; i++) {
        const struct esp_push_embed push = {HEAD(rec, w->part[i].chunk),
                                            .y_at = y.at,
                                            .y_stride = y.stride,
                                            .features_at = features.at,
                                            .w_at = w->part[i].at,
                                            .k4 = w->kp / 4,
                                            .row0 = w->part[i].row0,
                                            .n_row = w->part[i].n_row,
                                            .scale = scale};
        launch(rec, &(struct launch){.code = find(rec, ESP_K_EMBED, w->wtype),
                                     .push = &push,
                                     .push_bytes = sizeof push,
                                     .chunk = w->part[i].chunk,
                                     .grid = {.count = ESP_COUNT_ROWS,
                                              .div = 1,
                                              .axis = 0,
                                              .dims = {1, div_up(w->kp / 8, 64), 1}}});
    }
}

/* Operations on whole rows: a workgroup column a row, 64 quads a workgroup. */
static void launch_rows(struct esp_rec *rec, enum esp_kernel k, const void *push, uint32_t push_bytes,
                        uint32_t n_quad, enum esp_count count)
{
    launch(rec, &(struct launch){
                    .code = find(rec, k, ESP_W_NONE),
                    .push = push,
                    .push_bytes = push_bytes,
                    .grid = {.count = count, .div = 1, .axis = 0, .dims = {1, div_up(n_quad, 64), 1}}});
}

void esp_op_im2col(struct esp_rec *rec, struct esp_rows y, uint32_t channels, uint32_t size, uint32_t patch)
{
    const struct esp_push_im2col push = {HEAD(rec, 0),         .host = rec->space->in.addr, .y_at = y.at,
                                         .y_stride = y.stride, .channels = channels,        .size = size,
                                         .side_px = patch,     .side = size / patch};
    launch_rows(rec, ESP_K_IM2COL, &push, sizeof push, y.stride, ESP_COUNT_ROWS);
}

void esp_op_add_vec(struct esp_rec *rec, struct esp_rows y, uint32_t vec_at)
{
    const struct esp_push_add push = {HEAD(rec, 0),       .y_at = y.at,     .y_stride = y.stride,
                                      .n_quad = y.stride, .vec_at = vec_at, .count = ESP_STEP_N_ROWS};
    launch_rows(rec, ESP_K_ADD, &push, sizeof push, y.stride, ESP_COUNT_ROWS);
}

void esp_op_rows_in(struct esp_rec *rec, struct esp_rows y, uint32_t width)
{
    const struct esp_push_io push = {
        HEAD(rec, 0),       .host = rec->space->in.addr, .y_at = y.at, .y_stride = y.stride, .width = width,
        .n_quad = y.stride, .count = ESP_STEP_N_ROWS};
    launch_rows(rec, ESP_K_ROWS_IN, &push, sizeof push, y.stride, ESP_COUNT_ROWS);
}

void esp_op_rows_out(struct esp_rec *rec, struct esp_rows x, uint32_t width, uint32_t out_at,
                     enum esp_count count)
{
    const struct esp_push_io push = {
        HEAD(rec, 0),   .host = rec->space->out.addr, .y_at = x.at,      .y_stride = x.stride,
        .width = width, .n_quad = div_up(width, 4),   .host_at = out_at, .count = count_word(count)};
    launch_rows(rec, ESP_K_ROWS_OUT, &push, sizeof push, push.n_quad, count);
}

void esp_op_kv_copy(struct esp_rec *rec, uint32_t block_stride, uint32_t layer_stride, uint32_t n_layer)
{
    const struct esp_push_kv_copy push = {HEAD(rec, 0), .block_stride = block_stride,
                                          .layer_stride = layer_stride};

    launch(rec, &(struct launch){.code = find(rec, ESP_K_KV_COPY, ESP_W_NONE),
                                 .push = &push,
                                 .push_bytes = sizeof push,
                                 .grid = {.count = ESP_COUNT_COPIES,
                                          .div = 1,
                                          .axis = 2,
                                          .dims = {div_up(block_stride, 64), n_layer, 1}}});
}

void esp_op_topk(struct esp_rec *rec, struct esp_rows logits, struct esp_rows slices, uint32_t vocab)
{
    const uint32_t n_slice = div_up(vocab, ESP_TOP_SLICE);
    const struct esp_push_topk push = {
        HEAD(rec, 0),          .dst = rec->space->out.addr,   .x_at = logits.at, .x_stride = logits.stride,
        .slice_at = slices.at, .slice_stride = slices.stride, .vocab = vocab,    .n_slice = n_slice};

    launch(rec, &(struct launch){
                    .code = find(rec, ESP_K_TOPK_SLICES, ESP_W_NONE),
                    .push = &push,
                    .push_bytes = sizeof push,
                    .grid = {.count = ESP_COUNT_WANTS, .div = 1, .axis = 1, .dims = {n_slice, 1, 1}}});
    launch(rec, &(struct launch){.code = find(rec, ESP_K_TOPK, ESP_W_NONE),
                                 .push = &push,
                                 .push_bytes = sizeof push,
                                 .grid = {.count = ESP_COUNT_WANTS, .div = 1, .axis = 0, .dims = {1, 1, 1}}});
}
