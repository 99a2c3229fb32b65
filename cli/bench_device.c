/* A device alone: espalier-worker measures, since it alone knows Vulkan; what it prints is taken in here. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/figures.h"
#include "cli/report_json.h"
#include "proto/clock.h"

#define TICK_MS     500
#define PATIENCE_MS 1000
#define REPEAT_MS   10000

/* What is to be run, as worker/bench.h has it; NULL without memory. The caller frees it. */
static char *what_of(const struct esp_bench *b)
{
    json_t *o = json_object(), *batch = json_array();
    bool ok = o && batch;
    char *text;

    for (uint32_t i = 0; ok && b->decode && i < b->batch.n; i++)
        ok = json_array_append_new(batch, json_integer(b->batch.at[i])) == 0;
    SET(o, "batch", batch);
    SET(o, "encode", json_boolean(b->encode));
    SET(o, "prefill", json_boolean(b->prefill));
    SET(o, "profile", json_boolean(b->profile));
    SET(o, "prompt", json_integer(b->prompt));
    SET(o, "repeats", json_integer(b->repeats));
    SET(o, "warm_up", json_integer(b->warm_up));
    SET(o, "steps", json_integer(b->steps));
    if (b->ask.where.weights)
        SET(o, "weights", json_string(b->ask.where.weights));
    if (b->n_layers[0])
        SET(o, "layers", json_pack("[i,i]", (int)b->n_layers[0], (int)b->n_layers[1]));
    text = ok ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    return text;
}

static const char *log_level(unsigned verbose)
{
    static const char *const level[] = {"warn", "info", "debug", "trace"};

    return level[verbose < 3 ? verbose : 3];
}

/* Starts the worker; *fd reads its standard output. */
static esp_status start(pid_t *pid, int *fd, const struct esp_bench *b, const char *device, const char *what,
                        struct esp_err *err)
{
    const char *argv[16] = {
        "espalier-worker",  "--bench",           what,          "--model",
        b->ask.where.model, "--die-with-parent", "--log-level", log_level(b->ask.verbose)};
    size_t n = 8;
    char path[4096], memory[24];
    int fds[2];
    esp_status st = esp_program_path(path, sizeof path, "espalier-worker", err);

    if (st)
        return st;
    if (device) {
        argv[n++] = "--device";
        argv[n++] = device;
    }
    if (b->ask.where.memory_mib) {
        snprintf(memory, sizeof memory, "%u", b->ask.where.memory_mib);
        argv[n++] = "--memory";
        argv[n++] = memory;
    }
    argv[n] = NULL;
    if (pipe(fds) != 0)
        return esp_fail(err, ESP_E_IO, "pipe: %s", strerror(errno));
    *pid = fork();
    if (*pid < 0) {
        esp_fail(err, ESP_E_IO, "fork: %s", strerror(errno));
        close(fds[0]);
        close(fds[1]);
        return ESP_E_IO;
    }
    if (*pid == 0) {
        if (dup2(fds[1], STDOUT_FILENO) >= 0) {
            close(fds[0]);
            close(fds[1]);
            execv(path, (char *const *)argv);
        }
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        _exit(127);
    }
    close(fds[1]);
    *fd = fds[0];
    return ESP_OK;
}

/* ---- progress ---- */

/* What the worker is at. */
struct progress {
    struct esp_term *term;
    char what[200], how_far[96];
    int64_t since_ms; /* what changed */
    int64_t told_ms;  /* a line was printed where no terminal is; 0: not yet of this */
};

