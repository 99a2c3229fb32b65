/* espalier-worker as a process: arguments, exit statuses, signals, and what it leaves behind. It is the real
 * main.c, linked with a fake stage and device. The test plays the coordinator. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"
#include "tests/cluster/worker_rig.h"
#include "tests/support/fake_stage.h"

#define MODEL "tests/golden/data/tiny"

extern char **environ;

struct child {
    pid_t pid;
    int out; /* its stdout and stderr */
    char text[8192];
};

static void spawn(struct child *c, const char *const *args)
{
    char *argv[24] = {(char *)(uintptr_t)FAKE_WORKER};
    posix_spawn_file_actions_t actions;
    int pipe_fd[2];

    for (int i = 0; args[i]; i++)
        argv[i + 1] = (char *)(uintptr_t)args[i];
    assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_fd[1], 1);
    posix_spawn_file_actions_adddup2(&actions, pipe_fd[1], 2);
    assert_int_equal(posix_spawn(&c->pid, FAKE_WORKER, &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_fd[1]);
    c->out = pipe_fd[0];
    c->text[0] = '\0';
}

/** Reads what it prints until it ends; its exit status, or 1000 + the signal that ended it. */
static int finish(struct child *c)
{
    size_t n = 0;
    ssize_t got;
    int status;

    while ((got = read(c->out, c->text + n, sizeof c->text - 1 - n)) > 0)
        n += (size_t)got;
    c->text[n] = '\0';
    close(c->out);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void expect_end(struct child *c, int status, const char *fragment)
{
    int got = finish(c);

    if (got != status || !strstr(c->text, fragment))
        fail_msg("status %d, expected %d and \"%s\":\n%s", got, status, fragment, c->text);
}

static void test_arguments(void **state)
{
    static const struct {
        const char *args[10];
        int status;
        const char *fragment;
    } cases[] = {
        {{"--help"}, 0, "Exit status: 0"},
        {{"--version"}, 0, "espalier-worker " ESP_VERSION},
        {{"--list-devices"}, 0, "0  Fake"},
        {{"--list-devices", "--json"}, 0, "\"name\": \"Fake\""},
        {{"--tune"}, 0, "Fake: nothing to choose"},
        {{NULL}, 2, "--connect is missing"},
        {{"--model", MODEL}, 2, "--connect is missing"},
        {{"--cache-limit", "many"}, 2, "--cache-limit many: not a number of MiB"},
        {{"--model", MODEL, "--connect", "ipc:///tmp/x", "--cache", "/tmp/x"},
         2,
         "for a worker without --model"},
        {{"--connect", "ipc:///tmp/x", "--device", "7"}, 1, "there is only 0, Fake"}, /* needs no model */
        {{"--model"}, 2, "--model needs a value"},
        {{"--json"}, 2, "--json goes with --list-devices"},
        {{"--wat"}, 2, "--wat: no such option"},
        {{"wat"}, 2, "wat: takes no such argument"},
        {{"--model", MODEL, "--connect", "here"}, 2, "--connect here: not tcp://HOST:PORT"},
        {{"--model", MODEL, "--connect", "ipc:///tmp/x", "--bind", "udp://x"},
         2,
         "--bind udp://x: not tcp://"},
        {{"--model", MODEL, "--connect", "ipc:///tmp/x", "--name", "a b"}, 2, "--name a b: takes 1 to 63"},
        {{"--model", MODEL, "--connect", "ipc:///tmp/x", "--name", ""}, 2, "--name : takes 1 to 63"},
        {{"--memory", "0"}, 2, "--memory 0: not a number of MiB"},
        {{"--memory", "-4"}, 2, "--memory -4: not a number"},
        {{"--memory", "4G"}, 2, "--memory 4G: not a number"},
        {{"--memory", "99999999999999999999"}, 2, "not a number of MiB"},
        {{"--log-level", "loud"}, 2, "--log-level loud: takes error, warn"},
        {{"--model", "/nowhere", "--connect", "ipc:///tmp/x"}, 1, "/nowhere"},
        {{"--model", MODEL, "--connect", "ipc:///tmp/x", "--device", "7"}, 1, "there is only 0, Fake"},
        {{"--model", MODEL, "--connect", "tcp://127.0.0.1:9", "--bind", "tcp://0.0.0.0:*"},
         1,
         "without keys"},
        {{"--model", MODEL, "--connect", "ipc:///tmp/x", "--bind", "ipc:///nowhere/x"},
         1,
         "ipc:///nowhere/x"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        spawn(&c, cases[i].args);
        expect_end(&c, cases[i].status, cases[i].fragment);
    }
}

/** Starts one that dials the rig, as rig worker 0, and welcomes it. */
static void join(struct rig *rig, struct child *c, const char *more)
{
    const char *const args[] = {"--model", MODEL, "--connect", rig->at, "--name", "w0", more, NULL};

    strcpy(rig->w[0].name, "w0");
    spawn(c, args);
    rig_welcome(rig, 0);
}

static void test_signal_when_joined(void **state)
{
    static const int signals[] = {SIGTERM, SIGINT};
    struct rig *rig = *state;

    for (size_t i = 0; i < 2; i++) {
        char dir[ESP_MAX_ENDPOINT];
        struct child c;
        struct esp_msg msg;

        join(rig, &c, NULL);
        assert_memory_equal(rig->w[0].endpoint, "ipc:///", 7); /* in a private directory of its own */
        snprintf(dir, sizeof dir, "%s", rig->w[0].endpoint + strlen("ipc://"));
        assert_int_equal(access(dir, F_OK), 0);
        *strrchr(dir, '/') = '\0';
        rig_place_all(rig, 1, 1);
        kill(c.pid, signals[i]);
        rig_take(rig, 0, ESP_MSG_BYE, &msg);
        esp_msg_finish(&msg);
        expect_end(&c, 0, "stopping");
        assert_int_not_equal(access(dir, F_OK), 0);
    }
}

/* Nobody listens: it goes on dialling, and a signal ends it. */
static void test_signal_when_alone(void **state)
{
    const char *const args[] = {"--model", MODEL, "--connect", "tcp://127.0.0.1:9", NULL};
    char text[4096];
    struct child c;

    spawn(&c, args);
    assert_true(read(c.out, text, sizeof text) > 0); /* its first log line comes once signals are caught */
    usleep(100000);
    kill(c.pid, SIGTERM);
    expect_end(&c, 0, "stopping");
}

static void test_bye_and_refusal(void **state)
{
    struct rig *rig = *state;
    const char *const args[] = {"--model", MODEL, "--connect", rig->at, "--name", "w0", NULL};
    struct esp_msg msg;
    struct child c;

    join(rig, &c, "--die-with-parent");
    rig_send(rig, 0, &(struct esp_msg){.kind = ESP_MSG_BYE, .bye = {.why = "shutting down"}});
    expect_end(&c, 0, "shutting down");

    spawn(&c, args);
    rig_take(rig, 0, ESP_MSG_HELLO, &msg);
    esp_msg_finish(&msg);
    rig_send(rig, 0,
             &(struct esp_msg){.kind = ESP_MSG_ERROR,
                               .error = {.code = ESP_E_FORMAT, .text = "another checkpoint than ours"}});
    expect_end(&c, 1, "espalier-worker: w0: coordinator refuses: another checkpoint than ours");
}

static void step(struct rig *rig, uint64_t seq)
{
    const struct esp_seq_rows rows = {.seq = seq, .n_tok = 1};
    const int32_t id = 1;
    struct esp_msg msg = {.kind = ESP_MSG_STEP, .n_blobs = 1, .blob = {{.data = &id, .n_bytes = 4}}};

    msg.step = (struct esp_msg_step){.epoch = 1,
                                     .id = 1,
                                     .payload = ESP_PAYLOAD_TOKENS,
                                     .rows = 1,
                                     .width = 1,
                                     .n_seqs = 1,
                                     .seqs = &rows};
    rig_send(rig, 0, &msg);
}

static void test_device_lost(void **state)
{
    struct rig *rig = *state;
    struct child c;

    join(rig, &c, NULL);
    rig_place_all(rig, 1, 1);
    step(rig, FAKE_SEQ_DEVICE);
    rig_take_error(rig, 0, ESP_E_DEVICE, "VK_ERROR_DEVICE_LOST", 1, 1, 0);
    expect_end(&c, 1, "espalier-worker: w0: vkQueueSubmit: VK_ERROR_DEVICE_LOST");
}

/* A signal is obeyed though the device is in the middle of something long. */
static void test_signal_when_busy(void **state)
{
    struct rig *rig = *state;
    uint64_t begun;
    struct esp_msg msg;
    struct child c;

    join(rig, &c, NULL);
    rig_place_all(rig, 1, 1);
    step(rig, FAKE_SEQ_STUCK); /* four seconds */
    do {                       /* until it is under way */
        rig_take(rig, 0, ESP_MSG_HEARTBEAT, &msg);
        begun = msg.heartbeat.n_queued;
        esp_msg_finish(&msg);
    } while (begun == 0);
    begun = esp_now_ns();
    kill(c.pid, SIGTERM);
    expect_end(&c, 0, "stopping");
    assert_true(esp_now_ns() - begun < UINT64_C(3500000000));
}

/* With --die-with-parent nothing outlives who started it, even if that one is killed. */
static void test_dies_with_parent(void **state)
{
    struct rig *rig = *state;
    int pipe_fd[2];
    pid_t middle;
    char byte;

    assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
    middle = fork();
    assert_true(middle >= 0);
    if (middle == 0) { /* only async-signal-safe calls: the test has threads */
        pid_t worker = vfork();
        if (worker == 0) {
            dup2(pipe_fd[1], 2);
            execl(FAKE_WORKER, FAKE_WORKER, "--model", MODEL, "--connect", rig->at, "--name", "w0",
                  "--die-with-parent", "--log-level", "error", (char *)NULL);
            _exit(127);
        }
        close(pipe_fd[1]);
        for (;;)
            pause();
    }
    close(pipe_fd[1]);
    strcpy(rig->w[0].name, "w0");
    rig_welcome(rig, 0); /* it lives */
    kill(middle, SIGKILL);
    assert_int_equal(waitpid(middle, NULL, 0), middle);
    assert_int_equal(read(pipe_fd[0], &byte, 1), 0); /* the last holder of its stderr is gone */
    close(pipe_fd[0]);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arguments),
        WITH_RIG(test_signal_when_joined),
        cmocka_unit_test(test_signal_when_alone),
        WITH_RIG(test_bye_and_refusal),
        WITH_RIG(test_device_lost),
        WITH_RIG(test_signal_when_busy),
        WITH_RIG(test_dies_with_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
