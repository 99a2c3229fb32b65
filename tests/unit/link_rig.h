/**
 * What the tests of links share: a context, a directory for sockets, and calls that fail the test instead of
 * returning.
 */
#ifndef ESP_TESTS_UNIT_LINK_RIG_H
#define ESP_TESTS_UNIT_LINK_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "proto/link.h"
#include "tests/support/messages.h"

#define PATIENCE_MS 60000 /* far more than anything here takes */

extern char link_dir[];
extern struct esp_net *link_net;

/** Group setup and teardown. */
int link_setup(void **state);
int link_teardown(void **state);

struct esp_link *link_open(const struct esp_link_options *options);
/** A bound serving link, on ipc or on 127.0.0.1; `endpoint` (ESP_MAX_ENDPOINT + 1 bytes) gets where. `more`
 * may be NULL. */
struct esp_link *link_serve(char *endpoint, bool tcp, const struct esp_link_options *more);
struct esp_link *link_dial(const char *endpoint, const struct esp_link_options *more);

/** Sends a message of tests/support/messages.h. */
void link_send_to(struct esp_link *link, const struct esp_peer *to, const char *name);

/** Waits for the next message, good or bad, and returns what esp_link_recv says of it. */
esp_status link_next(struct esp_link *link, struct esp_peer *from, struct esp_msg *msg, struct esp_err *err);
void link_expect(struct esp_link *link, struct esp_peer *from, enum esp_msg_kind kind);
/** The next message is bad, and for a cause that holds `cause`. */
void link_expect_bad(struct esp_link *link, struct esp_peer *from, const char *what, const char *cause);
void link_expect_nothing(struct esp_link *link);

#endif
