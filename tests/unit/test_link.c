/*
 * Links over real sockets, among honest peers and among peers that speak ZeroMQ, or only TCP, and mean no
 * good.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <cmocka.h>
#include <zmq.h>

#include "proto/link.h"
#include "tests/support/messages.h"

#define PATIENCE_MS 60000 /* far more than anything here takes */

static char dir[] = "/tmp/esp-link-XXXXXX";
static struct esp_net *net;

static int setup(void **state)
{
    return mkdtemp(dir) && esp_net_create(&net, NULL) == ESP_OK ? 0 : -1;
}

static int teardown(void **state)
{
    static const char *const names[] = {"s", "liar"};
    char path[64];

    esp_net_destroy(&net);
    for (int i = 0; i < 2; i++) { /* libzmq leaves them behind */
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    return rmdir(dir);
}

static struct esp_link *open_link(const struct esp_link_options *options)
{
    struct esp_link *link;
    struct esp_err err = {0};

    if (esp_link_create(&link, net, options, &err) != ESP_OK)
        fail_msg("%s", err.text);
    return link;
}

/* A bound serving link; `endpoint` (ESP_MAX_ENDPOINT + 1 bytes) gets where. */
static struct esp_link *serve(char *endpoint, bool tcp, const struct esp_link_options *more)
{
    struct esp_link_options options = more ? *more : (struct esp_link_options){0};
    struct esp_err err = {0};
    struct esp_link *link;
    char ask[64];

    options.type = ESP_LINK_SERVE;
    link = open_link(&options);
    snprintf(ask, sizeof ask, "ipc://%s/s", dir);
    if (esp_link_bind(link, tcp ? "tcp://127.0.0.1:*" : ask, false, endpoint, &err) != ESP_OK)
        fail_msg("%s", err.text);
    return link;
}

static struct esp_link *dial(const char *endpoint, const struct esp_link_options *more)
{
    struct esp_link_options options = more ? *more : (struct esp_link_options){0};
    struct esp_err err = {0};
    struct esp_link *link;

    options.type = ESP_LINK_DIAL;
    link = open_link(&options);
    if (esp_link_connect(link, endpoint, &err) != ESP_OK)
        fail_msg("%s", err.text);
    return link;
}

static void send_to(struct esp_link *link, const struct esp_peer *to, const char *name)
{
    struct esp_msg msg = *esp_test_message_find(name);
    struct esp_err err = {0};

    if (esp_link_send(link, to, &msg, &err) != ESP_OK)
        fail_msg("send %s: %s", name, err.text);
}

/* The next message, good or bad, as esp_link_recv says it. */
static esp_status next(struct esp_link *link, struct esp_peer *from, struct esp_msg *msg, struct esp_err *err)
{
    struct esp_wait wait = {.link = link};
    esp_status st = esp_link_wait(&wait, 1, PATIENCE_MS, err);

    if (st != ESP_OK || !wait.ready)
        fail_msg("wait: status %d: %s", st, err->text);
    return esp_link_recv(link, from, msg, err);
}

static void expect(struct esp_link *link, struct esp_peer *from, enum esp_msg_kind kind)
{
    struct esp_msg msg;
    struct esp_err err = {0};

    if (next(link, from, &msg, &err) != ESP_OK)
        fail_msg("expected %s: %s", esp_msg_name(kind), err.text);
    assert_int_equal(msg.kind, kind);
    esp_msg_finish(&msg);
}

static void expect_bad(struct esp_link *link, struct esp_peer *from, const char *what, const char *cause)
{
    struct esp_msg msg;
    struct esp_err err = {0};
    esp_status st = next(link, from, &msg, &err);

    if (st != ESP_E_PROTO || !strstr(err.text, cause))
        fail_msg("%s: status %d \"%s\", expected \"%s\"", what, st, err.text, cause);
    assert_null(msg.store);
}

static void expect_nothing(struct esp_link *link)
{
    struct esp_msg msg;
    struct esp_peer from;

    assert_int_equal(esp_link_recv(link, &from, &msg, NULL), ESP_E_TIMEOUT);
}

/* ---- honest peers ---- */

static void test_every_kind_both_ways(void **state)
{
    for (int tcp = 0; tcp <= 1; tcp++) {
        char at[ESP_MAX_ENDPOINT + 1];
        struct esp_link *s = serve(at, tcp, NULL),
                        *d = dial(at, &(struct esp_link_options){.identity = "w1"});
        struct esp_peer from;

        assert_true(strncmp(at, tcp ? "tcp://127.0.0.1:" : "ipc://", tcp ? 16 : 6) == 0);
        for (size_t i = 0; i < esp_test_n_messages; i++) {
            struct esp_msg sent = esp_test_messages[i].msg, got;
            struct esp_err err = {0};
            char who[64];
            for (int way = 0; way < 2; way++) {
                if (esp_link_send(way ? s : d, way ? &from : NULL, &sent, &err) != ESP_OK)
                    fail_msg("%s: %s", esp_test_messages[i].name, err.text);
                if (next(way ? d : s, way ? NULL : &from, &got, &err) != ESP_OK)
                    fail_msg("%s: %s", esp_test_messages[i].name, err.text);
                assert_string_equal(esp_peer_text(&from, who, sizeof who), "w1");
                assert_int_equal(got.kind, sent.kind);
                assert_int_equal(got.n_blobs, sent.n_blobs);
                for (uint32_t b = 0; b < got.n_blobs; b++) {
                    assert_int_equal(got.blob[b].n_bytes, sent.blob[b].n_bytes);
                    assert_memory_equal(got.blob[b].data, sent.blob[b].data, sent.blob[b].n_bytes);
                }
                esp_msg_finish(&got);
            }
        }
        expect_nothing(s);
        expect_nothing(d);
        esp_link_destroy(&d);
        esp_link_destroy(&s);
        assert_null(s);
        esp_link_destroy(&s);
    }
}

static int n_released[5]; /* written by libzmq's thread: read once its context has ended */

static void count_release(void *data, void *hint)
{
    free(data);
    __atomic_add_fetch((int *)hint, 1, __ATOMIC_SEQ_CST);
}

/* encode.rows at any width, its frame to be released. */
static struct esp_msg releasable(uint32_t width, int *count)
{
    struct esp_msg msg = *esp_test_message_find("encode.rows");

    msg.encode.width = width;
    msg.blob[0] = (struct esp_blob){
        .data = calloc(width, 4), .n_bytes = (size_t)width * 4, .release = count_release, .hint = count};
    assert_non_null(msg.blob[0].data);
    return msg;
}

/* Whatever becomes of a message, its frame is released once. */
static void test_blobs_are_released(void **state)
{
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_net *own;
    struct esp_link *s = serve(at, true, NULL), *d;
    struct esp_link_options options = {.type = ESP_LINK_DIAL, .hwm = 2};
    struct esp_peer nobody = {.n = 2, .id = "w9"}, from;
    struct esp_msg msg;

    assert_int_equal(esp_net_create(&own, NULL), ESP_OK);
    assert_int_equal(esp_link_create(&d, own, &options, NULL), ESP_OK);
    assert_int_equal(esp_link_connect(d, at, NULL), ESP_OK);

    msg = releasable(1 << 20, &n_released[0]);
    assert_int_equal(esp_link_send(d, NULL, &msg, NULL), ESP_OK);
    assert_null(msg.blob[0].release); /* so that esp_msg_finish does no harm */
    esp_msg_finish(&msg);
    expect(s, &from, ESP_MSG_ENCODE);

    msg = releasable(4, &n_released[1]); /* nonsense */
    msg.encode.rows = 5;
    assert_int_equal(esp_link_send(d, NULL, &msg, NULL), ESP_E_PROTO);
    assert_null(msg.blob[0].release);
    msg = releasable(4, &n_released[2]); /* no peer named */
    assert_int_equal(esp_link_send(s, NULL, &msg, NULL), ESP_E_ARG);
    msg = releasable(4, &n_released[3]); /* a peer that is not there */
    assert_int_equal(esp_link_send(s, &nobody, &msg, NULL), ESP_E_CLOSED);
    msg = releasable(4, &n_released[4]); /* perhaps never taken up */
    assert_int_equal(esp_link_send(d, NULL, &msg, NULL), ESP_OK);
    esp_link_destroy(&d);
    esp_net_destroy(&own);
    esp_link_destroy(&s);
    for (int i = 0; i < 5; i++)
        assert_int_equal(n_released[i], 1);
}

static void test_full_queue(void **state)
{
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = serve(at, false, &(struct esp_link_options){.hwm = 4}), *d;
    struct esp_peer from;
    struct esp_err err = {0};
    esp_status st = ESP_OK;
    static int n_many;
    char nobody[64];

    /* Nobody there: what fits the queue waits, the rest is refused. */
    snprintf(nobody, sizeof nobody, "ipc://%s/nobody", dir);
    d = dial(nobody, &(struct esp_link_options){.hwm = 3});
    for (int i = 0; i < 3; i++)
        send_to(d, NULL, "heartbeat");
    assert_int_equal(esp_link_send(d, NULL, &(struct esp_msg){.kind = ESP_MSG_HEARTBEAT}, &err), ESP_E_LIMIT);
    assert_non_null(strstr(err.text, "queue for the other side is full"));
    esp_link_destroy(&d);

    /* A peer that reads nothing. */
    d = dial(at, &(struct esp_link_options){.hwm = 4, .identity = "lazy"});
    send_to(d, NULL, "hello");
    expect(s, &from, ESP_MSG_HELLO);
    for (int i = 0; i < 100000 && st == ESP_OK; i++) {
        struct esp_msg msg = releasable(16384, &n_many);
        st = esp_link_send(s, &from, &msg, &err);
    }
    assert_int_equal(st, ESP_E_LIMIT);
    assert_non_null(strstr(err.text, "queue for lazy is full"));
    expect(d, NULL, ESP_MSG_ENCODE); /* and what was taken arrives, from the first on */
    esp_link_destroy(&d);
    esp_link_destroy(&s);
}

static void test_gone_peer(void **state)
{
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = serve(at, false, NULL), *d = dial(at, NULL), *honest = dial(at, NULL);
    struct esp_peer from, other;
    struct esp_err err = {0};
    esp_status st = ESP_OK;

    send_to(d, NULL, "hello");
    expect(s, &from, ESP_MSG_HELLO);
    send_to(honest, NULL, "hello");
    expect(s, &other, ESP_MSG_HELLO);
    assert_false(esp_peer_equal(&from, &other));
    esp_link_destroy(&d);
    for (int i = 0; i < PATIENCE_MS / 10 && st != ESP_E_CLOSED; i++) { /* the news takes a moment */
        struct esp_msg msg = {.kind = ESP_MSG_HEARTBEAT};
        st = esp_link_send(s, &from, &msg, &err);
        assert_true(st == ESP_OK || st == ESP_E_CLOSED || st == ESP_E_LIMIT);
        if (st != ESP_E_CLOSED)
            usleep(10000);
    }
    assert_int_equal(st, ESP_E_CLOSED);
    assert_non_null(strstr(err.text, "is gone"));
    send_to(s, &other, "welcome");
    expect(honest, NULL, ESP_MSG_WELCOME);
    esp_link_destroy(&honest);
    esp_link_destroy(&s);
}

/* A dialler finds its server again by itself. */
static void test_reconnect(void **state)
{
    const struct esp_link_options options = {.type = ESP_LINK_SERVE};
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = serve(at, true, NULL), *d = dial(at, &(struct esp_link_options){.identity = "w1"});
    struct esp_peer from;

    for (int i = 0; i < 3; i++) {
        struct esp_wait wait = {.link = s};
        int ms;
        /* What is sent into a connection that is about to break is lost, so say it until it is heard. */
        for (ms = 0; ms < PATIENCE_MS && !wait.ready; ms += 100) {
            struct esp_msg hello = *esp_test_message_find("hello");
            esp_status st = esp_link_send(d, NULL, &hello, NULL);
            assert_true(st == ESP_OK || st == ESP_E_LIMIT);
            esp_link_wait(&wait, 1, 100, NULL);
        }
        expect(s, &from, ESP_MSG_HELLO);
        send_to(s, &from, "welcome");
        expect(d, NULL, ESP_MSG_WELCOME);
        esp_link_destroy(&s);
        s = open_link(&options);
        for (ms = 0; ms < PATIENCE_MS && esp_link_bind(s, at, false, NULL, NULL) != ESP_OK; ms += 10)
            usleep(10000); /* the port is free once libzmq's thread has closed it */
        assert_true(ms < PATIENCE_MS);
    }
    esp_link_destroy(&d);
    esp_link_destroy(&s);
}

/* The same routing id again: the newer connection has it. */
static void test_takeover(void **state)
{
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = serve(at, false, NULL);
    struct esp_link *old = dial(at, &(struct esp_link_options){.identity = "w1"}), *new;
    struct esp_peer first, second;

    send_to(old, NULL, "hello");
    expect(s, &first, ESP_MSG_HELLO);
    new = dial(at, &(struct esp_link_options){.identity = "w1"});
    send_to(new, NULL, "hello.least");
    expect(s, &second, ESP_MSG_HELLO);
    assert_true(esp_peer_equal(&first, &second));
    send_to(s, &first, "welcome");
    expect(new, NULL, ESP_MSG_WELCOME);
    esp_link_destroy(&old);
    esp_link_destroy(&new);
    esp_link_destroy(&s);
}

static void nothing_on_signal(int sig)
{
}

static void test_wait(void **state)
{
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = serve(at, false, NULL), *d = dial(at, NULL);
    struct esp_peer from;
    struct itimerval soon = {.it_value.tv_usec = 50000}, never = {0};
    struct sigaction action = {.sa_handler = nothing_on_signal}, before;
    struct esp_wait waits[3] = {{.link = s}, {.link = d}, {0}};
    static struct esp_wait many[65];
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    waits[2].fd = fds[0];
    assert_int_equal(esp_link_wait(waits, 3, 0, NULL), ESP_E_TIMEOUT);
    assert_int_equal(esp_link_wait(waits, 3, 20, NULL), ESP_E_TIMEOUT);
    assert_int_equal(esp_link_wait(NULL, 0, 1, NULL), ESP_E_TIMEOUT);
    assert_int_equal(esp_link_wait(many, 65, 0, NULL), ESP_E_ARG);

    assert_int_equal(write(fds[1], "x", 1), 1);
    assert_int_equal(esp_link_wait(waits, 3, PATIENCE_MS, NULL), ESP_OK);
    assert_true(!waits[0].ready && !waits[1].ready && waits[2].ready);
    waits[2].fd = fds[0];

    /* Several messages, one wait a message: those that came early are seen. */
    for (int i = 0; i < 5; i++)
        send_to(d, NULL, "heartbeat");
    for (int i = 0; i < 5; i++) {
        assert_int_equal(esp_link_wait(waits, 2, PATIENCE_MS, NULL), ESP_OK);
        assert_true(waits[0].ready && !waits[1].ready);
        expect(s, &from, ESP_MSG_HEARTBEAT);
    }
    send_to(s, &from, "welcome");
    assert_int_equal(esp_link_wait(waits, 2, PATIENCE_MS, NULL), ESP_OK);
    assert_true(!waits[0].ready && waits[1].ready);
    expect(d, NULL, ESP_MSG_WELCOME);

    /* The end of a pipe is readable as well. */
    assert_int_equal(read(fds[0], at, 1), 1);
    close(fds[1]);
    assert_int_equal(esp_link_wait(waits, 3, PATIENCE_MS, NULL), ESP_OK);
    assert_true(waits[2].ready);
    close(fds[0]);

    soon.it_interval = soon.it_value; /* again and again: the first may come before we wait */
    assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    assert_int_equal(esp_link_wait(waits, 2, PATIENCE_MS, NULL), ESP_OK);
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
    assert_true(!waits[0].ready && !waits[1].ready);
    esp_link_destroy(&d);
    esp_link_destroy(&s);
}

/* ---- endpoints ---- */

static const struct {
    const char *endpoint;
    bool local;
} endpoints[] = {
    {"ipc:///tmp/x", true},
    {"inproc://x", true},
    {"tcp://127.0.0.1:5550", true},
    {"tcp://127.0.0.1:*", true},
    {"tcp://127.255.255.254:1", true},
    {"tcp://[::1]:5550", true},
    {"tcp://localhost:5550", true},
    {"tcp://*:5550", false},
    {"tcp://0.0.0.0:5550", false},
    {"tcp://[::]:5550", false},
    {"tcp://[::2]:5550", false},
    {"tcp://192.168.0.7:5550", false},
    {"tcp://128.0.0.1:5550", false},
    {"tcp://eth0:5550", false},
    {"tcp://eth0;127.0.0.1:5550", false},
    {"tcp://127.0.0.1.example.com:5550", false},
    {"tcp://127.0.0.1,0.0.0.0:5550", false},
    {"tcp://127.1:5550", false},
    {"tcp://localhost.example.com:5550", false},
    {"tcp://[::1]", false},
    {"tcp://127.0.0.1", false},
    {"tcp://", false},
    {"pgm://127.0.0.1:1", false},
    {"127.0.0.1:5550", false},
    {"", false},
};

static void test_endpoints(void **state)
{
    struct esp_link *link = open_link(&(struct esp_link_options){.type = ESP_LINK_SERVE});
    char at[ESP_MAX_ENDPOINT + 1] = "";

    for (size_t i = 0; i < sizeof endpoints / sizeof endpoints[0]; i++) {
        struct esp_err err = {0};
        if (esp_endpoint_is_local(endpoints[i].endpoint) != endpoints[i].local)
            fail_msg("%s should %sbe local", endpoints[i].endpoint, endpoints[i].local ? "" : "not ");
        if (endpoints[i].local)
            continue;
        assert_int_equal(esp_link_bind(link, endpoints[i].endpoint, false, NULL, &err), ESP_E_ARG);
        assert_non_null(strstr(err.text, "without keys"));
    }
    assert_int_equal(esp_link_bind(link, "tcp://0.0.0.0:*", true, at, NULL), ESP_OK);
    assert_true(strncmp(at, "tcp://0.0.0.0:", 14) == 0 && at[14] != '*' && at[14] != '0');
    assert_int_equal(esp_link_bind(link, at, true, NULL, NULL), ESP_E_IO); /* taken: by us */
    assert_int_equal(esp_link_bind(link, "tcp://127.0.0.1:99999", false, NULL, NULL), ESP_E_ARG);
    assert_int_equal(esp_link_bind(link, "ipc:///nowhere/at/all", false, NULL, NULL), ESP_E_IO);
    assert_int_equal(esp_link_connect(link, "nonsense", NULL), ESP_E_ARG);
    esp_link_destroy(&link);
}

static void test_options(void **state)
{
    static char long_name[257];
    const struct esp_link_options bad[] = {
        {.type = ESP_LINK_DIAL, .identity = ""},
        {.type = ESP_LINK_DIAL, .identity = long_name},
        {.type = ESP_LINK_DIAL, .hwm = -1},
        {.type = ESP_LINK_SERVE, .linger_ms = -1},
        {.type = ESP_LINK_SERVE, .max_frame = SIZE_MAX},
    };

    memset(long_name, 'x', 256);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct esp_link *link = (struct esp_link *)long_name;
        assert_int_equal(esp_link_create(&link, net, &bad[i], NULL), ESP_E_ARG);
        assert_null(link);
    }
}

