/**
 * How much of something happened over the last seconds: tokens, seconds of work.
 *
 * Amounts are kept in slots of half a second, so nothing is stored for each event and nothing wanders: the rate is of
 * the last 4.5 to 5 seconds. Pure: times are passed in, seconds of a clock that only goes forward.
 */
#ifndef ESP_COORDINATOR_METER_H
#define ESP_COORDINATOR_METER_H

#include <stdint.h>

#define ESP_METER_SLOTS  10
#define ESP_METER_SLOT_S 0.5

/** Zeros: nothing yet. */
struct esp_meter {
    int64_t
        newest; /* number of the newest slot, time / ESP_METER_SLOT_S; older ones than SLOTS are forgotten */
    double amount[ESP_METER_SLOTS]; /* slot i is at i % ESP_METER_SLOTS */
};

/**
 * Adds what happened from `from` to `to`, spread evenly; equal: all of it then. What lies before the window is
 * dropped. What is not finite or negative is no amount.
 */
void esp_meter_add(struct esp_meter *meter, double from, double to, double amount);

/** The amount a second over the window that ends now. */
double esp_meter_rate(struct esp_meter *meter, double now);

#endif
