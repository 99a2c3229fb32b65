/*
 * What bench has measured, as a picture: for each phase how much of the device's reading and computing it uses, each a bar
 * against the measured ceiling; for a cluster how much of a token's time its stages compute, and tokens per second.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/figures.h"
#include "objects/font.h"
#include "picture/png_write.h"

#define WIDTH      1180
#define SCALE      2
#define LINE       (ESP_FONT_HEIGHT * SCALE + 4)
#define MARGIN     24
#define BAR_X      300 /* where the scale begins */
#define BAR_WIDTH  560 /* what 100 % are */
#define BAR_HEIGHT 14
#define MAX_SHARE  1.1 /* bars are cut there */

struct canvas {
    uint32_t width, height;
    uint8_t *rgb; /* NULL: only the height is found out */
};

static const uint8_t black[3] = {32, 32, 32}, grey[3] = {200, 200, 200}, pale[3] = {240, 240, 240};
static const uint8_t blue[3] = {46, 104, 178}, orange[3] = {222, 124, 32}, green[3] = {60, 140, 84};

static void rect(struct canvas *c, uint32_t x, uint32_t y, uint32_t w, uint32_t h, const uint8_t colour[3])
{
    for (uint32_t j = y; c->rgb && j < y + h && j < c->height; j++)
        for (uint32_t i = x; i < x + w && i < c->width; i++)
            memcpy(c->rgb + 3 * ((size_t)j * c->width + i), colour, 3);
}

