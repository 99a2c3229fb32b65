#include "coordinator/features.h"

#include <stdlib.h>
#include <string.h>

struct esp_features {
    struct esp_feature *first;
    uint32_t n, capacity;
    uint64_t last_image, clock;
};

esp_status esp_features_create(struct esp_features **out, struct esp_err *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "the table of pictures");
}

void esp_features_destroy(struct esp_features **f)
{
    if (!*f)
        return;
    esp_features_clear(*f);
    free(*f);
    *f = NULL;
}

void esp_features_open(struct esp_features *f, uint32_t capacity)
{
    f->capacity = capacity;
}

void esp_features_clear(struct esp_features *f)
{
    while (f->first) {
        struct esp_feature *e = f->first;
        f->first = e->next;
        free(e);
    }
    f->n = 0;
}

bool esp_features_fits(const struct esp_features *f, uint32_t n)
{
    uint32_t n_held = 0; /* what cannot be evicted now */

    for (const struct esp_feature *e = f->first; e; e = e->next)
        n_held += e->n_ref > 0 || e->state == ESP_FEATURE_SENT;
    return n <= f->capacity && n_held <= f->capacity - n;
}

esp_status esp_features_acquire(struct esp_feature **out, struct esp_features *f,
                                const uint8_t hash[ESP_PICTURE_HASH_BYTES], bool shared, struct esp_err *err)
{
    struct esp_feature *e;

    *out = NULL;
    for (e = f->first; shared && e; e = e->next)
        if (e->shared && e->state != ESP_FEATURE_LOST && !memcmp(e->hash, hash, sizeof e->hash))
            break;
    if (!shared || !e) {
        e = calloc(1, sizeof *e);
        if (!e)
            return esp_fail(err, ESP_E_NOMEM, "the table of pictures");
        e->image = ++f->last_image;
        e->shared = shared;
        memcpy(e->hash, hash, sizeof e->hash);
        e->next = f->first;
        f->first = e;
        f->n++;
    }
    e->n_ref++;
    e->last_use = ++f->clock;
    *out = e;
    return ESP_OK;
}

static void forget(struct esp_features *f, struct esp_feature *entry)
{
    for (struct esp_feature **p = &f->first; *p; p = &(*p)->next) {
        if (*p != entry)
            continue;
        *p = entry->next;
        free(entry);
        f->n--;
        return;
    }
}

void esp_features_drop(struct esp_features *f, struct esp_feature **entry)
{
    struct esp_feature *e = *entry;

    *entry = NULL;
    if (!e || --e->n_ref > 0)
        return;
    if (e->state == ESP_FEATURE_NEW)
        forget(f, e); /* the workers have never heard of it */
}

struct esp_feature *esp_features_find(const struct esp_features *f, uint64_t image)
{
    for (struct esp_feature *e = f->first; e; e = e->next)
        if (e->image == image)
            return e;
    return NULL;
}

uint32_t esp_features_n_sent(const struct esp_features *f)
{
    uint32_t n = 0;

    for (const struct esp_feature *e = f->first; e; e = e->next)
        n += e->state == ESP_FEATURE_SENT;
    return n;
}

struct esp_feature *esp_features_next(const struct esp_features *f, const struct esp_feature *entry)
{
    return entry ? entry->next : f->first;
}

uint64_t esp_features_evict(struct esp_features *f)
{
    struct esp_feature *worst = NULL;
    uint64_t image;

    for (struct esp_feature *e = f->first; e; e = e->next) {
        if (e->n_ref > 0 || e->state == ESP_FEATURE_SENT)
            continue;
        if (e->state == ESP_FEATURE_LOST || !e->shared) { /* of no use to anyone */
            worst = e;
            break;
        }
        if (f->n > f->capacity && (!worst || e->last_use < worst->last_use))
            worst = e;
    }
    if (!worst)
        return 0;
    image = worst->image;
    forget(f, worst);
    return image;
}
