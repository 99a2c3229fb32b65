/* What an answer found, as JSON. */
#include <stdlib.h>

#include "cli/report.h"
#include "cli/report_json.h"

static json_t *rle(const struct esp_rle *mask)
{
    char *counts;
    json_t *o;

    if (!mask->counts)
        return json_null();
    if (esp_rle_to_string(&counts, mask, NULL))
        return NULL;
    o = json_pack("{s:[I,I],s:s}", "size", (json_int_t)mask->height, (json_int_t)mask->width, "counts",
                  counts);
    free(counts);
    return o;
}

static json_t *seg(const struct esp_object *said)
{
    uint32_t codes[ESP_N_SEG];

    if (!said->has_seg)
        return json_null();
    for (int i = 0; i < ESP_N_SEG; i++)
        codes[i] = (uint32_t)said->seg[i];
    return esp_json_ids(codes, ESP_N_SEG);
}

static json_t *object(const struct esp_object *said, const struct esp_finding *f, bool has_box)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "label", json_string(said->label));
    SET(o, "box", has_box ? esp_json_numbers(f->box, 4) : json_null());
    SET(o, "score", esp_json_number(f->score));
    SET(o, "mask", f->mask_file ? json_string(f->mask_file) : json_null());
    SET(o, "rle", rle(&f->mask));
    SET(o, "seg", seg(said));
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

bool esp_json_set_findings(json_t *o, const struct esp_findings *found)
{
    json_t *objects = json_array(), *malformed = json_array();
    bool ok = objects && malformed;

    for (size_t i = 0; ok && i < found->said.n_objects; i++)
        ok = json_array_append_new(objects,
                                   object(&found->said.object[i], &found->object[i], found->height > 0)) == 0;
    for (size_t i = 0; ok && i < found->said.n_malformed; i++) {
        const struct esp_malformed *m = &found->said.malformed[i];

        ok = json_array_append_new(malformed, json_pack("{s:s,s:I,s:s}", "text", m->text, "at",
                                                        (json_int_t)m->at, "why", m->why)) == 0;
    }
    SET(o, "objects", objects);
    SET(o, "malformed", malformed);
    return ok;
}
