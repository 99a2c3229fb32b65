/* Links with keys: who is who, whatever routing id it claims. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "proto/auth.h"
#include "proto/link.h"

enum { SERVER, WORKER, CLIENT, STRANGER, N_MEMBERS };

static struct esp_keys keys[N_MEMBERS];
static struct esp_net *net[N_MEMBERS];
static struct esp_link *served;
static char at[ESP_MAX_ENDPOINT + 1];

static int setup(void **state)
{
    static const enum esp_member members[] = {ESP_MEMBER_COORDINATOR, ESP_MEMBER_WORKER, ESP_MEMBER_CLIENT,
                                              ESP_MEMBER_CLIENT};
    struct esp_err err;

    for (int i = 0; i < N_MEMBERS; i++) {
        keys[i].member = members[i];
        strcpy(keys[i].dir, "/nonexistent"); /* no list there to read again */
        assert_int_equal(esp_key_pair_make(keys[i].public_key, keys[i].secret, &err), ESP_OK);
        memcpy(keys[i].coordinator, keys[SERVER].public_key, ESP_KEY_BYTES);
    }
    assert_int_equal(esp_key_list_add(&keys[SERVER].workers, "gpu1", keys[WORKER].public_key, &err), ESP_OK);
    assert_int_equal(esp_key_list_add(&keys[SERVER].clients, "anna", keys[CLIENT].public_key, &err), ESP_OK);
    for (int i = 0; i < N_MEMBERS; i++) {
        assert_int_equal(esp_net_create(&net[i], &err), ESP_OK);
        assert_int_equal(esp_net_secure(net[i], &keys[i], NULL, &err), ESP_OK);
    }
    assert_int_equal(esp_link_create(&served, net[SERVER],
                                     &(struct esp_link_options){.type = ESP_LINK_SERVE, .tell_drops = true},
                                     &err),
                     ESP_OK);
    assert_int_equal(esp_link_bind(served, "tcp://127.0.0.1:*", false, at, &err), ESP_OK);
    return 0;
}

static int teardown(void **state)
{
    esp_link_destroy(&served);
    for (int i = 0; i < N_MEMBERS; i++)
        esp_net_destroy(&net[i]);
    esp_key_list_finish(&keys[SERVER].workers);
    esp_key_list_finish(&keys[SERVER].clients);
    return 0;
}

static struct esp_link *dial(int who, const char *identity, const uint8_t *server_key)
{
    const struct esp_link_options options = {
        .type = ESP_LINK_DIAL, .identity = identity, .server_key = server_key};
    struct esp_link *link;
    struct esp_err err;

    assert_int_equal(esp_link_create(&link, net[who], &options, &err), ESP_OK);
    assert_int_equal(esp_link_connect(link, at, &err), ESP_OK);
    return link;
}

static void ask(struct esp_link *link)
{
    struct esp_msg msg = {.kind = ESP_MSG_STATUS_QUERY, .status_query = {.id = 1}};

    assert_int_equal(esp_link_send(link, NULL, &msg, NULL), ESP_OK);
}

/* The next message's sender; false if none comes in time. */
static bool heard(struct esp_peer *from, int timeout_ms)
{
    struct esp_wait wait = {.link = served};
    struct esp_msg msg;
    struct esp_err err;
    esp_status st;

    for (int ms = 0; !wait.ready; ms += 10) { /* an end of a connection wakes it too */
        if (ms >= timeout_ms)
            return false;
        (void)esp_link_drops(served);
        st = esp_link_wait(&wait, 1, 10, &err);
        assert_true(st == ESP_OK || st == ESP_E_TIMEOUT);
    }
    st = esp_link_recv(served, from, &msg, &err);
    if (st)
        fail_msg("%s", err.text);
    esp_msg_finish(&msg);
    return true;
}

/* Waits until a handshake has come to this. */
static void expect_trouble(const struct esp_link *link, esp_status status, const char *part)
{
    struct esp_err err = {0};
    esp_status st = ESP_OK;

    for (int i = 0; i < 1000 && st != status; i++) {
        struct esp_wait nothing = {.link = served};
        (void)esp_link_drops(served);
        esp_link_wait(&nothing, 1, 10, NULL);
        st = esp_link_check(link, &err);
    }
    assert_int_equal(st, status);
    assert_non_null(strstr(err.text, part));
}

static void test_who_is_who(void **state)
{
    struct esp_link *w = dial(WORKER, "gpu1/x", keys[SERVER].public_key);
    struct esp_link *c = dial(CLIENT, NULL, keys[SERVER].public_key);
    struct esp_peer worker, client;

    ask(w);
    assert_true(heard(&worker, 5000));
    assert_int_equal(worker.member, ESP_MEMBER_WORKER);
    assert_string_equal(worker.user, "gpu1");
    assert_true(esp_key_equal(worker.key, keys[WORKER].public_key));
    ask(c);
    assert_true(heard(&client, 5000));
    assert_int_equal(client.member, ESP_MEMBER_CLIENT);
    assert_string_equal(client.user, "anna");
    assert_true(client.n >= 20); /* an id that nobody guesses, though none was given */
    assert_int_equal(esp_link_check(w, NULL), ESP_OK);
    esp_link_destroy(&w);
    esp_link_destroy(&c);
}

