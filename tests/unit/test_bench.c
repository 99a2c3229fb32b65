/* What bench makes of measurements: statistics, the share of a ceiling, and the picture. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/bench.h"
#include "model/file.h"
#include "picture/image.h"

static void close_to(double got, double want)
{
    if (!(fabs(got - want) <= 1e-9 * (1 + fabs(want))))
        fail_msg("%.12g, expected %.12g", got, want);
}

static void test_stats(void **state)
{
    static const struct {
        double v[5];
        size_t n;
        double median, q1, q3, min, max;
    } cases[] = {
        {{7}, 1, 7, 7, 7, 7, 7},
        {{4, 1}, 2, 2.5, 1.75, 3.25, 1, 4},
        {{3, 1, 2}, 3, 2, 1.5, 2.5, 1, 3},
        {{40, 10, 30, 20}, 4, 25, 17.5, 32.5, 10, 40},
        {{5, 4, 3, 2, 1}, 5, 3, 2, 4, 1, 5},
        {{0}, 0, 0, 0, 0, 0, 0},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double v[5];
        struct esp_bench_stats s;

        memcpy(v, cases[i].v, sizeof v);
        s = esp_bench_stats(v, cases[i].n);
        assert_int_equal(s.n, cases[i].n);
        close_to(s.median, cases[i].median);
        close_to(s.q1, cases[i].q1);
        close_to(s.q3, cases[i].q3);
        close_to(s.min, cases[i].min);
        close_to(s.max, cases[i].max);
    }
}

static void test_stats_of_json(void **state)
{
    struct esp_bench_stats s;
    json_t *good = json_loads("[3, 1.5, 2]", 0, NULL), *bad = json_loads("[1, \"2\"]", 0, NULL),
           *none = json_array();
    json_t *o;

    assert_true(esp_bench_stats_of(&s, good));
    close_to(s.median, 2);
    assert_false(esp_bench_stats_of(&s, bad));
    assert_false(esp_bench_stats_of(&s, none));
    assert_false(esp_bench_stats_of(&s, NULL));
    assert_true(esp_bench_stats_of(&s, good));
    o = esp_bench_stats_json(&s);
    close_to(json_number_value(json_object_get(o, "q1")), 1.75);
    assert_int_equal(json_integer_value(json_object_get(o, "n")), 3);
    json_decref(o);
    json_decref(good);
    json_decref(bad);
    json_decref(none);
}

/* Reading and computing overlap at best: the longer of the two counts. */
static void test_floor(void **state)
{
    close_to(esp_bench_floor(100, 1000, 10, 1000), 10);
    close_to(esp_bench_floor(100, 1000, 1000, 10), 100);
    close_to(esp_bench_floor(100, 1000, 0, 10), 100);
    close_to(esp_bench_floor(100, 1000, 10, 0), 10);
    close_to(esp_bench_floor(100, 1000, 0, 0), 0);
}

static const char results[] =
    "{\"model\": \"shape:x\", \"weights\": \"BF16\", \"layers\": [1, 2], \"of_layers\": [1, 2],"
    " \"device\": {\"name\": \"A device\", \"driver\": \"1\", \"variant\": \"plain\"},"
    " \"ceilings\": {\"read_rate\": 1000, \"flop_rate\": 10000}, \"load\": {\"seconds\": 1, \"bytes\": 8},"
    " \"phases\": ["
    "  {\"phase\": \"encode\", \"batch\": 1, \"rows\": 16, \"bytes\": 500, \"flop\": 20000, \"seconds\": [5, "
    "4, 3]},"
    "  {\"phase\": \"prefill\", \"batch\": 1, \"rows\": 20, \"bytes\": 500, \"flop\": 4000, \"seconds\": [1, "
    "1, 1]},"
    "  {\"phase\": \"decode\", \"batch\": 4, \"rows\": 4, \"bytes\": 400, \"flop\": 1000, \"seconds\": [0.5, "
    "0.5],"
    "   \"profiled\": 1, \"kernels\": ["
    "    {\"name\": \"a\", \"n\": 4, \"k\": 2, \"calls\": 2, \"seconds\": 0.3, \"bytes\": 150, \"flop\": "
    "300},"
    "    {\"name\": \"b\", \"n\": 0, \"k\": 0, \"calls\": 1, \"seconds\": 0.1, \"bytes\": 0, \"flop\": "
    "0}]}]}";

static double value(const json_t *results_, size_t phase, const char *key)
{
    return json_number_value(
        json_object_get(json_array_get(json_object_get(results_, "phases"), phase), key));
}

