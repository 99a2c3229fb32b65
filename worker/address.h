/** Which address of this machine other machines reach it by. */
#ifndef ESP_WORKER_ADDRESS_H
#define ESP_WORKER_ADDRESS_H

#include <stddef.h>

#include "proto/status.h"

/**
 * The local address that packets to `endpoint` (tcp://HOST:PORT) leave from, as an endpoint wants it
 * ("10.0.0.7",
 * "[fe80::1]"). Sends nothing; a name is looked up.
 *
 * @param out  at least 64 bytes
 * Errors: ESP_E_ARG (not such an endpoint), ESP_E_IO (no such host, no route).
 */
esp_status esp_address_towards(char *out, size_t n_out, const char *endpoint, struct esp_err *err);

/**
 * What to tell others of a bound endpoint: tcp://0.0.0.0:P and tcp://[::]:P with `host` in place of the
 * wildcard, all else as it is. Errors: ESP_E_ARG (does not fit).
 */
esp_status esp_address_advertise(char *out, size_t n_out, const char *bound, const char *host,
                                 struct esp_err *err);

#endif
