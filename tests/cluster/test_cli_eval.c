/* espalier eval: against a coordinator that follows a script, and through a real cluster. */
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

#include "objects/codec.h"
#include "objects/parse.h"
#include "objects/rle.h"
#include "picture/image.h"
#include "tests/cluster/cli_child.h"
#include "tests/support/file.h"

#define TINY    "tests/golden/data/tiny"
#define SCENE_A TINY "/images/scene_a.png"
#define SCENE_B TINY "/images/scene_b.png"

#define MAX_ASKED 64

struct asked {
    uint64_t id;
    char prompt[64];
    size_t n_image; /* bytes */
};

struct fake {
    char dir[32], endpoint[64], set[64], out[64];
    struct esp_net *net;
    struct script script;
    struct esp_peer client;
    struct asked asked[MAX_ASKED]; /* all requests, in the order in which they came */
    uint32_t n_asked, n_open, n_most_open, n_done, n_cancel;
    uint8_t model; /* first byte of its fingerprint */
    bool answered[MAX_ASKED];
    const char *say; /* NULL: the last word of the prompt */
};

static int setup(void **state)
{
    static struct fake f;

    memset(&f, 0, sizeof f);
    script_open(&f.script, &f.net, f.dir, sizeof f.dir, f.endpoint, sizeof f.endpoint);
    f.script.self = &f;
    f.model = 1;
    snprintf(f.set, sizeof f.set, "%s/set.jsonl", f.dir);
    snprintf(f.out, sizeof f.out, "%s/results.jsonl", f.dir);
    setenv("XDG_RUNTIME_DIR", f.dir, 1);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fake *f = *state;

    script_close(&f->script, &f->net, f->dir);
    unlink(f->set);
    unlink(f->out);
    return rmdir(f->dir);
}

/* ---- the set ---- */

/* A line for each prompt "other N": its answer is "N". Pictures by turns. */
static void write_set(struct fake *f, uint32_t n)
{
    char cwd[4096];
    FILE *file = fopen(f->set, "w");

    assert_non_null(file);
    assert_non_null(getcwd(cwd, sizeof cwd));
    for (uint32_t i = 0; i < n; i++)
        fprintf(file, "{\"image\": \"%s/%s\", \"prompt\": \"other %u\", \"answer\": \"%u\"}\n", cwd,
                i % 2 ? SCENE_B : SCENE_A, i, i);
    assert_int_equal(fclose(file), 0);
}

/* ---- the fake coordinator ---- */

static void tell(struct fake *f, struct esp_msg *msg)
{
    script_tell(&f->script, &f->client, msg);
}

/* Answers request number i. */
static void answer(struct fake *f, uint32_t i)
{
    static const uint32_t ids[] = {100, 101}, prompt_ids[] = {2, 5};
    static const double logprobs[] = {-0.25, 0.5, -0.125}; /* the second is none; results must bear it */
    static struct esp_msg m;
    const char *text = f->say ? f->say : strrchr(f->asked[i].prompt, ' ') + 1;

    assert_false(f->answered[i]);
    f->answered[i] = true;
    memset(&m, 0, sizeof m);
    m.kind = ESP_MSG_ACCEPTED;
    m.accepted = (struct esp_msg_accepted){
        .session = f->asked[i].id, .n_prompt_ids = 2, .image_tokens = 16, .prompt_ids = prompt_ids};
    tell(f, &m);
    for (uint32_t t = 0; t < 2; t++) {
        memset(&m, 0, sizeof m);
        m.kind = ESP_MSG_TOKEN;
        m.token = (struct esp_msg_token){f->asked[i].id, t, ids[t], logprobs[t], t ? "" : text};
        tell(f, &m);
    }
    memset(&m, 0, sizeof m);
    m.kind = ESP_MSG_DONE;
    m.done = (struct esp_msg_done){
        .session = f->asked[i].id,
        .best = {
            .text = text, .finish = "eos", .n_ids = 2, .ids = ids, .n_logprobs = 3, .logprobs = logprobs}};
    f->n_open--;
    f->n_done++;
    tell(f, &m);
}

static void fail_request(struct fake *f, uint32_t i, esp_status code, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_ERROR};

    f->answered[i] = true;
    f->n_open--;
    m.error = (struct esp_msg_error){.code = code, .text = text, .session = f->asked[i].id};
    tell(f, &m);
}