static void test_peer_text(void **state)
{
    struct esp_peer peer = {.n = 2, .id = "w1"}, invented = {.n = 5, .id = {0, 0xff, 1, 2, 3}};
    struct esp_peer long_one = {.n = 255};
    char out[64];

    assert_string_equal(esp_peer_text(&peer, out, sizeof out), "w1");
    assert_string_equal(esp_peer_text(&invented, out, sizeof out), "00ff010203");
    assert_string_equal(esp_peer_text(&(struct esp_peer){0}, out, sizeof out), "");
    assert_int_equal(strlen(esp_peer_text(&long_one, out, sizeof out)), 62);
    memset(long_one.id, 'x', 255);
    assert_int_equal(strlen(esp_peer_text(&long_one, out, sizeof out)), 63);
    peer.id[1] = '\n';
    assert_string_equal(esp_peer_text(&peer, out, sizeof out), "770a");
}

/* ---- strangers ---- */

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
    struct esp_link *s = serve(at, false, NULL),
                    *honest = dial(at, &(struct esp_link_options){.identity = "honest"});
    void *context = zmq_ctx_new(), *stranger = raw(context, ZMQ_DEALER, at), *req = raw(context, ZMQ_REQ, at);
    struct esp_peer from, honest_peer;
    uint8_t *bytes, *bye_bytes;
    size_t n, n_bye;

    assert_int_equal(esp_wire_pack(&bytes, &n, encode, NULL), ESP_OK);
    assert_int_equal(esp_wire_pack(&bye_bytes, &n_bye, bye, NULL), ESP_OK);
    send_to(honest, NULL, "hello");
    expect(s, &honest_peer, ESP_MSG_HELLO);

    raw_send(stranger, "", 0, false);
    expect_bad(s, &from, "an empty frame", "header: empty");
    assert_false(esp_peer_equal(&from, &honest_peer)); /* a bad message says whose it is */
    assert_true(from.n > 0);
    raw_send(stranger, "hello", 5, false);
    expect_bad(s, &from, "text", "no Envelope");
    raw_send(stranger, bytes, n, false);
    expect_bad(s, &from, "no raw frame", "encode: 0 raw frames, takes 1");
    raw_send(stranger, bytes, n, true);
    raw_send(stranger, "12345", 5, false);
    expect_bad(s, &from, "a raw frame of a wrong size", "encode: raw frame of 5 bytes");
    raw_send(stranger, bytes, n, true);
    raw_send(stranger, "1234", 4, true);
    raw_send(stranger, "1234", 4, false);
    expect_bad(s, &from, "a raw frame too many", "encode: 2 raw frames, takes 1");
    raw_send(req, bye_bytes, n_bye, false); /* puts an empty frame first */
    expect_bad(s, &from, "a REQ socket", "header: empty");
    for (int n_frames = 65; n_frames <= 5000; n_frames *= 8) {
        raw_send(stranger, bytes, n, true);
        for (int i = 1; i < n_frames; i++)
            raw_send(stranger, "1234", 4, true);
        raw_send(stranger, "1234", 4, false);
        expect_bad(s, &from, "too many frames", "more than 64 raw frames");
    }
    /* A header that is too large, in a frame that is not. */
    free(bytes);
    bytes = calloc(1, ESP_MAX_HEADER + 1);
    assert_non_null(bytes);
    raw_send(stranger, bytes, ESP_MAX_HEADER + 1, false);
    expect_bad(s, &from, "a large header", "header: 8388609 bytes, at most 8388608");
    /* And a good one at last: the stranger was none. */
    raw_send(stranger, bye_bytes, n_bye, false);
    expect(s, &from, ESP_MSG_BYE);
    send_to(honest, NULL, "heartbeat");
    expect(s, &from, ESP_MSG_HEARTBEAT);
    assert_true(esp_peer_equal(&from, &honest_peer));
    expect_nothing(s);
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
    struct esp_link *s = serve(at, false, NULL),
                    *honest = dial(at, &(struct esp_link_options){.identity = "honest"});
    void *context = zmq_ctx_new(), *stranger = raw(context, ZMQ_DEALER, at);
    struct esp_peer from, honest_peer;
    uint32_t seed = 2463534242u;
    int n_honest = 0, n_bad = 0;
    uint8_t junk[300];

    send_to(honest, NULL, "hello");
    expect(s, &honest_peer, ESP_MSG_HELLO);
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
            send_to(honest, NULL, "step");
        for (int due = i % 10 == 0 ? 2 : 1; due > 0; due--) {
            struct esp_msg msg;
            struct esp_err err = {0};
            esp_status st = next(s, &from, &msg, &err);
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

    snprintf(at, sizeof at, "ipc://%s/liar", dir);
    assert_int_equal(zmq_setsockopt(router, ZMQ_LINGER, &linger, sizeof linger), 0);
    assert_int_equal(zmq_setsockopt(router, ZMQ_RCVTIMEO, &patience, sizeof patience), 0);
    assert_int_equal(zmq_bind(router, at), 0);
    d = dial(at, NULL);
    send_to(d, NULL, "hello");
    n = zmq_recv(router, peer.id, sizeof peer.id, 0);
    assert_true(n > 0);
    assert_true(zmq_recv(router, buf, sizeof buf, 0) > 0);
    raw_send(router, peer.id, (size_t)n, true);
    raw_send(router, "nonsense", 8, false);
    expect_bad(d, NULL, "a lying server", "no Envelope");
    expect_nothing(d);
    zmq_close(router);
    esp_link_destroy(&d);
    zmq_ctx_term(context);
}