static void test_evaluate(void **state)
{
    json_t *r = json_loads(results, 0, NULL), *kernel;

    assert_non_null(r);
    assert_int_equal(esp_bench_evaluate(r, NULL), ESP_OK);
    close_to(value(r, 0, "rate"), 0.25);
    close_to(value(r, 0, "flop_rate"), 5000);
    close_to(value(r, 0, "roofline"), 0.5); /* 2 s of computing at best, 4 s taken */
    close_to(value(r, 1, "rate"), 20);
    close_to(value(r, 1, "roofline"), 0.5); /* 0.5 s of reading at best */
    close_to(value(r, 2, "rate"), 8);
    close_to(value(r, 2, "read_rate"), 800);
    close_to(value(r, 2, "roofline"), 0.8);
    close_to(json_number_value(json_object_get(r, "first_token")), 5);
    kernel = json_array_get(json_object_get(json_array_get(json_object_get(r, "phases"), 2), "kernels"), 0);
    close_to(json_number_value(json_object_get(kernel, "share")), 0.75);
    close_to(json_number_value(json_object_get(kernel, "roofline")), 0.5);
    json_decref(r);
}

/* What a worker may not leave out. */
static void test_evaluate_bad(void **state)
{
    static const char *const keys[] = {"ceilings", "phases"}, *const of_phase[] = {"phase", "seconds",
                                                                                   "bytes", "flop"};
    struct esp_err err = {0};

    for (size_t i = 0; i < 2; i++) {
        json_t *r = json_loads(results, 0, NULL);
        json_object_del(r, keys[i]);
        assert_int_equal(esp_bench_evaluate(r, &err), ESP_E_PROTO);
        json_decref(r);
    }
    for (size_t i = 0; i < 4; i++) {
        json_t *r = json_loads(results, 0, NULL);
        json_object_del(json_array_get(json_object_get(r, "phases"), 1), of_phase[i]);
        assert_int_equal(esp_bench_evaluate(r, &err), ESP_E_PROTO);
        json_decref(r);
    }
}

/* Pixels of a colour. */
static uint32_t count(const struct esp_image *im, uint8_t r, uint8_t g, uint8_t b)
{
    uint32_t n = 0;

    for (size_t i = 0; i < (size_t)im->width * im->height; i++)
        n += im->rgb[3 * i] == r && im->rgb[3 * i + 1] == g && im->rgb[3 * i + 2] == b;
    return n;
}

/* Bars are as long as the shares are: the blue ones together 12.5 + 50 + 80 %, the orange ones 50 + 40 + 20 %. */
static void test_plot(void **state)
{
    const uint8_t blue[3] = {46, 104, 178}, orange[3] = {222, 124, 32};
    char path[] = "/tmp/espalier-plot-XXXXXX", *file;
    json_t *r = json_loads(results, 0, NULL), *report = json_object(), *devices = json_array();
    struct esp_image im;
    struct esp_err err = {0};
    size_t n_file;
    uint32_t n_blue, n_orange;
    const int fd = mkstemp(path);

    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(esp_bench_evaluate(r, &err), ESP_OK);
    json_array_append_new(devices, r);
    json_object_set_new(report, "devices", devices);
    json_object_set_new(report, "cluster", json_null());
    assert_int_equal(esp_bench_plot(report, path, &err), ESP_OK);
    assert_int_equal(esp_file_read(&file, &n_file, path, 1 << 20, &err), ESP_OK);
    assert_int_equal(esp_image_decode(&im, file, n_file, NULL, &err), ESP_OK);
    n_blue = count(&im, blue[0], blue[1], blue[2]);
    n_orange = count(&im, orange[0], orange[1], orange[2]);
    /* 560 pixels by 14 are all of a bar; a line of text in the colour beside them takes a few hundred pixels */
    assert_in_range(n_blue, (uint32_t)(1.425 * 560 * 14) - 40, (uint32_t)(1.425 * 560 * 14) + 2500);
    assert_in_range(n_orange, (uint32_t)(1.1 * 560 * 14) - 40, (uint32_t)(1.1 * 560 * 14) + 2500);
    esp_image_finish(&im);
    free(file);
    json_decref(report);
    unlink(path);
    assert_int_not_equal(esp_bench_plot(json_null(), "/nowhere/a.png", &err), ESP_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stats),    cmocka_unit_test(test_stats_of_json), cmocka_unit_test(test_floor),
        cmocka_unit_test(test_evaluate), cmocka_unit_test(test_evaluate_bad),  cmocka_unit_test(test_plot),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
