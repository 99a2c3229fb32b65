#include "worker/feed.h"

#include <stdlib.h>
#include <string.h>

#define UNIT_GROUPS 4u /* a panel of 32 columns */

/* Packed by a thread in one go: tenths of a millisecond, and a half of its cache; quantising takes a hundred times longer. */
#define ITEM_BYTES  (1u << 20)
#define QUANT_BYTES (64u << 10)
#define QUANT_RUN   (1u << 20)

struct esp_feed {
    struct esp_upload up;
    struct esp_pool *pool;
    void *scratch[ESP_POOL_MAX]; /* a thread's own */
    void *bounce[ESP_POOL_MAX];  /* likewise: packed bytes of an item on their way from or to a file */
    size_t scratch_bytes, bounce_bytes;
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
    for (uint32_t i = 0; i < ESP_POOL_MAX; i++)
        free(f->bounce[i]);
    free(f);
}

uint32_t esp_feed_unit(const struct esp_piece_mat *m)
{
    return m->dims.panel > UNIT_GROUPS ? m->dims.panel : UNIT_GROUPS;
}

uint32_t esp_feed_most(const struct esp_piece_mat *m, bool packed)
{
    const uint32_t unit = esp_feed_unit(m);
    const bool slow = esp_pack_quantises(&m->spec, &m->dims) && !packed;
    uint32_t n = ESP_UPLOAD_BYTES / m->dims.group_bytes / unit * unit;

    if (n > 0 && slow) {
        n = QUANT_RUN / m->dims.group_bytes / unit * unit;
        n = n ? n : unit;
    }
    return n;
}

struct esp_pool *esp_feed_pool(struct esp_feed *f)
{
    return f->pool;
}

static esp_status make_room(void **room, size_t *had, uint32_t n, size_t n_bytes, struct esp_err *err)
{
    if (n_bytes <= *had)
        return ESP_OK;
    *had = 0;
    for (uint32_t i = 0; i < n; i++) {
        free(room[i]);
        room[i] = malloc(n_bytes);
        if (!room[i])
            return esp_fail(err, ESP_E_NOMEM, "rows of weights: out of memory");
    }
    *had = n_bytes;
    return ESP_OK;
}

/* Item 0 is what is done beside, so that it begins first; the others are shares of the run. */
static esp_status pack_item(void *arg, uint32_t item, uint32_t thread, struct esp_err *err)
{
    struct esp_feed *f = arg;
    const struct esp_feed_run *run = f->run;
    const struct esp_piece_mat *m = run->m;
    const uint32_t unit = esp_feed_unit(m);
    uint32_t at, n, group;
    size_t n_bytes;
    char *to;
    void *bounce;
    esp_status st;

    if (item == 0) {
        run->beside(run->arg);
        return ESP_OK;
    }
    at = (item - 1) * f->item_groups;
    n = run->n_group - at < f->item_groups ? run->n_group - at : f->item_groups;
    group = m->mat.part[run->part].row0 / 8 + run->group + at;
    n_bytes = (size_t)n * m->dims.group_bytes;
    to = f->to + (size_t)at * m->dims.group_bytes;
    bounce = run->from || run->keep ? f->bounce[thread] : to; /* what the device has may be slow to read */
    if (run->from)
        st = esp_packed_read(run->from, group / unit, n / unit, bounce, err);
    else
        st = esp_pack_groups(bounce, &m->spec, &m->dims, group, n, f->scratch[thread], err);
    if (!st && run->keep)
        esp_packed_write(run->keep, group / unit, n / unit, bounce);
    if (!st && bounce != to)
        memcpy(to, bounce, n_bytes);
    return st;
}

static void nothing(void *arg)
{
    (void)arg;
}

/* Groups of an item: whole units. */
static uint32_t item_groups(const struct esp_piece_mat *m, bool packed)
{
    const uint32_t unit = esp_feed_unit(m);
    const bool slow = esp_pack_quantises(&m->spec, &m->dims) && !packed;
    const uint32_t n = (slow ? QUANT_BYTES : ITEM_BYTES) / m->dims.group_bytes / unit * unit;

    return n ? n : unit;
}

esp_status esp_feed_pack(struct esp_feed *f, const struct esp_feed_run *run, bool *damaged,
                         struct esp_err *err)
{
    const struct esp_piece_mat *m = run->m;
    const uint32_t group_bytes = m->dims.group_bytes, n_thread = esp_pool_threads(f->pool);
    struct esp_feed_run r = *run;
    void *to;
    esp_status st = make_room(f->scratch, &f->scratch_bytes, n_thread, esp_pack_scratch_bytes(&m->dims), err);

    *damaged = false;
    f->item_groups = item_groups(m, r.from != NULL);
    if (!st && (r.from || r.keep))
        st = make_room(f->bounce, &f->bounce_bytes, n_thread, (size_t)f->item_groups * group_bytes, err);
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
    st = esp_pool_run(f->pool, pack_item, f, 1 + (r.n_group + f->item_groups - 1) / f->item_groups, err);
    f->run = NULL;
    *damaged = st && r.from;
    return st ? st : esp_upload_commit(&f->up, err);
}

esp_status esp_feed_wait(struct esp_feed *f, struct esp_err *err)
{
    return esp_upload_wait(&f->up, err);
}
