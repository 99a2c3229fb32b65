/**
 * What an answer says of places in the picture.
 *
 *   answer := item { ";" item }
 *   item   := text | [text] object { object }
 *   object := loc loc loc loc [ 16 seg ] label
 *   loc    := "<loc" 4 digits ">"     0000 to 1023: y0, x0, y1, x1 in 1024ths of the picture's height and width
 *   seg    := "<seg" 3 digits ">"     000 to 127: the code of a 4 x 4 patch of the mask that fills the box
 *   label  := whatever comes up to the next ";", the next object or the end, without the spaces around it
 *
 * Spaces may stand between tokens. What is no such thing is not made to fit: it is told with its place and the reason,
 * and nothing is taken from it. A text without any such token is the whole answer, ";" and all.
 *
 * The convention is that of PaliGemma (arXiv 2407.07726; big_vision's pp/proj/paligemma).
 */
#ifndef ESP_OBJECTS_PARSE_H
#define ESP_OBJECTS_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_LOC_BINS  1024
#define ESP_SEG_CODES 128
#define ESP_N_SEG     16

struct esp_object {
    char *label;     /* "" where there is none */
    uint16_t loc[4]; /* y0, x0, y1, x1 in bins; y0 < y1 and x0 < x1 */
    bool has_seg;
    int32_t seg[ESP_N_SEG]; /* codes, row by row of the 4 x 4; zero without */
    size_t at, n_bytes;     /* of the answer: from its first token to the end of its label */
};

/** What looks like an object and is none. */
struct esp_malformed {
    char *text; /* as it stood in the answer */
    size_t at;  /* where, bytes */
    char why[128];
};

struct esp_objects {
    struct esp_object *object; /* in the answer's order */
    size_t n_objects;
    struct esp_malformed *malformed;
    size_t n_malformed;
    char *text; /* what stands outside of all these, its pieces joined by " ; " */
};

/**
 * @param out     the caller's; filled on success (release with esp_objects_finish), zeroed on failure
 * @param answer  UTF-8, borrowed; labels are as well-formed as it is
 * Errors: ESP_E_NOMEM. Safe from any thread.
 */
esp_status esp_objects_parse(struct esp_objects *out, const char *answer, struct esp_err *err);

/** Frees what is in it and zeroes it; a zeroed one is fine. */
void esp_objects_finish(struct esp_objects *objects);

/**
 * A box in pixels of a picture: bin / 1024 of its height (y0, y1) and width (x0, x1). Edges, not pixel numbers: pixel
 * i reaches from i to i + 1.
 */
void esp_box_pixels(double box[4], const uint16_t loc[4], uint32_t height, uint32_t width);

/** Intersection over union of two boxes y0, x0, y1, x1 in one unit; 0 where both are empty. */
double esp_box_iou(const double a[4], const double b[4]);

#endif
