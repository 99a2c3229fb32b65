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

#include "proto/clock.h"
#include "tests/cluster/cli_json.h"
#include "tests/cluster/client_rig.h"
#include "tests/support/file.h"
#include "tests/support/golden.h"

#define TINY    "tests/golden/data/tiny"
#define SCENE_A TINY "/images/scene_a.png"
#define SCENE_B TINY "/images/scene_b.png"

static const uint32_t best_ids[] = {100, 101, 102};
static const double best_logprobs[] = {-0.1, -1.1000000000000001, -2.1, -1e-300};

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
    if (fake_is_request(f, from, msg))
        fake_tell_error(f, ESP_E_LIMIT, "picture 2 is too wide: 70000 pixels");
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
        fake_ask(&c, f, ESPALIER, cases[i].args);
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
            fake_tell_done(f, &best, 1);
            return;
        }
        fake_tell_token(f, pieces[f->n_sent]);
    }
}

static void stream(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;
    static struct esp_msg m = {.kind = ESP_MSG_WAITING};

    if (!fake_is_request(f, from, msg))
        return;
    m.waiting = (struct esp_msg_waiting){f->session, "loading weights", 10, 100};
    fake_tell(f, &m);
    fake_tell_accepted(f);
    fake_tell_token(f, pieces[0]);
}

static void test_stream(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = stream;
    f->script.printed = stream_on;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--image", SCENE_A, "caption en", NULL});
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

    if (!fake_is_request(f, from, msg))
        return;
    m.waiting = (struct esp_msg_waiting){f->session, "loading weights", 25u << 20, 100u << 20};
    fake_tell(f, &m);
    fake_tell_accepted(f);
    fake_tell_token(f, best.text);
    fake_tell_done(f, &best, 1);
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

    if (!fake_is_request(f, from, msg))
        return;
    fake_tell_accepted(f);
    if (msg->request.sampling.beams < 2 && !msg->request.score)
        fake_tell_token(f, "a \"cat\"\n");
    fake_tell_done(f, hypotheses, msg->request.sampling.beams > 1 ? 2 : 1);
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
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--image", SCENE_A, "--json", "caption en", NULL});
    child_expect(&c, "json", 0, NULL, NULL);
    assert_string_equal(ERR(&c), "");
    o = child_json(&c);
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
    fake_ask(&c, f, ESPALIER,
             (const char *[]){"run", "--image", SCENE_A, "--json", "--beams", "2", "caption en", NULL});
    child_expect(&c, "json with beams", 0, NULL, NULL);
    o = child_json(&c);
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
    fake_ask(&c, f, ESPALIER,
             (const char *[]){"run", "--image", SCENE_A, "--beams", "2", "-v", "caption en", NULL});
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
    fake_ask(&c, f, ESPALIER,
             (const char *[]){"score", "--model", TINY, "--prompt", "caption en", "--suffix", "a cat",
                              "--json", NULL});
    child_expect(&c, "score", 0, NULL, NULL);
    o = child_json(&c);
    assert_int_equal(json_array_size(at(o, "ids")), 4);
    assert_int_equal(json_integer_value(at(o, "ids.3")), 1); /* the model's end token */
    assert_int_equal(json_array_size(at(o, "logprobs")), 4);
    assert_true(json_real_value(at(o, "sum")) == -3.3);
    assert_true(json_real_value(at(o, "mean")) == -3.3 / 4);
    assert_true(fabs(json_real_value(at(o, "perplexity")) - exp(3.3 / 4)) < 1e-12);
    json_decref(o);
    child_finish(&c);

    f->session = 0;
    fake_ask(&c, f, ESPALIER, (const char *[]){"score", "--suffix", "a cat", "caption en", NULL});
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
    fake_ask(&c, f, ESPALIER, (const char *[]){"cluster", "status", NULL});
    child_expect(&c, "status", 0, NULL, "ready, placement 1, up -\n");
    child_finish(&c);
    fake_ask(&c, f, ESPALIER, (const char *[]){"cluster", "status", "--json", NULL});
    child_expect(&c, "status", 0, NULL, NULL);
    o = child_json(&c);
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

    if (!fake_is_request(f, from, msg))
        return;
    fake_tell_accepted(f);
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
        fake_tell(f, &m);
    }
    fake_tell_done(f, hypotheses, 1);
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
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--model", TINY, "--trace", path, "caption en", NULL});
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
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--trace", "/nonexistent/trace", "caption en", NULL});
    child_expect(&c, "nowhere", 1, "/nonexistent/trace: No such file or directory", "");
    assert_int_equal(f->session, 0);
    child_finish(&c);
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--trace", "/dev/full", "caption en", NULL});
    child_expect(&c, "full", 1, "/dev/full: No space left on device", "Schl\xc3\xbcssel\n");
    child_finish(&c);
}

/* ---- ends ---- */

static void lie(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (!fake_is_request(f, from, msg))
        return;
    fake_tell_accepted(f);
    fake_tell_token(f, "one");
    f->n_sent = 5;
    fake_tell_token(f, "six");
}

static void test_token_out_of_order(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = lie;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "--patience", "2", "caption en", NULL});
    child_expect(&c, "out of order", 1, "sent token 5 where 1 was expected", "one\n");
    assert_int_equal(f->n_cancel, 1);
    child_finish(&c);
}

/* Ctrl-C once tokens come. `answers`: whether the coordinator ends the request when it is told. */
static bool answers;

static void endless(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (fake_is_request(f, from, msg)) {
        fake_tell_accepted(f);
        fake_tell_token(f, "one");
    } else if (msg->kind == ESP_MSG_CANCEL) {
        assert_true(msg->cancel.session == f->session);
        if (answers)
            fake_tell_error(f, ESP_E_CANCELLED, "cancelled");
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
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "caption en", NULL});
    child_expect(&c, "Ctrl-C", 130, "espalier run: cancelled\n", "one\n");
    assert_int_equal(f->n_cancel, 1);
    child_finish(&c);
}

static void test_interrupt_twice(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.heard = endless;
    f->script.printed = interrupt;
    answers = false;
    fake_ask(&c, f, ESPALIER, (const char *[]){"run", "caption en", NULL});
    child_expect(&c, "Ctrl-C twice", 130, NULL, "one");
    assert_int_equal(f->n_cancel, 1);
    assert_null(strstr(ERR(&c), "cancelled")); /* what it says after sitting out the two seconds of grace */
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
        TEST(test_interrupt),
        TEST(test_interrupt_twice),
        TEST(test_closed_stdout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
