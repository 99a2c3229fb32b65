/** Key directories and long-lived children for tests of clusters with keys. What cannot go on fails the test. */
#ifndef ESP_TESTS_CLUSTER_CURVE_RIG_H
#define ESP_TESTS_CLUSTER_CURVE_RIG_H

#include "tests/cluster/cli_child.h"

/** Makes the directory that the rest works in; false if it cannot. */
bool curve_rig_open(void);

/** Removes it with all that is in it; 0 on success. */
int curve_rig_close(void);

/** DIR/name; the last eight stay good. */
const char *curve_path(const char *name);

/** `espalier keygen --out DIR/out OPTION NAME`. */
void curve_keygen(const char *espalier, const char *out, const char *option, const char *name);

/** Puts a key directory together of files from others: "FILE=FROM,...". */
void curve_compose(const char *name, const char *files);

/** child_wait_for on stderr, with a deadline that starts now: a later test is not late because an earlier one took
 * its time. */
void curve_wait_for(struct child *c, const char *text);

/** SIGTERM, and the end must be a good one. */
void curve_end(struct child *c);

/** The same for one that ends by itself. */
void curve_ended(struct child *c);

#endif
