#include "cli/findings.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/finder.h"
#include "objects/annotate.h"
#include "picture/png_write.h"

/* ---- scores ---- */

esp_status esp_loc_scores_add(struct esp_loc_scores *scores, const char *text, double logprob,
                              struct esp_err *err)
{
    const char *loc = strstr(text, "<loc");

    if (loc && scores->n == scores->n_room) {
        const size_t n_room = scores->n_room ? 2 * scores->n_room : 16;
        struct esp_loc_score *grown = realloc(scores->loc, n_room * sizeof *grown);

        if (!grown)
            return esp_fail(err, ESP_E_NOMEM, "%zu scores: out of memory", n_room);
        scores->loc = grown;
        scores->n_room = n_room;
    }
    if (loc)
        scores->loc[scores->n++] = (struct esp_loc_score){scores->n_bytes + (size_t)(loc - text), logprob};
    scores->n_bytes += strlen(text);
    return ESP_OK;
}

void esp_loc_scores_finish(struct esp_loc_scores *scores)
{
    free(scores->loc);
    memset(scores, 0, sizeof *scores);
}

/* Mean probability of the four <loc> tokens of an object; NAN unless just these four are known. */
static double score_of(const struct esp_object *o, const struct esp_loc_scores *scores, size_t n_suffix)
{
    double sum = 0;
    int n = 0;

    for (size_t i = 0; i < scores->n; i++) {
        const size_t at = n_suffix + scores->loc[i].at;

        if (at >= o->at && at - o->at < o->n_bytes) {
            sum += exp(scores->loc[i].logprob);
            n++;
        }
    }
    return n == 4 ? sum / 4 : NAN;
}

/* ---- taking an answer apart ---- */

static esp_status make_mask(struct esp_rle *out, const struct esp_findings *found,
                            const struct esp_codec *codec, const struct esp_object *o, const double box[4],
                            struct esp_err *err)
{
    float small[ESP_CODEC_PIXELS];
    uint8_t *mask = calloc(found->height, found->width);
    esp_status st;

    if (!mask)
        return esp_fail(err, ESP_E_NOMEM, "a mask of %u x %u pixels: out of memory", found->width,
                        found->height);
    st = esp_codec_decode(small, codec, o->seg, err);
    if (st == ESP_OK)
        st = esp_codec_paste(mask, found->height, found->width, small, box, err);
    if (st == ESP_OK)
        st = esp_rle_encode(out, mask, found->height, found->width, err);
    free(mask);
    return st;
}

/* @param n_suffix  bytes of the text in front of where the scores begin */
static esp_status fill(struct esp_findings *found, struct esp_finder *finder, struct esp_term *term,
                       const struct esp_loc_scores *scores, size_t n_suffix, struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (size_t i = 0; st == ESP_OK && i < found->said.n_objects; i++) {
        const struct esp_object *o = &found->said.object[i];
        struct esp_finding *f = &found->object[i];
        const struct esp_codec *codec = NULL;

        f->score = scores ? score_of(o, scores, n_suffix) : NAN;
        esp_box_pixels(f->box, o->loc, found->height, found->width);
        if (found->height > 0 && o->has_seg)
            codec = esp_finder_codec(finder, term);
        if (codec)
            st = make_mask(&f->mask, found, codec, o, f->box, err);
    }
    return st;
}

static esp_status read_text(struct esp_findings *out, const char *suffix, const char *text,
                            struct esp_err *err)
{
    char *whole;
    esp_status st;

    if (!*suffix)
        return esp_objects_parse(&out->said, text, err);
    if (asprintf(&whole, "%s%s", suffix, text) < 0)
        return esp_fail(err, ESP_E_NOMEM, "the answer's text: out of memory");
    st = esp_objects_parse(&out->said, whole, err);
    free(whole);
    return st;
}

esp_status esp_findings_read(struct esp_findings *out, struct esp_finder *finder, struct esp_term *term,
                             const char *suffix, const char *text, const struct esp_loc_scores *scores,
                             const struct esp_finding_picture *picture, struct esp_err *err)
{
    esp_status st;

    memset(out, 0, sizeof *out);
    if (!suffix)
        suffix = "";
    st = read_text(out, suffix, text, err);
    if (st || out->said.n_objects == 0)
        return st;
    if (scores && scores->n_bytes != strlen(text))
        scores = NULL;
    out->object = calloc(out->said.n_objects, sizeof *out->object);
    if (!out->object)
        st = esp_fail(err, ESP_E_NOMEM, "%zu objects: out of memory", out->said.n_objects);
    if (st == ESP_OK && picture) {
        st = esp_image_size(&out->width, &out->height, picture->bytes, picture->n_bytes, NULL, err);
        if (st)
            esp_err_prefix(err, "%s: ", picture->name);
    }
    if (st == ESP_OK)
        st = fill(out, finder, term, scores, strlen(suffix), err);
    if (st)
        esp_findings_finish(out);
    return st;
}

void esp_findings_finish(struct esp_findings *found)
{
    for (size_t i = 0; found->object && i < found->said.n_objects; i++) {
        esp_rle_finish(&found->object[i].mask);
        free(found->object[i].mask_file);
    }
    free(found->object);
    esp_objects_finish(&found->said);
    memset(found, 0, sizeof *found);
}

