/* `espalier chat`: on a pipe and on a terminal, against a coordinator that follows a script, and with a real cluster. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/cluster/cli_child.h"
#include "tests/support/temp.h"

#define TINY    "tests/golden/data/tiny"
#define SCENE_A TINY "/images/scene_a.png"
#define SCENE_B TINY "/images/scene_b.png"

#define CTRL_C "\x03"
#define CTRL_D "\x04"

#define MAX_ASKED 32

struct asked {
    uint64_t id;
    char prompt[256];
    uint32_t n_images, max_tokens, top_k, beams;
    size_t n_first; /* bytes of its first picture */
    double temperature;
    uint64_t seed;
};

static const char KILL_W1[] = "instead of typing, w1 is killed";

/* Types the next text once the screen holds `seen` behind where the last one was found. */
struct turn {
    const char *seen, *type;
};

struct fake {
    char dir[32], endpoint[64], input[64], history[96];
    struct esp_net *net;
    struct script script;
    struct esp_peer client;
    bool has_client;
    uint32_t n_asked;
    struct asked asked[MAX_ASKED];
    uint32_t n_cancel;
    const struct turn *turns;
    size_t n_turns, turn, seen; /* of them; the present one; bytes of the screen behind which to look */
};

static void tell(struct fake *f, struct esp_msg *msg)
{
    struct esp_err err;
    if (esp_link_send(f->script.link, &f->client, msg, &err))
        fail_msg("the fake coordinator sends %s: %s", esp_msg_name(msg->kind), err.text);
}

static void tell_error(struct fake *f, uint64_t id, esp_status code, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_ERROR};

    m.error = (struct esp_msg_error){.code = code, .text = text, .session = id};
    tell(f, &m);
}

static void tell_token(struct fake *f, uint64_t id, uint32_t index, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_TOKEN};

    m.token = (struct esp_msg_token){.session = id, .index = index, .id = 100, .logprob = -1, .text = text};
    tell(f, &m);
}

/* "fail": an error. "hang": a first token, and the rest never. Anything else: "<" prompt ">" in two tokens. */
static void answer(struct fake *f, const struct asked *a)
{
    static const struct esp_stage_info stage = {.worker = "w0", .device = "GPU", .enc_hi = 1, .dec_hi = 1};
    static const uint32_t ids[] = {100, 100};
    static const double logprobs[] = {-1, -1};
    static struct esp_msg m;
    char text[300];

    memset(&m, 0, sizeof m);
    if (strcmp(a->prompt, "fail") == 0) {
        tell_error(f, a->id, ESP_E_LIMIT, "no room for this one");
        return;
    }
    m.kind = ESP_MSG_ACCEPTED;
    m.accepted = (struct esp_msg_accepted){.session = a->id,
                                           .n_prompt_ids = 2,
                                           .prompt_ids = ids,
                                           .image_tokens = 16,
                                           .n_stages = 1,
                                           .stages = &stage};
    tell(f, &m);
    tell_token(f, a->id, 0, "<");
    if (strcmp(a->prompt, "hang") == 0)
        return;
    snprintf(text, sizeof text, "%s>", a->prompt);
    tell_token(f, a->id, 1, text);
    snprintf(text, sizeof text, "<%s>", a->prompt);
    memset(&m, 0, sizeof m);
    m.kind = ESP_MSG_DONE;
    m.done = (struct esp_msg_done){
        .session = a->id,
        .best =
            {.text = text, .finish = "length", .n_ids = 2, .ids = ids, .n_logprobs = 2, .logprobs = logprobs},
        .encode = 0.5,
        .prefill = 0.25,
        .decode = 2,
        .images_cached = f->n_asked > 1};
    tell(f, &m);
}

