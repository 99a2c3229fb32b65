/** Endpoints by their form: the links' own; what others may ask is in link.h. */
#ifndef ESP_PROTO_ENDPOINT_H
#define ESP_PROTO_ENDPOINT_H

#include <stdbool.h>

/** tcp:// with an IPv4 host, by its form or by agreement: 127.0.0.1, localhost. */
bool esp_endpoint_is_ipv4(const char *endpoint);

/** Not tcp://, or with a port of 0 to 65535 or *: libzmq would take port 99999 for 34463. */
bool esp_endpoint_has_port(const char *endpoint);

#endif
