/* The embedded cluster's processes, with stand-ins for the daemons: what they are started with, how their
 * ends are told, and that none is left, whatever ends the command. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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

#include "proto/clock.h"
#include "tests/cluster/cli_child.h"

#define TINY  "tests/golden/data/tiny"
#define SCENE TINY "/images/scene_a.png"
#define ANY   SIZE_MAX

struct place {
    char dir[256]; /* the programs, beside each other */
    char run[300]; /* XDG_RUNTIME_DIR of the command */
    char espalier[300], log[300];
    struct script script;
    size_t n_lines; /* of the log, before `act` is called */
    void (*act)(struct place *p, struct child *c);
    bool acted;
};

static void link_as(const struct place *p, const char *program, const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", p->dir, name);
    if (link(program, path) != 0)
        fail_msg("link %s %s: %s", program, path, strerror(errno));
}

static int setup(void **state)
{
    static struct place p;

    memset(&p, 0, sizeof p);
    snprintf(p.dir, sizeof p.dir, "%s/embed-XXXXXX",
             WORK_DIR); /* on the file system of the programs: they are linked */
    assert_non_null(mkdtemp(p.dir));
    strcpy(p.run, "/tmp/espalier-test-XXXXXX");
    assert_non_null(mkdtemp(p.run));
    snprintf(p.espalier, sizeof p.espalier, "%s/espalier", p.dir);
    snprintf(p.log, sizeof p.log, "%s/log", p.dir);
    link_as(&p, ESPALIER, "espalier");
    link_as(&p, FAKE_DAEMON, "espalier-coordinator");
    link_as(&p, FAKE_DAEMON, "espalier-worker");
    setenv("FAKE_LOG", p.log, 1);
    setenv("XDG_RUNTIME_DIR", p.run, 1);
    unsetenv("FAKE_coordinator");
    unsetenv("FAKE_w0");
    unsetenv("FAKE_w1");
    p.script.self = &p;
    *state = &p;
    return 0;
}

static int teardown(void **state)
{
    static const char *const files[] = {"espalier", "espalier-coordinator", "espalier-worker", "log"};
    struct place *p = *state;
    char path[600];

    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", p->dir, files[i]);
        unlink(path);
    }
    rmdir(p->dir);
    rmdir(p->run);
    return 0;
}

static char *read_log(const struct place *p, size_t *n_lines)
{
    static char text[65536];
    FILE *f = fopen(p->log, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;

    if (f)
        fclose(f);
    text[n] = '\0';
    *n_lines = 0;
    for (size_t i = 0; i < n; i++)
        *n_lines += text[i] == '\n';
    return text;
}

/* The rest of the line of the process of that name. */
static char *arguments(const struct place *p, const char *name)
{
    static char line[4096];
    size_t n_lines;
    char *at = read_log(p, &n_lines);

    while (*at && !(strncmp(at, name, strlen(name)) == 0 && at[strlen(name)] == ' '))
        at += strcspn(at, "\n") + 1;
    snprintf(line, sizeof line, "%.*s ", (int)strcspn(at, "\n"), at);
    return line;
}

/* A process that ended but whose parent has not asked counts as gone. */
static bool runs(pid_t pid)
{
    char path[64], state = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    f = fopen(path, "r");
    if (!f)
        return false;
    if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
        state = 0;
    fclose(f);
    return state && state != 'Z';
}

/* All that the log names have ended (soon: SIGKILL takes its time) and the runtime directory is empty. */
static void expect_nothing_left(const struct place *p, size_t n_processes, bool dir_too)
{
    size_t n_lines;
    char *at = read_log(p, &n_lines);
    struct dirent *e;
    DIR *d;

    if (n_processes != ANY)
        assert_int_equal(n_lines, n_processes);
    for (; *at; at += strcspn(at, "\n") + 1) {
        pid_t pid = (pid_t)atoi(strchr(at, ' '));
        const int64_t end = esp_now_ms() + ESP_PATIENCE_MS;
        while (runs(pid) && esp_now_ms() < end)
            usleep(1000);
        if (runs(pid))
            fail_msg("left running: %.*s", (int)strcspn(at, "\n"), at);
    }
    d = opendir(p->run);
    assert_non_null(d);
    while (dir_too && (e = readdir(d)) != NULL) {
        if (e->d_name[0] != '.')
            fail_msg("left in %s: %s", p->run, e->d_name);
    }
    closedir(d);
}

static void remove_runtime_dir(const struct place *p)
{
    DIR *d = opendir(p->run);
    struct dirent *e;

    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] != '.')
            unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR);
    }
    closedir(d);
}

