#include "tests/fault/hostile_rig.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include <cmocka.h>

#include "proto/clock.h"

static char dir[64];
static void *context;
static void *sockets[16]; /* open ones: of a test that failed the context could not be ended otherwise */

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

int hostile_setup(void **state)
{
    strcpy(dir, "/tmp/espalier-hostile-XXXXXX");
    if (!mkdtemp(dir) || setenv("XDG_RUNTIME_DIR", dir, 1) != 0)
        return -1;
    context = zmq_ctx_new();
    return context ? 0 : -1;
}

int hostile_teardown(void **state)
{
    DIR *d = opendir(dir);
    char path[512];

    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.')
            unlink(path);
    }
    if (d)
        closedir(d);
    for (size_t i = 0; i < sizeof sockets / sizeof sockets[0]; i++)
        if (sockets[i])
            zmq_close(sockets[i]);
    zmq_ctx_term(context);
    return rmdir(dir);
}

/* ---- processes ---- */

void hostile_start(struct hostile_proc *p, const char *name, const char *program, const char *const *args)
{
    char *argv[48] = {(char *)(uintptr_t)program};
    char in_dir[sizeof dir];

    for (size_t i = 0; args[i]; i++) {
        assert_true(i < 46);
        argv[1 + i] = (char *)(uintptr_t)args[i];
    }
    memset(p, 0, sizeof *p);
    strcpy(in_dir, dir);
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(p->out, sizeof p->out, "%s/%s.out", in_dir, p->name);
    snprintf(p->log, sizeof p->log, "%s/%s.log", in_dir, p->name);
    unlink(p->out); /* what an earlier one of this name said is not this one's */
    unlink(p->log);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(open("/dev/null", O_RDONLY), 0);
        dup2(open(p->out, O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
        dup2(open(p->log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600), 2);
        unsetenv("ESPALIER_MODEL");
        execv(program, argv);
        _exit(125);
    }
}

bool hostile_runs(struct hostile_proc *p, int *status)
{
    int st;
    pid_t got = p->pid ? waitpid(p->pid, &st, WNOHANG) : -1;

    if (got == 0)
        return true;
    assert_int_equal(got, p->pid);
    p->pid = 0;
    *status = WIFSIGNALED(st) ? 128 + WTERMSIG(st) : WEXITSTATUS(st);
    return false;
}

static char *read_file(const char *path)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    char *text;
    ssize_t n;

    if (fd < 0 || fstat(fd, &st) != 0) { /* the child has not made it yet */
        if (fd >= 0)
            close(fd);
        return calloc(1, 1);
    }
    text = calloc(1, (size_t)st.st_size + 1);
    assert_non_null(text);
    n = read(fd, text, (size_t)st.st_size);
    assert_true(n >= 0);
    close(fd);
    return text;
}

char *hostile_log(const struct hostile_proc *p)
{
    return read_file(p->log);
}

/* A test that ends here shows the end of what the process had to say. */
static void fail_with_log(const struct hostile_proc *p, const char *what)
{
    char *log = hostile_log(p);
    size_t n = strlen(log);

    print_error("%s's log ends:\n%s\n", p->name, n > 4000 ? log + n - 4000 : log);
    free(log);
    fail_msg("%s: %s", p->name, what);
}

void hostile_stop(struct hostile_proc *p)
{
    kill(p->pid, SIGTERM);
    hostile_ended(p);
}

void hostile_ended(struct hostile_proc *p)
{
    int status = 0;

    for (int64_t end = esp_now_ms() + ESP_PATIENCE_MS; hostile_runs(p, &status); nap())
        if (esp_now_ms() > end)
            fail_with_log(p, "does not end");
    if (status)
        fail_with_log(p, "ends badly");
}

unsigned hostile_count(const struct hostile_proc *p, const char *text)
{
    char *log = hostile_log(p);
    unsigned n = 0;

    for (const char *at = log; (at = strstr(at, text)); at += strlen(text))
        n++;
    free(log);
    return n;
}

