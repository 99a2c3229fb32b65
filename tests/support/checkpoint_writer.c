#include "tests/support/checkpoint_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "model/file.h"
#include "proto/clock.h"

#define CHUNK_BYTES     ((size_t)8 << 20)
#define SHARD_BYTES     2500000000ull
#define N_QUANTILE      4096u /* different numbers in one tensor; the largest is 3.7 standard deviations */
#define N_THREAD        2u
#define MAX_COPIED_FILE ((size_t)64 << 20)

struct planned {
    enum esp_role role;
    uint32_t layer;
    uint32_t n_dim;
    uint64_t shape[4];
    uint64_t n_elem;
    uint32_t shard;
    uint64_t begin; /* in the shard's data */
    char name[ESP_TENSOR_NAME_MAX];
};

struct shard {
    char name[64]; /* of the file */
    int fd;
    uint64_t n_data;
    uint64_t data_at; /* where the data begin in the file */
};

struct chunk {
    const struct planned *tensor;
    uint64_t first, n_elem;
};

struct writer {
    const struct esp_checkpoint_spec *spec;
    struct esp_config config;
    size_t n_elem_bytes;
    size_t n_tensor, n_chunk;
    uint32_t n_shard;
    uint64_t n_total; /* bytes of all tensors */
    struct planned *tensor;
    struct chunk *chunk;
    struct shard *shard;
    float quantile[N_QUANTILE]; /* of the standard normal distribution */
    atomic_size_t next_chunk;
    atomic_uint_fast64_t n_done;
    atomic_int error; /* errno of the first failed write */
};

/* ---- numbers ---- */

static uint64_t splitmix64(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* By bisection of the distribution function: 4096 of them take milliseconds, and no approximation to quote.
 */
static void fill_quantiles(float *q)
{
    for (uint32_t i = 0; i < N_QUANTILE; i++) {
        double p = (i + 0.5) / N_QUANTILE, lo = -6, hi = 6;
        for (int k = 0; k < 50; k++) {
            double mid = 0.5 * (lo + hi);
            if (0.5 * erfc(-mid / sqrt(2.0)) < p)
                lo = mid;
            else
                hi = mid;
        }
        q[i] = (float)(0.5 * (lo + hi));
    }
}

static uint16_t to_bf16(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16); /* to nearest even; no NaN comes here */
}

/* For finite numbers below 65504: scaled so that float arithmetic rounds to half's grid. */
static uint16_t to_f16(float f)
{
    uint16_t sign = signbit(f) ? 0x8000u : 0;
    float a = fabsf(f);
    int exponent;
    uint32_t mantissa;

    if (a < 0x1p-14f) /* subnormal: a multiple of 2^-24 */
        return sign | (uint16_t)lrintf(a * 0x1p24f);
    mantissa = (uint32_t)lrintf(ldexpf(frexpf(a, &exponent), 11)); /* 1024 .. 2048 */
    return sign | (uint16_t)(((uint32_t)(exponent - 1 + 15) << 10) + (mantissa - 1024));
}

/* Mean and standard deviation of a tensor's numbers. */
static void scale_of(double *mean, double *std, const struct writer *w, const struct planned *t)
{
    const struct esp_config *c = &w->config;

    *mean = 0;
    *std = 0.02;
    switch (t->role) {
    case ESP_V_LN1_W:
    case ESP_V_LN2_W:
    case ESP_V_POST_W:
        *mean = 1;
        *std = 0.1;
        break;
    case ESP_T_NORM_ATTN:
    case ESP_T_NORM_POST_ATTN:
    case ESP_T_NORM_MLP:
    case ESP_T_NORM_POST_MLP:
        *std = 0.1;
        break;
    case ESP_T_NORM_FINAL: /* logits of standard deviation 3 */
        *mean = 9;
        *std = 0.5;
        break;
    case ESP_T_EMBED:
        *std = 0.3 / sqrt(c->text.width);
        break;
    case ESP_V_POS:
        *std = 0.3;
        break;
    default:
        if (t->n_dim > 1) /* a product over everything but the first axis */
            *std = sqrt((double)t->shape[0] / (double)t->n_elem);
        break;
    }
}

