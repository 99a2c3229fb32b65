/* A cluster with keys over TCP: real processes, the real engine. Who has the right key gets the golden answer, everyone
 * else is refused, in words and in the log, and nobody beside them notices. */
#include <jansson.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cluster/curve_rig.h"

#define TINY  "tests/golden/data/tiny"
#define SCENE TINY "/images/scene_a.png"

static char at[128];
static struct child coordinator, worker[2];
static json_t *golden;

static int setup(void **state)
{
    json_error_t why;
    const char *line;

    assert_true(curve_rig_open());
    golden = json_load_file(TINY "/golden.json", 0, &why);
    assert_non_null(golden);
    curve_keygen(ESPALIER, "keys", "--client", "anna");
    curve_keygen(ESPALIER, "other", "--client", "anna");
    curve_compose("unknown",
                  "secret=other/clients/anna/secret,coordinator.public=keys/coordinator/coordinator.public");
    curve_compose("client_as_worker",
                  "secret=keys/clients/anna/secret,coordinator.public=keys/coordinator/coordinator.public,"
                  "workers.allow=keys/workers/w0/workers.allow");
    curve_compose("unknown_worker",
                  "secret=other/workers/w0/secret,coordinator.public=keys/coordinator/coordinator.public,"
                  "workers.allow=keys/workers/w0/workers.allow");
    curve_compose("open_secret",
                  "secret=keys/clients/anna/secret,coordinator.public=keys/coordinator/coordinator.public");
    assert_int_equal(chmod(curve_path("open_secret/secret"), 0640), 0);

    child_start(&coordinator, COORDINATOR, NULL,
                (const char *[]){"--model", TINY, "--bind", "tcp://127.0.0.1:*", "--workers", "2", "--keys",
                                 curve_path("keys/coordinator"), NULL});
    curve_wait_for(&coordinator, "listening endpoint=");
    curve_wait_for(&coordinator, "workers=2");
    line = strstr(ERR(&coordinator), "listening endpoint=");
    assert_int_equal(sscanf(line, "listening endpoint=%127s", at), 1);
    for (int i = 0; i < 2; i++)
        child_start(&worker[i], WORKER, NULL,
                    (const char *[]){"--model", TINY, "--connect", at, "--keys",
                                     curve_path(i ? "keys/workers/w1" : "keys/workers/w0"), NULL});
    curve_wait_for(&coordinator, "ready epoch=1 stages=2");
    return 0;
}

static int teardown(void **state)
{
    curve_end(&coordinator);
    for (int i = 0; i < 2; i++) /* the coordinator's Bye ends them */
        curve_ended(&worker[i]);
    json_decref(golden);
    return curve_rig_close();
}

static void start_honest(struct child *c)
{
    const json_t *want = json_array_get(json_object_get(golden, "generate"), 0);

    child_start(c, ESPALIER, NULL,
                (const char *[]){"run", "--connect", at, "--keys", curve_path("keys/clients/anna"), "--image",
                                 SCENE, "--max-tokens", "24", "--ignore-eos",
                                 json_string_value(json_object_get(want, "prefix")), NULL});
}

static void expect_honest(struct child *c)
{
    const json_t *want = json_array_get(json_object_get(golden, "generate"), 0);
    char text[4096];

    child_wait(c, NULL);
    child_expect(c, "an honest client", 0, "w0: ", NULL);
    snprintf(text, sizeof text, "%s\n", json_string_value(json_object_get(want, "text")));
    assert_string_equal(OUT(c), text);
    child_finish(c);
}

static void test_right_keys(void **state)
{
    struct child c;

    start_honest(&c);
    expect_honest(&c);
    assert_non_null(strstr(ERR(&coordinator), "key=w0"));
    assert_non_null(strstr(ERR(&coordinator), "key=w1"));
}

static const struct {
    const char *what;
    bool as_worker;
    const char *keys;   /* NULL: none */
    const char *told;   /* on the refused one's stderr */
    const char *logged; /* by the coordinator; NULL: it never got there */
} refused[] = {
    {"no key", false, NULL, "nothing answers there",
     "why=\"it has no keys, or broke off"}, /* its address is known if it is still there when it is looked at */
    {"keys of another cluster", false, "other/clients/anna", "breaks off the handshake",
     "why=\"it took another public key for ours"},
    {"a key that is in no list", false, "unknown", "does not take our key",
     "why=\"its key is in no allow list here\""},
    {"a worker's key used as a client's", false, "keys/workers/w0", "a status_query takes a client's key",
     "worker=w0 bad_message why=\"a status_query takes a client's key"},
    {"a client's key used as a worker's", true, "client_as_worker",
     "coordinator refuses: a hello takes a worker's key",
     "client=anna bad_message why=\"a hello takes a worker's key"},
    {"a worker that is in no list", true, "unknown_worker", "does not take our key",
     "why=\"its key is in no allow list here\""},
    {"a secret that others can read", false, "open_secret", "chmod 600", NULL},
    {"what keygen made, whole", false, "keys", "not a client's keys ('espalier keygen' makes them", NULL},
};

