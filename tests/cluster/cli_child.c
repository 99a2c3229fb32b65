#include "tests/cluster/cli_child.h"

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
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"

#define MAX_ARGS 160

/* @param in_fd, out_fd, err_fd  the child's; closed here. @param talks  in_fd is a terminal, and becomes its own */
static void start(struct child *c, const char *program, int in_fd, const char *const *args, int out_fd,
                  int err_fd, bool talks)
{
    char *argv[MAX_ARGS + 2] = {(char *)(uintptr_t)program};

    for (size_t i = 0; args[i]; i++) {
        assert_true(i < MAX_ARGS);
        argv[1 + i] = (char *)(uintptr_t)args[i];
    }
    c->started_ms = esp_now_ms();
    c->pid = fork();
    assert_true(c->pid >= 0);
    if (c->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (talks && (setsid() < 0 || ioctl(in_fd, TIOCSCTTY, 0) != 0))
            _exit(125);
        dup2(in_fd, 0);
        dup2(out_fd, 1);
        dup2(err_fd, 2);
        unsetenv("ESPALIER_MODEL");
        setenv("TERM", "xterm", 1);
        execv(program, argv);
        _exit(125);
    }
    if (in_fd != out_fd)
        close(in_fd);
    close(out_fd);
    if (err_fd != out_fd)
        close(err_fd);
    for (int i = 0; i < 2; i++) {
        if (c->fd[i] >= 0)
            fcntl(c->fd[i], F_SETFL, O_NONBLOCK);
        c->text[i] = calloc(1, CHILD_MAX_OUTPUT + 1);
        assert_non_null(c->text[i]);
    }
}

void child_start(struct child *c, const char *program, const char *stdin_file, const char *const *args)
{
    int out[2], err[2], in = open(stdin_file ? stdin_file : "/dev/null", O_RDONLY | O_CLOEXEC);

    assert_true(in >= 0);
    memset(c, 0, sizeof *c);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    assert_int_equal(pipe2(err, O_CLOEXEC), 0);
    c->fd[0] = out[0];
    c->fd[1] = err[0];
    start(c, program, in, args, out[1], err[1], false);
}

static void start_on_terminal(struct child *c, const char *program, const char *const *args, bool talks)
{
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), slave;

    memset(c, 0, sizeof *c);
    if (master < 0 && (errno == ENOENT || errno == ENODEV || errno == EIO)) {
        print_message("SKIPPED: this root has no pseudo-terminals (/dev/ptmx, /dev/pts)\n");
        skip();
    }
    assert_true(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
    assert_true(slave >= 0);
    assert_int_equal(ioctl(slave, TIOCSWINSZ, &size), 0);
    c->fd[0] = -1;
    c->fd[1] = master;
    start(c, program, talks ? slave : open("/dev/null", O_RDONLY | O_CLOEXEC), args, slave, slave, talks);
}

void child_start_on_terminal(struct child *c, const char *program, const char *const *args)
{
    start_on_terminal(c, program, args, false);
}

void child_start_talking(struct child *c, const char *program, const char *const *args)
{
    start_on_terminal(c, program, args, true);
}

void child_type(struct child *c, const char *text)
{
    const size_t n = strlen(text);

    if (write(c->fd[1], text, n) != (ssize_t)n)
        fail_msg("cannot type \"%s\": %s", text, strerror(errno));
}

/* True when something came. */
static bool read_output(struct child *c)
{
    bool some = false;

    for (int i = 0; i < 2; i++) {
        while (c->fd[i] >= 0) {
            ssize_t n = read(c->fd[i], c->text[i] + c->n[i], CHILD_MAX_OUTPUT - c->n[i]);
            if (n < 0 && errno != EIO) /* EIO: a terminal that everyone has closed */
                break;
            if (n <= 0) {
                close(c->fd[i]);
                c->fd[i] = -1;
                break;
            }
            c->n[i] += (size_t)n;
            some = true;
        }
    }
    return some;
}

static void hear(struct script *s, struct child *c)
{
    while (s && s->link) {
        struct esp_peer from;
        struct esp_msg msg;
        struct esp_err err;
        esp_status st = esp_link_recv(s->link, &from, &msg, &err);

        if (st == ESP_E_TIMEOUT)
            return;
        if (st)
            fail_msg("the fake coordinator received: %s", err.text);
        if (s->heard)
            s->heard(s, c, &from, &msg);
        esp_msg_finish(&msg);
    }
}

