/* The command line as a client: a coordinator that follows a script, in this process, over ipc://. */
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

#include "proto/clock.h"
#include "tests/cluster/cli_child.h"
#include "tests/support/file.h"
#include "tests/support/golden.h"

#define TINY    "tests/golden/data/tiny"
#define SCENE_A TINY "/images/scene_a.png"
#define SCENE_B TINY "/images/scene_b.png"

/* ---- the fake coordinator ---- */

struct fake {
    char dir[32], endpoint[64];
    struct esp_net *net;
    struct script script;
    struct esp_peer client;
    uint64_t session; /* of the request; 0: none came */
    uint32_t n_sent;  /* tokens */
    uint32_t n_cancel;
    uint32_t n_requests, n_resumes;
    uint8_t ticket[ESP_TICKET_BYTES];             /* of the request */
    void (*check)(const struct esp_msg *request); /* looks at the request */
};

static int fake_setup(void **state)
{
    static struct fake f;

    memset(&f, 0, sizeof f);
    script_open(&f.script, &f.net, f.dir, sizeof f.dir, f.endpoint, sizeof f.endpoint);
    f.script.self = &f;
    *state = &f;
    return 0;
}

static int fake_teardown(void **state)
{
    struct fake *f = *state;

    script_close(&f->script, &f->net, f->dir);
    rmdir(f->dir);
    return 0;
}

static void tell(struct fake *f, struct esp_msg *msg)
{
    script_tell(&f->script, &f->client, msg);
}

static const struct esp_stage_info stages[2] = {
    {.worker = "w0",
     .device = "Some GPU",
     .driver = "Some 1.0",
     .variant = "plain",
     .enc_hi = 14,
     .dec_hi = 9,
     .weight_bytes = 100,
     .kv_bytes = 20,
     .scratch_bytes = 3},
    {.worker = "w1",
     .device = "llvmpipe",
     .driver = "Mesa",
     .variant = "texel",
     .enc_lo = 14,
     .enc_hi = 15,
     .dec_lo = 9,
     .dec_hi = 18,
     .software = true},
};
static const uint32_t prompt_ids[] = {2, 1105, 1359, 527, 17};

static void tell_accepted(struct fake *f)
{
    static struct esp_msg m = {.kind = ESP_MSG_ACCEPTED};
    m.accepted = (struct esp_msg_accepted){f->session, 5, 32, 2, prompt_ids, stages};
    tell(f, &m);
}

static void tell_token(struct fake *f, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_TOKEN};
    m.token = (struct esp_msg_token){f->session, f->n_sent, 100 + f->n_sent, -0.1 - f->n_sent, text};
    f->n_sent++;
    tell(f, &m);
}

static const uint32_t best_ids[] = {100, 101, 102};
static const double best_logprobs[] = {-0.1, -1.1000000000000001, -2.1, -1e-300};
static const struct esp_stage_time times[2] = {{"w0", 0.5, 1.5, 100}, {"w1", 0.25, 2.5, 200}};

static void tell_done(struct fake *f, const struct esp_hypothesis *all, uint32_t n)
{
    static struct esp_msg m = {.kind = ESP_MSG_DONE};
    m.done = (struct esp_msg_done){.session = f->session,
                                   .best = all[0],
                                   .n_hypotheses = n > 1 ? n : 0,
                                   .hypotheses = all,
                                   .load = 1,
                                   .encode = 0.5,
                                   .prefill = 0.25,
                                   .decode = 2,
                                   .queue = 0.125,
                                   .images_cached = 1,
                                   .rebuilds = 2,
                                   .n_times = 2,
                                   .times = times};
    tell(f, &m);
}

static void tell_error(struct fake *f, esp_status code, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_ERROR};
    m.error = (struct esp_msg_error){.code = code, .text = text, .session = f->session};
    tell(f, &m);
}

/* What every script does: answers status queries, keeps the request's number. True for the request itself. */
static bool is_request(struct fake *f, const struct esp_peer *from, const struct esp_msg *msg)
{
    static struct esp_msg m = {.kind = ESP_MSG_STATUS};

    f->client = *from;
    if (msg->kind == ESP_MSG_STATUS_QUERY) {
        m.status = (struct esp_msg_status){.id = msg->status_query.id, .epoch = 1, .ready = true};
        tell(f, &m);
    }
    f->n_cancel += msg->kind == ESP_MSG_CANCEL && msg->cancel.session == f->session;
    if (msg->kind != ESP_MSG_REQUEST)
        return false;
    assert_int_equal(f->session, 0); /* one request only */
    f->session = msg->request.id;
    f->n_requests++;
    memcpy(f->ticket, msg->request.ticket, sizeof f->ticket);
    if (f->check)
        f->check(msg);
    return true;
}

