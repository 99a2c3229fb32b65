/* Only three things here must never go wrong: no process is left, no directory is left, no child's end goes
 * unsaid. Hence PR_SET_PDEATHSIG before exec and --die-with-parent after it, pids that are reaped here alone,
 * and a clean-up for the second Ctrl-C that uses nothing but system calls. */
#include "cli/embed.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/signals.h"
#include "proto/clock.h"

#define GRACE_MS      2000
#define MAX_IPC_PATH  107 /* sun_path, without its NUL */
#define MAX_ARGS      32
#define MAX_KEYS_PATH 1024
#define LINE_MAX_     1024

struct child {
    char name[16]; /* "coordinator", "w3" */
    pid_t pid;     /* 0: none, or reaped */
    int fd;        /* its stderr; -1: closed */
    int status;    /* of waitpid */
    bool ended, told;
    char line[LINE_MAX_]; /* the beginning of an unfinished line */
    size_t n_line;
    char last[LINE_MAX_]; /* the last whole line */
};

struct esp_embed {
    char dir[MAX_IPC_PATH + 1];
    char endpoint[ESP_MAX_ENDPOINT + 1];
    struct esp_term *term;
    uint32_t n;                                    /* children */
    struct child child[ESP_EMBED_MAX_WORKERS + 1]; /* the coordinator is 0 */
};

/* ---- the second Ctrl-C ---- */

static volatile pid_t doomed_pid[ESP_EMBED_MAX_WORKERS + 1];
static char doomed_dir[MAX_IPC_PATH + 1];

/* Async-signal-safe. The directory holds the sockets c, w0, w1, ... and nothing else. */
static void kill_at_once(void)
{
    for (size_t i = 0; i < sizeof doomed_pid / sizeof doomed_pid[0]; i++) {
        if (doomed_pid[i] > 0)
            kill(doomed_pid[i], SIGKILL);
    }
    if (doomed_dir[0]) {
        int fd = open(doomed_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        unlinkat(fd, "c", 0);
        for (int i = 0; i < ESP_EMBED_MAX_WORKERS; i++) {
            char name[4] = {'w', (char)('0' + i / 10), (char)('0' + i % 10), '\0'};
            if (i < 10) {
                name[1] = name[2];
                name[2] = '\0';
            }
            unlinkat(fd, name, 0);
        }
        rmdir(doomed_dir);
    }
}

/* ---- paths ---- */

/* "DIR/NAME" in out, if that is a program; dir has n_dir bytes. */
static bool program_in(char *out, size_t n_out, const char *dir, size_t n_dir, const char *name)
{
    struct stat info;
    int w = snprintf(out, n_out, "%.*s/%s", (int)n_dir, dir, name);

    return w > 0 && (size_t)w < n_out && stat(out, &info) == 0 && S_ISREG(info.st_mode) &&
           access(out, X_OK) == 0;
}

esp_status esp_program_path(char *out, size_t n_out, const char *name, struct esp_err *err)
{
    char self[4096];
    const char *path = getenv("PATH");
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);

    while (n > 0 && self[n - 1] != '/')
        n--;
    if (n > 1 && program_in(out, n_out, self, (size_t)n - 1, name))
        return ESP_OK;
    while (path && *path) {
        size_t n_dir = strcspn(path, ":");
        if (n_dir > 0 && program_in(out, n_out, path, n_dir, name))
            return ESP_OK;
        path += n_dir + (path[n_dir] == ':');
    }
    return esp_fail(err, ESP_E_IO, "%s is neither beside espalier nor in $PATH", name);
}

static esp_status make_dir(struct esp_embed *embed, struct esp_err *err)
{
    const char *places[2] = {getenv("XDG_RUNTIME_DIR"), "/tmp"};

    for (size_t i = 0; i < 2; i++) {
        int w;
        if (!places[i] || places[i][0] != '/')
            continue;
        w = snprintf(embed->dir, sizeof embed->dir, "%s/espalier-XXXXXX", places[i]);
        if (w < 0 || (size_t)w + sizeof "/w63" > sizeof embed->dir)
            continue; /* a socket in it would not fit sun_path */
        if (mkdtemp(embed->dir)) {
            strcpy(doomed_dir, embed->dir);
            return ESP_OK;
        }
    }
    embed->dir[0] = '\0';
    return esp_fail(err, ESP_E_IO, "no directory for sockets could be made in $XDG_RUNTIME_DIR or /tmp: %s",
                    strerror(errno));
}

