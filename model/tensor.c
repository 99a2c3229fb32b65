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
