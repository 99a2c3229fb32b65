/*
 * Links over real sockets, among honest peers; endpoints and options.
 */
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include "tests/unit/link_rig.h"

static void test_every_kind_both_ways(void **state)
{
    for (int tcp = 0; tcp <= 1; tcp++) {
        char at[ESP_MAX_ENDPOINT + 1];
        struct esp_link *s = link_serve(at, tcp, NULL),
                        *d = link_dial(at, &(struct esp_link_options){.identity = "w1"});
        struct esp_peer from;

        assert_true(strncmp(at, tcp ? "tcp://127.0.0.1:" : "ipc://", tcp ? 16 : 6) == 0);
        for (size_t i = 0; i < esp_test_n_messages; i++) {
            struct esp_msg sent = esp_test_messages[i].msg, got;
            struct esp_err err = {0};
            char who[64];
            for (int way = 0; way < 2; way++) {
                if (esp_link_send(way ? s : d, way ? &from : NULL, &sent, &err) != ESP_OK)
                    fail_msg("%s: %s", esp_test_messages[i].name, err.text);
                if (link_next(way ? d : s, way ? NULL : &from, &got, &err) != ESP_OK)
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
        link_expect_nothing(s);
        link_expect_nothing(d);
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
    struct esp_link *s = link_serve(at, true, NULL), *d;
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
    link_expect(s, &from, ESP_MSG_ENCODE);

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
    struct esp_link *s = link_serve(at, false, &(struct esp_link_options){.hwm = 4}), *d;
    struct esp_peer from;
    struct esp_err err = {0};
    esp_status st = ESP_OK;
    static int n_many;
    char nobody[64];

    /* Nobody there: what fits the queue waits, the rest is refused. */
    snprintf(nobody, sizeof nobody, "ipc://%s/nobody", link_dir);
    d = link_dial(nobody, &(struct esp_link_options){.hwm = 3});
    for (int i = 0; i < 3; i++)
        link_send_to(d, NULL, "heartbeat");
    assert_int_equal(esp_link_send(d, NULL, &(struct esp_msg){.kind = ESP_MSG_HEARTBEAT}, &err), ESP_E_LIMIT);
    assert_non_null(strstr(err.text, "queue for the other side is full"));
    esp_link_destroy(&d);

    /* A peer that reads nothing. */
    d = link_dial(at, &(struct esp_link_options){.hwm = 4, .identity = "lazy"});
    link_send_to(d, NULL, "hello");
    link_expect(s, &from, ESP_MSG_HELLO);
    for (int i = 0; i < 100000 && st == ESP_OK; i++) {
        struct esp_msg msg = releasable(16384, &n_many);
        st = esp_link_send(s, &from, &msg, &err);
    }
    assert_int_equal(st, ESP_E_LIMIT);
    assert_non_null(strstr(err.text, "queue for lazy is full"));
    link_expect(d, NULL, ESP_MSG_ENCODE); /* and what was taken arrives, from the first on */
    esp_link_destroy(&d);
    esp_link_destroy(&s);
}

static void test_gone_peer(void **state)
{
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = link_serve(at, false, NULL), *d = link_dial(at, NULL), *honest = link_dial(at, NULL);
    struct esp_peer from, other;
    struct esp_err err = {0};
    esp_status st = ESP_OK;

    link_send_to(d, NULL, "hello");
    link_expect(s, &from, ESP_MSG_HELLO);
    link_send_to(honest, NULL, "hello");
    link_expect(s, &other, ESP_MSG_HELLO);
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
    link_send_to(s, &other, "welcome");
    link_expect(honest, NULL, ESP_MSG_WELCOME);
    esp_link_destroy(&honest);
    esp_link_destroy(&s);
}

/* A dialler finds its server again by itself. */
static void test_reconnect(void **state)
{
    const struct esp_link_options options = {.type = ESP_LINK_SERVE};
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = link_serve(at, true, NULL),
                    *d = link_dial(at, &(struct esp_link_options){.identity = "w1"});
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
        link_expect(s, &from, ESP_MSG_HELLO);
        link_send_to(s, &from, "welcome");
        link_expect(d, NULL, ESP_MSG_WELCOME);
        esp_link_destroy(&s);
        s = link_open(&options);
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
    struct esp_link *s = link_serve(at, false, NULL);
    struct esp_link *old = link_dial(at, &(struct esp_link_options){.identity = "w1"}), *new;
    struct esp_peer first, second;

    link_send_to(old, NULL, "hello");
    link_expect(s, &first, ESP_MSG_HELLO);
    new = link_dial(at, &(struct esp_link_options){.identity = "w1"});
    link_send_to(new, NULL, "hello.least");
    link_expect(s, &second, ESP_MSG_HELLO);
    assert_true(esp_peer_equal(&first, &second));
    link_send_to(s, &first, "welcome");
    link_expect(new, NULL, ESP_MSG_WELCOME);
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
    struct esp_link *s = link_serve(at, false, NULL), *d = link_dial(at, NULL);
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
        link_send_to(d, NULL, "heartbeat");
    for (int i = 0; i < 5; i++) {
        assert_int_equal(esp_link_wait(waits, 2, PATIENCE_MS, NULL), ESP_OK);
        assert_true(waits[0].ready && !waits[1].ready);
        link_expect(s, &from, ESP_MSG_HEARTBEAT);
    }
    link_send_to(s, &from, "welcome");
    assert_int_equal(esp_link_wait(waits, 2, PATIENCE_MS, NULL), ESP_OK);
    assert_true(!waits[0].ready && waits[1].ready);
    link_expect(d, NULL, ESP_MSG_WELCOME);

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

/* Links are made while signals come: libzmq's calls give up with EINTR then, now and then. */
static void test_made_among_signals(void **state)
{
    struct itimerval storm = {.it_value.tv_usec = 50, .it_interval.tv_usec = 50}, never = {0};
    struct sigaction action = {.sa_handler = nothing_on_signal, .sa_flags = SA_RESTART}, before;
    struct esp_link_options serve = {.type = ESP_LINK_SERVE, .tell_drops = true},
                            dial = {.type = ESP_LINK_DIAL};
    struct esp_err err = {0};
    esp_status st = ESP_OK;

    assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &storm, NULL), 0);
    for (int i = 0; !st && i < 300; i++) {
        char at[ESP_MAX_ENDPOINT + 1];
        struct esp_link *s = NULL, *d = NULL;

        st = esp_link_create(&s, link_net, &serve, &err);
        if (!st)
            st = esp_link_bind(s, "tcp://127.0.0.1:*", false, at, &err);
        if (!st)
            st = esp_link_create(&d, link_net, &dial, &err);
        if (!st)
            st = esp_link_connect(d, at, &err);
        esp_link_destroy(&d);
        esp_link_destroy(&s);
    }
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
    if (st)
        fail_msg("%s", err.text);
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
    struct esp_link *link = link_open(&(struct esp_link_options){.type = ESP_LINK_SERVE});
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
        assert_int_equal(esp_link_create(&link, link_net, &bad[i], NULL), ESP_E_ARG);
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

/* The end of a connection wakes whoever waits, and then one of the peers cannot be sent to any more. */
static void drops(bool tcp)
{
    char at[ESP_MAX_ENDPOINT + 1];
    struct esp_link *s = link_serve(at, tcp, &(struct esp_link_options){.tell_drops = true});
    struct esp_link *gone = link_dial(at, NULL), *stays = link_dial(at, NULL);
    struct esp_peer who[2];
    struct esp_err err;
    uint32_t n = 0;

    link_send_to(gone, NULL, "cancel");
    link_expect(s, &who[0], ESP_MSG_CANCEL);
    link_send_to(stays, NULL, "cancel");
    link_expect(s, &who[1], ESP_MSG_CANCEL);
    assert_int_equal(esp_link_drops(s), 0);
    esp_link_destroy(&gone);
    while (n == 0) {
        struct esp_wait wait = {.link = s};

        assert_int_equal(esp_link_wait(&wait, 1, PATIENCE_MS, &err), ESP_OK);
        n = esp_link_drops(s);
    }
    assert_int_equal(n, 1);
    for (;;) { /* the socket hears of it a moment after the monitor */
        struct esp_msg msg = *esp_test_message_find("status");
        esp_status st = esp_link_send(s, &who[0], &msg, &err);

        if (st == ESP_E_CLOSED)
            break;
        assert_int_equal(st, ESP_OK);
        esp_link_wait(NULL, 0, 1, NULL);
    }
    link_send_to(s, &who[1], "status");
    link_expect(stays, NULL, ESP_MSG_STATUS);
    esp_link_destroy(&stays);
    esp_link_destroy(&s);
}

static void test_drops(void **state)
{
    drops(true);
    drops(false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_both_ways),
        cmocka_unit_test(test_blobs_are_released),
        cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_gone_peer),
        cmocka_unit_test(test_drops),
        cmocka_unit_test(test_reconnect),
        cmocka_unit_test(test_takeover),
        cmocka_unit_test(test_wait),
        cmocka_unit_test(test_made_among_signals),
        cmocka_unit_test(test_endpoints),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_peer_text),
    };
    return cmocka_run_group_tests(tests, link_setup, link_teardown);
}