/* What every script does. True for a request, which is then the last of `asked`. */
static bool is_request(struct fake *f, const struct esp_peer *from, const struct esp_msg *msg)
{
    static struct esp_msg m;
    struct asked *a;

    f->client = *from;
    if (msg->kind == ESP_MSG_STATUS_QUERY) {
        memset(&m, 0, sizeof m);
        m.kind = ESP_MSG_STATUS;
        m.status = (struct esp_msg_status){
            .id = msg->status_query.id, .epoch = 1, .ready = true, .fingerprint = {f->model}};
        tell(f, &m);
    }
    f->n_cancel += msg->kind == ESP_MSG_CANCEL;
    if (msg->kind != ESP_MSG_REQUEST)
        return false;
    assert_true(f->n_asked < MAX_ASKED);
    assert_int_equal(msg->n_blobs, 1);
    a = &f->asked[f->n_asked++];
    a->id = msg->request.id;
    snprintf(a->prompt, sizeof a->prompt, "%s", msg->request.prompt);
    a->n_image = msg->blob[0].n_bytes;
    if (++f->n_open > f->n_most_open)
        f->n_most_open = f->n_open;
    return true;
}

static void forget(struct fake *f)
{
    f->n_asked = f->n_open = f->n_most_open = f->n_done = f->n_cancel = 0;
    memset(f->answered, 0, sizeof f->answered);
}

static void eval(struct child *c, struct fake *f, const char *const *args)
{
    const char *all[32] = {"eval", "--connect", f->endpoint, "--data", f->set};
    size_t n = 5;

    for (size_t i = 0; args[i]; i++)
        all[n++] = args[i];
    all[n] = NULL;
    child_start(c, ESPALIER, NULL, all);
    child_wait(c, &f->script);
}

static double figure(const struct child *c, const char *task, const char *what)
{
    json_error_t why;
    json_t *o = json_loads(OUT(c), 0, &why), *from = o;
    double v;

    if (!o)
        fail_msg("not JSON: %s\n%s\n%s", why.text, OUT(c), ERR(c));
    if (task)
        from = json_object_get(json_object_get(o, "tasks"), task);
    if (!json_object_get(from, what))
        fail_msg("no %s in %s", what, OUT(c));
    v = json_is_true(json_object_get(from, what)) ? 1 : json_number_value(json_object_get(from, what));
    json_decref(o);
    return v;
}

/* ---- many at once ---- */

/* Waits for a full window (or the end of the set), and answers the last that came first. */
static void backwards(struct script *s, struct child *c, const struct esp_peer *from,
                      const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (!is_request(f, from, msg) || (f->n_open < 4 && f->n_asked < 10))
        return;
    for (uint32_t i = f->n_asked; i-- > 0;)
        if (!f->answered[i])
            answer(f, i);
}

static void test_many_at_once(void **state)
{
    struct fake *f = *state;
    struct child c;
    size_t n_first, n_lines = 0, n;
    uint8_t *text;

    write_set(f, 10);
    f->script.heard = backwards;
    eval(&c, f, (const char *[]){"--in-flight", "4", "--out", f->out, "--json", NULL});
    child_expect(&c, "many", 0, NULL, NULL);
    assert_int_equal(f->n_most_open, 4);
    assert_int_equal(f->n_asked, 10);
    n_first = f->asked[0].n_image;
    for (uint32_t i = 0; i < 10; i++) { /* those about one picture together */
        assert_int_equal(f->asked[i].n_image == n_first, i < 5);
        assert_int_equal(atoi(strrchr(f->asked[i].prompt, ' ')), i < 5 ? 2 * i : 2 * (i - 5) + 1);
    }
    assert_true(figure(&c, "other", "exact") == 1 && figure(&c, NULL, "done") == 10);
    assert_true(figure(&c, NULL, "complete") == 1 && figure(&c, NULL, "asked") == 10);
    child_finish(&c);
    text = esp_slurp(&n, "%s", f->out);
    for (size_t i = 0; i < n; i++)
        n_lines += text[i] == '\n';
    free(text);
    assert_int_equal(n_lines, 11);

    /* Nothing is left to ask: the same figures from what was kept. */
    forget(f);
    eval(&c, f, (const char *[]){"--in-flight", "4", "--out", f->out, "--json", NULL});
    child_expect(&c, "again", 0, "", NULL);
    assert_int_equal(f->n_asked, 0);
    assert_true(figure(&c, "other", "exact") == 1 && figure(&c, NULL, "done") == 10);
    assert_true(figure(&c, NULL, "asked") == 0);
    child_finish(&c);

    /* But not for another model, other examples, other decoding. */
    f->model = 2;
    eval(&c, f, (const char *[]){"--out", f->out, NULL});
    child_expect(&c, "another model", 1, "results of another model", "");
    child_finish(&c);
    f->model = 1;
    eval(&c, f, (const char *[]){"--out", f->out, "--max-tokens", "7", NULL});
    child_expect(&c, "other decoding", 1, "results of other options of decoding", "");
    child_finish(&c);
    write_set(f, 9);
    eval(&c, f, (const char *[]){"--out", f->out, NULL});
    child_expect(&c, "another set", 1, "results of another set", "");
    child_finish(&c);
    assert_int_equal(f->n_asked, 0);
}

