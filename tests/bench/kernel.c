/*
 * bench-kernel: one kernel at a time on the device, at any shape, on random data; variants by turns, so that what a machine
 * does meanwhile falls on all of them alike. Prints for each variant the time (median; the middle 80 %), bytes of weights
 * (attention: keys and values) and float operations a second, and the median of the ratios to the first, turn by turn.
 * The kernel tests say whether a kernel is right; this one does not look at results.
 */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/file.h"
#include "tests/support/rand.h"
#include "worker/batch.h"
#include "worker/ops.h"
#include "worker/vk_cmd.h"

#define MAX_VARIANTS 8
#define MAX_TURNS    1001
#define BASE_ROWS    64u /* of a matrix, over and over: packing many would take minutes */

struct wanted {
    enum esp_kernel kernel;
    uint32_t k, n, rows, few, epilogue, n_head, n_kv, head_dim, n_keys;
    enum esp_wtype type;
    int cls; /* -1: what the device takes */
    const char *spirv;
    uint32_t tile_rows, tile_cols, tile_panels;
    bool layer;
};

struct variant {
    struct wanted want;
    struct esp_vk *vk; /* borrowed: one a class */
    struct esp_space space;
    struct esp_buf weights;
    struct esp_grids grids;
    struct esp_batch batch;
    VkCommandBuffer cmd;
    struct esp_kernel_code code; /* of --spirv */
    char *spirv;
    double bytes, flops;
    double seconds[MAX_TURNS], ratio[MAX_TURNS];
};

static struct variant variants[MAX_VARIANTS];
static uint32_t n_variant, n_turn = 15;
static bool cpu_time;
static struct esp_vk *devices[ESP_VK_N_CLASS + 1];
static const struct esp_kernel_code *instead; /* what the table gives while a variant of ours is recorded */

const struct esp_kernel_code *__real_esp_kernel_find(enum esp_kernel kernel, enum esp_vk_class cls,
                                                     enum esp_wtype weights);
const struct esp_kernel_code *__wrap_esp_kernel_find(enum esp_kernel kernel, enum esp_vk_class cls,
                                                     enum esp_wtype weights);

/* What the engine may take for an operation of ours: whichever it is, the variant's code stands in for it. */
static bool same_op(enum esp_kernel a, enum esp_kernel of)
{
    if (of == ESP_K_ATTENTION)
        return a == ESP_K_ATTENTION || a == ESP_K_ATTENTION_WIDE || a == ESP_K_ATTENTION_FLASH ||
               a == ESP_K_ATTENTION_SLICES;
    return a == of || (of == ESP_K_MATMUL && a == ESP_K_MATMUL_COOP);
}

/* The linker puts this in the place of esp_kernel_find. */
const struct esp_kernel_code *__wrap_esp_kernel_find(enum esp_kernel kernel, enum esp_vk_class cls,
                                                     enum esp_wtype weights)
{
    return instead && same_op(kernel, instead->kernel) ? instead
                                                       : __real_esp_kernel_find(kernel, cls, weights);
}

static void usage(FILE *f)
{
    fprintf(f,
            "usage: bench-kernel [--repeats N] [--cpu] OP [options] [-- OP [options]] ...\n\n"
            "OP is matvec, matmul or attention; each -- begins another variant, with the options of the "
            "one before.\n\n"
            "  --k N, --n N           columns and rows of W (2048, 16384)\n"
            "  --rows N               rows of x (matvec 1, matmul and attention 260; attention of up to 8 "
            "is decoding's)\n"
            "  --few N                matvec: rows a pass, 1, 2, 4 or 8 (1)\n"
            "  --type TYPE            bf16 (default), f16, f32, q8 or q4\n"
            "  --epilogue NAME        none (default), gelu, add, geglu or softcap\n"
            "  --layer                matvec: as in a decoder layer whose norms are taken apart: add begins "
            "one, others end one,\n"
            "                         and x is integers already where they are multiplied\n"
            "  --heads N, --kv N, --dim N, --keys N\n"
            "                         attention: query heads, KV heads, head_dim (8, 1, 256), keys (as "
            "many as rows)\n"
            "  --class NAME           plain, texel, gpu or direct; else what the device takes\n"
            "  --spirv FILE           a compiled kernel instead of the table's, and how it is cut:\n"
            "  --tile ROWS,COLS[,1]   as in worker/kernels.h; 1: panels\n"
            "  --repeats N            turns (15)\n"
            "  --cpu                  take this process's CPU time, not the clock's: for CPU drivers on "
            "busy machines\n\n"
            "ESPALIER_DEVICE names the device. Exit status: 0 done, 1 failed, 2 bad usage.\n");
}