static void ask(struct child *c, struct fake *f, const char *const *args)
{
    const char *all[64] = {args[0], "--connect", f->endpoint};
    size_t n = 3;

    for (size_t i = 1; args[i]; i++)
        all[n++] = args[i];
    all[n] = NULL;
    child_start(c, ESPALIER, NULL, all);
    child_wait(c, &f->script);
}

static json_t *parse(const struct child *c)
{
    json_error_t why;
    json_t *o = json_loads(OUT(c), 0, &why);
    if (!o)
        fail_msg("not JSON: %s\n%s\n%s", why.text, OUT(c), ERR(c));
    return o;
}

/* ---- what is asked arrives as given ---- */

static void check_everything(const struct esp_msg *msg)
{
    const struct esp_msg_request *r = &msg->request;
    size_t n;
    uint8_t *bytes;

    assert_string_equal(r->prompt, "answer en \xc3\xa4 \"quoted\"");
    assert_int_equal(r->max_tokens, 77);
    assert_string_equal(r->suffix, "it is");
    assert_false(r->score || r->no_eos || r->trace);
    assert_true(r->sampling.temperature == 0.7 && r->sampling.top_p == 0.9);
    assert_int_equal(r->sampling.top_k, 40);
    assert_true(r->sampling.seed == UINT64_MAX);
    assert_int_equal(r->sampling.best_of, 3);
    assert_int_equal(r->sampling.beams, 0);
    assert_false(r->sampling.has_length_penalty || r->sampling.ignore_eos);
    assert_true(r->sampling.has_eos);
    assert_int_equal(r->sampling.eos, 5);
    assert_int_equal(r->sampling.n_ban, 3);
    assert_int_equal(r->sampling.ban[0], 9);
    assert_int_equal(r->sampling.ban[2], 7);
    assert_int_equal(msg->n_blobs, 2);
    assert_string_equal(r->image_names[0], "scene_b.png");
    assert_string_equal(r->image_names[1], "scene_a.png");
    bytes = esp_slurp(&n, SCENE_B);
    assert_int_equal(msg->blob[0].n_bytes, n);
    assert_memory_equal(msg->blob[0].data, bytes, n);
    free(bytes);
}

static void check_beams(const struct esp_msg *msg)
{
    const struct esp_msg_sampling *s = &msg->request.sampling;

    assert_int_equal(s->beams, 4);
    assert_true(s->has_length_penalty && s->length_penalty == -0.5);
    assert_true(s->ignore_eos && !s->has_eos);
    assert_true(s->temperature == 0 && s->top_p == 0 && s->top_k == 0 && s->n_ban == 0);
    assert_true(msg->request.trace);
    assert_int_equal(msg->n_blobs, 0);
    assert_string_equal(msg->request.prompt, "--json"); /* what follows -- is no option */
}

static void check_defaults(const struct esp_msg *msg)
{
    assert_int_equal(msg->request.max_tokens, 128);
    assert_string_equal(msg->request.suffix, "");
    assert_true(msg->request.sampling.temperature == 0);
}

static void refuse(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;
    if (is_request(f, from, msg))
        tell_error(f, ESP_E_LIMIT, "picture 2 is too wide: 70000 pixels");
}

static void test_request(void **state)
{
    struct fake *f = *state;
    static const struct {
        void (*check)(const struct esp_msg *request);
        const char *args[40];
    } cases[] = {
        {check_everything,
         {"run",
          "--image",
          SCENE_B,
          "--image=" SCENE_A,
          "--max-tokens",
          "77",
          "--suffix",
          "it is",
          "--temperature",
          ".7",
          "--top-p=9e-1",
          "--top-k",
          "40",
          "--seed",
          "18446744073709551615",
          "--best-of",
          "3",
          "--eos",
          "5",
          "--ban",
          "9,8,7",
          "answer en \xc3\xa4 \"quoted\""}},
        {check_beams,
         {"run", "--beams", "4", "--length-penalty", "-0.5", "--ignore-eos", "--trace", "/dev/null", "--",
          "--json"}},
        {check_defaults, {"run", "caption en", "--image", SCENE_A}},
    };

    f->script.heard = refuse;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;
        f->check = cases[i].check;
        f->session = 0;
        ask(&c, f, cases[i].args);
        /* And an Error from there is the command's own failure, in its words. */
        child_expect(&c, "refused", 1, "espalier run: picture 2 is too wide: 70000 pixels\n", NULL);
        assert_string_equal(OUT(&c), "");
        assert_int_not_equal(f->session, 0);
        child_finish(&c);
    }
}

