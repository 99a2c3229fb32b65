/* The coordinator is killed again and again under eight clients of every kind, the real programs over real sockets: each
 * prints what it prints when nothing happens, byte for byte, and the workers live on and load nothing. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"
#include "tests/cluster/curve_rig.h"
#include "tests/support/patience.h"

#define TINY      "tests/golden/data/tiny"
#define SCENE_A   TINY "/images/scene_a.png"
#define SCENE_B   TINY "/images/scene_b.png"
#define N_CLIENTS 8
#define N_WORKERS 2

static const char *const kinds[N_CLIENTS][12] = {
    {"--image", SCENE_A, "--max-tokens", "100", "caption en"},
    {"--max-tokens", "130", "answer en how many"},
    {"--max-tokens", "110", "--temperature", "1.1", "--seed", "7", "--image", SCENE_B, "caption en"},
    {"--max-tokens", "90", "--temperature", "0.9", "--top-p", "0.8", "caption de"},
    {"--max-tokens", "30", "--beams", "3", "--image", SCENE_A, "caption en"},
    {"--max-tokens", "30", "--beams", "4", "--length-penalty", "0.5", "caption en"},
    {"--max-tokens", "40", "--temperature", "0.8", "--best-of", "3", "detect cat"},
    {"--max-tokens", "100", "--image", SCENE_B, "--image", SCENE_A, "--suffix", "a", "answer en"},
};

static struct cluster {
    char at[64];
    bool keys;
    struct child coordinator, worker[N_WORKERS], client[N_CLIENTS];
    size_t n_shown[N_CLIENTS]; /* of its stdout, when the coordinator was last started */
    uint32_t n_kills, n_restored;
} cl;
static char *want[N_CLIENTS];

/* ---- processes ---- */

static void start_coordinator(void)
{
    const char *args[] = {"--model",     TINY,   "--bind", cl.at, "--workers", "2",
                          "--log-level", "info", NULL,     NULL,  NULL};

    if (cl.keys) { /* its journal is where one on a tcp port has it */
        args[8] = "--keys";
        args[9] = curve_path("keys/coordinator");
    } else {
        args[8] = "--journal";
        args[9] = curve_path("journal");
    }
    child_start(&cl.coordinator, COORDINATOR, NULL, args);
}

static void start_worker(int i)
{
    static const char *const names[N_WORKERS] = {"w0", "w1"}, *const dirs[N_WORKERS] = {"keys/workers/w0",
                                                                                        "keys/workers/w1"};

    child_start(&cl.worker[i], WORKER, NULL,
                (const char *[]){"--model", TINY, "--connect", cl.at, "--name", names[i],
                                 cl.keys ? "--keys" : NULL, curve_path(dirs[i]), NULL});
}

static void start_client(int i)
{
    const char *args[24] = {"run", "--connect", cl.at, "--ignore-eos"};
    size_t n = 4;

    if (cl.keys) {
        args[n++] = "--keys";
        args[n++] = curve_path("keys/clients/anna");
    }
    for (size_t k = 0; kinds[i][k]; k++)
        args[n++] = kinds[i][k];
    child_start(&cl.client[i], ESPALIER, NULL, args);
    cl.n_shown[i] = 0;
}

/* A coordinator's log, when it is over: what it has brought back, and that its workers read nothing again. */
static void look_at_log(bool first)
{
    const char *log = ERR(&cl.coordinator);

    if (getenv("ESP_TEST_VERBOSE"))
        fprintf(stderr, "%s\n", log);
    for (const char *p = log; (p = strstr(p, " restored steps=")); p++)
        cl.n_restored++;
    for (const char *p = log; (p = strstr(p, " loaded_bytes=")); p++)
        if (!first && strncmp(p, " loaded_bytes=0 ", 16) != 0)
            fail_msg("weights were read again: %.60s", p);
}

static void kill_coordinator(void)
{
    assert_false(child_over(&cl.coordinator));
    kill(cl.coordinator.pid, SIGKILL);
    while (!child_over(&cl.coordinator))
        usleep(1000);
    assert_int_equal(cl.coordinator.exit, 128 + SIGKILL);
    look_at_log(cl.n_kills == 0);
    child_finish(&cl.coordinator);
    cl.n_kills++;
}

static void open_cluster(bool keys)
{
    char state[128];

    memset(&cl, 0, sizeof cl);
    cl.keys = keys;
    assert_true(curve_rig_open());
    if (keys) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t n = sizeof a;
        const int fd = socket(AF_INET, SOCK_STREAM, 0); /* finds a port that nobody has */

        assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&a, n) == 0 &&
                    getsockname(fd, (struct sockaddr *)&a, &n) == 0);
        close(fd);
        snprintf(cl.at, sizeof cl.at, "tcp://127.0.0.1:%u", ntohs(a.sin_port));
        curve_keygen(ESPALIER, "keys", "--worker", "w0");
        curve_keygen(ESPALIER, "keys", "--worker", "w1");
        curve_keygen(ESPALIER, "keys", "--client", "anna");
        snprintf(state, sizeof state, "%s", curve_path("state"));
        setenv("XDG_STATE_HOME", state, 1);
    } else {
        snprintf(cl.at, sizeof cl.at, "ipc://%s", curve_path("c"));
    }
    start_coordinator();
    for (int i = 0; i < N_WORKERS; i++)
        start_worker(i);
    curve_wait_for(&cl.coordinator, "ready epoch=1 stages=2");
}