/* The end of a connection is heard of with keys as well, though the keys' watch has the socket's monitor. */
static void test_drops(void **state)
{
    struct esp_link *c = dial(CLIENT, NULL, keys[SERVER].public_key);
    struct esp_peer who;
    uint32_t n;

    ask(c);
    assert_true(heard(&who, 5000));
    (void)esp_link_drops(served); /* of the tests before */
    esp_link_destroy(&c);
    while ((n = esp_link_drops(served)) == 0) {
        struct esp_wait wait = {.link = served};

        assert_int_equal(esp_link_wait(&wait, 1, 30000, NULL), ESP_OK);
    }
    assert_int_equal(n, 1);
}

/* A client that claims a worker's routing id does not become that worker. */
static void test_claimed_id(void **state)
{
    struct esp_link *w = dial(WORKER, "gpu1", keys[SERVER].public_key), *c;
    struct esp_peer worker, client;

    ask(w);
    assert_true(heard(&worker, 5000));
    c = dial(CLIENT, "gpu1", keys[SERVER].public_key);
    ask(c);
    assert_true(heard(&client, 5000));
    assert_int_equal(client.n, worker.n);
    assert_memory_equal(client.id, worker.id, worker.n);
    assert_int_equal(client.member, ESP_MEMBER_CLIENT);
    assert_false(esp_peer_equal(&client, &worker));
    esp_link_destroy(&w);
    esp_link_destroy(&c);
}

static void test_refused(void **state)
{
    struct esp_link *stranger = dial(STRANGER, NULL, keys[SERVER].public_key);
    struct esp_link *astray =
        dial(CLIENT, NULL, keys[STRANGER].public_key); /* looks for another coordinator */
    struct esp_link *link = NULL;
    struct esp_net *bare;
    struct esp_peer from;
    struct esp_err err;

    ask(stranger);
    ask(astray);
    expect_trouble(stranger, ESP_E_CLOSED, "not in its allow list");
    expect_trouble(astray, ESP_E_TIMEOUT, "breaks off the handshake");
    esp_link_destroy(&stranger);
    esp_link_destroy(&astray);

    assert_int_equal(esp_net_create(&bare, &err), ESP_OK);
    assert_int_equal(esp_link_create(&link, bare, &(struct esp_link_options){.type = ESP_LINK_DIAL}, &err),
                     ESP_OK);
    assert_int_equal(esp_link_connect(link, at, &err), ESP_OK);
    ask(link);
    assert_false(heard(&from, 300)); /* nor anything of the two before */
    esp_link_destroy(&link);
    esp_net_destroy(&bare);
}

static void test_options(void **state)
{
    struct esp_link *link;
    struct esp_err err = {0};

    assert_int_equal(
        esp_link_create(&link, net[CLIENT], &(struct esp_link_options){.type = ESP_LINK_DIAL}, &err),
        ESP_E_ARG);
    assert_non_null(strstr(err.text, "whose key it knows"));
    assert_int_equal(
        esp_link_create(&link, net[SERVER], &(struct esp_link_options){.type = ESP_LINK_SERVE}, &err),
        ESP_OK);
    assert_int_equal(esp_link_bind(link, "tcp://0.0.0.0:*", false, NULL, &err),
                     ESP_OK); /* with keys it may */
    esp_link_destroy(&link);
}

static void test_user(void **state)
{
#define KEY "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    static const struct {
        const char *user, *name; /* NULL: refused */
        enum esp_member member;
    } cases[] = {
        {"worker:gpu1:" KEY, "gpu1", ESP_MEMBER_WORKER},
        {"client:a.b:" KEY, "a.b", ESP_MEMBER_CLIENT},
        {NULL, NULL, ESP_MEMBER_NONE},
        {"", NULL, ESP_MEMBER_NONE},
        {"worker", NULL, ESP_MEMBER_NONE},
        {"worker:gpu1", NULL, ESP_MEMBER_NONE},
        {"worker::" KEY, NULL, ESP_MEMBER_NONE},
        {"coordinator:a:" KEY, NULL, ESP_MEMBER_NONE},
        {"worker:gpu1:" KEY "0", NULL, ESP_MEMBER_NONE},
        {"worker:0123456789012345678901234567890123456789012345678901234567890123:" KEY, NULL,
         ESP_MEMBER_NONE},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enum esp_member member = ESP_MEMBER_NONE;
        char name[ESP_MAX_NAME + 1] = "";
        uint8_t key[ESP_KEY_BYTES];

        assert_int_equal(esp_user_parse(&member, name, key, cases[i].user), cases[i].name != NULL);
        if (cases[i].name) {
            assert_string_equal(name, cases[i].name);
            assert_int_equal(member, cases[i].member);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_is_who), cmocka_unit_test(test_claimed_id), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_options),    cmocka_unit_test(test_user),       cmocka_unit_test(test_drops),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
