/* How the embedded cluster ends when something goes wrong in the middle of an answer: what is said, with
 * which status, and that no process is left. */
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cluster/cli_child.h"

#define TINY  "tests/golden/data/tiny"
#define SCENE TINY "/images/scene_a.png"

static char run_dir[32];

static int setup(void **state)
{
    strcpy(run_dir, "/tmp/espalier-test-XXXXXX");
    assert_non_null(mkdtemp(run_dir));
    return setenv("XDG_RUNTIME_DIR", run_dir, 1);
}

static int teardown(void **state)
{
    return rmdir(run_dir); /* fails where something is left */
}

/* A long answer by three workers, each with layers, its first token out. */
static void start_decoding(struct child *c)
{
    child_start(c, ESPALIER, NULL,
                (const char *[]){"run", "--model", TINY, "--workers", "3", "--split", "1/1,1/1,0/1",
                                 "--image", SCENE, "--ignore-eos", "--max-tokens", "20000", "caption en",
                                 NULL});
    child_wait_for(c, 0, NULL);
    assert_int_equal(child_n_daemons(run_dir), 4);
}

static void test_daemon_ends(void **state)
{
    static const struct {
        const char *daemon;
        int signal;
        const char *seen,
            *told; /* the command sees it itself, or hears it from the coordinator, if that is first */
    } cases[] = {
        {"w0", SIGKILL, "espalier run: w0 was killed by signal 9 (Killed)\n", "espalier run: worker w0: "},
        {"w2", SIGABRT, "espalier run: w2 was killed by signal 6 (Aborted)\n", "espalier run: worker w2: "},
        {"w1", SIGTERM, "espalier run: w1 ended with status 0 without a word\n",
         "espalier run: worker w1: left: stopped\n"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *expected = cases[i].seen;
        struct child c;

        start_decoding(&c);
        kill(child_daemon(run_dir, cases[i].daemon), cases[i].signal);
        child_wait(&c, NULL);
        if (!strstr(ERR(&c), expected) && cases[i].told)
            expected = cases[i].told;
        child_expect(&c, cases[i].daemon, 1, expected, NULL);
        child_no_daemons(run_dir);
        child_finish(&c);
    }
}

/* A worker that stands still is missed, and the answer waits for it: nobody else is there who could do its part. */
static void test_daemon_sleeps(void **state)
{
    struct child c;
    pid_t w1;

    start_decoding(&c);
    w1 = child_daemon(run_dir, "w1");
    kill(w1, SIGSTOP);
    child_wait_for(&c, 1, "said nothing for");
    c.n[0] = 0; /* what has come so far */
    OUT(&c)[0] = '\0';
    kill(w1, SIGCONT);
    child_wait_for(&c, 0, NULL);
    kill(w1, SIGSTOP); /* which SIGTERM does not end */
    kill(c.pid, SIGINT);
    child_wait(&c, NULL);
    child_expect(&c, "sleeps", 130, "espalier run: cancelled\n", NULL);
    child_no_daemons(run_dir);
    child_finish(&c);
}

static void test_interrupted(void **state)
{
    static const struct {
        int signal, exit;
        const char *err;
    } cases[] = {
        {SIGINT, 130, "espalier run: cancelled\n"},
        {SIGTERM, 143, "espalier run: cancelled\n"},
        {SIGHUP, 129, "espalier run: cancelled\n"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        start_decoding(&c);
        kill(c.pid, cases[i].signal);
        child_wait(&c, NULL);
        child_expect(&c, "interrupted", cases[i].exit, cases[i].err, NULL);
        assert_int_equal(child_n_daemons(run_dir), 0); /* at once: the command waits for them */
        child_finish(&c);
    }
}

/* What no program can see coming: the sockets stay, the processes do not. */
static void test_killed(void **state)
{
    struct dirent *e;
    char dir[300];
    struct child c;
    DIR *d;

    start_decoding(&c);
    kill(c.pid, SIGKILL);
    child_wait(&c, NULL);
    child_expect(&c, "killed", 128 + SIGKILL, NULL, NULL);
    child_no_daemons(run_dir);
    child_finish(&c);
    d = opendir(run_dir);
    assert_non_null(d);
    while ((e = readdir(d)) != NULL) {
        static const char *const names[] = {"c", "w0", "w1", "w2"};
        char path[320];

        if (e->d_name[0] == '.')
            continue;
        snprintf(dir, sizeof dir, "%s/%s", run_dir, e->d_name);
        for (size_t i = 0; i < 4; i++) {
            snprintf(path, sizeof path, "%s/%s", dir, names[i]);
            unlink(path);
        }
        assert_int_equal(rmdir(dir), 0);
    }
    closedir(d);
}

/* The reader of our answer goes away, as `espalier run ... | head -c 1` does. */
static void test_reader_gone(void **state)
{
    struct child c;

    start_decoding(&c);
    close(c.fd[0]);
    c.fd[0] = -1;
    child_wait(&c, NULL);
    if (c.exit != 1 && c.exit != 128 + SIGPIPE)
        fail_msg("status %d: %s", c.exit, ERR(&c));
    child_no_daemons(run_dir);
    child_finish(&c);
}

static void test_failures(void **state)
{
    static const struct {
        const char *args[12], *err;
    } cases[] = {
        {{"run", "--model", TINY, "--device", "99", "--image", SCENE, "x"},
         "--device 99: there are devices 0 to"},
        {{"run", "--model", TINY, "--memory", "1", "--image", SCENE, "x"},
         "does not fit: w0 1.0 MiB, w1 1.0 MiB"},
        {{"run", "--model", TINY, "--image", TINY "/images/none.png", "x"},
         TINY "/images/none.png: No such file"},
        {{"run", "--model", TINY, "--image", "/dev/null", "x"}, "/dev/null: not a regular file"},
        {{"run", "--model", TINY, "--image", TINY "/images", "x"}, TINY "/images: not a regular file"},
        {{"run", "--model", "tests/golden", "--image", SCENE, "x"}, "tests/golden/config.json: No such file"},
        {{"run", "--model", "google/paligemma-3b-mix-224", "--image", SCENE, "x"},
         "google/paligemma-3b-mix-224: No such file or directory; expected a Hugging Face directory"},
        {{"run", "--model", TINY "/config.json", "--image", SCENE, "x"}, "config.json: not a directory"},
        {{"run", "--connect", "ipc:///tmp/espalier-nobody-listens", "--image", SCENE, "x"},
         "is a coordinator running?"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        child_run(&c, ESPALIER, cases[i].args);
        child_expect(&c, cases[i].err, 1, cases[i].err, NULL);
        assert_string_equal(OUT(&c), "");
        child_no_daemons(run_dir);
        child_finish(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_daemon_ends), cmocka_unit_test(test_daemon_sleeps),
        cmocka_unit_test(test_interrupted), cmocka_unit_test(test_killed),
        cmocka_unit_test(test_reader_gone), cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
