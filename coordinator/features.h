/**
 * Which pictures' features the workers hold, by the hash of their pixels.
 *
 * The encoder's work on a picture is worth keeping: a second question about it skips the encoder. An entry is
 * referenced by the sessions that need it; unreferenced ones stay until their place is wanted, the least
 * recently used first. Pure: what it decides the caller sends.
 */
#ifndef ESP_COORDINATOR_FEATURES_H
#define ESP_COORDINATOR_FEATURES_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_PICTURE_HASH_BYTES 32

enum esp_feature_state {
    ESP_FEATURE_NEW,    /* somebody must send the pixels */
    ESP_FEATURE_SENT,   /* on its way through the encoder */
    ESP_FEATURE_STORED, /* the first decoder stage has it */
    ESP_FEATURE_LOST    /* encoding failed */
};

struct esp_feature {
    uint64_t image; /* its id on the wire */
    enum esp_feature_state state;
    bool shared; /* found by its hash */
    uint8_t hash[ESP_PICTURE_HASH_BYTES];
    uint32_t n_ref;
    uint64_t last_use; /* a counter */
    double sent;       /* when, seconds */
    double doubted;    /* as a flight's */
    struct esp_feature *next;
};

struct esp_features;

esp_status esp_features_create(struct esp_features **out, struct esp_err *err);
void esp_features_destroy(struct esp_features **f);

/** How many pictures the workers can hold from now on. */
void esp_features_open(struct esp_features *f, uint32_t capacity);

/** A new epoch: the workers hold nothing. Only when no session references an entry. */
void esp_features_clear(struct esp_features *f);

/** Whether n more pictures, new ones, would find a place once the unreferenced are evicted. */
bool esp_features_fits(const struct esp_features *f, uint32_t n);

/**
 * A reference to the picture of this hash, a new entry if it is not there.
 * @param shared  false: a new entry of its own that nobody else will find (to trace the encoder)
 */
esp_status esp_features_acquire(struct esp_feature **out, struct esp_features *f,
                                const uint8_t hash[ESP_PICTURE_HASH_BYTES], bool shared, struct esp_err *err);

/** Gives a reference back and clears *entry. What was never sent, is lost or was not shared is forgotten at
 * the last one. */
void esp_features_drop(struct esp_features *f, struct esp_feature **entry);

/** The entry of an id, or NULL. */
struct esp_feature *esp_features_find(const struct esp_features *f, uint64_t image);

/** Pictures on their way through the encoder. */
uint32_t esp_features_n_sent(const struct esp_features *f);

/** A walk over all entries: NULL begins it, and is its end. */
struct esp_feature *esp_features_next(const struct esp_features *f, const struct esp_feature *entry);

/**
 * An id that the workers should forget now, because its entry is gone or its place is wanted; 0 if there is
 * none. The id is the caller's to release: it is not named twice.
 */
uint64_t esp_features_evict(struct esp_features *f);

#endif
