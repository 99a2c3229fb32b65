#include "proto/auth.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "proto/again.h"
#include "proto/clock.h"

#define ZAP_ENDPOINT "inproc://zeromq.zap.01"
#define ZAP_FRAMES   7 /* version, request, domain, address, routing id, mechanism, key */
#define MAX_WATCHES  32
#define MAX_COMERS   32 /* connections in their handshake whose address is remembered */
#define MAX_NOTES    64
#define QUIET_S      60 /* for this long the same refusal is counted, not logged */
#define LINES_A_S    10 /* of refusals, whoever they are */
#define ADDRESS_MAX  (INET6_ADDRSTRLEN + 8)

struct comer {
    int fd; /* -1: none */
    char address[ADDRESS_MAX];
};

struct esp_watch {
    struct esp_watch *next;
    void *pair;  /* its end of the monitor, the thread's once it has started */
    int drop_fd; /* eventfd of our own, told of connections that end; -1: none */
    bool serve;
    atomic_bool left;    /* its link has let go: from here on it is the thread's alone */
    _Atomic int trouble; /* the event that ended the last handshake; 0: none */
    /* the thread's: */
    struct comer comer[MAX_COMERS];
    unsigned next_comer;
    enum {
        FINE,
        NO_KEYS,
        WRONG_KEYS
    } failed; /* the handshake whose connection the next DISCONNECTED names */
};

struct note {
    char what[160];
    time_t since;
    unsigned n; /* not logged since */
};

struct allow {
    enum esp_member member;
    char path[1200];
    struct esp_key_list list;
    struct stat seen; /* of the file, when it was read */
};

struct esp_auth {
    const struct esp_keys *keys;
    const struct esp_log *log;
    void *zmq, *zap;
    int wake_fd;
    pthread_t thread;
    bool started;
    atomic_bool stop;
    _Atomic unsigned n_named; /* monitors' endpoints */
    pthread_mutex_t lock;     /* of `fresh` */
    struct esp_watch *fresh;  /* not taken over by the thread yet */
    /* the thread's: */
    struct esp_watch *watch[MAX_WATCHES];
    uint32_t n_watch;
    struct allow allow[2];
    uint32_t n_allow;
    struct note note[MAX_NOTES];
    time_t second;
    unsigned n_lines, n_unlogged;
};

static time_t now_s(void)
{
    return (time_t)(esp_now_ms() / 1000);
}

/* ---- User-Id ---- */

bool esp_user_parse(enum esp_member *member, char *name, uint8_t key[ESP_KEY_BYTES], const char *user)
{
    const char *first = user ? strchr(user, ':') : NULL, *second = first ? strchr(first + 1, ':') : NULL;
    size_t n;

    if (!second)
        return false;
    n = (size_t)(second - first - 1);
    if (strncmp(user, "worker:", 7) == 0)
        *member = ESP_MEMBER_WORKER;
    else if (strncmp(user, "client:", 7) == 0)
        *member = ESP_MEMBER_CLIENT;
    else
        return false;
    if (n < 1 || n > ESP_MAX_NAME)
        return false;
    memcpy(name, first + 1, n);
    name[n] = '\0';
    return esp_key_parse(key, second + 1, strlen(second + 1));
}

/* ---- refusals ---- */

/* Strangers must not be able to fill the disk: the same refusal is logged once a minute, and all of them together are
 * bounded. */
static void tell_refused(struct esp_auth *auth, const char *address, const char *key, const char *why)
{
    const time_t now = now_s();
    struct note *note = &auth->note[0];
    char what[sizeof note->what];

    snprintf(what, sizeof what, "address=%s%s%s why=\"%s\"", address, key ? " key=" : "", key ? key : "",
             why);
    for (unsigned i = 0; i < MAX_NOTES; i++) {
        if (strcmp(auth->note[i].what, what) == 0) {
            note = &auth->note[i];
            break;
        }
        if (auth->note[i].since < note->since)
            note = &auth->note[i]; /* the oldest goes */
    }
    if (strcmp(note->what, what) == 0 && now - note->since < QUIET_S) {
        note->n++;
        return;
    }
    if (now != auth->second) {
        if (auth->n_unlogged > 0)
            esp_log(auth->log, ESP_LOG_WARN, "refused_unlogged n=%u", auth->n_unlogged);
        auth->second = now;
        auth->n_lines = auth->n_unlogged = 0;
    }
    if (auth->n_lines == LINES_A_S) {
        auth->n_unlogged++;
        return;
    }
    auth->n_lines++;
    if (strcmp(note->what, what) != 0)
        note->n = 0;
    if (note->n > 0)
        esp_log(auth->log, ESP_LOG_WARN, "connection refused %s before=%u", what, note->n);
    else
        esp_log(auth->log, ESP_LOG_WARN, "connection refused %s", what);
    snprintf(note->what, sizeof note->what, "%s", what);
    note->since = now;
    note->n = 0;
}