static void on_request(struct fake *f, const struct esp_msg *msg)
{
    const struct esp_msg_request *r = &msg->request;
    struct asked *a = &f->asked[f->n_asked++];

    assert_true(f->n_asked < MAX_ASKED);
    a->id = r->id;
    snprintf(a->prompt, sizeof a->prompt, "%s", r->prompt);
    a->n_images = r->n_images;
    a->max_tokens = r->max_tokens;
    a->temperature = r->sampling.temperature;
    a->top_k = r->sampling.top_k;
    a->beams = r->sampling.beams;
    a->seed = r->sampling.seed;
    a->n_first = r->n_images > 0 ? msg->blob[0].n_bytes : 0;
    answer(f, a);
}

static void heard(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    static struct esp_msg m = {.kind = ESP_MSG_STATUS};
    struct fake *f = s->self;

    if (f->has_client)
        assert_true(esp_peer_equal(&f->client, from)); /* one connection for all of it */
    f->client = *from;
    f->has_client = true;
    switch (msg->kind) {
    case ESP_MSG_STATUS_QUERY:
        m.status =
            (struct esp_msg_status){.id = msg->status_query.id, .ready = true, .epoch = 1, .n_sessions = 1};
        tell(f, &m);
        break;
    case ESP_MSG_CANCEL:
        assert_int_equal(msg->cancel.session, f->asked[f->n_asked - 1].id);
        f->n_cancel++;
        tell_error(f, msg->cancel.session, ESP_E_CANCELLED, "cancelled");
        break;
    case ESP_MSG_REQUEST:
        on_request(f, msg);
        break;
    default:
        fail_msg("the command line sent a %s", esp_msg_name(msg->kind));
    }
}

static int fake_setup(void **state)
{
    static struct fake f;
    char state_home[64];

    memset(&f, 0, sizeof f);
    assert_int_equal(esp_temp_make(f.dir, sizeof f.dir), 0);
    snprintf(f.endpoint, sizeof f.endpoint, "ipc://%s/c", f.dir);
    snprintf(f.input, sizeof f.input, "%s/input", f.dir);
    snprintf(f.history, sizeof f.history, "%s/state/espalier/history", f.dir);
    assert_int_equal(esp_net_create(&f.net, NULL), ESP_OK);
    assert_int_equal(
        esp_link_create(&f.script.link, f.net, &(struct esp_link_options){.type = ESP_LINK_SERVE}, NULL),
        ESP_OK);
    assert_int_equal(esp_link_bind(f.script.link, f.endpoint, false, NULL, NULL), ESP_OK);
    f.script.self = &f;
    f.script.heard = heard;
    setenv("XDG_RUNTIME_DIR", f.dir, 1);
    snprintf(state_home, sizeof state_home, "%s/state", f.dir);
    setenv("XDG_STATE_HOME", state_home, 1);
    *state = &f;
    return 0;
}

static int fake_teardown(void **state)
{
    struct fake *f = *state;

    script_close(&f->script, &f->net, f->dir);
    return esp_temp_remove(f->dir);
}

static void write_input(const struct fake *f, const char *text, size_t n)
{
    FILE *file = fopen(f->input, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, n, file), n);
    fclose(file);
}

static void chat(struct child *c, struct fake *f, const char *lines, const char *const *options)
{
    const char *args[16] = {"chat", "--connect", f->endpoint};
    size_t n = 3;

    for (size_t i = 0; options && options[i]; i++)
        args[n++] = options[i];
    write_input(f, lines, strlen(lines));
    child_start(c, ESPALIER, f->input, args);
    child_wait(c, &f->script);
}

/* ---- on a pipe ---- */

