#include "cli/eval_score.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RIGHT_IOU 0.5

void esp_eval_answer_finish(struct esp_eval_answer *answer)
{
    free(answer->text);
    free(answer->finish);
    free(answer->ids);
    free(answer->logprobs);
    memset(answer, 0, sizeof *answer);
}

void esp_eval_score_finish(struct esp_eval_score *score)
{
    for (uint32_t i = 0; i < score->n_got && score->got; i++)
        free(score->got[i].label);
    free(score->got);
    free(score->box_iou);
    free(score->mask_iou);
    memset(score, 0, sizeof *score);
}

static esp_status no_memory(struct esp_err *err)
{
    return esp_fail(err, ESP_E_NOMEM, "scores: out of memory");
}

/* ---- answers ---- */

static esp_status score_answer(struct esp_eval_score *out, const struct esp_eval_example *example,
                               const char *text, struct esp_err *err)
{
    char *got = NULL, *wanted = NULL, **people = NULL;
    esp_status st = esp_answer_normal(&got, text, err);

    if (st == ESP_OK)
        st = esp_answer_normal(&wanted, example->answer, err);
    if (st == ESP_OK)
        out->exact = strcmp(got, wanted) == 0;
    if (st == ESP_OK && example->n_answers > 0) {
        people = calloc(example->n_answers, sizeof *people);
        st = people ? ESP_OK : no_memory(err);
        for (uint32_t i = 0; st == ESP_OK && i < example->n_answers; i++)
            st = esp_answer_normal(&people[i], example->answers[i], err);
        if (st == ESP_OK) {
            out->has_vqa = true;
            out->vqa = esp_vqa_accuracy(got, people, example->n_answers);
        }
        for (uint32_t i = 0; people && i < example->n_answers; i++)
            free(people[i]);
        free(people);
    }
    free(got);
    free(wanted);
    return st;
}

/* ---- places ---- */

/* The tokens <loc0000> to <loc1023> of a text. */
struct locs {
    uint16_t *codes;
    size_t *at;      /* where they stand, bytes */
    double *logprob; /* room for as many */
    size_t n;
};

static esp_status find_locs(struct locs *out, const char *text, struct esp_err *err)
{
    const size_t n_most = strlen(text) / 9 + 1; /* "<loc0000>" */

    *out = (struct locs){.codes = calloc(n_most, sizeof *out->codes),
                         .at = calloc(n_most, sizeof *out->at),
                         .logprob = calloc(n_most, sizeof *out->logprob)};
    if (!out->codes || !out->at || !out->logprob)
        return no_memory(err);
    for (const char *at = text; (at = strstr(at, "<loc")); at++) {
        uint32_t code = 0;

        if (strspn(at + 4, "0123456789") != 4 || at[8] != '>')
            continue;
        for (int i = 4; i < 8; i++)
            code = code * 10 + (uint32_t)(at[i] - '0');
        if (code >= ESP_LOC_BINS)
            continue;
        out->codes[out->n] = (uint16_t)code;
        out->at[out->n++] = (size_t)(at - text);
    }
    return ESP_OK;
}

/* The mean probability of each object's four tokens, with which it begins. */
static esp_status score_boxes(struct esp_eval_score *out, const struct esp_objects *objects,
                              const struct esp_eval_answer *answer, struct esp_err *err)
{
    struct locs locs;
    size_t k = 0;
    esp_status st = find_locs(&locs, answer->text, err);

    if (st == ESP_OK &&
        esp_loc_logprobs(locs.logprob, locs.codes, locs.n, answer->ids, answer->logprobs, answer->n_ids)) {
        for (size_t i = 0; i < objects->n_objects; i++) {
            double sum = 0;

            while (k < locs.n && locs.at[k] < objects->object[i].at)
                k++;
            for (size_t j = k; j < k + 4 && j < locs.n; j++)
                sum += exp(locs.logprob[j]);
            out->got[i].score = sum / 4;
        }
    }
    free(locs.codes);
    free(locs.at);
    free(locs.logprob);
    return st;
}

static esp_status take_boxes(struct esp_eval_score *out, const struct esp_objects *objects,
                             const struct esp_eval_picture *picture, struct esp_err *err)
{
    out->got = calloc(objects->n_objects ? objects->n_objects : 1, sizeof *out->got);
    if (!out->got)
        return no_memory(err);
    for (size_t i = 0; i < objects->n_objects; i++) {
        struct esp_eval_box *b = &out->got[out->n_got++];

        esp_box_pixels(b->box, objects->object[i].loc, picture->height, picture->width);
        b->label = strdup(objects->object[i].label);
        if (!b->label)
            return no_memory(err);
    }
    return ESP_OK;
}

