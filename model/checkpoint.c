#include "model/checkpoint_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/file.h"
#include "model/json.h"
#include "model/quant.h"
#include "model/roles.h"
#include "model/shape.h"
#include "model/shard_index.h"

#define MAX_INDEX_BYTES ((size_t)4 << 20)

static int compare_names(const void *a, const void *b)
{
    const struct esp_tensor *x = *(const struct esp_tensor *const *)a,
                            *y = *(const struct esp_tensor *const *)b;
    return strcmp(x->name, y->name);
}

static const struct esp_tensor *find(const struct esp_checkpoint *ck, const char *name)
{
    struct esp_tensor key = {.name = name};
    const struct esp_tensor *k = &key;
    const struct esp_tensor **hit =
        bsearch(&k, ck->by_name, ck->n_tensor, sizeof *ck->by_name, compare_names);
    return hit ? *hit : NULL;
}

static esp_status join(char **out, const char *dir, const char *name, struct esp_err *err)
{
    if (asprintf(out, "%s/%s", dir, name) < 0) {
        *out = NULL;
        return esp_fail(err, ESP_E_NOMEM, "%s: path of a file in it", dir);
    }
    return ESP_OK;
}

/* Every tensor that the index promises is in the file that it names. */
static esp_status check_index(const struct esp_checkpoint *ck, const struct esp_shard_index *index,
                              const char *path, struct esp_err *err)
{
    char shown[ESP_SHOWN];

    for (size_t i = 0; i < esp_shard_index_n_entry(index); i++) {
        struct esp_shard_entry e = esp_shard_index_entry(index, i);
        const struct esp_tensor *t = find(ck, e.tensor);
        const char *base = t ? strrchr(t->file, '/') + 1 : "";
        if (strcmp(base, e.file) != 0)
            return esp_fail(err, ESP_E_FORMAT,
                            "%s: weight_map: tensor %s is not in %.100s, where it should be", path,
                            esp_shown(shown, e.tensor), e.file);
    }
    return ESP_OK;
}

static esp_status merge(struct esp_checkpoint *ck, struct esp_err *err)
{
    size_t n = 0;
    char shown[ESP_SHOWN];

    for (size_t i = 0; i < ck->n_shard; i++)
        ck->n_tensor += esp_safetensors_n_tensor(ck->shard[i]);
    ck->by_name = calloc(ck->n_tensor + 1, sizeof(struct esp_tensor *));
    if (!ck->by_name)
        return esp_fail(err, ESP_E_NOMEM, "%s: %zu tensors", ck->dir, ck->n_tensor);
    for (size_t i = 0; i < ck->n_shard; i++) {
        for (size_t j = 0; j < esp_safetensors_n_tensor(ck->shard[i]); j++)
            ck->by_name[n++] = esp_safetensors_tensor(ck->shard[i], j);
    }
    qsort(ck->by_name, n, sizeof *ck->by_name, compare_names);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(ck->by_name[i - 1]->name, ck->by_name[i]->name) == 0)
            return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s is also in %s, expected it in one shard",
                            ck->by_name[i]->file, esp_shown(shown, ck->by_name[i]->name),
                            ck->by_name[i - 1]->file);
    }
    return ESP_OK;
}

static esp_status open_index(struct esp_checkpoint *ck, const char *index_path, struct esp_err *err)
{
    esp_status st;
    char *text = NULL, *path = NULL;
    size_t n_bytes;
    struct esp_shard_index *index = NULL;

    st = esp_file_read(&text, &n_bytes, index_path, MAX_INDEX_BYTES, err);
    if (st)
        goto done;
    st = esp_shard_index_parse(&index, text, n_bytes, index_path, err);
    if (st)
        goto done;
    for (size_t i = 0; i < esp_shard_index_n_file(index); i++) {
        st = join(&path, ck->dir, esp_shard_index_file(index, i), err);
        if (st)
            goto done;
        st = esp_safetensors_open(&ck->shard[i], path, err);
        if (st)
            goto done;
        ck->n_shard++;
        free(path);
        path = NULL;
    }
    st = merge(ck, err);
    if (!st)
        st = check_index(ck, index, index_path, err);
done:
    esp_shard_index_destroy(&index);
    free(path);
    free(text);
    return st;
}

static esp_status open_files(struct esp_checkpoint *ck, struct esp_err *err)
{
    esp_status st;
    char *single = NULL, *index = NULL;

    st = join(&single, ck->dir, "model.safetensors", err);
    if (st)
        goto done;
    st = join(&index, ck->dir, "model.safetensors.index.json", err);
    if (st)
        goto done;
    if (!esp_file_exists(single) && esp_file_exists(index)) {
        st = open_index(ck, index, err);
        goto done;
    }
    if (!esp_file_exists(single)) {
        st = esp_fail(err, ESP_E_IO,
                      "%s: neither model.safetensors nor model.safetensors.index.json is there", ck->dir);
        goto done;
    }
    st = esp_safetensors_open(&ck->shard[0], single, err);
    if (st)
        goto done;
    ck->n_shard = 1;
    st = merge(ck, err);
done:
    free(single);
    free(index);
    return st;
}

