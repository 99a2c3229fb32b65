#include "coordinator/roster.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_EPOCH (UINT64_C(1) << 62) /* the highest one still has others above it */

struct esp_roster {
    uint8_t fingerprint[ESP_FINGERPRINT_BYTES];
    uint32_t n;
    struct esp_worker *worker[ESP_MAX_STAGES];
};

esp_status esp_roster_create(struct esp_roster **out, const uint8_t fingerprint[ESP_FINGERPRINT_BYTES],
                             struct esp_err *err)
{
    struct esp_roster *r = calloc(1, sizeof *r);

    *out = r;
    if (!r)
        return esp_fail(err, ESP_E_NOMEM, "roster of workers");
    memcpy(r->fingerprint, fingerprint, sizeof r->fingerprint);
    return ESP_OK;
}

void esp_roster_destroy(struct esp_roster **roster)
{
    if (!*roster)
        return;
    for (uint32_t i = 0; i < (*roster)->n; i++)
        free((*roster)->worker[i]);
    free(*roster);
    *roster = NULL;
}

uint32_t esp_roster_count(const struct esp_roster *roster)
{
    return roster->n;
}

struct esp_worker *esp_roster_at(const struct esp_roster *roster, uint32_t i)
{
    return i < roster->n ? roster->worker[i] : NULL;
}

struct esp_worker *esp_roster_find(const struct esp_roster *roster, const struct esp_peer *peer)
{
    for (uint32_t i = 0; i < roster->n; i++)
        if (esp_peer_equal(&roster->worker[i]->peer, peer))
            return roster->worker[i];
    return NULL;
}

struct esp_worker *esp_roster_named(const struct esp_roster *roster, const char *name)
{
    for (uint32_t i = 0; i < roster->n; i++)
        if (!strcmp(roster->worker[i]->name, name))
            return roster->worker[i];
    return NULL;
}

uint32_t esp_roster_usable(const struct esp_roster *roster)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < roster->n; i++)
        n += roster->worker[i]->state != ESP_WORKER_FAILED && !roster->worker[i]->draining;
    return n;
}

