/**
 * A small bitmap font for labels: ASCII, cells of 6 x 9 pixels of which the last column is empty.
 */
#ifndef ESP_OBJECTS_FONT_H
#define ESP_OBJECTS_FONT_H

#include <stdbool.h>
#include <stdint.h>

#define ESP_FONT_WIDTH  6    /* of a cell; glyphs have 5 */
#define ESP_FONT_HEIGHT 9    /* capitals take the upper 7 */
#define ESP_FONT_OTHER  0x7f /* a hollow box, for what the font lacks */

/**
 * The next character of a UTF-8 text: one of ASCII from the space on, or ESP_FONT_OTHER for any other code point and for
 * each byte that belongs to none. *text moves behind it.
 * @return 0 at the end
 */
uint8_t esp_font_next(const char **text);

/** Whether a pixel of a character's cell is set; x and y beyond the cell, and other characters, are blank. */
bool esp_font_pixel(uint8_t character, uint32_t x, uint32_t y);

#endif
