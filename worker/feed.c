#include "worker/feed.h"

#include <stdlib.h>

#include "worker/pool.h"

#define UNIT_GROUPS 4u /* a panel of 32 columns */
#define ITEM_BYTES                                                                                           \
    (1u << 20) /* packed by a thread in one go: tenths of a millisecond, and a half of its cache */

struct esp_feed {
    struct esp_upload up;
    struct esp_pool *pool;
    void *scratch[ESP_POOL_MAX]; /* a thread's own */
    size_t scratch_bytes;
    /* the present run */
    const struct esp_feed_run *run;
    char *to;
    uint32_t item_groups;
};

esp_status esp_feed_create(struct esp_feed **out, struct esp_vk *vk, struct esp_err *err)
{
    struct esp_feed *f = calloc(1, sizeof *f);
    esp_status st;

    *out = NULL;
    if (!f)
        return esp_fail(err, ESP_E_NOMEM, "loading: out of memory");
    st = esp_upload_init(&f->up, vk, err);
    if (!st)
        st = esp_pool_create(&f->pool, esp_pool_cores(), err);
    if (st) {
        esp_feed_destroy(&f);
        return st;
    }
    *out = f;
    return ESP_OK;
}

void esp_feed_destroy(struct esp_feed **feed)
{
    struct esp_feed *f = *feed;

    *feed = NULL;
    if (!f)
        return;
    esp_pool_destroy(&f->pool);
    esp_upload_finish(&f->up);
    for (uint32_t i = 0; i < ESP_POOL_MAX; i++)
        free(f->scratch[i]);
    free(f);
}

uint32_t esp_feed_unit(const struct esp_piece_mat *m)
{
    return m->dims.panel > UNIT_GROUPS ? m->dims.panel : UNIT_GROUPS;
}

uint32_t esp_feed_most(const struct esp_piece_mat *m)
{
    const uint32_t unit = esp_feed_unit(m);

    return ESP_UPLOAD_BYTES / m->dims.group_bytes / unit * unit;
}

static esp_status make_scratch(struct esp_feed *f, size_t n_bytes, struct esp_err *err)
{
    const uint32_t n = esp_pool_threads(f->pool);

    if (n_bytes <= f->scratch_bytes)
        return ESP_OK;
    for (uint32_t i = 0; i < n; i++) {
        free(f->scratch[i]);
        f->scratch[i] = malloc(n_bytes);
        if (!f->scratch[i]) {
            f->scratch_bytes = 0;
            return esp_fail(err, ESP_E_NOMEM, "rows of weights: out of memory");
        }
    }
    f->scratch_bytes = n_bytes;
    return ESP_OK;
}

/* Item 0 is what is done beside, so that it begins first; the others are shares of the run. */
static esp_status pack_item(void *arg, uint32_t item, uint32_t thread, struct esp_err *err)
{
    struct esp_feed *f = arg;
    const struct esp_feed_run *run = f->run;
    const struct esp_piece_mat *m = run->m;
    uint32_t at, n;

    if (item == 0) {
        run->beside(run->arg);
        return ESP_OK;
    }
    at = (item - 1) * f->item_groups;
    n = run->n_group - at < f->item_groups ? run->n_group - at : f->item_groups;
    return esp_pack_groups(f->to + (size_t)at * m->dims.group_bytes, &m->spec, &m->dims,
                           m->mat.part[run->part].row0 / 8 + run->group + at, n, f->scratch[thread], err);
}

static void nothing(void *arg)
{
    (void)arg;
}

esp_status esp_feed_pack(struct esp_feed *f, const struct esp_feed_run *run, struct esp_err *err)
{
    const struct esp_piece_mat *m = run->m;
    const uint32_t unit = esp_feed_unit(m), group_bytes = m->dims.group_bytes;
    struct esp_feed_run r = *run;
    void *to;
    esp_status st = make_scratch(f, esp_pack_scratch_bytes(&m->dims), err);

    if (st)
        return st;
    if (!r.beside)
        r.beside = nothing;
    st = esp_upload_map(&to, &f->up, r.to,
                        (uint64_t)m->mat.part[r.part].at * 16 + (uint64_t)r.group * group_bytes,
                        (uint64_t)r.n_group * group_bytes, err);
    if (st)
        return st;
    f->run = &r;
    f->to = to;
    f->item_groups = ITEM_BYTES / group_bytes / unit * unit;
    if (f->item_groups == 0)
        f->item_groups = unit;
    st = esp_pool_run(f->pool, pack_item, f, 1 + (r.n_group + f->item_groups - 1) / f->item_groups, err);
    f->run = NULL;
    return st ? st : esp_upload_commit(&f->up, err);
}

esp_status esp_feed_wait(struct esp_feed *f, struct esp_err *err)
{
    return esp_upload_wait(&f->up, err);
}
