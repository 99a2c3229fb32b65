#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/ref.h"
#include "worker/vk_cmd.h"

#define GUARD_TEXELS 40u /* between regions: more than a panel of columns */

struct esp_rig esp_rig;
static const uint32_t no_number = 0x7fc0dead;

void esp_rig_must(esp_status st)
{
    if (st != ESP_OK)
        fail_msg("%s: %s", esp_status_name(st), esp_rig.err.text);
}

void *esp_rig_alloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    if (!p)
        fail_msg("out of memory: %zu times %zu bytes", n, size);
    return p;
}

/* Room for n more floats; returns the first one's index. */
static size_t grow(struct esp_image *im, size_t n)
{
    const size_t at = im->n;

    if (im->n + n > im->cap) {
        size_t cap = im->n + n + im->cap;
        float *more = realloc(im->at, cap * sizeof *more);
        if (!more)
            fail_msg("out of memory: %zu floats", cap);
        im->at = more;
        im->cap = cap;
    }
    im->n += n;
    return at;
}

static void fill_no_number(float *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        memcpy(to + i, &no_number, sizeof no_number);
}

static bool is_no_number(const float *at)
{
    return memcmp(at, &no_number, sizeof no_number) == 0;
}

static void add_guard(void)
{
    const size_t at = grow(&esp_rig.act, GUARD_TEXELS * 4);
    const uint32_t pair[2] = {(uint32_t)at, GUARD_TEXELS * 4};

    const size_t to = grow(&esp_rig.guard, 2);

    fill_no_number(esp_rig.act.at + at, GUARD_TEXELS * 4);
    memcpy(esp_rig.guard.at + to, pair, sizeof pair);
}

void esp_rig_begin(uint32_t max_rows, uint32_t max_copies, uint32_t max_table)
{
    struct esp_rig *r = &esp_rig;

    r->act.n = r->vec.n = r->kv.n = r->in.n = r->out.n = r->guard.n = 0;
    r->max_rows = max_rows;
    r->max_copies = max_copies;
    r->max_table = max_table ? max_table : 1;
    memset(&r->grids, 0, sizeof r->grids);
    memset(&r->space, 0, sizeof r->space);
    memset(r->weights, 0, sizeof r->weights);
    memset(&r->err, 0, sizeof r->err);
    r->space.vk = r->vk;
    esp_rig_must(esp_upload_init(&r->up, r->vk, &r->err));
    add_guard();
}

struct esp_rows esp_rig_rows(uint32_t n_row, uint32_t width, const float *x)
{
    const uint32_t stride = (uint32_t)esp_round_up(width, 32) / 4;
    const size_t at = grow(&esp_rig.act, (size_t)n_row * stride * 4);
    float *to = esp_rig.act.at + at;

    for (uint32_t t = 0; x && t < n_row; t++) {
        memset(to + (size_t)t * stride * 4, 0, (size_t)stride * 16);
        memcpy(to + (size_t)t * stride * 4, x + (size_t)t * width, width * sizeof *x);
    }
    if (!x)
        fill_no_number(to, (size_t)n_row * stride * 4);
    add_guard();
    return (struct esp_rows){(uint32_t)(at / 4), stride};
}

uint32_t esp_rig_vec(const float *v, uint32_t n)
{
    const size_t padded = esp_round_up(n, 32);
    const size_t at = grow(&esp_rig.vec, padded + 32);

    memcpy(esp_rig.vec.at + at, v, n * sizeof *v);
    memset(esp_rig.vec.at + at + n, 0, (padded - n) * sizeof *v);
    fill_no_number(esp_rig.vec.at + at + padded, 32); /* who reads on too far shall be seen */
    return (uint32_t)at;
}

uint32_t esp_rig_kv(uint32_t n_texel, float fill)
{
    const size_t at = grow(&esp_rig.kv, (size_t)n_texel * 4);

    for (size_t i = 0; i < (size_t)n_texel * 4; i++)
        esp_rig.kv.at[at + i] = fill;
    return (uint32_t)(at / 4);
}

void esp_rig_host(const float *in, size_t n, size_t n_out)
{
    size_t at = grow(&esp_rig.in, n);

    if (n)
        memcpy(esp_rig.in.at + at, in, n * sizeof *in);
    at = grow(&esp_rig.out, n_out);
    fill_no_number(esp_rig.out.at + at, n_out);
}

static void upload(struct esp_buf *to, const void *data, size_t n_bytes)
{
    for (size_t at = 0; at < n_bytes; at += ESP_UPLOAD_BYTES) {
        const size_t n = n_bytes - at < ESP_UPLOAD_BYTES ? n_bytes - at : ESP_UPLOAD_BYTES;
        void *dst;
        esp_rig_must(esp_upload_map(&dst, &esp_rig.up, to, at, n, &esp_rig.err));
        memcpy(dst, (const char *)data + at, n);
        esp_rig_must(esp_upload_commit(&esp_rig.up, &esp_rig.err));
    }
    esp_rig_must(esp_upload_wait(&esp_rig.up, &esp_rig.err));
}

