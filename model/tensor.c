#include "model/tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include "model/quant.h"

size_t esp_tensor_n_col(const struct esp_tensor *t)
{
    size_t n = 1;

    for (uint32_t d = 1; d < t->n_dim; d++)
        n *= t->shape[d];
    return n;
}

size_t esp_tensor_row_bytes(const struct esp_tensor *t)
{
    const enum esp_wtype type = esp_wtype_of(t->dtype);
    const size_t n = esp_tensor_n_col(t);

    if (esp_wtype_quantised(type))
        return esp_wtype_n_bytes(type, (n + ESP_QUANT_BLOCK - 1) / ESP_QUANT_BLOCK * ESP_QUANT_BLOCK);
    return n * esp_dtype_n_bytes(t->dtype);
}

void esp_tensor_rows_f32(float *out, const struct esp_tensor *t, size_t row0, size_t n)
{
    const enum esp_wtype type = esp_wtype_of(t->dtype);
    const size_t n_col = esp_tensor_n_col(t), row_bytes = esp_tensor_row_bytes(t);
    const char *from = (const char *)t->data + row0 * row_bytes;

    if (!esp_wtype_quantised(type)) {
        esp_dtype_to_f32(out, from, t->dtype, n * n_col);
        return;
    }
    for (size_t i = 0; i < n; i++)
        esp_quant_values(out + i * n_col, type, from + i * row_bytes, n_col);
}

void esp_tensor_done(const struct esp_tensor *tensor)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t from = ((uintptr_t)tensor->data + page - 1) / page * page;
    const uintptr_t to = ((uintptr_t)tensor->data + tensor->n_bytes) / page * page;

    if (from < to) /* whole pages of its own only; a hint, so failure changes nothing */
        (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

bool esp_tensor_is_here(const struct esp_tensor *tensor, uint64_t at)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    unsigned char here = 1;

    (void)mincore((void *)(((uintptr_t)tensor->data + at) / page * page), page, &here);
    return here & 1;
}

void esp_tensor_soon(const struct esp_tensor *tensor, uint64_t at, uint64_t n)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from, to;

    if (at >= tensor->n_bytes || n == 0)
        return;
    if (n > tensor->n_bytes - at)
        n = tensor->n_bytes - at;
    from = ((uintptr_t)tensor->data + at) / page * page;
    to = (uintptr_t)tensor->data + at + n;
    (void)madvise((void *)from, to - from, MADV_WILLNEED);
}
