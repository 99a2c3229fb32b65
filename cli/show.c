#include "cli/show.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* What Ubuntu 22.04 has: a newer function is an error here. */
#define CHAFA_VERSION_MIN_REQUIRED CHAFA_VERSION_1_8
#define CHAFA_VERSION_MAX_ALLOWED  CHAFA_VERSION_1_8
#include <chafa.h>

#define ROWS_LEFT 3 /* of the window, for what stands below the picture */

/* A terminal's window: characters, and the pixels of one. */
struct window {
    int columns, rows, cell_width, cell_height;
};

static struct window window_of(int fd)
{
    struct window w = {.columns = 80, .rows = 24, .cell_width = 8, .cell_height = 16};
    struct winsize size;

    if (ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0)
        return w;
    w.columns = size.ws_col;
    w.rows = size.ws_row;
    if (size.ws_xpixel >= size.ws_col && size.ws_ypixel >= size.ws_row) {
        w.cell_width = size.ws_xpixel / size.ws_col;
        w.cell_height = size.ws_ypixel / size.ws_row;
    }
    return w;
}

/* As libc decides it, of the first of these that is set. */
static bool takes_utf8(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);

        if (value && *value)
            return strstr(value, "UTF-8") || strstr(value, "utf8") || strstr(value, "UTF8") ||
                   strstr(value, "utf-8");
    }
    return false;
}

static ChafaPixelMode pixel_mode(const ChafaTermInfo *info)
{
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_BEGIN_KITTY_IMMEDIATE_IMAGE_V1))
        return CHAFA_PIXEL_MODE_KITTY;
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_BEGIN_SIXELS))
        return CHAFA_PIXEL_MODE_SIXELS;
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_BEGIN_ITERM2_IMAGE))
        return CHAFA_PIXEL_MODE_ITERM2;
    return CHAFA_PIXEL_MODE_SYMBOLS;
}

static ChafaCanvasMode colours(const ChafaTermInfo *info)
{
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_SET_COLOR_FGBG_DIRECT))
        return CHAFA_CANVAS_MODE_TRUECOLOR;
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_SET_COLOR_FGBG_256))
        return CHAFA_CANVAS_MODE_INDEXED_240;
    if (chafa_term_info_have_seq(info, CHAFA_TERM_SEQ_SET_COLOR_FGBG_16))
        return CHAFA_CANVAS_MODE_INDEXED_16;
    return CHAFA_CANVAS_MODE_FGBG;
}

static ChafaCanvasConfig *configure(const ChafaTermInfo *info, const struct window *window,
                                    const struct esp_image *image)
{
    ChafaCanvasConfig *config = chafa_canvas_config_new();
    ChafaSymbolMap *symbols = chafa_symbol_map_new();
    gint columns = window->columns, rows = window->rows > ROWS_LEFT ? window->rows - ROWS_LEFT : 1;
    const ChafaPixelMode mode = pixel_mode(info);

    chafa_symbol_map_add_by_tags(symbols, takes_utf8() ? CHAFA_SYMBOL_TAG_BLOCK | CHAFA_SYMBOL_TAG_SPACE
                                                       : CHAFA_SYMBOL_TAG_ASCII);
    chafa_calc_canvas_geometry((gint)image->width, (gint)image->height, &columns, &rows,
                               (gfloat)window->cell_width / (gfloat)window->cell_height, TRUE, FALSE);
    chafa_canvas_config_set_geometry(config, columns > 0 ? columns : 1, rows > 0 ? rows : 1);
    chafa_canvas_config_set_cell_geometry(config, window->cell_width, window->cell_height);
    chafa_canvas_config_set_symbol_map(config, symbols);
    chafa_canvas_config_set_pixel_mode(config, mode);
    chafa_canvas_config_set_canvas_mode(
        config, mode == CHAFA_PIXEL_MODE_SYMBOLS ? colours(info) : CHAFA_CANVAS_MODE_TRUECOLOR);
    chafa_symbol_map_unref(symbols);
    return config;
}

/* @return how the terminal is told to draw it; g_string_free it */
static GString *render(const struct esp_image *image, const struct window *window)
{
    gchar **environment = g_get_environ();
    ChafaTermInfo *info = chafa_term_db_detect(chafa_term_db_get_default(), environment);
    ChafaCanvasConfig *config = configure(info, window, image);
    ChafaCanvas *canvas = chafa_canvas_new(config);
    GString *text;

    /* An image has at most 65535 pixels a side, so a row's bytes fit. */
    chafa_canvas_draw_all_pixels(canvas, CHAFA_PIXEL_RGB8, image->rgb, (gint)image->width,
                                 (gint)image->height, (gint)image->width * 3);
    text = chafa_canvas_print(canvas, info);
    chafa_canvas_unref(canvas);
    chafa_canvas_config_unref(config);
    chafa_term_info_unref(info);
    g_strfreev(environment);
    return text;
}

esp_status esp_show(FILE *to, const struct esp_image *image, struct esp_err *err)
{
    const char *kind = getenv("TERM");
    struct window window;
    GString *text;
    bool ok;

    if (!isatty(fileno(to)))
        return esp_fail(err, ESP_E_UNSUPPORTED, "there is no terminal to show the picture on");
    if (!kind || !*kind || strcmp(kind, "dumb") == 0)
        return esp_fail(err, ESP_E_UNSUPPORTED, "this terminal (TERM=%.40s) shows no pictures",
                        kind ? kind : "");
    window = window_of(fileno(to));
    text = render(image, &window);
    ok = fwrite(text->str, 1, text->len, to) == text->len && putc('\n', to) != EOF && fflush(to) == 0;
    g_string_free(text, TRUE);
    return ok ? ESP_OK : esp_fail(err, ESP_E_IO, "the terminal: %s", strerror(errno));
}
