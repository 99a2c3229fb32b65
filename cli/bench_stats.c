#include "cli/bench_stats.h"

#include <stdlib.h>
#include <string.h>

#include "cli/report_json.h"

static int rising(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* @param v  sorted, n of them, at least one */
static double quantile(const double *v, size_t n, double share)
{
    const double at = share * (double)(n - 1);
    const size_t i = (size_t)at;

    return i + 1 < n ? v[i] + (at - (double)i) * (v[i + 1] - v[i]) : v[n - 1];
}

struct esp_bench_stats esp_bench_stats(double *v, size_t n)
{
    struct esp_bench_stats s = {.n = n};

    if (n == 0)
        return s;
    qsort(v, n, sizeof *v, rising);
    s.median = quantile(v, n, 0.5);
    s.q1 = quantile(v, n, 0.25);
    s.q3 = quantile(v, n, 0.75);
    s.min = v[0];
    s.max = v[n - 1];
    return s;
}

bool esp_bench_stats_of(struct esp_bench_stats *out, const json_t *list)
{
    const size_t n = json_array_size(list);
    double *v = n ? calloc(n, sizeof *v) : NULL;
    bool ok = v != NULL;

    memset(out, 0, sizeof *out);
    for (size_t i = 0; ok && i < n; i++) {
        ok = json_is_number(json_array_get(list, i));
        v[i] = json_number_value(json_array_get(list, i));
    }
    if (ok)
        *out = esp_bench_stats(v, n);
    free(v);
    return ok;
}

json_t *esp_bench_stats_json(const struct esp_bench_stats *s)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "n", json_integer((json_int_t)s->n));
    SET(o, "median", esp_json_number(s->median));
    SET(o, "q1", esp_json_number(s->q1));
    SET(o, "q3", esp_json_number(s->q3));
    SET(o, "min", esp_json_number(s->min));
    SET(o, "max", esp_json_number(s->max));
    if (!ok)
        json_decref(o);
    return ok ? o : NULL;
}

double esp_bench_floor(double bytes, double flop, double read_rate, double flop_rate)
{
    const double reading = read_rate > 0 ? bytes / read_rate : 0;
    const double computing = flop_rate > 0 ? flop / flop_rate : 0;

    return reading > computing ? reading : computing;
}
