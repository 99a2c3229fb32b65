#include "tests/sim/fleet.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"
#include "tests/support/checkpoint_writer.h"

#define POLL_US 2000

double fleet_now(void)
{
    return esp_now_seconds();
}

bool fleet_soak(void)
{
    const char *soak = getenv("ESPALIER_SOAK");

    return soak && strcmp(soak, "1") == 0;
}

static void must(esp_status st, const struct esp_err *err, const char *what)
{
    if (st)
        fail_msg("%s: %s", what, err->text);
}

/* ---- the model ---- */

/* Rows as small as they may be, layers for as many stages as one likes, and so wide inside that the head is none of the
 * slowest stages: by the placement's costs it is 0.9 layers. */
static const char config_format[] =
    "{\"architectures\": [\"PaliGemmaForConditionalGeneration\"], \"bos_token_id\": 2, \"eos_token_id\": 1,\n"
    " \"hidden_size\": 32, \"image_token_index\": 5534, \"model_type\": \"paligemma\", \"pad_token_id\": 0,\n"
    " \"projection_dim\": 32, \"vocab_size\": 5534,\n"
    " \"text_config\": {\"head_dim\": 16, \"hidden_size\": 32, \"intermediate_size\": 2048,\n"
    "  \"model_type\": \"gemma\", \"num_attention_heads\": 2, \"num_hidden_layers\": %d,\n"
    "  \"num_image_tokens\": 16, \"num_key_value_heads\": 1, \"vocab_size\": 5568},\n"
    " \"vision_config\": {\"hidden_size\": 32, \"image_size\": 56, \"intermediate_size\": 512,\n"
    "  \"model_type\": \"siglip_vision_model\", \"num_attention_heads\": 2, \"num_hidden_layers\": %d,\n"
    "  \"num_image_tokens\": 16, \"patch_size\": 14, \"projection_dim\": 32, \"vision_use_head\": false}}\n";

static void write_model(struct fleet *f)
{
    char config[2048];
    struct esp_checkpoint_spec spec = {.dir = f->model,
                                       .config_json = config,
                                       .dtype = ESP_BF16,
                                       .layout = ESP_LAYOUT_PUBLISHED,
                                       .n_shard = 1,
                                       .tokenizer = ESP_GOLDEN_TOKENIZER};
    struct esp_err err;

    spec.n_config =
        (size_t)snprintf(config, sizeof config, config_format, FLEET_DEC_LAYERS, FLEET_ENC_LAYERS);
    must(esp_checkpoint_write(&spec, &err), &err, "the model");
    must(esp_checkpoint_open(&f->ck, f->model, &err), &err, "the model");
}

/* ---- processes ---- */

/* A child that dies with us, its stderr in dir/NAME.log. */
static pid_t spawn(const struct fleet *f, const char *name, const char *const *argv)
{
    const pid_t parent = getpid();
    char path[128];
    pid_t pid;

    snprintf(path, sizeof path, "%s/%s.log", f->dir, name);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        const int fd = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent || fd < 0 || dup2(fd, STDERR_FILENO) < 0)
            _exit(126);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    return pid;
}