/* Until so many processes have started, and said so. */
static void wait_for_lines(const struct place *p, size_t n)
{
    const int64_t end = esp_now_ms() + ESP_PATIENCE_MS;
    size_t n_lines = 0;

    while (n_lines < n && esp_now_ms() < end) {
        usleep(2000);
        read_log(p, &n_lines);
    }
}

/* Waits until all processes have started, then lets the test act, while the child is being waited for. */
static pid_t actor;

static void act_when_started(struct place *p, struct child *c)
{
    actor = fork(); /* the waiting goes on here; the actor only looks at the log and sends a signal */
    assert_true(actor >= 0);
    if (actor == 0) {
        wait_for_lines(p, p->n_lines);
        p->act(p, c);
        _exit(0);
    }
}

static void run(struct place *p, struct child *c, const char *const *args)
{
    child_start(c, p->espalier, NULL, args);
    if (p->act)
        act_when_started(p, c);
    child_wait(c, &p->script);
}

static void act_int(struct place *p, struct child *c)
{
    kill(c->pid, SIGINT);
}

static void act_int_twice(struct place *p, struct child *c)
{
    kill(c->pid, SIGINT);
    usleep(100000);
    kill(c->pid, SIGINT);
}

static void act_term(struct place *p, struct child *c)
{
    kill(c->pid, SIGTERM);
}

static void act_kill(struct place *p, struct child *c)
{
    kill(c->pid, SIGKILL);
}

/* ---- */

static void test_arguments(void **state)
{
    static const struct {
        const char *name, *part;
    } parts[] = {
        {"coordinator", " --model " TINY " "},
        {"coordinator", " --workers 3 "},
        {"coordinator", " --split 1/1,1/1,0/1 "},
        {"coordinator", " --context 3072 "}, /* 16 image tokens, 10 bytes, 3000 tokens, rounded up */
        {"coordinator", " --final-softcap "},
        {"coordinator", " --weights q4 "},
        {"coordinator", " --log-level debug "},
        {"coordinator", " --die-with-parent "},
        {"w0", " --model " TINY " "},
        {"w0", " --name w0 "},
        {"w0", " --device 1 "},
        {"w1", " --device NVIDIA "},
        {"w2", " --device 1 "}, /* in turn */
        {"w2", " --memory 100 "},
        {"w2", " --die-with-parent "},
        {"w2", " --log-level debug "},
    };
    struct place *p = *state;
    struct child c;
    char *at, dir[256], want[512];

    p->n_lines = 4;
    p->act = act_int;
    run(p, &c,
        (const char *[]){"run",       "--model",    TINY,  "--workers",    "3",           "--device",
                         "1,NVIDIA",  "--memory",   "100", "--split",      "1/1,1/1,0/1", "--final-softcap",
                         "--weights", "q4",         "-vv", "--max-tokens", "3000",        "--image",
                         SCENE,       "caption en", NULL});
    child_expect(&c, "Ctrl-C", 130, "espalier run: cancelled\n", NULL);
    expect_nothing_left(p, 4, true);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (!strstr(arguments(p, parts[i].name), parts[i].part))
            fail_msg("\"%s\" is not in: %s", parts[i].part, arguments(p, parts[i].name));
    }
    at = strstr(arguments(p, "coordinator"), " --bind ipc://");
    assert_non_null(at);
    at += strlen(" --bind ipc://");
    snprintf(dir, sizeof dir, "%.*s", (int)strcspn(at, " ") - 2, at); /* without /c */
    assert_true(strncmp(dir, p->run, strlen(p->run)) == 0);
    snprintf(want, sizeof want, " --connect ipc://%s/c ", dir);
    assert_non_null(strstr(arguments(p, "w1"), want));
    snprintf(want, sizeof want, " --bind ipc://%s/w1 ", dir);
    assert_non_null(strstr(arguments(p, "w1"), want));
    child_finish(&c);
}

