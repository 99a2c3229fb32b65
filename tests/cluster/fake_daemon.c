/* Stands in for espalier-coordinator and espalier-worker where a test is about processes alone. Appends a
 * line "NAME PID ARGUMENTS..." to $FAKE_LOG and then does what $FAKE_<NAME> says: "exit" after some last
 * words, "crash", "stubborn" (deaf to SIGTERM), or, by default, sleeps until SIGTERM. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void on_term(int sig)
{
    (void)sig;
    _exit(0);
}

int main(int argc, char **argv)
{
    const char *name = "coordinator", *log = getenv("FAKE_LOG"), *what;
    char line[4096], variable[64];
    int fd;
    size_t n;

    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--name") == 0)
            name = argv[i + 1];
    }
    signal(SIGTERM, on_term);
    snprintf(variable, sizeof variable, "FAKE_%s", name);
    what = getenv(variable);
    if (!what)
        what = "sleep";
    if (strcmp(what, "stubborn") == 0)
        signal(SIGTERM, SIG_IGN);
    n = (size_t)snprintf(line, sizeof line, "%s %d", name, (int)getpid());
    for (int i = 1; i < argc && n < sizeof line - 2; i++)
        n += (size_t)snprintf(line + n, sizeof line - n, " %s", argv[i]);
    if (n > sizeof line - 2)
        n = sizeof line - 2;
    line[n++] = '\n';
    fd = log ? open(log, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (fd < 0 || write(fd, line, n) != (ssize_t)n)
        return 9;
    if (strcmp(what, "exit") == 0) {
        fputs("a first word\nno such device: Voodoo 2", stderr); /* no newline: said all the same */
        return 3;
    }
    if (strcmp(what, "crash") == 0)
        raise(SIGKILL);
    for (;;)
        pause();
}
