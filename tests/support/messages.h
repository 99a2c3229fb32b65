/**
 * A well-formed message of every kind, once with every field set and once with as little as its kind allows.
 * For tests of the protocol, seeds of its fuzzing, and whoever needs something to send.
 */
#ifndef ESP_TESTS_SUPPORT_MESSAGES_H
#define ESP_TESTS_SUPPORT_MESSAGES_H

#include "proto/wire.h"

struct esp_test_message {
    const char *name; /* "step", "step.least", ...: the kind's name and, after a dot, what is special */
    struct esp_msg msg;
};

extern const struct esp_test_message esp_test_messages[];
extern const size_t esp_test_n_messages;

/** By name; NULL when there is none. */
const struct esp_msg *esp_test_message_find(const char *name);

#endif