static void test_prompt_from_stdin(void **state)
{
    struct fake *f = *state;
    char path[64];
    struct child c;
    FILE *file;

    snprintf(path, sizeof path, "%s/prompt", f->dir);
    file = fopen(path, "w");
    assert_non_null(file);
    fputs("--json\n", file); /* one newline at the end is the line's, not the prompt's */
    fclose(file);
    f->script.heard = refuse;
    child_start(&c, ESPALIER, path,
                (const char *[]){"run", "--connect", f->endpoint, "--beams", "4", "--length-penalty=-0.5",
                                 "--ignore-eos", "--trace", "/dev/null", "-", NULL});
    f->check = check_beams;
    child_wait(&c, &f->script);
    child_expect(&c, "prompt from stdin", 1, "picture 2", NULL);
    child_finish(&c);
    unlink(path);
}

/* ---- answers ---- */

/* Each token leaves only when the one before it stands on stdout: what is printed is flushed at once. */
static const char *const pieces[] = {"Schl", "\xc3\xbc", "", "ssel"};
static const char *const after[] = {"Schl", "Schl\xc3\xbc", "Schl\xc3\xbc", "Schl\xc3\xbcssel"};

static void stream_on(struct script *s, struct child *c)
{
    struct fake *f = s->self;
    static const struct esp_hypothesis best = {.text = "Schl\xc3\xbcssel\xef\xbf\xbd",
                                               .finish = "length",
                                               .n_ids = 3,
                                               .ids = best_ids,
                                               .n_logprobs = 3,
                                               .logprobs = best_logprobs};

    while (f->n_sent > 0 && strcmp(OUT(c), after[f->n_sent - 1]) == 0) {
        if (f->n_sent == 4) {
            tell_done(f, &best, 1);
            return;
        }
        tell_token(f, pieces[f->n_sent]);
    }
}

static void stream(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;
    static struct esp_msg m = {.kind = ESP_MSG_WAITING};

    if (!is_request(f, from, msg))
        return;
    m.waiting = (struct esp_msg_waiting){f->session, "loading weights", 10, 100};
    tell(f, &m);
    tell_accepted(f);
    tell_token(f, pieces[0]);
}

static void test_stream(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = stream;
    f->script.printed = stream_on;
    ask(&c, f, (const char *[]){"run", "--image", SCENE_A, "caption en", NULL});
    child_expect(&c, "stream", 0, "w0: encoder 0-13, decoder 0-8 on Some GPU\n", NULL);
    child_expect(&c, "stream", 0, "w1: encoder 14, decoder 9-17 on llvmpipe (software)\n", NULL);
    child_expect(&c, "stream", 0, "slow, the last resort", NULL);
    assert_string_equal(OUT(&c),
                        "Schl\xc3\xbcssel\xef\xbf\xbd\n"); /* the broken last character comes with Done */
    assert_null(strstr(ERR(&c), "\033"));                  /* progress is for terminals */
    assert_null(strstr(ERR(&c), "loading"));
    assert_null(strstr(ERR(&c), "tokens/s"));
    child_finish(&c);
}

/* On a terminal: progress comes and is erased, timing is told, and the answer's control characters do
 * nothing. */
static void stream_escapes(struct script *s, struct child *c, const struct esp_peer *from,
                           const struct esp_msg *msg)
{
    static const struct esp_hypothesis best = {.text = "a\033[2Jb\xc2\x9b"
                                                       "c",
                                               .finish = "eos",
                                               .n_ids = 3,
                                               .ids = best_ids,
                                               .n_logprobs = 4,
                                               .logprobs = best_logprobs};
    static struct esp_msg m = {.kind = ESP_MSG_WAITING};
    struct fake *f = s->self;

    if (!is_request(f, from, msg))
        return;
    m.waiting = (struct esp_msg_waiting){f->session, "loading weights", 25u << 20, 100u << 20};
    tell(f, &m);
    tell_accepted(f);
    tell_token(f, best.text);
    tell_done(f, &best, 1);
}