static void close_cluster(void)
{
    for (int i = 0; i < N_WORKERS; i++)
        if (child_over(&cl.worker[i]))
            fail_msg("a worker has ended with status %d:\n%s", cl.worker[i].exit, ERR(&cl.worker[i]));
    kill(cl.coordinator.pid, SIGTERM);
    cl.coordinator.started_ms = esp_now_ms();
    child_wait(&cl.coordinator, NULL);
    assert_int_equal(cl.coordinator.exit, 0);
    look_at_log(cl.n_kills == 0);
    child_finish(&cl.coordinator);
    for (int i = 0; i < N_WORKERS; i++) /* the coordinator's Bye ends them */
        curve_ended(&cl.worker[i]);
    assert_int_equal(curve_rig_close(), 0);
}

/* ---- answers ---- */

/* Everybody's output is taken. Returns how many clients run; *n_new: bytes of answers since the last start. */
static uint32_t look(size_t *n_new)
{
    uint32_t n = 0;

    *n_new = 0;
    for (int i = 0; i < N_CLIENTS; i++) {
        n += !child_over(&cl.client[i]);
        *n_new += cl.client[i].n[0] - cl.n_shown[i];
    }
    for (int i = 0; i < N_WORKERS; i++)
        if (child_over(&cl.worker[i]))
            fail_msg("a worker has ended with status %d:\n%s", cl.worker[i].exit, ERR(&cl.worker[i]));
    if (child_over(&cl.coordinator))
        fail_msg("the coordinator has ended by itself, with status %d:\n%s", cl.coordinator.exit,
                 ERR(&cl.coordinator));
    return n;
}

/* Kills it, and starts it again; every fifth time twice at once, before anything can have been brought back. */
static void kill_and_start(void)
{
    for (int again = cl.n_kills % 5 == 3; again >= 0; again--) {
        kill_coordinator();
        start_coordinator();
        curve_wait_for(&cl.coordinator, "listening endpoint=");
    }
    for (int i = 0; i < N_CLIENTS; i++)
        cl.n_shown[i] = cl.client[i].n[0];
}

/* Eight clients at once. While they are answered the coordinator is killed, until it has been n_kills times. */
static void round_of_clients(uint32_t n_kills)
{
    size_t n_new, n_before = 0;
    long since = esp_now_ms();

    for (int i = 0; i < N_CLIENTS; i++)
        start_client(i);
    while (look(&n_new) > 0) {
        /* After a word or two, or a page: never at the same place. */
        if (cl.n_kills < n_kills && n_new > (cl.n_kills + 1) * 7919 % 600) {
            kill_and_start();
            n_new = 0;
        }
        if (n_new != n_before)
            since = esp_now_ms();
        n_before = n_new;
        if (esp_now_ms() - since > ESP_PATIENCE_MS)
            fail_msg("nothing goes on any more; the coordinator says:\n%s", ERR(&cl.coordinator));
        usleep(5000);
    }
    for (int i = 0; i < N_CLIENTS; i++) {
        child_expect(&cl.client[i], kinds[i][0], 0, NULL, NULL);
        assert_true(cl.client[i].n[0] > 1);
        if (!want[i])
            want[i] = strdup(OUT(&cl.client[i])); /* the first time nothing happens */
        assert_non_null(want[i]);
        if (strcmp(OUT(&cl.client[i]), want[i]) != 0)
            fail_msg("client %d says:\n%s\nand not:\n%s", i, OUT(&cl.client[i]), want[i]);
        child_finish(&cl.client[i]);
    }
}

static void killed(bool keys, uint32_t n_kills)
{
    const long start = esp_now_ms();
    uint32_t n_rounds = 0;

    open_cluster(keys);
    if (!want[0])
        round_of_clients(0);
    for (; cl.n_kills < n_kills; n_rounds++)
        round_of_clients(n_kills);
    close_cluster();
    print_message("%u kills in %u rounds of %d clients, %u sessions restored, %.1f s\n", cl.n_kills, n_rounds,
                  N_CLIENTS, cl.n_restored, (double)(esp_now_ms() - start) / 1000);
    assert_true(cl.n_restored > n_kills); /* or the journal was of no use, and all was done again */
}

static void test_ipc(void **state)
{
    killed(false, getenv("ESPALIER_SOAK") ? 20 : 3);
}

/* Over TCP with keys: whoever resumes has proven to be the same member. */
static void test_tcp_with_keys(void **state)
{
    killed(true, getenv("ESPALIER_SOAK") ? 20 : 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ipc), cmocka_unit_test(test_tcp_with_keys)};
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);

    for (int i = 0; i < N_CLIENTS; i++)
        free(want[i]);
    return rc;
}