/* ---- allow lists ---- */

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Reads a list again if its file is another one. One that cannot be read is as if it had not changed: a slip of an
 * editor must not shut everybody out. */
static void refresh(struct esp_auth *auth, struct allow *a)
{
    struct esp_key_list list;
    struct stat info;
    struct esp_err err;

    if (stat(a->path, &info) != 0 || same_file(&info, &a->seen))
        return;
    a->seen = info;
    if (esp_key_file_read(&list, a->path, false, &err)) {
        esp_log(auth->log, ESP_LOG_WARN, "allow_list why=\"%s\" action=keep_the_old_one", err.text);
        return;
    }
    esp_log(auth->log, ESP_LOG_INFO, "allow_list file=%s keys=%u action=read_again", a->path, list.n);
    esp_key_list_finish(&a->list);
    a->list = list;
}

static esp_status add_allow(struct esp_auth *auth, enum esp_member member, const char *file,
                            const struct esp_key_list *list, struct esp_err *err)
{
    struct allow *a = &auth->allow[auth->n_allow];
    esp_status st = ESP_OK;

    a->member = member;
    snprintf(a->path, sizeof a->path, "%s/%s", auth->keys->dir, file);
    for (uint32_t i = 0; !st && i < list->n; i++)
        st = esp_key_list_add(&a->list, list->at[i].name, list->at[i].key, err);
    if (stat(a->path, &a->seen) != 0)
        memset(&a->seen, 0, sizeof a->seen);
    auth->n_allow++;
    return st;
}

/* ---- ZAP ---- */

static bool frame_is(zmq_msg_t *frame, const char *text)
{
    return zmq_msg_size(frame) == strlen(text) && memcmp(zmq_msg_data(frame), text, strlen(text)) == 0;
}

/* Fills `user` for a key that may come in; else tells why not. */
static bool admit(struct esp_auth *auth, zmq_msg_t *frame, char user[ESP_USER_MAX])
{
    char address[ADDRESS_MAX], text[ESP_KEY_TEXT + 1];
    uint8_t key[ESP_KEY_BYTES];

    snprintf(address, sizeof address, "%.*s", (int)zmq_msg_size(&frame[3]),
             (const char *)zmq_msg_data(&frame[3]));
    if (!frame_is(&frame[5], "CURVE") || zmq_msg_size(&frame[6]) != sizeof key) {
        tell_refused(auth, address, NULL, "it has no key");
        return false;
    }
    memcpy(key, zmq_msg_data(&frame[6]), sizeof key);
    esp_key_format(text, key);
    for (uint32_t i = 0; i < auth->n_allow; i++) {
        const struct esp_key_entry *entry;

        refresh(auth, &auth->allow[i]);
        entry = esp_key_list_find(&auth->allow[i].list, key);
        if (entry) {
            snprintf(user, ESP_USER_MAX, "%s:%s:%s", esp_member_name(auth->allow[i].member), entry->name,
                     text);
            esp_log(auth->log, ESP_LOG_DEBUG, "connection allowed address=%s %s=%s", address,
                    esp_member_name(auth->allow[i].member), entry->name);
            return true;
        }
    }
    text[8] = '\0'; /* enough to find it in the other side's file `public` */
    tell_refused(auth, address, text, "its key is in no allow list here");
    return false;
}