static void make_buf(struct esp_buf *buf, enum esp_buf_kind kind, size_t n_bytes, VkFormat format)
{
    esp_rig_must(esp_buf_create(buf, esp_rig.vk, kind, n_bytes, format, "test buffer", &esp_rig.err));
}

struct esp_mat esp_rig_mat(const struct esp_pack_spec *spec, uint32_t n_part, uint32_t n_times)
{
    struct esp_rig *r = &esp_rig;
    struct esp_pack_dims d;
    struct esp_mat m = {.bias = ESP_NONE};
    uint32_t rows, n_panel, panel = 0;
    size_t panel_bytes;
    char *packed;
    void *row;

    esp_pack_dims(&d, spec);
    rows = 8 * (d.panel > 4 ? d.panel : 4);
    n_panel = d.np / rows;
    n_part = n_part < n_panel * n_times ? n_part : n_panel * n_times;
    panel_bytes = (size_t)d.group_bytes * rows / 8;
    packed = esp_rig_alloc(n_panel, panel_bytes);
    row = esp_rig_alloc(1, esp_pack_scratch_bytes(&d));
    esp_rig_must(esp_pack_groups(packed, spec, &d, 0, d.np / 8, row, &r->err));
    free(row);
    m.wtype = d.wtype;
    m.kp = d.kp;
    m.np = d.np * n_times;
    m.n = n_times == 1 ? d.n : m.np;
    m.n_part = n_part;
    for (uint32_t p = 0; p < n_part; p++) {
        const uint32_t next = (uint32_t)((uint64_t)n_panel * n_times * (p + 1) / n_part);
        const uint32_t lead = p ? 8 : 0; /* a later part does not begin where its chunk does */
        struct esp_buf *to = &r->weights[r->space.n_chunk];
        make_buf(to, ESP_BUF_DEVICE, lead * 16 + (next - panel) * panel_bytes, VK_FORMAT_R32G32B32A32_UINT);
        r->space.chunk[r->space.n_chunk] = to;
        m.part[p].chunk = r->space.n_chunk++;
        m.part[p].at = lead;
        m.part[p].row0 = panel * rows;
        m.part[p].n_row = (next - panel) * rows;
        for (size_t at = lead * 16; panel < next;) {
            uint32_t n = n_panel - panel % n_panel;
            const uint32_t most = (uint32_t)(ESP_UPLOAD_BYTES / panel_bytes);
            n = n < next - panel ? n : next - panel;
            n = n < most ? n : most;
            void *dst;
            esp_rig_must(esp_upload_map(&dst, &r->up, to, at, n * panel_bytes, &r->err));
            memcpy(dst, packed + panel % n_panel * panel_bytes, n * panel_bytes);
            esp_rig_must(esp_upload_commit(&r->up, &r->err));
            at += n * panel_bytes;
            panel += n;
        }
    }
    free(packed);
    return m;
}

void esp_rig_ready(void)
{
    struct esp_rig *r = &esp_rig;
    struct esp_space *s = &r->space;
    const size_t words = esp_batch_n_words(r->max_rows, r->max_copies, r->max_table);

    if (s->n_chunk == 0) {
        make_buf(&r->weights[0], ESP_BUF_DEVICE, 16, VK_FORMAT_R32G32B32A32_UINT);
        s->chunk[s->n_chunk++] = &r->weights[0];
    }
    make_buf(&s->vec, ESP_BUF_DEVICE, r->vec.n * 4, VK_FORMAT_UNDEFINED);
    make_buf(&s->act, ESP_BUF_DEVICE, r->act.n * 4, VK_FORMAT_R32G32B32A32_SFLOAT);
    make_buf(&s->kv, ESP_BUF_DEVICE, r->kv.n * 4, VK_FORMAT_R32G32B32A32_SFLOAT);
    make_buf(&s->step, ESP_BUF_UPLOAD, words * 4, VK_FORMAT_UNDEFINED);
    make_buf(&s->in, ESP_BUF_UPLOAD, r->in.n * 4, VK_FORMAT_UNDEFINED);
    make_buf(&s->out, ESP_BUF_READBACK, r->out.n * 4, VK_FORMAT_UNDEFINED);
    esp_rig_must(esp_space_bind(s, &r->err));
    upload(&s->vec, r->vec.at, r->vec.n * 4);
    upload(&s->act, r->act.at, r->act.n * 4);
    upload(&s->kv, r->kv.at, r->kv.n * 4);
    if (r->in.n)
        memcpy(s->in.map, r->in.at, r->in.n * 4);
    if (r->out.n)
        memcpy(s->out.map, r->out.at, r->out.n * 4);
    esp_batch_init(&r->batch, s->step.map, r->max_rows, r->max_copies);
    esp_batch_begin(&r->batch);
    r->rec = (struct esp_rec){.space = s, .grids = &r->grids, .err = &r->err};
    esp_rig_must(esp_cmd_alloc(&r->rec.cmd, r->vk, &r->err));
    esp_rig_must(esp_cmd_begin(r->rec.cmd, false, &r->err));
    r->recording = true;
}

