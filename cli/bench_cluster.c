/*
 * A cluster, as its clients see it: one request alone, again and again, each with a picture of its own so that nothing is
 * remembered; then many sessions about one picture, which is encoded once, until each has had so many tokens while all of
 * them decode. What stages computed and what came over the wire is told by the cluster itself (Done).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/report_json.h"
#include "cli/signals.h"
#include "picture/png_write.h"
#include "proto/clock.h"

#define PICTURE_PX 448 /* a side; the coordinator resizes */
#define KV_BLOCK   32
#define NEXT_MS    500 /* between looks at how far it is */

struct run;

/* A request under way, and when its tokens came. */
struct session {
    struct run *run;
    struct esp_asking *asking;
    struct esp_msg request;
    double begun;
    double *at; /* seconds; room for max_tokens */
    uint32_t n; /* tokens so far */
    bool ended;
};

/* Some sessions at once. */
struct run {
    struct esp_bench *bench;
    uint32_t n, n_first,
        n_enough; /* sessions; those that have a token; those that have had their steps since all do */
    bool to_the_end;
    double all_began, over; /* the time in which all decode; 0: not yet */
    struct session *s;
};

struct cluster {
    struct esp_bench *bench;
    char *prompt;
    uint32_t n_picture;
    json_t *request[4]; /* first_token, encode, prefill, bytes: a number for each repeat */
    json_t *decode, *stages, *hop;
    double load;
    uint32_t image_tokens, prefix;
};

/* ---- sessions ---- */

static esp_status on_token(void *self, const struct esp_msg_token *token, struct esp_err *err)
{
    struct session *s = self;
    struct run *run = s->run;
    const double t = esp_now_seconds();
    uint32_t since = 0;

    (void)token;
    if (s->n == s->request.request.max_tokens)
        return esp_fail(err, ESP_E_PROTO, "more tokens than were asked for");
    s->at[s->n++] = t;
    if (s->n == 1 && ++run->n_first == run->n)
        run->all_began = t;
    if (run->all_began == 0 || run->to_the_end)
        return ESP_OK;
    for (uint32_t i = s->n; i-- > 0 && s->at[i] > run->all_began;)
        since++;
    run->n_enough += since == run->bench->steps;
    if (run->n_enough < run->n)
        return ESP_OK;
    if (run->over == 0)
        run->over = t;
    return esp_fail(err, ESP_E_CANCELLED, "enough"); /* which ends it */
}

/* A picture of noise, as a file: another one for each number. */
static esp_status picture(uint8_t **out, size_t *n_bytes, uint32_t number, struct esp_err *err)
{
    const size_t n = (size_t)PICTURE_PX * PICTURE_PX * 3;
    uint8_t *rgb = malloc(n);
    uint64_t x = 0x9e3779b97f4a7c15 * ((uint64_t)number + 1);
    esp_status st;

    *out = NULL;
    if (!rgb)
        return esp_fail(err, ESP_E_NOMEM, "a picture");
    for (size_t i = 0; i < n; i++) { /* xorshift64 */
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        rgb[i] = (uint8_t)(x >> 40);
    }
    st = esp_png_encode(out, n_bytes, rgb, PICTURE_PX, PICTURE_PX, 3, err);
    free(rgb);
    return st;
}

static void fill_request(const struct cluster *c, struct esp_msg *msg, const void *png, size_t n_png,
                         uint32_t max_tokens)
{
    static const char *const names[] = {"noise"};

    memset(msg, 0, sizeof *msg);
    msg->kind = ESP_MSG_REQUEST;
    msg->request = (struct esp_msg_request){.prompt = c->prompt,
                                            .max_tokens = max_tokens,
                                            .sampling = {.ignore_eos = true},
                                            .suffix = "",
                                            .n_images = 1,
                                            .image_names = names};
    msg->n_blobs = 1;
    msg->blob[0] = (struct esp_blob){.data = png, .n_bytes = n_png};
}

static void progress(const struct run *run, const char *what)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < run->n; i++)
        n += run->s[i].n;
    if (n > 0) /* before that, what the cluster says is better */
        esp_term_progress(&run->bench->ask.term, "%s: %u tokens", what, n);
}

static void on_waiting(void *self, const struct esp_msg_waiting *waiting)
{
    struct session *s = self;

    esp_ask_waiting(&s->run->bench->ask, waiting);
}

