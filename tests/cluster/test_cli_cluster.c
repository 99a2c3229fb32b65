/* `espalier cluster` against a coordinator that follows a script, in this process, over ipc://. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/cluster/cli_child.h"

#define TINY  "tests/golden/data/tiny"
#define SCENE TINY "/images/scene_a.png"

#define GIB (UINT64_C(1) << 30)
#define MIB (UINT64_C(1) << 20)

struct fake {
    char dir[32], endpoint[64];
    struct esp_net *net;
    struct script script;
    struct esp_peer client;
    const struct esp_msg_status *status; /* what is answered; its id is the query's. NULL: no answer */
    uint32_t n_queries;
    uint32_t deaf_after;            /* queries; 0: never */
    pid_t interrupted;              /* 0: nobody yet */
    char drained[ESP_MAX_NAME + 1]; /* the worker that a Drain named */
    void (*on_drain)(struct fake *f, uint64_t id);
};

static void tell(struct fake *f, struct esp_msg *msg)
{
    script_tell(&f->script, &f->client, msg);
}

static void heard(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    static struct esp_msg m;
    struct fake *f = s->self;

    f->client = *from;
    memset(&m, 0, sizeof m);
    if (msg->kind == ESP_MSG_STATUS_QUERY) {
        f->n_queries++;
        if (!f->status || (f->deaf_after > 0 && f->n_queries > f->deaf_after))
            return;
        m.kind = ESP_MSG_STATUS;
        m.status = *f->status;
        m.status.id = msg->status_query.id;
        tell(f, &m);
    } else if (msg->kind == ESP_MSG_DRAIN) {
        snprintf(f->drained, sizeof f->drained, "%s", msg->drain.worker);
        f->on_drain(f, msg->drain.id);
    } else {
        fail_msg("the command line sent a %s", esp_msg_name(msg->kind));
    }
}

static int fake_setup(void **state)
{
    static struct fake f;

    memset(&f, 0, sizeof f);
    script_open(&f.script, &f.net, f.dir, sizeof f.dir, f.endpoint, sizeof f.endpoint);
    f.script.self = &f;
    f.script.heard = heard;
    *state = &f;
    return 0;
}

static int fake_teardown(void **state)
{
    struct fake *f = *state;
    char path[64];

    script_close(&f->script, &f->net, f->dir);
    snprintf(path, sizeof path, "%s/up", f->dir); /* the file of an endpoint stays behind */
    unlink(path);
    return rmdir(f->dir);
}

/* espalier cluster --connect ..., and these. */
static void start(struct child *c, struct fake *f, const char *const *args, bool terminal)
{
    const char *all[32] = {"cluster", "--connect", f->endpoint};
    size_t n = 3;

    for (size_t i = 0; args[i]; i++)
        all[n++] = args[i];
    all[n] = NULL;
    if (terminal)
        child_start_on_terminal(c, ESPALIER, all);
    else
        child_start(c, ESPALIER, NULL, all);
}

static void run(struct child *c, struct fake *f, const char *const *args)
{
    start(c, f, args, false);
    child_wait(c, &f->script);
}

static json_t *parse(const char *text)
{
    json_error_t why;
    json_t *o = json_loads(text, 0, &why);
    if (!o)
        fail_msg("not JSON: %s\n%s", why.text, text);
    return o;
}

/* The value at a path of keys and indices, "workers.0.name". */
static json_t *at(json_t *o, const char *path)
{
    char copy[128], *rest = copy, *key;

    snprintf(copy, sizeof copy, "%s", path);
    while ((key = strsep(&rest, ".")) != NULL) {
        o = json_is_array(o) ? json_array_get(o, (size_t)atoi(key)) : json_object_get(o, key);
        if (!o)
            fail_msg("the JSON has no %s", path);
    }
    return o;
}