static void at_once(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (is_request(f, from, msg))
        answer(f, f->n_asked - 1);
}

/* A part of the set first, then more of it. */
static void test_limit_and_task(void **state)
{
    struct fake *f = *state;
    struct child c;

    write_set(f, 6);
    f->script.heard = at_once;
    eval(&c, f, (const char *[]){"--limit", "4", "--out", f->out, NULL});
    child_expect(&c, "limit", 0, NULL, "4 of 4 examples answered, 0 failed");
    assert_int_equal(f->n_asked, 4);
    child_finish(&c);
    forget(f);
    eval(&c, f, (const char *[]){"--out", f->out, "--task", "caption,other", NULL});
    child_expect(&c, "task", 0, "has 4 of 6 answers; going on", "other          6: exact 1.0000\n6 of 6");
    assert_int_equal(f->n_asked, 2);
    child_finish(&c);
    eval(&c, f, (const char *[]){"--task", "caption", NULL});
    child_expect(&c, "none", 1, "no example of the tasks asked for", "");
    child_finish(&c);
}

/* ---- what goes wrong ---- */

/* At first there is room for two at once, later for any; "other 3" never finds any. */
static void narrow(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;
    uint32_t i;

    if (!is_request(f, from, msg))
        return;
    i = f->n_asked - 1;
    if (strcmp(f->asked[i].prompt, "other 3") == 0)
        fail_request(f, i, ESP_E_LIMIT, "too many pictures of yours wait already: try again later");
    else if (f->n_asked <= 6 && f->n_open > 2)
        fail_request(f, i, ESP_E_LIMIT, "no room");
    else if (f->n_asked > 6)
        answer(f, i);
    for (uint32_t k = 0; k < i && f->n_asked == 6; k++)
        if (!f->answered[k])
            answer(f, k);
}

static void test_refused(void **state)
{
    struct fake *f = *state;
    struct child c;
    uint32_t n_tries = 0;

    write_set(f, 6);
    f->script.heard = narrow;
    eval(&c, f, (const char *[]){"--in-flight", "6", "--out", f->out, "--json", NULL});
    child_expect(&c, "refused", 1, "line 4 failed: too many pictures of yours", NULL);
    assert_true(figure(&c, NULL, "done") == 5 && figure(&c, NULL, "failed") == 1);
    assert_true(figure(&c, "other", "exact") == 1); /* of those that were answered */
    assert_non_null(strstr(ERR(&c), "1 of 6 examples have no answer; the same command goes on with them"));
    for (uint32_t i = 0; i < f->n_asked; i++)
        n_tries += strcmp(f->asked[i].prompt, "other 3") == 0;
    assert_int_equal(n_tries, 9);
    child_finish(&c);
    forget(f);
    f->script.heard = at_once;
    eval(&c, f, (const char *[]){"--out", f->out, NULL});
    child_expect(&c, "retried", 0, "has 5 of 6 answers; going on", "6 of 6 examples answered, 0 failed");
    assert_int_equal(f->n_asked, 1);
    child_finish(&c);
}

/* One fails for a reason of its own, and nobody minds; when all do, it is given up. */
static bool all_fail;

