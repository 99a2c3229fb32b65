#include "tools/scenes/jpeg.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

/* libjpeg leaves by longjmp: what changes after setjmp lives here. */
struct jpeg_job {
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr error;
    jmp_buf jump;
    unsigned char *bytes;
    unsigned long n_bytes;
    char what[JMSG_LENGTH_MAX];
};

static void on_error(j_common_ptr any)
{
    struct jpeg_job *job = any->client_data;

    any->err->format_message(any, job->what);
    longjmp(job->jump, 1);
}

/* False if the library gave up; job->what says why. */
static bool compress(struct jpeg_job *job, const uint8_t *rgb, uint32_t width, uint32_t height, int quality)
{
    struct jpeg_compress_struct *jpeg = &job->jpeg;

    if (setjmp(job->jump))
        return false;
    jpeg_create_compress(jpeg);
    jpeg_mem_dest(jpeg, &job->bytes, &job->n_bytes);
    jpeg->image_width = width;
    jpeg->image_height = height;
    jpeg->input_components = 3;
    jpeg->in_color_space = JCS_RGB;
    jpeg_set_defaults(jpeg);
    jpeg_set_quality(jpeg, quality, TRUE);
    jpeg_start_compress(jpeg, TRUE);
    while (jpeg->next_scanline < height) {
        JSAMPROW row = (JSAMPROW)(rgb + (size_t)jpeg->next_scanline * width * 3);
        jpeg_write_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_compress(jpeg);
    return true;
}

esp_status esp_jpeg_encode(uint8_t **out, size_t *n_bytes, const uint8_t *rgb, uint32_t width,
                           uint32_t height, int quality, struct esp_err *err)
{
    struct jpeg_job *job = calloc(1, sizeof *job);
    esp_status st = ESP_OK;

    *out = NULL;
    if (!job)
        return esp_fail(err, ESP_E_NOMEM, "a JPEG of %u x %u", width, height);
    job->jpeg.err = jpeg_std_error(&job->error);
    job->jpeg.client_data = job;
    job->error.error_exit = on_error;
    if (compress(job, rgb, width, height, quality)) {
        *out = job->bytes;
        *n_bytes = job->n_bytes;
    } else {
        /* The bytes so far are lost: where the buffer has grown, job->bytes is the one that libjpeg has freed. */
        st = esp_fail(err, ESP_E_ARG, "a JPEG of %u x %u: %s", width, height, job->what);
    }
    jpeg_destroy_compress(&job->jpeg);
    free(job);
    return st;
}