/* ---- files ---- */

/* DIR/mask-I.png, or OUTPUT without its .png and with .mask-I.png. malloc'ed; NULL without memory */
static char *mask_path(const char *dir, const char *output, size_t i)
{
    const size_t n_output = output ? strlen(output) : 0;
    const bool is_png = n_output >= 4 && strcmp(output + n_output - 4, ".png") == 0;
    char *path = NULL;
    int n;

    if (dir)
        n = asprintf(&path, "%s/mask-%zu.png", dir, i);
    else
        n = asprintf(&path, "%.*s.mask-%zu.png", (int)(n_output - (is_png ? 4 : 0)), output, i);
    return n < 0 ? NULL : path;
}

static esp_status write_mask(struct esp_findings *found, size_t i, const char *dir, const char *output,
                             struct esp_err *err)
{
    struct esp_finding *f = &found->object[i];
    uint8_t *mask = malloc((size_t)found->height * found->width);
    char *path = mask_path(dir, output, i);
    esp_status st = ESP_OK;

    if (!mask || !path)
        st = esp_fail(err, ESP_E_NOMEM, "a mask of %u x %u pixels: out of memory", found->width,
                      found->height);
    if (st == ESP_OK) {
        esp_rle_decode(mask, &f->mask);
        for (size_t p = 0; p < (size_t)found->height * found->width; p++)
            mask[p] = mask[p] ? 255 : 0;
        st = esp_png_write(path, mask, found->width, found->height, 1, err);
    }
    if (st == ESP_OK) {
        free(f->mask_file);
        f->mask_file = path;
        path = NULL;
    }
    free(path);
    free(mask);
    return st;
}

esp_status esp_findings_write_masks(struct esp_findings *found, const char *dir, const char *output,
                                    struct esp_err *err)
{
    esp_status st = ESP_OK;

    if (!dir && !output)
        return ESP_OK;
    for (size_t i = 0; st == ESP_OK && i < found->said.n_objects; i++)
        if (found->object[i].mask.counts)
            st = write_mask(found, i, dir, output, err);
    return st;
}

esp_status esp_findings_draw(struct esp_image *out, const struct esp_findings *found,
                             const struct esp_finding_picture *picture, struct esp_err *err)
{
    struct esp_drawn *drawn;
    esp_status st;

    memset(out, 0, sizeof *out);
    if (!picture)
        return esp_fail(err, ESP_E_ARG, "there is no picture to draw on");
    st = esp_image_decode(out, picture->bytes, picture->n_bytes, NULL, err);
    if (st)
        return esp_err_prefix(err, "%s: ", picture->name);
    if (found->said.n_objects == 0)
        return ESP_OK;
    drawn = calloc(found->said.n_objects, sizeof *drawn);
    if (drawn) {
        for (size_t i = 0; i < found->said.n_objects; i++) {
            const struct esp_finding *f = &found->object[i];

            memcpy(drawn[i].box, f->box, sizeof drawn[i].box);
            drawn[i].label = found->said.object[i].label;
            drawn[i].mask = f->mask.counts ? &f->mask : NULL;
        }
        st = esp_annotate(out, drawn, found->said.n_objects, err);
    } else {
        st = esp_fail(err, ESP_E_NOMEM, "%zu objects to draw: out of memory", found->said.n_objects);
    }
    free(drawn);
    if (st)
        esp_image_finish(out);
    return st;
}

esp_status esp_findings_save(struct esp_findings *found, const struct esp_finding_picture *picture,
                             const char *masks, const char *output, struct esp_term *term,
                             struct esp_err *err)
{
    struct esp_image image;
    esp_status st = esp_findings_write_masks(found, masks, output, err);

    if (st || !output)
        return st;
    st = esp_findings_draw(&image, found, picture, err);
    if (st)
        return st;
    st = esp_png_write(output, image.rgb, image.width, image.height, 3, err);
    esp_image_finish(&image);
    if (st == ESP_OK && term)
        esp_term_line(term, "%s: %zu object%s drawn", output, found->said.n_objects,
                      found->said.n_objects == 1 ? "" : "s");
    return st;
}

/* ---- telling ---- */

void esp_findings_tell(const struct esp_findings *found, struct esp_term *term)
{
    for (size_t i = 0; found->height > 0 && i < found->said.n_objects; i++) {
        const struct esp_object *o = &found->said.object[i];
        const struct esp_finding *f = &found->object[i];
        char mask[64] = "", score[32] = "";

        if (f->mask.counts)
            snprintf(mask, sizeof mask, ", mask of %llu pixels", (unsigned long long)esp_rle_area(&f->mask));
        if (isfinite(f->score))
            snprintf(score, sizeof score, ", score %.2f", f->score);
        esp_term_line(term, "%-20s y %.1f to %.1f, x %.1f to %.1f%s%s", o->label[0] ? o->label : "(no label)",
                      f->box[0], f->box[2], f->box[1], f->box[3], mask, score);
    }
}

void esp_findings_tell_malformed(const struct esp_findings *found, struct esp_term *term)
{
    for (size_t i = 0; i < found->said.n_malformed; i++)
        esp_term_line(term, "no object at byte %zu of the answer: %s", found->said.malformed[i].at,
                      found->said.malformed[i].why);
}