static void expect_int(json_t *o, const char *path, long long want)
{
    if (!json_is_integer(at(o, path)) || json_integer_value(at(o, path)) != want)
        fail_msg("%s is %lld, expected %lld", path, (long long)json_integer_value(at(o, path)), want);
}

static void expect_real(json_t *o, const char *path, double want)
{
    if (!json_is_real(at(o, path)) || json_real_value(at(o, path)) != want)
        fail_msg("%s is %.17g, expected %.17g", path, json_real_value(at(o, path)), want);
}

static void expect_text(json_t *o, const char *path, const char *want)
{
    if (!json_is_string(at(o, path)))
        fail_msg("%s is no string", path);
    assert_string_equal(json_string_value(at(o, path)), want);
}

/* ---- what there is to tell ---- */

static const struct esp_msg_device rtx = {.name = "RTX 3060",
                                          .driver = "NVIDIA 550.54",
                                          .variant = "plain",
                                          .type = 2,
                                          .memory_bytes = 12 * GIB,
                                          .max_alloc_bytes = 4 * GIB,
                                          .bandwidth = 3.5e11,
                                          .matmul_rate = 1.25e13};

/* Three workers whose chains run in opposite orders, one that loads, one that waits, one that cannot. */
static const struct esp_worker_status workers[] = {
    {.name = "attic",
     .state = "ready",
     .cause = "",
     .device = rtx,
     .stage = {.worker = "attic",
               .device = "RTX 3060",
               .driver = "NVIDIA 550.54",
               .variant = "plain",
               .enc_lo = 14,
               .enc_hi = 27,
               .dec_hi = 9,
               .weight_bytes = 3 * GIB / 2,
               .kv_bytes = 256 * MIB,
               .scratch_bytes = 64 * MIB},
     .done_bytes = 100,
     .total_bytes = 100,
     .predicted = {0.25, 0.5, 0.01},
     .measured = {0.3, 0.45, 0.0125},
     .rtt = 0.00034,
     .busy = 0.634,
     .n_queued = 3,
     .n_seqs = 8,
     .n_images = 5,
     .kv_used_blocks = 12,
     .kv_blocks = 512},
    {.name = "w10",
     .state = "loading",
     .cause = "",
     .device = rtx,
     .stage = {.worker = "w10", .enc_hi = 14, .dec_lo = 9, .dec_hi = 18},
     .done_bytes = 1,
     .total_bytes = 4,
     .predicted = {0.125, 0.75, 0.02},
     .streams = true},
    {.name = "w11", .state = "spare", .cause = "", .device = rtx, .stage = {.worker = ""}},
    {.name = "w12",
     .state = "failed",
     .cause = "vkAllocateMemory: 412 MiB: out of device memory",
     .device = rtx,
     .stage = {.worker = ""}},
};

static const struct esp_msg_status busy = {.epoch = 3,
                                           .ready = true,
                                           .n_sessions = 13,
                                           .n_queued = 4,
                                           .n_waiting = 2,
                                           .n_workers = 4,
                                           .workers = workers,
                                           .why = "",
                                           .doing = "moving layers of w9",
                                           .tokens_per_second = 41.25,
                                           .uptime = 8000,
                                           .n_tokens = 4122,
                                           .n_steps = 5121,
                                           .n_prefills = 130,
                                           .n_rebuilds = 3,
                                           .n_encodes = 44,
                                           .n_cached = 86,
                                           .n_losses = 1,
                                           .n_moves = 2,
                                           .kv_moved_bytes = 13107200,
                                           .n_requests = 131,
                                           .kv_blocks = 512,
                                           .kv_used_blocks = 128,
                                           .latency = 2.585,
                                           .bottleneck = 1.515,
                                           .fewer = 1,
                                           .fewer_latency = 2.1};

/* ---- status ---- */

