#include "tests/sim/sim_shelf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/cost.h"

#define PROGRESS_NS UINT64_C(50000000)

enum end { PATCH, PROJECTOR, EMBED, N_END }; /* then the encoder's layers, then the decoder's */

struct piece {
    uint64_t n_bytes, n_done;
    uint32_t n_user;
};

struct esp_shelf {
    struct sim_device *device;
    const struct esp_config *c;
    uint32_t n_piece;
    struct piece *piece;
    uint64_t other_bytes;
};

esp_status esp_shelf_create(struct esp_shelf **out, struct esp_vk *vk, const struct esp_checkpoint *ck,
                            esp_shelf_need need, void *need_arg, struct esp_err *err)
{
    const struct esp_cost_options options = {.bytes_per_weight = 2, .n_image = 1, .max_rows = 1};
    struct esp_shelf *sh = calloc(1, sizeof *sh);
    struct esp_model_cost cost;
    esp_status st;

    *out = NULL;
    if (!sh)
        return esp_fail(err, ESP_E_NOMEM, "a simulated shelf");
    sh->device = (struct sim_device *)vk; /* whose first member it is */
    sh->c = esp_checkpoint_config(ck);
    sh->n_piece = N_END + sh->c->vision.n_layer + sh->c->text.n_layer;
    sh->piece = calloc(sh->n_piece, sizeof *sh->piece);
    st = sh->piece ? esp_model_cost_fill(&cost, sh->c, &options, err)
                   : esp_fail(err, ESP_E_NOMEM, "a simulated shelf");
    if (st) {
        esp_shelf_destroy(&sh);
        return st;
    }
    sh->piece[PATCH].n_bytes = cost.patch.weight_bytes;
    sh->piece[PROJECTOR].n_bytes = cost.projector.weight_bytes;
    sh->piece[EMBED].n_bytes = cost.embed.weight_bytes;
    for (uint32_t i = N_END; i < sh->n_piece; i++)
        sh->piece[i].n_bytes =
            i - N_END < sh->c->vision.n_layer ? cost.enc_layer.weight_bytes : cost.dec_layer.weight_bytes;
    *out = sh;
    return ESP_OK;
}

void esp_shelf_destroy(struct esp_shelf **shelf)
{
    if (!*shelf)
        return;
    free((*shelf)->piece);
    free(*shelf);
    *shelf = NULL;
}

struct sim_device *sim_shelf_device(const struct esp_shelf *sh)
{
    return sh->device;
}

const struct esp_config *sim_shelf_config(const struct esp_shelf *sh)
{
    return sh->c;
}

static bool of(const struct esp_shelf *sh, uint32_t i, const struct esp_stage_spec *spec)
{
    const uint32_t n_enc = sh->c->vision.n_layer;

    if (i < N_END)
        return i == PATCH ? spec->patch : i == PROJECTOR ? spec->projector : spec->embed || spec->head;
    i -= N_END;
    return i < n_enc ? i >= spec->enc_lo && i < spec->enc_hi
                     : i - n_enc >= spec->dec_lo && i - n_enc < spec->dec_hi;
}

uint64_t sim_shelf_bytes(const struct esp_shelf *sh, const struct esp_stage_spec *spec)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < sh->n_piece; i++)
        n += of(sh, i, spec) ? sh->piece[i].n_bytes : 0;
    return n;
}

uint64_t sim_shelf_beside(const struct esp_shelf *sh, const struct esp_stage_spec *spec)
{
    uint64_t n = sh->other_bytes;

    for (uint32_t i = 0; i < sh->n_piece; i++)
        n += sh->piece[i].n_user > 0 && !of(sh, i, spec) ? sh->piece[i].n_bytes : 0;
    return n;
}

void sim_shelf_use(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint64_t other_bytes)
{
    sh->other_bytes += other_bytes;
    for (uint32_t i = 0; i < sh->n_piece; i++)
        sh->piece[i].n_user += of(sh, i, spec);
}

void sim_shelf_leave(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint64_t other_bytes)
{
    sh->other_bytes -= other_bytes;
    for (uint32_t i = 0; i < sh->n_piece; i++)
        sh->piece[i].n_user -= of(sh, i, spec);
}

/* Reads up to max_bytes; what is still lacking then. */
static uint64_t read_some(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint64_t max_bytes,
                          uint64_t *loaded)
{
    const double rate = sh->device->profile.load_rate;
    uint64_t lacking = 0;

    *loaded = 0;
    for (uint32_t i = 0; i < sh->n_piece; i++) {
        struct piece *p = &sh->piece[i];
        uint64_t n = of(sh, i, spec) ? p->n_bytes - p->n_done : 0;
        if (n > max_bytes - *loaded) {
            lacking += n - (max_bytes - *loaded);
            n = max_bytes - *loaded;
        }
        p->n_done += n;
        *loaded += n;
    }
    sim_device_copy(*loaded, rate);
    atomic_fetch_add(&sh->device->count.load_bytes, *loaded);
    return lacking;
}

esp_status sim_shelf_fill(struct esp_shelf *sh, const struct esp_stage_spec *spec, esp_load_progress progress,
                          void *arg, uint64_t *loaded_bytes, struct esp_err *err)
{
    const double rate = sh->device->profile.load_rate;
    const uint64_t some = rate > 0 ? (uint64_t)(1e-9 * (double)PROGRESS_NS * rate) + 1 : UINT64_MAX;
    uint64_t lacking = 1, n;

    *loaded_bytes = 0;
    while (lacking > 0) {
        lacking = read_some(sh, spec, some, &n);
        *loaded_bytes += n;
        if (lacking > 0 && !progress(arg, *loaded_bytes, *loaded_bytes + lacking))
            return esp_fail(err, ESP_E_CANCELLED, "given up");
    }
    for (uint32_t i = 0; i < sh->n_piece; i++)
        if (sh->piece[i].n_user == 0)
            sh->piece[i].n_done = 0;
    return ESP_OK;
}

esp_status esp_shelf_load(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint64_t max_bytes,
                          struct esp_shelf_slice *out, struct esp_err *err)
{
    const uint64_t all = sim_shelf_bytes(sh, spec), beside = sim_shelf_beside(sh, spec);
    const uint64_t has = sh->device->vk.report.memory_bytes;

    memset(out, 0, sizeof *out);
    if (all + beside > has)
        return esp_fail(err, ESP_E_NOMEM,
                        "%s: needs %" PRIu64 " MiB of weights beside %" PRIu64 " MiB, it has %" PRIu64 " MiB",
                        sh->device->profile.name, all >> 20, beside >> 20, has >> 20);
    out->weight_bytes = all;
    out->lacking_bytes = read_some(sh, spec, max_bytes, &out->loaded_bytes);
    return ESP_OK;
}