static void must(esp_status st, const struct esp_err *err)
{
    if (st) {
        fprintf(stderr, "bench-kernel: %s: %s\n", esp_status_name(st), err->text);
        exit(1);
    }
}

static void *must_alloc(size_t n)
{
    void *p = calloc(n, 1);

    if (!p) {
        fprintf(stderr, "bench-kernel: out of memory: %zu bytes\n", n);
        exit(1);
    }
    return p;
}

static uint32_t number(const char *text)
{
    char *end;
    const unsigned long v = strtoul(text, &end, 10);

    if (*end || *text < '0' || *text > '9' || v == 0 || v > 1000000) {
        fprintf(stderr, "bench-kernel: %s: want 1 to 1000000\n", text);
        exit(2);
    }
    return (uint32_t)v;
}

/* Which of `names` it is; n of them. */
static uint32_t which(const char *text, const char *const *names, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    fprintf(stderr, "bench-kernel: %s: unknown (--help tells more)\n", text);
    exit(2);
}

static void parse_tile(struct wanted *w, const char *text)
{
    char end;

    w->tile_panels = 0;
    if (sscanf(text, "%u,%u,%u%c", &w->tile_rows, &w->tile_cols, &w->tile_panels, &end) >= 2 && w->tile_cols)
        return;
    fprintf(stderr, "bench-kernel: %s: want ROWS,COLS or ROWS,COLS,1\n", text);
    exit(2);
}

enum {
    K = 1,
    N,
    ROWS,
    FEW,
    TYPE,
    EPILOGUE,
    HEADS,
    KV,
    DIM,
    KEYS,
    CLASS,
    SPIRV,
    TILE,
    REPEATS,
    CPU,
    LAYER,
    HELP
};

/* The options of one variant, argv[1 .. argc). */
static void parse_variant(struct wanted *w, int argc, char **argv)
{
    static const struct option known[] = {
        {"k", required_argument, NULL, K},         {"n", required_argument, NULL, N},
        {"rows", required_argument, NULL, ROWS},   {"few", required_argument, NULL, FEW},
        {"type", required_argument, NULL, TYPE},   {"epilogue", required_argument, NULL, EPILOGUE},
        {"heads", required_argument, NULL, HEADS}, {"kv", required_argument, NULL, KV},
        {"dim", required_argument, NULL, DIM},     {"keys", required_argument, NULL, KEYS},
        {"class", required_argument, NULL, CLASS}, {"spirv", required_argument, NULL, SPIRV},
        {"tile", required_argument, NULL, TILE},   {"repeats", required_argument, NULL, REPEATS},
        {"cpu", no_argument, NULL, CPU},           {"layer", no_argument, NULL, LAYER},
        {"help", no_argument, NULL, HELP},         {NULL, 0, NULL, 0}};
    static const char *const ops[] = {"matvec", "matmul", "attention"};
    static const char *const epilogues[] = {"none", "gelu", "add", "geglu", "softcap"};
    static const char *const classes[] = {"plain", "texel", "gpu", "direct"};
    int o;

    optind = 0; /* begin anew */
    while ((o = getopt_long(argc, argv, "", known, NULL)) != -1) {
        uint32_t *const numbers[] = {
            [K] = &w->k,          [N] = &w->n,     [ROWS] = &w->rows,    [FEW] = &w->few,
            [HEADS] = &w->n_head, [KV] = &w->n_kv, [DIM] = &w->head_dim, [KEYS] = &w->n_keys};
        if (o == TYPE) {
            if (!esp_wtype_parse(&w->type, optarg) || w->type == ESP_W_STORED)
                which(optarg, NULL, 0);
        } else if (o == EPILOGUE) {
            w->epilogue = which(optarg, epilogues, 5);
        } else if (o == CLASS) {
            w->cls = (int)which(optarg, classes, 4);
        } else if (o == SPIRV) {
            w->spirv = optarg;
        } else if (o == TILE) {
            parse_tile(w, optarg);
        } else if (o == REPEATS) {
            n_turn = number(optarg);
        } else if (o == CPU) {
            cpu_time = true;
        } else if (o == LAYER) {
            w->layer = true;
        } else if (o == HELP) {
            usage(stdout);
            exit(0);
        } else if (o == '?') {
            exit(2);
        } else {
            *numbers[o] = number(optarg);
        }
    }
    if (optind < argc) {
        static const enum esp_kernel kernels[] = {ESP_K_MATVEC, ESP_K_MATMUL, ESP_K_ATTENTION};
        w->kernel = kernels[which(argv[optind++], ops, 3)];
    }
    if (optind < argc || n_turn > MAX_TURNS || (w->few & (w->few - 1)) || w->few > 8 || w->n_head % w->n_kv) {
        usage(stderr);
        exit(2);
    }
}