static void test_status(void **state)
{
    static const char *const shown[] = {
        "ready, placement 3, up 2 h 13 min; now moving layers of w9\n",
        "sessions: 7 running, 4 queued, 2 waiting for room or workers; 41.2 tokens/s\n",
        "KV cache: 128 of 512 blocks reserved (25 %)\n",
        "131 requests, 4122 tokens, 5121 steps, 130 prefills, 44 pictures encoded and 86 from the cache\n",
        "1 stages lost, 3 sessions rebuilt, 2 placements carried on, 12.5 MiB of KV moved\n",
        "attic  ready     14-26    0-8        63 %      3    340 us  RTX 3060, NVIDIA 550.54\n",
        "w10    loading   0-13     9-17        0 %      0         -  RTX 3060, NVIDIA 550.54, weights over "
        "the "
        "wire, 25 % loaded\n",
        "w11    spare     -        -             -      0         -  RTX 3060, NVIDIA 550.54\n",
        "RTX 3060, NVIDIA 550.54: vkAllocateMemory: 412 MiB: out of device memory\n",
        "attic     1.5 GiB  256.0 MiB   64.0 MiB    1.8 GiB of 12.0 GiB        12/512         8        5\n",
    };
    struct fake *f = *state;
    struct child c;

    f->status = &busy;
    run(&c, f, (const char *[]){"status", NULL});
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++)
        child_expect(&c, "status", 0, NULL, shown[i]);
    assert_string_equal(ERR(&c), "");
    child_finish(&c);
}

static void test_status_json(void **state)
{
    struct fake *f = *state;
    struct child c;
    json_t *o;

    f->status = &busy;
    run(&c, f, (const char *[]){"status", "--json", NULL});
    child_expect(&c, "status --json", 0, NULL, NULL);
    o = parse(OUT(&c));
    assert_true(json_is_true(at(o, "ready")));
    expect_text(o, "why", "");
    expect_text(o, "doing", "moving layers of w9");
    expect_int(o, "epoch", 3);
    expect_int(o, "sessions", 13);
    expect_int(o, "queued", 4);
    expect_int(o, "waiting", 2);
    expect_real(o, "tokens_per_second", 41.25);
    expect_real(o, "uptime", 8000);
    expect_int(o, "tokens", 4122);
    expect_int(o, "steps", 5121);
    expect_int(o, "prefills", 130);
    expect_int(o, "rebuilds", 3);
    expect_int(o, "images_encoded", 44);
    expect_int(o, "images_cached", 86);
    expect_int(o, "losses", 1);
    expect_int(o, "moves", 2);
    expect_int(o, "kv_moved_bytes", 13107200);
    expect_int(o, "requests", 131);
    expect_int(o, "kv_blocks", 512);
    expect_int(o, "kv_used_blocks", 128);
    expect_real(o, "latency", 2.585);
    expect_real(o, "bottleneck", 1.515);
    expect_int(o, "fewer", 1);
    expect_real(o, "fewer_latency", 2.1);
    assert_int_equal(json_array_size(at(o, "workers")), 4);
    expect_text(o, "workers.0.worker", "attic");
    expect_text(o, "workers.0.state", "ready");
    expect_text(o, "workers.0.device", "RTX 3060");
    expect_text(o, "workers.0.driver", "NVIDIA 550.54");
    expect_text(o, "workers.0.variant", "plain");
    assert_true(json_is_null(at(o, "workers.0.cause")));
    expect_int(o, "workers.0.encoder.0", 14);
    expect_int(o, "workers.0.encoder.1", 27);
    expect_int(o, "workers.0.decoder.1", 9);
    expect_int(o, "workers.0.weight_bytes", 3 * (long long)GIB / 2);
    expect_int(o, "workers.0.memory_bytes", 12 * (long long)GIB);
    expect_real(o, "workers.0.bandwidth", 3.5e11);
    expect_real(o, "workers.0.matmul_rate", 1.25e13);
    expect_real(o, "workers.0.predicted.encode", 0.25);
    expect_real(o, "workers.0.measured.decode", 0.0125);
    expect_real(o, "workers.0.rtt", 0.00034);
    expect_real(o, "workers.0.busy", 0.634);
    expect_int(o, "workers.0.queued", 3);
    expect_int(o, "workers.0.sequences", 8);
    expect_int(o, "workers.0.images", 5);
    expect_int(o, "workers.0.kv_blocks", 512);
    expect_int(o, "workers.0.kv_used_blocks", 12);
    assert_true(json_is_false(at(o, "workers.0.streams")));
    assert_true(json_is_true(at(o, "workers.1.streams")));
    expect_int(o, "workers.1.done_bytes", 1);
    expect_int(o, "workers.1.total_bytes", 4);
    assert_true(json_is_null(at(o, "workers.1.measured.encode"))); /* nothing is known, which is not 0 */
    assert_true(json_is_null(at(o, "workers.1.rtt")));
    expect_text(o, "workers.3.cause", "vkAllocateMemory: 412 MiB: out of device memory");
    json_decref(o);
    child_finish(&c);
}

