/**
 * Objects drawn on their picture: a translucent mask, a box, a label, in a colour of each one's own.
 *
 * What is drawn must be seen on anything. So each line is bright with a dark seam on both sides, the colours have the
 * same high value and differ in hue, and a label stands on a plate of its colour in black or white, whichever is
 * further from it. Lines and letters grow with the shorter side of the picture.
 */
#ifndef ESP_OBJECTS_ANNOTATE_H
#define ESP_OBJECTS_ANNOTATE_H

#include <stddef.h>
#include <stdint.h>

#include "objects/rle.h"
#include "picture/image.h"
#include "proto/status.h"

struct esp_drawn {
    double box[4];     /* y0, x0, y1, x1: edges in pixels; what lies beyond the picture is not drawn */
    const char *label; /* UTF-8; NULL and "": none */
    const struct esp_rle *mask; /* of the picture's size; NULL: none */
};

/** The colour of the i-th object, RGB: hues a golden section of the circle apart. */
void esp_annotate_colour(uint8_t rgb[3], size_t i);

/**
 * Draws n objects, masks lowest and labels highest. Labels stand above their boxes or wherever else they hide no other
 * one; what is too long for the picture is cut, with two points for the rest.
 *
 * @param image    drawn upon
 * @param objects  borrowed
 * Errors: ESP_E_ARG (a mask of another size), ESP_E_NOMEM; nothing is drawn then. Safe from any thread.
 */
esp_status esp_annotate(struct esp_image *image, const struct esp_drawn *objects, size_t n,
                        struct esp_err *err);

#endif