static void remove_dir(struct esp_embed *embed)
{
    DIR *d;
    struct dirent *e;

    if (!embed->dir[0])
        return;
    d = opendir(embed->dir);
    while (d && (e = readdir(d)) != NULL)
        unlinkat(dirfd(d), e->d_name, 0); /* "." and ".." refuse by themselves */
    if (d)
        closedir(d);
    rmdir(embed->dir);
    embed->dir[0] = doomed_dir[0] = '\0';
}

/* ---- starting ---- */

/* Between fork and exec: system calls only. Never returns. */
static void become(const char *path, char *const argv[], pid_t parent, int err_fd)
{
    static const char text[] = "cannot be executed\n";
    int null_fd;

    esp_signals_reset();
    setpgid(0, 0); /* Ctrl-C in the terminal is ours to pass on */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* gone before the line above */
        _exit(1);
    null_fd = open("/dev/null", O_RDWR);
    dup2(null_fd, STDIN_FILENO);
    dup2(null_fd, STDOUT_FILENO); /* our stdout is the answer's alone */
    dup2(err_fd, STDERR_FILENO);
    execv(path, argv);
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(126);
    _exit(127);
}

static esp_status spawn(struct esp_embed *embed, const char *name, const char *program, char **argv,
                        struct esp_err *err)
{
    struct child *c = &embed->child[embed->n];
    char path[4096];
    pid_t parent = getpid(), pid;
    int fds[2];
    esp_status st = esp_program_path(path, sizeof path, program, err);

    if (st)
        return st;
    argv[0] = path;
    snprintf(c->name, sizeof c->name, "%s", name);
    if (pipe2(fds, O_CLOEXEC) != 0)
        return esp_fail(err, ESP_E_IO, "%s: pipe: %s", name, strerror(errno));
    pid = fork();
    if (pid < 0) {
        esp_fail(err, ESP_E_IO, "%s: fork: %s", name, strerror(errno));
        close(fds[0]);
        close(fds[1]);
        return ESP_E_IO;
    }
    if (pid == 0)
        become(path, argv, parent, fds[1]);
    close(fds[1]);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    c->pid = pid;
    c->fd = fds[0];
    doomed_pid[embed->n] = pid;
    embed->n++;
    return ESP_OK;
}

/* An argv whose numbers live in `text`. Everything it points to outlives the exec. */
struct argv {
    char *at[MAX_ARGS];
    size_t n;
    char text[8][24];
    size_t n_text;
};

static void add(struct argv *a, const char *name, const char *value)
{
    a->at[a->n++] = (char *)name;
    if (value)
        a->at[a->n++] = (char *)value;
}

static void add_number(struct argv *a, const char *name, uint32_t value)
{
    if (value == 0)
        return;
    snprintf(a->text[a->n_text], sizeof a->text[0], "%u", value);
    add(a, name, a->text[a->n_text++]);
}

static const char *log_level(unsigned verbose)
{
    static const char *const level[] = {"warn", "info", "debug", "trace"};
    return level[verbose < 3 ? verbose : 3];
}

static esp_status start_coordinator(struct esp_embed *embed, const struct esp_embed_options *o,
                                    const char *bind, struct esp_err *err)
{
    struct argv a = {.n = 1};
    char keys[MAX_KEYS_PATH];

    add(&a, "--model", o->model);
    add(&a, "--bind", bind);
    if (o->keys) {
        snprintf(keys, sizeof keys, "%s/coordinator", o->keys);
        add(&a, "--keys", keys);
    }
    add_number(&a, "--workers", o->n_workers);
    add_number(&a, "--context", o->context);
    add_number(&a, "--kv-tokens", o->kv_tokens);
    if (o->split)
        add(&a, "--split", o->split);
    if (o->final_softcap)
        add(&a, "--final-softcap", NULL);
    if (o->weights)
        add(&a, "--weights", o->weights);
    if (o->insecure)
        add(&a, "--insecure", NULL);
    add(&a, "--log-level", log_level(o->verbose));
    add(&a, "--die-with-parent", NULL);
    return spawn(embed, "coordinator", "espalier-coordinator", a.at, err);
}

/* @param data_ipc  bind the data socket in our directory; else where the worker likes, for workers elsewhere
 */