static void put(void *socket, const void *data, size_t n, bool more)
{
    while (zmq_send(socket, data, n, more ? ZMQ_SNDMORE : 0) < 0 && zmq_errno() == EINTR)
        ;
}

static void answer_zap(struct esp_auth *auth)
{
    zmq_msg_t frame[ZAP_FRAMES], rest;
    char user[ESP_USER_MAX] = "";
    bool good, more = true;
    int n = 0;

    zmq_msg_init(&rest);
    while (more) {
        zmq_msg_t *to = n < ZAP_FRAMES ? zmq_msg_init(&frame[n]), &frame[n] : &rest;

        if (zmq_msg_recv(to, auth->zap, ZMQ_DONTWAIT) < 0) {
            if (zmq_errno() == EINTR)
                continue;
            break;
        }
        more = zmq_msg_more(to);
        n++;
    }
    if (n > 0 && !more) { /* a request is there, whole */
        good = n == ZAP_FRAMES && frame_is(&frame[0], "1.0") && admit(auth, frame, user);
        put(auth->zap, "1.0", 3, true);
        put(auth->zap, n > 1 ? zmq_msg_data(&frame[1]) : "", n > 1 ? zmq_msg_size(&frame[1]) : 0, true);
        put(auth->zap, good ? "200" : "400", 3, true);
        put(auth->zap, good ? "OK" : "not allowed", good ? 2 : 11, true);
        put(auth->zap, user, strlen(user), true);
        put(auth->zap, "", 0, false);
    }
    for (int i = 0; i < ZAP_FRAMES && i < n; i++)
        zmq_msg_close(&frame[i]);
    zmq_msg_close(&rest);
}

/* ---- monitors ---- */

static void address_of(char out[ADDRESS_MAX], int fd)
{
    struct sockaddr_storage a = {0};
    socklen_t n = sizeof a;

    snprintf(out, ADDRESS_MAX, "unknown");
    if (getpeername(fd, (struct sockaddr *)&a, &n) != 0)
        return;
    if (a.ss_family == AF_INET)
        inet_ntop(AF_INET, &((struct sockaddr_in *)&a)->sin_addr, out, ADDRESS_MAX);
    else if (a.ss_family == AF_INET6)
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&a)->sin6_addr, out, ADDRESS_MAX);
    else
        snprintf(out, ADDRESS_MAX, "ipc");
}

static struct comer *comer_of(struct esp_watch *w, int fd)
{
    for (unsigned i = 0; i < MAX_COMERS; i++)
        if (w->comer[i].fd == fd)
            return &w->comer[i];
    return NULL;
}

/* A failed handshake is told in two events: what was wrong, without whose it was, and then the end of a connection. One
 * thread of libzmq makes both, so that what comes next belongs together. */
static void serve_event(struct esp_auth *auth, struct esp_watch *w, int event, int value)
{
    const uint64_t one = 1;
    struct comer *c;

    switch (event) {
    case ZMQ_EVENT_ACCEPTED: /* the address is to be had as long as the connection stands */
        c = comer_of(w, value);
        if (!c)
            c = &w->comer[w->next_comer++ % MAX_COMERS];
        c->fd = value;
        address_of(c->address, value);
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        w->failed = value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH ? NO_KEYS : WRONG_KEYS;
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL: /* who has no keys may see that first, and be gone */
        w->failed = NO_KEYS;
        break;
    case ZMQ_EVENT_DISCONNECTED:
        c = comer_of(w, value);
        if (w->failed)
            tell_refused(auth, c ? c->address : "unknown", NULL,
                         w->failed == NO_KEYS ? "it has no keys, or broke off the handshake"
                                              : "it took another public key for ours, or speaks no ZeroMQ");
        w->failed = FINE;
        if (c)
            c->fd = -1;
        if (w->drop_fd >= 0 && write(w->drop_fd, &one, sizeof one) != (ssize_t)sizeof one) {
            /* Only a counter about to overflow refuses, and then it says enough. */
        }
        break;
    default:
        break;
    }
}

