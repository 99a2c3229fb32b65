/**
 * A worker's conversation: joins the coordinator, takes placements, passes work to the stage and results on.
 *
 * Linked with whatever implements worker/stage.h, so it can be tested without a device.
 */
#ifndef ESP_WORKER_SERVE_H
#define ESP_WORKER_SERVE_H

#include "model/checkpoint.h"
#include "proto/keys.h"
#include "proto/log.h"
#include "proto/wire.h"
#include "worker/shelf.h"

struct esp_worker_options {
    const char *name;             /* 1 .. 63 of [A-Za-z0-9._-] */
    const char *connect;          /* the coordinator's endpoint */
    const char *bind;             /* where other stages shall dial; a port may be * */
    const char *advertise_host;   /* told to others where bind names every interface; NULL: 127.0.0.1 */
    bool insecure;                /* bind may be an endpoint that strangers reach */
    const struct esp_keys *keys;  /* a worker's; NULL: none */
    struct esp_msg_device device; /* for Hello */
    uint8_t fingerprint[ESP_FINGERPRINT_BYTES];
    bool streams; /* no checkpoint here: weights come from the coordinator, and the fingerprint is zeros */
    struct esp_vk *vk;          /* with streams: the device, for the runner's thread until the return */
    const char *cache_dir;      /* with streams: as for esp_depot_create */
    uint64_t cache_limit_bytes; /* likewise */
    int stop_fd;                /* once readable, the worker says Bye and ends; -1: none */
    int stop_timeout_ms;        /* how long the end waits for the device call under way */
    const struct esp_log *log;
};

/**
 * Serves until stop_fd is readable or the coordinator says Bye.
 *
 * @param options     borrowed; the shelf likewise, but used by a thread of its own until the return
 * @param still_busy  set if the device call under way outlasted stop_timeout_ms: that thread then still uses the shelf,
 * its device and its checkpoint, so nothing may be destroyed and the process must end by _exit
 * @return ESP_OK for both ways to end named above; otherwise what the coordinator refused us for (text starts
 * with "coordinator refuses"), ESP_E_DEVICE after the coordinator was told, ESP_E_ARG or ESP_E_IO
 * (endpoints), ESP_E_NOMEM.
 */
esp_status esp_worker_serve(const struct esp_worker_options *options, struct esp_shelf *shelf,
                            bool *still_busy, struct esp_err *err);

#endif