static void test_terminal(void **state)
{
    static const char *const in_order[] = {"\rloading weights: 25 %, 25 of 100 MiB\033[K",
                                           "\r\033[K",
                                           "w0: encoder 0-13",
                                           "a?[2Jb?c\r\n",
                                           "prefill 0.25 s (37 tokens)",
                                           "tokens/s"};
    struct fake *f = *state;
    struct child c;
    const char *at;

    f->script.heard = stream_escapes;
    child_start_on_terminal(&c, ESPALIER,
                            (const char *[]){"run", "--connect", f->endpoint, "caption en", NULL});
    child_wait(&c, &f->script);
    child_expect(&c, "terminal", 0, NULL, NULL);
    at = ERR(&c);
    for (size_t i = 0; i < sizeof in_order / sizeof in_order[0]; i++) {
        at = strstr(at, in_order[i]);
        if (!at)
            fail_msg("number %zu is missing, or not where it should be, in:\n%s", i, ERR(&c));
    }
    child_finish(&c);
}

static const struct esp_hypothesis hypotheses[2] = {
    {.text = "a \"cat\"\n",
     .finish = "eos",
     .n_ids = 3,
     .ids = best_ids,
     .n_logprobs = 4,
     .logprobs = best_logprobs,
     .sum = -3.3,
     .score = -0.825},
    {.text = "\xe7\x8c\xab",
     .finish = "length",
     .n_ids = 2,
     .ids = best_ids,
     .n_logprobs = 2,
     .logprobs = best_logprobs,
     .sum = -1.2,
     .score = -0.9},
};

static void answer(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (!is_request(f, from, msg))
        return;
    tell_accepted(f);
    if (msg->request.sampling.beams < 2 && !msg->request.score)
        tell_token(f, "a \"cat\"\n");
    tell_done(f, hypotheses, msg->request.sampling.beams > 1 ? 2 : 1);
}

/* A path such as "stages.1.encoder.0". */
static json_t *at(json_t *o, const char *path)
{
    while (o && *path) {
        char key[32];
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        o = json_is_array(o) ? json_array_get(o, (size_t)atoi(key)) : json_object_get(o, key);
        path += n + (path[n] == '.');
    }
    if (!o)
        fail_msg("no such element: %s", path);
    return o;
}

static void test_json(void **state)
{
    struct fake *f = *state;
    struct child c;
    json_t *o;
    static const struct {
        const char *path;
        double value;
    } numbers[] = {{"ids.0", 100},
                   {"ids.2", 102},
                   {"logprobs.0", -0.1},
                   {"logprobs.1", -1.1000000000000001},
                   {"eos_logprob", -1e-300},
                   {"prompt_ids.1", 1105},
                   {"image_tokens", 32},
                   {"timing.load", 1},
                   {"timing.encode", 0.5},
                   {"timing.prefill", 0.25},
                   {"timing.decode", 2},
                   {"timing.images_cached", 1},
                   {"timing.rebuilds", 2},
                   {"stages.0.encoder.0", 0},
                   {"stages.0.encoder.1", 14},
                   {"stages.1.decoder.0", 9},
                   {"stages.1.decoder.1", 18},
                   {"stages.1.compute_seconds", 2.5}};

    f->script.heard = answer;
    ask(&c, f, (const char *[]){"run", "--image", SCENE_A, "--json", "caption en", NULL});
    child_expect(&c, "json", 0, NULL, NULL);
    assert_string_equal(ERR(&c), "");
    o = parse(&c);
    assert_string_equal(json_string_value(at(o, "text")), "a \"cat\"\n");
    assert_string_equal(json_string_value(at(o, "finish")), "eos");
    assert_string_equal(json_string_value(at(o, "stages.1.worker")), "w1");
    assert_string_equal(json_string_value(at(o, "stages.0.device")), "Some GPU");
    assert_true(json_is_true(at(o, "stages.1.software")));
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        assert_true(json_number_value(at(o, numbers[i].path)) == numbers[i].value);
    assert_int_equal(json_array_size(at(o, "ids")), 3);
    assert_int_equal(json_array_size(at(o, "logprobs")), 3);
    assert_int_equal(json_array_size(at(o, "objects")), 0);
    assert_null(json_object_get(o, "hypotheses"));
    json_decref(o);
    child_finish(&c);
}

static void test_json_beams(void **state)
{
    struct fake *f = *state;
    struct child c;
    json_t *o;

    f->script.heard = answer;
    ask(&c, f, (const char *[]){"run", "--image", SCENE_A, "--json", "--beams", "2", "caption en", NULL});
    child_expect(&c, "json with beams", 0, NULL, NULL);
    o = parse(&c);
    assert_true(json_real_value(at(o, "score")) == -0.825);
    assert_int_equal(json_array_size(at(o, "hypotheses")), 2);
    assert_true(json_real_value(at(o, "hypotheses.0.sum")) == -3.3);
    assert_true(json_real_value(at(o, "hypotheses.1.score")) == -0.9);
    assert_string_equal(json_string_value(at(o, "hypotheses.1.text")), "\xe7\x8c\xab");
    assert_true(json_is_null(at(o, "hypotheses.1.eos_logprob")));
    assert_int_equal(json_array_size(at(o, "hypotheses.1.ids")), 2);
    json_decref(o);
    child_finish(&c);
}

