/**
 * Scenes as training data: fixed-layout records, little-endian, one after the other.
 *
 *   u32 magic "ESPS" | u32 bytes of the record, these included | u64 index
 *   u16 side | u16 n_objects | u16 n_asked | u8 background colour | u8 n_text
 *   u8 rgb[side, side, 3]   as Espalier's preprocessing resizes the picture
 *   u8 owner[side, side]    0 background, 1 + the object's index, 254 the text's area
 *   u8 glyph[side, side]    0, or the character in whose cell the pixel lies
 *   n_text characters | f32 text box [y0, x0, y1, x1], of 0..1
 *   each object:    u8 shape, colour, pattern, size class | f32 box[4], of 0..1 | u8 mask[64, 64], 0 or 255: what can
 *                   be seen of it, its box stretched to that
 *   each question:  u8 task | u16 n, n bytes of the prompt | u16 n, n bytes of the answer (`<seg@K>` in it stands
 *                   for the mask tokens of object K)
 */
#ifndef ESP_TOOLS_SCENES_RECORD_H
#define ESP_TOOLS_SCENES_RECORD_H

#include <stddef.h>

#include "tools/scenes/ask.h"

enum { ESP_RECORD_MASK_SIDE = 64 };

/**
 * Makes the record of a scene.
 *
 * @param out      the record, from malloc; n_bytes of it
 * @param picture  the drawing's pixels as they are after JPEG: u8[height, width, 3], borrowed
 * @param side     of the record's picture, pixels, 1..4096
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_record_make(uint8_t **out, size_t *n_bytes, const struct esp_scene *scene,
                           const struct esp_drawing *drawing, uint8_t *picture, const struct esp_asked *asked,
                           uint32_t n_asked, uint32_t side, struct esp_err *err);

/**
 * The mask of object i within its box.
 * @param out  u8[64, 64]: 255 where the pixel at the cell's centre shows the object, else 0
 */
void esp_record_mask(uint8_t *out, const struct esp_drawing *drawing, uint32_t i);

#endif