/* Four numbers from each 64 random bits, the counter being the index of the four. */
static void fill(void *out, const struct writer *w, const struct chunk *c)
{
    const struct planned *t = c->tensor;
    uint64_t key = splitmix64(splitmix64(w->spec->seed) ^ ((uint64_t)t->role << 32 | t->layer));
    uint16_t half[N_QUANTILE];
    float single[N_QUANTILE];
    double mean, std;

    scale_of(&mean, &std, w, t);
    for (uint32_t i = 0; i < N_QUANTILE; i++) {
        uint16_t b = to_bf16((float)(mean + std * w->quantile[i]));
        uint32_t bits = (uint32_t)b << 16;
        memcpy(&single[i], &bits, sizeof bits);
        half[i] = w->spec->dtype == ESP_F16 ? to_f16(single[i]) : b;
    }
    /* chunks begin at multiples of four */
    for (uint64_t i = 0; i < c->n_elem; i += 4) {
        uint64_t r = splitmix64(key + (c->first + i) / 4);
        uint64_t n = c->n_elem - i < 4 ? c->n_elem - i : 4;
        for (uint64_t k = 0; k < n; k++, r >>= 16) {
            if (w->spec->dtype == ESP_F32)
                ((float *)out)[i + k] = single[r % N_QUANTILE];
            else
                ((uint16_t *)out)[i + k] = half[r % N_QUANTILE];
        }
    }
}

/* ---- the plan ---- */

static esp_status plan(struct writer *w, struct esp_err *err)
{
    uint32_t want;
    uint64_t n_before = 0, n_chunk_elem = CHUNK_BYTES / w->n_elem_bytes;
    int64_t last = -1;

    for (int role = 0; role < ESP_N_ROLE; role++)
        w->n_tensor += esp_role_count(&w->config, (enum esp_role)role);
    w->tensor = calloc(w->n_tensor, sizeof *w->tensor);
    if (!w->tensor)
        return esp_fail(err, ESP_E_NOMEM, "plan of %zu tensors", w->n_tensor);
    w->n_tensor = 0;
    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t i = 0; i < esp_role_count(&w->config, (enum esp_role)role); i++) {
            struct planned *t = &w->tensor[w->n_tensor++];
            t->role = (enum esp_role)role;
            t->layer = i;
            t->n_dim = esp_role_shape(t->shape, &w->config, t->role);
            t->n_elem = 1;
            for (uint32_t d = 0; d < t->n_dim; d++)
                t->n_elem *= t->shape[d]; /* the config's limits keep it below 2^63 */
            esp_role_name(t->name, w->spec->layout, &w->config, t->role, i);
            w->n_total += t->n_elem * w->n_elem_bytes;
            w->n_chunk += (t->n_elem + n_chunk_elem - 1) / n_chunk_elem;
        }
    }
    want = w->spec->n_shard ? w->spec->n_shard : (uint32_t)((w->n_total + SHARD_BYTES - 1) / SHARD_BYTES);
    w->chunk = calloc(w->n_chunk, sizeof *w->chunk);
    w->shard = calloc(w->n_tensor, sizeof *w->shard);
    if (!w->chunk || !w->shard)
        return esp_fail(err, ESP_E_NOMEM, "plan of %zu tensors", w->n_tensor);
    w->n_chunk = 0;
    for (size_t i = 0; i < w->n_tensor;
         i++) { /* in role order, cut where a shard is full; none stays empty */
        struct planned *t = &w->tensor[i];
        int64_t part = (int64_t)((double)n_before / (double)w->n_total * want);
        if (part != last) {
            last = part;
            w->shard[w->n_shard].fd = -1;
            w->n_shard++;
        }
        t->shard = w->n_shard - 1;
        t->begin = w->shard[t->shard].n_data;
        w->shard[t->shard].n_data += t->n_elem * w->n_elem_bytes;
        n_before += t->n_elem * w->n_elem_bytes;
        for (uint64_t e = 0; e < t->n_elem; e += n_chunk_elem) {
            uint64_t n = t->n_elem - e < n_chunk_elem ? t->n_elem - e : n_chunk_elem;
            w->chunk[w->n_chunk++] = (struct chunk){t, e, n};
        }
    }
    for (uint32_t s = 0; s < w->n_shard; s++) {
        if (w->n_shard == 1)
            snprintf(w->shard[s].name, sizeof w->shard[s].name, "model.safetensors");
        else
            snprintf(w->shard[s].name, sizeof w->shard[s].name, "model-%05u-of-%05u.safetensors", s + 1,
                     w->n_shard);
    }
    return ESP_OK;
}

