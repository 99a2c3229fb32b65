/**
 * How right an answer is, by its example's task, and what that makes of a whole set. Pure.
 *
 *   caption   exact; attribute F1 (eval_text.h), micro-averaged over the set
 *   answer    exact in normal form; VQA accuracy where people's answers are given
 *   detect    average precision at an IoU of 0.5 (a box's score is the mean probability of its four tokens); IoU of each box
 *             that is there, 0 where none of its label was found for it; precision and recall at 0.5 of the same pairs
 *   segment   as detect, and the IoU of each mask that is there, paired by the masks' own overlap
 *   ocr       exact; character error rate, micro-averaged
 *   other     exact
 *
 * Exact is equality but for white space at the ends. Labels are equal or not.
 */
#ifndef ESP_CLI_EVAL_SCORE_H
#define ESP_CLI_EVAL_SCORE_H

#include <jansson.h>

#include "cli/eval_boxes.h"
#include "cli/eval_data.h"
#include "cli/eval_text.h"
#include "objects/parse.h"
#include "proto/status.h"

/** What came back for an example. Borrowed where it is passed. */
struct esp_eval_answer {
    char *text, *finish;
    uint32_t *ids;    /* n_ids, without the end token */
    double *logprobs; /* n_ids */
    uint32_t n_ids;
};

/** Frees what a malloc'ed one holds, and zeroes it. */
void esp_eval_answer_finish(struct esp_eval_answer *answer);

/** Draws the mask that 16 codes stand for into its box: sets u8[height, width], zeroed before, to 1 where it is. */
struct esp_eval_masks {
    void *self;
    esp_status (*draw)(void *self, uint8_t *out, uint32_t height, uint32_t width,
                       const int32_t seg[ESP_N_SEG], const double box[4], struct esp_err *err);
};

enum esp_eval_state { ESP_EVAL_OPEN, ESP_EVAL_DONE, ESP_EVAL_FAILED };

/** One box that was found. */
struct esp_eval_box {
    char *label;
    double box[4]; /* pixels */
    double score;  /* mean probability of its tokens; 0 where it is not known */
    bool hit;      /* at 0.5, by COCO's rule within the example */
};

/** What an answer came to. What its task does not measure is 0. */
struct esp_eval_score {
    enum esp_eval_state state;
    bool exact, has_vqa;
    struct esp_f1 f1;
    double vqa;
    uint64_t distance, n_chars; /* of a reading */
    uint32_t n_got, n_right;    /* boxes; those whose pair has an IoU of 0.5 or more */
    uint32_t n_malformed;       /* look like objects and are none; with `segment` also those without a mask */
    struct esp_eval_box *got;   /* n_got */
    double *box_iou, *mask_iou; /* of each object of the example; mask_iou only with `segment` */
};

/**
 * @param out     the caller's; filled on success, state DONE (release with esp_eval_score_finish), zeroed on failure
 * @param masks   NULL: none can be drawn, and none of `segment` is asked for
 * Errors: ESP_E_NOMEM, what masks->draw says.
 */
esp_status esp_eval_score_make(struct esp_eval_score *out, const struct esp_eval_example *example,
                               const struct esp_eval_picture *picture, const struct esp_eval_answer *answer,
                               const struct esp_eval_masks *masks, struct esp_err *err);
void esp_eval_score_finish(struct esp_eval_score *score);

/** The scores of one example as the results file has them; NULL without memory. */
json_t *esp_eval_score_json(const struct esp_eval_score *score, const struct esp_eval_example *example);

/* ---- a whole set ---- */

/** Of one task. */
struct esp_eval_sum {
    uint32_t n, n_done, n_failed, n_exact, n_vqa;
    struct esp_f1 f1;
    double vqa; /* sum over n_vqa */
    uint64_t distance, n_chars;
    uint64_t n_objects, n_got, n_right, n_malformed;
    double box_iou, mask_iou; /* sums over n_objects */
    struct esp_ap ap;         /* NaN where no object is there */
};

struct esp_eval_metrics {
    struct esp_eval_sum task[ESP_EVAL_N_TASKS];
    uint32_t n, n_done, n_failed;
    uint64_t n_malformed;
};

/**
 * Adds up n examples in the order given, so that the order in which answers came makes no difference to a digit.
 * @param which  numbers of examples; scores are by that number
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_eval_add_up(struct esp_eval_metrics *out, const struct esp_eval_data *data,
                           const struct esp_eval_score *scores, const uint32_t *which, uint32_t n,
                           struct esp_err *err);

/** As an object of what docs/cli.md says; NULL without memory. */
json_t *esp_eval_metrics_json(const struct esp_eval_metrics *metrics);

/** As lines for people, on stdout. */
void esp_eval_metrics_print(const struct esp_eval_metrics *metrics);

#endif