/* True when the watch is over. */
static bool take_event(struct esp_auth *auth, struct esp_watch *w)
{
    uint16_t event = 0;
    int32_t value = 0;
    zmq_msg_t frame;
    bool over = false;

    zmq_msg_init(&frame);
    if (zmq_msg_recv(&frame, w->pair, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&frame);
        return false;
    }
    if (zmq_msg_size(&frame) >= sizeof event + sizeof value) {
        memcpy(&event, zmq_msg_data(&frame), sizeof event);
        memcpy(&value, (const char *)zmq_msg_data(&frame) + sizeof event, sizeof value);
    }
    while (zmq_msg_more(&frame) && zmq_msg_recv(&frame, w->pair, ZMQ_DONTWAIT) >= 0)
        ;
    zmq_msg_close(&frame);
    if (event == ZMQ_EVENT_MONITOR_STOPPED)
        over = atomic_load(&w->left);
    else if (w->serve)
        serve_event(auth, w, event, value);
    else if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
        atomic_store(&w->trouble, 0);
    else if (event & (ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                      ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL))
        atomic_store(&w->trouble, event);
    return over;
}

esp_status esp_watch_check(const struct esp_watch *watch, struct esp_err *err)
{
    switch (watch ? atomic_load(&watch->trouble) : 0) {
    case 0:
        return ESP_OK;
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        return esp_fail(err, ESP_E_CLOSED, "it does not take our key: the key is not in its allow list");
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return esp_fail(err, ESP_E_CLOSED, "it has no keys, we do: either both sides use --keys or none");
    default:
        return esp_fail(err, ESP_E_TIMEOUT,
                        "it breaks off the handshake: is its public key the one that we have of it?");
    }
}

/* ---- the thread ---- */

static void watch_destroy(struct esp_watch **watch)
{
    if (!*watch)
        return;
    if ((*watch)->pair)
        zmq_close((*watch)->pair);
    if ((*watch)->drop_fd >= 0)
        close((*watch)->drop_fd);
    free(*watch);
    *watch = NULL;
}

static void take_fresh(struct esp_auth *auth)
{
    uint64_t n;

    if (read(auth->wake_fd, &n, sizeof n) < 0 && errno != EAGAIN)
        esp_log(auth->log, ESP_LOG_ERROR, "eventfd why=\"%s\"", strerror(errno));
    pthread_mutex_lock(&auth->lock);
    while (auth->fresh && auth->n_watch < MAX_WATCHES) {
        struct esp_watch *w = auth->fresh;

        auth->fresh = w->next;
        auth->watch[auth->n_watch++] = w;
    }
    pthread_mutex_unlock(&auth->lock);
}

static void *serve(void *self)
{
    struct esp_auth *auth = self;

    while (!atomic_load(&auth->stop)) {
        zmq_pollitem_t items[2 + MAX_WATCHES] = {{.fd = auth->wake_fd, .events = ZMQ_POLLIN},
                                                 {.socket = auth->zap, .events = ZMQ_POLLIN}};
        const uint32_t n = auth->n_watch;

        for (uint32_t i = 0; i < n; i++)
            items[2 + i] = (zmq_pollitem_t){.socket = auth->watch[i]->pair, .events = ZMQ_POLLIN};
        if (zmq_poll(items, (int)(2 + n), -1) < 0)
            continue; /* a signal */
        if (items[1].revents)
            answer_zap(auth);
        for (uint32_t i = n; i-- > 0;) {
            if (!items[2 + i].revents || !take_event(auth, auth->watch[i]))
                continue;
            watch_destroy(&auth->watch[i]);
            auth->watch[i] = auth->watch[--auth->n_watch];
        }
        take_fresh(auth);
    }
    return NULL;
}

