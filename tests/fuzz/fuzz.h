/**
 * The entry point of every fuzz target: libFuzzer calls it, and so does replay_main.c.
 */
#ifndef ESP_TESTS_FUZZ_H
#define ESP_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/** One input, in a block of exactly n_bytes. Returns 0; a finding is a crash, a sanitizer report or a hang.
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

#endif
