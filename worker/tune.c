#include "worker/tune.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/clock.h"
#include "worker/batch.h"
#include "worker/vk_cmd.h"
#include "worker/vk_pipe.h"

#define FORMAT    "espalier-tuning 1 coop=%u coop_m=%u coop_n=%u matvec_threads=%u\n"
#define MAX_TEXT  256
#define SIDE      2048u /* of the square matrix: 8 MiB of bfloat16 */
#define COPIES    8u    /* of it, in turn: a device's cache should not hold them all */
#define ROWS      256u  /* of a prefill */
#define MIN_TIME  0.03  /* seconds of repeats each */
#define FASTER    0.9   /* what leaves the default must take at most so much of its time */
#define TOLERANCE 1e-5  /* relative L2 between variants: float32 sums in other orders are at 1e-6 */

static const uint32_t tiles[][2] = {{64, 64}, {64, 128}, {128, 64}, {128, 128}};
static const uint32_t threads[] = {32768, 65536, 131072, 262144};

bool esp_tune_tile_fits(const struct esp_vk *vk, uint32_t m, uint32_t n)
{
    const struct esp_vk_coop *c = &vk->coop;
    const uint32_t wide = c->n < 16 ? 16 : c->n; /* matmul_coop.comp's W */
    const uint64_t bytes = (uint64_t)(2 * m + n) * 80 + 16u * c->m * wide + 4u * m;

    return c->m && m / 2 % c->m == 0 && n / 2 % wide == 0 && m * 8 % (4 * c->wave) == 0 &&
           n * 4 % (4 * c->wave) == 0 && bytes <= vk->props.limits.maxComputeSharedMemorySize;
}

void esp_tune_format(char *text, size_t n, const struct esp_vk_choice *c)
{
    snprintf(text, n, FORMAT, c->coop, c->coop_m, c->coop_n, c->matvec_threads);
}

bool esp_tune_parse(struct esp_vk_choice *out, const struct esp_vk *vk, const char *text)
{
    struct esp_vk_choice c;
    unsigned coop, m, n, t;
    char again[MAX_TEXT];
    bool known = false;

    if (sscanf(text, FORMAT, &coop, &m, &n, &t) != 4 || coop > 1)
        return false;
    c = (struct esp_vk_choice){.coop = coop, .coop_m = m, .coop_n = n, .matvec_threads = t};
    esp_tune_format(again, sizeof again, &c); /* nothing but what we write */
    if (strcmp(again, text) != 0)
        return false;
    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++)
        known = known || (tiles[i][0] == m && tiles[i][1] == n);
    if (!known || (coop && !esp_tune_tile_fits(vk, m, n)))
        return false;
    known = false;
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++)
        known = known || threads[i] == t;
    if (known)
        *out = c;
    return known;
}

