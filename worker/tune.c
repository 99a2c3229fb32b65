#include "worker/tune.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/clock.h"
#include "worker/batch.h"
#include "worker/ops.h"
#include "worker/vk_cmd.h"
#include "worker/vk_pipe.h"

#define HEAD     "espalier-tuning 2\n"
#define LINE     "%s unit=%ux%ux%u tile=%ux%u threads=%u\n" /* unit and tile 0: no cooperative matrices */
#define MAX_TEXT 1024
#define GPU_SIDE 2048u /* of a square matrix */
#define GPU_ROWS 250u  /* of a prefill; no tile divides them */
#define CPU_SIDE 256u  /* for tests: a CPU driver takes minutes for the above */
#define CPU_ROWS 42u
#define MIN_TIME 0.03 /* seconds of repeats each */
#define COPIES   8u   /* products in a submission */
#define VEC_BYTES                                                                                            \
    (96u << 20)        /* of matrices, for one row at a time: a device's cache should not hold them all ... */
#define MAX_VECS  64u  /* ... and so many at most */
#define FASTER    0.9  /* what leaves the default must take at most so much of its time */
#define SLOWER    1.25 /* a unit that takes so much longer with one tile is not tried with others */
#define TOLERANCE 1e-5 /* relative L2 of a row between variants: float32 sums in other orders are at 1e-6 */

static const enum esp_wtype types[] = {ESP_W_BF16, ESP_W_F16, ESP_W_F32, ESP_W_Q8, ESP_W_Q4};
static const uint32_t tiles[][2] = {{64, 64}, {64, 128}, {128, 64}, {128, 128}, {32, 32}};
static const uint32_t threads[] = {32768, 65536, 131072, 262144};

#define N_TYPES   (sizeof types / sizeof types[0])
#define N_TILES   (sizeof tiles / sizeof tiles[0])
#define N_THREADS (sizeof threads / sizeof threads[0])

