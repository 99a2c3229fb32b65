/*
 * JPEG through libjpeg-turbo with the settings that Pillow leaves at their defaults: the accurate integer DCT
 * and smooth chroma upsampling. Corrupt entropy data only makes the library warn, and it goes on, as under
 * Pillow; a file that ends before the last row is complete is refused, as by Pillow.
 *
 * The library leaves by longjmp. All that changes between setjmp and longjmp lives in struct jpeg_job.
 */
#include "picture/image_codec.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

struct jpeg_job {
    struct jpeg_error_mgr error;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    struct jpeg_decompress_struct jpeg;
    jmp_buf jump;
    const struct esp_image_limits *limits;
    struct esp_image *out;
    uint8_t *cmyk; /* u8[width, 4]: one row, of four-component files only */
    bool cut;      /* the library asked for more than there is */
    bool complete; /* every row is in place */
    bool too_many; /* scans */
    int why;       /* the library's message code, and its words */
    char what[JMSG_LENGTH_MAX];
};

static struct jpeg_job *job_of(j_common_ptr any)
{
    return any->client_data;
}

static void on_error(j_common_ptr any)
{
    struct jpeg_job *job = job_of(any);

    job->why = any->err->msg_code;
    any->err->format_message(any, job->what);
    longjmp(job->jump, 1);
}

static void on_message(j_common_ptr any, int level)
{
    (void)any;
    (void)level;
}

static void on_output(j_common_ptr any)
{
    (void)any;
}

static void on_source(j_decompress_ptr jpeg)
{
    (void)jpeg;
}

static boolean on_empty(j_decompress_ptr jpeg)
{
    job_of((j_common_ptr)jpeg)->cut = true;
    ERREXIT(jpeg, JERR_INPUT_EOF);
    return FALSE;
}

static void on_skip(j_decompress_ptr jpeg, long n)
{
    if (n <= 0)
        return;
    if ((size_t)n > jpeg->src->bytes_in_buffer)
        (void)on_empty(jpeg);
    jpeg->src->next_input_byte += n;
    jpeg->src->bytes_in_buffer -= (size_t)n;
}

static void on_progress(j_common_ptr any)
{
    struct jpeg_job *job = job_of(any);

    if (job->jpeg.input_scan_number > 0 && (uint32_t)job->jpeg.input_scan_number > job->limits->max_scans) {
        job->too_many = true;
        ERREXIT(&job->jpeg, JERR_INPUT_EOF);
    }
}

static esp_status explain(const struct jpeg_job *job, struct esp_err *err)
{
    if (job->too_many)
        return esp_fail(err, ESP_E_LIMIT, "JPEG of more than %u scans", job->limits->max_scans);
    if (job->cut)
        return esp_fail(err, ESP_E_FORMAT, "truncated JPEG: the file ends %s",
                        job->jpeg.output_scanline ? "in the middle of the picture"
                                                  : "before the picture is complete");
    switch (job->why) {
    case JERR_OUT_OF_MEMORY:
    case JERR_NO_BACKING_STORE:
        return esp_fail(err, ESP_E_LIMIT, "JPEG of %u x %u pixels: decoding it takes more than %zu bytes",
                        job->jpeg.image_width, job->jpeg.image_height, job->limits->max_work_bytes);
    case JERR_IMAGE_TOO_BIG:
    case JERR_WIDTH_OVERFLOW:
        return esp_fail(err, ESP_E_LIMIT, "JPEG of %u x %u pixels: %s", job->jpeg.image_width,
                        job->jpeg.image_height, job->what);
    case JERR_BAD_PRECISION:
    case JERR_SOF_UNSUPPORTED:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_CCIR601_NOTIMPL:
    case JERR_FRACT_SAMPLE_NOTIMPL:
        return esp_fail(err, ESP_E_UNSUPPORTED, "JPEG of a kind that libjpeg cannot decode: %s", job->what);
    case JERR_EMPTY_IMAGE:
        return esp_fail(err, ESP_E_FORMAT, "JPEG of %u x %u pixels: nothing to see", job->jpeg.image_width,
                        job->jpeg.image_height);
    default:
        return esp_fail(err, ESP_E_FORMAT, "damaged JPEG: %s", job->what);
    }
}

/* A Huffman code has at least one bit, so every 8x8 block of the first component costs one; arithmetic coding
 * may do with less and is let through. */
static esp_status check_density(const struct jpeg_decompress_struct *jpeg, size_t n_bytes,
                                struct esp_err *err)
{
    const uint64_t n_block = ((uint64_t)jpeg->image_width / 8) * (jpeg->image_height / 8);
    const jpeg_component_info *first = &jpeg->comp_info[0];
    /* Factors of 1 to 4 each, so these stay far below 2^64. */
    const uint64_t n_first = n_block * (uint64_t)(first->h_samp_factor * first->v_samp_factor) /
                             (uint64_t)(jpeg->max_h_samp_factor * jpeg->max_v_samp_factor);

    if (!jpeg->arith_code && n_first / 8 > n_bytes)
        return esp_fail(err, ESP_E_FORMAT, "truncated JPEG: %zu bytes cannot hold %u x %u pixels", n_bytes,
                        jpeg->image_width, jpeg->image_height);
    return ESP_OK;
}

