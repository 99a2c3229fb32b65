/*
 * ZeroMQ sockets with our limits.
 *
 * What libzmq does for us: framing, queues, reconnecting, dropping a peer whose frame passes ZMQ_MAXMSGSIZE
 * before memory is asked for. What it does not: the number of
 * frames in a message has no limit while it arrives (a message becomes visible as a whole), so who can
 * connect can make us hold frames. That is one more reason why an endpoint that strangers reach is refused
 * without keys.
 *
 * ROUTER_HANDOVER is on: a connection that comes with the routing id of a living one takes its place. Without
 * it, a worker that lost its connection in a way we did not see (power, cable) would be locked out until our
 * heartbeats notice. The price: whoever can connect can also pose as a peer whose id it knows and receive
 * what is meant for it. Without handover it could do the same by coming first, so a routing id proves nothing
 * in either case. Nor does libzmq 4.3 let go of a connection that was taken over and sends on: its descriptor stays
 * open until the process ends, and who can connect without keys could use all of them up. Keys do prove it: with them a
 * peer is its routing id and its key together (esp_peer_equal), and our own links choose ids that others cannot guess.
 */
#include "proto/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <sodium.h>
#include <zmq.h>

#include "proto/again.h"
#include "proto/auth.h"
#include "proto/endpoint.h"

/* Half-open connections are ended by TCP's own probes and retransmission limits. Not by ZMQ_HEARTBEAT_IVL:
 * libzmq 4.3.4 aborts the process when a ping falls due on a connection whose peer left while its messages
 * filled our queue (out_event asserts !_io_error), and it takes a peer for dead whose pong waits behind such
 * a queue. Nor by ZMQ_TCP_MAXRT, which ends a connection whose receiver takes nothing for a while, and that
 * is how a slow stage pushes back. That a worker is alive and working is for Heartbeat messages to say. */
#define CONNECT_MS       5000
#define RECONNECT_MS     100
#define RECONNECT_MAX_MS 2000
#define HWM_DEFAULT      64
#define WAITS_MAX        64

struct esp_net {
    void *zmq;
    _Atomic unsigned n_named;    /* monitors' endpoints */
    const struct esp_keys *keys; /* NULL: none */
    struct esp_auth *auth;       /* with keys */
};

struct esp_link {
    void *socket;
    enum esp_link_type type;
    bool secure;             /* CURVE */
    struct esp_watch *watch; /* with keys */
    void *drops; /* tell_drops without keys: the socket's monitor; a socket has but one, so with keys ... */
    int drop_fd; /* ... it is the watch's, and this eventfd hears of it; -1: none */
};

static esp_status zmq_fail(struct esp_err *err, esp_status code, const char *what)
{
    return esp_fail(err, code, "%s: %s", what, zmq_strerror(zmq_errno()));
}

esp_status esp_net_create(struct esp_net **out, struct esp_err *err)
{
    struct esp_net *net = calloc(1, sizeof *net);

    *out = NULL;
    if (!net)
        return esp_fail(err, ESP_E_NOMEM, "network");
    net->zmq = zmq_ctx_new();
    if (!net->zmq) {
        free(net);
        return zmq_fail(err, ESP_E_NOMEM, "zmq_ctx_new");
    }
    *out = net;
    return ESP_OK;
}

esp_status esp_net_secure(struct esp_net *net, const struct esp_keys *keys, const struct esp_log *log,
                          struct esp_err *err)
{
    esp_status st;

    if (!zmq_has("curve"))
        return esp_fail(err, ESP_E_UNSUPPORTED, "this libzmq was built without CURVE");
    st = esp_auth_create(&net->auth, net->zmq, keys, log, err);
    if (!st)
        net->keys = keys;
    return st;
}

void esp_net_destroy(struct esp_net **net)
{
    if (!*net)
        return;
    esp_auth_destroy(&(*net)->auth);
    while (zmq_ctx_term((*net)->zmq) != 0 && zmq_errno() == EINTR)
        ; /* a signal; its links are closed, so this ends */
    free(*net);
    *net = NULL;
}

