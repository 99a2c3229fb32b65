/**
 * A request of every kind (greedy, sampled, best of several, beams by both rules, a score), to be asked all at once of a
 * coordinator_rig's coordinator, and what came of them, to be held against what comes when nothing is disturbed.
 */
#ifndef ESP_TEST_ALL_KINDS_H
#define ESP_TEST_ALL_KINDS_H

#include "tests/cluster/coordinator_rig.h"

enum { N = 6, TEXT = 32768, TOKENS = 30 };

/** Request number i of them, and the picture that goes with it among the golden ones, or NULL. */
struct esp_msg_request request_of_kind(uint32_t i, uint64_t id);
const char *picture_of_kind(uint32_t i);

/** Everything in a Done that must not depend on what happened meanwhile, into out, of TEXT bytes. */
void write_down(char *out, const struct esp_msg_done *d);

/** As client 0, requests first .. first + N - 1. */
void ask_all(struct rig *rig, uint64_t first);

/**
 * Takes their answers, which come in any order; what streams must have come once, in order. A text of everything in
 * each that must not depend on what happened meanwhile.
 */
void take_all(struct rig *rig, uint64_t first, char (*out)[TEXT]);

/** Fails the test if they differ. */
void compare_all(char (*got)[TEXT], char (*want)[TEXT], const char *what);

#endif
