/**
 * The built command line as a child process, its output kept, with a deadline; and a coordinator in the
 * test's own process that says what a test wants. What cannot go on fails the test.
 */
#ifndef ESP_TESTS_CLUSTER_CLI_CHILD_H
#define ESP_TESTS_CLUSTER_CLI_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "proto/link.h"
#include "tests/support/patience.h"

#define CHILD_MAX_OUTPUT (1u << 20)

struct child {
    pid_t pid;
    int fd[2];     /* its stdout and stderr; -1: closed */
    char *text[2]; /* what came, NUL-terminated */
    size_t n[2];
    int exit; /* exit status, or 128 + the signal that killed it */
    int64_t started_ms;
};

#define OUT(c) ((c)->text[0])
#define ERR(c) ((c)->text[1])

/**
 * Starts `program` with the arguments, a NULL at the end; stdin is /dev/null or the given file.
 * ESPALIER_MODEL is unset in it, XDG_RUNTIME_DIR is as here.
 */
void child_start(struct child *c, const char *program, const char *stdin_file, const char *const *args);

/** The same with a terminal for stdout and stderr: what comes is all in text[1]; TERM is "xterm", 80 columns.
 */
void child_start_on_terminal(struct child *c, const char *program, const char *const *args);

/** The same with that terminal, a controlling one, for stdin too; child_type is its keyboard. */
void child_start_talking(struct child *c, const char *program, const char *const *args);
void child_type(struct child *c, const char *text);

/** What the test wants done when something happens; NULL fields do nothing. */
struct script {
    void *self;
    struct esp_link *link; /* of a fake coordinator; NULL: none */
    void (*heard)(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg);
    void (*printed)(struct script *s, struct child *c); /* the child wrote something */
};

/** A fake coordinator's socket for the script, in a directory of its own; `dir` and `endpoint` are filled in. */
void script_open(struct script *s, struct esp_net **net, char *dir, size_t n_dir, char *endpoint,
                 size_t n_endpoint);

/** Ends what script_open began and removes the socket's file; the directory and what else is in it stay. */
void script_close(struct script *s, struct esp_net **net, const char *dir);

/** Sends; what cannot be sent fails the test. */
void script_tell(struct script *s, const struct esp_peer *to, struct esp_msg *msg);

/** Runs the script until the child has ended. Fails the test, killing the child, after the deadline. */
void child_wait(struct child *c, struct script *s);

/** Returns when stdout (stream 0) or stderr (1) holds the text (NULL: anything), the child running on. Fails
 * the test when it ends before, or after the deadline. */
void child_wait_for(struct child *c, int stream, const char *text);

/** Takes what it has written, without waiting. True once it has ended: then its exit status is set. */
bool child_over(struct child *c);

/** Frees what was kept. */
void child_finish(struct child *c);

/** start and wait with nothing in between. */
void child_run(struct child *c, const char *program, const char *const *args);

/** Fails the test, showing everything, unless the child ended with this status and stderr (or stdout) holds
 * the text. */
void child_expect(const struct child *c, const char *label, int exit, const char *err_part,
                  const char *out_part);

/** How many daemons run that were started with this runtime directory. */
unsigned child_n_daemons(const char *dir);

/** The one of them with that --name; fails the test without. */
pid_t child_daemon(const char *dir, const char *name);

/** Fails the test unless all of them end soon. */
void child_no_daemons(const char *dir);

#endif