static void take_progress(struct progress *p, const json_t *o)
{
    const char *name = json_string_value(json_object_get(o, "progress"));
    const double done = json_number_value(json_object_get(o, "done"));
    const double total = json_number_value(json_object_get(o, "total"));
    char what[sizeof p->what];

    snprintf(what, sizeof what, "%.0f of %.0f: %s", json_number_value(json_object_get(o, "part")),
             json_number_value(json_object_get(o, "parts")), name);
    if (strcmp(what, p->what) != 0) {
        memcpy(p->what, what, sizeof what);
        p->since_ms = esp_now_ms();
        p->told_ms = 0;
    }
    if (total <= 0)
        p->how_far[0] = '\0';
    else if (strstr(what, "bytes"))
        snprintf(p->how_far, sizeof p->how_far, ", %.0f %%, %s of %s", 100 * done / total,
                 esp_figure_bytes(done).s, esp_figure_bytes(total).s);
    else
        snprintf(p->how_far, sizeof p->how_far, ", %.0f of %.0f", done, total);
}

/* A terminal's line; else a line about what takes longer than a second, and another every ten. */
static void show_progress(struct progress *p)
{
    const int64_t now = esp_now_ms(), ms = now - p->since_ms;
    char seconds[32] = "";

    if (!p->what[0])
        return;
    if (ms >= PATIENCE_MS)
        snprintf(seconds, sizeof seconds, ", %.0f s", 1e-3 * (double)ms);
    if (p->term->progress) {
        esp_term_progress(p->term, "%s%s%s", p->what, p->how_far, seconds);
    } else if (p->told_ms ? now - p->told_ms >= REPEAT_MS : ms >= PATIENCE_MS) {
        esp_term_line(p->term, "%s%s%s", p->what, p->how_far, seconds);
        p->told_ms = now;
    }
}

static esp_status take_line(json_t **out, const char *line, size_t n, struct progress *progress,
                            struct esp_err *err)
{
    json_t *o = json_loadb(line, n, 0, NULL);

    if (!json_is_object(o)) {
        json_decref(o);
        return esp_fail(err, ESP_E_PROTO, "espalier-worker printed what is no JSON object: %.*s",
                        n < 80 ? (int)n : 80, line);
    }
    if (json_is_string(json_object_get(o, "progress"))) {
        take_progress(progress, o);
        show_progress(progress);
        json_decref(o);
    } else {
        json_decref(*out);
        *out = o;
    }
    return ESP_OK;
}

/* The worker's lines up to its end; the one that is no progress is the result. */
static esp_status listen(json_t **out, int fd, struct esp_term *term, struct esp_err *err)
{
    struct progress progress = {.term = term};
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    char *text = NULL;
    size_t n = 0, room = 0;
    ssize_t got = 1;
    esp_status st = ESP_OK;

    while (!st && got != 0) {
        char *end;

        if (poll(&wait, 1, TICK_MS) == 0) { /* nothing new, but it takes longer */
            show_progress(&progress);
            continue;
        }
        if (n == room) {
            char *more = realloc(text, room = room ? 2 * room : 4096);
            if (!more) {
                st = esp_fail(err, ESP_E_NOMEM, "results");
                break;
            }
            text = more;
        }
        got = read(fd, text + n, room - n);
        if (got < 0 && errno != EINTR)
            st = esp_fail(err, ESP_E_IO, "espalier-worker: %s", strerror(errno));
        n += got > 0 ? (size_t)got : 0;
        while (!st && (end = memchr(text, '\n', n))) {
            const size_t n_line = (size_t)(end - text);
            st = take_line(out, text, n_line, &progress, err);
            n -= n_line + 1;
            memmove(text, end + 1, n);
        }
    }
    free(text);
    return st;
}

/* ---- what the figures say ---- */

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static bool evaluate_kernels(json_t *phase, double read_rate, double flop_rate)
{
    const json_t *kernels = json_object_get(phase, "kernels");
    double total = 0;
    bool ok = true;
    size_t i;
    json_t *k;

    json_array_foreach(kernels, i, k) total += number(k, "seconds");
    json_array_foreach(kernels, i, k)
    {
        const double s = number(k, "seconds"), bytes = number(k, "bytes"), flop = number(k, "flop");
        SET(k, "share", esp_json_number(ratio(s, total)));
        SET(k, "read_rate", esp_json_number(ratio(bytes, s)));
        SET(k, "flop_rate", esp_json_number(ratio(flop, s)));
        SET(k, "roofline", esp_json_number(ratio(esp_bench_floor(bytes, flop, read_rate, flop_rate), s)));
    }
    return ok;
}