static esp_status start_worker(struct esp_embed *embed, const struct esp_embed_options *o, uint32_t i,
                               bool data_ipc, struct esp_err *err)
{
    struct argv a = {.n = 1};
    char name[16], data[sizeof "ipc://" + sizeof embed->dir + sizeof name], keys[MAX_KEYS_PATH];

    snprintf(name, sizeof name, "w%u", i);
    snprintf(data, sizeof data, "ipc://%s/%s", embed->dir, name);
    add(&a, "--model", o->model);
    add(&a, "--connect", embed->endpoint);
    add(&a, "--name", name);
    if (data_ipc)
        add(&a, "--bind", data);
    if (o->keys) {
        snprintf(keys, sizeof keys, "%s/workers/%s", o->keys, name);
        add(&a, "--keys", keys);
    }
    if (o->devices && o->devices->n > 0)
        add(&a, "--device", o->devices->at[i % o->devices->n]);
    add_number(&a, "--memory", o->memory_mib);
    if (o->insecure)
        add(&a, "--insecure", NULL);
    add(&a, "--log-level", log_level(o->verbose));
    if (o->verbose >= 2)
        add(&a, "--profile", NULL);
    add(&a, "--die-with-parent", NULL);
    return spawn(embed, name, "espalier-worker", a.at, err);
}

/* Where our own processes reach what `bind` names: a wildcard host becomes the loopback address. */
static esp_status reach(char *out, size_t n_out, const char *bind, struct esp_err *err)
{
    static const char *const any[] = {"tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:"};
    const char *port = strrchr(bind, ':');
    int w;

    if (strncmp(bind, "tcp://", 6) == 0 &&
        (!port || port < bind + 6 || strspn(port + 1, "0123456789") != strlen(port + 1) ||
         atoi(port + 1) < 1 || atoi(port + 1) > 65535))
        return esp_fail(err, ESP_E_ARG, "%s: expected tcp://HOST:PORT with a port from 1 to 65535", bind);
    for (size_t i = 0; i < sizeof any / sizeof any[0]; i++) {
        size_t n = strlen(any[i]);
        if (strncmp(bind, any[i], n) == 0) {
            w = snprintf(out, n_out, "tcp://%s:%s", i == 2 ? "[::1]" : "127.0.0.1", bind + n);
            return w > 0 && (size_t)w < n_out ? ESP_OK : esp_fail(err, ESP_E_ARG, "%s: too long", bind);
        }
    }
    w = snprintf(out, n_out, "%s", bind);
    return w > 0 && (size_t)w < n_out ? ESP_OK : esp_fail(err, ESP_E_ARG, "the endpoint is too long");
}

esp_status esp_embed_start(struct esp_embed **out, const struct esp_embed_options *options,
                           struct esp_term *term, struct esp_err *err)
{
    esp_status st;
    struct esp_embed *embed = calloc(1, sizeof *embed);
    char bind[ESP_MAX_ENDPOINT + 1];
    bool data_ipc = !options->bind || esp_endpoint_is_local(options->bind);

    *out = NULL;
    if (!embed)
        return esp_fail(err, ESP_E_NOMEM, "embedded cluster: out of memory");
    if (options->keys && strlen(options->keys) > MAX_KEYS_PATH - 32) {
        free(embed);
        return esp_fail(err, ESP_E_ARG, "--keys %s: too long a path", options->keys);
    }
    embed->term = term;
    for (uint32_t i = 0; i < sizeof embed->child / sizeof embed->child[0]; i++)
        embed->child[i].fd = -1;
    esp_signals_at_once(kill_at_once);
    st = make_dir(embed, err);
    if (st)
        goto done;
    if (options->bind)
        snprintf(bind, sizeof bind, "%s", options->bind);
    else
        snprintf(bind, sizeof bind, "ipc://%s/c", embed->dir);
    st = reach(embed->endpoint, sizeof embed->endpoint, bind, err);
    if (st == ESP_OK)
        st = start_coordinator(embed, options, bind, err);
    for (uint32_t i = 0; st == ESP_OK && i < options->n_workers; i++)
        st = start_worker(embed, options, i, data_ipc, err);
    if (st)
        goto done;
    *out = embed;
    embed = NULL;
done:
    esp_embed_stop(&embed);
    return st;
}

/* ---- watching ---- */

const char *esp_embed_endpoint(const struct esp_embed *embed)
{
    return embed->endpoint;
}

uint32_t esp_embed_n_alive(const struct esp_embed *embed)
{
    uint32_t n = 0;
    for (uint32_t i = 1; i < embed->n; i++)
        n += embed->child[i].pid > 0;
    return n;
}

bool esp_embed_headless(const struct esp_embed *embed)
{
    return embed->child[0].pid <= 0;
}