static void test_questions(void **state)
{
    struct fake *f = *state;
    struct child c;
    struct stat a, b;

    assert_int_equal(stat(SCENE_A, &a) | stat(SCENE_B, &b), 0);
    chat(&c, f,
         "caption en\n"
         "\n"
         "  /add \"" SCENE_B "\"\n"
         "/detect cat ; dog  \n"
         "/image '" SCENE_B "' tests/golden/data/tiny/images/scene\\_a.png\r\n"
         "/image\n"
         "/segment cat\n"
         "/caption\n/caption de\n/ocr\n/ask how many\n"
         "the last line has no end",
         (const char *[]){"--image", SCENE_A, NULL});
    child_expect(&c, "questions", 0, NULL, "<caption en>\n<detect cat ; dog>\n1: " SCENE_B " (");
    child_expect(
        &c, "questions", 0, NULL,
        "<segment cat>\n<caption en>\n<caption de>\n<ocr>\n<answer en how many>\n<the last line has no "
        "end>\n");
    assert_string_equal(ERR(&c), "");
    assert_int_equal(f->n_asked, 8);
    assert_int_equal(f->asked[0].n_images, 1);
    assert_int_equal(f->asked[0].n_first, a.st_size);
    assert_int_equal(f->asked[0].max_tokens, 128);
    assert_int_equal(f->asked[1].n_images, 2);
    assert_int_equal(f->asked[1].n_first, a.st_size);
    assert_int_equal(f->asked[2].n_images, 2);
    assert_int_equal(f->asked[2].n_first, b.st_size);
    for (uint32_t i = 1; i < f->n_asked; i++)
        assert_true(f->asked[i].id > f->asked[i - 1].id);
    child_finish(&c);
    assert_int_not_equal(access(f->history, F_OK), 0); /* a script is nobody's history */
}

static void test_settings(void **state)
{
    struct fake *f = *state;
    struct child c;

    chat(&c, f,
         "a\n"
         "/set temperature 0.5\n/set top-k 40\n/set seed 18446744073709551615\n/set max-tokens 7\nb\n"
         "/set top-k 0\n/set temperature 0\n/set beams 3\nc\n/set\n",
         (const char *[]){"--max-tokens", "99", "--seed", "3", NULL});
    child_expect(&c, "settings", 0, NULL, "<a>\n<b>\n<c>\ntemperature 0\ntop-k       0\ntop-p       0\n");
    child_expect(&c, "settings", 0, NULL, "max-tokens  7\nseed        18446744073709551615\nbeams       3\n");
    assert_int_equal(f->asked[0].max_tokens, 99);
    assert_true(f->asked[0].seed == 3 && f->asked[0].temperature == 0);
    assert_true(f->asked[1].seed == UINT64_MAX && f->asked[1].temperature == 0.5);
    assert_int_equal(f->asked[1].top_k, 40);
    assert_int_equal(f->asked[1].max_tokens, 7);
    assert_int_equal(f->asked[2].beams, 3);
    assert_int_equal(f->asked[2].n_images, 0);
    child_finish(&c);
}

/* What fails is said, and the next line is answered all the same; the exit status remembers. */
static void test_failures(void **state)
{
    static const struct {
        const char *line, *err;
    } cases[] = {
        {"fail", "espalier chat: no room for this one\n"},
        {"/frobnicate", "there is no /frobnicate; /help lists"},
        {"/", "there is no /;"},
        {"/image no/such.png", "no/such.png: No such file"},
        {"/image \"" SCENE_A, "a quote (\") is not closed"},
        {"/add", "/add FILE: which?"},
        {"/detect", "/detect THINGS: which?"},
        {"/segment  ", "/segment THING: which?"},
        {"/ask", "/ask QUESTION: which?"},
        {"/ocr this", "/ocr takes nothing"},
        {"/stats now", "/stats takes nothing"},
        {"/set speed 3", "/set speed: there are temperature, top-k,"},
        {"/set top-p 1.5", "/set top-p 1.5: expected a number from 0 to 1"},
        {"/set beams two", "/set beams two: expected a whole number from 1 to 128"},
        {"/set seed -1", "/set seed -1: expected a whole number"},
        {"/set seed", "/set seed : expected a whole number"},
        {"/set top-k 5", "--top-k has no effect without --temperature"}, /* and is taken back: b is asked */
        {"\xff", "the prompt is not UTF-8"},
    };
    struct fake *f = *state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char lines[256];
        struct child c;

        f->n_asked = 0;
        f->has_client = false;
        snprintf(lines, sizeof lines, "%s\nb\n", cases[i].line);
        chat(&c, f, lines, (const char *[]){"--image", SCENE_A, NULL});
        child_expect(&c, cases[i].line, 1, cases[i].err, "<b>\n");
        assert_int_equal(f->asked[f->n_asked - 1].n_images, 1);
        assert_int_equal(f->asked[f->n_asked - 1].top_k, 0);
        child_finish(&c);
    }
}

