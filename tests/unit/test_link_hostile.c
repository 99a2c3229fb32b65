/*
 * Links among peers that speak ZeroMQ, or only TCP, and mean no good.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "tests/unit/link_rig.h"

/* A ZeroMQ socket of any type without our limits, connected. */
static void *raw(void *context, int type, const char *endpoint)
{
    void *socket = zmq_socket(context, type);
    int linger = 0, patience = PATIENCE_MS;

    assert_non_null(socket);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger), 0);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_SNDTIMEO, &patience, sizeof patience), 0);
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    return socket;
}

static void raw_send(void *socket, const void *bytes, size_t n, bool more)
{
    assert_int_equal(zmq_send(socket, bytes, n, more ? ZMQ_SNDMORE : 0), (int)n);
}

static uint32_t rand_next(uint32_t *x) /* xorshift32: the same messages in every run */
{
    *x ^= *x << 13;
    *x ^= *x >> 17;
    *x ^= *x << 5;
    return *x;
}

static void test_strange_frames(void **state)
{
    const struct esp_msg *encode = esp_test_message_find("encode.rows"), *bye = esp_test_message_find("bye");
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = link_serve(at, false, NULL),
                    *honest = link_dial(at, &(struct esp_link_options){.identity = "honest"});
    void *context = zmq_ctx_new(), *stranger = raw(context, ZMQ_DEALER, at), *req = raw(context, ZMQ_REQ, at);
    struct esp_peer from, honest_peer;
    uint8_t *bytes, *bye_bytes;
    size_t n, n_bye;

    assert_int_equal(esp_wire_pack(&bytes, &n, encode, NULL), ESP_OK);
    assert_int_equal(esp_wire_pack(&bye_bytes, &n_bye, bye, NULL), ESP_OK);
    link_send_to(honest, NULL, "hello");
    link_expect(s, &honest_peer, ESP_MSG_HELLO);

    raw_send(stranger, "", 0, false);
    link_expect_bad(s, &from, "an empty frame", "header: empty");
    assert_false(esp_peer_equal(&from, &honest_peer)); /* a bad message says whose it is */
    assert_true(from.n > 0);
    raw_send(stranger, "hello", 5, false);
    link_expect_bad(s, &from, "text", "no Envelope");
    raw_send(stranger, bytes, n, false);
    link_expect_bad(s, &from, "no raw frame", "encode: 0 raw frames, takes 1");
    raw_send(stranger, bytes, n, true);
    raw_send(stranger, "12345", 5, false);
    link_expect_bad(s, &from, "a raw frame of a wrong size", "encode: raw frame of 5 bytes");
    raw_send(stranger, bytes, n, true);
    raw_send(stranger, "1234", 4, true);
    raw_send(stranger, "1234", 4, false);
    link_expect_bad(s, &from, "a raw frame too many", "encode: 2 raw frames, takes 1");
    raw_send(req, bye_bytes, n_bye, false); /* puts an empty frame first */
    link_expect_bad(s, &from, "a REQ socket", "header: empty");
    for (int n_frames = 65; n_frames <= 5000; n_frames *= 8) {
        raw_send(stranger, bytes, n, true);
        for (int i = 1; i < n_frames; i++)
            raw_send(stranger, "1234", 4, true);
        raw_send(stranger, "1234", 4, false);
        link_expect_bad(s, &from, "too many frames", "more than 64 raw frames");
    }
    /* A header that is too large, in a frame that is not. */
    free(bytes);
    bytes = calloc(1, ESP_MAX_HEADER + 1);
    assert_non_null(bytes);
    raw_send(stranger, bytes, ESP_MAX_HEADER + 1, false);
    link_expect_bad(s, &from, "a large header", "header: 8388609 bytes, at most 8388608");
    /* And a good one at last: the stranger was none. */
    raw_send(stranger, bye_bytes, n_bye, false);
    link_expect(s, &from, ESP_MSG_BYE);
    link_send_to(honest, NULL, "heartbeat");
    link_expect(s, &from, ESP_MSG_HEARTBEAT);
    assert_true(esp_peer_equal(&from, &honest_peer));
    link_expect_nothing(s);
    free(bytes);
    free(bye_bytes);
    zmq_close(req);
    zmq_close(stranger);
    zmq_ctx_term(context);
    esp_link_destroy(&honest);
    esp_link_destroy(&s);
}

/* A thousand random messages between which honest ones pass; and what a dialling link gets from a lying
 * server. */