static void read_back(struct esp_image *im, const struct esp_buf *from)
{
    const VkBufferCopy copy = {.size = im->n * 4};
    VkCommandBuffer cmd = VK_NULL_HANDLE;
    struct esp_buf to = {0};

    if (from->map || im->n == 0) {
        if (im->n)
            memcpy(im->at, from->map, im->n * 4);
        return;
    }
    make_buf(&to, ESP_BUF_READBACK, im->n * 4, VK_FORMAT_UNDEFINED);
    esp_rig_must(esp_cmd_alloc(&cmd, esp_rig.vk, &esp_rig.err));
    esp_rig_must(esp_cmd_begin(cmd, true, &esp_rig.err));
    esp_cmd_barrier(cmd);
    vkCmdCopyBuffer(cmd, from->buf, to.buf, 1, &copy);
    esp_cmd_barrier_all(cmd);
    esp_rig_must(esp_cmd_end(cmd, &esp_rig.err));
    esp_rig_must(esp_submit_wait(esp_rig.vk, &cmd, 1, false, &esp_rig.err));
    memcpy(im->at, to.map, im->n * 4);
    esp_cmd_free(&cmd, esp_rig.vk);
    esp_buf_destroy(&to, esp_rig.vk);
}

void esp_rig_run(void)
{
    struct esp_rig *r = &esp_rig;

    if (r->recording) {
        esp_rig_must(r->rec.st);
        esp_cmd_barrier_all(r->rec.cmd);
        esp_rig_must(esp_cmd_end(r->rec.cmd, &r->err));
        r->recording = false;
    }
    esp_batch_seal(&r->batch, &r->grids);
    esp_rig_must(esp_submit_wait(r->vk, &r->rec.cmd, 1, false, &r->err));
    read_back(&r->act, &r->space.act);
    read_back(&r->kv, &r->space.kv);
    read_back(&r->out, &r->space.out);
}

void esp_rig_get(float *out, struct esp_rows rows, uint32_t n_row, uint32_t width)
{
    for (uint32_t t = 0; t < n_row; t++) {
        const float *from = esp_rig.act.at + ((size_t)rows.at + (size_t)t * rows.stride) * 4;
        memcpy(out + (size_t)t * width, from, width * sizeof *out);
        for (uint32_t d = width; d < rows.stride * 4; d++)
            if (!(from[d] == 0))
                fail_msg("padding is %g, not zero, at row %u, column %u of %u", from[d], t, d, width);
    }
}

void esp_rig_check_unwritten(struct esp_rows rows, uint32_t from, uint32_t to)
{
    for (uint32_t t = from; t < to; t++)
        for (uint32_t d = 0; d < rows.stride * 4; d++)
            if (!is_no_number(esp_rig.act.at + ((size_t)rows.at + (size_t)t * rows.stride) * 4 + d))
                fail_msg("row %u was written at column %u, though it is not among the rows of the step", t,
                         d);
}

void esp_rig_end(void)
{
    struct esp_rig *r = &esp_rig;

    for (size_t i = 0; i < r->guard.n; i += 2) {
        uint32_t pair[2];
        memcpy(pair, r->guard.at + i, sizeof pair);
        for (uint32_t j = 0; j < pair[1]; j++)
            if (!is_no_number(r->act.at + pair[0] + j))
                fail_msg("something wrote float %u of activations, between two regions (guard %zu, float %u)",
                         pair[0] + j, i / 2, j);
    }
    esp_cmd_free(&r->rec.cmd, r->vk);
    esp_upload_finish(&r->up);
    esp_space_finish(&r->space);
    for (uint32_t i = 0; i < ESP_MAX_CHUNKS; i++)
        esp_buf_destroy(&r->weights[i], r->vk);
}

