/* What bench has measured, as tables. */
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/figures.h"

#define MAX_KERNELS 12 /* of a phase, shown; what is left out is summed up */

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static double median(const json_t *o, const char *key)
{
    return number(json_object_get(o, key), "median");
}

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

static int at(const json_t *list, size_t i)
{
    return (int)json_integer_value(json_array_get(list, i));
}

static esp_status flushed(struct esp_err *err)
{
    return fflush(stdout) == 0 ? ESP_OK : esp_fail(err, ESP_E_IO, "standard output cannot be written");
}

/* "3.61 s  (3.60 s - 3.65 s)" in columns */
static void print_time(const json_t *time)
{
    char spread[80];

    snprintf(spread, sizeof spread, "%s - %s", esp_figure_seconds(number(time, "q1")).s,
             esp_figure_seconds(number(time, "q3")).s);
    printf("  %9s  %-21s", esp_figure_seconds(number(time, "median")).s, spread);
}

/* Three digits, whatever the size. */
static void print_rate(double v)
{
    if (v < 1)
        printf("  %8.3f", v);
    else if (v < 1000)
        printf("  %8.3g", v);
    else
        printf("  %8.0f", v);
}

static void print_head(const json_t *r)
{
    const json_t *device = json_object_get(r, "device"), *layers = json_object_get(r, "layers");
    const json_t *of = json_object_get(r, "of_layers"), *ceilings = json_object_get(r, "ceilings");
    const json_t *load = json_object_get(r, "load");
    const double seconds = number(load, "seconds"), bytes = number(load, "bytes");

    printf("%s, %s, %s kernels\n", text(device, "name"), text(device, "driver"), text(device, "variant"));
    printf(
        "%s, %s: %d of %d encoder layers, %d of %d decoder layers; picture of %.0f tokens, prefix of %.0f\n",
        text(r, "model"), text(r, "weights"), at(layers, 0), at(of, 0), at(layers, 1), at(of, 1),
        number(r, "image_tokens"), number(r, "prefix"));
    printf("%s of weights %s in %s (%.2f GB/s); KV cache %s, scratch %s\n", esp_figure_bytes(bytes).s,
           json_is_true(json_object_get(r, "made")) ? "made up and packed" : "loaded",
           esp_figure_seconds(seconds).s, seconds > 0 ? bytes / seconds * 1e-9 : 0,
           esp_figure_bytes(number(r, "kv_bytes")).s, esp_figure_bytes(number(r, "scratch_bytes")).s);
    printf("ceilings of the device, measured: reads %.1f GB/s, computes %.0f GFLOP/s in float32\n\n",
           number(ceilings, "read_rate") * 1e-9, number(ceilings, "flop_rate") * 1e-9);
}

static void phase_label(char out[48], const json_t *p)
{
    if (strcmp(text(p, "phase"), "decode") == 0)
        snprintf(out, 48, "decode, %.0f at once", number(p, "batch"));
    else
        snprintf(out, 48, "%.30s", text(p, "phase"));
}

static void print_phase(const json_t *p)
{
    char label[48];

    phase_label(label, p);
    printf("%-20s", label);
    print_time(json_object_get(p, "time"));
    print_rate(number(p, "rate"));
    printf(" %-10s", strcmp(text(p, "phase"), "encode") == 0 ? "pictures/s" : "tokens/s");
    print_rate(number(p, "read_rate") * 1e-9);
    print_rate(number(p, "flop_rate") * 1e-9);
    printf("  %7.1f %%\n", 100 * number(p, "roofline"));
}

/* The i-th slowest kernel; a few dozen, so no need to be clever. */
static const json_t *slowest(const json_t *kernels, size_t i)
{
    size_t n, j;
    const json_t *k, *other;

    json_array_foreach(kernels, n, k)
    {
        size_t before = 0;
        json_array_foreach(kernels, j, other)
        {
            const double a = number(other, "seconds"), b = number(k, "seconds");
            before += a > b || (a == b && j < n);
        }
        if (before == i)
            return k;
    }
    return NULL;
}

static void print_kernel(const json_t *k, double runs)
{
    char shape[32] = "";

    if (number(k, "n") > 0)
        snprintf(shape, sizeof shape, "%.0f x %.0f", number(k, "n"), number(k, "k"));
    printf("  %-24s  %14s  %6.0f  %9s  %5.1f %%", text(k, "name"), shape, number(k, "calls") / runs,
           esp_figure_seconds(number(k, "seconds") / runs).s, 100 * number(k, "share"));
    if (number(k, "flop") > 0 || number(k, "bytes") > 0) {
        print_rate(number(k, "read_rate") * 1e-9);
        print_rate(number(k, "flop_rate") * 1e-9);
        printf("  %7.1f %%", 100 * number(k, "roofline"));
    }
    printf("\n");
}