/* What no cluster says, but a broken coordinator might. */
static void test_status_odd(void **state)
{
    struct esp_worker_status w = workers[0];
    struct esp_msg_status s = busy;
    struct fake *f = *state;
    struct child c;

    s = (struct esp_msg_status){.epoch = 0, .why = "waiting for workers: 0 of 2 are here"};
    f->status = &s;
    run(&c, f, (const char *[]){"status", NULL});
    child_expect(&c, "nobody", 0, NULL,
                 "not ready: waiting for workers: 0 of 2 are here, placement 0, up -\n");
    assert_null(strstr(OUT(&c), "worker state"));
    child_finish(&c);

    s = busy;
    s.n_sessions = 1; /* fewer than wait */
    s.n_queued = s.n_waiting = UINT32_MAX;
    s.uptime = 1e300;
    s.tokens_per_second = 1e300;
    s.kv_used_blocks = s.kv_moved_bytes = s.n_tokens = UINT64_MAX;
    s.kv_blocks = 1;
    s.n_workers = 1;
    s.workers = &w;
    w.busy = 1e300;
    w.rtt = 1e-300;
    w.kv_used_blocks = UINT64_MAX;
    w.stage.weight_bytes = w.stage.kv_bytes = w.stage.scratch_bytes = UINT64_MAX;
    run(&c, f, (const char *[]){"status", NULL});
    child_expect(&c, "huge", 0, NULL, "sessions: 0 running, 4294967295 queued");
    child_expect(&c, "huge", 0, NULL, "16.0 EiB");
    child_finish(&c);
    run(&c, f, (const char *[]){"status", "--json", NULL});
    child_expect(&c, "huge", 0, NULL, NULL);
    json_decref(parse(OUT(&c)));
    child_finish(&c);
    run(&c, f, (const char *[]){"placement", NULL});
    child_expect(&c, "huge", 0, NULL, "placement 3, ready\n");
    child_finish(&c);
}

/* Once: a second signal would end it at once. */
static void interrupt(struct fake *f, struct child *c)
{
    if (f->interrupted != c->pid)
        kill(c->pid, SIGINT);
    f->interrupted = c->pid;
}

static void stop_after_two(struct script *s, struct child *c)
{
    const char *first = strstr(OUT(c), "placement 3");

    if (first && strstr(first + 1, "placement 3"))
        interrupt(s->self, c);
}

