#include "cli/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static int pipe_fd[2] = {-1, -1};
static volatile sig_atomic_t stop_signal;
static void (*volatile clean_up_at_once)(void);
static volatile sig_atomic_t keep_on; /* after SIGINT */

#define N_STOP 3
static const int stop_signals[N_STOP] = {SIGINT, SIGTERM, SIGHUP};
static struct sigaction old_stop[N_STOP], old_child, old_pipe;

static void wake(void)
{
    int saved = errno;
    if (write(pipe_fd[1], "!", 1) < 0)
        errno = saved; /* full: it is readable already */
    errno = saved;
}

static void on_stop(int sig)
{
    void (*clean_up)(void) = clean_up_at_once;

    if (keep_on && (sig == SIGINT || stop_signal == SIGINT)) {
        if (stop_signal == 0 || stop_signal == SIGINT) /* one that ends it outweighs one that asks */
            stop_signal = sig;
        wake();
        return;
    }
    if (stop_signal) {
        if (clean_up)
            clean_up();
        _exit(128 + sig);
    }
    stop_signal = sig;
    wake();
}

static void on_child(int sig)
{
    (void)sig;
    wake();
}

esp_status esp_signals_install(struct esp_err *err)
{
    struct sigaction act;

    if (pipe_fd[0] >= 0)
        return ESP_OK;
    if (pipe2(pipe_fd, O_CLOEXEC | O_NONBLOCK) != 0)
        return esp_fail(err, ESP_E_IO, "pipe: %s", strerror(errno));
    memset(&act, 0, sizeof act);
    sigemptyset(&act.sa_mask);
    for (size_t i = 0; i < N_STOP; i++)
        sigaddset(&act.sa_mask, stop_signals[i]); /* the clean-up runs once */
    act.sa_handler = on_stop;
    act.sa_flags = 0; /* no SA_RESTART: what blocks returns */
    for (size_t i = 0; i < N_STOP; i++) {
        sigaction(stop_signals[i], &act, &old_stop[i]);
        if (stop_signals[i] == SIGHUP && old_stop[i].sa_handler == SIG_IGN) /* nohup meant it */
            sigaction(SIGHUP, &old_stop[i], NULL);
    }
    act.sa_handler = on_child;
    act.sa_flags = SA_NOCLDSTOP | SA_RESTART;
    sigaction(SIGCHLD, &act, &old_child);
    act.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &act, &old_pipe);
    return ESP_OK;
}

int esp_signals_fd(void)
{
    return pipe_fd[0];
}

void esp_signals_drain(void)
{
    char buf[64];
    while (pipe_fd[0] >= 0 && read(pipe_fd[0], buf, sizeof buf) > 0)
        continue;
}

int esp_signals_stop(void)
{
    return stop_signal;
}

void esp_signals_keep_on(void)
{
    keep_on = 1;
}

void esp_signals_forgive(void)
{
    sigset_t stop, before;

    sigemptyset(&stop);
    for (size_t i = 0; i < N_STOP; i++)
        sigaddset(&stop, stop_signals[i]);
    sigprocmask(SIG_BLOCK, &stop, &before); /* no other one may come between the look and the change */
    if (stop_signal == SIGINT)
        stop_signal = 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
}

void esp_signals_at_once(void (*clean_up)(void))
{
    clean_up_at_once = clean_up;
}

void esp_signals_reset(void)
{
    if (pipe_fd[0] < 0)
        return;
    for (size_t i = 0; i < N_STOP; i++)
        sigaction(stop_signals[i], &old_stop[i], NULL);
    sigaction(SIGCHLD, &old_child, NULL);
    sigaction(SIGPIPE, &old_pipe, NULL);
}