static void test_beams_are_printed_at_the_end(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = answer;
    ask(&c, f, (const char *[]){"run", "--image", SCENE_A, "--beams", "2", "-v", "caption en", NULL});
    child_expect(&c, "beams", 0,
                 "prefill 0.25 s (37 tokens), decode 2.00 s (4 tokens)\n"
                 "pictures: 1 from the cache\nrebuilt 2 times after the loss of a worker\n1.50 tokens/s\n",
                 NULL);
    assert_string_equal(OUT(&c), "a \"cat\"\n\n");
    child_finish(&c);
}

static void check_score(const struct esp_msg *msg)
{
    assert_true(msg->request.score && !msg->request.no_eos);
    assert_string_equal(msg->request.prompt, "caption en");
    assert_string_equal(msg->request.suffix, "a cat");
}

static void test_score(void **state)
{
    struct fake *f = *state;
    struct child c;
    json_t *o;

    f->script.heard = answer;
    f->check = check_score;
    ask(&c, f,
        (const char *[]){"score", "--model", TINY, "--prompt", "caption en", "--suffix", "a cat", "--json",
                         NULL});
    child_expect(&c, "score", 0, NULL, NULL);
    o = parse(&c);
    assert_int_equal(json_array_size(at(o, "ids")), 4);
    assert_int_equal(json_integer_value(at(o, "ids.3")), 1); /* the model's end token */
    assert_int_equal(json_array_size(at(o, "logprobs")), 4);
    assert_true(json_real_value(at(o, "sum")) == -3.3);
    assert_true(json_real_value(at(o, "mean")) == -3.3 / 4);
    assert_true(fabs(json_real_value(at(o, "perplexity")) - exp(3.3 / 4)) < 1e-12);
    json_decref(o);
    child_finish(&c);

    f->session = 0;
    ask(&c, f, (const char *[]){"score", "--suffix", "a cat", "caption en", NULL});
    child_expect(&c, "score", 0, "w0: encoder 0-13", "     100     -0.100000");
    child_expect(&c, "score", 0, NULL, "sum -3.300000, mean -0.825000, perplexity 2.28");
    child_finish(&c);
}

static void test_status(void **state)
{
    struct fake *f = *state;
    struct child c;
    json_t *o;

    f->script.heard = answer;
    ask(&c, f, (const char *[]){"cluster", "status", NULL});
    child_expect(&c, "status", 0, NULL, "ready, placement 1, up -\n");
    child_finish(&c);
    ask(&c, f, (const char *[]){"cluster", "status", "--json", NULL});
    child_expect(&c, "status", 0, NULL, NULL);
    o = parse(&c);
    assert_true(json_is_true(at(o, "ready")));
    assert_int_equal(json_array_size(at(o, "workers")), 0);
    json_decref(o);
    child_finish(&c);
}

/* ---- traces ---- */

static void trace(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    static const struct {
        uint64_t image;
        const char *name;
        uint32_t rows, width;
    } sent[] = {{9, "vision.layer.1", 1, 2},
                {7, "vision.layer.1", 1, 2},
                {0, "prefill.layer.2", 2, 3},
                {0, "prefill.norm", 1, 1},
                {0, "prefill.norm", 1, 1}};
    static float values[sizeof sent / sizeof sent[0]][6];
    static struct esp_msg m;
    struct fake *f = s->self;

    if (!is_request(f, from, msg))
        return;
    tell_accepted(f);
    for (size_t i = 0; i < sizeof sent / sizeof sent[0]; i++) {
        values[i][0] = (float)i;
        m.kind = ESP_MSG_TRACE;
        m.trace = (struct esp_msg_trace){.image = sent[i].image,
                                         .session = f->session,
                                         .name = sent[i].name,
                                         .rows = sent[i].rows,
                                         .width = sent[i].width};
        m.n_blobs = 1;
        m.blob[0] =
            (struct esp_blob){.data = values[i], .n_bytes = sizeof(float) * sent[i].rows * sent[i].width};
        tell(f, &m);
    }
    tell_done(f, hypotheses, 1);
}

