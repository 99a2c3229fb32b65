#include "worker/feed.h"

#include <stdlib.h>
#include <string.h>

#define UNIT_GROUPS 4u /* a panel of 32 columns */

/* Packed by a thread in one go: tenths of a millisecond, and a half of its cache; quantising takes a hundred times longer. */
#define ITEM_BYTES  (1u << 20)
#define QUANT_BYTES (64u << 10)
#define QUANT_RUN   (1u << 20)

/* What matrices are made of that nobody is to read anything in: packed rows of one of its like, and how many have been. */
#define N_PATTERN     16u /* far more than a model has kinds of matrices */
#define PATTERN_BYTES (4u << 20)

struct pattern {
    struct esp_pack_dims dims;
    uint32_t n_unit; /* 0: none yet */
    char *data;
    uint32_t n_use;
};

struct esp_feed {
    struct esp_upload up;
    struct esp_pool *pool;
    void *scratch[ESP_POOL_MAX]; /* a thread's own */
    void *bounce[ESP_POOL_MAX];  /* likewise: packed bytes of an item on their way from or to a file */
    size_t scratch_bytes, bounce_bytes;
    struct pattern pattern[N_PATTERN];
    uint32_t n_pattern;
    /* the present run */
    const struct esp_feed_run *run;
    struct pattern *made_of; /* NULL: it is packed */
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
    for (uint32_t i = 0; i < N_PATTERN; i++)
        free(f->pattern[i].data);
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

/* ---- what is made up ---- */

static esp_status pattern_item(void *arg, uint32_t item, uint32_t thread, struct esp_err *err)
{
    struct esp_feed *f = arg;
    const struct esp_piece_mat *m = f->run->m;
    const uint32_t unit = esp_feed_unit(m);

    return esp_pack_groups(f->made_of->data + (size_t)item * unit * m->dims.group_bytes, &m->spec, &m->dims,
                           item * unit, unit, f->scratch[thread], err);
}

/* The pattern for the present run, packed from its matrix if this is the first of its kind; f->made_of. */
static esp_status find_pattern(struct esp_feed *f, struct esp_err *err)
{
    const struct esp_piece_mat *m = f->run->m;
    const uint32_t unit = esp_feed_unit(m), n_unit = m->dims.np / 8 / unit;
    const size_t unit_bytes = (size_t)unit * m->dims.group_bytes;
    const uint32_t n_bytes = esp_pack_quantises(&m->spec, &m->dims) ? QUANT_BYTES : PATTERN_BYTES;
    const uint32_t most = (uint32_t)(n_bytes / unit_bytes);
    struct pattern *p;
    esp_status st;

    for (uint32_t i = 0; i < N_PATTERN; i++) {
        p = f->made_of = &f->pattern[i];
        if (p->n_unit && p->dims.wtype == m->dims.wtype && p->dims.kp == m->dims.kp &&
            p->dims.panel == m->dims.panel && p->dims.k == m->dims.k) {
            p->n_use += f->run->part == 0 && f->run->group == 0;
            return ESP_OK;
        }
    }
    p = f->made_of = &f->pattern[f->n_pattern++ % N_PATTERN];
    free(p->data);
    *p = (struct pattern){.dims = m->dims, .n_unit = most < 1 ? 1 : most < n_unit ? most : n_unit};
    p->data = malloc(p->n_unit * unit_bytes);
    if (!p->data) {
        p->n_unit = 0;
        return esp_fail(err, ESP_E_NOMEM, "rows of weights: out of memory");
    }
    st = esp_pool_run(f->pool, pattern_item, f, p->n_unit, err);
    if (st)
        p->n_unit = 0;
    return st;
}

/* Units of a matrix, each of which begins at another place of the pattern. What pads a matrix's end has to be zeros, and is
 * packed. */
static esp_status make_up(struct esp_feed *f, char *to, uint32_t group, uint32_t n, void *scratch,
                          struct esp_err *err)
{
    const struct esp_piece_mat *m = f->run->m;
    const struct pattern *p = f->made_of;
    const uint32_t unit = esp_feed_unit(m);
    const size_t unit_bytes = (size_t)unit * m->dims.group_bytes;
    esp_status st = ESP_OK;

    for (uint32_t i = 0; !st && i < n; i += unit, to += unit_bytes) {
        if ((uint64_t)(group + i + unit) * 8 > m->dims.n)
            st = esp_pack_groups(to, &m->spec, &m->dims, group + i, unit, scratch, err);
        else
            memcpy(to, p->data + (p->n_use + (group + i) / unit) % p->n_unit * unit_bytes, unit_bytes);
    }
    return st;
}

/* ---- runs ---- */

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
    if (run->make_up)
        return make_up(f, to, group, n, f->scratch[thread], err);
    bounce = run->from || run->keep ? f->bounce[thread] : to; /* what the device has may be slow to read */
    if (run->from && esp_packed_is_laid(run->from, group / unit, to))
        bounce = to;
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

/* Where the device's memory is ours, a part's pages can be those of the file that has it. */
static esp_status lay_part(const struct esp_feed_run *r, void *to, struct esp_err *err)
{
    const struct esp_mat *m = &r->m->mat;
    const uint32_t unit = esp_feed_unit(r->m), row0 = m->part[r->part].row0, n_row = m->part[r->part].n_row;
    esp_status st;

    if (!r->from || r->group > 0 || !r->to->own)
        return ESP_OK;
    st = esp_packed_lay(r->from, row0 / 8 / unit, n_row / 8 / unit, to, err);
    return st == ESP_E_UNSUPPORTED ? ESP_OK : st; /* then it is read */
}

/* A run failed whose file may be damaged: what it was to bring can be packed to where it belongs. */
static esp_status give_up_file(const struct esp_feed_run *r, void *to, struct esp_err *err)
{
    const uint32_t unit = (r->m->mat.part[r->part].row0 / 8 + r->group) / esp_feed_unit(r->m);

    return esp_packed_is_laid(r->from, unit, to) ? esp_packed_unlay(r->from, unit, err) : ESP_OK;
}

static void nothing(void *arg)
{
    (void)arg;
}

/* Groups of an item: whole units. */
static uint32_t item_groups(const struct esp_piece_mat *m, bool packed)
{
    const uint32_t unit = esp_feed_unit(m);
    const bool slow = esp_pack_quantises(&m->spec, &m->dims) && !packed; /* or made up */
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
    f->item_groups = item_groups(m, r.from || r.make_up);
    if (!st && (r.from || r.keep))
        st = make_room(f->bounce, &f->bounce_bytes, n_thread, (size_t)f->item_groups * group_bytes, err);
    f->run = &r;
    if (!st && r.make_up)
        st = find_pattern(f, err);
    if (!r.beside)
        r.beside = nothing;
    if (!st)
        st = esp_upload_map(&to, &f->up, r.to,
                            (uint64_t)m->mat.part[r.part].at * 16 + (uint64_t)r.group * group_bytes,
                            (uint64_t)r.n_group * group_bytes, err);
    if (!st) {
        f->to = to;
        st = lay_part(&r, to, err);
    }
    if (!st) {
        st = esp_pool_run(f->pool, pack_item, f, 1 + (r.n_group + f->item_groups - 1) / f->item_groups, err);
        *damaged = st && r.from && !give_up_file(&r, to, NULL);
    }
    f->run = NULL;
    return st ? st : esp_upload_commit(&f->up, err);
}

esp_status esp_feed_wait(struct esp_feed *f, struct esp_err *err)
{
    return esp_upload_wait(&f->up, err);
}
