/**
 * What a child process printed, as JSON. What is not as it should be fails the test and shows it.
 */
#ifndef ESP_TESTS_CLUSTER_CLI_JSON_H
#define ESP_TESTS_CLUSTER_CLI_JSON_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/cluster/cli_child.h"

/** Its standard output; json_decref it. */
static inline json_t *child_json(const struct child *c)
{
    json_error_t why;
    json_t *o = json_loads(OUT(c), 0, &why);

    if (!o)
        fail_msg("not JSON: %s\n%s\n%s", why.text, OUT(c), ERR(c));
    return o;
}

/** A member that must be a finite number. */
static inline double json_number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    if (!json_is_number(v) || !isfinite(json_number_value(v)))
        fail_msg("%s is no number", key);
    return json_number_value(v);
}

#endif