static void test_bad_lines(void **state)
{
    const size_t n_long = 70000;
    struct fake *f = *state;
    struct child c;
    char *lines = malloc(3 * n_long);
    size_t n = 0;

    assert_non_null(lines);
    memset(lines, 'x', n_long);
    n = n_long;
    n += (size_t)snprintf(lines + n, 64, "\na\nb") + 1; /* b, a NUL, ... */
    n += (size_t)snprintf(lines + n, 64, "b\nc\n");
    memset(lines + n, 'y', n_long); /* and no end */
    n += n_long;
    write_input(f, lines, n);
    free(lines);
    child_start(&c, ESPALIER, f->input, (const char *[]){"chat", "--connect", f->endpoint, NULL});
    child_wait(&c, &f->script);
    child_expect(&c, "bad lines", 1, "espalier chat: a line of more than 65792 bytes\n", "<a>\n<c>\n");
    child_expect(&c, "bad lines", 1, "espalier chat: a line with a NUL character\n", NULL);
    assert_non_null(strstr(strstr(ERR(&c), "more than") + 1, "more than")); /* the last one, too */
    assert_int_equal(f->n_asked, 2);
    child_finish(&c);
}

static void test_stats_and_quit(void **state)
{
    struct fake *f = *state;
    struct child c;

    chat(&c, f, "/stats\na\nb\n/stats\n/help\n/quit\nnever\n", (const char *[]){"-i", SCENE_A, NULL});
    child_expect(&c, "stats", 0, NULL, "ready, placement 1, up -\n");
    child_expect(&c, "stats", 0, NULL,
                 "\nthe last answer: 2 tokens behind a prompt of 18\n"
                 "  load 0.00 s, queue 0.00 s, encode 0.50 s, prefill 0.25 s, decode 2.00 s (0.50 tokens/s)\n"
                 "  pictures: 1 of 1 from the cache\n");
    child_expect(&c, "help", 0, NULL, "/segment THING ");
    assert_true(strstr(OUT(&c), "the last answer") > strstr(OUT(&c), "<b>")); /* there was none at first */
    assert_int_equal(f->n_asked, 2);
    child_finish(&c);

    chat(&c, f, "", NULL);
    child_expect(&c, "nothing", 0, NULL, NULL);
    assert_string_equal(OUT(&c), "");
    child_finish(&c);
}

static void test_usage(void **state)
{
    struct child c;

    child_run(&c, ESPALIER, (const char *[]){"chat", NULL});
    child_expect(&c, "no model", 2, "no model: give --model DIR", NULL);
    child_finish(&c);
    child_run(&c, ESPALIER, (const char *[]){"chat", "--model", TINY, "caption en", NULL});
    child_expect(&c, "a prompt", 2, "'caption en': no such argument; questions are typed", NULL);
    child_finish(&c);
    child_run(&c, ESPALIER, (const char *[]){"chat", "--model", TINY, "--image", "-", NULL});
    child_expect(&c, "a piped picture", 2, "--image -: standard input is where the questions come from",
                 NULL);
    child_finish(&c);
    child_run(&c, ESPALIER, (const char *[]){"chat", "--model", TINY, "--beams", "2", "--top-k", "3", NULL});
    child_expect(&c, "beams", 2, "--beams does not sample", NULL);
    child_finish(&c);
    child_run(&c, ESPALIER, (const char *[]){"chat", "--model", TINY, "--image", "no.png", NULL});
    child_expect(&c, "no picture", 1, "espalier chat: no.png: No such file", NULL);
    child_finish(&c);
}

