#include "cli/figures.h"

#include <stdio.h>

#define US 1e-6
#define MS 1e-3

struct esp_figure esp_figure_seconds(double seconds)
{
    struct esp_figure f;
    const double whole = seconds < 1e15 ? seconds : 1e15;
    const unsigned long long s = whole > 0 ? (unsigned long long)whole : 0;

    if (!(seconds > 0))
        snprintf(f.s, sizeof f.s, "-");
    else if (seconds < 0.9995 * MS)
        snprintf(f.s, sizeof f.s, "%.0f us", seconds / US);
    else if (seconds < 0.9995)
        snprintf(f.s, sizeof f.s, "%.3g ms", seconds / MS);
    else if (seconds < 10)
        snprintf(f.s, sizeof f.s, "%.2f s", seconds);
    else if (seconds < 100)
        snprintf(f.s, sizeof f.s, "%.1f s", seconds);
    else if (s < 3600)
        snprintf(f.s, sizeof f.s, "%llu min %llu s", s / 60, s % 60);
    else if (s < 86400)
        snprintf(f.s, sizeof f.s, "%llu h %llu min", s / 3600, s / 60 % 60);
    else
        snprintf(f.s, sizeof f.s, "%llu d %llu h", s / 86400, s / 3600 % 24);
    return f;
}

struct esp_figure esp_figure_bytes(double n_bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    struct esp_figure f;
    size_t u = 0;

    while (n_bytes >= 1023.95 && u + 1 < sizeof unit / sizeof unit[0]) {
        n_bytes /= 1024;
        u++;
    }
    snprintf(f.s, sizeof f.s, "%.*f %s", u > 0, n_bytes, unit[u]);
    return f;
}

struct esp_figure esp_figure_layers(uint32_t lo, uint32_t hi)
{
    struct esp_figure f;

    if (lo >= hi)
        snprintf(f.s, sizeof f.s, "-");
    else if (hi == lo + 1)
        snprintf(f.s, sizeof f.s, "%u", lo);
    else
        snprintf(f.s, sizeof f.s, "%u-%u", lo, hi - 1);
    return f;
}