/* ESPALIER_TUNE: for tests, which have no GPU */
static bool has_choice(const struct esp_vk *vk)
{
    const char *env = getenv("ESPALIER_TUNE");
    return vk->cls == ESP_VK_GPU &&
           (vk->props.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU || (env && strcmp(env, "1") == 0));
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
    return strlen(text) == n && esp_tune_parse(&vk->choice, vk, text);
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
    esp_tune_format(text, sizeof text, &vk->choice);
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

/* A product to time: its buffers, and what one is told of the other. */
struct trial {
    struct esp_space sp;
    struct esp_buf weights;
    struct esp_batch batch;
    float *want; /* f32[ROWS, SIDE], of plain's kernels */
    bool right;  /* the last variant's result was the same, near enough */
};

/* Numbers of both signs that are not all alike, the same ones on every machine. */
static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static esp_status fill(struct trial *t, struct esp_err *err)
{
    struct esp_vk *vk = t->sp.vk;
    struct esp_upload up;
    uint32_t state = 1;
    VkCommandBuffer cmd;
    void *to;
    esp_status st = esp_upload_init(&up, vk, err);

    if (!st)
        st = esp_upload_map(&to, &up, &t->weights, 0, SIDE * SIDE * 2, err);
    if (!st) {
        for (uint32_t i = 0; i < SIDE * SIDE; i++) /* bfloat16 of +-[0.03, 0.06) */
            ((uint16_t *)to)[i] = (uint16_t)(0x3d00 | (next_random(&state) & 0x807f));
        st = esp_upload_commit(&up, err);
    }
    if (!st)
        st = esp_upload_map(&to, &up, &t->sp.act, 0, ROWS * SIDE * 4, err);
    if (!st) {
        for (uint32_t i = 0; i < ROWS * SIDE; i++)
            ((float *)to)[i] = (float)(int32_t)(next_random(&state) & 0xffff) / 32768.0f - 1.0f;
        st = esp_upload_commit(&up, err);
    }
    if (!st)
        st = esp_upload_wait(&up, err);
    esp_upload_finish(&up);
    if (st || (st = esp_cmd_once_begin(&cmd, vk, err)))
        return st;
    for (uint32_t i = 1; i < COPIES; i++) {
        const VkBufferCopy copy = {.dstOffset = (VkDeviceSize)i * SIDE * SIDE * 2, .size = SIDE * SIDE * 2};
        vkCmdCopyBuffer(cmd, t->weights.buf, t->weights.buf, 1, &copy);
    }
    return esp_cmd_once_run(&cmd, vk, err);
}

static esp_status trial_init(struct trial *t, struct esp_vk *vk, struct esp_err *err)
{
    const size_t words = esp_batch_n_words(ROWS, 1, 1);
    struct esp_space *sp = &t->sp;
    esp_status st;

    sp->vk = vk;
    t->want = malloc(ROWS * SIDE * sizeof *t->want);
    if (!t->want)
        return esp_fail(err, ESP_E_NOMEM, "results");
    st = esp_buf_create(&t->weights, vk, ESP_BUF_DEVICE, COPIES * SIDE * SIDE * 2,
                        VK_FORMAT_R32G32B32A32_UINT, "matrices", err);
    if (st)
        return st;
    sp->chunk[0] = &t->weights;
    sp->n_chunk = 1;
    if ((st = esp_buf_create(&sp->vec, vk, ESP_BUF_DEVICE, 16, VK_FORMAT_UNDEFINED, "vectors", err)) ||
        (st = esp_buf_create(&sp->act, vk, ESP_BUF_DEVICE, 2 * ROWS * SIDE * 4 + ROWS * 4,
                             VK_FORMAT_R32G32B32A32_SFLOAT, "rows", err)) ||
        (st = esp_buf_create(&sp->kv, vk, ESP_BUF_DEVICE, 16, VK_FORMAT_R32G32B32A32_SFLOAT, "KV cache",
                             err)) ||
        (st = esp_buf_create(&sp->out, vk, ESP_BUF_READBACK, ROWS * SIDE * 4, VK_FORMAT_UNDEFINED, "results",
                             err)) ||
        (st = esp_buf_create(&sp->step, vk, ESP_BUF_UPLOAD, words * 4, VK_FORMAT_UNDEFINED, "step", err)) ||
        (st = esp_space_bind(sp, err)))
        return st;
    esp_batch_init(&t->batch, sp->step.map, ROWS, 1);
    return fill(t, err);
}

static void trial_finish(struct trial *t)
{
    struct esp_vk *vk = t->sp.vk;

    free(t->want);
    esp_space_finish(&t->sp);
    if (vk)
        esp_buf_destroy(&t->weights, vk);
}

static void compare(struct trial *t, uint32_t rows)
{
    const float *got = t->sp.out.map;
    double off = 0, all = 0;

    for (size_t i = 0; i < (size_t)rows * SIDE; i++) {
        const double d = (double)got[i] - (double)t->want[i];
        off += d * d;
        all += (double)t->want[i] * (double)t->want[i];
    }
    t->right = off <= TOLERANCE * TOLERANCE * all; /* false for NaN */
}

/* Seconds of the product as vk->choice has it, COPIES of them in a submission; looks at the result. */
static esp_status run(double *out, struct trial *t, uint32_t few, uint32_t rows, struct esp_err *err)
{
    const struct esp_rows x = {0, SIDE / 4}, y = {ROWS * SIDE / 4, SIDE / 4};
    const struct esp_matmul_how how = {.few = few, .count = ESP_COUNT_ROWS, .scale_at = 2 * ROWS * SIDE / 4};
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
    for (uint32_t i = 0; i < COPIES; i++) {
        const struct esp_mat w = {.n_part = 1,
                                  .part = {{0, i * (SIDE * SIDE / 8), 0, SIDE}},
                                  .n = SIDE,
                                  .np = SIDE,
                                  .kp = SIDE,
                                  .wtype = ESP_W_BF16,
                                  .bias = ESP_NONE};
        esp_op_matmul(&rec, y, x, &w, &how);
    }
    if (!rec.st)
        rec.st = esp_cmd_end(rec.cmd, err);
    if (!rec.st) {
        struct esp_rec other = rec;
        other.cmd = look;
        other.st = esp_cmd_begin(look, false, err);
        esp_op_rows_out(&other, y, SIDE, 0, ESP_COUNT_ROWS);
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
    while (!rec.st && total < MIN_TIME) {
        const double t0 = esp_now_seconds();
        double s;
        rec.st = esp_submit_wait(vk, &rec.cmd, 1, false, err);
        s = esp_now_seconds() - t0;
        total += s;
        *out = s / COPIES < *out ? s / COPIES : *out;
    }
    if (!rec.st)
        rec.st = esp_submit_wait(vk, &look, 1, false, err);
    if (!rec.st)
        compare(t, rows);
    esp_cmd_free(&rec.cmd, vk);
    esp_cmd_free(&look, vk);
    return rec.st;
}

static void say(FILE *out, const char *what, double s, bool right)
{
    if (out)
        fprintf(out, "  %-44s %9.1f us%s\n", what, s * 1e6, right ? "" : "  wrong results: not taken");
}

/* Products of many rows: plain's kernel, then each tile of cooperative matrices. */
static esp_status tune_matmul(struct trial *t, FILE *out, struct esp_err *err)
{
    struct esp_vk *vk = t->sp.vk;
    struct esp_vk_choice best = vk->choice;
    double least;
    bool left = false; /* the default, for something faster */
    char what[80];
    esp_status st;

    vk->choice.coop = best.coop = false;
    if ((st = run(&least, t, 0, ROWS, err)))
        return st;
    memcpy(t->want, t->sp.out.map, ROWS * SIDE * sizeof *t->want);
    say(out, "256 rows, float32 tiles", least, true);
    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++) {
        double s;
        if (!esp_tune_tile_fits(vk, tiles[i][0], tiles[i][1]))
            continue;
        vk->choice.coop = true;
        vk->choice.coop_m = tiles[i][0];
        vk->choice.coop_n = tiles[i][1];
        if ((st = run(&s, t, 0, ROWS, err)))
            return st;
        snprintf(what, sizeof what, "256 rows, cooperative matrices, %ux%u", tiles[i][0], tiles[i][1]);
        say(out, what, s, t->right);
        if (!t->right)
            esp_log(vk->log, ESP_LOG_WARN, "tuning wrong_results coop_m=%u coop_n=%u action=not_taken",
                    tiles[i][0], tiles[i][1]);
        if (t->right && s < (best.coop && left ? 1 : best.coop ? FASTER : 1) * least) {
            left = best.coop;
            least = s;
            best = vk->choice;
        }
    }
    vk->choice = best;
    return ESP_OK;
}

/* One row: how many threads a column is given. */
static esp_status tune_matvec(struct trial *t, FILE *out, struct esp_err *err)
{
    struct esp_vk *vk = t->sp.vk;
    const uint32_t usual = vk->choice.matvec_threads;
    uint32_t best = usual;
    double least = 0, s;
    char what[80];
    esp_status st = run(&least, t, 1, 1, err);

    for (size_t i = 0; !st && i < sizeof threads / sizeof threads[0]; i++) {
        vk->choice.matvec_threads = threads[i];
        st = run(&s, t, 1, 1, err);
        snprintf(what, sizeof what, "1 row, up to %u threads", threads[i]);
        if (!st)
            say(out, what, s, t->right);
        if (!st && !t->right)
            return esp_fail(err, ESP_E_DEVICE,
                            "%s computes wrongly where subgroups exchange values: set ESPALIER_KERNELS=plain",
                            vk->report.name);
        if (!st && s < (best == usual ? FASTER : 1) * least) {
            best = threads[i];
            least = s;
        }
    }
    vk->choice.matvec_threads = best;
    return st;
}

esp_status esp_vk_tune(struct esp_vk *vk, bool redo, FILE *out, struct esp_err *err)
{
    const struct esp_vk_choice usual = vk->choice;
    struct trial t = {.right = true};
    char path[640], text[MAX_TEXT];
    esp_status st;

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
    if (!redo && (!path[0] || esp_tune_recall(vk)))
        return ESP_OK;
    st = trial_init(&t, vk, err);
    if (!st)
        st = tune_matmul(&t, out, err);
    if (!st)
        st = tune_matvec(&t, out, err);
    trial_finish(&t);
    if (st) {
        vk->choice = usual;
        esp_err_prefix(err, "tuning: ");
        return st;
    }
    remember(vk, redo);
    esp_tune_format(text, sizeof text, &vk->choice);
    esp_log(vk->log, ESP_LOG_INFO, "tuned coop=%d tile=%ux%u matvec_threads=%u file=%s", vk->choice.coop,
            vk->choice.coop_m, vk->choice.coop_n, vk->choice.matvec_threads, path[0] ? path : "none");
    if (out)
        fprintf(out, "  chosen: %s  kept in %s\n", text,
                path[0] ? path : "no file: there is no cache directory");
    return ESP_OK;
}