bool esp_peer_equal(const struct esp_peer *a, const struct esp_peer *b)
{
    return a->n == b->n && memcmp(a->id, b->id, a->n) == 0 && a->member == b->member &&
           memcmp(a->key, b->key, sizeof a->key) == 0;
}

const char *esp_peer_text(const struct esp_peer *peer, char *out, size_t n_out)
{
    bool printable = peer->n > 0;
    size_t n = 0;

    for (size_t i = 0; i < peer->n; i++)
        printable &= peer->id[i] > 0x20 && peer->id[i] < 0x7f;
    if (printable) {
        n = peer->n < n_out ? peer->n : n_out - 1;
        memcpy(out, peer->id, n);
    } else {
        for (size_t i = 0; i < peer->n && n + 3 <= n_out; i++, n += 2)
            snprintf(out + n, 3, "%02x", peer->id[i]);
    }
    out[n] = '\0';
    return out;
}

static esp_status set_int(struct esp_link *link, int option, int value, const char *what, struct esp_err *err)
{
    return zmq_setsockopt(link->socket, option, &value, sizeof value) == 0
               ? ESP_OK
               : zmq_fail(err, ESP_E_INTERNAL, what);
}

static esp_status set_options(struct esp_link *link, const struct esp_link_options *options,
                              struct esp_err *err)
{
    const int hwm = options->hwm ? options->hwm : HWM_DEFAULT;
    const struct {
        int option, value;
        const char *name;
        bool serve_only;
    } set[] = {
        {ZMQ_SNDHWM, hwm, "ZMQ_SNDHWM", false},
        {ZMQ_RCVHWM, hwm, "ZMQ_RCVHWM", false},
        {ZMQ_LINGER, options->linger_ms, "ZMQ_LINGER", false},
        {ZMQ_SNDTIMEO, 0, "ZMQ_SNDTIMEO", false}, /* no call of ours blocks; this makes sure */
        {ZMQ_RCVTIMEO, 0, "ZMQ_RCVTIMEO", false},
        {ZMQ_RECONNECT_IVL, RECONNECT_MS, "ZMQ_RECONNECT_IVL", false},
        {ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS, "ZMQ_RECONNECT_IVL_MAX", false},
        {ZMQ_CONNECT_TIMEOUT, CONNECT_MS, "ZMQ_CONNECT_TIMEOUT", false},
        {ZMQ_TCP_KEEPALIVE, 1, "ZMQ_TCP_KEEPALIVE", false},
        {ZMQ_TCP_KEEPALIVE_IDLE, 30, "ZMQ_TCP_KEEPALIVE_IDLE", false}, /* seconds */
        {ZMQ_TCP_KEEPALIVE_INTVL, 10, "ZMQ_TCP_KEEPALIVE_INTVL", false},
        {ZMQ_TCP_KEEPALIVE_CNT, 3, "ZMQ_TCP_KEEPALIVE_CNT", false},
        /* What is sent before the connection stands waits in the queue: a stage may dial the next one before
         * that one listens. The queue is bounded, and what grows stale in it carries an epoch. */
        {ZMQ_IMMEDIATE, 0, "ZMQ_IMMEDIATE", false},
        {ZMQ_ROUTER_MANDATORY, 1, "ZMQ_ROUTER_MANDATORY", true},
        {ZMQ_ROUTER_HANDOVER, 1, "ZMQ_ROUTER_HANDOVER", true},
    };
    const int64_t max_frame = (int64_t)(options->max_frame ? options->max_frame : ESP_MAX_FRAME);
    esp_status st = ESP_OK;

