/* The device that a simulated worker opens: nothing but a profile. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/sim/sim_device.h"
#include "worker/bench.h"
#include "worker/tune.h"

static const struct sim_profile *the_profile;
static const struct esp_config *the_config;

void sim_vk_set(const struct sim_profile *profile, const struct esp_config *config)
{
    the_profile = profile;
    the_config = config;
}

esp_status sim_device_init(struct sim_device *device, const struct sim_profile *profile,
                           const struct esp_config *config, struct esp_err *err)
{
    struct esp_vk_report *r = &device->vk.report;

    memset(device, 0, sizeof *device);
    device->profile = *profile;
    device->draw = profile->seed;
    snprintf(r->name, sizeof r->name, "%s", profile->name);
    snprintf(r->driver, sizeof r->driver, "simulated");
    snprintf(r->variant, sizeof r->variant, "simulated");
    r->type = VK_PHYSICAL_DEVICE_TYPE_OTHER;
    r->memory_bytes = r->max_alloc_bytes = profile->memory_bytes;
    return sim_profile_rates(&r->bandwidth, &r->matmul_rate, profile, config, err);
}

void sim_device_copy(uint64_t n_bytes, double rate)
{
    const uint64_t ns = rate > 0 ? (uint64_t)(1e9 * (double)n_bytes / rate) : 0;
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};

    while (ns > 0 && nanosleep(&t, &t) != 0 && errno == EINTR)
        ;
}

struct esp_msg_device sim_device_report(const struct sim_device *device)
{
    const struct esp_vk_report *r = &device->vk.report;

    return (struct esp_msg_device){.name = r->name,
                                   .driver = r->driver,
                                   .variant = r->variant,
                                   .type = r->type,
                                   .memory_bytes = r->memory_bytes,
                                   .max_alloc_bytes = r->max_alloc_bytes,
                                   .bandwidth = r->bandwidth,
                                   .matmul_rate = r->matmul_rate};
}

/* ---- worker/vk_device.h ---- */

esp_status esp_vk_open(struct esp_vk **out, const char *device, const struct esp_vk_options *options,
                       const struct esp_log *log, struct esp_err *err)
{
    struct sim_device *d;
    esp_status st;

    *out = NULL;
    if (!the_profile)
        return esp_fail(err, ESP_E_DEVICE, "this worker simulates: it needs --simulate PROFILE.json");
    if (device)
        return esp_fail(err, ESP_E_DEVICE, "--device %s: a simulated worker has none", device);
    d = malloc(sizeof *d);
    if (!d)
        return esp_fail(err, ESP_E_NOMEM, "a simulated device");
    st = sim_device_init(d, the_profile, the_config, err);
    if (st) {
        free(d);
        return st;
    }
    if (options && options->memory_limit_bytes && options->memory_limit_bytes < d->vk.report.memory_bytes)
        d->vk.report.memory_bytes = options->memory_limit_bytes;
    *out = &d->vk;
    return ESP_OK;
}

void esp_vk_close(struct esp_vk **vk)
{
    free(*vk); /* its sim_device begins there */
    *vk = NULL;
}

const struct esp_vk_report *esp_vk_report(const struct esp_vk *vk)
{
    return &vk->report;
}

esp_status esp_vk_measure(struct esp_vk *vk, struct esp_err *err)
{
    return ESP_OK; /* the profile says it all */
}

esp_status esp_vk_tune(struct esp_vk *vk, bool redo, FILE *out, struct esp_err *err)
{
    return ESP_OK;
}

esp_status esp_vk_list(FILE *out, bool json, struct esp_err *err)
{
    fputs(json ? "[]\n" : "simulated: --simulate PROFILE.json\n", out);
    return ESP_OK;
}

esp_status esp_bench_run(const struct esp_bench_options *options, FILE *out, const struct esp_log *log,
                         struct esp_err *err)
{
    return esp_fail(err, ESP_E_UNSUPPORTED, "%s: a simulated device has no speed of its own", options->model);
}
