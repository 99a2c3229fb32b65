/**
 * Figures as people read them.
 */
#ifndef ESP_CLI_FIGURES_H
#define ESP_CLI_FIGURES_H

#include <stdint.h>

struct esp_figure {
    char s[32];
};

/** "340 us", "12.3 ms", "1.23 s", "45.1 s", "3 min 5 s", "2 h 13 min", "5 d 3 h"; "-" for 0, which is "not known". */
struct esp_figure esp_figure_seconds(double seconds);

/** "512 B", "3.4 KiB", "1.2 GiB". */
struct esp_figure esp_figure_bytes(double n_bytes);

/** The layers [lo, hi): "-", "3", "0-13". */
struct esp_figure esp_figure_layers(uint32_t lo, uint32_t hi);

#endif
