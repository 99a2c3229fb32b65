/*
 * Quantised weights of real workers: the second start reads what the first one made, and answers the same; so does one that
 * keeps nothing, and one whose files were damaged, or who cannot write any.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cluster/cli_child.h"

#define TINY  "tests/golden/data/tiny"
#define SCENE TINY "/images/scene_a.png"

static char run_dir[32], cache_dir[40], packed_dir[64];

/* In the cache directory. */
static void run_command(const char *what)
{
    char command[200];

    snprintf(command, sizeof command, "cd %s && %s", cache_dir, what);
    if (system(command) != 0)
        fail_msg("%s", command);
}

static int setup(void **state)
{
    (void)state;
    strcpy(run_dir, "/tmp/espalier-test-XXXXXX");
    assert_non_null(mkdtemp(run_dir));
    strcpy(cache_dir, "/tmp/espalier-cache-XXXXXX");
    assert_non_null(mkdtemp(cache_dir));
    snprintf(packed_dir, sizeof packed_dir, "%s/packed", cache_dir);
    return setenv("XDG_RUNTIME_DIR", run_dir, 1) || setenv("ESPALIER_PACKED", packed_dir, 1);
}

static int teardown(void **state)
{
    (void)state;
    run_command("rm -r ../$(basename $PWD)");
    return rmdir(run_dir);
}

struct cached {
    uint64_t used, kept, damaged, failed;
    uint32_t n_line;
};

/* The answer of two workers, malloc'ed, and what their logs say of the cache. */
static char *answer(struct cached *sum, const char *label)
{
    struct child c;
    char *text;

    memset(sum, 0, sizeof *sum);
    child_run(&c, ESPALIER,
              (const char *[]){"run", "--model", TINY, "--workers", "2", "--weights", "q8", "--split",
                               "1/1,1/2", "--image", SCENE, "-v", "--ignore-eos", "--max-tokens", "12",
                               "caption en", NULL});
    child_expect(&c, label, 0, NULL, NULL);
    for (const char *p = ERR(&c); (p = strstr(p, "packed_weights ")); p++) {
        struct cached one;
        uint64_t mib;

        if (sscanf(p,
                   "packed_weights used=%" SCNu64 " used_mib=%" SCNu64 " laid=%" SCNu64 " kept=%" SCNu64
                   " kept_mib=%" SCNu64 " damaged=%" SCNu64 " failed=%" SCNu64,
                   &one.used, &mib, &mib, &one.kept, &mib, &one.damaged, &one.failed) != 7)
            fail_msg("%s: %.200s", label, p);
        sum->used += one.used;
        sum->kept += one.kept;
        sum->damaged += one.damaged;
        sum->failed += one.failed;
        sum->n_line++;
    }
    text = strdup(OUT(&c));
    assert_non_null(text);
    assert_true(strlen(text) > 1);
    child_finish(&c);
    return text;
}

static void check(const char *label, const char *want, struct cached *c)
{
    char *got = answer(c, label);

    assert_string_equal(got, want);
    free(got);
}

static void test_second_start(void **state)
{
    struct cached first, c;
    char *want = answer(&first, "first start");

    (void)state;
    assert_int_equal(first.n_line, 2);
    assert_true(first.kept > 8);
    assert_int_equal(first.damaged + first.failed, 0);
    check("second start", want, &c);
    assert_int_equal(c.used,
                     first.used + first.kept); /* one worker may have found what the other had just made */
    assert_int_equal(c.kept + c.damaged + c.failed, 0);

    /* every file loses its end */
    run_command("find packed/?? -type f -exec truncate -s -1 {} +");
    check("damaged files", want, &c);
    assert_true(c.damaged > 8);
    assert_true(c.kept > 8);
    check("mended", want, &c);
    assert_int_equal(c.used, first.used + first.kept);

    assert_int_equal(setenv("ESPALIER_PACKED", "off", 1), 0);
    check("off", want, &c);
    assert_int_equal(c.n_line, 0);
    assert_int_equal(setenv("ESPALIER_PACKED", packed_dir, 1), 0);

    /* a file in place of the directory: there is no cache, and no harm */
    run_command("rm -r packed");
    run_command("touch packed");
    check("no directory", want, &c);
    assert_int_equal(c.n_line, 0);
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_second_start, setup, teardown)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