static void test_random_messages(void **state)
{
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = link_serve(at, false, NULL),
                    *honest = link_dial(at, &(struct esp_link_options){.identity = "honest"});
    void *context = zmq_ctx_new(), *stranger = raw(context, ZMQ_DEALER, at);
    struct esp_peer from, honest_peer;
    uint32_t seed = 2463534242u;
    int n_honest = 0, n_bad = 0;
    uint8_t junk[300];

    link_send_to(honest, NULL, "hello");
    link_expect(s, &honest_peer, ESP_MSG_HELLO);
    for (int i = 0; i < 1000; i++) {
        uint32_t n_frames = rand_next(&seed) % 6 + 1;
        for (uint32_t f = 0; f < n_frames; f++) {
            size_t n = rand_next(&seed) % sizeof junk;
            for (size_t j = 0; j < n; j++)
                junk[j] = (uint8_t)rand_next(&seed);
            if (f == 0 && n > 2 && i % 2) { /* half of them get past the version */
                junk[0] = 8;
                junk[1] = 1;
            }
            raw_send(stranger, junk, n, f + 1 < n_frames);
        }
        if (i % 10 == 0)
            link_send_to(honest, NULL, "step");
        for (int due = i % 10 == 0 ? 2 : 1; due > 0; due--) {
            struct esp_msg msg;
            struct esp_err err = {0};
            esp_status st = link_next(s, &from, &msg, &err);
            if (esp_peer_equal(&from, &honest_peer)) {
                assert_int_equal(st, ESP_OK);
                n_honest++;
            } else if (st == ESP_E_PROTO) {
                n_bad++;
            } else if (st != ESP_OK) { /* chance may make a message; it must be no other failure */
                fail_msg("message %d: status %d: %s", i, st, err.text);
            }
            esp_msg_finish(&msg);
        }
    }
    assert_int_equal(n_honest, 100);
    assert_true(n_bad > 990);
    zmq_close(stranger);
    zmq_ctx_term(context);
    esp_link_destroy(&honest);
    esp_link_destroy(&s);
}

static void test_lying_server(void **state)
{
    void *context = zmq_ctx_new(), *router = zmq_socket(context, ZMQ_ROUTER);
    char at[128];
    struct esp_link *d;
    struct esp_peer peer = {0};
    uint8_t buf[4096];
    int n, linger = 0, patience = PATIENCE_MS;

    snprintf(at, sizeof at, "ipc://%s/liar", link_dir);
    assert_int_equal(zmq_setsockopt(router, ZMQ_LINGER, &linger, sizeof linger), 0);
    assert_int_equal(zmq_setsockopt(router, ZMQ_RCVTIMEO, &patience, sizeof patience), 0);
    assert_int_equal(zmq_bind(router, at), 0);
    d = link_dial(at, NULL);
    link_send_to(d, NULL, "hello");
    n = zmq_recv(router, peer.id, sizeof peer.id, 0);
    assert_true(n > 0);
    assert_true(zmq_recv(router, buf, sizeof buf, 0) > 0);
    raw_send(router, peer.id, (size_t)n, true);
    raw_send(router, "nonsense", 8, false);
    link_expect_bad(d, NULL, "a lying server", "no Envelope");
    link_expect_nothing(d);
    zmq_close(router);
    esp_link_destroy(&d);
    zmq_ctx_term(context);
}

/* A frame past the limit ends its sender's connection before it takes memory. */
static void test_oversize_frames(void **state)
{
    for (int tcp = 0; tcp <= 1; tcp++) {
        char at[ESP_MAX_ENDPOINT + 1];
        struct esp_link *s = link_serve(at, tcp, &(struct esp_link_options){.max_frame = 1000});
        struct esp_link *honest = link_dial(at, &(struct esp_link_options){.identity = "honest"});
        void *context = zmq_ctx_new(), *stranger = raw(context, ZMQ_DEALER, at);
        struct esp_peer from;
        uint8_t *large = calloc(1, 1 << 20);

        assert_non_null(large);
        raw_send(stranger, large, 1000, false);
        link_expect_bad(s, &from, "as large as may be", "no Envelope");
        raw_send(stranger, large, 1001, false);
        raw_send(stranger, large, 1 << 20, false);
        for (int i = 0; i < 20; i++) { /* time enough for the frames to come, if they would */
            link_send_to(honest, NULL, "heartbeat");
            link_expect(s, &from, ESP_MSG_HEARTBEAT);
            usleep(10000);
        }
        link_expect_nothing(s);
        free(large);
        zmq_close(stranger);
        zmq_ctx_term(context);
        esp_link_destroy(&honest);
        esp_link_destroy(&s);
    }
}

/* What is not even ZeroMQ. */
static void test_plain_tcp(void **state)
{
    static const char *const greetings[] = {
        "", "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        "\xff\x01\x01\x01\x01\x01\x01\x01\x01\x7f\x03\x01NULL", /* half a greeting, and silence */
    };
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = link_serve(at, true, NULL), *honest = link_dial(at, NULL);
    int fds[sizeof greetings / sizeof greetings[0]];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(strrchr(at, ':') + 1))};
    struct esp_peer from;

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (size_t i = 0; i < sizeof greetings / sizeof greetings[0]; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        assert_true(fds[i] >= 0);
        assert_int_equal(connect(fds[i], (struct sockaddr *)&to, sizeof to), 0);
        assert_true(send(fds[i], greetings[i], strlen(greetings[i]), MSG_NOSIGNAL) >= 0);
    }
    link_send_to(honest, NULL, "hello");
    link_expect(s, &from, ESP_MSG_HELLO);
    link_send_to(s, &from, "welcome");
    link_expect(honest, NULL, ESP_MSG_WELCOME);
    link_expect_nothing(s);
    for (size_t i = 0; i < sizeof greetings / sizeof greetings[0]; i++)
        close(fds[i]);
    esp_link_destroy(&honest);
    esp_link_destroy(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strange_frames), cmocka_unit_test(test_random_messages),
        cmocka_unit_test(test_lying_server),   cmocka_unit_test(test_oversize_frames),
        cmocka_unit_test(test_plain_tcp),
    };
    return cmocka_run_group_tests(tests, link_setup, link_teardown);
}