    for (size_t i = 0; i < sizeof set / sizeof set[0] && !st; i++) {
        if (!set[i].serve_only || link->type == ESP_LINK_SERVE)
            st = set_int(link, set[i].option, set[i].value, set[i].name, err);
    }
    if (!st && zmq_setsockopt(link->socket, ZMQ_MAXMSGSIZE, &max_frame, sizeof max_frame) != 0)
        st = zmq_fail(err, ESP_E_INTERNAL, "ZMQ_MAXMSGSIZE");
    if (!st && options->identity &&
        zmq_setsockopt(link->socket, ZMQ_ROUTING_ID, options->identity, strlen(options->identity)) != 0)
        st = zmq_fail(err, ESP_E_INTERNAL, "ZMQ_ROUTING_ID");
    return st;
}

/* CURVE with the net's keys. */
static esp_status set_keys(struct esp_link *link, const struct esp_net *net,
                           const struct esp_link_options *options, struct esp_err *err)
{
    static const char domain[] = "espalier"; /* of no meaning to us; libzmq wants one */
    const bool serve = link->type == ESP_LINK_SERVE;
    const int yes = 1;
    uint8_t random[12];
    char id[3 + 2 * sizeof random] = "c/";

    if (!serve && !options->server_key)
        return esp_fail(err, ESP_E_ARG, "link: a net with keys dials only whose key it knows");
    if (zmq_setsockopt(link->socket, ZMQ_CURVE_SECRETKEY, net->keys->secret, ESP_KEY_BYTES) != 0 ||
        (serve
             ? zmq_setsockopt(link->socket, ZMQ_CURVE_SERVER, &yes, sizeof yes) != 0 ||
                   zmq_setsockopt(link->socket, ZMQ_ZAP_DOMAIN, domain, sizeof domain - 1) != 0
             : zmq_setsockopt(link->socket, ZMQ_CURVE_PUBLICKEY, net->keys->public_key, ESP_KEY_BYTES) != 0 ||
                   zmq_setsockopt(link->socket, ZMQ_CURVE_SERVERKEY, options->server_key, ESP_KEY_BYTES) !=
                       0))
        return zmq_fail(err, ESP_E_INTERNAL, "CURVE keys");
    if (!serve && !options->identity) {
        randombytes_buf(random, sizeof random);
        for (size_t i = 0; i < sizeof random; i++)
            snprintf(id + 2 + 2 * i, 3, "%02x", random[i]);
        if (zmq_setsockopt(link->socket, ZMQ_ROUTING_ID, id, strlen(id)) != 0)
            return zmq_fail(err, ESP_E_INTERNAL, "ZMQ_ROUTING_ID");
    }
    link->secure = true;
    if (options->tell_drops) {
        link->drop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (link->drop_fd < 0)
            return esp_fail(err, ESP_E_IO, "eventfd: %s", strerror(errno));
    }
    return esp_auth_watch(&link->watch, net->auth, link->socket, serve, link->drop_fd, err);
}

/* The end of connections, without keys. */
static esp_status set_monitor(struct esp_link *link, struct esp_net *net, struct esp_err *err)
{
    char at[64];

    snprintf(at, sizeof at, "inproc://espalier-drops-%u", net->n_named++);
    if (esp_zmq_monitor(link->socket, at, ZMQ_EVENT_DISCONNECTED) != 0 ||
        !(link->drops = zmq_socket(net->zmq, ZMQ_PAIR)) || esp_zmq_connect(link->drops, at) != 0)
        return zmq_fail(err, ESP_E_IO, "a socket's monitor");
    return ESP_OK;
}

esp_status esp_link_create(struct esp_link **out, struct esp_net *net, const struct esp_link_options *options,
                           struct esp_err *err)
{
    struct esp_link *link = NULL;
    esp_status st;

