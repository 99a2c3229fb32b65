#include "tests/fault/machines.h"

#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char ip_program[32], ns[MACHINES_MAX][24];
static int n_machines;

static int sh(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int sh(const char *fmt, ...)
{
    char command[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    return system(command);
}

void machines_remove(void)
{
    for (int i = 0; i < n_machines; i++)
        sh("%s netns del %s 2>/dev/null", ip_program, ns[i]); /* its interfaces go with it */
    n_machines = 0;
}

bool machines_make(int n)
{
    static const char *const places[] = {"/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"};
    const int me = (int)getpid();
    bool good = true;

    for (size_t i = 0; i < sizeof places / sizeof places[0] && !ip_program[0]; i++)
        if (access(places[i], X_OK) == 0)
            strcpy(ip_program, places[i]);
    if (!ip_program[0] || geteuid() != 0 || n < 2 || n > MACHINES_MAX)
        return false;
    n_machines = n;
    for (int i = 0; i < n; i++) {
        snprintf(ns[i], sizeof ns[0], "espalier-%d-%d", me, i);
        good = good && sh("%s netns add %s 2>/dev/null", ip_program, ns[i]) == 0 &&
               sh("%s -n %s link set lo up", ip_program, ns[i]) == 0;
    }
    good = good &&
           sh("%s -n %s link add br0 type bridge 2>/dev/null && %s -n %s addr add 10.83.0.1/24 dev br0 && "
              "%s -n %s link set br0 up",
              ip_program, ns[0], ip_program, ns[0], ip_program, ns[0]) == 0;
    for (int i = 1; good && i < n; i++)
        good = sh("%s -n %s link add cable%d type veth peer name eth0 netns %s 2>/dev/null", ip_program,
                  ns[0], i, ns[i]) == 0 &&
               sh("%s -n %s link set cable%d master br0 up", ip_program, ns[0], i) == 0 &&
               sh("%s -n %s addr add 10.83.0.%d/24 dev eth0", ip_program, ns[i], i + 1) == 0 &&
               sh("%s -n %s link set eth0 up", ip_program, ns[i]) == 0;
    if (!good)
        machines_remove();
    return good;
}

bool machines_enter(int i)
{
    char path[64];
    bool good;
    int fd;

    snprintf(path, sizeof path, "/run/netns/%s", ns[i]);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    good = setns(fd, CLONE_NEWNET) == 0;
    close(fd);
    return good;
}

const char *machines_ip(void)
{
    return ip_program;
}

const char *machines_name(int i)
{
    return ns[i];
}

bool machines_cut(int i, bool cut)
{
    return sh("%s -n %s link set cable%d %s", ip_program, ns[0], i, cut ? "down" : "up") == 0;
}
