/** Capital letters and digits as strokes, on a grid 4 wide and 6 high, y downwards. */
#ifndef ESP_TOOLS_SCENES_GLYPHS_H
#define ESP_TOOLS_SCENES_GLYPHS_H

/**
 * A character's strokes: each a run of points, two digits a point (x, y), with a space between strokes.
 * @return a static string; NULL for anything but A-Z and 0-9
 */
const char *esp_glyph_strokes(char c);

#endif