    *out = NULL;
    if (options->hwm < 0 || options->linger_ms < 0 || options->max_frame > INT64_MAX)
        return esp_fail(err, ESP_E_ARG, "link: hwm %d, linger %d ms, frames of %zu bytes", options->hwm,
                        options->linger_ms, options->max_frame);
    if (options->identity && (!*options->identity || strlen(options->identity) > 255))
        return esp_fail(err, ESP_E_ARG, "link: an identity has 1 .. 255 bytes");
    link = calloc(1, sizeof *link);
    if (!link)
        return esp_fail(err, ESP_E_NOMEM, "link");
    link->type = options->type;
    link->drop_fd = -1;
    link->socket = zmq_socket(net->zmq, options->type == ESP_LINK_SERVE ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!link->socket) {
        st = zmq_fail(err, zmq_errno() == EMFILE ? ESP_E_LIMIT : ESP_E_IO, "zmq_socket");
        goto done;
    }
    st = set_options(link, options, err);
    if (!st && net->keys)
        st = set_keys(link, net, options, err);
    else if (!st && options->tell_drops)
        st = set_monitor(link, net, err);
    if (st)
        goto done;
    *out = link;
    link = NULL;
done:
    esp_link_destroy(&link);
    return st;
}

void esp_link_destroy(struct esp_link **link)
{
    if (!*link)
        return;
    esp_auth_unwatch(&(*link)->watch, (*link)->socket);
    if ((*link)->drops) {
        zmq_socket_monitor((*link)->socket, NULL, 0);
        zmq_close((*link)->drops);
    }
    if ((*link)->drop_fd >= 0)
        close((*link)->drop_fd);
    if ((*link)->socket)
        zmq_close((*link)->socket); /* fails only on what is no socket */
    free(*link);
    *link = NULL;
}

/* ---- endpoints ---- */

/* What is to be settled before bind and connect. IPv6 goes per endpoint: with it on, libzmq would bind
 * 127.0.0.1 as
 * ::ffff:127.0.0.1 and localhost perhaps as ::1. */
static esp_status prepare(struct esp_link *link, const char *what, const char *endpoint, struct esp_err *err)
{
    if (!strstr(endpoint, "://") || !esp_endpoint_has_port(endpoint))
        return esp_fail(err, ESP_E_ARG, "%s %s: not an endpoint such as tcp://HOST:PORT or ipc://PATH", what,
                        endpoint);
    return set_int(link, ZMQ_IPV6, !esp_endpoint_is_ipv4(endpoint), "ZMQ_IPV6", err);
}

static esp_status endpoint_fail(struct esp_err *err, const char *what, const char *endpoint)
{
    int e = zmq_errno();
    esp_status code = e == EINVAL || e == EPROTONOSUPPORT || e == ENOCOMPATPROTO || e == ENAMETOOLONG
                          ? ESP_E_ARG
                          : ESP_E_IO;
    return esp_fail(err, code, "%s %s: %s", what, endpoint, zmq_strerror(e));
}

esp_status esp_link_bind(struct esp_link *link, const char *endpoint, bool insecure, char *bound,
                         struct esp_err *err)
{
    size_t n = ESP_MAX_ENDPOINT + 1;
    esp_status st;

    if (!insecure && !link->secure && !esp_endpoint_is_local(endpoint))
        return esp_fail(
            err, ESP_E_ARG,
            "bind %s: not an endpoint of this machine alone; without keys anyone who reaches it may use it: "
            "give --keys DIR ('espalier keygen' makes them) or, all the same, --insecure",
            endpoint);
    st = prepare(link, "bind", endpoint, err);
    if (st)
        return st;
    if (esp_zmq_bind(link->socket, endpoint) != 0)
        return endpoint_fail(err, "bind", endpoint);
    if (bound && zmq_getsockopt(link->socket, ZMQ_LAST_ENDPOINT, bound, &n) != 0)
        return zmq_fail(err, ESP_E_INTERNAL, "ZMQ_LAST_ENDPOINT");
    return ESP_OK;
}

esp_status esp_link_connect(struct esp_link *link, const char *endpoint, struct esp_err *err)
{
    esp_status st = prepare(link, "connect", endpoint, err);

    if (!st && esp_zmq_connect(link->socket, endpoint) != 0)
        st = endpoint_fail(err, "connect", endpoint);
    return st;
}

