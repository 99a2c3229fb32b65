/**
 * Who may connect: the ZAP handler (ZeroMQ RFC 27) of a net with keys, and what becomes of handshakes.
 *
 * A thread of its own answers the one question that libzmq asks of each connection, whether this public key may come
 * in, from the allow lists of esp_keys; and it listens to the monitors of the net's sockets, because a connection
 * without keys, or made for another coordinator, fails before that question. Whoever is refused is logged once a minute.
 * The lists are read again when their files change; connections that stand stay.
 *
 * For link.c alone: it owns the ZeroMQ context and the sockets.
 */
#ifndef ESP_PROTO_AUTH_H
#define ESP_PROTO_AUTH_H

#include "proto/keys.h"
#include "proto/log.h"
#include "proto/status.h"

/** What libzmq attaches to each message of a connection as "User-Id": "worker:NAME:KEY", KEY in Z85. */
#define ESP_USER_MAX (16 + ESP_MAX_NAME + ESP_KEY_TEXT)

/** Reads that; false if it is not of this form. @param name  ESP_MAX_NAME + 1 bytes */
bool esp_user_parse(enum esp_member *member, char *name, uint8_t key[ESP_KEY_BYTES], const char *user);

struct esp_auth;
struct esp_watch;

/**
 * Starts the handler; from here on no socket of the context takes a connection that it does not know.
 * @param zmq   the context
 * @param keys  borrowed for the handler's life, as is log (NULL is silent)
 * Errors: ESP_E_IO, ESP_E_NOMEM.
 */
esp_status esp_auth_create(struct esp_auth **out, void *zmq, const struct esp_keys *keys,
                           const struct esp_log *log, struct esp_err *err);

/** Ends the thread; the sockets of the context are closed already. */
void esp_auth_destroy(struct esp_auth **auth);

/**
 * Follows a socket's handshakes until esp_auth_unwatch.
 * @param serve    others connect to it: failures are logged; else they are kept for esp_watch_check
 * @param drop_fd  an eventfd that gets 1 for each of its connections that ends; borrowed until esp_auth_unwatch, and
 *                 duplicated; -1: none
 * Errors: ESP_E_IO, ESP_E_NOMEM.
 */
esp_status esp_auth_watch(struct esp_watch **out, struct esp_auth *auth, void *socket, bool serve,
                          int drop_fd, struct esp_err *err);

/** Before the socket is closed; clears *watch. */
void esp_auth_unwatch(struct esp_watch **watch, void *socket);

/** What the last handshake of a dialling socket came to: as esp_link_check. */
esp_status esp_watch_check(const struct esp_watch *watch, struct esp_err *err);

#endif
