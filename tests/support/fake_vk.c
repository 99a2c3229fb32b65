/* The device that the fake stage runs on: nothing but a report. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/bench.h"
#include "worker/tune.h"
#include "worker/vk_device.h"

static struct esp_vk_report report = {.name = "Fake",
                                      .driver = "fake 1",
                                      .variant = "fake",
                                      .type = 4,
                                      .memory_bytes = 1 << 30,
                                      .max_alloc_bytes = 1 << 30};

esp_status esp_vk_open(struct esp_vk **out, const char *device, const struct esp_vk_options *options,
                       const struct esp_log *log, struct esp_err *err)
{
    *out = NULL;
    if (device && strcmp(device, "0") != 0)
        return esp_fail(err, ESP_E_DEVICE, "--device %s: there is only 0, Fake", device);
    *out = calloc(1, sizeof **out);
    return *out ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "fake device");
}

void esp_vk_close(struct esp_vk **vk)
{
    free(*vk);
    *vk = NULL;
}

const struct esp_vk_report *esp_vk_report(const struct esp_vk *vk)
{
    return &report;
}

esp_status esp_vk_measure(struct esp_vk *vk, struct esp_err *err)
{
    report.bandwidth = 1e9;
    report.matmul_rate = 1e10;
    return ESP_OK;
}

esp_status esp_vk_tune(struct esp_vk *vk, bool redo, FILE *out, struct esp_err *err)
{
    if (out)
        fputs("Fake: nothing to choose\n", out);
    return ESP_OK;
}

esp_status esp_vk_list(FILE *out, bool json, struct esp_err *err)
{
    fputs(json ? "[{\"name\": \"Fake\"}]\n" : "0  Fake\n", out);
    return ESP_OK;
}

esp_status esp_bench_run(const struct esp_bench_options *options, FILE *out, const struct esp_log *log,
                         struct esp_err *err)
{
    return esp_fail(err, ESP_E_UNSUPPORTED, "%s: the fake device takes no time", options->model);
}