/* ---- on a terminal ---- */

static void take_turns(struct script *s, struct child *c)
{
    struct fake *f = s->self;

    while (f->turn < f->n_turns) {
        const struct turn *t = &f->turns[f->turn];
        const char *found = strstr(ERR(c) + f->seen, t->seen);

        if (!found)
            return;
        f->seen = (size_t)(found - ERR(c)) + strlen(t->seen);
        f->turn++;
        if (t->type == KILL_W1)
            kill(child_daemon(f->dir, "w1"), SIGKILL);
        else if (t->type)
            child_type(c, t->type);
    }
}

static void talk(struct child *c, struct fake *f, const char *const *args, const struct turn *turns, size_t n,
                 int exit)
{
    f->turns = turns;
    f->n_turns = n;
    f->turn = f->seen = 0;
    f->n_asked = f->n_cancel = 0;
    f->has_client = false;
    f->script.printed = take_turns;
    child_start_talking(c, ESPALIER, args);
    child_wait(c, &f->script);
    if (f->turn < n)
        fail_msg("the screen never held \"%s\":\n%s", turns[f->turn].seen, ERR(c));
    child_expect(c, "talk", exit, NULL, NULL);
}

#define TALK(c, f, turns, exit)                                                                              \
    talk(c, f, (const char *[]){"chat", "--connect", (f)->endpoint, "-i", SCENE_A, NULL}, turns,             \
         sizeof turns / sizeof turns[0], exit)

