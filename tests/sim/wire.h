/**
 * What one hop costs on this machine now: a message of a decode step goes to an echo and back over a link of the kind
 * that stages use, every few milliseconds, while something else is being measured. Half of a round trip is a hop: packing,
 * two kernel crossings, libzmq's threads, one thread woken, unpacking.
 */
#ifndef ESP_TEST_SIM_WIRE_H
#define ESP_TEST_SIM_WIRE_H

#include <stdbool.h>
#include <stdint.h>

struct wire;

/** Starts it. Rows of a step: f32[n_rows, width]. Fails the test if it cannot. */
struct wire *wire_start(bool tcp, uint32_t n_rows, uint32_t width);

/** Ends it; the median half round trip in seconds. */
double wire_stop(struct wire **wire);

#endif