static void test_refused(void **state)
{
    struct child honest;

    start_honest(&honest);
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const char *as_client[] = {"cluster", "status", "--connect", at,  "--timeout",
                                   "5",       "--keys", NULL,        NULL};
        const char *as_worker[] = {"--model", TINY, "--connect", at, "--keys", NULL, NULL};
        struct child c;

        as_client[7] = as_worker[5] = refused[i].keys ? curve_path(refused[i].keys) : NULL;
        if (!refused[i].keys)
            as_client[6] = NULL;
        child_run(&c, refused[i].as_worker ? WORKER : ESPALIER, refused[i].as_worker ? as_worker : as_client);
        child_expect(&c, refused[i].what, 1, refused[i].told, NULL);
        assert_string_equal(OUT(&c), "");
        child_finish(&c);
        if (refused[i].logged)
            curve_wait_for(&coordinator, refused[i].logged);
    }
    expect_honest(&honest);
    start_honest(&honest); /* nor is anything left behind */
    expect_honest(&honest);
    assert_null(strstr(ERR(&coordinator), " lost "));
}

/* A worker's data socket takes workers alone. */
static void test_data_socket(void **state)
{
    char data[128];
    struct child c;

    curve_wait_for(&worker[0], "joined ");
    assert_int_equal(sscanf(strstr(ERR(&worker[0]), " data="), " data=%127s", data), 1);
    child_run(&c, ESPALIER, (const char *[]){"cluster", "status", "--connect", data, "--timeout", "5", NULL});
    child_expect(&c, "no key", 1, "nothing answers there", NULL);
    child_finish(&c);
    curve_wait_for(&worker[0], "why=\"it has no keys, or broke off");
    curve_compose("at_data", "secret=keys/clients/anna/secret,coordinator.public=keys/workers/w0/public");
    child_run(
        &c, ESPALIER,
        (const char *[]){"cluster", "status", "--connect", data, "--keys", curve_path("at_data"), NULL});
    child_expect(&c, "a client's key", 1, "does not take our key", NULL);
    child_finish(&c);
    curve_wait_for(&worker[0], "why=\"its key is in no allow list here\"");
}

static void test_added_later(void **state)
{
    struct child c;

    curve_keygen(ESPALIER, "keys", "--client", "late");
    child_run(&c, ESPALIER,
              (const char *[]){"cluster", "status", "--connect", at, "--keys",
                               curve_path("keys/clients/late"), NULL});
    child_expect(&c, "added later", 0, NULL, "ready, placement 1");
    child_finish(&c);
    curve_wait_for(&coordinator, "clients.allow keys=2 action=read_again");
}

static void test_bind(void **state)
{
    struct child c;

    child_run(&c, COORDINATOR, (const char *[]){"--model", TINY, "--bind", "tcp://0.0.0.0:*", NULL});
    child_expect(&c, "without keys", 2, "give --keys DIR", NULL);
    child_finish(&c);
    child_start(&c, COORDINATOR, NULL,
                (const char *[]){"--model", TINY, "--bind", "tcp://0.0.0.0:*", "--keys",
                                 curve_path("keys/coordinator"), NULL});
    curve_wait_for(&c, "listening endpoint=tcp://0.0.0.0:");
    curve_end(&c);
}

static void test_up(void **state)
{
    char connect[128], keys[128];
    struct child up, c;
    int port = 20000 + (int)(getpid() % 20000);
    char bind[64];

    curve_keygen(ESPALIER, "up", "--client", "local");
    snprintf(bind, sizeof bind, "tcp://127.0.0.1:%d", port);
    child_start(&up, ESPALIER, NULL,
                (const char *[]){"up", "--model", TINY, "--bind", bind, "--keys", curve_path("up"), NULL});
    child_wait_for(&up, 0, "PROMPT\n");
    assert_int_equal(
        sscanf(OUT(&up), "ready: espalier run --connect %127s --keys %127s --image", connect, keys), 2);
    child_run(&c, ESPALIER,
              (const char *[]){"cluster", "status", "--connect", connect, "--keys", keys, NULL});
    child_expect(&c, "status", 0, NULL, "ready, placement 1");
    child_finish(&c);
    kill(up.pid, SIGINT);
    child_wait(&up, NULL);
    child_expect(&up, "up", 0, NULL, NULL);
    child_finish(&up);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_keys),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_data_socket), cmocka_unit_test(test_added_later),
        cmocka_unit_test(test_bind),        cmocka_unit_test(test_up),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