static void wake(struct esp_auth *auth)
{
    const uint64_t one = 1;

    while (write(auth->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

esp_status esp_auth_create(struct esp_auth **out, void *zmq, const struct esp_keys *keys,
                           const struct esp_log *log, struct esp_err *err)
{
    struct esp_auth *auth = calloc(1, sizeof *auth);
    esp_status st = ESP_OK;
    const int linger = 0;

    *out = NULL;
    if (!auth)
        return esp_fail(err, ESP_E_NOMEM, "authentication");
    auth->zmq = zmq;
    auth->keys = keys;
    auth->log = log;
    pthread_mutex_init(&auth->lock, NULL);
    auth->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (auth->wake_fd < 0) {
        st = esp_fail(err, ESP_E_IO, "eventfd: %s", strerror(errno));
        goto done;
    }
    if (keys->member != ESP_MEMBER_CLIENT)
        st = add_allow(auth, ESP_MEMBER_WORKER, ESP_FILE_WORKERS, &keys->workers, err);
    if (!st && keys->member == ESP_MEMBER_COORDINATOR)
        st = add_allow(auth, ESP_MEMBER_CLIENT, ESP_FILE_CLIENTS, &keys->clients, err);
    if (st)
        goto done;
    /* Bound before any socket listens: libzmq lets everybody in where nobody answers. */
    auth->zap = zmq_socket(zmq, ZMQ_REP);
    if (!auth->zap || zmq_setsockopt(auth->zap, ZMQ_LINGER, &linger, sizeof linger) != 0 ||
        esp_zmq_bind(auth->zap, ZAP_ENDPOINT) != 0) {
        st = esp_fail(err, ESP_E_IO, "%s: %s", ZAP_ENDPOINT, zmq_strerror(zmq_errno()));
        goto done;
    }
    if (pthread_create(&auth->thread, NULL, serve, auth) != 0) {
        st = esp_fail(err, ESP_E_NOMEM, "a thread for authentication");
        goto done;
    }
    auth->started = true;
    *out = auth;
    auth = NULL;
done:
    esp_auth_destroy(&auth);
    return st;
}

void esp_auth_destroy(struct esp_auth **auth_)
{
    struct esp_auth *auth = *auth_;

    if (!auth)
        return;
    if (auth->started) {
        atomic_store(&auth->stop, true);
        wake(auth);
        pthread_join(auth->thread, NULL);
    }
    for (uint32_t i = 0; i < auth->n_watch; i++)
        watch_destroy(&auth->watch[i]);
    while (auth->fresh) {
        struct esp_watch *w = auth->fresh;

        auth->fresh = w->next;
        watch_destroy(&w);
    }
    if (auth->zap)
        zmq_close(auth->zap);
    for (uint32_t i = 0; i < auth->n_allow; i++)
        esp_key_list_finish(&auth->allow[i].list);
    if (auth->wake_fd >= 0)
        close(auth->wake_fd);
    pthread_mutex_destroy(&auth->lock);
    free(auth);
    *auth_ = NULL;
}

esp_status esp_auth_watch(struct esp_watch **out, struct esp_auth *auth, void *socket, bool is_server,
                          int drop_fd, struct esp_err *err)
{
    const int events = ZMQ_EVENT_MONITOR_STOPPED | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                       ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                       (is_server ? ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED
                                  : ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
    struct esp_watch *w = calloc(1, sizeof *w);
    char at[48];

    *out = NULL;
    if (!w)
        return esp_fail(err, ESP_E_NOMEM, "a socket's monitor");
    w->serve = is_server;
    w->drop_fd = drop_fd >= 0 ? fcntl(drop_fd, F_DUPFD_CLOEXEC, 0) : -1;
    for (unsigned i = 0; i < MAX_COMERS; i++)
        w->comer[i].fd = -1;
    snprintf(at, sizeof at, "inproc://espalier-watch-%u", atomic_fetch_add(&auth->n_named, 1));
    if (esp_zmq_monitor(socket, at, events) != 0 || !(w->pair = zmq_socket(auth->zmq, ZMQ_PAIR)) ||
        esp_zmq_connect(w->pair, at) != 0) {
        esp_status st = esp_fail(err, ESP_E_IO, "a socket's monitor: %s", zmq_strerror(zmq_errno()));

        watch_destroy(&w);
        return st;
    }
    pthread_mutex_lock(&auth->lock);
    w->next = auth->fresh;
    auth->fresh = w;
    pthread_mutex_unlock(&auth->lock);
    wake(auth);
    *out = w;
    return ESP_OK;
}

void esp_auth_unwatch(struct esp_watch **watch, void *socket)
{
    if (*watch) {
        atomic_store(&(*watch)->left, true);
        zmq_socket_monitor(socket, NULL, 0); /* says so on the monitor: the thread frees the watch then */
    }
    *watch = NULL;
}