static void parse(int argc, char **argv)
{
    struct wanted w = {.kernel = ESP_N_KERNEL,
                       .k = 2048,
                       .n = 16384,
                       .few = 1,
                       .n_head = 8,
                       .n_kv = 1,
                       .head_dim = 256,
                       .type = ESP_W_BF16,
                       .cls = -1};

    for (int at = 1; at <= argc && n_variant < MAX_VARIANTS; n_variant++) {
        int end = at;
        while (end < argc && strcmp(argv[end], "--") != 0)
            end++;
        parse_variant(&w, end - at + 1, argv + at - 1);
        variants[n_variant].want = w;
        at = end + 1;
        if (end == argc)
            at = argc + 1;
    }
    if (w.kernel == ESP_N_KERNEL) {
        usage(stderr);
        exit(2);
    }
}

static void open_device(struct variant *v)
{
    const struct esp_vk_options options = {.cache_dir = "", .force_class = v->want.cls};
    struct esp_vk **vk = &devices[v->want.cls + 1];
    struct esp_err err = {0};
    struct esp_log log;

    esp_log_init(&log, "bench");
    if (!*vk)
        must(esp_vk_open(vk, getenv("ESPALIER_DEVICE"), &options, &log, &err), &err);
    v->vk = *vk;
    v->space.vk = *vk;
}

static void buffer(struct esp_buf *buf, struct variant *v, enum esp_buf_kind kind, uint64_t n_bytes,
                   VkFormat format)
{
    struct esp_err err = {0};

    must(esp_buf_create(buf, v->vk, kind, n_bytes, format, "benchmark", &err), &err);
}

/* Random numbers all over a buffer: f32. */
static void fill(struct esp_buf *buf, struct variant *v, struct esp_rand *r)
{
    struct esp_upload up = {0};
    struct esp_err err = {0};

    must(esp_upload_init(&up, v->vk, &err), &err);
    for (uint64_t at = 0; at < buf->n_bytes; at += ESP_UPLOAD_BYTES) {
        const uint64_t n = buf->n_bytes - at < ESP_UPLOAD_BYTES ? buf->n_bytes - at : ESP_UPLOAD_BYTES;
        void *dst;
        must(esp_upload_map(&dst, &up, buf, at, n, &err), &err);
        esp_rand_fill_uniform(r, dst, n / 4, -1, 1);
        must(esp_upload_commit(&up, &err), &err);
    }
    must(esp_upload_wait(&up, &err), &err);
    esp_upload_finish(&up);
}

/* A packed matrix of random weights. */
static struct esp_mat matrix(struct variant *v, struct esp_rand *r)
{
    const struct wanted *w = &v->want;
    float *x = must_alloc((size_t)BASE_ROWS * w->k * sizeof *x);
    const struct esp_tensor t = {.dtype = ESP_F32,
                                 .n_dim = 2,
                                 .shape = {BASE_ROWS, w->k},
                                 .data = x,
                                 .n_bytes = (size_t)BASE_ROWS * w->k * 4,
                                 .name = "random",
                                 .file = "here"};
    const struct esp_pack_spec spec = {
        .n_part = 1, .part = {{.tensor = &t}}, .want = w->type, .cls = v->vk->cls};
    struct esp_upload up = {0};
    struct esp_err err = {0};
    struct esp_pack_dims d;
    struct esp_mat m = {.n_part = 1, .bias = ESP_NONE, .n = w->n};
    uint64_t base_bytes, n_bytes;
    void *packed, *scratch;

