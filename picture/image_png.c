/*
 * PNG through libpng. Its transformations are used only where they are the same as Pillow's; the palette and
 * 16-bit grey are done here. Every row is read straight into its place in the result (no row needs more than
 * 3 bytes a pixel after the transformations) and widened there, so interlacing needs no second picture.
 *
 * libpng leaves by longjmp. All that changes between setjmp and longjmp lives in struct png_job, never in
 * locals.
 */
#include "picture/image_codec.h"

#include <png.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* No deflate stream expands by more: 258 bytes from a length and a distance code of one bit each. */
#define DEFLATE_MAX_RATIO 1032
/* Bytes of a PLTE or tRNS, the only chunks besides IDAT that are kept. */
#define CHUNK_MALLOC_MAX (1u << 20)

enum row_kind { ROW_RGB, ROW_GREY, ROW_GREY16, ROW_PALETTE };

struct png_job {
    jmp_buf jump;
    png_structp png;
    png_infop info;
    const uint8_t *at; /* next byte, `left` of them */
    size_t left;
    bool cut; /* libpng asked for more than there is */
    bool complete;
    struct esp_image *out;
    enum row_kind row_kind;
    uint32_t row; /* rows done in this pass */
    uint8_t palette[256][3];
    char what[160]; /* libpng's last complaint */
};

static void on_read(png_structp png, png_bytep dst, size_t n)
{
    struct png_job *job = png_get_io_ptr(png);

    if (n > job->left) {
        job->cut = true;
        png_error(png, "end of file");
    }
    memcpy(dst, job->at, n);
    job->at += n;
    job->left -= n;
}

static void on_error(png_structp png, png_const_charp what)
{
    struct png_job *job = png_get_error_ptr(png);

    snprintf(job->what, sizeof job->what, "%s", what);
    longjmp(job->jump, 1);
}

static void on_warning(png_structp png, png_const_charp what)
{
    (void)png;
    (void)what; /* what libpng can live with, Pillow does not even look at */
}

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Before libpng sees the file: dimensions, and whether so few bytes can hold so many pixels. */
static esp_status check_header(const uint8_t *bytes, size_t n_bytes, const struct esp_image_limits *limits,
                               struct esp_err *err)
{
    static const uint8_t n_channel[7] = {1, 0, 3, 1, 2, 0, 4};
    uint64_t n_bit, n_raw; /* a pixel; the filtered rows */
    esp_status st;

    if (n_bytes < 33)
        return esp_fail(err, ESP_E_FORMAT, "truncated PNG: %zu bytes, not even a header", n_bytes);
    if (memcmp(bytes + 8, "\0\0\0\rIHDR", 8) != 0)
        return esp_fail(err, ESP_E_FORMAT, "damaged PNG: the first chunk is not a header");
    st = esp_image_check("PNG", be32(bytes + 16), be32(bytes + 20), limits, err);
    if (st)
        return st;
    if (bytes[25] > 6 || n_channel[bytes[25]] == 0 || bytes[24] > 16)
        return esp_fail(err, ESP_E_FORMAT, "damaged PNG: no such colour type and depth (%u, %u)", bytes[25],
                        bytes[24]);
    n_bit = (uint64_t)bytes[24] * n_channel[bytes[25]];
    n_raw = be32(bytes + 20) * ((be32(bytes + 16) * n_bit + 7) / 8 + 1);
    if (n_raw / DEFLATE_MAX_RATIO > n_bytes)
        return esp_fail(err, ESP_E_FORMAT, "truncated PNG: %zu bytes cannot hold %u x %u pixels", n_bytes,
                        be32(bytes + 16), be32(bytes + 20));
    return ESP_OK;
}