static void test_trace(void **state)
{
    struct fake *f = *state;
    char path[64];
    struct child c;
    struct esp_golden *g;
    size_t n;

    snprintf(path, sizeof path, "%s/trace.safetensors", f->dir);
    f->script.heard = trace;
    ask(&c, f, (const char *[]){"run", "--model", TINY, "--trace", path, "caption en", NULL});
    child_expect(&c, "trace", 0, NULL, "a \"cat\"\n\n");
    child_finish(&c);
    g = esp_golden_open(path);
    assert_true(esp_golden_f32(g, &n, "vision.0.layer.1")[0] == 1); /* the lower image id was encoded first */
    assert_true(esp_golden_f32(g, &n, "vision.1.layer.1")[0] == 0);
    assert_true(esp_golden_f32(g, &n, "prefill.0.layer.2")[0] == 2);
    assert_int_equal(n, 6);
    assert_true(esp_golden_f32(g, &n, "prefill.0.norm")[0] == 3);
    assert_int_equal(esp_golden_i32(g, &n, "prefill.0.ids")[31], 5534); /* <image> */
    assert_int_equal(n, 37);
    assert_int_equal(esp_golden_i32(g, &n, "prefill.0.ids")[32], 2);
    esp_golden_close(&g);
    unlink(path);
}

/* Where no trace can be written, nothing is asked; where that shows at the end only, the answer's line ends first. */
static void test_trace_cannot_be_written(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = stream;
    f->script.printed = stream_on;
    ask(&c, f, (const char *[]){"run", "--trace", "/nonexistent/trace", "caption en", NULL});
    child_expect(&c, "nowhere", 1, "/nonexistent/trace: No such file or directory", "");
    assert_int_equal(f->session, 0);
    child_finish(&c);
    ask(&c, f, (const char *[]){"run", "--trace", "/dev/full", "caption en", NULL});
    child_expect(&c, "full", 1, "/dev/full: No space left on device", "Schl\xc3\xbcssel\n");
    child_finish(&c);
}

/* ---- ends ---- */

static void lie(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (!is_request(f, from, msg))
        return;
    tell_accepted(f);
    tell_token(f, "one");
    f->n_sent = 5;
    tell_token(f, "six");
}

static void test_token_out_of_order(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = lie;
    ask(&c, f, (const char *[]){"run", "--patience", "2", "caption en", NULL});
    child_expect(&c, "out of order", 1, "sent token 5 where 1 was expected", "one\n");
    assert_int_equal(f->n_cancel, 1);
    child_finish(&c);
}

/* ---- a coordinator that comes back ---- */

static const char *const parts[] = {"a", " b", "", " c", " d"};
#define N_PARTS 5

static void tell_part(struct fake *f, uint32_t i)
{
    f->n_sent = i;
    tell_token(f, parts[i]);
}

static void tell_end(struct fake *f)
{
    static const uint32_t ids[N_PARTS] = {100, 101, 102, 103, 104};
    static const double logprobs[N_PARTS] = {-0.1, -1.1, -2.1, -3.1, -4.1};
    static const struct esp_hypothesis best = {.text = "a b c d",
                                               .finish = "length",
                                               .n_ids = N_PARTS,
                                               .ids = ids,
                                               .n_logprobs = N_PARTS,
                                               .logprobs = logprobs};

    tell_done(f, &best, 1);
}

/* A Resume for our request: true, with the session under the number that it gives. */
static bool is_resume(struct fake *f, const struct esp_msg *msg)
{
    if (msg->kind != ESP_MSG_RESUME)
        return false;
    assert_memory_equal(msg->resume.ticket, f->ticket, sizeof f->ticket);
    assert_true(msg->resume.id == f->session);
    f->n_resumes++;
    return true;
}

/* Sends two tokens and falls silent. Reminded, it goes on from one token before what the client has. */
static void go_on(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    static const uint8_t none[ESP_TICKET_BYTES];
    struct fake *f = s->self;

    if (is_request(f, from, msg)) {
        assert_memory_not_equal(f->ticket, none, sizeof none);
        tell_accepted(f);
        tell_part(f, 0);
        tell_part(f, 1);
    } else if (is_resume(f, msg) && f->n_resumes == 2) { /* the first was lost */
        assert_int_equal(msg->resume.have, 2);
        tell_accepted(f);
        for (uint32_t i = 1; i < N_PARTS; i++)
            tell_part(f, i);
        tell_end(f);
    }
}