/* Waits for all to end. *out: the only one's reply; NULL: not wanted. */
static esp_status run_wait(struct run *run, const char *what, struct esp_reply *out, struct esp_err *err)
{
    uint32_t n_left = run->n;
    esp_status st = ESP_OK;

    while (!st && n_left > 0) {
        struct esp_asking *ask = NULL;
        struct esp_reply reply;
        struct esp_err why = {0};
        struct session *s = NULL;

        st = esp_client_next(&ask, run->bench->ask.client, NEXT_MS, err);
        progress(run, what);
        if (st || !ask)
            continue;
        for (uint32_t i = 0; i < run->n; i++)
            if (run->s[i].asking == ask)
                s = &run->s[i];
        n_left--;
        st = esp_client_take(&reply, &ask, &why);
        if (s) {
            s->asking = NULL;
            s->ended = true;
        }
        if (!st && run->all_began > 0 &&
            run->over == 0) /* one has no tokens left: from here on fewer decode */
            run->over = esp_now_seconds();
        if (!st && out)
            *out = reply;
        else if (!st)
            esp_reply_finish(&reply);
        else if (why.code == ESP_E_CANCELLED && !esp_signals_stop() && run->over > 0)
            st = ESP_OK; /* we did that */
        else if (err)
            *err = why;
    }
    return st;
}

/* @param out  as of run_wait */
static esp_status run_sessions(struct cluster *c, struct run *run, uint32_t n, uint32_t number,
                               uint32_t max_tokens, const char *what, struct esp_reply *out,
                               struct esp_err *err)
{
    const struct esp_client_hooks hooks = {.token = on_token, .waiting = on_waiting};
    uint8_t *png = NULL;
    size_t n_png = 0;
    esp_status st = picture(&png, &n_png, number, err);

    *run = (struct run){.bench = c->bench, .n = n, .to_the_end = out != NULL};
    run->s = calloc(n, sizeof *run->s);
    if (!st && !run->s)
        st = esp_fail(err, ESP_E_NOMEM, "%u sessions", n);
    for (uint32_t i = 0; !st && i < n; i++) {
        struct session *s = &run->s[i];
        struct esp_client_hooks h = hooks;

        s->run = run;
        s->at = calloc(max_tokens, sizeof *s->at);
        h.self = s;
        fill_request(c, &s->request, png, n_png, max_tokens);
        s->begun = esp_now_seconds();
        st = s->at ? esp_client_begin(&s->asking, c->bench->ask.client, &s->request, &h, err)
                   : esp_fail(err, ESP_E_NOMEM, "%u sessions", n);
    }
    if (!st)
        st = run_wait(run, what, out, err);
    if (st)
        esp_client_give_up(c->bench->ask.client); /* nothing refers to what is freed now */
    free(png);
    return st;
}

static void run_finish(struct run *run)
{
    for (uint32_t i = 0; run->s && i < run->n; i++)
        free(run->s[i].at);
    free(run->s);
    run->s = NULL;
}

/* ---- one request alone ---- */

static uint64_t received(uint32_t n, const struct esp_stage_time *times)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += times[i].received_bytes;
    return sum;
}

static esp_status measure_request(struct cluster *c, bool keep, struct esp_err *err)
{
    struct esp_reply reply = {0};
    struct run run;
    esp_status st = run_sessions(c, &run, 1, c->n_picture++, 1, "one request alone", &reply, err);

    if (!st) {
        const struct esp_msg_done *d = &reply.done->done;
        const double v[4] = {run.s[0].at[0] - run.s[0].begun, d->encode, d->prefill,
                             (double)received(d->n_times, d->times)};

        if (d->load > c->load)
            c->load = d->load;
        c->image_tokens = reply.accepted->accepted.image_tokens;
        c->prefix = c->image_tokens + reply.accepted->accepted.n_prompt_ids;
        for (size_t i = 0; keep && !st && i < 4; i++)
            if (json_array_append_new(c->request[i], json_real(v[i])) != 0)
                st = esp_fail(err, ESP_E_NOMEM, "results");
    }
    esp_reply_finish(&reply);
    run_finish(&run);
    return st;
}

/* ---- decoding ---- */