static void test_watch(void **state)
{
    struct fake *f = *state;
    struct child c;
    char *line;
    unsigned n = 0;

    f->status = &busy;
    f->script.printed = stop_after_two;
    run(&c, f, (const char *[]){"status", "--watch", "1", NULL});
    child_expect(&c, "watch", 0, NULL, "0        0\n\nready, placement 3"); /* a block each time */
    assert_null(strchr(OUT(&c), '\033'));
    child_finish(&c);

    f->script.printed = NULL;
    start(&c, f, (const char *[]){"status", "--json", "-w1", NULL}, false);
    while (f->n_queries < 5) {
        esp_link_wait(&(struct esp_wait){.link = f->script.link, .fd = -1}, 1, 50, NULL);
        for (;;) {
            struct esp_peer from;
            struct esp_msg msg;
            if (esp_link_recv(f->script.link, &from, &msg, NULL))
                break;
            heard(&f->script, &c, &from, &msg);
            esp_msg_finish(&msg);
        }
    }
    kill(c.pid, SIGINT);
    child_wait(&c, &f->script);
    assert_int_equal(c.exit, 0);
    for (line = strtok(OUT(&c), "\n"); line; line = strtok(NULL, "\n"), n++)
        json_decref(parse(line)); /* one whole object a line */
    assert_true(n >= 2);
    child_finish(&c);
}

static void stop_after_redraw(struct script *s, struct child *c)
{
    const char *first = strstr(ERR(c), "\033[H");

    if (first && strstr(first + 1, "\033[J"))
        interrupt(s->self, c);
}

static void test_watch_on_terminal(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->status = &busy;
    f->script.printed = stop_after_redraw;
    start(&c, f, (const char *[]){"status", "--watch=1", NULL}, true);
    child_wait(&c, &f->script);
    child_expect(&c, "watch", 0, "\033[Hready, placement 3", NULL);
    child_expect(&c, "watch", 0, "\033[K\r\n", NULL);
    child_finish(&c);
}

static void stop_when_missed(struct script *s, struct child *c)
{
    if (strstr(ERR(c), "nothing answers there"))
        interrupt(s->self, c);
}

/* A coordinator that goes away is waited for, once it has been there; one that never was is an error. */
static void test_watch_survives(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->status = &busy;
    f->deaf_after = 1;
    f->script.printed = stop_when_missed;
    run(&c, f, (const char *[]){"status", "--watch", "1", "--timeout", "1", NULL});
    child_expect(&c, "watch", 0, "nothing answers there", "placement 3");
    child_finish(&c);
    f->script.printed = NULL;
    run(&c, f, (const char *[]){"status", "--watch", "1", "--timeout", "1", NULL});
    child_expect(&c, "watch nobody", 1, "nothing answers there", NULL);
    assert_string_equal(OUT(&c), "");
    child_finish(&c);
}

/* ---- placement ---- */

static void test_placement(void **state)
{
    static const char *const shown[] = {
        "placement 3, ready\n",
        "encoder   worker layers       picture    measured\n"
        "1         w10    0-13          125 ms           - \n"
        "2         attic  14-26         250 ms*     300 ms*\n"
        "                 all           375 ms           -\n",
        "decoder   worker layers       prefill    measured       token    measured\n"
        "1         attic  0-8           500 ms      450 ms*      10 ms     12.5 ms*\n"
        "2         w10    9-17          750 ms*          -       20 ms*          - \n"
        "                 all           1.25 s           -       30 ms           -\n",
        "is predicted to take 2.58 s.\n",
        "The busiest stage is w10 with 1.51 s of it",
        "1 worker alone would answer it faster, in 2.10 s. For many requests at once these 2 do more.\n",
        "Spare: w11\n",
    };
    struct fake *f = *state;
    struct child c;
    json_t *o;

    f->status = &busy;
    run(&c, f, (const char *[]){"placement", NULL});
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++)
        child_expect(&c, "placement", 0, NULL, shown[i]);
    child_finish(&c);

    run(&c, f, (const char *[]){"--json", "placement", NULL});
    child_expect(&c, "placement --json", 0, NULL, NULL);
    o = parse(OUT(&c));
    expect_int(o, "epoch", 3);
    assert_int_equal(json_array_size(at(o, "encoder")), 2);
    expect_text(o, "encoder.0.worker", "w10");
    expect_int(o, "encoder.0.layers.0", 0);
    expect_int(o, "encoder.0.layers.1", 14);
    expect_real(o, "encoder.0.encode", 0.125);
    assert_true(json_is_null(at(o, "encoder.0.encode_measured")));
    expect_real(o, "encoder.1.encode_measured", 0.3);
    expect_text(o, "decoder.0.worker", "attic");
    expect_real(o, "decoder.0.prefill", 0.5);
    expect_real(o, "decoder.0.prefill_measured", 0.45);
    expect_real(o, "decoder.0.decode", 0.01);
    expect_real(o, "decoder.0.decode_measured", 0.0125);
    expect_text(o, "decoder.1.worker", "w10");
    expect_text(o, "busiest", "w10");
    expect_real(o, "bottleneck", 1.515);
    expect_int(o, "fewer", 1);
    json_decref(o);
    child_finish(&c);
}

