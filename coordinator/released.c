#include "coordinator/released.h"

#include <stdlib.h>
#include <string.h>

void esp_released_finish(struct esp_released *r)
{
    free(r->entry);
    memset(r, 0, sizeof *r);
}

void esp_released_add(struct esp_released *r, const uint64_t *ids, uint32_t n, bool image, uint64_t step)
{
    if (r->n_cap - r->n < n) {
        const uint32_t n_cap = 2 * (r->n_cap + n);
        struct esp_released_id *more = realloc(r->entry, n_cap * sizeof *more);

        if (!more)
            return;
        r->entry = more;
        r->n_cap = n_cap;
    }
    for (uint32_t i = 0; i < n; i++)
        r->entry[r->n++] = (struct esp_released_id){.id = ids[i], .step = step, .image = image};
}

void esp_released_prove(struct esp_released *r, uint64_t step)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < r->n; i++)
        if (r->entry[i].step >= step)
            r->entry[n++] = r->entry[i];
    r->n = n;
}

uint32_t esp_released_take(struct esp_released *r, uint64_t *ids, uint32_t n_max, bool image)
{
    uint32_t n = 0, n_left = 0;

    for (uint32_t i = 0; i < r->n; i++) {
        if (r->entry[i].image == image && n < n_max)
            ids[n++] = r->entry[i].id;
        else
            r->entry[n_left++] = r->entry[i];
    }
    r->n = n_left;
    return n;
}