void script_open(struct script *s, struct esp_net **net, char *dir, size_t n_dir, char *endpoint,
                 size_t n_endpoint)
{
    snprintf(dir, n_dir, "/tmp/espalier-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(endpoint, n_endpoint, "ipc://%s/c", dir);
    assert_int_equal(esp_net_create(net, NULL), ESP_OK);
    assert_int_equal(
        esp_link_create(&s->link, *net, &(struct esp_link_options){.type = ESP_LINK_SERVE}, NULL), ESP_OK);
    assert_int_equal(esp_link_bind(s->link, endpoint, false, NULL, NULL), ESP_OK);
}

void script_close(struct script *s, struct esp_net **net, const char *dir)
{
    char path[64];

    esp_link_destroy(&s->link);
    esp_net_destroy(net);
    snprintf(path, sizeof path, "%s/c", dir);
    unlink(path);
}

void script_tell(struct script *s, const struct esp_peer *to, struct esp_msg *msg)
{
    struct esp_err err;

    if (esp_link_send(s->link, to, msg, &err))
        fail_msg("the fake coordinator sends %s: %s", esp_msg_name(msg->kind), err.text);
}

void child_wait(struct child *c, struct script *s)
{
    const int64_t end = esp_now_ms() + ESP_PATIENCE_MS;
    int status = 0;

    while (c->fd[0] >= 0 || c->fd[1] >= 0 || waitpid(c->pid, &status, WNOHANG) == 0) {
        struct esp_wait waits[3];
        uint32_t n = 0;

        for (int i = 0; i < 2; i++) {
            if (c->fd[i] >= 0)
                waits[n++] = (struct esp_wait){.fd = c->fd[i]};
        }
        if (s && s->link)
            waits[n++] = (struct esp_wait){.link = s->link, .fd = -1};
        if (n > 0)
            esp_link_wait(waits, n, 50, NULL);
        else
            usleep(1000);
        if (read_output(c) && s && s->printed)
            s->printed(s, c);
        hear(s, c);
        if (esp_now_ms() > end) {
            kill(c->pid, SIGKILL);
            waitpid(c->pid, &status, 0);
            fail_msg("no end within %d ms; stdout:\n%s\nstderr:\n%s", ESP_PATIENCE_MS, OUT(c), ERR(c));
        }
    }
    c->exit = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void child_wait_for(struct child *c, int stream, const char *text)
{
    const int64_t end = esp_now_ms() + ESP_PATIENCE_MS;

    while (text ? !strstr(c->text[stream], text) : c->n[stream] == 0) {
        const bool late = esp_now_ms() > end;

        if (late || (c->fd[0] < 0 && c->fd[1] < 0)) {
            kill(c->pid, SIGKILL);
            waitpid(c->pid, NULL, 0);
            fail_msg("%s before it said \"%s\"; stdout:\n%s\nstderr:\n%s",
                     late ? "the deadline came" : "it ended", text ? text : "anything", OUT(c), ERR(c));
        }
        if (!read_output(c))
            usleep(2000);
    }
}

bool child_over(struct child *c)
{
    int status;

    read_output(c);
    if (c->pid == 0)
        return true;
    if (c->fd[0] >= 0 || c->fd[1] >= 0 || waitpid(c->pid, &status, WNOHANG) == 0)
        return false;
    c->pid = 0;
    c->exit = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return true;
}

void child_finish(struct child *c)
{
    for (int i = 0; i < 2; i++) {
        if (c->fd[i] >= 0)
            close(c->fd[i]);
        free(c->text[i]);
    }
    memset(c, 0, sizeof *c);
}

void child_run(struct child *c, const char *program, const char *const *args)
{
    child_start(c, program, NULL, args);
    child_wait(c, NULL);
}

void child_expect(const struct child *c, const char *label, int exit_status, const char *err_part,
                  const char *out_part)
{
    if (c->exit != exit_status || (err_part && !strstr(ERR(c), err_part)) ||
        (out_part && !strstr(OUT(c), out_part)))
        fail_msg(
            "%s: exit status %d, expected %d; stderr should hold \"%s\", stdout \"%s\"\n-- stdout:\n%s\n-- "
            "stderr:\n%s",
            label, c->exit, exit_status, err_part ? err_part : "", out_part ? out_part : "", OUT(c), ERR(c));
}

/* ---- daemons ---- */

/* Counts them; @param name  counts only those with that --name; NULL: all. @param last  one of them, or NULL
   */
static unsigned find_daemons(const char *dir, const char *name, pid_t *last)
{
    DIR *proc = opendir("/proc");
    struct dirent *e;
    unsigned n = 0;
    char option[80];
    size_t n_option = 0;

    assert_non_null(proc);
    if (name)
        n_option = (size_t)snprintf(option, sizeof option, "--name%c%s%c", 0, name, 0);
    while ((e = readdir(proc)) != NULL) {
        char path[300], text[4096];
        FILE *f;
        size_t got;

        snprintf(path, sizeof path, "/proc/%s/cmdline", e->d_name);
        f = e->d_name[0] >= '0' && e->d_name[0] <= '9' ? fopen(path, "r") : NULL;
        if (!f)
            continue;
        got = fread(text, 1, sizeof text, f); /* nothing for a process that has ended */
        fclose(f);
        if (!memmem(text, got, "espalier-", 9) || !memmem(text, got, dir, strlen(dir)) ||
            (name && !memmem(text, got, option, n_option)))
            continue;
        n++;
        if (last)
            *last = (pid_t)atoi(e->d_name);
    }
    closedir(proc);
    return n;
}

unsigned child_n_daemons(const char *dir)
{
    return find_daemons(dir, NULL, NULL);
}

pid_t child_daemon(const char *dir, const char *name)
{
    pid_t pid = 0;

    if (find_daemons(dir, name, &pid) != 1)
        fail_msg("not one daemon called %s", name);
    return pid;
}

void child_no_daemons(const char *dir)
{
    const int64_t end = esp_now_ms() + ESP_PATIENCE_MS;

    while (child_n_daemons(dir) > 0 && esp_now_ms() < end)
        usleep(5000);
    if (child_n_daemons(dir) > 0)
        fail_msg("%u daemons are left", child_n_daemons(dir));
}
