/**
 * A cluster of real processes among peers that mean no good: the coordinator and its workers with their logs in files, an
 * honest client that asks again and again, and connections that send whatever frames a test wants. What cannot go on
 * fails the test.
 */
#ifndef ESP_TESTS_FAULT_HOSTILE_RIG_H
#define ESP_TESTS_FAULT_HOSTILE_RIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/wire.h"
#include "tests/support/patience.h"

#define HOSTILE_MODEL  "tests/golden/data/tiny"
#define HOSTILE_FRAMES 80 /* of one message at most */

/* ---- processes ---- */

struct hostile_proc {
    pid_t pid;
    char name[16], out[96], log[96]; /* files of its stdout and stderr */
    long rss_kib;                    /* when hostile_memory_mark was called */
};

/** Makes the directory for sockets and logs; cmocka's group setup and teardown. */
int hostile_setup(void **state);
int hostile_teardown(void **state);

/** Starts a program; args end with NULL. */
void hostile_start(struct hostile_proc *p, const char *name, const char *program, const char *const *args);

/** Whether it still runs; *status gets its exit status, or 128 and the signal, once it does not. */
bool hostile_runs(struct hostile_proc *p, int *status);

/** SIGTERM, and its end must be a good one. */
void hostile_stop(struct hostile_proc *p);

/** The same for one that ends by itself. */
void hostile_ended(struct hostile_proc *p);

/** Its log so far, malloc'ed. */
char *hostile_log(const struct hostile_proc *p);

/** How often the text is in its log; waits until it is there n times. */
unsigned hostile_count(const struct hostile_proc *p, const char *text);
void hostile_wait_for(const struct hostile_proc *p, const char *text, unsigned n);

/** The word behind `key` where it is first in the log ("endpoint="). */
void hostile_word(const struct hostile_proc *p, const char *key, char *out, size_t n_out);

/** Resident memory now, KiB. */
long hostile_rss(const struct hostile_proc *p);

/* ---- the honest client ---- */

/** Asks, compares each answer with the first one to the same question, and asks anew. */
struct hostile_client {
    struct hostile_proc proc;
    char endpoint[ESP_MAX_ENDPOINT + 1];
    unsigned n_started, n_answers;
    json_t *first[2]; /* the answers to two questions, by turns */
};

void hostile_client_open(struct hostile_client *c, const char *endpoint);
void hostile_client_close(struct hostile_client *c);

/** Looks whether the answer under way is there; a wrong one, or none, fails the test. `again`: asks the next question then. */
void hostile_client_poll(struct hostile_client *c, bool again);

/** Polls until n more answers are there. */
void hostile_client_wait(struct hostile_client *c, unsigned n);

/* ---- the others ---- */

/** The frames of a message. */
struct hostile_frames {
    uint32_t n;
    struct {
        uint8_t *bytes; /* malloc'ed */
        size_t n;
    } at[HOSTILE_FRAMES];
};

void hostile_frames_finish(struct hostile_frames *f);
void hostile_frames_add(struct hostile_frames *f, const void *bytes, size_t n);

/** Of a message and its blobs; false if it is none that can be packed. */
bool hostile_frames_pack(struct hostile_frames *f, const struct esp_msg *msg);

/** A connection to an endpoint, under an identity (NULL: any). */
struct hostile_peer {
    void *socket;
    char endpoint[ESP_MAX_ENDPOINT + 1];
};

void hostile_peer_open(struct hostile_peer *p, const char *endpoint, const char *identity);
void hostile_peer_close(struct hostile_peer *p);

/** Sends; dials anew if the connection takes nothing any more. */
void hostile_peer_send(struct hostile_peer *p, const struct hostile_frames *f);

/** What was sent to us, if anything; false: nothing. */
bool hostile_peer_take(struct hostile_peer *p, struct hostile_frames *f);

/** Connects to the endpoint's port by TCP alone, sends bytes, and hangs up at once if not `stay`; the socket, or -1. */
int hostile_tcp(const char *endpoint, const void *bytes, size_t n, bool stay);

#endif
