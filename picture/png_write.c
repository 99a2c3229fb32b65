/* libpng leaves by longjmp: all that changes between setjmp and longjmp lives in struct png_out, never in locals. */
#include "picture/png_write.h"

#include <errno.h>
#include <fcntl.h>
#include <png.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct png_out {
    jmp_buf jump;
    png_structp png;
    png_infop info;
    uint8_t *bytes;
    size_t n, n_room;
    bool no_memory;
    esp_status st;
    char what[160]; /* libpng's last complaint */
};

static void on_error(png_structp png, png_const_charp what)
{
    struct png_out *job = png_get_error_ptr(png);

    snprintf(job->what, sizeof job->what, "%s", what);
    longjmp(job->jump, 1);
}

static void on_warning(png_structp png, png_const_charp what)
{
    (void)png;
    (void)what;
}

static void on_write(png_structp png, png_bytep data, size_t n)
{
    struct png_out *job = png_get_io_ptr(png);

    if (n > job->n_room - job->n) {
        size_t n_room;
        uint8_t *grown = NULL;

        if (esp_add(&n_room, job->n_room, n) && esp_mul(&n_room, n_room, 2))
            grown = realloc(job->bytes, n_room);
        if (!grown) {
            job->no_memory = true;
            png_error(png, "out of memory");
        }
        job->bytes = grown;
        job->n_room = n_room;
    }
    memcpy(job->bytes + job->n, data, n);
    job->n += n;
}

static void on_flush(png_structp png)
{
    (void)png;
}

static void write_all(struct png_out *job, const uint8_t *pixels, uint32_t width, uint32_t height,
                      uint32_t n_channel)
{
    png_set_user_limits(job->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_write_fn(job->png, job, on_write, on_flush);
    png_set_IHDR(job->png, job->info, width, height, 8,
                 n_channel == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(job->png, job->info);
    for (uint32_t y = 0; y < height; y++)
        png_write_row(job->png, pixels + (size_t)y * width * n_channel);
    png_write_end(job->png, NULL);
}

esp_status esp_png_encode(uint8_t **out, size_t *n_bytes, const uint8_t *pixels, uint32_t width,
                          uint32_t height, uint32_t n_channel, struct esp_err *err)
{
    struct png_out *job;
    esp_status st;

    *out = NULL;
    *n_bytes = 0;
    if (width == 0 || height == 0 || (n_channel != 1 && n_channel != 3))
        return esp_fail(err, ESP_E_ARG, "PNG of %u x %u pixels with %u channels", width, height, n_channel);
    if (width > PNG_UINT_31_MAX || height > PNG_UINT_31_MAX)
        return esp_fail(err, ESP_E_LIMIT, "PNG of %u x %u pixels: too large for the format", width, height);
    job = calloc(1, sizeof *job);
    if (!job)
        return esp_fail(err, ESP_E_NOMEM, "PNG: encoder");
    if (setjmp(job->jump)) {
        job->st = job->no_memory
                      ? esp_fail(err, ESP_E_NOMEM, "PNG of %u x %u pixels", width, height)
                      : esp_fail(err, ESP_E_LIMIT, "PNG of %u x %u pixels: %s", width, height, job->what);
        goto done;
    }
    job->png = png_create_write_struct(PNG_LIBPNG_VER_STRING, job, on_error, on_warning);
    if (job->png)
        job->info = png_create_info_struct(job->png);
    if (!job->png || !job->info) {
        job->st = esp_fail(err, ESP_E_NOMEM, "PNG: encoder");
        goto done;
    }
    write_all(job, pixels, width, height, n_channel);
    *out = job->bytes;
    *n_bytes = job->n;
    job->bytes = NULL;
done:
    st = job->st;
    png_destroy_write_struct(&job->png, &job->info);
    free(job->bytes);
    free(job);
    return st;
}

/* @return 0, or errno */
static int write_file(int fd, const uint8_t *bytes, size_t n)
{
    while (n > 0) {
        const ssize_t r = write(fd, bytes, n);

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return errno;
        bytes += r;
        n -= (size_t)r;
    }
    return 0;
}

esp_status esp_png_write(const char *path, const uint8_t *pixels, uint32_t width, uint32_t height,
                         uint32_t n_channel, struct esp_err *err)
{
    struct stat info;
    uint8_t *bytes;
    size_t n;
    int fd, why;

    if (esp_png_encode(&bytes, &n, pixels, width, height, n_channel, err))
        return esp_err_prefix(err, "%s: ", path);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
    why = fd < 0 ? errno : write_file(fd, bytes, n);
    free(bytes);
    if (fd >= 0 && why && fstat(fd, &info) == 0 && S_ISREG(info.st_mode))
        unlink(path);
    if (fd >= 0 && close(fd) != 0 && !why)
        why = errno;
    return why ? esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(why)) : ESP_OK;
}
