#include "tests/fault/real_cluster.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"
#include "tests/fault/machines.h"

static void too_late(double since, const char *what)
{
    if (esp_now_seconds() - since > ESP_PATIENCE_MS / 1000.0)
        fail_msg("waited in vain: %s", what);
}

/* ---- processes ---- */

/* argv ends with NULL. Its stderr goes behind what the file holds. */
static pid_t start(struct real_cluster *c, const char *log, int machine, const char *const *argv)
{
    const char *all[32] = {machines_ip(), "netns", "exec", machine >= 0 ? machines_name(machine) : ""};
    char path[128];
    int n = machine >= 0 ? 4 : 0;
    pid_t pid;

    while (*argv && n < 31)
        all[n++] = *argv++;
    all[n] = NULL;
    snprintf(path, sizeof path, "%s/%s.log", c->dir, log);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);

        if (fd < 0 || dup2(fd, 2) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
            _exit(126);
        execv(all[0], (char *const *)all);
        _exit(127);
    }
    return pid;
}

void real_worker(struct real_cluster *c, int i)
{
    char name[16];
    const char *const argv[] = {
        WORKER, "--model", RIG_MODEL, "--connect", c->at, "--name", name, c->far ? "--insecure" : NULL, NULL};

    snprintf(name, sizeof name, "w%d", i);
    c->leaves[i] = false;
    c->worker[i] = start(c, name, c->far ? i + 1 : -1, argv);
}

void real_start(struct real_cluster *c, int n, bool far)
{
    const struct esp_link_options options = {.type = ESP_LINK_DIAL, .hwm = 4096};
    char n_workers[16];
    const char *const argv[] = {COORDINATOR, "--model",      RIG_MODEL,
                                "--bind",    c->at,          "--workers",
                                n_workers,   "--no-journal", far ? "--insecure" : NULL,
                                NULL};
    struct esp_err err;

    memset(c, 0, sizeof *c);
    snprintf(c->dir, sizeof c->dir, "/tmp/esp-real-XXXXXX");
    assert_non_null(mkdtemp(c->dir));
    c->far = far;
    c->n_workers = n;
    if (far)
        snprintf(c->at, sizeof c->at, "tcp://10.83.0.1:5550");
    else
        snprintf(c->at, sizeof c->at, "ipc://%s/c", c->dir);
    snprintf(n_workers, sizeof n_workers, "%d", n);
    c->coordinator = start(c, "coordinator", far ? 0 : -1, argv);
    for (int i = 0; i < n; i++)
        real_worker(c, i);
    if (esp_net_create(&c->net, &err) || esp_link_create(&c->link, c->net, &options, &err) ||
        esp_link_connect(c->link, c->at, &err))
        fail_msg("%s", err.text);
    real_settle(c, (uint32_t)n);
}

