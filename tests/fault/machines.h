/**
 * Machines that are none: network namespaces, numbered from 0, each with a cable to a bridge in machine 0. Machine i is
 * 10.83.0.(i + 1). Needs root, iproute2 and a kernel that allows it.
 */
#ifndef ESP_TEST_MACHINES_H
#define ESP_TEST_MACHINES_H

#include <stdbool.h>

#define MACHINES_MAX 8

/** Makes n of them, at least 2; false, with nothing left behind, where that cannot be done. */
bool machines_make(int n);
void machines_remove(void);

/** Moves this thread, and the threads and processes that it makes from now on, to machine i. */
bool machines_enter(int i);

/** For execv: PATH "netns" "exec" NAME, before a program and its arguments. */
const char *machines_ip(void);
const char *machines_name(int i);

/** Pulls machine i's cable (i >= 1), or plugs it in again. */
bool machines_cut(int i, bool cut);

#endif
