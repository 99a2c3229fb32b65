/* espalier-coordinator's command line: every refusal, its status and its words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/cli_child.h"

#define TINY "tests/golden/data/tiny"

static const struct {
    const char *label;
    const char *args[12];
    int exit;
    const char *err_part;
} cases[] = {
    {"help", {"--help"}, 0, "usage: espalier-coordinator"},
    {"version", {"--version"}, 0, "espalier-coordinator "},
    {"nothing", {NULL}, 2, "--model: is missing"},
    {"no endpoint", {"--model", TINY}, 2, "--bind: is missing"},
    {"an unknown option", {"--models", TINY}, 2, "no such option"},
    {"no value", {"--model"}, 2, "needs a value"},
    {"a word too many", {"--model", TINY, "--bind", "ipc:///tmp/x", "word"}, 2, "word: unexpected"},
    {"no workers", {"--workers", "0"}, 2, "not a value"},
    {"not a number", {"--context", "10k"}, 2, "not a value"},
    {"a negative number", {"--kv-tokens", "-5"}, 2, "not a value"},
    {"a number too large", {"--max-images", "99999999999999999999"}, 2, "not a value"},
    {"no such level", {"--log-level", "loud"}, 2, "not a value"},
    {"no such folder", {"--model", "/nonexistent", "--bind", "ipc:///tmp/x"}, 1, "/nonexistent"},
    {"a split of other layers",
     {"--model", TINY, "--bind", "ipc:///tmp/x", "--split", "1/1,1/1"},
     2,
     "--split"},
    {"a split that is none", {"--model", TINY, "--bind", "ipc:///tmp/x", "--split", "2"}, 2, "--split"},
    {"a small cache",
     {"--model", TINY, "--bind", "ipc:///tmp/x", "--context", "99", "--kv-tokens", "9"},
     2,
     "--kv-tokens 9"},
    {"a context that no stage can hold",
     {"--model", TINY, "--bind", "ipc:///tmp/x", "--context", "65536"},
     2,
     "--context 65536: takes 2 to 65535 tokens"},
    {"an endpoint for all", {"--model", TINY, "--bind", "tcp://0.0.0.0:*"}, 2, "0.0.0.0"},
    {"an endpoint that is none", {"--model", TINY, "--bind", "nonsense"}, 2, "nonsense"},
    {"a journal and none",
     {"--model", TINY, "--bind", "ipc:///tmp/x", "--journal", "/tmp/j", "--no-journal"},
     2,
     "--journal: goes against --no-journal"},
    {"a journal in no folder",
     {"--model", TINY, "--bind", "ipc:///tmp/esp-no-journal", "--journal", "/nonexistent/j"},
     1,
     "journal /nonexistent/j: No such file"},
    {"no time to come back", {"--resume-within", "0"}, 2, "not a value"},
    {"a folder that is missing", {"--model", TINY, "--bind", "ipc:///nonexistent/x"}, 1, "/nonexistent/x"},
};

static void test_refusals(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        child_run(&c, COORDINATOR, cases[i].args);
        child_expect(&c, cases[i].label, cases[i].exit, cases[i].err_part, "");
        assert_string_equal(OUT(&c), ""); /* stdout is nobody's */
        child_finish(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