/* Overlaps [example's objects, found ones] of boxes; 0 for different labels. */
static void overlap_boxes(double *overlap, const struct esp_eval_example *example,
                          const struct esp_eval_score *score)
{
    for (uint32_t i = 0; i < example->n_objects; i++)
        for (uint32_t j = 0; j < score->n_got; j++)
            if (strcmp(example->objects[i].label, score->got[j].label) == 0)
                overlap[(size_t)i * score->n_got + j] =
                    esp_box_iou(example->objects[i].box, score->got[j].box);
}

/* The same of masks; those that were not given overlap nothing. */
static esp_status overlap_masks(double *overlap, const struct esp_eval_example *example,
                                const struct esp_eval_score *score, const struct esp_objects *objects,
                                const struct esp_eval_picture *picture, const struct esp_eval_masks *masks,
                                struct esp_err *err)
{
    const size_t n_pixels = (size_t)picture->height * picture->width;
    uint8_t *mask = malloc(n_pixels);
    esp_status st = mask ? ESP_OK : no_memory(err);

    for (uint32_t j = 0; st == ESP_OK && j < score->n_got; j++) {
        struct esp_rle rle = {0};

        if (!objects->object[j].has_seg)
            continue;
        memset(mask, 0, n_pixels);
        st = masks->draw(masks->self, mask, picture->height, picture->width, objects->object[j].seg,
                         score->got[j].box, err);
        if (st == ESP_OK)
            st = esp_rle_encode(&rle, mask, picture->height, picture->width, err);
        for (uint32_t i = 0; st == ESP_OK && i < example->n_objects; i++)
            if (strcmp(example->objects[i].label, score->got[j].label) == 0)
                st =
                    esp_rle_iou(&overlap[(size_t)i * score->n_got + j], &example->objects[i].mask, &rle, err);
        esp_rle_finish(&rle);
    }
    free(mask);
    return st;
}

static esp_status compare(struct esp_eval_score *out, const struct esp_eval_example *example,
                          const struct esp_objects *objects, const struct esp_eval_picture *picture,
                          const struct esp_eval_masks *masks, struct esp_err *err)
{
    const size_t n_pairs = (size_t)example->n_objects * out->n_got; /* each bounded by a text */
    double *overlap = calloc(n_pairs + 1, sizeof *overlap), *score = calloc(out->n_got + 1u, sizeof *score);
    bool *hit = calloc(out->n_got + 1u, sizeof *hit);
    esp_status st = ESP_OK;

    out->box_iou = calloc(example->n_objects + 1u, sizeof *out->box_iou);
    out->mask_iou = calloc(example->n_objects + 1u, sizeof *out->mask_iou);
    if (!overlap || !score || !hit || !out->box_iou || !out->mask_iou) {
        st = no_memory(err);
        goto done;
    }
    overlap_boxes(overlap, example, out);
    for (uint32_t j = 0; j < out->n_got; j++)
        score[j] = out->got[j].score;
    st = esp_claim(hit, overlap, score, example->n_objects, out->n_got, RIGHT_IOU, err);
    if (st == ESP_OK)
        st = esp_pair_up(out->box_iou, overlap, example->n_objects, out->n_got, err);
    for (uint32_t j = 0; st == ESP_OK && j < out->n_got; j++)
        out->got[j].hit = hit[j];
    for (uint32_t i = 0; st == ESP_OK && i < example->n_objects; i++)
        out->n_right += out->box_iou[i] >= RIGHT_IOU;
    if (st == ESP_OK && example->task == ESP_EVAL_SEGMENT) {
        memset(overlap, 0, n_pairs * sizeof *overlap);
        st = overlap_masks(overlap, example, out, objects, picture, masks, err);
        if (st == ESP_OK)
            st = esp_pair_up(out->mask_iou, overlap, example->n_objects, out->n_got, err);
    }
done:
    free(overlap);
    free(score);
    free(hit);
    return st;
}

static esp_status score_places(struct esp_eval_score *out, const struct esp_eval_example *example,
                               const struct esp_eval_picture *picture, const struct esp_eval_answer *answer,
                               const struct esp_eval_masks *masks, struct esp_err *err)
{
    struct esp_objects objects;
    esp_status st = esp_objects_parse(&objects, answer->text, err);

    if (st)
        return st;
    out->n_malformed = (uint32_t)objects.n_malformed;
    for (size_t i = 0; i < objects.n_objects && example->task == ESP_EVAL_SEGMENT; i++)
        out->n_malformed += !objects.object[i].has_seg;
    st = take_boxes(out, &objects, picture, err);
    if (st == ESP_OK)
        st = score_boxes(out, &objects, answer, err);
    if (st == ESP_OK)
        st = compare(out, example, &objects, picture, masks, err);
    esp_objects_finish(&objects);
    return st;
}