void hostile_wait_for(const struct hostile_proc *p, const char *text, unsigned n)
{
    for (int64_t end = esp_now_ms() + ESP_PATIENCE_MS; hostile_count(p, text) < n; nap())
        if (esp_now_ms() > end)
            fail_with_log(p, text);
}

void hostile_word(const struct hostile_proc *p, const char *key, char *out, size_t n_out)
{
    char *log = hostile_log(p);
    const char *at = strstr(log, key);

    assert_non_null(at);
    snprintf(out, n_out, "%.*s", (int)strcspn(at + strlen(key), " \n"), at + strlen(key));
    free(log);
}

long hostile_rss(const struct hostile_proc *p)
{
    char path[64];
    char *text;
    const char *at;
    long kib;

    snprintf(path, sizeof path, "/proc/%ld/statm", (long)p->pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text = calloc(1, 256);
    assert_non_null(text);
    assert_non_null(fgets(text, 256, f));
    fclose(f);
    at = strchr(text, ' '); /* pages in all, then those in memory */
    assert_non_null(at);
    kib = strtol(at, NULL, 10) * (sysconf(_SC_PAGESIZE) / 1024);
    free(text);
    return kib;
}

/* ---- the honest client ---- */

static void ask(struct hostile_client *c)
{
    static const char *const images[2] = {HOSTILE_MODEL "/images/scene_a.png",
                                          HOSTILE_MODEL "/images/scene_b.png"};
    const char *const args[] = {"run",
                                "--json",
                                "--connect",
                                c->endpoint,
                                "--model",
                                HOSTILE_MODEL,
                                "--image",
                                images[c->n_started % 2],
                                "--max-tokens",
                                "12",
                                "--ignore-eos",
                                c->n_started % 2 ? "caption en" : "describe the picture",
                                NULL};

    hostile_start(&c->proc, "client", ESPALIER, args);
    c->n_started++;
}

void hostile_client_open(struct hostile_client *c, const char *endpoint)
{
    memset(c, 0, sizeof *c);
    snprintf(c->endpoint, sizeof c->endpoint, "%s", endpoint);
}

void hostile_client_close(struct hostile_client *c)
{
    json_decref(c->first[0]);
    json_decref(c->first[1]);
}

void hostile_client_poll(struct hostile_client *c, bool again)
{
    static const char *const same[] = {"text", "ids", "logprobs", "finish"};
    int status = 0;
    json_error_t why;
    json_t **first, *answer;
    char *text;

    if (c->proc.pid && hostile_runs(&c->proc, &status))
        return;
    if (c->n_started > c->n_answers) {
        if (status)
            fail_with_log(&c->proc, "got no answer");
        text = read_file(c->proc.out);
        answer = json_loads(text, 0, &why);
        if (!answer)
            fail_msg("not JSON: %s\n%s", why.text, text);
        free(text);
        first = &c->first[c->n_answers % 2];
        for (size_t i = 0; *first && i < sizeof same / sizeof same[0]; i++) {
            const json_t *now = json_object_get(answer, same[i]), *then = json_object_get(*first, same[i]);

            if (!now || !json_equal(now, then))
                fail_msg("answer %u: %s is another one than at first", c->n_answers, same[i]);
        }
        if (*first)
            json_decref(answer);
        else
            *first = answer;
        c->n_answers++;
    }
    if (again)
        ask(c);
}

void hostile_client_wait(struct hostile_client *c, unsigned n)
{
    const unsigned want = c->n_answers + n;

    for (int64_t end = esp_now_ms() + ESP_PATIENCE_MS; c->n_answers < want; nap()) {
        hostile_client_poll(c, c->n_started < want);
        if (esp_now_ms() > end)
            fail_with_log(&c->proc, "no answer in time");
    }
}

/* ---- the others ---- */

void hostile_frames_finish(struct hostile_frames *f)
{
    for (uint32_t i = 0; i < f->n; i++)
        free(f->at[i].bytes);
    memset(f, 0, sizeof *f);
}

void hostile_frames_add(struct hostile_frames *f, const void *bytes, size_t n)
{
    assert_true(f->n < HOSTILE_FRAMES);
    f->at[f->n].bytes = malloc(n ? n : 1);
    assert_non_null(f->at[f->n].bytes);
    if (n)
        memcpy(f->at[f->n].bytes, bytes, n);
    f->at[f->n++].n = n;
}

bool hostile_frames_pack(struct hostile_frames *f, const struct esp_msg *msg)
{
    uint8_t *bytes;
    size_t n;

    if (esp_wire_pack(&bytes, &n, msg, NULL))
        return false;
    hostile_frames_add(f, bytes, n);
    free(bytes);
    for (uint32_t i = 0; i < msg->n_blobs; i++)
        hostile_frames_add(f, msg->blob[i].data, msg->blob[i].n_bytes);
    return true;
}

void hostile_peer_open(struct hostile_peer *p, const char *endpoint, const char *identity)
{
    const int linger = 0, patience = 5000,
              queue = 8; /* little of what was sent waits with us, and is lost on closing */
    size_t i = 0;

    snprintf(p->endpoint, sizeof p->endpoint, "%s", endpoint);
    p->socket = zmq_socket(context, ZMQ_DEALER);
    assert_non_null(p->socket);
    while (sockets[i])
        assert_true(++i < sizeof sockets / sizeof sockets[0]);
    sockets[i] = p->socket;
    assert_int_equal(zmq_setsockopt(p->socket, ZMQ_LINGER, &linger, sizeof linger), 0);
    assert_int_equal(zmq_setsockopt(p->socket, ZMQ_SNDHWM, &queue, sizeof queue), 0);
    assert_int_equal(zmq_setsockopt(p->socket, ZMQ_SNDTIMEO, &patience, sizeof patience), 0);
    if (identity)
        assert_int_equal(zmq_setsockopt(p->socket, ZMQ_ROUTING_ID, identity, strlen(identity)), 0);
    assert_int_equal(zmq_connect(p->socket, p->endpoint), 0);
}

void hostile_peer_close(struct hostile_peer *p)
{
    for (size_t i = 0; p->socket && i < sizeof sockets / sizeof sockets[0]; i++)
        if (sockets[i] == p->socket)
            sockets[i] = NULL;
    if (p->socket)
        zmq_close(p->socket);
    p->socket = NULL;
}

void hostile_peer_send(struct hostile_peer *p, const struct hostile_frames *f)
{
    char endpoint[sizeof p->endpoint];

    for (uint32_t i = 0; i < f->n; i++) {
        if (zmq_send(p->socket, f->at[i].bytes, f->at[i].n, i + 1 < f->n ? ZMQ_SNDMORE : 0) >= 0)
            continue;
        assert_int_equal(zmq_errno(), EAGAIN); /* it takes nothing: hung up on, or full */
        strcpy(endpoint, p->endpoint);
        hostile_peer_close(p);
        hostile_peer_open(p, endpoint, NULL);
        return;
    }
}

bool hostile_peer_take(struct hostile_peer *p, struct hostile_frames *f)
{
    int more = 1;
    size_t n_more = sizeof more;

    memset(f, 0, sizeof *f);
    while (more) {
        zmq_msg_t m;

        assert_int_equal(zmq_msg_init(&m), 0);
        if (zmq_msg_recv(&m, p->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&m);
            return false;
        }
        if (f->n < HOSTILE_FRAMES)
            hostile_frames_add(f, zmq_msg_data(&m), zmq_msg_size(&m));
        zmq_msg_close(&m);
        assert_int_equal(zmq_getsockopt(p->socket, ZMQ_RCVMORE, &more, &n_more), 0);
    }
    return true;
}

int hostile_tcp(const char *endpoint, const void *bytes, size_t n, bool stay)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0 || send(fd, bytes, n, MSG_NOSIGNAL) < 0 ||
        !stay) {
        close(fd);
        return -1;
    }
    return fd;
}