static void some_fail(struct script *s, struct child *c, const struct esp_peer *from,
                      const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (!is_request(f, from, msg))
        return;
    if (all_fail || strcmp(f->asked[f->n_asked - 1].prompt, "other 2") == 0)
        fail_request(f, f->n_asked - 1, ESP_E_NUMBERS, "w1: not a number");
    else
        answer(f, f->n_asked - 1);
}

static void test_failures(void **state)
{
    struct fake *f = *state;
    struct child c;

    write_set(f, 30);
    f->script.heard = some_fail;
    all_fail = false;
    eval(&c, f, (const char *[]){"--in-flight", "2", NULL});
    child_expect(&c, "one fails", 1, "line 3 failed: w1: not a number",
                 "29 of 30 examples answered, 1 failed");
    assert_non_null(strstr(ERR(&c), "with --out FILE the command could go on"));
    assert_int_equal(f->n_asked, 30);
    child_finish(&c);
    forget(f);
    all_fail = true;
    eval(&c, f, (const char *[]){"--in-flight", "2", NULL});
    child_expect(&c, "all fail", 1,
                 "20 examples have failed and none went well; the last one: w1: not a number",
                 "0 of 30 examples answered, 20 failed");
    child_finish(&c);
}

/* Ctrl-C in the middle: what there is is told, and it goes on later. */
static void interrupted(struct script *s, struct child *c, const struct esp_peer *from,
                        const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (msg->kind == ESP_MSG_CANCEL && f->n_open > 0)
        fail_request(f, f->n_asked - 1, ESP_E_CANCELLED, "cancelled");
    if (!is_request(f, from, msg))
        return;
    if (f->n_asked <= 2)
        answer(f, f->n_asked - 1);
    else
        kill(c->pid, SIGINT);
}

static void test_interrupted(void **state)
{
    struct fake *f = *state;
    struct child c;

    write_set(f, 5);
    f->script.heard = interrupted;
    eval(&c, f, (const char *[]){"--in-flight", "1", "--out", f->out, NULL});
    child_expect(&c, "Ctrl-C", 130, "3 of 5 examples have no answer; the same command goes on with them",
                 "other          2: exact 1.0000\n2 of 5 examples answered, 0 failed\n");
    assert_non_null(strstr(ERR(&c), "espalier eval: cancelled"));
    assert_int_equal(f->n_cancel, 1);
    child_finish(&c);
    forget(f);
    f->script.heard = at_once;
    eval(&c, f, (const char *[]){"--in-flight", "1", "--out", f->out, NULL});
    child_expect(&c, "afterwards", 0, "has 2 of 5 answers", "5 of 5 examples answered, 0 failed\n");
    assert_int_equal(f->n_asked, 3);
    child_finish(&c);
}

static void killed(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (!is_request(f, from, msg))
        return;
    if (f->n_asked <= 2)
        answer(f, f->n_asked - 1);
    else
        kill(c->pid, SIGKILL);
}

static void test_killed(void **state)
{
    struct fake *f = *state;
    struct child c;

    write_set(f, 5);
    f->script.heard = killed;
    eval(&c, f, (const char *[]){"--in-flight", "1", "--out", f->out, NULL});
    child_expect(&c, "killed", 128 + SIGKILL, NULL, NULL);
    child_finish(&c);
    forget(f);
    f->script.heard = at_once;
    eval(&c, f, (const char *[]){"--out", f->out, NULL});
    child_expect(&c, "afterwards", 0, "has 2 of 5 answers", "5 of 5 examples answered, 0 failed\n");
    assert_int_equal(f->n_asked, 3);
    child_finish(&c);
}

/* A coordinator that falls silent is given up, with what there is; one that has forgotten is asked anew. */
static void silent(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (is_request(f, from, msg) && f->n_asked == 1)
        answer(f, 0);
}

static void test_silence(void **state)
{
    struct fake *f = *state;
    struct child c;

    write_set(f, 4);
    f->script.heard = silent;
    eval(&c, f, (const char *[]){"--in-flight", "2", "--patience", "2", NULL});
    child_expect(&c, "silence", 1, "has said nothing for ", "1 of 4 examples answered, 0 failed");
    child_finish(&c);
}