/* ---- files ---- */

static esp_status open_file(int *out, const struct writer *w, const char *name, struct esp_err *err)
{
    char path[4096];

    *out = -1;
    if (snprintf(path, sizeof path, "%s/%s", w->spec->dir, name) >= (int)sizeof path)
        return esp_fail(err, ESP_E_ARG, "%s/%s: path too long", w->spec->dir, name);
    unlink(path); /* a new file rather than a new content: nobody who has the old one mapped is surprised */
    *out = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (*out < 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    return ESP_OK;
}

/* errno, or 0 */
static int write_at(int fd, const void *data, size_t n_bytes, uint64_t at)
{
    const char *p = data;

    while (n_bytes > 0) {
        ssize_t n = pwrite(fd, p, n_bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : ENOSPC;
        p += n;
        at += (uint64_t)n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

static esp_status put_file(const struct writer *w, const char *name, const void *data, size_t n_bytes,
                           struct esp_err *err)
{
    int fd, e;
    esp_status st = open_file(&fd, w, name, err);

    if (st)
        return st;
    e = write_at(fd, data, n_bytes, 0);
    if (close(fd) != 0 && !e)
        e = errno;
    return e ? esp_fail(err, ESP_E_IO, "%s/%s: %s", w->spec->dir, name, strerror(e)) : ESP_OK;
}

static esp_status put_header(struct writer *w, uint32_t s, struct esp_err *err)
{
    struct shard *shard = &w->shard[s];
    const char *dtype = w->spec->dtype == ESP_F32 ? "F32" : w->spec->dtype == ESP_F16 ? "F16" : "BF16";
    unsigned char n_le[8];
    char *text = NULL;
    size_t n_text;
    int e;
    FILE *f = open_memstream(&text, &n_text);

    if (!f)
        return esp_fail(err, ESP_E_NOMEM, "%s: header", shard->name);
    fprintf(f, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < w->n_tensor; i++) {
        const struct planned *t = &w->tensor[i];
        if (t->shard != s)
            continue;
        fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, dtype);
        for (uint32_t d = 0; d < t->n_dim; d++)
            fprintf(f, "%s%" PRIu64, d ? "," : "", t->shape[d]);
        fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", t->begin,
                t->begin + t->n_elem * w->n_elem_bytes);
    }
    fprintf(f, "}");
    fflush(f);
    while (n_text % 8 != 0) { /* the data begin aligned, as the format advises */
        fputc(' ', f);
        fflush(f);
    }
    if (fclose(f) != 0) {
        free(text);
        return esp_fail(err, ESP_E_NOMEM, "%s: header", shard->name);
    }
    for (int i = 0; i < 8; i++)
        n_le[i] = (unsigned char)((uint64_t)n_text >> 8 * i);
    shard->data_at = 8 + n_text;
    e = write_at(shard->fd, n_le, 8, 0);
    if (!e)
        e = write_at(shard->fd, text, n_text, 8);
    free(text);
    return e ? esp_fail(err, ESP_E_IO, "%s/%s: %s", w->spec->dir, shard->name, strerror(e)) : ESP_OK;
}

static esp_status put_index(const struct writer *w, struct esp_err *err)
{
    esp_status st;
    char *text = NULL;
    size_t n_text;
    FILE *f = open_memstream(&text, &n_text);

    if (!f)
        return esp_fail(err, ESP_E_NOMEM, "index");
    fprintf(f, "{\n  \"metadata\": {\n    \"total_size\": %" PRIu64 "\n  },\n  \"weight_map\": {\n",
            w->n_total);
    for (size_t i = 0; i < w->n_tensor; i++)
        fprintf(f, "    \"%s\": \"%s\"%s\n", w->tensor[i].name, w->shard[w->tensor[i].shard].name,
                i + 1 < w->n_tensor ? "," : "");
    fprintf(f, "  }\n}\n");
    st = fclose(f) == 0 ? put_file(w, "model.safetensors.index.json", text, n_text, err)
                        : esp_fail(err, ESP_E_NOMEM, "index");
    free(text);
    return st;
}

static esp_status put_small_files(const struct writer *w, struct esp_err *err)
{
    static const char generation[] = "{\n \"_from_model_config\": true,\n \"bos_token_id\": %u,\n"
                                     " \"eos_token_id\": %u,\n \"pad_token_id\": %u\n}\n";
    static const char preprocess[] =
        "{\n \"do_convert_rgb\": true,\n \"do_normalize\": true,\n \"do_rescale\": true,\n \"do_resize\": "
        "true,\n"
        " \"image_mean\": [0.5, 0.5, 0.5],\n \"image_processor_type\": \"SiglipImageProcessor\",\n"
        " \"image_seq_length\": %u,\n \"image_std\": [0.5, 0.5, 0.5],\n"
        " \"processor_class\": \"PaliGemmaProcessor\",\n \"resample\": 3,\n"
        " \"rescale_factor\": 0.00392156862745098,\n \"size\": {\n  \"height\": %u,\n  \"width\": %u\n "
        "}\n}\n";
    const struct esp_config *c = &w->config;
    char text[1024];
    char *data;
    size_t n_data;
    int n;
    esp_status st;

    st = put_file(w, "config.json", w->spec->config_json, w->spec->n_config, err);
    if (st)
        return st;
    n = snprintf(text, sizeof text, generation, c->bos, c->eos, c->pad);
    st = put_file(w, "generation_config.json", text, (size_t)n, err);
    if (st)
        return st;
    n = snprintf(text, sizeof text, preprocess, c->vision.n_token, c->vision.image_size,
                 c->vision.image_size);
    st = put_file(w, "preprocessor_config.json", text, (size_t)n, err);
    if (st || !w->spec->tokenizer)
        return st;
    st = esp_file_read(&data, &n_data, w->spec->tokenizer, MAX_COPIED_FILE, err);
    if (st)
        return st;
    st = put_file(w, "tokenizer.model", data, n_data, err);
    free(data);
    return st;
}

/* ---- the work ---- */

/* Takes chunks until none is left or one failed. Every byte has its place, so the order is of no matter. */
static void work(struct writer *w, bool tells)
{
    void *buf = malloc(CHUNK_BYTES);
    double told = esp_now_seconds();

    if (!buf)
        atomic_store(&w->error, ENOMEM);
    while (buf && !atomic_load(&w->error)) {
        size_t i = atomic_fetch_add(&w->next_chunk, 1);
        const struct chunk *c = &w->chunk[i];
        int e;

        if (i >= w->n_chunk)
            break;
        fill(buf, w, c);
        e = write_at(w->shard[c->tensor->shard].fd, buf, (size_t)c->n_elem * w->n_elem_bytes,
                     w->shard[c->tensor->shard].data_at + c->tensor->begin + c->first * w->n_elem_bytes);
        if (e)
            atomic_store(&w->error, e);
        atomic_fetch_add(&w->n_done, c->n_elem * w->n_elem_bytes);
        if (tells && esp_now_seconds() - told > 0.2) {
            told = esp_now_seconds();
            w->spec->progress(w->spec->user, atomic_load(&w->n_done), w->n_total);
        }
    }
    free(buf);
}

static void *run(void *arg)
{
    work(arg, false);
    return NULL;
}

static esp_status put_weights(struct writer *w, struct esp_err *err)
{
    pthread_t thread[N_THREAD - 1];
    size_t n_started = 0;
    esp_status st = ESP_OK;
    int e;

    for (uint32_t s = 0; s < w->n_shard && !st; s++) {
        st = open_file(&w->shard[s].fd, w, w->shard[s].name, err);
        if (!st)
            st = put_header(w, s, err);
    }
    if (st)
        return st;
    while (n_started < N_THREAD - 1 && pthread_create(&thread[n_started], NULL, run, w) == 0)
        n_started++; /* without the others this one does it all */
    work(w, w->spec->progress != NULL);
    while (n_started > 0)
        pthread_join(thread[--n_started], NULL);
    e = atomic_load(&w->error);
    for (uint32_t s = 0; s < w->n_shard; s++) {
        if (close(w->shard[s].fd) != 0 && !e)
            e = errno;
        w->shard[s].fd = -1;
    }
    if (e)
        return esp_fail(err, e == ENOMEM ? ESP_E_NOMEM : ESP_E_IO, "%s: writing weights: %s", w->spec->dir,
                        strerror(e));
    if (w->spec->progress)
        w->spec->progress(w->spec->user, w->n_total, w->n_total);
    return ESP_OK;
}

static esp_status check_room(const struct writer *w, struct esp_err *err)
{
    struct statvfs fs;
    uint64_t n_free;

    if (statvfs(w->spec->dir, &fs) != 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", w->spec->dir, strerror(errno));
    n_free = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (n_free < w->n_total + (64u << 20))
        return esp_fail(err, ESP_E_IO, "%s: %.2f GB needed, %.2f GB free", w->spec->dir,
                        (double)w->n_total / 1e9, (double)n_free / 1e9);
    return ESP_OK;
}

/* Without them, a former checkpoint's files would be found beside or before the new ones. */
static void remove_former(const struct writer *w)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    char path[4096];

    for (size_t i = 0; i < 2; i++) {
        if (snprintf(path, sizeof path, "%s/%s", w->spec->dir, names[i]) < (int)sizeof path)
            unlink(path);
    }
}

esp_status esp_checkpoint_write(const struct esp_checkpoint_spec *spec, struct esp_err *err)
{
    struct writer *w = calloc(1, sizeof *w);
    esp_status st;

    if (!w)
        return esp_fail(err, ESP_E_NOMEM, "checkpoint writer");
    w->spec = spec;
    w->n_elem_bytes = esp_dtype_n_bytes(spec->dtype);
    if (spec->dtype != ESP_BF16 && spec->dtype != ESP_F16 && spec->dtype != ESP_F32) {
        st = esp_fail(err, ESP_E_ARG, "dtype %s, expected bf16, f16 or f32", esp_dtype_name(spec->dtype));
        goto done;
    }
    st = esp_config_parse(&w->config, spec->config_json, spec->n_config, NULL, 0, NULL, 0, err);
    if (st)
        goto done;
    st = plan(w, err);
    if (st)
        goto done;
    if (mkdir(spec->dir, 0755) != 0 && errno != EEXIST) {
        st = esp_fail(err, ESP_E_IO, "%s: %s", spec->dir, strerror(errno));
        goto done;
    }
    st = check_room(w, err);
    if (st)
        goto done;
    remove_former(w);
    st = put_small_files(w, err);
    if (st)
        goto done;
    fill_quantiles(w->quantile);
    st = put_weights(w, err);
    if (!st && w->n_shard > 1)
        st = put_index(w, err);
done:
    for (uint32_t s = 0; w->shard && s < w->n_shard; s++) {
        if (w->shard[s].fd >= 0)
            close(w->shard[s].fd);
    }
    free(w->shard);
    free(w->chunk);
    free(w->tensor);
    free(w);
    return st;
}
