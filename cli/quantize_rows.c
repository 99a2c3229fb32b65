#include "cli/quantize_rows.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define AT_ONCE ((size_t)64 << 20) /* bytes of quantised rows before they are written */

/* Rows [lo, hi) of a matrix, one thread's. */
struct share {
    const struct esp_tensor *tensor;
    enum esp_wtype type;
    size_t lo, hi, row_bytes;
    char *out;               /* row lo's place */
    double *sum;             /* of row lo, two numbers a row: squares of errors and of weights */
    size_t bad_row, bad_col; /* the first weight that cannot be */
    float bad;
    bool failed, no_memory;
    pthread_t thread;
};

static void quantise(struct share *s)
{
    const size_t n = esp_tensor_n_col(s->tensor);
    float *x = malloc(n * sizeof *x), *y = malloc(n * sizeof *y);

    s->no_memory = !x || !y;
    for (size_t r = s->lo; !s->no_memory && !s->failed && r < s->hi; r++) {
        char *row = s->out + (r - s->lo) * s->row_bytes;
        double *sum = s->sum + 2 * (r - s->lo);
        size_t done;

        esp_tensor_rows_f32(x, s->tensor, r, 1);
        done = esp_quant_row(row, s->type, x, n);
        if (done < n) {
            s->failed = true;
            s->bad_row = r;
            s->bad_col = done;
            s->bad = x[done];
            break;
        }
        esp_quant_values(y, s->type, row, n);
        sum[0] = sum[1] = 0;
        for (size_t k = 0; k < n; k++) {
            sum[0] += ((double)y[k] - x[k]) * ((double)y[k] - x[k]);
            sum[1] += (double)x[k] * x[k];
        }
    }
    free(x);
    free(y);
}

static void *thread_main(void *arg)
{
    quantise(arg);
    return NULL;
}

/* Rows lo .. hi in even shares. Who gets no thread is done here. */
static esp_status run(struct share *share, uint32_t n, const struct share *of, struct esp_err *err)
{
    uint32_t n_started = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct share *s = &share[i];
        const size_t rows = of->hi - of->lo;

        *s = *of;
        s->lo = of->lo + rows * i / n;
        s->hi = of->lo + rows * (i + 1) / n;
        s->out = of->out + (s->lo - of->lo) * of->row_bytes;
        s->sum = of->sum + 2 * (s->lo - of->lo);
    }
    while (n_started + 1 < n &&
           pthread_create(&share[n_started].thread, NULL, thread_main, &share[n_started]) == 0)
        n_started++;
    for (uint32_t i = n_started; i < n; i++)
        quantise(&share[i]);
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(share[i].thread, NULL);
    for (uint32_t i = 0; i < n; i++) {
        if (share[i].no_memory)
            return esp_fail(err, ESP_E_NOMEM, "%s: out of memory", of->tensor->name);
        if (share[i].failed)
            return esp_fail(err, ESP_E_FORMAT,
                            "%s: tensor %s: row %zu, column %zu: %g cannot be a weight of type %s",
                            of->tensor->file, of->tensor->name, share[i].bad_row, share[i].bad_col,
                            (double)share[i].bad, esp_wtype_name(of->type));
    }
    return ESP_OK;
}

esp_status esp_quantize_rows(FILE *file, const char *path, const struct esp_tensor *tensor,
                             enum esp_wtype type, uint32_t n_thread, double *off, double *all,
                             struct esp_err *err)
{
    struct esp_tensor as = *tensor;
    const size_t n_row = tensor->shape[0];
    struct share *share = calloc(n_thread, sizeof *share), of = {.tensor = tensor, .type = type};
    size_t most;
    esp_status st = ESP_OK;

    as.dtype = type == ESP_W_Q8 ? ESP_Q8 : ESP_Q4;
    of.row_bytes = esp_tensor_row_bytes(&as);
    most = AT_ONCE / of.row_bytes ? AT_ONCE / of.row_bytes : 1;
    most = most < n_row ? most : n_row;
    of.out = malloc(most * of.row_bytes);
    of.sum = malloc(2 * most * sizeof *of.sum);
    if (!share || !of.out || !of.sum)
        st = esp_fail(err, ESP_E_NOMEM, "%s: out of memory", tensor->name);
    while (!st && of.hi < n_row) {
        const size_t rows = n_row - of.hi < most ? n_row - of.hi : most;

        of.lo = of.hi;
        of.hi += rows;
        st = run(share, n_thread, &of, err);
        if (!st && fwrite(of.out, of.row_bytes, rows, file) != rows)
            st = esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
        for (size_t r = 0; !st && r < rows; r++) {
            *off += of.sum[2 * r];
            *all += of.sum[2 * r + 1];
        }
    }
    free(share);
    free(of.out);
    free(of.sum);
    return st;
}