static void test_resumed(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = go_on;
    ask(&c, f, (const char *[]){"run", "caption en", NULL});
    child_expect(&c, "resumed", 0, "", "a b c d\n");
    assert_string_equal(OUT(&c), "a b c d\n");
    assert_int_equal(f->n_requests, 1);
    assert_int_equal(f->n_resumes, 2);
    child_finish(&c);
}

/* While it is told that it must wait, it waits, however long: each reminder is answered. */
static void keep_waiting(struct script *s, struct child *c, const struct esp_peer *from,
                         const struct esp_msg *msg)
{
    static struct esp_msg m = {.kind = ESP_MSG_WAITING};
    struct fake *f = s->self;

    if (is_request(f, from, msg))
        return;
    if (!is_resume(f, msg))
        return;
    assert_int_equal(msg->resume.have, 0);
    m.waiting = (struct esp_msg_waiting){f->session, "queued", 1, 2};
    tell(f, &m);
    if (f->n_resumes == 4) {
        tell_accepted(f);
        for (uint32_t i = 0; i < N_PARTS; i++)
            tell_part(f, i);
        tell_end(f);
    }
}

static void test_kept_waiting(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = keep_waiting;
    ask(&c, f, (const char *[]){"run", "--patience", "2", "caption en", NULL});
    child_expect(&c, "kept waiting", 0, "", "a b c d\n");
    assert_int_equal(f->n_resumes, 4);
    child_finish(&c);
}

/* A coordinator without a memory: asked anew, with the same ticket and pictures, under another number. What the client
 * has comes again and is not said twice; late answers to the old number are nobody's. */
static bool forgetful; /* for ever */

static void forget(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;
    const uint64_t old = f->session;
    uint8_t ticket[ESP_TICKET_BYTES];

    memcpy(ticket, f->ticket, sizeof ticket);
    if (msg->kind == ESP_MSG_REQUEST)
        f->session = 0;
    if (is_request(f, from, msg)) {
        assert_int_equal(msg->n_blobs, 1);
        if (f->n_requests > 1) {
            assert_memory_equal(f->ticket, ticket, sizeof ticket);
            assert_int_not_equal(f->session, old);
        }
        tell_accepted(f);
        for (uint32_t i = 0; i < (f->n_requests == 1 ? 3 : N_PARTS) && !forgetful; i++)
            tell_part(f, i);
        if (f->n_requests > 1 && !forgetful)
            tell_end(f);
    } else if (is_resume(f, msg)) {
        tell_error(f, ESP_E_CLOSED, "no such request");
        tell_error(f, ESP_E_CLOSED, "no such request"); /* as if it had been reminded twice */
    }
}

static void test_asked_anew(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = forget;
    forgetful = false;
    ask(&c, f, (const char *[]){"run", "--image", SCENE_A, "caption en", NULL});
    child_expect(&c, "asked anew", 0, "", "a b c d\n");
    assert_string_equal(OUT(&c), "a b c d\n");
    assert_int_equal(f->n_requests, 2);
    assert_int_equal(f->n_resumes, 1);
    child_finish(&c);
}

static void test_forgotten_for_ever(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = forget;
    forgetful = true;
    ask(&c, f, (const char *[]){"run", "--image", SCENE_A, "caption en", NULL});
    child_expect(&c, "forgotten for ever", 1, "has lost this request 8 times", "");
    assert_int_equal(f->n_requests, 9);
    child_finish(&c);
}

/* What was traced is gone with the coordinator that traced it. */
static void test_trace_is_not_asked_anew(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = forget;
    forgetful = true;
    ask(&c, f, (const char *[]){"run", "--image", SCENE_A, "--trace", "/dev/null", "caption en", NULL});
    child_expect(&c, "a trace", 1, "no longer knows this request", "");
    assert_int_equal(f->n_requests, 1);
    child_finish(&c);
}

/* What was lost with a connection is asked for: the first time the beginning, then tokens. */
static void lose_some(struct script *s, struct child *c, const struct esp_peer *from,
                      const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (is_request(f, from, msg)) {
        tell_part(f, 0); /* and Accepted was lost */
    } else if (is_resume(f, msg) && f->n_resumes == 1) {
        assert_int_equal(msg->resume.have, 0);
        tell_accepted(f);
        tell_part(f, 0);
        tell_part(f, 3);
        tell_part(f, 4);
    } else if (f->n_resumes == 2) {
        assert_int_equal(msg->resume.have, 1);
        for (uint32_t i = 1; i < N_PARTS; i++)
            tell_part(f, i);
        tell_end(f);
    }
}