/* A frame past the limit ends its sender's connection before it takes memory. */
static void test_oversize_frames(void **state)
{
    for (int tcp = 0; tcp <= 1; tcp++) {
        char at[ESP_MAX_ENDPOINT + 1];
        struct esp_link *s = serve(at, tcp, &(struct esp_link_options){.max_frame = 1000});
        struct esp_link *honest = dial(at, &(struct esp_link_options){.identity = "honest"});
        void *context = zmq_ctx_new(), *stranger = raw(context, ZMQ_DEALER, at);
        struct esp_peer from;
        uint8_t *large = calloc(1, 1 << 20);

        assert_non_null(large);
        raw_send(stranger, large, 1000, false);
        expect_bad(s, &from, "as large as may be", "no Envelope");
        raw_send(stranger, large, 1001, false);
        raw_send(stranger, large, 1 << 20, false);
        for (int i = 0; i < 20; i++) { /* time enough for the frames to come, if they would */
            send_to(honest, NULL, "heartbeat");
            expect(s, &from, ESP_MSG_HEARTBEAT);
            usleep(10000);
        }
        expect_nothing(s);
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
    struct esp_link *s = serve(at, true, NULL), *honest = dial(at, NULL);
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
    send_to(honest, NULL, "hello");
    expect(s, &from, ESP_MSG_HELLO);
    send_to(s, &from, "welcome");
    expect(honest, NULL, ESP_MSG_WELCOME);
    expect_nothing(s);
    for (size_t i = 0; i < sizeof greetings / sizeof greetings[0]; i++)
        close(fds[i]);
    esp_link_destroy(&honest);
    esp_link_destroy(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_both_ways),
        cmocka_unit_test(test_blobs_are_released),
        cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_gone_peer),
        cmocka_unit_test(test_reconnect),
        cmocka_unit_test(test_takeover),
        cmocka_unit_test(test_wait),
        cmocka_unit_test(test_endpoints),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_peer_text),
        cmocka_unit_test(test_strange_frames),
        cmocka_unit_test(test_random_messages),
        cmocka_unit_test(test_lying_server),
        cmocka_unit_test(test_oversize_frames),
        cmocka_unit_test(test_plain_tcp),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
