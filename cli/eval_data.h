/**
 * A set of examples to be measured: a file of JSON lines, and the pictures that it names.
 *
 *   {"image": "a.jpg", "prompt": "detect cat ; dog", "answer": "<loc0100>... cat",
 *    "objects": [{"label": "cat", "box": [y0, x0, y1, x1], "mask": {"size": [h, w], "counts": "..."}}]}
 *
 * `image` is a path, from the file's folder on. `answer` is the expected one; what else is expected depends on the task, the
 * first word of the prompt: with `answer`, `answers` may hold what 4 to 100 people have said; `detect` and `segment` need
 * `objects`, each with a box in pixels of the picture and, for `segment`, a mask of COCO's (objects/rle.h) of the
 * picture's size, its counts a string or a list. Other fields are ignored, and so are empty lines.
 *
 * Everything is checked before anything is asked: what is wrong is named with its line.
 */
#ifndef ESP_CLI_EVAL_DATA_H
#define ESP_CLI_EVAL_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/term.h"
#include "objects/rle.h"
#include "proto/status.h"

#define ESP_EVAL_HASH_BYTES 32

enum esp_eval_task {
    ESP_EVAL_CAPTION,
    ESP_EVAL_ANSWER,
    ESP_EVAL_DETECT,
    ESP_EVAL_SEGMENT,
    ESP_EVAL_OCR,
    ESP_EVAL_OTHER, /* any other first word */
    ESP_EVAL_N_TASKS
};

/** "caption", ..., "other". */
const char *esp_eval_task_name(enum esp_eval_task task);

/** The task of that name; false if there is none. */
bool esp_eval_task_of(enum esp_eval_task *out, const char *name);

struct esp_eval_object {
    char *label;
    double box[4];       /* y0, x0, y1, x1, pixels; y0 < y1 and x0 < x1, inside the picture */
    struct esp_rle mask; /* of the picture's size; zeros but with `segment` */
};

struct esp_eval_example {
    uint32_t line;    /* of the file, from 1 */
    uint32_t picture; /* among the set's */
    enum esp_eval_task task;
    char *prompt, *answer;
    char **answers; /* n_answers; NULL: none */
    uint32_t n_answers;
    struct esp_eval_object *objects; /* n_objects; with `detect` and `segment` */
    uint32_t n_objects;
};

struct esp_eval_picture {
    char *name; /* as the file has it */
    char *path;
    uint32_t width, height; /* pixels */
};

struct esp_eval_data {
    struct esp_eval_example *examples; /* in the file's order */
    uint32_t n_examples;
    struct esp_eval_picture *pictures; /* each once, in the order of their first mention */
    uint32_t n_pictures;
    uint8_t hash[ESP_EVAL_HASH_BYTES]; /* BLAKE2b-256 of the file and of all pictures */
};

/**
 * Reads it all; pictures are read for their hash and size, and not kept.
 *
 * @param out   the caller's; filled on success (release with esp_eval_data_finish), zeroed on failure
 * @param path  a file of at most 1 GiB
 * @param term  where progress is shown; NULL: nowhere
 * Errors, which name file and line: ESP_E_IO, ESP_E_FORMAT, ESP_E_LIMIT, ESP_E_UNSUPPORTED (a picture's format),
 * ESP_E_NOMEM.
 */
esp_status esp_eval_data_read(struct esp_eval_data *out, const char *path, struct esp_term *term,
                              struct esp_err *err);

/** The same of a file's n_bytes, which are borrowed for the call and need no NUL. */
esp_status esp_eval_data_parse(struct esp_eval_data *out, const char *text, size_t n_bytes, const char *path,
                               struct esp_term *term, struct esp_err *err);

/** Frees what is in it and zeroes it; a zeroed one is fine. */
void esp_eval_data_finish(struct esp_eval_data *data);

#endif