static void test_placement_of_none(void **state)
{
    const struct esp_msg_status s = {.why = "waiting for workers: none is left"};
    struct fake *f = *state;
    struct child c;

    f->status = &s;
    run(&c, f, (const char *[]){"placement", NULL});
    child_expect(&c, "no placement", 1,
                 "espalier cluster placement: there is no placement: waiting for workers: none is left",
                 NULL);
    assert_string_equal(OUT(&c), "");
    child_finish(&c);
}

/* ---- drain ---- */

static void tell_waiting(struct fake *f, uint64_t id, const char *what, uint64_t done, uint64_t total)
{
    static struct esp_msg m = {.kind = ESP_MSG_WAITING};
    m.waiting = (struct esp_msg_waiting){.session = id, .what = what, .done = done, .total = total};
    tell(f, &m);
}

static void drain_well(struct fake *f, uint64_t id)
{
    static struct esp_msg m = {.kind = ESP_MSG_DRAINED};

    tell_waiting(f, id, "loading layers of attic elsewhere", 3, 9);
    tell_waiting(f, id + 1, "of somebody else", 0, 0);
    m.drained = (struct esp_msg_drained){.id = id + 1, .worker = "somebody_else"};
    tell(f, &m);
    tell_waiting(f, id, "moving", 0, 0);
    m.drained = (struct esp_msg_drained){.id = id,
                                         .worker = "attic",
                                         .epoch = 4,
                                         .n_layers = 22,
                                         .kv_bytes = 13107200,
                                         .n_images = 3,
                                         .seconds = 4.5,
                                         .pause = 0.25};
    tell(f, &m);
}

static void drain_not(struct fake *f, uint64_t id)
{
    static struct esp_msg m = {.kind = ESP_MSG_ERROR};

    m.error = (struct esp_msg_error){
        .code = ESP_E_NOMEM, .text = "without attic the model does not fit: w10 1.0 GiB", .session = id};
    tell(f, &m);
}

static void drain_idle(struct fake *f, uint64_t id)
{
    static struct esp_msg m = {.kind = ESP_MSG_DRAINED};

    m.drained = (struct esp_msg_drained){.id = id, .worker = "w11", .epoch = 3};
    tell(f, &m);
}