    esp_rand_fill(r, x, (size_t)BASE_ROWS * w->k, 1 / sqrt(w->k));
    esp_pack_dims(&d, &spec);
    m.np = (uint32_t)esp_round_up(w->n, BASE_ROWS);
    m.kp = d.kp;
    m.wtype = d.wtype;
    m.part[0].n_row = m.np;
    base_bytes = (uint64_t)d.np / 8 * d.group_bytes;
    n_bytes = base_bytes * (m.np / BASE_ROWS);
    packed = must_alloc(base_bytes);
    scratch = must_alloc(esp_pack_scratch_bytes(&d));
    must(esp_pack_groups(packed, &spec, &d, 0, d.np / 8, scratch, &err), &err);
    buffer(&v->weights, v, ESP_BUF_DEVICE, n_bytes, VK_FORMAT_R32G32B32A32_UINT);
    must(esp_upload_init(&up, v->vk, &err), &err);
    for (uint64_t at = 0; at < n_bytes; at += base_bytes) {
        void *dst;
        must(esp_upload_map(&dst, &up, &v->weights, at, base_bytes, &err), &err);
        memcpy(dst, packed, base_bytes);
        must(esp_upload_commit(&up, &err), &err);
    }
    must(esp_upload_wait(&up, &err), &err);
    esp_upload_finish(&up);
    free(packed);
    free(scratch);
    free(x);
    v->bytes = (double)n_bytes;
    v->flops = 2.0 * w->rows * w->n * w->k;
    return m;
}

static struct esp_rows place(uint64_t *at, uint32_t n_row, uint32_t width)
{
    const struct esp_rows r = {(uint32_t)*at, (uint32_t)esp_round_up(width, BASE_ROWS) / 4};

    *at += (uint64_t)n_row * r.stride;
    return r;
}

/* Rows that see all keys, one sequence. */
static void attention_step(struct variant *v, uint32_t n_items)
{
    const struct wanted *w = &v->want;
    const uint32_t n_block = (w->n_keys + ESP_KV_BLOCK - 1) / ESP_KV_BLOCK;
    uint32_t *blocks = must_alloc(n_block * sizeof *blocks), table;

    for (uint32_t i = 0; i < n_block; i++)
        blocks[i] = n_block - 1 - i;
    table = esp_batch_table(&v->batch, blocks, n_block);
    for (uint32_t i = 0; i < w->rows; i++)
        esp_batch_row(&v->batch, 0, w->n_keys - w->rows + i, w->n_keys, 0, 0);
    esp_batch_tiles(
        &v->batch, 0, w->rows, table,
        esp_attn_tile_rows(v->vk, w->rows <= 8, w->n_head, w->n_kv, esp_pack_head_dim(w->head_dim)));
    if (n_items)
        (void)esp_batch_items(&v->batch, n_items);
    free(blocks);
}

static void load_spirv(struct variant *v)
{
    const struct wanted *w = &v->want;
    struct esp_err err = {0};
    size_t n;

    if (!w->spirv)
        return;
    must(esp_file_read(&v->spirv, &n, w->spirv, 16u << 20, &err), &err);
    v->code = (struct esp_kernel_code){.kernel = w->kernel,
                                       .cls = v->vk->cls,
                                       .weights = w->type,
                                       .name = w->spirv,
                                       .spirv = (const uint32_t *)(const void *)v->spirv,
                                       .n_bytes = n,
                                       .tile = {w->tile_rows, w->tile_cols, w->tile_panels != 0}};
}

/* As in a decoder layer: `at` is scratch, for z and squares. */
static void in_a_layer(struct esp_matmul_how *how, const struct variant *v, const struct esp_mat *m,
                       struct esp_rows y, uint32_t at)
{
    const bool begins = how->epilogue == ESP_EPI_ADD;