/* Gaps between tokens while all decoded; NULL without memory. */
static json_t *gaps(const struct run *run, uint32_t *n_tokens)
{
    json_t *list = json_array();
    bool ok = list != NULL;

    *n_tokens = 0;
    for (uint32_t i = 0; ok && i < run->n; i++) {
        const struct session *s = &run->s[i];
        for (uint32_t k = 1; ok && k < s->n; k++) {
            if (s->at[k] <= run->all_began || s->at[k] > run->over)
                continue;
            ++*n_tokens;
            ok = json_array_append_new(list, json_real(s->at[k] - s->at[k - 1])) == 0;
        }
    }
    if (ok)
        return list;
    json_decref(list);
    return NULL;
}

static esp_status add_decode(struct cluster *c, const struct run *run, struct esp_err *err)
{
    struct esp_bench_stats time;
    json_t *o = json_object();
    uint32_t n_tokens;
    json_t *list = gaps(run, &n_tokens);
    bool ok = o && list;

    if (ok && (n_tokens == 0 || !esp_bench_stats_of(&time, list))) {
        json_decref(o);
        json_decref(list);
        return esp_fail(
            err, ESP_E_LIMIT,
            "%u sessions never decoded at once: the cluster has no room for so many, or --steps is too few",
            run->n);
    }
    SET(o, "batch", json_integer(run->n));
    SET(o, "tokens", json_integer(n_tokens));
    if (ok) {
        SET(o, "interval", esp_bench_stats_json(&time));
        SET(o, "tokens_per_second", esp_json_number(n_tokens / (run->over - run->all_began)));
    }
    SET(o, "intervals", list);
    if (json_array_append_new(c->decode, o) != 0 || !ok)
        return esp_fail(err, ESP_E_NOMEM, "results");
    return ESP_OK;
}

/* What one session's decoding steps were made of: stages, and the rest, which is hops. */
static esp_status add_hop(struct cluster *c, const struct esp_reply *reply, struct esp_err *err)
{
    const struct esp_msg_done *d = &reply->done->done;
    const struct esp_msg_accepted *a = &reply->accepted->accepted;
    /* by the coordinator's clock, from the first result to the last: a client that is late to look adds nothing */
    const double n = d->decode_steps, span = d->decode;
    double compute = 0, queue = 0, hops = 1;
    bool ok = true;

    if (n == 0)
        return esp_fail(err, ESP_E_PROTO, "the cluster tells of no decoding steps");
    for (uint32_t i = 0; i < d->n_decode_times; i++) {
        compute += d->decode_times[i].compute_seconds / n;
        queue += d->decode_times[i].queue_seconds / n;
    }
    for (uint32_t i = 0; i < a->n_stages; i++) {
        json_t *o = json_object();
        ok = ok && o && esp_json_set_stage(o, &a->stages[i]);
        hops += a->stages[i].dec_lo < a->stages[i].dec_hi;
        for (uint32_t k = 0; ok && k < d->n_decode_times; k++) {
            if (strcmp(d->decode_times[k].worker, a->stages[i].worker) != 0)
                continue;
            SET(o, "decode_compute", esp_json_number(d->decode_times[k].compute_seconds / n));
            SET(o, "decode_bytes", esp_json_number((double)d->decode_times[k].received_bytes / n));
        }
        ok &= json_array_append_new(c->stages, o) == 0;
    }
    c->hop = json_object();
    SET(c->hop, "steps", json_integer(d->decode_steps));
    SET(c->hop, "token", esp_json_number(span / n));
    SET(c->hop, "compute", esp_json_number(compute));
    SET(c->hop, "queue", esp_json_number(queue));
    SET(c->hop, "hops", json_integer((json_int_t)hops));
    SET(c->hop, "seconds", esp_json_number((span / n - compute) / hops));
    SET(c->hop, "bytes",
        esp_json_number((double)(received(d->n_decode_times, d->decode_times) + d->result_bytes) / n));
    SET(c->hop, "result_bytes", esp_json_number((double)d->result_bytes / n));
    return ok ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "results");
}

/* Tokens that a session may need until the last of n has begun and all have had their steps. */
static uint32_t most_tokens(const struct esp_bench *b, uint32_t n)
{
    return n == 1 ? b->steps + 1 : 2 * b->steps + 4 * n;
}

static esp_status measure_decode(struct cluster *c, uint32_t n, struct esp_err *err)
{
    struct esp_reply reply = {0};
    struct run run;
    char what[48];
    esp_status st;

    snprintf(what, sizeof what, "decode, %u at once", n);
    st = run_sessions(c, &run, n, 0, most_tokens(c->bench, n), what, n == 1 ? &reply : NULL, err);
    if (!st && n == 1)
        run.over = run.s[0].at[run.s[0].n - 1];
    if (!st)
        st = add_decode(c, &run, err);
    if (!st && n == 1 && !c->hop)
        st = add_hop(c, &reply, err);
    if (n == 1)
        esp_reply_finish(&reply);
    run_finish(&run);
    return st;
}