/* The layout under which most of the expected tensors are found, so that one missing tensor is reported as
 * such. */
static esp_status detect_layout(enum esp_layout *out, const struct esp_checkpoint *ck, struct esp_err *err)
{
    size_t n_best = 0;
    char name[ESP_TENSOR_NAME_MAX], shown[ESP_SHOWN];

    *out = ESP_LAYOUT_PUBLISHED;
    for (int layout = 0; layout < ESP_N_LAYOUT; layout++) {
        size_t n_hit = 0;
        for (int role = 0; role < ESP_N_ROLE; role++) {
            for (uint32_t i = 0; i < esp_role_count(&ck->config, (enum esp_role)role); i++) {
                esp_role_name(name, (enum esp_layout)layout, &ck->config, (enum esp_role)role, i);
                n_hit += find(ck, name) != NULL;
            }
        }
        if (n_hit > n_best) {
            n_best = n_hit;
            *out = (enum esp_layout)layout;
        }
    }
    if (n_best > 0)
        return ESP_OK;
    esp_role_name(name, ESP_LAYOUT_PUBLISHED, &ck->config, ESP_V_PATCH_W, 0);
    return esp_fail(err, ESP_E_FORMAT,
                    "%s: no tensor of a PaliGemma in its %zu tensors; expected %s or the like, found %s",
                    ck->dir, ck->n_tensor, name,
                    ck->n_tensor ? esp_shown(shown, ck->by_name[0]->name) : "none");
}

const char *esp_shape_text(char buf[ESP_SHOWN], const uint64_t *shape, uint32_t n_dim)
{
    size_t n = 0;

    buf[n++] = '[';
    for (uint32_t i = 0; i < n_dim && n + 24 < ESP_SHOWN; i++)
        n += (size_t)snprintf(buf + n, ESP_SHOWN - n, "%s%" PRIu64, i ? ", " : "", shape[i]);
    buf[n++] = ']';
    buf[n] = '\0';
    return buf;
}

/*
 * A matrix that 'espalier quantize' wrote: bytes [rows, bytes of a row]. Which of the types it is follows from the length of
 * a row. Whatever stands in the blocks, every one of them has a value.
 */
static esp_status bind_quantised(struct esp_checkpoint *ck, const struct esp_tensor *t, enum esp_role role,
                                 uint32_t layer, struct esp_err *err)
{
    static const enum esp_dtype dtypes[] = {ESP_Q8, ESP_Q4};
    struct esp_tensor q = *t;
    char found[ESP_SHOWN], wanted[ESP_SHOWN];
    uint64_t shape[4], of_type[2][2];

    q.n_dim = esp_role_shape(shape, &ck->config, role);
    memcpy(q.shape, shape, q.n_dim * sizeof shape[0]);
    if (esp_role_wtype(&ck->config, role, ESP_W_Q8) != ESP_W_Q8)
        return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s: bytes; one like this is not quantised", t->file,
                        t->name);
    for (size_t i = 0; i < 2; i++) {
        q.dtype = dtypes[i];
        of_type[i][0] = shape[0];
        of_type[i][1] = esp_tensor_row_bytes(&q);
        if (t->n_dim == 2 && memcmp(t->shape, of_type[i], sizeof of_type[i]) == 0) {
            q.stored_dtype = i == 0 ? "Q8" : "Q4";
            ck->quantised[ck->n_quantised] = q;
            ck->role[role][layer] = &ck->quantised[ck->n_quantised++];
            return ESP_OK;
        }
    }
    return esp_fail(err, ESP_E_FORMAT,
                    "%s: tensor %s: shape %s of bytes, expected %s (q8) or [.., %llu] (q4) by config.json",
                    t->file, t->name, esp_shape_text(found, t->shape, t->n_dim),
                    esp_shape_text(wanted, of_type[0], 2), (unsigned long long)of_type[1][1]);
}

/* Whether the files say that bytes in them are quantised rows, of a layout that we know; room for what they are. */
static esp_status look_for_mark(struct esp_checkpoint *ck, struct esp_err *err)
{
    size_t n = 0;

    for (size_t i = 0; i < ck->n_shard; i++) {
        const char *mark = esp_safetensors_metadata(ck->shard[i], ESP_QUANT_MARK);
        char shown[ESP_SHOWN];

        if (mark && strcmp(mark, ESP_QUANT_LAYOUT) != 0)
            return esp_fail(err, ESP_E_UNSUPPORTED,
                            "%s: quantised in layout %s, this program knows " ESP_QUANT_LAYOUT, ck->dir,
                            esp_shown(shown, mark));
        ck->marked |= mark != NULL;
    }
    for (int role = 0; ck->marked && role < ESP_N_ROLE; role++)
        n += esp_role_count(&ck->config, (enum esp_role)role);
    ck->quantised = calloc(n + 1, sizeof *ck->quantised);
    return ck->quantised ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "%s: its description", ck->dir);
}

