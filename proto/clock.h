/**
 * The steady clock: since some moment in the past, never back. For durations, silences and deadlines.
 */
#ifndef ESP_PROTO_CLOCK_H
#define ESP_PROTO_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t esp_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t); /* fails for clocks that do not exist alone */
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static inline int64_t esp_now_ms(void)
{
    return (int64_t)(esp_now_ns() / UINT64_C(1000000));
}

static inline double esp_now_seconds(void)
{
    return (double)esp_now_ns() * 1e-9;
}

#endif
