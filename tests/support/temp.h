/**
 * A folder for a test's files, under /tmp, gone with all in it afterwards.
 */
#ifndef ESP_TESTS_SUPPORT_TEMP_H
#define ESP_TESTS_SUPPORT_TEMP_H

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

/** Makes one; its path in out. 0, or -1: what a setup of cmocka's returns. */
static inline int esp_temp_make(char *out, size_t n_out)
{
    if (snprintf(out, n_out, "/tmp/espalier-test-XXXXXX") >= (int)n_out)
        return -1;
    return mkdtemp(out) ? 0 : -1;
}

/** Removes it. 0, or another number: what a teardown returns. */
static inline int esp_temp_remove(const char *dir)
{
    char command[128];

    if (snprintf(command, sizeof command, "rm -r %s", dir) >= (int)sizeof command)
        return -1;
    return system(command);
}

#endif
