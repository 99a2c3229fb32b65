/**
 * A picture in the terminal, by libchafa: as pixels where the terminal takes them (kitty's protocol, sixel, iTerm2's), else
 * in block characters and the best colours that it has.
 */
#ifndef ESP_CLI_SHOW_H
#define ESP_CLI_SHOW_H

#include <stdio.h>

#include "picture/image.h"
#include "proto/status.h"

/**
 * Draws the picture as large as the terminal's window lets it be with room for a few lines below, and ends the line.
 * What the terminal can is taken from the environment (TERM and its like), never asked of it.
 *
 * @param to     a terminal, flushed
 * @param image  borrowed
 * Errors: ESP_E_UNSUPPORTED (no terminal, or one that cannot move its cursor), ESP_E_IO. Without memory GLib ends the
 * process.
 */
esp_status esp_show(FILE *to, const struct esp_image *image, struct esp_err *err);

#endif