static void forgetful(struct script *s, struct child *c, const struct esp_peer *from,
                      const struct esp_msg *msg)
{
    static struct esp_msg m = {.kind = ESP_MSG_ERROR};
    struct fake *f = s->self;

    if (msg->kind == ESP_MSG_RESUME) {
        m.error = (struct esp_msg_error){
            .code = ESP_E_CLOSED, .text = "no such request", .session = msg->resume.id};
        tell(f, &m);
    }
    if (is_request(f, from, msg) &&
        f->n_asked > 2) /* the first two are lost, as with a coordinator that died */
        answer(f, f->n_asked - 1);
}

static void test_asked_anew(void **state)
{
    struct fake *f = *state;
    struct child c;

    write_set(f, 2);
    f->script.heard = forgetful;
    eval(&c, f, (const char *[]){"--in-flight", "2", NULL});
    child_expect(&c, "asked anew", 0, NULL, "2 of 2 examples answered, 0 failed");
    assert_int_equal(f->n_asked, 4);
    child_finish(&c);
}

/* ---- masks ---- */

#define CODEC "models/tiny/vae-oid.npz"

/* What 16 codes stand for, drawn into a box of scene A, as COCO has it. */
static char *draw_mask(const struct esp_codec *codec, const int32_t *codes, const double *box,
                       uint32_t height, uint32_t width)
{
    float small[ESP_CODEC_PIXELS];
    uint8_t *mask = calloc((size_t)height * width, 1);
    struct esp_rle rle;
    char *text;

    assert_non_null(mask);
    assert_int_equal(esp_codec_decode(small, codec, codes, NULL), ESP_OK);
    assert_int_equal(esp_codec_paste(mask, height, width, small, box, NULL), ESP_OK);
    assert_int_equal(esp_rle_encode(&rle, mask, height, width, NULL), ESP_OK);
    assert_true(esp_rle_area(&rle) > 100);
    assert_int_equal(esp_rle_to_string(&text, &rle, NULL), ESP_OK);
    esp_rle_finish(&rle);
    free(mask);
    return text;
}

/* The very mask that the answer's codes stand for is wanted, and that of other codes. */
static void test_masks(void **state)
{
    static const uint16_t loc[4] = {100, 200, 900, 800};
    struct fake *f = *state;
    struct esp_codec *codec;
    uint8_t disc[ESP_CODEC_PIXELS], *bytes;
    int32_t codes[2][ESP_CODEC_N_TOK];
    char cwd[4096], text[512];
    uint32_t width, height;
    double box[4];
    size_t n;
    json_t *line, *object;
    FILE *file;
    struct child c;

    assert_int_equal(esp_codec_open(&codec, CODEC, NULL), ESP_OK);
    for (int half = 0; half < 2; half++) {
        for (int i = 0; i < ESP_CODEC_PIXELS; i++) {
            const int y = i / ESP_CODEC_SIDE - 32, x = i % ESP_CODEC_SIDE - 32;

            disc[i] = y * y + x * x < 900 && (!half || x < 0) ? 255 : 0;
        }
        assert_int_equal(esp_codec_encode(codes[half], codec, disc, NULL), ESP_OK);
    }
    n = (size_t)snprintf(text, sizeof text, "<loc%04u><loc%04u><loc%04u><loc%04u>", loc[0], loc[1], loc[2],
                         loc[3]);
    for (int i = 0; i < ESP_CODEC_N_TOK; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "<seg%03d>", codes[0][i]);
    snprintf(text + n, sizeof text - n, " disc");
    bytes = esp_slurp(&n, SCENE_A);
    assert_int_equal(esp_image_size(&width, &height, bytes, n, NULL, NULL), ESP_OK);
    free(bytes);
    esp_box_pixels(box, loc, height, width);
    file = fopen(f->set, "w");
    assert_true(file && getcwd(cwd, sizeof cwd));
    for (int half = 0; half < 2; half++) {
        char *mask = draw_mask(codec, codes[half], box, height, width), image[4200];

        snprintf(image, sizeof image, "%s/" SCENE_A, cwd);
        object = json_pack("{s:s, s:[f,f,f,f], s:{s:[i,i], s:s}}", "label", "disc", "box", box[0], box[1],
                           box[2], box[3], "mask", "size", (int)height, (int)width, "counts", mask);
        line = json_pack("{s:s, s:s, s:s, s:[o]}", "image", image, "prompt", "segment disc", "answer", text,
                         "objects", object);
        assert_non_null(line);
        assert_int_equal(json_dumpf(line, file, JSON_COMPACT), 0);
        fputc('\n', file);
        json_decref(line);
        free(mask);
    }
    assert_int_equal(fclose(file), 0);
    esp_codec_destroy(&codec);

    f->say = text;
    f->script.heard = at_once;
    eval(&c, f, (const char *[]){"--limit", "1", "--mask-codec", CODEC, "--json", NULL});
    child_expect(&c, "the same mask", 0, NULL, NULL);
    assert_true(figure(&c, "segment", "mask_iou") == 1 && figure(&c, "segment", "box_iou") == 1);
    assert_true(figure(&c, "segment", "exact") == 1 && figure(&c, "segment", "ap50") == 1);
    child_finish(&c);
    eval(&c, f, (const char *[]){"--mask-codec", CODEC, "--json", NULL});
    child_expect(&c, "another mask", 0, NULL, NULL);
    if (!(figure(&c, "segment", "mask_iou") > 0.6 &&
          figure(&c, "segment", "mask_iou") < 0.9)) /* half of 1 and some half */
        fail_msg("%s", OUT(&c));
    child_finish(&c);

    f->n_asked = 0;
    eval(&c, f, (const char *[]){"--mask-codec", SCENE_A, NULL});
    child_expect(&c, "no codec", 1, SCENE_A, "");
    child_finish(&c);
    eval(&c, f, (const char *[]){NULL});
    child_expect(&c, "none", 1, "set.jsonl:1: to compare masks there must be a vae-oid.npz", "");
    child_finish(&c);
    assert_int_equal(f->n_asked, 0);
}

