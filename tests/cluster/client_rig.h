/**
 * A coordinator in the test's process that serves one request of the command line by a script, over ipc://.
 */
#ifndef ESP_TESTS_CLUSTER_CLIENT_RIG_H
#define ESP_TESTS_CLUSTER_CLIENT_RIG_H

#include "tests/cluster/cli_child.h"

struct fake {
    char dir[32], endpoint[64];
    struct esp_net *net;
    struct script script;
    struct esp_peer client;
    uint64_t session; /* of the request; 0: none came */
    uint32_t n_sent;  /* tokens */
    uint32_t n_cancel;
    uint32_t n_requests, n_resumes;
    uint8_t ticket[ESP_TICKET_BYTES];             /* of the request */
    void (*check)(const struct esp_msg *request); /* looks at the request */
};

/** For cmocka: a fake of its own for each test, *state. */
int fake_setup(void **state);
int fake_teardown(void **state);

/** Sends to the client, whatever it is, and what a request is answered with. */
void fake_tell(struct fake *f, struct esp_msg *msg);
void fake_tell_accepted(struct fake *f);
void fake_tell_token(struct fake *f, const char *text); /* the next one: id 100, 101, ... */
void fake_tell_done(struct fake *f, const struct esp_hypothesis *all, uint32_t n); /* the best one first */
void fake_tell_error(struct fake *f, esp_status code, const char *text);

/** What every script does: answers status queries, keeps the request's number. True for the request itself. */
bool fake_is_request(struct fake *f, const struct esp_peer *from, const struct esp_msg *msg);

/** Runs a command, args[0], with --connect and the other arguments, up to a NULL, to its end. @param program  espalier */
void fake_ask(struct child *c, struct fake *f, const char *program, const char *const *args);

#endif