/* @param first  the time to the first token, to which this may add */
static esp_status evaluate_phase(json_t *phase, double read_rate, double flop_rate, double *first,
                                 struct esp_err *err)
{
    const char *name = json_string_value(json_object_get(phase, "phase"));
    const double bytes = number(phase, "bytes"), flop = number(phase, "flop");
    struct esp_bench_stats time;
    double units;
    bool ok = true;

    if (!name || !esp_bench_stats_of(&time, json_object_get(phase, "seconds")) || !(bytes > 0) || !(flop > 0))
        return esp_fail(err, ESP_E_PROTO, "espalier-worker left out what a phase took, or what it did");
    units = strcmp(name, "encode") == 0 ? 1 : number(phase, "rows");
    if (strcmp(name, "decode") != 0)
        *first += time.median;
    SET(phase, "time", esp_bench_stats_json(&time));
    SET(phase, "rate", esp_json_number(ratio(units, time.median)));
    SET(phase, "read_rate", esp_json_number(ratio(bytes, time.median)));
    SET(phase, "flop_rate", esp_json_number(ratio(flop, time.median)));
    SET(phase, "roofline",
        esp_json_number(ratio(esp_bench_floor(bytes, flop, read_rate, flop_rate), time.median)));
    ok = ok && evaluate_kernels(phase, read_rate, flop_rate);
    return ok ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "results");
}

esp_status esp_bench_evaluate(json_t *results, struct esp_err *err)
{
    const json_t *ceilings = json_object_get(results, "ceilings"),
                 *phases = json_object_get(results, "phases");
    const double read_rate = number(ceilings, "read_rate"), flop_rate = number(ceilings, "flop_rate");
    bool encode = false, prefill = false, ok = true;
    double first = 0;
    size_t i;
    json_t *p;

    if (!(read_rate > 0) || !(flop_rate > 0) || !json_is_array(phases))
        return esp_fail(err, ESP_E_PROTO, "espalier-worker left out the device's ceilings, or the phases");
    json_array_foreach(phases, i, p)
    {
        const char *name = json_string_value(json_object_get(p, "phase"));
        esp_status st = evaluate_phase(p, read_rate, flop_rate, &first, err);
        if (st)
            return st;
        encode |= strcmp(name, "encode") == 0;
        prefill |= strcmp(name, "prefill") == 0;
    }
    SET(results, "first_token", encode && prefill ? esp_json_number(first) : json_null());
    return ok ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "results");
}

esp_status esp_bench_device(json_t **out, struct esp_bench *b, const char *device, struct esp_err *err)
{
    char *what = what_of(b);
    pid_t pid = -1;
    int fd = -1, status = 0;
    json_t *results = NULL;
    esp_status st;

    *out = NULL;
    st = what ? start(&pid, &fd, b, device, what, err) : esp_fail(err, ESP_E_NOMEM, "what to run");
    if (st)
        goto done;
    st = listen(&results, fd, &b->ask.term, err);
    esp_term_clear(&b->ask.term);
    if (st)
        kill(pid, SIGTERM);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!st && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) /* it has said why */
        st = WIFSIGNALED(status)
                 ? esp_fail(err, ESP_E_CLOSED, "espalier-worker was ended by signal %d", WTERMSIG(status))
                 : esp_fail(err, ESP_E_DEVICE,
                            "device %s could not be measured, see above; "
                            "'espalier devices' lists what there is, --layers V/T runs a part of a model",
                            device ? device : "of the worker's choice");
    if (!st)
        st = results ? esp_bench_evaluate(results, err)
                     : esp_fail(err, ESP_E_PROTO, "espalier-worker printed no results");
done:
    if (fd >= 0)
        close(fd);
    free(what);
    if (st)
        json_decref(results);
    else
        *out = results;
    return st;
}