static esp_status bind(struct esp_checkpoint *ck, enum esp_layout layout, enum esp_role role, uint32_t layer,
                       struct esp_err *err)
{
    const struct esp_tensor *t;
    char name[ESP_TENSOR_NAME_MAX], found[ESP_SHOWN], wanted[ESP_SHOWN];
    uint64_t shape[4];
    uint32_t n_dim = esp_role_shape(shape, &ck->config, role);

    esp_role_name(name, layout, &ck->config, role, layer);
    t = find(ck, name);
    if (!t)
        return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s %s is missing (%s names)", ck->dir, name,
                        esp_shape_text(wanted, shape, n_dim), esp_layout_name(layout));
    if (t->dtype == ESP_U8 && ck->marked)
        return bind_quantised(ck, t, role, layer, err);
    if (t->dtype != ESP_F32 && t->dtype != ESP_F16 && t->dtype != ESP_BF16)
        return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s: dtype %s, expected F32, F16 or BF16", t->file,
                        name, esp_shown(found, t->stored_dtype));
    if (t->n_dim != n_dim || memcmp(t->shape, shape, n_dim * sizeof shape[0]) != 0)
        return esp_fail(err, ESP_E_FORMAT, "%s: tensor %s: shape %s, expected %s by config.json", t->file,
                        name, esp_shape_text(found, t->shape, t->n_dim),
                        esp_shape_text(wanted, shape, n_dim));
    ck->role[role][layer] = t;
    return ESP_OK;
}

esp_status esp_checkpoint_open(struct esp_checkpoint **out, const char *dir, struct esp_err *err)
{
    esp_status st = ESP_OK;
    struct esp_checkpoint *ck = calloc(1, sizeof *ck);
    enum esp_layout layout;

    *out = NULL;
    if (esp_shape_named(dir)) {
        free(ck);
        return esp_shape_open(out, dir, err);
    }
    if (ck)
        ck->dir = strdup(dir);
    if (!ck || !ck->dir) {
        st = esp_fail(err, ESP_E_NOMEM, "%s: its description", dir);
        goto done;
    }
    st = esp_config_load(&ck->config, dir, err);
    if (st)
        goto done;
    st = open_files(ck, err);
    if (st)
        goto done;
    st = detect_layout(&layout, ck, err);
    if (!st)
        st = look_for_mark(ck, err);
    if (st)
        goto done;
    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t i = 0; i < esp_role_count(&ck->config, (enum esp_role)role); i++) {
            st = bind(ck, layout, (enum esp_role)role, i, err);
            if (st)
                goto done;
        }
    }
    *out = ck;
    ck = NULL;
done:
    esp_checkpoint_destroy(&ck);
    return st;
}

void esp_checkpoint_destroy(struct esp_checkpoint **ck)
{
    struct esp_checkpoint *c = *ck;

    *ck = NULL;
    if (!c)
        return;
    esp_remote_finish(&c->remote);
    free(c->by_name);
    free(c->quantised);
    for (size_t i = 0; i < c->n_shard; i++)
        esp_safetensors_destroy(&c->shard[i]);
    free(c->dir);
    free(c);
}

const struct esp_config *esp_checkpoint_config(const struct esp_checkpoint *ck)
{
    return &ck->config;
}

const char *esp_checkpoint_dir(const struct esp_checkpoint *ck)
{
    return ck->dir;
}

const struct esp_tensor *esp_checkpoint_tensor(const struct esp_checkpoint *ck, enum esp_role role,
                                               uint32_t layer)
{
    uint32_t n;

    if ((unsigned)role >= ESP_N_ROLE)
        return NULL;
    n = esp_role_count(&ck->config, role);
    if (!esp_role_has_layers(role))
        layer = 0;
    return layer < n ? ck->role[role][layer] : NULL;
}

esp_status esp_checkpoint_cut(struct esp_checkpoint *ck, uint32_t n_vision, uint32_t n_text,
                              struct esp_err *err)
{
    struct esp_config *c = &ck->config;

    if (n_vision < 1 || n_vision > c->vision.n_layer || n_text < 1 || n_text > c->text.n_layer)
        return esp_fail(err, ESP_E_ARG, "%s: %u and %u layers of a model with %u and %u", ck->dir, n_vision,
                        n_text, c->vision.n_layer, c->text.n_layer);
    c->vision.n_layer = n_vision;
    c->text.n_layer = n_text;
    return ESP_OK;
}

uint64_t esp_checkpoint_n_bytes(const struct esp_checkpoint *ck)
{
    uint64_t n = 0; /* cannot overflow: tensors of one mapping each, no two of the same bytes */

    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t i = 0; i < esp_role_count(&ck->config, (enum esp_role)role); i++)
            n += ck->role[role][i]->n_bytes;
    }
    return n;
}
