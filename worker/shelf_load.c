/* How pieces come on the shelf: what is read when, from the checkpoint or from the cache of packed ones. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/clock.h"
#include "worker/shelf_state.h"

#define READ_AHEAD   (UINT64_C(64) << 20) /* of stored bytes, asked for before they are packed */
#define SLICE_NS     UINT64_C(50000000)   /* after which a slice ends, where packing takes long */
#define ASK_AGAIN_MS 10                   /* when bytes are not there yet */

static bool whole(const struct esp_held *h)
{
    return h->chunk && h->mat == h->plan->n_mat;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Whether a matrix is looked for in the cache of packed ones, and kept there. */
static bool is_cached(const struct esp_shelf *sh, const struct esp_piece_mat *m)
{
    const struct esp_packed *packed = sh->vk->packed;

    return packed && !sh->make_up &&
           (esp_pack_quantises(&m->spec, &m->dims) || esp_packed_takes_all(packed)) &&
           esp_packed_key_possible(&m->spec);
}

/* Asks the kernel for the next stored bytes of a piece until `window` packed bytes are on their way; those that are. */
static uint64_t read_ahead(const struct esp_shelf *sh, struct esp_held *h, uint64_t window)
{
    const struct esp_piece *plan = h->plan;

    while (h->ahead_mat < plan->n_mat && h->n_ahead - h->n_done < window) {
        const struct esp_piece_mat *m = &plan->mat[h->ahead_mat];
        const uint32_t n_group = m->dims.np / 8;
        const uint32_t n = smaller(esp_feed_most(m, false) + 1, n_group - h->ahead_group); /* at least one */

        for (uint32_t i = 0; i < m->spec.n_part && !is_cached(sh, m); i++) {
            uint64_t at, n_bytes;
            esp_pack_source(&at, &n_bytes, &m->spec, i, h->ahead_group, n);
            esp_tensor_soon(m->spec.part[i].tensor, at, n_bytes);
        }
        h->n_ahead += (uint64_t)n * m->dims.group_bytes;
        h->ahead_group += n;
        if (h->ahead_group == n_group) {
            h->ahead_mat++;
            h->ahead_group = 0;
        }
    }
    return h->n_ahead - h->n_done;
}

/* The same over the pieces that come next. Bytes that first have to be fetched are nothing to read yet. */
static void read_ahead_from(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint32_t piece)
{
    uint64_t window = READ_AHEAD, n;

    for (uint32_t i = piece; i < sh->n_held && window > 0; i++) {
        struct esp_held *h = &sh->held[i];
        if (!esp_shelf_is_of(sh, i, spec) || !h->plan || whole(h))
            continue;
        if (sh->need && !h->asked)
            return;
        n = read_ahead(sh, h, window);
        window -= n < window ? n : window;
    }
}

static void piece_name(const struct esp_shelf *sh, uint32_t piece, char *out, size_t n_out)
{
    static const char *const ends[] = {"patch embedding", "projector", "embedding table"};
    const uint32_t layer = piece - ESP_N_PIECE_END, n_enc = sh->c->vision.n_layer;

    if (piece < ESP_N_PIECE_END)
        snprintf(out, n_out, "weights of the %s", ends[piece]);
    else
        snprintf(out, n_out, "weights of %s layer %u", layer < n_enc ? "encoder" : "decoder",
                 layer < n_enc ? layer : layer - n_enc);
}

/* Room for a piece on the device. If there is none, idle pieces make some. */
static esp_status place(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint32_t piece,
                        struct esp_err *err)
{
    struct esp_held *h = &sh->held[piece];
    const uint32_t n = h->plan->n_chunk;
    esp_status st = ESP_OK;
    char name[64];

    piece_name(sh, piece, name, sizeof name);
    h->chunk = calloc(n, sizeof *h->chunk);
    if (!h->chunk)
        return esp_fail(err, ESP_E_NOMEM, "%s: out of memory", name);
    for (uint32_t i = 0; !st && i < n; i++) {
        for (uint32_t again = 0; again < 2; again++) {
            st = esp_buf_create(&h->chunk[i], sh->vk, ESP_BUF_DEVICE, h->plan->chunk_bytes[i],
                                VK_FORMAT_R32G32B32A32_UINT, name, err);
            if (st != ESP_E_NOMEM || esp_shelf_outside(sh, spec, false) == 0)
                break;
            esp_shelf_drop_idle(sh, spec);
        }
    }
    if (st)
        esp_shelf_drop(sh, h);
    return st;
}

/* What is read ahead while a run is packed. */
struct ahead {
    struct esp_shelf *sh;
    const struct esp_stage_spec *spec;
    uint32_t piece;
    struct esp_packed_file *from; /* the run's */
    uint32_t unit;
};

static void read_beside(void *arg)
{
    const struct ahead *a = arg;

    if (a->from)
        esp_packed_soon(a->from, a->unit, READ_AHEAD);
    read_ahead_from(a->sh, a->spec, a->piece);
}

/* How much a call may do yet. */
struct budget {
    uint64_t n_bytes;  /* packed or hashed */
    uint64_t until_ns; /* 0: as long as it takes */
    uint64_t n_loaded; /* bytes on the device by now */
};

static bool is_spent(const struct budget *b)
{
    return b->n_bytes == 0 || (b->until_ns && esp_now_ns() >= b->until_ns);
}

static void spend(struct budget *b, uint64_t n_bytes)
{
    b->n_bytes -= n_bytes < b->n_bytes ? n_bytes : b->n_bytes;
}

/* Finds out what the present matrix is called, and whether it is there packed; h->looked_up: it is done. */
static esp_status look_up(struct esp_shelf *sh, struct esp_held *h, struct budget *b, struct esp_err *err)
{
    const struct esp_piece_mat *m = &h->plan->mat[h->mat];
    struct esp_packed *packed = sh->vk->packed;
    const uint32_t unit = esp_feed_unit(m), n_unit = m->dims.np / 8 / unit;
    const uint64_t unit_bytes = (uint64_t)unit * m->dims.group_bytes;
    uint8_t name[ESP_CONTENT_BYTES];
    uint64_t spent = 0;
    bool done = true;
    esp_status st;

    if (!is_cached(sh, m)) {
        h->looked_up = true;
        return ESP_OK;
    }
    if (!h->key.spec)
        esp_packed_key_init(&h->key, &m->spec, esp_packed_known(packed));
    st = esp_packed_key_step(&done, &h->key, esp_feed_pool(sh->feed), b->n_bytes, &spent, err);
    spend(b, spent);
    if (st || !done)
        return st;
    st = esp_packed_key_name(name, &h->key, &m->dims, err);
    if (st)
        return st;
    if (esp_packed_find(&h->from, packed, name, n_unit, unit_bytes, NULL))
        (void)esp_packed_begin(&h->keep, packed, name, n_unit, unit_bytes,
                               NULL); /* or it is packed for now */
    esp_packed_key_finish(&h->key);
    h->looked_up = true;
    return ESP_OK;
}

static void matrix_done(struct esp_held *h)
{
    const struct esp_piece_mat *m = &h->plan->mat[h->mat];

    esp_held_leave_cache(h, true);
    h->part = 0;
    h->mat++;
    for (uint32_t i = 0; i < m->spec.n_part; i++)
        esp_tensor_done(m->spec.part[i].tensor);
}

/* Packs the next groups of a piece, no more than the budget has if several are left. */
static esp_status pack_some(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint32_t piece,
                            struct budget *b, struct esp_err *err)
{
    struct esp_held *h = &sh->held[piece];
    const struct esp_piece_mat *m = &h->plan->mat[h->mat];
    const uint32_t unit = esp_feed_unit(m), most = esp_feed_most(m, h->from || sh->make_up);
    struct ahead ahead = {sh, spec, piece, h->from, (m->mat.part[h->part].row0 / 8 + h->group) / unit};
    struct esp_feed_run run = {.m = m,
                               .part = h->part,
                               .group = h->group,
                               .n_group = m->mat.part[h->part].n_row / 8 - h->group,
                               .to = &h->chunk[m->mat.part[h->part].chunk],
                               .from = h->from,
                               .keep = h->keep,
                               .make_up = sh->make_up,
                               .beside = sh->make_up ? NULL : read_beside,
                               .arg = &ahead};
    const uint64_t room = b->n_bytes / m->dims.group_bytes / unit * unit;
    struct esp_err why = {0};
    uint64_t n_packed;
    bool damaged;
    esp_status st;

    if (most == 0)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: rows too long", m->spec.part[0].tensor->name);
    if (room < most)
        run.n_group = smaller(run.n_group, room ? (uint32_t)room : unit);
    run.n_group = smaller(run.n_group, most);
    st = esp_feed_pack(sh->feed, &run, &damaged, &why);
    if (damaged) { /* the rest is packed; what was read before it was right */
        esp_packed_damaged(&h->from, why.text);
        return ESP_OK;
    }
    if (st)
        return esp_fail(err, st, "%s", why.text);
    n_packed = (uint64_t)run.n_group * m->dims.group_bytes;
    spend(b, n_packed);
    b->n_loaded += n_packed;
    h->n_done += n_packed;
    h->group += run.n_group;
    if (h->group == m->mat.part[h->part].n_row / 8) {
        h->group = 0;
        h->part++;
    }
    if (h->part == m->mat.n_part)
        matrix_done(h);
    return ESP_OK;
}

/* Makes sure that a piece's bytes are there. A remote checkpoint's are not needed where it is found packed, by its hashes. */
static esp_status ask(struct esp_shelf *sh, struct esp_held *h, struct esp_err *err)
{
    esp_status st = ESP_OK;

    if (sh->need && !h->asked)
        st = sh->need(sh->need_arg, h->plan->tensor, h->plan->n_tensor, err);
    h->asked = !st;
    return st;
}

/* Reads on in a piece until it is whole or the budget is spent. */
static esp_status load_piece(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint32_t piece,
                             struct budget *b, struct esp_err *err)
{
    struct esp_held *h = &sh->held[piece];
    esp_status st = ESP_OK;

    if (!is_cached(sh, &h->plan->mat[h->mat]))
        st = ask(sh, h, err);
    if (st)
        return st;
    if (!h->chunk && (st = place(sh, spec, piece, err)))
        return st;
    if (!sh->feed && (st = esp_feed_create(&sh->feed, sh->vk, err)))
        return st;
    do {
        if (!h->looked_up)
            st = look_up(sh, h, b, err);
        else if (h->from || !(st = ask(sh, h, err)))
            st = pack_some(sh, spec, piece, b, err);
    } while (!st && !whole(h) && !is_spent(b));
    return st;
}

/* Reads up to the budget of what spec lacks. The last of it may still be on its way at return. */
static esp_status load_some(struct esp_shelf *sh, const struct esp_stage_spec *spec, struct budget *b,
                            struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (uint32_t i = 0; !st && i < sh->n_held && !is_spent(b); i++)
        if (esp_shelf_is_of(sh, i, spec) && !whole(&sh->held[i]))
            st = load_piece(sh, spec, i, b, err);
    return st;
}

/* What only loading takes. */
static void rest(struct esp_shelf *sh)
{
    struct esp_packed_count c;

    esp_feed_destroy(&sh->feed);
    if (!sh->vk->packed)
        return;
    esp_known_save(esp_packed_known(sh->vk->packed));
    esp_packed_count(sh->vk->packed, &c);
    if (memcmp(&c, &sh->told, sizeof c) != 0)
        esp_log(sh->vk->log, ESP_LOG_INFO,
                "packed_weights used=%" PRIu64 " used_mib=%" PRIu64 " laid=%" PRIu64 " kept=%" PRIu64
                " kept_mib=%" PRIu64 " damaged=%" PRIu64 " failed=%" PRIu64,
                c.used - sh->told.used, (c.used_bytes - sh->told.used_bytes) >> 20, c.laid - sh->told.laid,
                c.kept - sh->told.kept, (c.kept_bytes - sh->told.kept_bytes) >> 20,
                c.damaged - sh->told.damaged, c.failed - sh->told.failed);
    sh->told = c;
}

/* Whatever became of it: nothing is under way to the device any more. */
static esp_status arrive(struct esp_shelf *sh, esp_status st, struct esp_err *err)
{
    esp_status arrived = sh->feed ? esp_feed_wait(sh->feed, st ? NULL : err) : ESP_OK;

    return st ? st : arrived;
}

esp_status esp_shelf_load(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint64_t max_bytes,
                          struct esp_shelf_slice *out, struct esp_err *err)
{
    const uint64_t budget = sh->vk->report.memory_bytes;
    struct budget b = {.n_bytes = max_bytes ? max_bytes : 1, .until_ns = esp_now_ns() + SLICE_NS};
    uint64_t all, done, beside;
    esp_status st;

    memset(out, 0, sizeof *out);
    if ((st = esp_stage_spec_check(spec, sh->c, err)) || (st = esp_shelf_hold_as(sh, spec->weights, err)) ||
        (st = esp_shelf_sum(sh, spec, &all, &done, err)))
        return st;
    out->weight_bytes = all;
    out->lacking_bytes = all - done;
    beside = esp_shelf_beside(sh, spec);
    if (all + beside > budget)
        return esp_fail(err, ESP_E_NOMEM,
                        "%s: needs %.1f MiB of weights beside the %.1f MiB that the present stage goes on "
                        "using; it has %.1f MiB",
                        sh->vk->report.name, (double)all / (1 << 20), (double)beside / (1 << 20),
                        (double)budget / (1 << 20));
    if (all + beside + esp_shelf_outside(sh, spec, false) > budget)
        esp_shelf_drop_idle(sh, spec);
    st = load_some(sh, spec, &b, err);
    st = arrive(sh, st, err);
    out->loaded_bytes = b.n_loaded;
    out->lacking_bytes -= out->loaded_bytes;
    if (st == ESP_E_NOMEM)
        esp_shelf_drop_idle(sh, NULL);
    if (st != ESP_E_TIMEOUT && (st || out->lacking_bytes == 0))
        rest(sh);
    return st;
}

static esp_status pause_or_stop(esp_load_progress progress, void *arg, uint64_t done, uint64_t total,
                                bool wait, struct esp_err *err)
{
    const struct timespec t = {.tv_nsec = ASK_AGAIN_MS * 1000000L};

    if (progress && !progress(arg, done, total))
        return esp_fail(err, ESP_E_CANCELLED, "loading was given up for another placement");
    if (wait)
        nanosleep(&t, NULL);
    return ESP_OK;
}

esp_status esp_shelf_fill(struct esp_shelf *sh, const struct esp_stage_spec *spec, esp_load_progress progress,
                          void *arg, uint64_t *loaded_bytes, struct esp_err *err)
{
    uint64_t all, done, total;
    esp_status st = esp_shelf_sum(sh, spec, &all, &done, err);

    *loaded_bytes = 0;
    total = all - done;
    while (!st && *loaded_bytes < total) {
        struct budget b = {.n_bytes = ESP_SHELF_SLICE};
        st = load_some(sh, spec, &b, err);
        *loaded_bytes += b.n_loaded;
        if (!st || st == ESP_E_TIMEOUT)
            st = pause_or_stop(progress, arg, *loaded_bytes, total, st == ESP_E_TIMEOUT, err);
    }
    st = arrive(sh, st, err);
    rest(sh);
    return st;
}

esp_status esp_shelf_await(struct esp_shelf *sh, const struct esp_tensor *const *tensors, uint32_t n,
                           esp_load_progress progress, void *arg, struct esp_err *err)
{
    esp_status st = ESP_E_TIMEOUT;

    if (!sh->need || n == 0)
        return ESP_OK;
    while ((st = sh->need(sh->need_arg, tensors, n, err)) == ESP_E_TIMEOUT)
        if ((st = pause_or_stop(progress, arg, 0, 1, true, err)))
            return st;
    return st;
}