static void write_text(struct canvas *c, uint32_t x, uint32_t y, const char *text, const uint8_t colour[3])
{
    uint8_t glyph;

    while (c->rgb && (glyph = esp_font_next(&text)) != 0) {
        for (uint32_t j = 0; j < ESP_FONT_HEIGHT; j++)
            for (uint32_t i = 0; i < ESP_FONT_WIDTH; i++)
                if (esp_font_pixel(glyph, i, j))
                    rect(c, x + i * SCALE, y + j * SCALE, SCALE, SCALE, colour);
        x += ESP_FONT_WIDTH * SCALE;
    }
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

/* A bar and what it stands for behind it; y moves on. */
static void bar(struct canvas *c, uint32_t *y, double share, const uint8_t colour[3], const char *value)
{
    const double shown = share > MAX_SHARE ? MAX_SHARE : share > 0 ? share : 0;
    const uint32_t n = (uint32_t)(shown * BAR_WIDTH + 0.5);

    rect(c, BAR_X, *y, BAR_WIDTH, BAR_HEIGHT, pale);
    rect(c, BAR_X, *y, n, BAR_HEIGHT, colour);
    rect(c, BAR_X + BAR_WIDTH, *y - 2, 2, BAR_HEIGHT + 4, black);
    write_text(c, BAR_X + (uint32_t)(BAR_WIDTH * MAX_SHARE) + 12, *y - 1, value, black);
    *y += BAR_HEIGHT + 6;
}

static void line(struct canvas *c, uint32_t *y, const uint8_t colour[3], const char *text)
{
    char cut[(WIDTH - 2 * MARGIN) / (ESP_FONT_WIDTH * SCALE) +
             1]; /* what is too long for the picture is left out */
    const size_t n = strlen(text) < sizeof cut ? strlen(text) : sizeof cut - 1;

    memcpy(cut, text, n);
    cut[n] = '\0';
    write_text(c, MARGIN, *y, cut, colour);
    *y += LINE;
}

static void phase(struct canvas *c, uint32_t *y, const json_t *p, double read_rate, double flop_rate)
{
    char text[80];

    if (strcmp(text_of(p, "phase"), "decode") == 0)
        snprintf(text, sizeof text, "decode, %.0f at once", number(p, "batch"));
    else
        snprintf(text, sizeof text, "%.40s", text_of(p, "phase"));
    write_text(c, MARGIN, *y, text, black);
    snprintf(text, sizeof text, "%.3g GB/s", number(p, "read_rate") * 1e-9);
    bar(c, y, read_rate > 0 ? number(p, "read_rate") / read_rate : 0, blue, text);
    snprintf(text, sizeof text, "%s", esp_figure_seconds(number(json_object_get(p, "time"), "median")).s);
    write_text(c, MARGIN + 2 * ESP_FONT_WIDTH * SCALE, *y, text, black);
    snprintf(text, sizeof text, "%.3g GFLOP/s", number(p, "flop_rate") * 1e-9);
    bar(c, y, flop_rate > 0 ? number(p, "flop_rate") / flop_rate : 0, orange, text);
    *y += 10;
}

static void device(struct canvas *c, uint32_t *y, const json_t *r)
{
    const json_t *ceilings = json_object_get(r, "ceilings"), *phases = json_object_get(r, "phases"), *p;
    const double read_rate = number(ceilings, "read_rate"), flop_rate = number(ceilings, "flop_rate");
    char text[512];
    size_t i;

    snprintf(text, sizeof text, "%.100s, %s weights", text_of(r, "model"), text_of(r, "weights"));
    line(c, y, black, text);
    snprintf(text, sizeof text, "%.120s, %.120s", text_of(json_object_get(r, "device"), "name"),
             text_of(json_object_get(r, "device"), "driver"));
    line(c, y, black, text);
    snprintf(text, sizeof text, "reading, of %.3g GB/s", read_rate * 1e-9);
    line(c, y, blue, text);
    snprintf(text, sizeof text, "computing, of %.3g GFLOP/s", flop_rate * 1e-9);
    line(c, y, orange, text);
    *y += 8;
    json_array_foreach(phases, i, p) phase(c, y, p, read_rate, flop_rate);
    *y += LINE;
}

static void cluster(struct canvas *c, uint32_t *y, const json_t *r)
{
    const json_t *decode = json_object_get(r, "decode"), *hop = json_object_get(r, "hop"), *d;
    const double token = number(hop, "token"), compute = number(hop, "compute");
    double most = 0;
    char text[256];
    size_t i;

    snprintf(text, sizeof text, "%.150s, %zu workers", text_of(r, "model"),
             json_array_size(json_object_get(r, "stages")));
    line(c, y, black, text);
    if (token > 0) {
        snprintf(text, sizeof text, "computed, of a token's %s", esp_figure_seconds(token).s);
        line(c, y, green, text);
        snprintf(text, sizeof text, "%.1f %%", 100 * compute / token);
        write_text(c, MARGIN, *y, "one session", black);
        bar(c, y, compute / token, green, text);
    }
    json_array_foreach(decode, i, d) most =
        number(d, "tokens_per_second") > most ? number(d, "tokens_per_second") : most;
    snprintf(text, sizeof text, "tokens/s, of the most here");
    line(c, y, blue, text);
    json_array_foreach(decode, i, d)
    {
        snprintf(text, sizeof text, "decode, %.0f at once", number(d, "batch"));
        write_text(c, MARGIN, *y, text, black);
        snprintf(text, sizeof text, "%.3g tokens/s", number(d, "tokens_per_second"));
        bar(c, y, most > 0 ? number(d, "tokens_per_second") / most : 0, blue, text);
    }
    *y += LINE;
}

static uint32_t draw(struct canvas *c, const json_t *report)
{
    const json_t *devices = json_object_get(report, "devices"), *r;
    uint32_t y = MARGIN;
    size_t i;

    json_array_foreach(devices, i, r) device(c, &y, r);
    if (json_is_object(json_object_get(report, "cluster")))
        cluster(c, &y, json_object_get(report, "cluster"));
    rect(c, MARGIN, y - LINE / 2, WIDTH - 2 * MARGIN, 1, grey);
    return y + MARGIN / 2;
}

esp_status esp_bench_plot(const json_t *report, const char *path, struct esp_err *err)
{
    struct canvas c = {.width = WIDTH};
    esp_status st;

    c.height = draw(&c, report);
    c.rgb = malloc((size_t)c.width * c.height * 3);
    if (!c.rgb)
        return esp_fail(err, ESP_E_NOMEM, "%s: a picture of %u x %u pixels", path, c.width, c.height);
    memset(c.rgb, 255, (size_t)c.width * c.height * 3);
    draw(&c, report);
    st = esp_png_write(path, c.rgb, c.width, c.height, 3, err);
    free(c.rgb);
    return st;
}