static bool is_cpu(const struct esp_vk *vk)
{
    return vk->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

bool esp_tune_tile_fits(const struct esp_vk *vk, const struct esp_vk_coop *c, uint32_t m, uint32_t n)
{
    const uint32_t wide = c->n < 16 ? 16 : c->n;               /* matmul_coop.comp's W ... */
    const uint32_t lanes = 4 * vk->coop_wave;                  /* ... and its THREADS */
    const uint64_t bytes = (uint64_t)(2 * m + n) * 80          /* xh, xl, ws */
                           + 16u * c->m * wide + 4u * (m + n); /* done, scales, ds */
    bool has = false;

    for (uint32_t i = 0; i < vk->n_coop; i++)
        has = has || memcmp(&vk->coop[i], c, sizeof *c) == 0;
    return has && m / 2 % c->m == 0 && n / 2 % wide == 0 && m * 8 % lanes == 0 && n * 4 % lanes == 0 &&
           bytes <= vk->props.limits.maxComputeSharedMemorySize;
}

/* The i-th tile, if it is to be tried. CPU drivers' compilers take minutes for more than the smallest. */
static bool tile_serves(const struct esp_vk *vk, const struct esp_vk_coop *c, size_t i)
{
    return esp_tune_tile_fits(vk, c, tiles[i][0], tiles[i][1]) && (!is_cpu(vk) || tiles[i][0] == 32);
}

void esp_tune_default(struct esp_vk *vk)
{
    struct esp_vk_choice usual = {.matvec_threads = 131072};

    for (size_t i = N_TILES; vk->n_coop && i-- > 0;)
        if (tile_serves(vk, &vk->coop[0], i))
            usual = (struct esp_vk_choice){vk->coop[0], tiles[i][0], tiles[i][1], usual.matvec_threads};
    for (size_t t = 0; t < N_TYPES; t++) {
        vk->choice[types[t]] = usual;
        if (!esp_kernel_find(ESP_K_MATMUL_COOP, ESP_VK_GPU, types[t]))
            vk->choice[types[t]] = (struct esp_vk_choice){.matvec_threads = usual.matvec_threads};
    }
}

void esp_tune_format(char *text, size_t n, const struct esp_vk_choice choice[ESP_N_WTYPE])
{
    size_t at = (size_t)snprintf(text, n, HEAD);

    for (size_t t = 0; t < N_TYPES && at < n; t++) {
        const struct esp_vk_choice *c = &choice[types[t]];
        at += (size_t)snprintf(text + at, n - at, LINE, esp_wtype_name(types[t]), c->coop.m, c->coop.n,
                               c->coop.k, c->tile_m, c->tile_n, c->matvec_threads);
    }
}

static bool choice_serves(const struct esp_vk *vk, enum esp_wtype type, const struct esp_vk_choice *c)
{
    const struct esp_vk_choice none = {.matvec_threads = c->matvec_threads};
    bool known = false;

    for (size_t i = 0; i < N_THREADS; i++)
        known = known || threads[i] == c->matvec_threads;
    if (!known || memcmp(c, &none, sizeof none) == 0)
        return known;
    known = false;
    for (size_t i = 0; i < N_TILES; i++)
        known = known || (tiles[i][0] == c->tile_m && tiles[i][1] == c->tile_n);
    return known && esp_tune_tile_fits(vk, &c->coop, c->tile_m, c->tile_n) &&
           esp_kernel_find(ESP_K_MATMUL_COOP, ESP_VK_GPU, type);
}

bool esp_tune_parse(struct esp_vk_choice out[ESP_N_WTYPE], const struct esp_vk *vk, const char *text)
{
    struct esp_vk_choice got[ESP_N_WTYPE] = {0};
    const char *at = text + strlen(HEAD);
    char again[MAX_TEXT];

    if (strncmp(text, HEAD, strlen(HEAD)) != 0)
        return false;
    for (size_t t = 0; t < N_TYPES; t++) {
        struct esp_vk_choice *c = &got[types[t]];
        char name[8];
        int n = 0;
        if (sscanf(at, "%7s unit=%ux%ux%u tile=%ux%u threads=%u\n%n", name, &c->coop.m, &c->coop.n,
                   &c->coop.k, &c->tile_m, &c->tile_n, &c->matvec_threads, &n) != 7 ||
            n == 0 || !choice_serves(vk, types[t], c))
            return false;
        at += n;
    }
    esp_tune_format(again, sizeof again, got); /* nothing but what we write */
    if (strcmp(again, text) != 0)
        return false;
    memcpy(out, got, sizeof got);
    return true;
}

/* ESPALIER_TUNE: for tests, which have no GPU */
static bool has_choice(const struct esp_vk *vk)
{
    const char *env = getenv("ESPALIER_TUNE");
    return vk->cls == ESP_VK_GPU && (!is_cpu(vk) || (env && strcmp(env, "1") == 0));
}

/* "" where nothing is kept. Beside pipelines-UUID.bin, and with the device in its name: some drivers have one UUID. */
static void choice_path(char *out, size_t n, const struct esp_vk *vk)
{
    const char *pipes = esp_pipes_path(vk->pipes);
    const char *name = strrchr(pipes, '/');
    const char *uuid = name ? strchr(name, '-') : NULL;

    out[0] = '\0';
    if (uuid && (size_t)snprintf(out, n, "%.*s/tuning-%08x-%08x%.*s.txt", (int)(name - pipes), pipes,
                                 vk->props.vendorID, vk->props.deviceID, 2 * VK_UUID_SIZE + 1, uuid) >= n)
        out[0] = '\0';
}

bool esp_tune_recall(struct esp_vk *vk)
{
    char path[640], text[MAX_TEXT];
    struct stat sb;
    size_t n = 0;
    FILE *f;

    if (!has_choice(vk))
        return false;
    choice_path(path, sizeof path, vk);
    f = path[0] ? fopen(path, "rb") : NULL;
    if (!f)
        return false;
    if (fstat(fileno(f), &sb) == 0 && S_ISREG(sb.st_mode) && sb.st_uid == geteuid() && !(sb.st_mode & 022))
        n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    return strlen(text) == n && esp_tune_parse(vk->choice, vk, text);
}

/* Keeps the choice, and takes another's where one was first. */
static void remember(struct esp_vk *vk, bool redo)
{
    char path[640], tmp[680], text[MAX_TEXT];
    FILE *f;
    bool ok;

    choice_path(path, sizeof path, vk);
    if (!path[0])
        return;
    snprintf(tmp, sizeof tmp, "%s.%ld", path, (long)getpid());
    esp_tune_format(text, sizeof text, vk->choice);
    f = fopen(tmp, "wb");
    if (!f)
        return;
    ok = fchmod(fileno(f), 0600) == 0;
    ok = fputs(text, f) >= 0 && ok;
    ok = fclose(f) == 0 && ok;
    if (ok && redo) {
        ok = rename(tmp, path) == 0;
    } else if (ok && link(tmp, path) != 0 && errno == EEXIST && !esp_tune_recall(vk)) {
        (void)rename(tmp, path); /* what stands there is none of ours */
    }
    unlink(tmp);
}

/* Products of one type of weights to time: their buffers, and what one is told of the other. */
struct trial {
    struct esp_space sp;
    struct esp_buf weights; /* n_copy square matrices, all the same */
    enum esp_wtype type;
    uint32_t side, rows, n_copy;
    double min_time;
    bool check_only;
    struct esp_batch batch;
    float *want; /* f32[rows, side], of plain's kernels */
    bool right;  /* the last variant's result was the same, near enough */
    double gain; /* of what was chosen for many rows, over plain's kernel; 0: not measured */
};

/* Numbers of both signs that are not all alike, the same ones on every machine. */
static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* 16 bytes of packed weights (worker/pack.h), the i-th of them, of either sign and at most 0.06 or so. */
static void weights_texel(uint16_t to[8], enum esp_wtype type, uint32_t i, uint32_t *state)
{
    const bool q8 = type == ESP_W_Q8, q4 = type == ESP_W_Q4;
    const bool scales = (q8 && i % 17 == 0) || (q4 && i % 9 == 0);

    for (uint32_t j = 0; j < 8; j++) {
        const uint32_t r = next_random(state);
        if (type == ESP_W_BF16) /* +-[0.03, 0.06) */
            to[j] = (uint16_t)(0x3d00 | (r & 0x807f));
        else if (type == ESP_W_F16)
            to[j] = (uint16_t)(0x2800 | (r & 0x83ff));
        else if (type == ESP_W_F32) /* the upper half last */
            to[j] = (uint16_t)(j % 2 ? 0x3d00 | (r & 0x807f) : r);
        else if (scales && q8) /* d in [2^-12, 2^-11) */
            to[j] = (uint16_t)(0x3980 | (r & 0x7f));
        else if (scales) /* d in [2^-8, 2^-7), z at most 15.75 */
            to[j] = (uint16_t)(32 << 10 | (r & 0x3ff));
        else
            to[j] = (uint16_t)r;
    }
}

/* Rows of x: numbers within +-1, times a power of two from row to row, and one of 64 a hundred times as large. */
static void fill_rows(float *x, const struct trial *t, uint32_t *state)
{
    for (uint32_t r = 0; r < t->rows; r++)
        for (uint32_t i = 0; i < t->side; i++) {
            const uint32_t v = next_random(state);
            *x++ =
                ((float)(v & 0xffff) / 32768.0f - 1.0f) * ldexpf(v >> 16 & 63 ? 1 : 100, (int)(r % 16) - 8);
        }
}

static size_t matrix_bytes(const struct trial *t)
{
    return esp_wtype_n_bytes(t->type, t->side) * t->side;
}

static esp_status fill(struct trial *t, struct esp_err *err)
{
    struct esp_vk *vk = t->sp.vk;
    const size_t n = matrix_bytes(t); /* at most ESP_UPLOAD_BYTES */
    struct esp_upload up;
    uint32_t state = 1;
    VkCommandBuffer cmd;
    void *to;
    esp_status st = esp_upload_init(&up, vk, err);

    if (!st)
        st = esp_upload_map(&to, &up, &t->weights, 0, n, err);
    if (!st) {
        for (uint32_t i = 0; i < n / 16; i++)
            weights_texel((uint16_t *)to + 8 * (size_t)i, t->type, i, &state);
        st = esp_upload_commit(&up, err);
    }
    if (!st)
        st = esp_upload_map(&to, &up, &t->sp.act, 0, (size_t)t->rows * t->side * 4, err);
    if (!st) {
        fill_rows(to, t, &state);
        st = esp_upload_commit(&up, err);
    }
    if (!st)
        st = esp_upload_wait(&up, err);
    esp_upload_finish(&up);
    if (st || (st = esp_cmd_once_begin(&cmd, vk, err)))
        return st;
    for (uint32_t i = 1; i < t->n_copy; i++) {
        const VkBufferCopy copy = {.dstOffset = i * n, .size = n};
        vkCmdCopyBuffer(cmd, t->weights.buf, t->weights.buf, 1, &copy);
    }
    return esp_cmd_once_run(&cmd, vk, err);
}

static void trial_plan(struct trial *t, struct esp_vk *vk, enum esp_wtype type, bool check_only)
{
    const bool small = is_cpu(vk);
    size_t n;

    memset(t, 0, sizeof *t);
    t->sp.vk = vk;
    t->type = type;
    t->side = small ? CPU_SIDE : GPU_SIDE;
    t->rows = small ? CPU_ROWS : GPU_ROWS;
    t->min_time = small || check_only ? 0 : MIN_TIME;
    t->check_only = check_only;
    n = VEC_BYTES / matrix_bytes(t);
    t->n_copy = small || check_only ? 1 : (uint32_t)(n < COPIES ? COPIES : n > MAX_VECS ? MAX_VECS : n);
}

static esp_status trial_init(struct trial *t, struct esp_err *err)
{
    struct esp_space *sp = &t->sp;
    struct esp_vk *vk = sp->vk;
    const size_t words = esp_batch_n_words(t->rows, 1, 1), n = (size_t)t->rows * t->side;
    esp_status st;

    t->want = malloc(n * sizeof *t->want);
    if (!t->want)
        return esp_fail(err, ESP_E_NOMEM, "results");
    st = esp_buf_create(&t->weights, vk, ESP_BUF_DEVICE, t->n_copy * matrix_bytes(t),
                        VK_FORMAT_R32G32B32A32_UINT, "matrices", err);
    if (st)
        return st;
    sp->chunk[0] = &t->weights;
    sp->n_chunk = 1;
    if ((st = esp_buf_create(&sp->vec, vk, ESP_BUF_DEVICE, 16, VK_FORMAT_UNDEFINED, "vectors", err)) ||
        (st = esp_buf_create(&sp->act, vk, ESP_BUF_DEVICE, 2 * n * 4 + t->rows * 4,
                             VK_FORMAT_R32G32B32A32_SFLOAT, "rows", err)) ||
        (st = esp_buf_create(&sp->kv, vk, ESP_BUF_DEVICE, 16, VK_FORMAT_R32G32B32A32_SFLOAT, "KV cache",
                             err)) ||
        (st = esp_buf_create(&sp->out, vk, ESP_BUF_READBACK, n * 4, VK_FORMAT_UNDEFINED, "results", err)) ||
        (st = esp_buf_create(&sp->step, vk, ESP_BUF_UPLOAD, words * 4, VK_FORMAT_UNDEFINED, "step", err)) ||
        (st = esp_space_bind(sp, err)))
        return st;
    esp_batch_init(&t->batch, sp->step.map, t->rows, 1);
    return fill(t, err);
}

static void trial_finish(struct trial *t)
{
    struct esp_vk *vk = t->sp.vk;

    free(t->want);
    esp_space_finish(&t->sp);
    esp_buf_destroy(&t->weights, vk);
}

static bool close_enough(const struct trial *t, uint32_t rows)
{
    const float *got = t->sp.out.map, *want = t->want;

    for (uint32_t r = 0; r < rows; r++) {
        double off = 0, all = 0;
        for (uint32_t i = 0; i < t->side; i++, got++, want++) {
            const double d = (double)*got - (double)*want;
            off += d * d;
            all += (double)*want * (double)*want;
        }
        if (!(off <= TOLERANCE * TOLERANCE * all)) /* nor is NaN */
            return false;
    }
    return true;
}

/* Seconds of the product as vk->choice has it, n of them in a submission; looks at the result of the last. */
static esp_status run(double *out, struct trial *t, uint32_t few, uint32_t rows, struct esp_err *err)
{
    const struct esp_rows x = {0, t->side / 4}, y = {t->rows * t->side / 4, t->side / 4};
    const struct esp_matmul_how how = {.few = few, .count = ESP_COUNT_ROWS, .scale_at = 2 * y.at};
    const uint32_t n = few || t->n_copy < COPIES ? t->n_copy : COPIES;
    struct esp_grids grids = {0};
    struct esp_rec rec = {.space = &t->sp, .grids = &grids, .err = err};
    struct esp_vk *vk = t->sp.vk;
    VkCommandBuffer look = VK_NULL_HANDLE;
    double total = 0;

    *out = 1e9;
    rec.st = esp_cmd_alloc(&look, vk, err);
    if (!rec.st)
        rec.st = esp_cmd_alloc(&rec.cmd, vk, err);
    if (!rec.st)
        rec.st = esp_cmd_begin(rec.cmd, false, err);
    for (uint32_t i = 0; i < n; i++) {
        const struct esp_mat w = {.n_part = 1,
                                  .part = {{0, (uint32_t)(i * (matrix_bytes(t) / 16)), 0, t->side}},
                                  .n = t->side,
                                  .np = t->side,
                                  .kp = t->side,
                                  .wtype = t->type,
                                  .bias = ESP_NONE};
        esp_op_matmul(&rec, y, x, &w, &how);
    }
    if (!rec.st)
        rec.st = esp_cmd_end(rec.cmd, err);
    if (!rec.st) {
        struct esp_rec other = rec;
        other.cmd = look;
        other.st = esp_cmd_begin(look, false, err);
        esp_op_rows_out(&other, y, t->side, 0, ESP_COUNT_ROWS);
        if (!other.st) {
            esp_cmd_barrier_all(look);
            other.st = esp_cmd_end(look, err);
        }
        rec.st = other.st;
    }
    esp_batch_begin(&t->batch);
    t->batch.count[ESP_COUNT_ROWS] = rows;
    esp_batch_seal(&t->batch, &grids);
    if (!rec.st) /* to warm up */
        rec.st = esp_submit_wait(vk, &rec.cmd, 1, false, err);
    while (!rec.st && total < t->min_time) {
        const double t0 = esp_now_seconds();
        double s;
        rec.st = esp_submit_wait(vk, &rec.cmd, 1, false, err);
        s = esp_now_seconds() - t0;
        total += s;
        *out = s / n < *out ? s / n : *out;
    }
    if (!rec.st)
        rec.st = esp_submit_wait(vk, &look, 1, false, err);
    if (!rec.st)
        t->right = close_enough(t, rows);
    esp_cmd_free(&rec.cmd, vk);
    esp_cmd_free(&look, vk);
    return rec.st;
}

static void say(FILE *out, const struct trial *t, const char *what, double s, bool right)
{
    if (out && s < 1e8)
        fprintf(out, "  %-4s %-48s %9.1f us", esp_wtype_name(t->type), what, s * 1e6);
    else if (out)
        fprintf(out, "  %-4s %-48s %12s", esp_wtype_name(t->type), what, "");
    if (out)
        fprintf(out, "%s\n", right ? "" : "  wrong results: refused");
}

/* One variant of cooperative matrices, as vk->choice has it. */
static esp_status try_coop(double *s, struct trial *t, FILE *out, struct esp_err *err)
{
    const struct esp_vk_choice *c = &t->sp.vk->choice[t->type];
    char what[80];
    esp_status st = run(s, t, 0, t->rows, err);

    if (st)
        return st;
    snprintf(what, sizeof what, "%u rows, matrices %ux%ux%u, tiles %ux%u", t->rows, c->coop.m, c->coop.n,
             c->coop.k, c->tile_m, c->tile_n);
    say(out, t, what, *s, t->right);
    if (!t->right)
        esp_log(t->sp.vk->log, ESP_LOG_WARN,
                "tuning wrong_results weights=%s unit=%ux%ux%u tile=%ux%u action=refused",
                esp_wtype_name(t->type), c->coop.m, c->coop.n, c->coop.k, c->tile_m, c->tile_n);
    return ESP_OK;
}

/* Products of many rows: plain's kernel, then each product of matrix units with each tile. */
static esp_status tune_matmul(struct trial *t, FILE *out, struct esp_err *err)
{
    struct esp_vk *vk = t->sp.vk;
    struct esp_vk_choice *c = &vk->choice[t->type], best = {.matvec_threads = c->matvec_threads};
    double plain, least, took;
    bool usual = true;
    char what[80];
    esp_status st;

    *c = best;
    if ((st = run(&plain, t, 0, t->rows, err)))
        return st;
    memcpy(t->want, t->sp.out.map, (size_t)t->rows * t->side * sizeof *t->want);
    snprintf(what, sizeof what, "%u rows, float32 tiles", t->rows);
    say(out, t, what, plain, true);
    least = took = plain;
    for (uint32_t u = 0; u < vk->n_coop && esp_kernel_find(ESP_K_MATMUL_COOP, vk->cls, t->type); u++) {
        bool first = true;
        for (size_t i = 0; i < N_TILES; i++) {
            double s;
            if (!tile_serves(vk, &vk->coop[u], i) || (t->check_only && !usual))
                continue;
            *c = (struct esp_vk_choice){vk->coop[u], tiles[i][0], tiles[i][1], c->matvec_threads};
            if ((st = try_coop(&s, t, out, err)))
                return st;
            if (t->right && (t->min_time > 0 ? s < least : usual)) {
                best = *c;
                took = s;
                least = usual ? FASTER * s : s; /* what others have to be below */
            }
            if (first && u > 0 && s > SLOWER * least)
                break;
            usual = first = false;
        }
    }
    *c = best;
    t->gain = t->min_time > 0 ? plain / took : 0;
    return ESP_OK;
}

/* One row: how many threads a column is given. */
static esp_status tune_matvec(struct trial *t, FILE *out, struct esp_err *err)
{
    struct esp_vk *vk = t->sp.vk;
    uint32_t *n = &vk->choice[t->type].matvec_threads;
    const uint32_t usual = *n;
    uint32_t best = usual;
    double least = 0, s;
    char what[80];
    esp_status st = run(&least, t, 1, 1, err);

    for (size_t i = 0; !st && i < N_THREADS; i++) {
        if (t->check_only && threads[i] != usual)
            continue;
        *n = threads[i];
        st = run(&s, t, 1, 1, err);
        snprintf(what, sizeof what, "1 row, up to %u threads", threads[i]);
        if (!st)
            say(out, t, what, s, t->right);
        if (!st && !t->right)
            return esp_fail(err, ESP_E_DEVICE,
                            "%s computes wrongly where subgroups exchange values: set ESPALIER_KERNELS=plain",
                            vk->report.name);
        if (!st && s < (best == usual ? FASTER : 1) * least) {
            best = threads[i];
            least = s;
        }
    }
    *n = best;
    return st;
}

static esp_status tune_type(double *gain, struct esp_vk *vk, enum esp_wtype type, bool check_only, FILE *out,
                            struct esp_err *err)
{
    struct trial t;
    esp_status st;

    trial_plan(&t, vk, type, check_only);
    st = trial_init(&t, err);
    if (!st)
        st = tune_matmul(&t, out, err);
    if (!st)
        st = tune_matvec(&t, out, err);
    *gain = t.gain;
    trial_finish(&t);
    return st;
}

static void tell(const struct esp_vk *vk, const double gain[ESP_N_WTYPE], const char *path, FILE *out)
{
    for (size_t i = 0; i < N_TYPES; i++) {
        const struct esp_vk_choice *c = &vk->choice[types[i]];
        const double by = gain[types[i]];
        esp_log(vk->log, ESP_LOG_INFO,
                "tuned weights=%s unit=%ux%ux%u tile=%ux%u threads=%u gain=%.2f file=%s",
                esp_wtype_name(types[i]), c->coop.m, c->coop.n, c->coop.k, c->tile_m, c->tile_n,
                c->matvec_threads, by, path[0] ? path : "none");
        if (!out)
            continue;
        fprintf(out, "%s %-4s ", i ? "        " : "  chosen:", esp_wtype_name(types[i]));
        if (c->coop.m)
            fprintf(out, "matrices %ux%ux%u, tiles %ux%u", c->coop.m, c->coop.n, c->coop.k, c->tile_m,
                    c->tile_n);
        else
            fprintf(out, "float32 tiles");
        if (c->coop.m && by > 0)
            fprintf(out, ", %.1f times as fast as float32 tiles", by);
        fprintf(out, "; up to %u threads a row\n", c->matvec_threads);
    }
    if (out)
        fprintf(out, "  kept in %s\n", path[0] ? path : "no file: there is no cache directory");
}

esp_status esp_vk_tune(struct esp_vk *vk, bool redo, FILE *out, struct esp_err *err)
{
    struct esp_vk_choice usual[ESP_N_WTYPE];
    double gain[ESP_N_WTYPE] = {0};
    char path[640];
    esp_status st = ESP_OK;

    if (out)
        fprintf(out, "%s, %s, %s kernels\n", vk->report.name, vk->report.driver, vk->report.variant);
    if (!has_choice(vk)) {
        if (out)
            fprintf(out, "  nothing to choose: %s\n",
                    vk->cls == ESP_VK_GPU ? "a CPU driver takes minutes to compile what a GPU might prefer"
                                          : "its kernels have no variants");
        return ESP_OK;
    }
    choice_path(path, sizeof path, vk);
    if (!redo && path[0] && esp_tune_recall(vk))
        return ESP_OK;
    esp_tune_default(vk);
    memcpy(usual, vk->choice, sizeof usual);
    for (size_t i = 0; !st && i < N_TYPES; i++)
        st = tune_type(&gain[types[i]], vk, types[i], !redo && !path[0], out, err);
    if (st) {
        memcpy(vk->choice, usual, sizeof usual);
        esp_err_prefix(err, "tuning: ");
        return st;
    }
    remember(vk, redo);
    tell(vk, gain, path, out);
    return ESP_OK;
}