/* ---- the whole ---- */

static esp_status open_cluster(struct cluster *c, struct esp_err *err)
{
    struct esp_bench *b = c->bench;
    uint32_t most = 1;
    struct esp_msg request;

    c->prompt = malloc((size_t)b->prompt + 1);
    if (!c->prompt)
        return esp_fail(err, ESP_E_NOMEM, "a prompt of %u bytes", b->prompt);
    for (uint32_t i = 0; i < b->prompt; i++)
        c->prompt[i] = (char)('a' + i % 26);
    c->prompt[b->prompt] = '\0';
    for (uint32_t i = 0; b->decode && i < b->batch.n; i++)
        most = b->batch.at[i] > most ? b->batch.at[i] : most;
    b->ask.at_once = most;
    fill_request(c, &request, "", 0, most_tokens(b, most));
    if (!b->ask.where.connect && b->ask.where.kv_tokens == 0) {
        struct esp_config config;
        esp_status st = esp_ask_check_model("--model", b->ask.where.model, &config, err);
        if (st)
            return st;
        /* each session has a prefix of its own here, and blocks that are not full */
        b->ask.where.kv_tokens =
            most * (config.vision.n_token + b->prompt + 4 + request.request.max_tokens + KV_BLOCK);
        if (b->ask.where.kv_tokens < 4096)
            b->ask.where.kv_tokens = 4096;
    }
    return esp_ask_connect(&b->ask, &request.request, err);
}

static esp_status measure(struct cluster *c, struct esp_err *err)
{
    struct esp_bench *b = c->bench;
    esp_status st = open_cluster(c, err);

    for (uint32_t i = 0; !st && i < b->warm_up + 1; i++) /* the first one waits for the weights */
        st = measure_request(c, false, err);
    for (uint32_t i = 0; !st && (b->encode || b->prefill) && i < b->repeats; i++)
        st = measure_request(c, true, err);
    for (uint32_t i = 0; !st && b->decode && i < b->batch.n; i++)
        st = measure_decode(c, b->batch.at[i], err);
    return st;
}

static json_t *stats_of(const json_t *list)
{
    struct esp_bench_stats s;

    esp_bench_stats_of(&s, list); /* zeros where nothing was measured */
    return esp_bench_stats_json(&s);
}

static esp_status hand_over(json_t **out, struct cluster *c, struct esp_err *err)
{
    static const char *const keys[] = {"first_token", "encode", "prefill", "bytes"};
    const struct esp_where *w = &c->bench->ask.where;
    json_t *o = json_object(), *request = json_object();
    bool ok = o && request;

    for (size_t i = 0; i < 4; i++)
        SET(request, keys[i], stats_of(c->request[i]));
    SET(o, "model", json_string(w->connect ? w->connect : w->model));
    SET(o, "weights", w->connect ? json_null() : json_string(w->weights ? w->weights : "stored"));
    SET(o, "image_tokens", json_integer(c->image_tokens));
    SET(o, "prefix", json_integer(c->prefix));
    SET(o, "load", c->load > 0 ? esp_json_number(c->load) : json_null());
    SET(o, "request", request);
    SET(o, "decode", json_incref(c->decode));
    SET(o, "stages", json_incref(c->stages));
    SET(o, "hop", c->hop ? json_incref(c->hop) : json_null());
    return esp_json_hand_over(out, o, ok, err);
}

esp_status esp_bench_cluster(json_t **out, struct esp_bench *bench, struct esp_err *err)
{
    struct cluster c = {.bench = bench, .decode = json_array(), .stages = json_array()};
    bool ok = c.decode && c.stages;
    esp_status st = ESP_OK;

    *out = NULL;
    for (size_t i = 0; i < 4; i++)
        ok = (c.request[i] = json_array()) && ok;
    st = ok ? measure(&c, err) : esp_fail(err, ESP_E_NOMEM, "results");
    if (!st)
        st = hand_over(out, &c, err);
    for (size_t i = 0; i < 4; i++)
        json_decref(c.request[i]);
    json_decref(c.decode);
    json_decref(c.stages);
    json_decref(c.hop);
    free(c.prompt);
    return st;
}
