/* Three machines: network namespaces on one bridge, the coordinator in the first, a worker in each of the others and the
 * client in the last, over TCP with keys. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"
#include "tests/cluster/curve_rig.h"
#include "tests/fault/machines.h"

#define TINY     "tests/golden/data/tiny"
#define SCENE    TINY "/images/scene_a.png"
#define AT       "tcp://10.83.0.1:5550"
#define SKIPPED  77
#define MAX_ARGS 24

static struct child coordinator, worker[2];

/* Starts a program on a machine. */
static void start_on(struct child *c, int machine, const char *program, const char *const *args)
{
    const char *all[MAX_ARGS + 5] = {"netns", "exec", machines_name(machine), program};

    for (size_t i = 0; args[i]; i++) {
        assert_true(i < MAX_ARGS);
        all[4 + i] = args[i];
    }
    child_start(c, machines_ip(), NULL, all);
}

static void run_on(struct child *c, int machine, const char *program, const char *const *args)
{
    start_on(c, machine, program, args);
    child_wait(c, NULL);
}

static int setup(void **state)
{
    if (!curve_rig_open())
        return -1;
    curve_keygen(ESPALIER, "keys", "--client", "anna");
    curve_keygen(ESPALIER, "other", "--client", "anna");
    start_on(&coordinator, 0, COORDINATOR,
             (const char *[]){"--model", TINY, "--bind", AT, "--workers", "2", "--keys",
                              curve_path("keys/coordinator"), NULL});
    for (int i = 0; i < 2; i++)
        start_on(&worker[i], i + 1, WORKER,
                 (const char *[]){"--model", TINY, "--connect", AT, "--keys",
                                  curve_path(i ? "keys/workers/w1" : "keys/workers/w0"), NULL});
    curve_wait_for(&coordinator, "ready epoch=1 stages=2");
    return 0;
}

static int teardown(void **state)
{
    curve_end(&coordinator);
    for (int i = 0; i < 2; i++)
        curve_ended(&worker[i]);
    return curve_rig_close();
}

static void test_right_key(void **state)
{
    json_error_t why;
    json_t *golden = json_load_file(TINY "/golden.json", 0, &why);
    const json_t *want = json_array_get(json_object_get(golden, "generate"), 0);
    char text[4096];
    struct child c;

    assert_non_null(golden);
    run_on(&c, 2, ESPALIER,
           (const char *[]){"run", "--connect", AT, "--keys", curve_path("keys/clients/anna"), "--image",
                            SCENE, "--max-tokens", "24", "--ignore-eos",
                            json_string_value(json_object_get(want, "prefix")), NULL});
    child_expect(&c, "three machines", 0, "w1: ", NULL);
    snprintf(text, sizeof text, "%s\n", json_string_value(json_object_get(want, "text")));
    assert_string_equal(OUT(&c), text);
    child_finish(&c);
    json_decref(golden);
    assert_non_null(
        strstr(ERR(&coordinator), "endpoint=tcp://10.83.0.2:")); /* so the stages spoke over the wire */
    assert_non_null(strstr(ERR(&coordinator), "endpoint=tcp://10.83.0.3:"));
}

static void test_refused(void **state)
{
    static const struct {
        const char *keys, *told, *logged;
    } cases[] = {
        {NULL, "nothing answers there",
         "connection refused address=10.83.0.3 why=\"it has no keys, or broke off"},
        {"other/clients/anna", "breaks off the handshake",
         "connection refused address=10.83.0.3 why=\"it took another public key for ours"},
        {"keys/workers/w1", "a status_query takes a client's key", "worker=w1 bad_message"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *args[] = {"cluster", "status", "--connect", AT, "--timeout", "2", NULL, NULL, NULL};
        const int64_t end = esp_now_ms() + ESP_PATIENCE_MS;
        bool logged = false;

        if (cases[i].keys) {
            args[6] = "--keys";
            args[7] = curve_path(cases[i].keys);
        }
        /* Who is gone before the coordinator has looked at where it came from is logged as address=unknown: once more then. */
        while (!logged && esp_now_ms() < end) {
            struct child c;

            run_on(&c, 2, ESPALIER, args);
            child_expect(&c, cases[i].told, 1, cases[i].told, NULL);
            child_finish(&c);
            for (int64_t soon = esp_now_ms() + 2000; !logged && esp_now_ms() < soon; usleep(2000)) {
                if (child_over(&coordinator))
                    fail_msg("the coordinator ended: %s", ERR(&coordinator));
                logged = strstr(ERR(&coordinator), cases[i].logged) != NULL;
            }
        }
        if (!logged)
            fail_msg("not logged: %s; but:\n%s", cases[i].logged, ERR(&coordinator));
    }
}

static void test_no_keys_no_bind(void **state)
{
    struct child c;

    run_on(&c, 0, COORDINATOR, (const char *[]){"--model", TINY, "--bind", "tcp://10.83.0.1:5551", NULL});
    child_expect(&c, "a coordinator", 2, "give --keys DIR", NULL);
    child_finish(&c);
    run_on(&c, 1, WORKER, (const char *[]){"--model", TINY, "--connect", AT, NULL}); /* binds what faces it */
    child_expect(&c, "a worker", 1, "bind tcp://10.83.0.2:*", NULL);
    child_finish(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_key),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_keys_no_bind),
    };
    int rc;

    if (!machines_make(3)) {
        fprintf(stderr,
                "SKIPPED: three machines need root, the program ip, and network namespaces with veth\n");
        return SKIPPED;
    }
    rc = cmocka_run_group_tests(tests, setup, teardown);
    machines_remove();
    return rc;
}