static void test_terminal(void **state)
{
    static const struct turn turns[] = {
        {"1 picture. /help lists what there is, Ctrl-D ends.", NULL},
        {"> ", "caption en\n"},
        {"<caption en>\r\n", NULL},
        {"> ", "hang\n"},
        {"<", CTRL_C}, /* an answer under way ends */
        {"cancelled", NULL},
        {"> ", "of no use" CTRL_C}, /* what was typed is dropped */
        {"> ", "fail\n"},
        {"espalier chat: no room for this one", NULL},
        {"> ", "/set seed 5\n"},
        {"> ", "\x10\n"}, /* Ctrl-P: the line before again */
        {"/set seed 5", NULL},
        {"> ", "ocr\n"},
        {"<ocr>\r\n", NULL},
        {"> ", CTRL_D},
    };
    struct fake *f = *state;
    struct stat info;
    struct child c;
    char line[64];
    FILE *history;

    TALK(&c, f, turns, 0); /* failures were seen as they came */
    child_finish(&c);
    assert_int_equal(f->n_asked, 4);
    assert_string_equal(f->asked[1].prompt, "hang");
    assert_int_equal(f->n_cancel, 1);
    assert_string_equal(f->asked[2].prompt, "fail");
    assert_true(f->asked[3].seed == 5);

    assert_int_equal(stat(f->history, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    history = fopen(f->history, "r");
    assert_non_null(history);
    for (const char *const *want =
             (const char *const[]){"caption en\n", "hang\n", "fail\n", "/set seed 5\n", "ocr\n", NULL};
         *want; want++) {
        assert_non_null(fgets(line, sizeof line, history));
        assert_string_equal(line, *want); /* one twice running is kept once */
    }
    assert_null(fgets(line, sizeof line, history));
    fclose(history);

    /* And the next session has it. */
    {
        static const struct turn again[] = {{"> ", "\x10\n"}, {"<ocr>\r\n", NULL}, {"> ", CTRL_D}};
        TALK(&c, f, again, 0);
        child_finish(&c);
    }
}

static void test_completion(void **state)
{
    static const struct turn turns[] = {
        {"> ", "/seg\tcat\n"},
        {"<segment cat>\r\n", NULL},
        {"> ", "/add tests/golden/data/tiny/images/scene_b\t\n"},
        {"> ", "/set max\t5\n"},
        {"> ", "/image\n"},
        {"2: " SCENE_B " (", NULL},
        {"> ", "ocr\n"},
        {"<ocr>\r\n", NULL},
        {"> ", "/quit\n"},
    };
    struct fake *f = *state;
    struct child c;

    TALK(&c, f, turns, 0);
    child_finish(&c);
    assert_int_equal(f->asked[1].n_images, 2);
    assert_int_equal(f->asked[1].max_tokens, 5);
}

static void terminate(struct script *s, struct child *c)
{
    if (strstr(ERR(c), "> "))
        kill(c->pid, SIGTERM);
}

static void test_terminated(void **state)
{
    struct fake *f = *state;
    struct child c;

    f->script.printed = terminate;
    child_start_talking(&c, ESPALIER, (const char *[]){"chat", "--connect", f->endpoint, NULL});
    child_wait(&c, &f->script);
    child_expect(&c, "SIGTERM", 143, "espalier chat: cancelled", NULL);
    child_finish(&c);
}

/* ---- the real thing ---- */

/* The reference's answer, twice over one cluster: the second time its picture is there already. */
static void test_real(void **state)
{
    struct fake *f = *state;
    json_error_t why;
    json_t *golden = json_load_file(TINY "/golden.json", 0, &why), *one;
    char lines[512], want[4096];
    struct child c;
    const char *prefix;

    assert_non_null(golden);
    one = json_array_get(json_object_get(golden, "generate"), 0);
    prefix = json_string_value(json_object_get(one, "prefix"));
    snprintf(lines, sizeof lines, "%s\n%s\n/stats\n", prefix, prefix);
    snprintf(want, sizeof want, "%s\n%s\nready, ", json_string_value(json_object_get(one, "text")),
             json_string_value(json_object_get(one, "text")));
    write_input(f, lines, strlen(lines));
    child_start(&c, ESPALIER, f->input,
                (const char *[]){"chat", "--model", TINY, "--image", SCENE_A, "--max-tokens", "24",
                                 "--ignore-eos", NULL});
    child_wait(&c, NULL);
    child_expect(&c, "real", 0, NULL, want);
    child_expect(&c, "real", 0, NULL, "  pictures: 1 of 1 from the cache\n");
    child_expect(&c, "real", 0, NULL, "1 pictures encoded and 1 from the cache\n");
    child_finish(&c);
    child_no_daemons(f->dir);
    json_decref(golden);
}

/* A worker that ends while nobody asks anything is told over the prompt, and the other one takes its layers. */
static void test_worker_lost(void **state)
{
    static const struct turn turns[] = {
        {"> ", "ocr\n"},
        {"> ", "half a li"},
        {"half a li", KILL_W1},
        {"w1 was killed by signal 9", NULL},
        {"1 workers are left", NULL},
        {"> half a li", "ne\n"}, /* drawn again */
        {"> ", "/stats\n"},
        {"ready, placement ", NULL},
        {"> ", CTRL_D},
    };
    struct fake *f = *state;
    struct child c;

    talk(&c, f, (const char *[]){"chat", "--model", TINY, "-i", SCENE_A, "--max-tokens", "4", NULL}, turns,
         sizeof turns / sizeof turns[0], 0);
    child_finish(&c);
    child_no_daemons(f->dir);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, fake_setup, fake_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_questions),      TEST(test_settings), TEST(test_failures),    TEST(test_bad_lines),
        TEST(test_stats_and_quit), TEST(test_usage),    TEST(test_terminal),    TEST(test_completion),
        TEST(test_terminated),     TEST(test_real),     TEST(test_worker_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