static void hex8(char out[17], const uint8_t *bytes)
{
    for (int i = 0; i < 8; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

/* Others will expect at its data socket the key that it has proven here, and no other. */
static esp_status key_check(const struct esp_peer *peer, const struct esp_msg_hello *hello,
                            struct esp_err *err)
{
    char proven[ESP_KEY_TEXT + 1] = "";

    if (peer->member != ESP_MEMBER_NONE)
        esp_key_format(proven, peer->key);
    if (strcmp(hello->key ? hello->key : "", proven) != 0)
        return esp_fail(err, ESP_E_PROTO,
                        "hello: %s names another key for its data socket than it connects with", hello->name);
    return ESP_OK;
}

static esp_status hello_check(const struct esp_roster *r, const struct esp_peer *peer,
                              const struct esp_msg_hello *hello, struct esp_err *err)
{
    const struct esp_msg_device *d = &hello->device;
    const struct esp_worker *same;
    esp_status st;

    if (!hello->name || !hello->name[0] || strlen(hello->name) > ESP_MAX_NAME)
        return esp_fail(err, ESP_E_PROTO, "hello: a worker needs a name of 1 to %d bytes", ESP_MAX_NAME);
    same = esp_roster_find(r, peer);
    if (same)
        return esp_fail(err, ESP_E_ARG, "hello: you have joined already, as %s", same->name);
    if (esp_roster_named(r, hello->name))
        return esp_fail(err, ESP_E_ARG,
                        "hello: a worker named %s is here already; give this one another --name",
                        hello->name);
    if (hello->epoch >= MAX_EPOCH)
        return esp_fail(err, ESP_E_PROTO, "hello: %s has been in an epoch that cannot be", hello->name);
    if (!hello->wants_weights && memcmp(r->fingerprint, hello->fingerprint, sizeof r->fingerprint) != 0) {
        char ours[17], theirs[17];
        hex8(ours, r->fingerprint);
        hex8(theirs, hello->fingerprint);
        return esp_fail(err, ESP_E_FORMAT,
                        "hello: %s holds another checkpoint (fingerprint %s..., the coordinator's is %s...)",
                        hello->name, theirs, ours);
    }
    if (!hello->endpoint || !hello->endpoint[0] || strlen(hello->endpoint) > ESP_MAX_ENDPOINT)
        return esp_fail(err, ESP_E_PROTO, "hello: %s names no data endpoint", hello->name);
    st = key_check(peer, hello, err);
    if (st)
        return st;
    if (d->memory_bytes == 0 || !isfinite(d->bandwidth) || d->bandwidth <= 0 || !isfinite(d->matmul_rate) ||
        d->matmul_rate <= 0)
        return esp_fail(err, ESP_E_PROTO,
                        "hello: %s reports a device without memory, bandwidth or matmul rate", hello->name);
    if (r->n == ESP_MAX_STAGES)
        return esp_fail(err, ESP_E_LIMIT, "hello: %d workers are the most", ESP_MAX_STAGES);
    return ESP_OK;
}

static void keep(char *out, size_t n_out, const char *text)
{
    snprintf(out, n_out, "%s", text ? text : "");
}

esp_status esp_roster_join(struct esp_worker **out, struct esp_roster *roster, const struct esp_peer *peer,
                           const struct esp_msg_hello *hello, double now, struct esp_err *err)
{
    struct esp_worker *w;
    uint32_t at = 0;
    esp_status st = hello_check(roster, peer, hello, err);

    *out = NULL;
    if (st)
        return st;
    w = calloc(1, sizeof *w);
    if (!w)
        return esp_fail(err, ESP_E_NOMEM, "an entry for worker %s", hello->name);
    w->peer = *peer;
    keep(w->name, sizeof w->name, hello->name);
    keep(w->endpoint, sizeof w->endpoint, hello->endpoint);
    keep(w->key, sizeof w->key, hello->key);
    keep(w->software, sizeof w->software, hello->software);
    keep(w->device_name, sizeof w->device_name, hello->device.name);
    keep(w->device_driver, sizeof w->device_driver, hello->device.driver);
    keep(w->device_variant, sizeof w->device_variant, hello->device.variant);
    w->streams = hello->wants_weights;
    w->had_epoch = hello->epoch;
    w->device = hello->device;
    w->device.name = w->device_name;
    w->device.driver = w->device_driver;
    w->device.variant = w->device_variant;
    w->state = ESP_WORKER_JOINED;
    w->last_heard = now;
    while (at < roster->n && strverscmp(roster->worker[at]->name, w->name) < 0) /* w9 before w10 */
        at++;
    memmove(&roster->worker[at + 1], &roster->worker[at], (roster->n - at) * sizeof roster->worker[0]);
    roster->worker[at] = w;
    roster->n++;
    *out = w;
    return ESP_OK;
}

void esp_roster_remove(struct esp_roster *roster, struct esp_worker **worker)
{
    for (uint32_t i = 0; i < roster->n; i++) {
        if (roster->worker[i] != *worker)
            continue;
        memmove(&roster->worker[i], &roster->worker[i + 1], (roster->n - i - 1) * sizeof roster->worker[0]);
        roster->n--;
        free(*worker);
        break;
    }
    *worker = NULL;
}

struct esp_worker *esp_roster_expired(const struct esp_roster *roster, double now, double timeout)
{
    for (uint32_t i = 0; i < roster->n; i++)
        if (now - roster->worker[i]->last_heard > timeout)
            return roster->worker[i];
    return NULL;
}

const char *esp_worker_state_name(enum esp_worker_state state)
{
    switch (state) {
    case ESP_WORKER_JOINED:
        return "joining";
    case ESP_WORKER_LOADING:
        return "loading";
    case ESP_WORKER_READY:
        return "ready";
    case ESP_WORKER_SPARE:
        return "spare";
    case ESP_WORKER_FAILED:
        return "failed";
    }
    return "unknown";
}
