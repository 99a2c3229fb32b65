#include "tests/support/golden.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"

/* A copy of one tensor's bytes where the compiler may read them as numbers; kept until the file is closed. */
struct copy {
    struct copy *next;
    max_align_t bytes[];
};

struct esp_golden {
    char *path;
    struct esp_safetensors *file;
    struct copy *copies;
};

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

struct esp_golden *esp_golden_open(const char *path)
{
    struct esp_err err;
    struct esp_golden *g = calloc(1, sizeof *g);

    if (!g || !(g->path = strdup(path)))
        die("%s: out of memory", path);
    if (esp_safetensors_open(&g->file, path, &err))
        die("golden: %s", err.text);
    return g;
}

void esp_golden_close(struct esp_golden **g)
{
    struct esp_golden *p = *g;

    *g = NULL;
    if (!p)
        return;
    for (struct copy *c = p->copies, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    esp_safetensors_destroy(&p->file);
    free(p->path);
    free(p);
}

bool esp_golden_has(const struct esp_golden *g, const char *name)
{
    return esp_safetensors_find(g->file, name) != NULL;
}

static const struct esp_tensor *get(const struct esp_golden *g, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));

static const struct esp_tensor *get(const struct esp_golden *g, const char *fmt, va_list ap)
{
    char name[256];
    const struct esp_tensor *t;

    vsnprintf(name, sizeof name, fmt, ap);
    t = esp_safetensors_find(g->file, name);
    if (!t)
        die("%s: no tensor %s", g->path, name);
    return t;
}

const struct esp_tensor *esp_golden_tensor(const struct esp_golden *g, const char *name, ...)
{
    const struct esp_tensor *t;
    va_list ap;

    va_start(ap, name);
    t = get(g, name, ap);
    va_end(ap);
    return t;
}

static const void *typed(struct esp_golden *g, size_t *n_elem, enum esp_dtype dtype, const char *name,
                         va_list ap) __attribute__((format(printf, 4, 0)));

static const void *typed(struct esp_golden *g, size_t *n_elem, enum esp_dtype dtype, const char *name,
                         va_list ap)
{
    const struct esp_tensor *t = get(g, name, ap);
    struct copy *c;

    if (t->dtype != dtype)
        die("%s: tensor %s is %s, not %s", g->path, t->name, t->stored_dtype, esp_dtype_name(dtype));
    c = malloc(sizeof *c + t->n_bytes);
    if (!c)
        die("%s: tensor %s: out of memory", g->path, t->name);
    c->next = g->copies;
    g->copies = c;
    memcpy(c->bytes, t->data, t->n_bytes);
    *n_elem = esp_tensor_n_elem(t);
    return c->bytes;
}

const float *esp_golden_f32(struct esp_golden *g, size_t *n_elem, const char *name, ...)
{
    const float *p;
    va_list ap;

    va_start(ap, name);
    p = typed(g, n_elem, ESP_F32, name, ap);
    va_end(ap);
    return p;
}

const int32_t *esp_golden_i32(struct esp_golden *g, size_t *n_elem, const char *name, ...)
{
    const int32_t *p;
    va_list ap;

    va_start(ap, name);
    p = typed(g, n_elem, ESP_I32, name, ap);
    va_end(ap);
    return p;
}

const uint8_t *esp_golden_u8(struct esp_golden *g, size_t *n_elem, const char *name, ...)
{
    const uint8_t *p;
    va_list ap;

    va_start(ap, name);
    p = typed(g, n_elem, ESP_U8, name, ap);
    va_end(ap);
    return p;
}

size_t esp_tensor_n_elem(const struct esp_tensor *t)
{
    size_t n = 1; /* opening the file has shown that the product fits */

    for (uint32_t i = 0; i < t->n_dim; i++)
        n *= t->shape[i];
    return n;
}

struct esp_distance esp_distance_f32(const float *got, const float *want, size_t n_elem)
{
    struct esp_distance d = {0, 0, 0, true};
    double error = 0, norm = 0;

    for (size_t i = 0; i < n_elem; i++) {
        double diff = (double)got[i] - want[i];
        if (!isfinite(got[i]) || !isfinite(want[i])) {
            d = (struct esp_distance){INFINITY, INFINITY, i, false};
            return d;
        }
        error += diff * diff;
        norm += (double)want[i] * want[i];
        if (fabs(diff) > d.max_abs) {
            d.max_abs = fabs(diff);
            d.worst = i;
        }
    }
    d.rel_l2 = error > 0 ? sqrt(error / norm) : 0;
    return d;
}

bool esp_close_f32(const char *what, const float *got, const float *want, size_t n_elem, size_t n_col,
                   double rel_l2_max, double max_abs_max)
{
    struct esp_distance d = esp_distance_f32(got, want, n_elem);

    if (d.finite && d.rel_l2 <= rel_l2_max && d.max_abs <= max_abs_max)
        return true;
    if (n_col == 0)
        n_col = 1;
    fprintf(stderr,
            "%s: relative L2 %.3g (bound %.3g), max abs %.3g (bound %.3g); worst at %zu = [%zu, %zu]: ", what,
            d.rel_l2, rel_l2_max, d.max_abs, max_abs_max, d.worst, d.worst / n_col, d.worst % n_col);
    fprintf(stderr, "got %.9g, expected %.9g%s\n", (double)got[d.worst], (double)want[d.worst],
            d.finite ? "" : ": not finite");
    return false;
}
