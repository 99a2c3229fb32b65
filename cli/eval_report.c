/* Scores and metrics of eval as JSON, and as lines for people. */
#include <math.h>
#include <stdio.h>

#include "cli/eval_score.h"
#include "cli/report_json.h"

static json_t *boxes(const struct esp_eval_score *score)
{
    json_t *list = json_array();
    bool ok = list != NULL;

    for (uint32_t i = 0; ok && i < score->n_got; i++) {
        const struct esp_eval_box *b = &score->got[i];
        json_t *o = json_object();

        ok = o != NULL;
        SET(o, "label", json_string(b->label));
        SET(o, "box", esp_json_numbers(b->box, 4));
        SET(o, "score", esp_json_number(b->score));
        SET(o, "hit", json_boolean(b->hit));
        ok &= json_array_append_new(list, o) == 0;
    }
    if (ok)
        return list;
    json_decref(list);
    return NULL;
}

json_t *esp_eval_score_json(const struct esp_eval_score *score, const struct esp_eval_example *example)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "exact", json_boolean(score->exact));
    switch (example->task) {
    case ESP_EVAL_CAPTION:
        SET(o, "f1", esp_json_number(esp_f1_value(&score->f1)));
        break;
    case ESP_EVAL_ANSWER:
        if (score->has_vqa)
            SET(o, "vqa_accuracy", esp_json_number(score->vqa));
        break;
    case ESP_EVAL_DETECT:
    case ESP_EVAL_SEGMENT:
        SET(o, "box_iou", esp_json_numbers(score->box_iou, example->n_objects));
        if (example->task == ESP_EVAL_SEGMENT)
            SET(o, "mask_iou", esp_json_numbers(score->mask_iou, example->n_objects));
        SET(o, "objects", boxes(score));
        SET(o, "malformed", json_integer(score->n_malformed));
        break;
    case ESP_EVAL_OCR:
        SET(o, "edits", json_integer((json_int_t)score->distance));
        break;
    default:
        break;
    }
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

/* ---- a whole set ---- */

static double mean(double sum, double n)
{
    return n > 0 ? sum / n : NAN;
}

static double cer(const struct esp_eval_sum *s)
{
    return mean((double)s->distance, (double)s->n_chars);
}

/* Of the boxes that were found, and of those that are there, the share that is right. */
static struct esp_f1 boxes_f1(const struct esp_eval_sum *s)
{
    return (struct esp_f1){s->n_right, s->n_got, s->n_objects};
}

static json_t *sum_json(const struct esp_eval_sum *s, enum esp_eval_task task)
{
    const struct esp_f1 boxes = boxes_f1(s);
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "examples", json_integer(s->n));
    SET(o, "done", json_integer(s->n_done));
    SET(o, "failed", json_integer(s->n_failed));
    SET(o, "exact", esp_json_number(mean(s->n_exact, s->n_done)));
    switch (task) {
    case ESP_EVAL_CAPTION:
        SET(o, "f1", esp_json_number(s->n_done ? esp_f1_value(&s->f1) : NAN));
        SET(o, "precision", esp_json_number(s->n_done ? esp_f1_precision(&s->f1) : NAN));
        SET(o, "recall", esp_json_number(s->n_done ? esp_f1_recall(&s->f1) : NAN));
        break;
    case ESP_EVAL_ANSWER:
        SET(o, "vqa_accuracy", esp_json_number(mean(s->vqa, s->n_vqa)));
        SET(o, "vqa_examples", json_integer(s->n_vqa));
        break;
    case ESP_EVAL_SEGMENT:
        SET(o, "mask_iou", esp_json_number(mean(s->mask_iou, (double)s->n_objects)));
        /* fall through */
    case ESP_EVAL_DETECT:
        SET(o, "ap50", esp_json_number(s->ap.mean));
        SET(o, "ap50_micro", esp_json_number(s->ap.micro));
        SET(o, "box_iou", esp_json_number(mean(s->box_iou, (double)s->n_objects)));
        SET(o, "precision", esp_json_number(s->n_done ? esp_f1_precision(&boxes) : NAN));
        SET(o, "recall", esp_json_number(s->n_done ? esp_f1_recall(&boxes) : NAN));
        SET(o, "objects", json_integer((json_int_t)s->n_objects));
        SET(o, "found", json_integer((json_int_t)s->n_got));
        SET(o, "malformed", json_integer((json_int_t)s->n_malformed));
        break;
    case ESP_EVAL_OCR:
        SET(o, "cer", esp_json_number(cer(s)));
        break;
    default:
        break;
    }
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