static void end(pid_t *pid, const char *name)
{
    int status;

    if (*pid <= 0)
        return;
    kill(*pid, SIGTERM);
    assert_int_equal(waitpid(*pid, &status, 0), *pid);
    *pid = 0;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("%s ended with %s %d", name, WIFEXITED(status) ? "status" : "signal",
                 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

void real_stop(struct real_cluster *c)
{
    char command[96];

    esp_link_destroy(&c->link);
    esp_net_destroy(&c->net);
    end(&c->coordinator, "the coordinator"); /* the workers are told Bye */
    for (int i = 0; i < c->n_workers; i++)
        end(&c->worker[i], "a worker");
    snprintf(command, sizeof command, "rm -rf %s", c->dir);
    if (system(command) != 0)
        fail_msg("%s stays behind", c->dir);
}

void real_kill(struct real_cluster *c, int i)
{
    int status;

    kill(c->worker[i], SIGKILL);
    assert_int_equal(waitpid(c->worker[i], &status, 0), c->worker[i]);
    c->worker[i] = 0;
}

static void check_one(struct real_cluster *c, pid_t *pid, const char *name, bool may_end)
{
    char command[160];
    int status;

    if (*pid <= 0 || waitpid(*pid, &status, WNOHANG) == 0)
        return;
    *pid = 0;
    if (may_end && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return;
    snprintf(command, sizeof command, "tail -n 30 %s/%s.log >&2", c->dir, name);
    (void)!system(command);
    fail_msg("%s has ended, status %#x", name, (unsigned)status);
}

void real_check_alive(struct real_cluster *c)
{
    check_one(c, &c->coordinator, "coordinator", false);
    for (int i = 0; i < c->n_workers; i++) {
        char name[16];

        snprintf(name, sizeof name, "w%d", i);
        check_one(c, &c->worker[i], name, c->leaves[i]);
    }
}

long real_rss_kib(pid_t pid)
{
    char path[64], line[256];
    long kib = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmRSS: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

/* ---- the client ---- */

static struct esp_msg status_msg, drained_msg; /* the last ones */

static void send(struct real_cluster *c, struct esp_msg *msg)
{
    const double since = esp_now_seconds();
    struct esp_err err;
    esp_status st;

    while ((st = esp_link_send(c->link, NULL, msg, &err)) == ESP_E_LIMIT) {
        too_late(since, "room in the queue");
        esp_link_wait(NULL, 0, 5, NULL);
    }
    if (st)
        fail_msg("%s", err.text);
}

static void on_message(struct real_cluster *c, struct esp_msg *msg)
{
    const uint64_t i = msg->kind == ESP_MSG_TOKEN   ? msg->token.session - c->first
                       : msg->kind == ESP_MSG_DONE  ? msg->done.session - c->first
                       : msg->kind == ESP_MSG_ERROR ? msg->error.session - c->first
                                                    : N;

    switch (msg->kind) {
    case ESP_MSG_STATUS:
        esp_msg_finish(&status_msg);
        status_msg = *msg;
        memset(msg, 0, sizeof *msg);
        break;
    case ESP_MSG_DRAINED:
        esp_msg_finish(&drained_msg);
        drained_msg = *msg;
        memset(msg, 0, sizeof *msg);
        break;
    case ESP_MSG_TOKEN:
        assert_true(i < N);
        assert_int_equal(msg->token.index, c->n_tok[i]);
        c->n_tok[i]++;
        c->token_at = esp_now_seconds();
        break;
    case ESP_MSG_DONE:
        assert_true(i < N && !c->done[i]);
        if (i < 2) /* those that stream */
            assert_int_equal(c->n_tok[i], msg->done.best.n_ids);
        write_down(c->got[i], &msg->done);
        c->done[i] = true;
        c->token_at = esp_now_seconds();
        break;
    case ESP_MSG_ERROR:
        if (i < N)
            fail_msg("request %u: %s", (unsigned)i, msg->error.text);
        break; /* of a drain that could not be */
    default:   /* Accepted, Waiting */
        break;
    }
}

bool real_take(struct real_cluster *c, int ms)
{
    struct esp_wait wait = {.link = c->link};
    struct esp_msg msg;
    struct esp_err err;
    bool all = true;
    esp_status st;

    (void)esp_link_wait(&wait, 1, ms, NULL);
    while ((st = esp_link_recv(c->link, NULL, &msg, &err)) != ESP_E_TIMEOUT) {
        if (st)
            fail_msg("%s", err.text);
        on_message(c, &msg);
        esp_msg_finish(&msg);
    }
    for (int i = 0; i < N; i++)
        all &= c->done[i];
    return all;
}

void real_take_all(struct real_cluster *c)
{
    const double since = esp_now_seconds();

    while (!real_take(c, 20)) {
        real_check_alive(c);
        too_late(since, "all answers");
    }
}

const struct esp_msg_status *real_status(struct real_cluster *c)
{
    struct esp_msg msg = {.kind = ESP_MSG_STATUS_QUERY, .status_query = {.id = ++c->last_id}};
    const double since = esp_now_seconds();

    send(c, &msg);
    while (status_msg.kind != ESP_MSG_STATUS || status_msg.status.id != msg.status_query.id) {
        (void)real_take(c, 20);
        real_check_alive(c);
        too_late(since, "a status");
    }
    return &status_msg.status;
}

const struct esp_worker_status *real_worker_status(const struct esp_msg_status *s, int i)
{
    char name[16];

    snprintf(name, sizeof name, "w%d", i);
    for (uint32_t k = 0; k < s->n_workers; k++)
        if (strcmp(s->workers[k].name, name) == 0)
            return &s->workers[k];
    return NULL;
}

/* A golden picture; it stays in memory. */
static struct esp_blob picture(const char *name)
{
    static struct {
        const char *name;
        struct esp_blob blob;
    } kept[4];
    char path[128];
    struct stat st;
    FILE *f;
    int i = 0;

    while (kept[i].name && strcmp(kept[i].name, name) != 0)
        i++;
    if (!kept[i].name) {
        snprintf(path, sizeof path, RIG_MODEL "/images/%s", name);
        f = fopen(path, "rb");
        assert_true(f && fstat(fileno(f), &st) == 0);
        kept[i].name = name;
        kept[i].blob.data = malloc((size_t)st.st_size);
        kept[i].blob.n_bytes = (size_t)st.st_size;
        assert_true(kept[i].blob.data &&
                    fread((void *)kept[i].blob.data, 1, kept[i].blob.n_bytes, f) == kept[i].blob.n_bytes);
        fclose(f);
    }
    return kept[i].blob;
}

void real_ask_all(struct real_cluster *c, uint32_t max_tokens)
{
    c->first = c->last_id + 1;
    c->last_id += N;
    memset(c->n_tok, 0, sizeof c->n_tok);
    memset(c->done, 0, sizeof c->done);
    for (uint32_t i = 0; i < N; i++) {
        struct esp_msg msg = {.kind = ESP_MSG_REQUEST};
        const char *name = picture_of_kind(i);

        msg.request = request_of_kind(i, c->first + i);
        if (!msg.request.score)
            msg.request.max_tokens = max_tokens;
        if (name) {
            msg.request.n_images = msg.n_blobs = 1;
            msg.request.image_names = &name;
            msg.blob[0] = picture(name);
        }
        send(c, &msg);
    }
}

uint64_t real_drain(struct real_cluster *c, int i)
{
    char name[16];
    struct esp_msg msg = {.kind = ESP_MSG_DRAIN, .drain = {.id = ++c->last_id, .worker = name}};

    snprintf(name, sizeof name, "w%d", i);
    c->leaves[i] = true;
    send(c, &msg);
    return msg.drain.id;
}

struct esp_msg_drained real_drained(struct real_cluster *c, uint64_t id)
{
    const double since = esp_now_seconds();

    while (drained_msg.kind != ESP_MSG_DRAINED || drained_msg.drained.id != id) {
        (void)real_take(c, 20);
        too_late(since, "a drained worker");
    }
    return drained_msg.drained;
}

void real_settle(struct real_cluster *c, uint32_t n)
{
    const double since = esp_now_seconds();

    for (;;) {
        const struct esp_msg_status *s = real_status(c);
        bool settled =
            s->ready && s->n_workers == n && s->n_sessions == 0 && s->kv_used_blocks == 0 && !*s->doing;

        for (uint32_t i = 0; i < s->n_workers; i++)
            settled &= s->workers[i].n_seqs == 0 && s->workers[i].kv_used_blocks == 0 &&
                       strcmp(s->workers[i].state, "failed") != 0;
        if (settled)
            return;
        real_check_alive(c);
        too_late(since, "a cluster that is whole, ready and empty");
        esp_link_wait(NULL, 0, 20, NULL);
    }
}