static void test_drain(void **state)
{
    struct fake *f = *state;
    struct child c;
    json_t *o;

    f->status = &busy;
    f->on_drain = drain_well;
    run(&c, f, (const char *[]){"drain", "attic", NULL});
    assert_string_equal(f->drained, "attic");
    child_expect(&c, "drain", 0, NULL,
                 "attic gave away 22 layers, 12.5 MiB of KV cache and the features of 3 pictures in 4.50 s;\n"
                 "no step went out for 250 ms. Placement 4 does without it.\n");
    assert_string_equal(ERR(&c), ""); /* progress is for terminals */
    child_finish(&c);

    start(&c, f, (const char *[]){"drain", "attic", NULL}, true);
    child_wait(&c, &f->script);
    child_expect(&c, "drain on a terminal", 0, "loading layers of attic elsewhere: 3 of 9", NULL);
    child_finish(&c);

    run(&c, f, (const char *[]){"drain", "attic", "--json", NULL});
    child_expect(&c, "drain --json", 0, NULL, NULL);
    o = parse(OUT(&c));
    expect_text(o, "worker", "attic");
    expect_int(o, "epoch", 4);
    expect_int(o, "layers", 22);
    expect_int(o, "kv_bytes", 13107200);
    expect_int(o, "images", 3);
    expect_real(o, "seconds", 4.5);
    expect_real(o, "pause", 0.25);
    json_decref(o);
    child_finish(&c);

    f->on_drain = drain_idle;
    run(&c, f, (const char *[]){"drain", "w11", NULL});
    child_expect(&c, "drain a spare", 0, NULL, "w11 had no layers to give away.\n");
    child_finish(&c);

    f->on_drain = drain_not;
    run(&c, f, (const char *[]){"drain", "attic", NULL});
    child_expect(&c, "no room", 1,
                 "espalier cluster drain: without attic the model does not fit: w10 1.0 GiB\n", NULL);
    assert_string_equal(OUT(&c), "");
    child_finish(&c);
}

/* ---- a coordinator that was started again, and forgot ---- */

static void drain_silently(struct fake *f, uint64_t id)
{
    static struct esp_msg_status young;

    young = busy;
    young.uptime = 1;
    f->status = &young;
}

static void test_restarted(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->status = &busy;
    f->on_drain = drain_silently;
    run(&c, f, (const char *[]){"drain", "attic", NULL});
    child_expect(&c, "restarted", 1, "was restarted, and knows nothing of this any more", NULL);
    child_finish(&c);
}

/* ---- a real cluster ---- */

static json_t *ask_for_json(struct child *c, const char *at_endpoint, const char *what, const char *node)
{
    child_run(c, ESPALIER, (const char *[]){"cluster", what, "--connect", at_endpoint, "--json", node, NULL});
    child_expect(c, what, 0, NULL, NULL);
    return parse(OUT(c));
}

/* Two workers that answered something: what it took is known, and the one goes when the other has its layers. */
static void test_real(void **state)
{
    struct fake *f = *state;
    struct child up, c;
    json_t *o;
    char bind[96];

    snprintf(bind, sizeof bind, "ipc://%s/up", f->dir);
    setenv("XDG_RUNTIME_DIR", f->dir, 1);
    child_start(&up, ESPALIER, NULL,
                (const char *[]){"up", "--model", TINY, "--workers", "2", "--split", "1/1,1/2", "--bind",
                                 bind, NULL});
    child_wait_for(&up, 0, "ready: ");
    child_run(&c, ESPALIER,
              (const char *[]){"run", "--connect", bind, "--image", SCENE, "--max-tokens", "8",
                               "--ignore-eos", "caption en", NULL});
    child_expect(&c, "run", 0, NULL, NULL);
    child_finish(&c);

    o = ask_for_json(&c, bind, "status", NULL);
    assert_true(json_is_true(at(o, "ready")));
    expect_int(o, "requests", 1);
    expect_int(o, "tokens", 8);
    expect_int(o, "images_encoded", 1);
    expect_int(o, "losses", 0);
    for (int i = 0; i < 2; i++) {
        static const char *const positive[] = {"predicted.encode", "measured.encode", "measured.prefill",
                                               "measured.decode", "bandwidth"};
        char path[64];

        for (size_t k = 0; k < sizeof positive / sizeof positive[0]; k++) {
            snprintf(path, sizeof path, "workers.%d.%s", i, positive[k]);
            if (!(json_real_value(at(o, path)) > 0))
                fail_msg("%s is not positive:\n%s", path, OUT(&c));
        }
        snprintf(path, sizeof path, "workers.%d.weight_bytes", i);
        assert_true(json_integer_value(at(o, path)) > 1000000);
    }
    json_decref(o);
    child_finish(&c);

    o = ask_for_json(&c, bind, "placement", NULL);
    expect_text(o, "encoder.0.worker", "w0");
    expect_text(o, "encoder.1.worker", "w1");
    expect_text(o, "decoder.1.worker", "w1");
    expect_int(o, "decoder.1.layers.0", 1);
    expect_int(o, "decoder.1.layers.1", 3);
    json_decref(o);
    child_finish(&c);

    kill(up.pid, SIGINT);
    child_wait(&up, NULL);
    assert_int_equal(up.exit, 0);
    child_finish(&up);
    child_no_daemons(f->dir);
}

