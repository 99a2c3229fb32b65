/**
 * What a simulated worker has for a device: a profile, and counters of what it was asked to do. A worker conversation
 * gets it as its `vk`; sim_stage.c is the stage on it, and sim_vk.c makes one where worker/main.c opens a device.
 */
#ifndef ESP_TEST_SIM_DEVICE_H
#define ESP_TEST_SIM_DEVICE_H

#include <stdatomic.h>

#include "proto/wire.h"
#include "tests/sim/sim_profile.h"
#include "worker/vk_device.h"

/** Since the device was made; safe to read from any thread. */
struct sim_counters {
    atomic_ullong asked_ns; /* the profile's times of all encodes and steps */
    atomic_ullong taken_ns; /* what they took: sleeps end late, most of all on a busy machine */
    atomic_ullong n_steps, n_decode_rows, n_prefill_rows, n_pictures;
    atomic_ullong n_loads, load_bytes;
    atomic_ullong kv_bytes; /* sent away and taken in */
};

struct sim_device {
    struct esp_vk vk; /* first: the conversation knows no more of it; its report is the profile's */
    struct sim_profile profile;
    uint64_t draw; /* state of the jitter */
    struct sim_counters count;
};

/** Fills *device. Errors: as sim_profile_rates. */
esp_status sim_device_init(struct sim_device *device, const struct sim_profile *profile,
                           const struct esp_config *config, struct esp_err *err);

/** Sleeps for as long as so many bytes take at a rate; 0: no time at all. */
void sim_device_copy(uint64_t n_bytes, double bytes_per_second);

/** The device report of a Hello; strings are the device's. */
struct esp_msg_device sim_device_report(const struct sim_device *device);

/** Which profile and which model's config esp_vk_open is to open, for worker/main.c: the caller's, for good. */
void sim_vk_set(const struct sim_profile *profile, const struct esp_config *config);

#endif