void esp_weights_make(struct esp_weights_made *w, struct esp_rand *r, enum esp_dtype dtype, uint32_t n,
                      uint32_t k, double std)
{
    const size_t count = (size_t)n * k;

    memset(w, 0, sizeof *w);
    w->values = esp_rig_alloc(count, sizeof *w->values);
    if (dtype == ESP_F32) {
        esp_rand_fill(r, w->values, count, std);
    } else {
        w->bits = esp_rig_alloc(count, 2);
        if (dtype == ESP_BF16)
            esp_rand_weights_bf16(r, w->values, w->bits, count, std);
        else
            esp_rand_weights_f16(r, w->values, w->bits, count, std);
    }
    w->tensor = (struct esp_tensor){.dtype = dtype,
                                    .n_dim = 2,
                                    .shape = {n, k},
                                    .data = w->bits ? w->bits : w->values,
                                    .n_bytes = count * esp_dtype_n_bytes(dtype),
                                    .name = "made",
                                    .stored_dtype = esp_dtype_name(dtype),
                                    .file = "made"};
}

void esp_weights_want(struct esp_weights_made *w, enum esp_wtype want)
{
    const size_t n = w->tensor.shape[0], k = w->tensor.shape[1];
    char *blocks;
    float *values;

    if (!esp_wtype_quantised(want))
        return;
    blocks = esp_rig_alloc(1, esp_wtype_n_bytes(want, esp_round_up(k, ESP_QUANT_BLOCK)));
    values = esp_rig_alloc(n * k, sizeof *values);
    for (size_t r = 0; r < n; r++) {
        if (esp_quant_row(blocks, want, w->values + r * k, k) != k)
            fail_msg("row %zu cannot be quantised", r);
        esp_quant_values(values + r * k, want, blocks, k);
    }
    if (!w->bits)
        w->bits = w->values; /* what is stored */
    else
        free(w->values);
    w->values = values;
    free(blocks);
}

void esp_weights_free(struct esp_weights_made *w)
{
    free(w->values);
    free(w->bits);
    memset(w, 0, sizeof *w);
}

uint32_t esp_head_place(uint32_t h, uint32_t head_dim)
{
    const uint32_t low = (head_dim + 1) / 2;
    return h < low ? h : (low + 3) / 4 * 4 + h - low;
}

static void images_free(void)
{
    struct esp_image *const all[] = {&esp_rig.act, &esp_rig.vec, &esp_rig.kv,
                                     &esp_rig.in,  &esp_rig.out, &esp_rig.guard};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        free(all[i]->at);
        memset(all[i], 0, sizeof *all[i]);
    }
}

int esp_rig_main(const char *name, const struct CMUnitTest *tests, size_t n_tests)
{
    const char *device = getenv("ESPALIER_DEVICE"), *only = getenv("ESP_TEST_CLASS");
    struct esp_vk_options options = {.cache_dir = "", .force_class = -1};
    struct esp_rig *r = &esp_rig;
    bool seen[ESP_VK_N_CLASS] = {false};
    struct esp_log log;
    int failed = 0;

    esp_log_init(&log, "test");
    do {
        char title[128];
        if (esp_vk_open(&r->vk, device, &options, &log, &r->err)) {
            fprintf(stderr, "%s\n", r->err.text);
            return 1;
        }
        seen[r->vk->cls] = true;
        options.force_class = -1;
        for (int c = 0; c < ESP_VK_N_CLASS; c++)
            if (r->vk->can[c] && !seen[c])
                options.force_class = c;
        r->slow = !esp_vk_has_texels(r->vk->cls) && r->vk->report.type == VK_PHYSICAL_DEVICE_TYPE_CPU;
        snprintf(title, sizeof title, "%s, %s kernels", name, r->vk->report.variant);
        fprintf(stderr, "device: %s, %s; %s kernels\n", r->vk->report.name, r->vk->report.driver,
                r->vk->report.variant);
        if (!only || strcmp(only, r->vk->report.variant) == 0)
            failed += _cmocka_run_group_tests(title, tests, n_tests, NULL, NULL);
        if (failed)
            break; /* what a failed case made is still there: no orderly end */
        if (r->vk->n_validation)
            fprintf(stderr, "%u messages of the validation layer\n", r->vk->n_validation);
        failed += r->vk->n_validation != 0;
        esp_vk_close(&r->vk);
    } while (options.force_class >= 0);
    images_free();
    return failed;
}

double esp_rig_round_blocks(float *x, uint32_t n_row, uint32_t k, enum esp_wtype as)
{
    const float limit = as == ESP_W_Q8 ? ESP_FIXED_MOST_Q8 : ESP_FIXED_MOST_Q4;

    for (uint32_t t = 0; t < n_row; t++) {
        float *row = x + (size_t)t * k;
        for (uint32_t b = 0; b < k; b += 32) {
            const uint32_t n = k - b < 32 ? k - b : 32;
            float most = 1e-30f;
            for (uint32_t i = 0; i < n; i++)
                most = fmaxf(most, fabsf(row[b + i]));
            for (uint32_t i = 0; i < n; i++)
                row[b + i] = nearbyintf(row[b + i] / (most / limit)) * (most / limit);
        }
    }
    return 4e-6;
}
