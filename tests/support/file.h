/** Whole files for tests: what cannot go on prints why and exits. */
#ifndef ESP_TESTS_SUPPORT_FILE_H
#define ESP_TESTS_SUPPORT_FILE_H

#include <stddef.h>
#include <stdint.h>

/** A file's bytes in a block of exactly that size (so that ASan sees an overread); free with free(). The path
 * is a printf format after n_bytes. */
uint8_t *esp_slurp(size_t *n_bytes, const char *path, ...) __attribute__((format(printf, 2, 3)));

#endif