    how->fixed = esp_mat_fixed(v->vk, m);
    how->most = begins || how->epilogue == ESP_EPI_GEGLU ? esp_mat_fixed(v->vk, m) : 0;
    if (v->vk->cls == ESP_VK_GPU || how->fixed)
        how->norm = (struct esp_split_norm){
            .how = begins ? ESP_SPLIT_BEGIN : ESP_SPLIT_END,
            .z = {at, y.stride},
            .squares = {at + v->want.rows * y.stride,
                        (esp_norm_squares(v->vk, begins ? 4 * y.stride : m->kp) + 3) / 4},
            .width = v->want.k,
            .eps = 1e-6f};
}

/* Everything a variant needs, its command buffer recorded. */
static void make(struct variant *v)
{
    struct wanted *w = &v->want;
    const bool attention = w->kernel == ESP_K_ATTENTION, pairs = w->epilogue == ESP_EPI_GEGLU;
    const uint32_t hp = esp_pack_head_dim(w->head_dim);
    struct esp_err err = {0};
    struct esp_rec rec = {.space = &v->space, .grids = &v->grids, .err = &err};
    struct esp_mat m = {0};
    struct esp_rows x, y;
    struct esp_rand r;
    uint64_t act = 0, kv = 1;
    uint32_t block = 0, n_block = 0, n_items = 0, norm_at = 0, n_vec = 4;
    uint32_t extra = 0; /* scratch: of split attention, or scales of rows */

    esp_rand_init(&r, 1);
    open_device(v);
    load_spirv(v);
    w->rows = w->rows ? w->rows : w->kernel == ESP_K_MATVEC ? 1 : 260;
    w->n_keys = w->n_keys > w->rows ? w->n_keys : w->rows;
    if (attention) {
        n_block = (w->n_keys + ESP_KV_BLOCK - 1) / ESP_KV_BLOCK;
        block = 2 * w->n_kv * ESP_KV_BLOCK * hp / 4;
        kv = (uint64_t)n_block * block;
        x = place(&act, w->rows, (w->n_head + 2 * w->n_kv) * hp);
        y = place(&act, w->rows, w->n_head * hp);
        extra = (uint32_t)act;
        if (w->rows <= 8 && esp_attn_part_texels(v->vk, w->n_head, w->n_kv, hp)) {
            n_items = w->rows * ((w->n_keys + ESP_SLICE - 1) / ESP_SLICE);
            act += (uint64_t)n_items * esp_attn_part_texels(v->vk, w->n_head, w->n_kv, hp);
        }
        buffer(&v->weights, v, ESP_BUF_DEVICE, 16, VK_FORMAT_R32G32B32A32_UINT);
        v->bytes = (double)kv * 16;
        v->flops = 4.0 * w->rows * w->n_keys * w->n_head * w->head_dim;
    } else {
        m = matrix(v, &r);
        x = place(&act, w->rows, w->k);
        y = place(&act, w->rows, pairs ? w->n / 2 : w->n);
        x.stride = m.kp / 4;
        extra = (uint32_t)act;
        act += (w->rows + 3) / 4;
        norm_at = (uint32_t)act;
        act += w->layer ? (uint64_t)w->rows * (y.stride + (y.stride > x.stride ? y.stride : x.stride)) : 0;
        n_vec += (uint32_t)esp_round_up(w->n, 32);
    }
    v->space.n_chunk = 1;
    v->space.chunk[0] = &v->weights;
    buffer(&v->space.vec, v, ESP_BUF_DEVICE, n_vec * sizeof(float), VK_FORMAT_UNDEFINED);
    buffer(&v->space.act, v, ESP_BUF_DEVICE, act * 16, VK_FORMAT_R32G32B32A32_SFLOAT);
    buffer(&v->space.kv, v, ESP_BUF_DEVICE, kv * 16, VK_FORMAT_R32G32B32A32_SFLOAT);
    buffer(&v->space.step, v, ESP_BUF_UPLOAD,
           esp_batch_n_words(w->rows, 0, n_block + 1 + n_items * ESP_ITEM) * 4, VK_FORMAT_UNDEFINED);
    fill(&v->space.act, v, &r);
    fill(&v->space.kv, v, &r);
    must(esp_space_bind(&v->space, &err), &err);
    esp_batch_init(&v->batch, v->space.step.map, w->rows, 0);
    esp_batch_begin(&v->batch);
    if (attention)
        attention_step(v, n_items);
    else
        v->batch.count[ESP_COUNT_ROWS] = w->rows;
    must(esp_cmd_alloc(&v->cmd, v->vk, &err), &err);
    must(esp_cmd_begin(v->cmd, false, &err), &err);
    rec.cmd = v->cmd;
    instead = v->spirv ? &v->code : NULL;
    if (attention) {
        esp_op_attention(&rec, y, x,
                         &(struct esp_attn_how){.n_head = w->n_head,
                                                .n_kv = w->n_kv,
                                                .head_dim = hp,
                                                .block_stride = block,
                                                .q_scale = 1,
                                                .few = w->rows <= 8,
                                                .whole = n_items == 0,
                                                .parts_at = extra});
    } else {
        struct esp_matmul_how how = {.epilogue = w->epilogue,
                                     .few = w->kernel == ESP_K_MATVEC ? w->few : 0,
                                     .count = ESP_COUNT_ROWS,
                                     .cap = 30,
                                     .scale_at = extra};
        if (w->layer && how.few)
            in_a_layer(&how, v, &m, y, norm_at);
        esp_op_matmul(&rec, y, x, &m, &how);
    }
    instead = NULL;
    must(rec.st, &err);
    must(esp_cmd_end(v->cmd, &err), &err);
    esp_batch_seal(&v->batch, &v->grids);
}