json_t *esp_eval_metrics_json(const struct esp_eval_metrics *metrics)
{
    json_t *o = json_object(), *tasks = json_object();
    bool ok = o && tasks;

    SET(o, "examples", json_integer(metrics->n));
    SET(o, "done", json_integer(metrics->n_done));
    SET(o, "failed", json_integer(metrics->n_failed));
    SET(o, "malformed", json_integer((json_int_t)metrics->n_malformed));
    for (int t = 0; t < ESP_EVAL_N_TASKS && ok; t++)
        if (metrics->task[t].n > 0)
            SET(tasks, esp_eval_task_name((enum esp_eval_task)t),
                sum_json(&metrics->task[t], (enum esp_eval_task)t));
    SET(o, "tasks", tasks);
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

/* "0.9512", or "-" where there is nothing to tell of. */
static const char *figure(char out[16], double v)
{
    if (isfinite(v))
        snprintf(out, 16, "%.4f", v);
    else
        snprintf(out, 16, "-");
    return out;
}

static void print_boxes(const struct esp_eval_sum *s)
{
    const struct esp_f1 boxes = boxes_f1(s);
    char a[16], b[16], c[16], d[16], e[16];

    printf(
        ", AP50 %s (of all labels as one %s), box IoU %s, precision %s, recall %s; %llu objects, %llu found",
        figure(a, s->ap.mean), figure(b, s->ap.micro), figure(c, mean(s->box_iou, (double)s->n_objects)),
        figure(d, s->n_done ? esp_f1_precision(&boxes) : NAN),
        figure(e, s->n_done ? esp_f1_recall(&boxes) : NAN), (unsigned long long)s->n_objects,
        (unsigned long long)s->n_got);
    if (s->n_malformed)
        printf(", %llu malformed", (unsigned long long)s->n_malformed);
}

static void print_sum(const struct esp_eval_sum *s, enum esp_eval_task task)
{
    char a[16], b[16], c[16];

    printf("%-8s %7u: exact %s", esp_eval_task_name(task), s->n_done, figure(a, mean(s->n_exact, s->n_done)));
    switch (task) {
    case ESP_EVAL_CAPTION:
        printf(", attribute F1 %s (precision %s, recall %s)",
               figure(a, s->n_done ? esp_f1_value(&s->f1) : NAN),
               figure(b, s->n_done ? esp_f1_precision(&s->f1) : NAN),
               figure(c, s->n_done ? esp_f1_recall(&s->f1) : NAN));
        break;
    case ESP_EVAL_ANSWER:
        if (s->n_vqa)
            printf(", VQA accuracy %s (of %u)", figure(a, mean(s->vqa, s->n_vqa)), s->n_vqa);
        break;
    case ESP_EVAL_SEGMENT:
        printf(", mask IoU %s", figure(a, mean(s->mask_iou, (double)s->n_objects)));
        print_boxes(s);
        break;
    case ESP_EVAL_DETECT:
        print_boxes(s);
        break;
    case ESP_EVAL_OCR:
        printf(", character error rate %s", figure(a, cer(s)));
        break;
    default:
        break;
    }
    if (s->n_failed)
        printf("; %u failed", s->n_failed);
    putchar('\n');
}

void esp_eval_metrics_print(const struct esp_eval_metrics *metrics)
{
    for (int t = 0; t < ESP_EVAL_N_TASKS; t++)
        if (metrics->task[t].n > 0)
            print_sum(&metrics->task[t], (enum esp_eval_task)t);
    printf("%u of %u examples answered, %u failed", metrics->n_done, metrics->n, metrics->n_failed);
    if (metrics->n_malformed)
        printf(", %llu malformed objects", (unsigned long long)metrics->n_malformed);
    putchar('\n');
}