static void test_bad_set(void **state)
{
    struct fake *f = *state;
    struct child c;
    FILE *file;

    write_set(f, 3);
    file = fopen(f->set, "a");
    assert_true(file && fputs("{\"image\": \"none.png\", \"prompt\": \"x\", \"answer\": \"\"}\n", file) >= 0);
    fclose(file);
    f->script.heard = at_once;
    eval(&c, f, (const char *[]){"--out", f->out, NULL});
    child_expect(&c, "bad set", 1, "set.jsonl:4: image: ", "");
    assert_int_equal(f->n_asked, 0);
    assert_int_not_equal(access(f->out, F_OK), 0); /* nothing was begun */
    child_finish(&c);
}

static void test_usage(void **state)
{
    static const struct {
        const char *args[8], *err;
    } cases[] = {
        {{"eval", "--model", TINY}, "give --data FILE"},
        {{"eval", "--data", "x"}, "no model"},
        {{"eval", "--model", TINY, "--data", "x", "--task", "draw"}, "no such task as draw"},
        {{"eval", "--model", TINY, "--data", "x", "y"}, "what is 'y'?"},
        {{"eval", "--model", TINY, "--data", "x", "--in-flight", "0"}, "--in-flight"},
        {{"eval", "--model", TINY, "--data", "x", "--suffix", "a"}, "--suffix"},
        {{"eval", "--model", TINY, "--data", "x", "--top-k", "3"}, "--top-k has no effect"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        child_run(&c, ESPALIER, cases[i].args);
        child_expect(&c, cases[i].err, 2, cases[i].err, "");
        child_finish(&c);
    }
}

/* The bar stands at a half until it is seen there. */
static void one_of_two(struct script *s, struct child *c, const struct esp_peer *from,
                       const struct esp_msg *msg)
{
    struct fake *f = s->self;

    if (is_request(f, from, msg) && f->n_asked == 1)
        answer(f, 0);
}

static void other_of_two(struct script *s, struct child *c)
{
    struct fake *f = s->self;

    if (f->n_asked == 2 && !f->answered[1] && strstr(ERR(c), "############............  50 %  1 of 2"))
        answer(f, 1);
}

static void test_terminal(void **state)
{
    struct fake *f = *state;
    struct child c;
    const char *args[] = {"eval", "--connect", f->endpoint, "--data", f->set, "--in-flight", "1", NULL};

    write_set(f, 2);
    f->script.heard = one_of_two;
    f->script.printed = other_of_two;
    child_start_on_terminal(&c, ESPALIER, args);
    child_wait(&c, &f->script);
    if (c.exit != 0 || !strstr(ERR(&c), "/s  ") || !strstr(ERR(&c), " left") ||
        !strstr(ERR(&c), "2 of 2 examples answered, 0 failed"))
        fail_msg("exit status %d\n%s", c.exit, ERR(&c));
    child_finish(&c);
}

/* ---- the real thing ---- */

#define N_RUNS 2

static json_t *run_once(const char *prompt)
{
    json_error_t why;
    struct child c;
    json_t *o;

    child_run(&c, ESPALIER,
              (const char *[]){"run", "--model", TINY, "--image", SCENE_A, "--max-tokens", "8", "--json",
                               prompt, NULL});
    child_expect(&c, prompt, 0, NULL, NULL);
    o = json_loads(OUT(&c), 0, &why);
    assert_non_null(o);
    child_finish(&c);
    return o;
}

static void add_line(FILE *file, const char *cwd, const char *prompt, json_t *answer, const char *objects)
{
    json_error_t why;
    char image[4200];
    json_t *o = json_object();

    snprintf(image, sizeof image, "%s/" SCENE_A, cwd);
    json_object_set_new(o, "image", json_string(image));
    json_object_set_new(o, "prompt", json_string(prompt));
    json_object_set(o, "answer", answer);
    if (objects)
        json_object_set_new(o, "objects", json_loads(objects, 0, &why));
    assert_int_equal(json_dumpf(o, file, JSON_COMPACT), 0);
    fputc('\n', file);
    json_decref(o);
}

/* What the model says of a picture when it is asked alone, it says among others, and counts as right; what nobody would
 * say counts as wrong. */
static void test_real_cluster(void **state)
{
    static const char *const prompts[N_RUNS] = {"caption en", "answer en what"};
    struct fake *f = *state;
    json_t *runs[N_RUNS], *wrong = json_string("zzz"), *line;
    char cwd[4096], *text;
    struct child c;
    FILE *file = fopen(f->set, "w");
    size_t n;

    assert_true(file && getcwd(cwd, sizeof cwd));
    for (size_t i = 0; i < N_RUNS; i++) {
        runs[i] = run_once(prompts[i]);
        add_line(file, cwd, prompts[i], json_object_get(runs[i], "text"), NULL);
    }
    add_line(file, cwd, "answer en who", wrong, NULL);
    add_line(file, cwd, "detect cat", wrong, "[{\"label\": \"cat\", \"box\": [0, 0, 10, 10]}]");
    assert_int_equal(fclose(file), 0);

    child_run(&c, ESPALIER,
              (const char *[]){"eval", "--model", TINY, "--data", f->set, "--max-tokens", "8", "--out",
                               f->out, "--json", NULL});
    child_expect(&c, "real", 0, NULL, NULL);
    assert_true(figure(&c, NULL, "done") == 4 && figure(&c, NULL, "failed") == 0);
    assert_true(figure(&c, "caption", "exact") == 1 && figure(&c, "caption", "f1") == 1);
    assert_true(figure(&c, "answer", "exact") == 0.5);
    assert_true(figure(&c, "detect", "exact") == 0 && figure(&c, "detect", "box_iou") == 0 &&
                figure(&c, "detect", "ap50") == 0);
    child_finish(&c);

    /* And ids and log-probabilities are those of the answer alone. */
    text = (char *)esp_slurp(&n, "%s", f->out);
    text[n - 1] = '\0';
    for (char *at = strtok(text, "\n"); (at = strtok(NULL, "\n"));) {
        json_int_t number;

        line = json_loads(at, 0, NULL);
        assert_non_null(line);
        number = json_integer_value(json_object_get(line, "line"));
        if (number <= N_RUNS) {
            json_t *run = runs[number - 1];

            assert_true(json_equal(json_object_get(line, "ids"), json_object_get(run, "ids")));
            assert_true(json_equal(json_object_get(line, "logprobs"), json_object_get(run, "logprobs")));
            assert_true(json_equal(json_object_get(line, "text"), json_object_get(run, "text")));
        }
        json_decref(line);
    }
    free(text);
    for (size_t i = 0; i < N_RUNS; i++)
        json_decref(runs[i]);
    json_decref(wrong);
    child_no_daemons(f->dir);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_many_at_once), TEST(test_limit_and_task), TEST(test_refused),    TEST(test_failures),
        TEST(test_interrupted),  TEST(test_silence),        TEST(test_asked_anew), TEST(test_masks),
        TEST(test_killed),       TEST(test_bad_set),        TEST(test_usage),      TEST(test_terminal),
        TEST(test_real_cluster),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