static void test_lost_tokens(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = lose_some;
    ask(&c, f, (const char *[]){"run", "caption en", NULL});
    child_expect(&c, "lost tokens", 0, "", "a b c d\n");
    assert_string_equal(OUT(&c), "a b c d\n");
    assert_int_equal(f->n_resumes, 2);
    child_finish(&c);
}

/* Ends a request of which Accepted was lost, and knows of it no more. */
static void end_early(struct script *s, struct child *c, const struct esp_peer *from,
                      const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (msg->kind == ESP_MSG_REQUEST)
        f->session = 0;
    if (is_request(f, from, msg)) {
        if (f->n_requests > 1)
            tell_accepted(f);
        tell_end(f);
    } else if (is_resume(f, msg)) {
        tell_error(f, ESP_E_CLOSED, "no such request");
    }
}

static void test_lost_acceptance(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = end_early;
    ask(&c, f, (const char *[]){"run", "--beams", "2", "caption en", NULL});
    child_expect(&c, "lost acceptance", 0, "", "a b c d\n");
    assert_int_equal(f->n_requests, 2);
    child_finish(&c);
}

/* Accepts, and says no more. */
static void fall_silent(struct script *s, struct child *c, const struct esp_peer *from,
                        const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (is_request(f, from, msg))
        tell_accepted(f);
    else
        is_resume(f, msg);
}

static void test_silence(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = fall_silent;
    ask(&c, f, (const char *[]){"run", "--patience", "3", "caption en", NULL});
    child_expect(&c, "silence", 1, "has said nothing for ", "");
    assert_in_range(f->n_resumes, 1, 3);
    assert_int_equal(f->n_cancel, 1);
    child_finish(&c);
}

/* Ctrl-C once tokens come. `answers`: whether the coordinator ends the request when it is told. */
static bool answers;

static void endless(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (is_request(f, from, msg)) {
        tell_accepted(f);
        tell_token(f, "one");
    } else if (msg->kind == ESP_MSG_CANCEL) {
        assert_true(msg->cancel.session == f->session);
        if (answers)
            tell_error(f, ESP_E_CANCELLED, "cancelled");
        else
            kill(c->pid, SIGINT); /* the second one */
    }
}

static void interrupt(struct script *s, struct child *c)
{
    static pid_t done;
    if (OUT(c)[0] && done != c->pid)
        kill(c->pid, SIGINT);
    done = OUT(c)[0] ? c->pid : done;
}

static void test_interrupt(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = endless;
    f->script.printed = interrupt;
    answers = true;
    ask(&c, f, (const char *[]){"run", "caption en", NULL});
    child_expect(&c, "Ctrl-C", 130, "espalier run: cancelled\n", "one\n");
    assert_int_equal(f->n_cancel, 1);
    child_finish(&c);
}

static void test_interrupt_twice(void **state)
{
    struct fake *f = *state;
    struct child c;
    long took;

    f->script.heard = endless;
    f->script.printed = interrupt;
    answers = false;
    ask(&c, f, (const char *[]){"run", "caption en", NULL});
    took = esp_now_ms() - c.started_ms;
    child_expect(&c, "Ctrl-C twice", 130, NULL, "one");
    assert_int_equal(f->n_cancel, 1);
    assert_true(took < 1900); /* it did not sit out the two seconds of grace */
    child_finish(&c);
}

static void test_closed_stdout(void **state)
{
    struct fake *f = *state;
    struct child c;
    const char *args[] = {"run", "--connect", f->endpoint, "caption en", NULL};

    f->script.heard = answer;
    child_start(&c, ESPALIER, NULL, args);
    close(c.fd[0]); /* as `| head -0` does */
    c.fd[0] = -1;
    child_wait(&c, &f->script);
    child_expect(&c, "closed stdout", 1, "standard output: Broken pipe", NULL);
    child_finish(&c);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, fake_setup, fake_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_request),
        TEST(test_prompt_from_stdin),
        TEST(test_stream),
        TEST(test_terminal),
        TEST(test_json),
        TEST(test_json_beams),
        TEST(test_beams_are_printed_at_the_end),
        TEST(test_score),
        TEST(test_status),
        TEST(test_trace),
        TEST(test_trace_cannot_be_written),
        TEST(test_token_out_of_order),
        TEST(test_resumed),
        TEST(test_kept_waiting),
        TEST(test_asked_anew),
        TEST(test_forgotten_for_ever),
        TEST(test_trace_is_not_asked_anew),
        TEST(test_lost_tokens),
        TEST(test_lost_acceptance),
        TEST(test_silence),
        TEST(test_interrupt),
        TEST(test_interrupt_twice),
        TEST(test_closed_stdout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