esp_status esp_link_check(const struct esp_link *link, struct esp_err *err)
{
    return esp_watch_check(link->watch, err);
}

/* ---- sending ---- */

static void free_bytes(void *data, void *hint)
{
    (void)hint;
    free(data);
}

static int send_part(struct esp_link *link, zmq_msg_t *part, bool more)
{
    int rc;

    do {
        rc = zmq_msg_send(part, link->socket, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0));
    } while (rc < 0 && zmq_errno() == EINTR);
    return rc;
}

/* Hands a blob over to a frame, by reference where it can be released; in any case the blob is empty
 * afterwards. */
static esp_status blob_to_part(zmq_msg_t *part, struct esp_blob *blob, struct esp_err *err)
{
    struct esp_blob b = *blob;
    int rc;

    if (b.release) {
        memset(blob, 0, sizeof *blob);
        rc = zmq_msg_init_data(part, (void *)(uintptr_t)b.data, b.n_bytes, b.release, b.hint);
        if (rc != 0) {
            b.release((void *)(uintptr_t)b.data, b.hint);
            return zmq_fail(err, ESP_E_NOMEM, "zmq_msg_init_data");
        }
        return ESP_OK;
    }
    if (zmq_msg_init_size(part, b.n_bytes) != 0)
        return esp_fail(err, ESP_E_NOMEM, "raw frame of %zu bytes", b.n_bytes);
    if (b.n_bytes > 0)
        memcpy(zmq_msg_data(part), b.data, b.n_bytes);
    return ESP_OK;
}

static esp_status send_failed(const struct esp_peer *to, struct esp_err *err)
{
    char who[64];
    int e = zmq_errno();

    if (to)
        esp_peer_text(to, who, sizeof who);
    else
        snprintf(who, sizeof who, "the other side");
    if (e == EHOSTUNREACH)
        return esp_fail(err, ESP_E_CLOSED, "%s is gone", who);
    if (e == EAGAIN)
        return esp_fail(err, ESP_E_LIMIT, "the queue for %s is full", who);
    return zmq_fail(err, ESP_E_IO, "zmq_msg_send");
}

esp_status esp_link_send(struct esp_link *link, const struct esp_peer *to, struct esp_msg *msg,
                         struct esp_err *err)
{
    zmq_msg_t part[2 + ESP_MAX_BLOBS];
    uint32_t n_part = 0, n_sent = 0;
    uint8_t *header = NULL;
    size_t n_header;
    esp_status st;

    if ((link->type == ESP_LINK_SERVE) != (to != NULL)) {
        st = esp_fail(err, ESP_E_ARG, "send: a serving link needs a peer, a dialling one has its own");
        goto done;
    }
    st = esp_wire_pack(&header, &n_header, msg, err);
    if (st)
        goto done;
    if (to) {
        if (zmq_msg_init_size(&part[0], to->n) != 0) {
            st = esp_fail(err, ESP_E_NOMEM, "send");
            goto done;
        }
        memcpy(zmq_msg_data(&part[0]), to->id, to->n);
        n_part = 1;
    }
    if (zmq_msg_init_data(&part[n_part], header, n_header, free_bytes, NULL) != 0) {
        st = esp_fail(err, ESP_E_NOMEM, "send: header of %zu bytes", n_header);
        goto done;
    }
    header = NULL; /* the frame's */
    n_part++;
    for (uint32_t i = 0; i < msg->n_blobs; i++) {
        st = blob_to_part(&part[n_part], &msg->blob[i], err);
        if (st)
            goto done;
        n_part++;
    }
    while (n_sent < n_part) {
        if (send_part(link, &part[n_sent], n_sent + 1 < n_part) < 0) {
            /* The first frame decides; later ones find room reserved. If the peer goes between two of them,
             * libzmq takes back what it had of the message. */
            st =
                n_sent == 0 ? send_failed(to, err) : esp_fail(err, ESP_E_CLOSED, "the peer left mid-message");
            goto done;
        }
        n_sent++;
    }
done:
    while (n_sent < n_part)
        zmq_msg_close(&part[n_sent++]);                                /* releases its blob */
    for (uint32_t i = 0; i < msg->n_blobs && i < ESP_MAX_BLOBS; i++) { /* those that came into no frame */
        struct esp_blob b = msg->blob[i];
        if (b.release) {
            memset(&msg->blob[i], 0, sizeof msg->blob[i]);
            b.release((void *)(uintptr_t)b.data, b.hint);
        }
    }
    free(header);
    return st;
}