static double seconds(void)
{
    struct timespec t;

    clock_gettime(cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double run(struct variant *v)
{
    struct esp_err err = {0};
    const double t0 = seconds();

    must(esp_submit_wait(v->vk, &v->cmd, 1, false, &err), &err);
    return seconds() - t0;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static void report(struct variant *v, uint32_t index)
{
    static const char *const names[ESP_N_KERNEL] = {
        [ESP_K_MATVEC] = "matvec", [ESP_K_MATMUL] = "matmul", [ESP_K_ATTENTION] = "attention"};
    const struct wanted *w = &v->want;
    double t;
    char shape[96];

    qsort(v->seconds, n_turn, sizeof *v->seconds, by_value);
    qsort(v->ratio, n_turn, sizeof *v->ratio, by_value);
    t = v->seconds[n_turn / 2];
    if (w->kernel == ESP_K_ATTENTION)
        snprintf(shape, sizeof shape, "%u rows, %u keys, %u/%u heads of %u", w->rows, w->n_keys, w->n_head,
                 w->n_kv, w->head_dim);
    else
        snprintf(shape, sizeof shape, "%s %u x (%u, %u)", esp_wtype_name(w->type), w->rows, w->k, w->n);
    printf("%u  %-9s %-5s %-34s %9.3f ms (%.3f, %.3f)  %7.2f GB/s  %7.1f GFLOP/s  x%.3f%s%s\n", index,
           names[w->kernel], v->vk->report.variant, shape, 1e3 * t, 1e3 * v->seconds[n_turn / 10],
           1e3 * v->seconds[n_turn * 9 / 10], v->bytes / t / 1e9, v->flops / t / 1e9, v->ratio[n_turn / 2],
           w->spirv ? "  " : "", w->spirv ? w->spirv : "");
}

static void finish(struct variant *v)
{
    if (!v->vk)
        return;
    esp_cmd_free(&v->cmd, v->vk);
    esp_space_finish(&v->space);
    esp_buf_destroy(&v->weights, v->vk);
    free(v->spirv);
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    for (uint32_t i = 0; i < n_variant; i++) {
        make(&variants[i]);
        run(&variants[i]); /* drivers compile at the first run */
        run(&variants[i]);
    }
    for (uint32_t turn = 0; turn < n_turn; turn++)
        for (uint32_t i = 0; i < n_variant; i++) {
            variants[i].seconds[turn] = run(&variants[i]);
            variants[i].ratio[turn] = variants[0].seconds[turn] / variants[i].seconds[turn];
        }
    printf("%s, %s; %s time, %u turns; x: how many times as fast as the first\n", variants[0].vk->report.name,
           variants[0].vk->report.driver, cpu_time ? "CPU" : "wall", n_turn);
    for (uint32_t i = 0; i < n_variant; i++)
        report(&variants[i], i + 1);
    for (uint32_t i = 0; i < n_variant; i++)
        finish(&variants[i]);
    for (uint32_t i = 0; i <= ESP_VK_N_CLASS; i++)
        if (devices[i])
            esp_vk_close(&devices[i]);
    return 0;
}