uint32_t esp_embed_waits(const struct esp_embed *embed, struct esp_wait *waits)
{
    uint32_t n = 0;

    for (uint32_t i = 0; embed && i < embed->n; i++) {
        if (embed->child[i].fd >= 0)
            waits[n++] = (struct esp_wait){.fd = embed->child[i].fd};
    }
    return n;
}

static void end_line(struct esp_embed *embed, struct child *c)
{
    if (c->n_line == 0)
        return;
    c->line[c->n_line] = '\0';
    memcpy(c->last, c->line, c->n_line + 1);
    c->n_line = 0;
    esp_term_line(embed->term, "%s", c->last);
}

/* Lines go on whole, so that those of two children do not mix; a longer one than the buffer is cut in two. */
static void read_lines(struct esp_embed *embed, struct child *c)
{
    char buf[4096];
    ssize_t n;

    while (c->fd >= 0) {
        n = read(c->fd, buf, sizeof buf);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            close(c->fd);
            c->fd = -1;
            end_line(embed, c);
            return;
        }
        for (ssize_t i = 0; i < n; i++) {
            if (buf[i] == '\n' || c->n_line + 1 == sizeof c->line)
                end_line(embed, c);
            if (buf[i] != '\n' && (unsigned char)buf[i] != 0)
                c->line[c->n_line++] = buf[i];
        }
    }
}

static void reap(struct esp_embed *embed, uint32_t i)
{
    struct child *c = &embed->child[i];

    if (c->pid <= 0 || waitpid(c->pid, &c->status, WNOHANG) != c->pid)
        return;
    doomed_pid[i] = 0;
    c->pid = 0;
    c->ended = true;
    read_lines(embed, c); /* its last words are in the pipe */
    if (c->n_line)
        end_line(embed, c);
}

esp_status esp_embed_pump(struct esp_embed *embed, struct esp_err *err)
{
    struct child *told = NULL;

    if (!embed)
        return ESP_OK;
    for (uint32_t i = 0; i < embed->n; i++) {
        read_lines(embed, &embed->child[i]);
        reap(embed, i);
    }
    /* A worker's own failure first: a coordinator may end because of it, hardly the other way round. */
    for (uint32_t k = 1; k <= embed->n; k++) {
        struct child *c = &embed->child[k % embed->n];
        if (c->ended && !c->told) {
            told = c;
            break;
        }
    }
    if (!told)
        return ESP_OK;
    told->told = true;
    if (WIFSIGNALED(told->status))
        return esp_fail(err, ESP_E_CLOSED, "%s was killed by signal %d (%s)%s%.300s", told->name,
                        WTERMSIG(told->status), strsignal(WTERMSIG(told->status)),
                        told->last[0] ? "; its last words: " : "", told->last);
    return esp_fail(err, ESP_E_CLOSED, "%s ended with status %d%s%.300s", told->name,
                    WEXITSTATUS(told->status), told->last[0] ? "; its last words: " : " without a word",
                    told->last);
}

/* ---- ending ---- */

static bool any_alive(struct esp_embed *embed)
{
    bool alive = false;

    for (uint32_t i = 0; i < embed->n; i++) {
        read_lines(embed, &embed->child[i]);
        reap(embed, i);
        alive |= embed->child[i].pid > 0;
    }
    return alive;
}

static void signal_all(struct esp_embed *embed, int sig)
{
    for (uint32_t i = 0; i < embed->n; i++) {
        if (embed->child[i].pid > 0)
            kill(embed->child[i].pid, sig);
    }
}

void esp_embed_stop(struct esp_embed **embed_)
{
    struct esp_embed *embed = *embed_;
    int64_t end = esp_now_ms() + GRACE_MS;

    if (!embed)
        return;
    signal_all(embed, SIGTERM);
    while (any_alive(embed)) {
        struct pollfd p = {.fd = esp_signals_fd(),
                           .events = POLLIN}; /* SIGCHLD; the bound is for a lost one */
        int64_t left = end - esp_now_ms();

        if (left <= 0) {
            signal_all(embed, SIGKILL);
            left = 50; /* until the kernel is done with them */
        }
        esp_signals_drain();
        if (any_alive(embed))
            poll(&p, 1, left < 50 ? (int)left : 50);
    }
    for (uint32_t i = 0; i < embed->n; i++) {
        if (embed->child[i].fd >= 0)
            close(embed->child[i].fd);
    }
    remove_dir(embed);
    esp_signals_at_once(NULL);
    free(embed);
    *embed_ = NULL;
}