/* ---- receiving ---- */

static void free_frame(void *data, void *hint)
{
    (void)data;
    zmq_msg_close(hint);
    free(hint);
}

/* The next frame into an opened zmq_msg_t; false with zmq_errno() when there is none. */
static bool recv_part(struct esp_link *link, zmq_msg_t *part)
{
    int rc;

    do {
        rc = zmq_msg_recv(part, link->socket, ZMQ_DONTWAIT);
    } while (rc < 0 && zmq_errno() == EINTR);
    return rc >= 0;
}

/* Drops what is left of a message whose last frame read is *part. */
static void drain(struct esp_link *link, zmq_msg_t *part)
{
    while (zmq_msg_more(part) && recv_part(link, part))
        ;
}

/* The raw frames after the header; *part holds the last frame read on return. */
static esp_status recv_blobs(struct esp_link *link, struct esp_blob *blobs, uint32_t *n, zmq_msg_t *part,
                             struct esp_err *err)
{
    *n = 0;
    while (zmq_msg_more(part)) {
        zmq_msg_t *frame;
        if (!recv_part(link, part)) /* they come together or not at all */
            return zmq_fail(err, ESP_E_IO, "message cut short");
        if (*n == ESP_MAX_BLOBS) {
            drain(link, part);
            return esp_fail(err, ESP_E_PROTO, "more than %d raw frames", ESP_MAX_BLOBS);
        }
        frame = malloc(sizeof *frame);
        if (!frame) {
            drain(link, part);
            return esp_fail(err, ESP_E_NOMEM, "raw frame");
        }
        zmq_msg_init(frame);                  /* empty: cannot fail */
        if (zmq_msg_copy(frame, part) != 0) { /* shares the bytes; `part` keeps telling whether more follow */
            free_frame(NULL, frame);
            drain(link, part);
            return zmq_fail(err, ESP_E_NOMEM, "zmq_msg_copy");
        }
        blobs[*n].data = zmq_msg_data(frame);
        blobs[*n].n_bytes = zmq_msg_size(frame);
        blobs[*n].release = free_frame;
        blobs[*n].hint = frame;
        *n += 1;
    }
    return ESP_OK;
}

/* The peer's routing id, which libzmq puts first; *part holds the header then. */
static esp_status recv_peer(struct esp_link *link, struct esp_peer *from, zmq_msg_t *part,
                            struct esp_err *err)
{
    struct esp_peer peer = {0};

    if (zmq_msg_size(part) > sizeof peer.id) {
        drain(link, part);
        return esp_fail(err, ESP_E_INTERNAL, "routing id of %zu bytes", zmq_msg_size(part));
    }
    peer.n = (uint8_t)zmq_msg_size(part);
    memcpy(peer.id, zmq_msg_data(part), peer.n);
    if (from)
        *from = peer;
    if (!zmq_msg_more(part) || !recv_part(link, part))
        return esp_fail(err, ESP_E_PROTO, "message without frames");
    if (link->secure && !esp_user_parse(&peer.member, peer.user, peer.key, zmq_msg_gets(part, "User-Id"))) {
        drain(link, part); /* cannot be: nobody comes in without */
        return esp_fail(err, ESP_E_INTERNAL, "a message that nobody is known to have sent");
    }
    if (from)
        *from = peer;
    return ESP_OK;
}

