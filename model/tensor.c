#include "model/tensor.h"

#include <sys/mman.h>
#include <unistd.h>

void esp_tensor_done(const struct esp_tensor *tensor)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t from = ((uintptr_t)tensor->data + page - 1) / page * page;
    const uintptr_t to = ((uintptr_t)tensor->data + tensor->n_bytes) / page * page;

    if (from < to) /* whole pages of its own only; a hint, so failure changes nothing */
        (void)madvise((void *)from, to - from, MADV_DONTNEED);
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