static void read_header(struct png_job *job)
{
    png_structp png = job->png;
    png_byte type, depth;

    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX); /* check_header has seen to it */
    png_set_chunk_malloc_max(png, CHUNK_MALLOC_MAX);
    /* Profiles, texts, gamma and the rest: skipped unread, hence no bombs in them. */
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_read_fn(png, job, on_read);
    png_read_info(png, job->info);

    type = png_get_color_type(png, job->info);
    depth = png_get_bit_depth(png, job->info);
    if (type & PNG_COLOR_MASK_ALPHA)
        png_set_strip_alpha(png);
    if (type == PNG_COLOR_TYPE_PALETTE) {
        png_colorp entries = NULL;
        int n_entry = 0;

        png_get_PLTE(png, job->info, &entries, &n_entry);
        for (int i = 0; i < n_entry && i < 256; i++) { /* entries that the file lacks stay black */
            job->palette[i][0] = entries[i].red;
            job->palette[i][1] = entries[i].green;
            job->palette[i][2] = entries[i].blue;
        }
        png_set_packing(png);
        job->row_kind = ROW_PALETTE;
    } else if (type == PNG_COLOR_TYPE_GRAY && depth == 16) {
        job->row_kind = ROW_GREY16;
    } else {
        if (depth == 16)
            png_set_strip_16(png); /* the high byte; grey with alpha too */
        if (depth < 8)
            png_set_expand_gray_1_2_4_to_8(png);
        job->row_kind = type & PNG_COLOR_MASK_COLOR ? ROW_RGB : ROW_GREY;
    }
}

static void widen(const struct png_job *job, uint8_t *row, uint32_t width)
{
    switch (job->row_kind) {
    case ROW_RGB:
        break;
    case ROW_GREY16:
        for (uint32_t x = 0; x < width; x++) /* big-endian; all above 255 is white */
            row[x] = row[2 * (size_t)x] ? 255 : row[2 * (size_t)x + 1];
        esp_image_spread_grey(row, width);
        break;
    case ROW_GREY:
        esp_image_spread_grey(row, width);
        break;
    case ROW_PALETTE:
        for (uint32_t x = width; x-- > 0;) /* from the back: the indices lie in front */
            memcpy(row + 3 * (size_t)x, job->palette[row[x]], 3);
        break;
    }
}

static void read_rows(struct png_job *job)
{
    const size_t stride = 3 * (size_t)job->out->width;
    const int n_pass = png_set_interlace_handling(job->png);

    png_read_update_info(job->png, job->info);
    if (png_get_rowbytes(job->png, job->info) > stride)
        png_error(job->png, "rows wider than expected");
    for (int pass = 0; pass < n_pass; pass++) {
        for (job->row = 0; job->row < job->out->height; job->row++) {
            uint8_t *row = job->out->rgb + job->row * stride;

            png_read_row(job->png, row, NULL);
            if (pass == n_pass - 1)
                widen(job, row, job->out->width);
        }
    }
    job->complete = true;
    png_read_end(job->png, NULL); /* for the checksums */
}

esp_status esp_png_decode(struct esp_image *out, const uint8_t *bytes, size_t n_bytes,
                          const struct esp_image_limits *limits, struct esp_err *err)
{
    esp_status st = check_header(bytes, n_bytes, limits, err);
    struct png_job *job = NULL;

    if (st)
        return st;
    job = calloc(1, sizeof *job);
    if (!job)
        return esp_fail(err, ESP_E_NOMEM, "PNG: decoder");
    job->at = bytes;
    job->left = n_bytes;
    job->out = out;
    if (setjmp(job->jump)) {
        if (job->complete && job->cut)
            st = ESP_OK; /* every pixel is there; Pillow does not mind a missing end either */
        else if (job->cut)
            st = esp_fail(err, ESP_E_FORMAT, "truncated PNG: the file ends in row %u of %u", job->row,
                          job->out->height);
        else
            st = esp_fail(err, ESP_E_FORMAT, "damaged PNG: %s", job->what);
        goto done;
    }
    job->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, job, on_error, on_warning);
    if (job->png)
        job->info = png_create_info_struct(job->png);
    if (!job->png || !job->info) {
        st = esp_fail(err, ESP_E_NOMEM, "PNG: decoder");
        goto done;
    }
    read_header(job);
    st = esp_image_alloc(out, "PNG", png_get_image_width(job->png, job->info),
                         png_get_image_height(job->png, job->info), limits, err);
    if (st)
        goto done;
    read_rows(job);
done:
    png_destroy_read_struct(&job->png, &job->info, NULL);
    free(job);
    return st;
}