esp_status esp_link_recv(struct esp_link *link, struct esp_peer *from, struct esp_msg *msg,
                         struct esp_err *err)
{
    struct esp_blob blobs[ESP_MAX_BLOBS];
    uint32_t n_blobs = 0;
    zmq_msg_t part, header;
    esp_status st;

    memset(msg, 0, sizeof *msg);
    if (from)
        memset(from, 0, sizeof *from);
    zmq_msg_init(&part); /* an empty message: cannot fail */
    zmq_msg_init(&header);
    if (!recv_part(link, &part)) {
        st = zmq_errno() == EAGAIN ? esp_fail(err, ESP_E_TIMEOUT, "no message there")
                                   : zmq_fail(err, ESP_E_IO, "zmq_msg_recv");
        goto done;
    }
    if (link->type == ESP_LINK_SERVE) {
        st = recv_peer(link, from, &part, err);
        if (st)
            goto done;
    }
    if (zmq_msg_copy(&header, &part) != 0) {
        drain(link, &part);
        st = zmq_fail(err, ESP_E_NOMEM, "zmq_msg_copy");
        goto done;
    }
    st = recv_blobs(link, blobs, &n_blobs, &part, err);
    if (!st)
        st = esp_wire_unpack(msg, zmq_msg_data(&header), zmq_msg_size(&header), blobs, n_blobs, err);
    if (!st)
        n_blobs = 0; /* the message's now */
done:
    for (uint32_t i = 0; i < n_blobs; i++)
        blobs[i].release(NULL, blobs[i].hint);
    zmq_msg_close(&header);
    zmq_msg_close(&part);
    return st;
}

uint32_t esp_link_drops(struct esp_link *link)
{
    uint64_t n = 0;
    zmq_msg_t frame;

    if (link->drop_fd >= 0) {
        if (read(link->drop_fd, &n, sizeof n) != (ssize_t)sizeof n)
            n = 0; /* none */
    } else if (link->drops) {
        zmq_msg_init(&frame);
        while (zmq_msg_recv(&frame, link->drops, ZMQ_DONTWAIT) >= 0)
            n += !zmq_msg_more(&frame); /* an event has two frames */
        zmq_msg_close(&frame);
    }
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

esp_status esp_link_wait(struct esp_wait *waits, uint32_t n, int timeout_ms, struct esp_err *err)
{
    zmq_pollitem_t items[2 * WAITS_MAX];
    int rc, n_items = (int)n;

    if (n > WAITS_MAX)
        return esp_fail(err, ESP_E_ARG, "wait for %u things, at most %d", n, WAITS_MAX);
    for (uint32_t i = 0; i < n; i++) {
        items[i] = (zmq_pollitem_t){
            .socket = waits[i].link ? waits[i].link->socket : NULL, .fd = waits[i].fd, .events = ZMQ_POLLIN};
        waits[i].ready = false;
        if (waits[i].link && (waits[i].link->drops || waits[i].link->drop_fd >= 0))
            items[n_items++] = (zmq_pollitem_t){
                .socket = waits[i].link->drops, .fd = waits[i].link->drop_fd, .events = ZMQ_POLLIN};
    }
    /* zmq_poll looks at each socket's queue first, so a message that came before the call counts. */
    rc = zmq_poll(items, n_items, timeout_ms);
    if (rc < 0)
        return zmq_errno() == EINTR ? ESP_OK : zmq_fail(err, ESP_E_IO, "zmq_poll");
    if (rc == 0)
        return esp_fail(err, ESP_E_TIMEOUT, "nothing came in %d ms", timeout_ms);
    for (uint32_t i = 0; i < n; i++)
        waits[i].ready = items[i].revents != 0; /* an error of a file descriptor too: reading it tells */
    return ESP_OK;
}