static esp_status read_header(struct jpeg_job *job, size_t n_bytes, struct esp_err *err)
{
    struct jpeg_decompress_struct *jpeg = &job->jpeg;
    esp_status st;

    jpeg_read_header(jpeg, TRUE);
    /* libjpeg-turbo 3 reads such headers, and decodes them by other functions. */
    if (jpeg->data_precision != 8)
        return esp_fail(err, ESP_E_UNSUPPORTED, "JPEG of a kind that we cannot decode: precision %d",
                        jpeg->data_precision);
    st = esp_image_check("JPEG", jpeg->image_width, jpeg->image_height, job->limits, err);
    if (!st)
        st = check_density(jpeg, n_bytes, err);
    if (st)
        return st;
    switch (jpeg->num_components) {
    case 1:
        jpeg->out_color_space = JCS_GRAYSCALE;
        break;
    case 3:
        jpeg->out_color_space = JCS_RGB;
        break;
    case 4:
        jpeg->out_color_space = JCS_CMYK;
        break;
    default:
        return esp_fail(err, ESP_E_UNSUPPORTED, "JPEG of %d components; 1, 3 and 4 are supported",
                        jpeg->num_components);
    }
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->do_fancy_upsampling = TRUE;
    return ESP_OK;
}

/* a * b / 255, rounded; exact for all levels. */
static unsigned mul_255(unsigned a, unsigned b)
{
    const unsigned t = a * b + 128;

    return (t + (t >> 8)) >> 8;
}

/* Inverted CMYK, in which a level says how much light is left: with c = 255 - C and so on, Pillow has
 * R = (255 - k) - round(c * (255 - k) / 255), never below 0. */
static void cmyk_to_rgb(uint8_t *rgb, const uint8_t *cmyk, uint32_t width)
{
    for (uint32_t x = 0; x < width; x++, rgb += 3, cmyk += 4) {
        const unsigned light = cmyk[3];

        for (int c = 0; c < 3; c++) {
            const unsigned ink = mul_255(255u - cmyk[c], light);
            rgb[c] = (uint8_t)(ink > light ? 0 : light - ink);
        }
    }
}

static esp_status read_rows(struct jpeg_job *job, struct esp_err *err)
{
    struct jpeg_decompress_struct *jpeg = &job->jpeg;
    const uint32_t width = job->out->width, height = job->out->height;

    jpeg_start_decompress(jpeg);
    if (jpeg->output_width != width || jpeg->output_height != height ||
        jpeg->output_components != jpeg->num_components)
        return esp_fail(err, ESP_E_INTERNAL, "JPEG: decoded size differs from the header's");
    if (jpeg->num_components == 4) {
        job->cmyk = malloc(4 * (size_t)width);
        if (!job->cmyk)
            return esp_fail(err, ESP_E_NOMEM, "JPEG: a row of CMYK");
    }
    while (jpeg->output_scanline < height) {
        uint8_t *row = job->out->rgb + 3 * (size_t)width * jpeg->output_scanline;
        JSAMPROW dst = job->cmyk ? job->cmyk : row;

        if (jpeg_read_scanlines(jpeg, &dst, 1) != 1)
            return esp_fail(err, ESP_E_INTERNAL, "JPEG: no row");
        if (jpeg->num_components == 1)
            esp_image_spread_grey(row, width);
        else if (job->cmyk)
            cmyk_to_rgb(row, job->cmyk, width);
    }
    job->complete = true;
    jpeg_finish_decompress(jpeg); /* reads on to the end marker */
    return ESP_OK;
}

esp_status esp_jpeg_decode(struct esp_image *out, const uint8_t *bytes, size_t n_bytes,
                           const struct esp_image_limits *limits, struct esp_err *err)
{
    esp_status st = ESP_OK;
    struct jpeg_job *job = calloc(1, sizeof *job);

    if (!job)
        return esp_fail(err, ESP_E_NOMEM, "JPEG: decoder");
    job->limits = limits;
    job->out = out;
    job->jpeg.err = jpeg_std_error(&job->error);
    job->jpeg.client_data = job;
    job->error.error_exit = on_error;
    job->error.emit_message = on_message;
    job->error.output_message = on_output;
    if (setjmp(job->jump)) {
        /* All rows are there when only the end marker is missing. */
        st = job->complete && job->cut ? ESP_OK : explain(job, err);
        goto done;
    }
    jpeg_create_decompress(&job->jpeg); /* keeps err and client_data */
    job->jpeg.mem->max_memory_to_use = (long)limits->max_work_bytes;
    job->source.next_input_byte = bytes;
    job->source.bytes_in_buffer = n_bytes;
    job->source.init_source = on_source;
    job->source.fill_input_buffer = on_empty;
    job->source.skip_input_data = on_skip;
    job->source.resync_to_restart = jpeg_resync_to_restart;
    job->source.term_source = on_source;
    job->jpeg.src = &job->source;
    job->progress.progress_monitor = on_progress;
    job->jpeg.progress = &job->progress;

    st = read_header(job, n_bytes, err);
    if (!st)
        st = esp_image_alloc(out, "JPEG", job->jpeg.image_width, job->jpeg.image_height, limits, err);
    if (!st)
        st = read_rows(job, err);
done:
    jpeg_destroy_decompress(&job->jpeg); /* fine when creation failed: it looks at mem, which is NULL then */
    free(job->cmyk);
    free(job);
    return st;
}