static void test_defaults(void **state)
{
    struct place *p = *state;
    struct child c;

    p->n_lines = 3;
    p->act = act_term;
    run(p, &c, (const char *[]){"run", "--model", TINY, "--image", SCENE, "caption en", NULL});
    child_expect(&c, "SIGTERM", 143, "cancelled", NULL);
    expect_nothing_left(p, 3, true);
    assert_non_null(strstr(arguments(p, "coordinator"), " --workers 2 "));
    assert_non_null(strstr(arguments(p, "coordinator"), " --log-level warn "));
    assert_non_null(strstr(arguments(p, "coordinator"), " --context 2048 "));
    assert_null(strstr(arguments(p, "coordinator"), "--kv-tokens"));
    assert_null(strstr(arguments(p, "w0"), "--device"));
    child_finish(&c);
}

static void test_early_end(void **state)
{
    static const struct {
        const char *variable, *what, *err;
    } cases[] = {
        {"FAKE_w1", "exit",
         "espalier run: w1 ended with status 3; its last words: no such device: Voodoo 2\n"},
        {"FAKE_w0", "crash", "espalier run: w0 was killed by signal 9 (Killed)\n"},
        {"FAKE_coordinator", "exit",
         "espalier run: coordinator ended with status 3; its last words: no such device"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct place *p = *state;
        struct child c;

        setenv(cases[i].variable, cases[i].what, 1);
        run(p, &c, (const char *[]){"run", "--model", TINY, "--image", SCENE, "caption en", NULL});
        unsetenv(cases[i].variable);
        child_expect(&c, cases[i].variable, 1, cases[i].err, NULL);
        if (strcmp(cases[i].what, "exit") == 0)
            child_expect(&c, "all of it is passed on", 1, "a first word\n", NULL);
        /* The others may not have come to write their line; those that have are gone. */
        expect_nothing_left(p, ANY, true);
        child_finish(&c);
        unlink(p->log);
    }
}

static void test_stubborn(void **state)
{
    struct place *p = *state;
    struct child c;

    setenv("FAKE_w0", "stubborn", 1);
    p->n_lines = 3;
    p->act = act_int;
    run(p, &c, (const char *[]){"run", "--model", TINY, "caption en", NULL});
    child_expect(&c, "a worker deaf to SIGTERM", 130, "cancelled", NULL);
    expect_nothing_left(p, 3, true);
    child_finish(&c);
}

/* The second Ctrl-C waits for nothing, and still leaves nothing. */
static void test_at_once(void **state)
{
    struct place *p = *state;
    struct child c;

    setenv("FAKE_w0", "stubborn", 1);
    p->n_lines = 3;
    p->act = act_int_twice;
    run(p, &c, (const char *[]){"run", "--model", TINY, "caption en", NULL});
    child_expect(&c, "Ctrl-C twice", 130, NULL, NULL);
    expect_nothing_left(p, 3, true);
    child_finish(&c);
}

/* Nobody can clean up the directory then, but no process outlives the command. */
static void test_killed(void **state)
{
    struct place *p = *state;
    struct child c;

    setenv("FAKE_w1", "stubborn", 1);
    p->n_lines = 3;
    p->act = act_kill;
    run(p, &c, (const char *[]){"run", "--model", TINY, "caption en", NULL});
    child_expect(&c, "SIGKILL", 128 + SIGKILL, NULL, NULL);
    expect_nothing_left(p, 3, false);
    child_finish(&c);
    remove_runtime_dir(p);
}

static void int_when_told(struct script *s, struct child *c)
{
    struct place *p = s->self;

    if (!p->acted && strstr(ERR(c), "workers are left")) {
        p->acted = true;
        wait_for_lines(p, 3); /* a worker may have ended before the coordinator wrote its line */
        kill(c->pid, SIGINT);
    }
}

/* `up` survives a worker, is ended well by Ctrl-C, and does not go on without any worker. */
static void test_up(void **state)
{
    struct place *p = *state;
    struct child c;
    const char *const args[] = {"up", "--model", TINY, "--bind", "tcp://127.0.0.1:5997", NULL};

    setenv("FAKE_w1", "exit", 1);
    p->script.printed = int_when_told;
    run(p, &c, args);
    child_expect(&c, "up", 0,
                 "espalier up: w1 ended with status 3; its last words: no such device: Voodoo 2; 1 of 2",
                 NULL);
    expect_nothing_left(p, ANY, true);
    assert_non_null(strstr(arguments(p, "coordinator"), " --bind tcp://127.0.0.1:5997 "));
    assert_non_null(strstr(arguments(p, "w1"), " --connect tcp://127.0.0.1:5997 "));
    assert_non_null(strstr(arguments(p, "w1"), " --bind ipc://"));
    child_finish(&c);

    p->script.printed = NULL;
    setenv("FAKE_w0", "exit", 1);
    run(p, &c, args);
    child_expect(&c, "up without workers", 1, "espalier up: w", NULL);
    child_finish(&c);

    unsetenv("FAKE_w0");
    setenv("FAKE_coordinator", "exit", 1);
    run(p, &c, args);
    child_expect(&c, "up without a coordinator", 1, "espalier up: coordinator ended with status 3", NULL);
    expect_nothing_left(p, ANY, true);
    child_finish(&c);
}

/* An evaluation's cluster has room for as many as are under way; what keeps it from answers keeps it from no report. */
static void test_eval(void **state)
{
    struct place *p = *state;
    char set[600], cwd[4096];
    const char *const args[] = {"eval",        "--model", TINY,           "--data", set,
                                "--in-flight", "64",      "--max-tokens", "128",    NULL};
    struct child c;
    FILE *f;

    snprintf(set, sizeof set, "%s/set.jsonl", p->dir);
    f = fopen(set, "w");
    assert_true(f && getcwd(cwd, sizeof cwd));
    fprintf(f, "{\"image\": \"%s/" SCENE "\", \"prompt\": \"caption en\", \"answer\": \"a cat\"}\n", cwd);
    assert_int_equal(fclose(f), 0);
    p->n_lines = 3;
    p->act = act_int;
    run(p, &c, args);
    child_expect(&c, "Ctrl-C", 130, "espalier eval: cancelled\n", "0 of 1 examples answered, 0 failed\n");
    expect_nothing_left(p, 3, true);
    /* 64 times 16 image tokens, 10 bytes, 128 tokens, 4, and a block that is not full */
    assert_non_null(strstr(arguments(p, "coordinator"), " --kv-tokens 12160 "));
    assert_non_null(strstr(arguments(p, "coordinator"), " --context 2048 "));
    child_finish(&c);
    unlink(p->log);
    p->act = NULL;
    setenv("FAKE_w1", "exit", 1);
    run(p, &c, args);
    child_expect(&c, "w1", 1,
                 "espalier eval: w1 ended with status 3; its last words: no such device: Voodoo 2\n",
                 "0 of 1 examples answered, 0 failed\n");
    expect_nothing_left(p, ANY, true);
    child_finish(&c);
    unlink(set);
}

static void test_no_daemons(void **state)
{
    struct place *p = *state;
    struct child c;
    char path[600], *saved = strdup(getenv("PATH"));

    snprintf(path, sizeof path, "%s/espalier-worker", p->dir);
    unlink(path);
    setenv("PATH", "/nowhere", 1);
    run(p, &c, (const char *[]){"run", "--model", TINY, "caption en", NULL});
    child_expect(&c, "no worker", 1, "espalier-worker is neither beside espalier nor in $PATH", NULL);
    child_finish(&c);
    run(p, &c, (const char *[]){"devices", NULL});
    child_expect(&c, "no worker", 1, "espalier-worker is neither beside espalier nor in $PATH", NULL);
    child_finish(&c);
    setenv("PATH", saved, 1);
    free(saved);
    expect_nothing_left(p, ANY, true);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_arguments),  TEST(test_defaults), TEST(test_early_end),
        TEST(test_stubborn),   TEST(test_at_once),  TEST(test_killed),
        TEST(test_no_daemons), TEST(test_up),       TEST(test_eval),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