/* Its exit status, or 128 and the signal; -1: it runs on at the deadline. */
static int wait_for(pid_t pid)
{
    int status;

    for (const double end = fleet_now() + FLEET_DEADLINE_S; waitpid(pid, &status, WNOHANG) == 0;
         usleep(POLL_US))
        if (fleet_now() > end)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The whole log of a child, NUL-terminated; NULL: none yet. */
static char *read_log(const struct fleet *f, const char *name)
{
    char path[128], *text = NULL;
    size_t n = 0;
    FILE *from, *to = open_memstream(&text, &n);
    int c;

    assert_non_null(to);
    snprintf(path, sizeof path, "%s/%s.log", f->dir, name);
    from = fopen(path, "r");
    while (from && (c = getc(from)) != EOF)
        putc(c, to);
    if (from)
        fclose(from);
    assert_int_equal(fclose(to), 0);
    return text;
}

uint32_t fleet_count_log(const struct fleet *f, const char *fragment)
{
    char *text = read_log(f, "coordinator");
    uint32_t n = 0;

    for (const char *at = text; (at = strstr(at, fragment)); at++)
        n++;
    free(text);
    return n;
}

double fleet_cpu(const struct fleet *f)
{
    unsigned long long user = 0, system = 0;
    char path[64];
    FILE *from;
    int n;

    snprintf(path, sizeof path, "/proc/%ld/stat", (long)f->coordinator);
    from = fopen(path, "r");
    assert_non_null(from);
    n = fscanf(from, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system);
    fclose(from);
    assert_int_equal(n, 2);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* A tcp endpoint is the system's choice, and stands in the log. */
static void find_endpoint(struct fleet *f)
{
    static const char mark[] = "listening endpoint=";

    for (const double end = fleet_now() + FLEET_DEADLINE_S;; usleep(POLL_US)) {
        char *text = read_log(f, "coordinator");
        const char *at = strstr(text, mark), *stop = at ? strpbrk(at + strlen(mark), " \n") : NULL;

        if (stop) {
            snprintf(f->at, sizeof f->at, "%.*s", (int)(stop - at - (long)strlen(mark)), at + strlen(mark));
            free(text);
            return;
        }
        if (fleet_now() > end || waitpid(f->coordinator, NULL, WNOHANG) > 0)
            fail_msg("the coordinator does not listen: %s", text);
        free(text);
    }
}

void fleet_start(struct fleet *f, bool tcp, const char *const *args)
{
    const struct esp_link_options dial = {.type = ESP_LINK_DIAL, .identity = "fleet"};
    const char *argv[48] = {COORDINATOR, "--model", f->model, "--bind", f->at, "--die-with-parent"};
    struct rlimit files;
    struct esp_err err;
    char path[128];
    int n = 6;

    memset(f, 0, sizeof *f);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* 64 conversations in one process have many sockets */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    f->tcp = tcp;
    strcpy(f->dir, "/tmp/esp-sim-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    strcpy(path, f->dir);
    snprintf(f->model, sizeof f->model, "%s/model", path);
    if (tcp)
        strcpy(f->at, "tcp://127.0.0.1:*");
    else
        snprintf(f->at, sizeof f->at, "ipc://%s/c", path);
    esp_log_init(&f->log, "fleet");
    f->log.level = ESP_LOG_WARN;
    snprintf(path, sizeof path, "%s/workers.log", f->dir);
    f->log.fd = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    assert_true(f->log.fd >= 0);
    write_model(f);
    for (; args && *args && n < 47; args++)
        argv[n++] = *args;
    f->coordinator = spawn(f, "coordinator", argv);
    find_endpoint(f);
    must(esp_net_create(&f->net, &err), &err, "network");
    must(esp_link_create(&f->control, f->net, &dial, &err), &err, "link");
    must(esp_link_connect(f->control, f->at, &err), &err, "link");
}

/* ---- workers ---- */

static void *worker_main(void *arg)
{
    struct fleet_worker *w = arg;
    bool still_busy;

    prctl(PR_SET_TIMERSLACK, 1UL); /* the stage's thread inherits it */
    w->status = esp_worker_serve(&w->options, w->shelf, &still_busy, &w->err);
    atomic_store(&w->ended, true);
    return NULL;
}

static void start_thread(struct fleet *f, struct fleet_worker *w)
{
    struct esp_err err;

    must(sim_device_init(&w->device, &w->profile, esp_checkpoint_config(f->ck), &err), &err, w->name);
    must(esp_shelf_create(&w->shelf, &w->device.vk, f->ck, NULL, NULL, &err), &err, w->name);
    w->stop_fd = eventfd(0, EFD_CLOEXEC);
    assert_true(w->stop_fd >= 0);
    w->options = (struct esp_worker_options){.name = w->name,
                                             .connect = f->at,
                                             .bind = w->bind,
                                             .device = sim_device_report(&w->device),
                                             .stop_fd = w->stop_fd,
                                             .stop_timeout_ms = (int)(1000 * FLEET_DEADLINE_S),
                                             .log = &f->log};
    esp_checkpoint_fingerprint(f->ck, w->options.fingerprint);
    atomic_store(&w->ended, false);
    assert_int_equal(pthread_create(&w->thread, NULL, worker_main, w), 0);
}

static void start_process(struct fleet *f, struct fleet_worker *w)
{
    const struct sim_profile *p = &w->profile;
    char path[128];
    const char *argv[] = {SIM_WORKER, "--simulate", path,     "--model", f->model,      "--connect", f->at,
                          "--name",   w->name,      "--bind", w->bind,   "--log-level", "warn",      NULL};
    FILE *to;

    snprintf(path, sizeof path, "%s/%s.json", f->dir, w->name);
    to = fopen(path, "w");
    assert_non_null(to);
    fprintf(to,
            "{\"name\": \"%s\", \"memory_mib\": %llu, \"encode_layer_seconds\": %.9g,\n"
            " \"step_layer_seconds\": %.9g, \"decode_row_seconds\": %.9g, \"prefill_row_seconds\": %.9g,\n"
            " \"head_seconds\": %.9g, \"head_row_seconds\": %.9g, \"load_bytes_per_second\": %.9g,\n"
            " \"kv_bytes_per_second\": %.9g, \"jitter\": %.9g, \"seed\": %u}\n",
            p->name, (unsigned long long)p->memory_bytes >> 20, p->encode_layer_s, p->step_layer_s,
            p->decode_row_s, p->prefill_row_s, p->head_s, p->head_row_s, p->load_rate, p->kv_rate, p->jitter,
            p->seed);
    assert_int_equal(fclose(to), 0);
    w->pid = spawn(f, w->name, argv);
}

static void start(struct fleet *f, struct fleet_worker *w)
{
    if (w->kind == FLEET_THREAD)
        start_thread(f, w);
    else
        start_process(f, w);
    w->running = true;
}

void fleet_add(struct fleet *f, enum fleet_kind kind, const struct sim_profile *profile)
{
    struct fleet_worker *w = &f->w[f->n];
    char dir[sizeof f->dir];

    assert_true(f->n < FLEET_MAX);
    strcpy(dir, f->dir); /* apart from where it goes */
    snprintf(w->name, sizeof w->name, "w%02u", f->n++);
    if (f->tcp)
        strcpy(w->bind, "tcp://127.0.0.1:*");
    else
        snprintf(w->bind, sizeof w->bind, "ipc://%s/w%02u", dir, f->n - 1);
    w->fleet = f;
    w->kind = kind;
    w->profile = *profile;
    start(f, w);
}

static struct fleet_worker *process(struct fleet *f, uint32_t i, bool running)
{
    struct fleet_worker *w = &f->w[i];

    assert_true(i < f->n && w->kind == FLEET_PROCESS && w->running == running);
    return w;
}

void fleet_kill(struct fleet *f, uint32_t i)
{
    struct fleet_worker *w = process(f, i, true);

    assert_int_equal(kill(w->pid, SIGKILL), 0);
    assert_int_equal(wait_for(w->pid), 128 + SIGKILL);
    w->running = w->frozen = false;
}

void fleet_freeze(struct fleet *f, uint32_t i)
{
    struct fleet_worker *w = process(f, i, true);

    assert_int_equal(kill(w->pid, SIGSTOP), 0);
    w->frozen = true;
}

void fleet_thaw(struct fleet *f, uint32_t i)
{
    struct fleet_worker *w = process(f, i, true);

    assert_int_equal(kill(w->pid, SIGCONT), 0);
    w->frozen = false;
}

void fleet_again(struct fleet *f, uint32_t i)
{
    start(f, process(f, i, false));
}

static void stop_worker(const struct fleet *f, struct fleet_worker *w)
{
    const uint64_t one = 1;
    char *text;
    int rc;

    if (!w->running)
        return;
    if (w->kind == FLEET_THREAD) {
        assert_int_equal(write(w->stop_fd, &one, sizeof one), sizeof one);
        for (const double end = fleet_now() + FLEET_DEADLINE_S; !atomic_load(&w->ended); usleep(POLL_US))
            if (fleet_now() > end)
                fail_msg("%s does not end", w->name);
        pthread_join(w->thread, NULL);
        esp_shelf_destroy(&w->shelf);
        close(w->stop_fd);
        if (w->status)
            fail_msg("%s ended badly: %s", w->name, w->err.text);
    } else {
        if (w->frozen)
            kill(w->pid, SIGCONT);
        kill(w->pid, SIGTERM);
        rc = wait_for(w->pid);
        if (rc != 0) {
            text = read_log(f, w->name);
            kill(w->pid, SIGKILL);
            fail_msg("%s ended with %d: %s", w->name, rc, text);
        }
    }
    w->running = false;
}

/* ---- the whole ---- */

void fleet_time(struct fleet *f, struct fleet_time *out)
{
    *out = (struct fleet_time){0};
    for (uint32_t i = 0; i < f->n; i++) {
        const struct sim_counters *n = &f->w[i].device.count;

        out->asked += 1e-9 * (double)atomic_load(&n->asked_ns);
        out->taken += 1e-9 * (double)atomic_load(&n->taken_ns);
        out->calls += (double)(atomic_load(&n->n_steps) + atomic_load(&n->n_pictures));
    }
}

bool fleet_starved(struct fleet *f, const struct fleet_time *since, double *late)
{
    struct fleet_time now;

    fleet_time(f, &now);
    *late = (now.taken - since->taken - (now.asked - since->asked)) / (now.calls - since->calls);
    return *late > FLEET_LATE_S;
}

void fleet_not_judged(double late)
{
    printf("NOT JUDGED: something else keeps this machine busy, and sleepers wake %.2f ms late\n",
           1e3 * late);
    skip();
}

void fleet_status(struct fleet *f, struct esp_msg *status)
{
    struct esp_msg query = {.kind = ESP_MSG_STATUS_QUERY, .status_query = {.id = ++f->n_query}};
    struct esp_err err;
    const double end = fleet_now() + FLEET_DEADLINE_S;

    must(esp_link_send(f->control, NULL, &query, &err), &err, "status");
    while (fleet_now() < end) {
        esp_status st = esp_link_recv(f->control, NULL, status, &err);

        if (st == ESP_E_TIMEOUT) {
            esp_link_wait(&(struct esp_wait){.link = f->control}, 1, 100, NULL);
            continue;
        }
        must(st, &err, "status");
        if (status->kind == ESP_MSG_STATUS && status->status.id == f->n_query)
            return;
        esp_msg_finish(status);
    }
    fail_msg("the coordinator does not answer");
}

struct esp_msg_drained fleet_drain(struct fleet *f, uint32_t i, void (*meanwhile)(void *), void *arg)
{
    struct fleet_worker *w = process(f, i, true);
    struct esp_msg m = {.kind = ESP_MSG_DRAIN, .drain = {.id = ++f->n_query, .worker = w->name}};
    struct esp_msg_drained drained = {0};
    const double end = fleet_now() + FLEET_DEADLINE_S;
    struct esp_err err;
    bool done = false;

    must(esp_link_send(f->control, NULL, &m, &err), &err, "drain");
    while (!done) {
        meanwhile(arg);
        while (!done && !esp_link_recv(f->control, NULL, &m, &err)) {
            if (m.kind == ESP_MSG_ERROR)
                fail_msg("%s is not drained: %s", w->name, m.error.text);
            done = m.kind == ESP_MSG_DRAINED;
            if (done)
                drained = m.drained;
            esp_msg_finish(&m);
        }
        if (fleet_now() > end)
            fail_msg("%s is not drained", w->name);
    }
    drained.worker = NULL;
    assert_int_equal(wait_for(w->pid), 0);
    w->running = false;
    return drained;
}

void fleet_until_ready(struct fleet *f, uint32_t n)
{
    for (const double end = fleet_now() + FLEET_DEADLINE_S;; usleep(10 * POLL_US)) {
        struct esp_msg m;
        bool ready;

        fleet_status(f, &m);
        ready = m.status.ready && m.status.n_workers >= n;
        if (!ready && fleet_now() > end)
            fail_msg("%u workers, not ready: %s", m.status.n_workers, m.status.why);
        esp_msg_finish(&m);
        if (ready)
            return;
    }
}

void fleet_start_even(struct fleet *f, uint32_t n_stages, const struct sim_profile *profile)
{
    char split[256] = "", n[16];
    const char *args[] = {"--workers", n, "--split", split, "--context", "512", "--kv-tokens", "32768", NULL};

    snprintf(n, sizeof n, "%u", n_stages);
    for (uint32_t i = 0, lo = 0; i < n_stages; i++) {
        const uint32_t hi = FLEET_DEC_LAYERS * (i + 1) / n_stages;

        snprintf(split + strlen(split), sizeof split - strlen(split), "%s%d/%u", i ? "," : "",
                 i ? 0 : FLEET_ENC_LAYERS, hi - lo);
        lo = hi;
    }
    fleet_start(f, true, args);
    for (uint32_t i = 0; i < n_stages; i++)
        fleet_add(f, FLEET_THREAD, profile);
    fleet_until_ready(f, n_stages);
}

void fleet_stop(struct fleet *f)
{
    char cmd[96], *text;
    int rc;

    kill(f->coordinator, SIGTERM); /* it says goodbye to the workers, so that they end */
    rc = wait_for(f->coordinator);
    if (rc != 0) {
        text = read_log(f, "coordinator");
        fail_msg("the coordinator ended with %d: %s", rc, text);
    }
    for (uint32_t i = 0; i < f->n; i++)
        stop_worker(f, &f->w[i]);
    esp_link_destroy(&f->control);
    esp_net_destroy(&f->net);
    esp_checkpoint_destroy(&f->ck);
    close(f->log.fd);
    snprintf(cmd, sizeof cmd, "rm -rf %s", f->dir);
    assert_int_equal(system(cmd), 0);
}