static void test_real_drain(void **state)
{
    struct fake *f = *state;
    struct child up, c;
    json_t *o;
    char bind[96];

    snprintf(bind, sizeof bind, "ipc://%s/up", f->dir);
    setenv("XDG_RUNTIME_DIR", f->dir, 1);
    child_start(&up, ESPALIER, NULL,
                (const char *[]){"up", "--model", TINY, "--workers", "2", "--bind", bind, NULL});
    child_wait_for(&up, 0, "ready: ");
    o = ask_for_json(&c, bind, "drain", "w1");
    expect_text(o, "worker", "w1");
    assert_true(json_integer_value(at(o, "epoch")) >= 1);
    json_decref(o);
    child_finish(&c);
    child_wait_for(&up, 1, "w1 ended"); /* it was told to go */
    o = ask_for_json(&c, bind, "status", NULL);
    assert_int_equal(json_array_size(at(o, "workers")), 1);
    expect_text(o, "workers.0.worker", "w0");
    expect_int(o, "losses", 0);
    json_decref(o);
    child_finish(&c);
    child_run(&c, ESPALIER, (const char *[]){"cluster", "drain", "--connect", bind, "w1", NULL});
    child_expect(&c, "nobody", 1, "espalier cluster drain: no worker is named w1; here are: w0", NULL);
    child_finish(&c);
    child_run(&c, ESPALIER, (const char *[]){"cluster", "drain", "--connect", bind, "w0", NULL});
    child_expect(&c, "the last one", 1, "espalier cluster drain: without w0: ", NULL);
    child_finish(&c);

    kill(up.pid, SIGINT);
    child_wait(&up, NULL);
    assert_int_equal(up.exit, 0);
    child_finish(&up);
    child_no_daemons(f->dir);
}

/* ---- usage ---- */

static void test_usage(void **state)
{
    static const struct {
        const char *args[8];
        const char *err;
    } cases[] = {
        {{"cluster", NULL}, "expected 'status', 'placement' or 'drain NODE'"},
        {{"cluster", "explode", NULL}, "not explode"},
        {{"cluster", "status", "now", NULL}, "'now' is one argument too many"},
        {{"cluster", "drain", NULL}, "drain whom?"},
        {{"cluster", "drain", "", NULL}, "a worker's name has 1 to 63 bytes"},
        {{"cluster", "drain", "a", "b", NULL}, "'b' is one argument too many"},
        {{"cluster", "placement", "--watch", NULL}, "--watch goes with status"},
        {{"cluster", "status", "--watch", "0", NULL}, "--watch 0: expected a whole number from 1 to 86400"},
        {{"cluster", "status", "--watch=", NULL}, "--watch : expected"},
        {{"cluster", "status", "--timeout", "0", NULL}, "--timeout 0"},
    };
    struct child c;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        child_run(&c, ESPALIER, cases[i].args);
        child_expect(&c, cases[i].err, 2, cases[i].err, NULL);
        assert_string_equal(OUT(&c), "");
        child_finish(&c);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, fake_setup, fake_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_status),
        TEST(test_status_json),
        TEST(test_status_odd),
        TEST(test_watch),
        TEST(test_watch_on_terminal),
        TEST(test_watch_survives),
        TEST(test_placement),
        TEST(test_placement_of_none),
        TEST(test_drain),
        TEST(test_restarted),
        TEST(test_real),
        TEST(test_real_drain),
        cmocka_unit_test(test_usage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