static void print_kernels(const json_t *p)
{
    const json_t *kernels = json_object_get(p, "kernels");
    const double runs = number(p, "profiled");
    const size_t n = json_array_size(kernels);
    double rest = 0;
    char label[48];

    if (n == 0 || runs <= 0)
        return;
    phase_label(label, p);
    printf("\n%-26s  %14s  %6s  %9s  %7s  %8s  %8s  %9s\n", label, "rows x columns", "calls", "time", "share",
           "GB/s", "GFLOP/s", "roofline");
    for (size_t i = 0; i < n; i++) {
        const json_t *k = slowest(kernels, i);
        if (i < MAX_KERNELS)
            print_kernel(k, runs);
        else
            rest += number(k, "seconds") / runs;
    }
    if (rest > 0)
        printf("  %zu more, together %s\n", n - MAX_KERNELS, esp_figure_seconds(rest).s);
}

esp_status esp_bench_print_device(const json_t *r, struct esp_err *err)
{
    const json_t *phases = json_object_get(r, "phases"), *p;
    size_t i;

    print_head(r);
    printf("%-20s  %9s  %-21s  %19s  %8s  %8s  %9s\n", "", "median", "quartiles", "", "GB/s", "GFLOP/s",
           "roofline");
    json_array_foreach(phases, i, p) print_phase(p);
    if (json_is_number(json_object_get(r, "first_token")))
        printf("first token (encode and prefill): %s\n", esp_figure_seconds(number(r, "first_token")).s);
    json_array_foreach(phases, i, p) print_kernels(p);
    printf("\n");
    return flushed(err);
}

/* ---- a cluster ---- */

static void print_stages(const json_t *r)
{
    const json_t *stages = json_object_get(r, "stages"), *s;
    size_t i;

    printf("%-16s  %-9s  %-9s  %12s  %14s  %s\n", "worker", "encoder", "decoder", "a token", "bytes a token",
           "device");
    json_array_foreach(stages, i, s)
    {
        const json_t *enc = json_object_get(s, "encoder"), *dec = json_object_get(s, "decoder");
        printf("%-16s  %-9s  %-9s  %12s  %14.0f  %s, %s\n", text(s, "worker"),
               esp_figure_layers((uint32_t)at(enc, 0), (uint32_t)at(enc, 1)).s,
               esp_figure_layers((uint32_t)at(dec, 0), (uint32_t)at(dec, 1)).s,
               esp_figure_seconds(number(s, "decode_compute")).s, number(s, "decode_bytes"),
               text(s, "device"), text(s, "variant"));
    }
}

esp_status esp_bench_print_cluster(const json_t *r, struct esp_err *err)
{
    const json_t *decode = json_object_get(r, "decode"), *hop = json_object_get(r, "hop"), *d;
    const json_t *request = json_object_get(r, "request");
    size_t i;

    printf("%s, %s weights, picture of %.0f tokens, prefix of %.0f", text(r, "model"),
           json_is_string(json_object_get(r, "weights")) ? text(r, "weights") : "its own",
           number(r, "image_tokens"), number(r, "prefix"));
    if (number(r, "load") > 0)
        printf("; ready after %s", esp_figure_seconds(number(r, "load")).s);
    printf("\n\n%-24s  %9s  %-21s\n", "one request alone", "median", "quartiles");
    static const char *const keys[] = {"first_token", "encode", "prefill"};
    static const char *const names[] = {"first token", "  of it encoding", "  of it prefill"};
    for (size_t k = 0; k < 3; k++) {
        printf("%-24s", names[k]);
        print_time(json_object_get(request, keys[k]));
        printf("\n");
    }
    if (json_array_size(decode) > 0)
        printf("\n%-24s  %9s  %-21s  %8s\n", "decode: token to token", "median", "quartiles", "tokens/s");
    json_array_foreach(decode, i, d)
    {
        printf("%3.0f %-20s", number(d, "batch"), number(d, "batch") == 1 ? "session" : "sessions");
        print_time(json_object_get(d, "interval"));
        print_rate(number(d, "tokens_per_second"));
        printf("\n");
    }
    printf("\n");
    print_stages(r);
    if (json_is_object(hop))
        printf("\none session's token: %s, of which stages compute %s and wait %s; %.0f hops, %s each; %.0f "
               "bytes on the wire\n",
               esp_figure_seconds(number(hop, "token")).s, esp_figure_seconds(number(hop, "compute")).s,
               esp_figure_seconds(number(hop, "queue")).s, number(hop, "hops"),
               esp_figure_seconds(number(hop, "seconds")).s, number(hop, "bytes"));
    printf("a request's picture and prompt: %s between stages\n",
           esp_figure_bytes(median(request, "bytes")).s);
    return flushed(err);
}