esp_status esp_eval_score_make(struct esp_eval_score *out, const struct esp_eval_example *example,
                               const struct esp_eval_picture *picture, const struct esp_eval_answer *answer,
                               const struct esp_eval_masks *masks, struct esp_err *err)
{
    esp_status st = ESP_OK;

    memset(out, 0, sizeof *out);
    out->exact = esp_same_text(answer->text, example->answer);
    switch (example->task) {
    case ESP_EVAL_CAPTION:
        st = esp_caption_f1(&out->f1, answer->text, example->answer, err);
        break;
    case ESP_EVAL_ANSWER:
        st = score_answer(out, example, answer->text, err);
        break;
    case ESP_EVAL_DETECT:
    case ESP_EVAL_SEGMENT:
        st = score_places(out, example, picture, answer, masks, err);
        break;
    case ESP_EVAL_OCR:
        st = esp_edit_distance(&out->distance, &out->n_chars, answer->text, example->answer, err);
        break;
    default:
        break;
    }
    if (st)
        esp_eval_score_finish(out);
    else
        out->state = ESP_EVAL_DONE;
    return st;
}

/* ---- a whole set ---- */

static void add(struct esp_eval_sum *sum, const struct esp_eval_score *s, const struct esp_eval_example *e)
{
    sum->n++;
    sum->n_failed += s->state == ESP_EVAL_FAILED;
    if (s->state != ESP_EVAL_DONE)
        return;
    sum->n_done++;
    sum->n_exact += s->exact;
    sum->f1.n_both += s->f1.n_both;
    sum->f1.n_got += s->f1.n_got;
    sum->f1.n_wanted += s->f1.n_wanted;
    sum->n_vqa += s->has_vqa;
    sum->vqa += s->vqa;
    sum->distance += s->distance;
    sum->n_chars += s->n_chars;
    sum->n_objects += e->n_objects;
    sum->n_got += s->n_got;
    sum->n_right += s->n_right;
    sum->n_malformed += s->n_malformed;
    for (uint32_t i = 0; i < e->n_objects; i++) {
        sum->box_iou += s->box_iou[i];
        sum->mask_iou += s->mask_iou[i];
    }
}

/* Average precision of one task, whose sums are there. */
static esp_status add_precision(struct esp_eval_sum *sum, const struct esp_eval_data *data,
                                const struct esp_eval_score *scores, const uint32_t *which, uint32_t n,
                                enum esp_eval_task task, struct esp_err *err)
{
    struct esp_found *found = calloc(sum->n_got + 1, sizeof *found);
    const char **wanted = calloc(sum->n_objects + 1, sizeof *wanted);
    size_t n_found = 0, n_wanted = 0;
    esp_status st;

    for (uint32_t k = 0; found && wanted && k < n; k++) {
        const struct esp_eval_example *e = &data->examples[which[k]];
        const struct esp_eval_score *s = &scores[which[k]];

        if (e->task != task || s->state != ESP_EVAL_DONE)
            continue;
        for (uint32_t j = 0; j < s->n_got; j++)
            found[n_found++] = (struct esp_found){s->got[j].label, s->got[j].score, s->got[j].hit};
        for (uint32_t i = 0; i < e->n_objects; i++)
            wanted[n_wanted++] = e->objects[i].label;
    }
    st = found && wanted ? esp_average_precision(&sum->ap, found, n_found, wanted, n_wanted, err)
                         : no_memory(err);
    free(found);
    free(wanted);
    return st;
}

esp_status esp_eval_add_up(struct esp_eval_metrics *out, const struct esp_eval_data *data,
                           const struct esp_eval_score *scores, const uint32_t *which, uint32_t n,
                           struct esp_err *err)
{
    esp_status st = ESP_OK;

    memset(out, 0, sizeof *out);
    for (uint32_t k = 0; k < n; k++) {
        const struct esp_eval_example *e = &data->examples[which[k]];

        add(&out->task[e->task], &scores[which[k]], e);
    }
    for (int t = 0; t < ESP_EVAL_N_TASKS; t++) {
        struct esp_eval_sum *sum = &out->task[t];

        out->n += sum->n;
        out->n_done += sum->n_done;
        out->n_failed += sum->n_failed;
        out->n_malformed += sum->n_malformed;
        if (st == ESP_OK && (t == ESP_EVAL_DETECT || t == ESP_EVAL_SEGMENT))
            st = add_precision(sum, data, scores, which, n, (enum esp_eval_task)t, err);
    }
    return st;
}
