/* `espalier verify`: against a coordinator that follows a script, and against a real cluster. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cluster/cli_json.h"

#define TINY "tests/golden/data/tiny"

struct fake {
    char dir[32], endpoint[64];
    struct esp_net *net;
    struct script script;
    struct esp_peer client;
    const struct esp_msg_verify_report *reports; /* sent in order, with the query's id */
    uint32_t n_reports;
    bool refuse;
    uint32_t n_cancel;
    bool interrupted;
    uint64_t id; /* of the query */
};

static void tell(struct fake *f, struct esp_msg *msg)
{
    script_tell(&f->script, &f->client, msg);
}

static void tell_error(struct fake *f, uint64_t id, esp_status code, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_ERROR};

    m.error = (struct esp_msg_error){.code = code, .text = text, .session = id};
    tell(f, &m);
}

static void heard(struct script *s, struct child *c, const struct esp_peer *from, const struct esp_msg *msg)
{
    static struct esp_msg m;
    struct fake *f = s->self;

    f->client = *from;
    memset(&m, 0, sizeof m);
    switch (msg->kind) {
    case ESP_MSG_STATUS_QUERY:
        m.kind = ESP_MSG_STATUS;
        m.status =
            (struct esp_msg_status){.id = msg->status_query.id, .ready = true, .epoch = 1, .uptime = 10};
        tell(f, &m);
        break;
    case ESP_MSG_VERIFY_QUERY:
        f->id = msg->verify_query.id;
        if (f->refuse)
            tell_error(f, f->id, ESP_E_LIMIT, "another verification is under way: ask again when it is done");
        for (uint32_t i = 0; !f->refuse && i < f->n_reports; i++) {
            m.kind = ESP_MSG_VERIFY_REPORT;
            m.verify_report = f->reports[i];
            m.verify_report.id = f->id;
            tell(f, &m);
        }
        break;
    case ESP_MSG_CANCEL:
        assert_int_equal(msg->cancel.session, f->id);
        f->n_cancel++;
        tell_error(f, f->id, ESP_E_CANCELLED, "cancelled");
        break;
    default:
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

    script_close(&f->script, &f->net, f->dir);
    rmdir(f->dir);
    return 0;
}

static void run(struct child *c, struct fake *f, const char *option)
{
    child_start(c, ESPALIER, NULL, (const char *[]){"verify", "--connect", f->endpoint, option, NULL});
    child_wait(c, &f->script);
}

static json_t *worker(json_t *o, size_t i)
{
    return json_array_get(json_object_get(o, "workers"), i);
}

#define GPU .device = "RTX 3060", .driver = "NVIDIA 550.54", .limit = 1e-4

static void test_right(void **state)
{
    static const struct esp_msg_verify_report reports[] = {
        {.worker = "w0",
         .layer = "vision.layer.0",
         .error = 1e-6,
         .done = 1,
         .total = 2,
         .n_workers = 2,
         .n_left = 2,
         GPU},
        {.worker = "attic",
         .layer = "prefill.layer.1",
         .error = 4e-6,
         .done = 1,
         .total = 1,
         .n_workers = 2,
         .n_left = 1,
         GPU},
        {.worker = "w0",
         .layer = "prefill.layer.0",
         .error = 3e-6,
         .done = 2,
         .total = 2,
         .n_workers = 2,
         .n_left = 0,
         GPU},
    };
    struct fake *f = *state;
    struct child c;
    json_t *o;

    f->reports = reports;
    f->n_reports = 3;
    run(&c, f, NULL);
    child_expect(
        &c, "right", 0, NULL,
        "w0    RTX 3060, NVIDIA 550.54: right in 2 checks; the worst prefill.layer.0: error 3e-06, limit "
        "0.0001\n"
        "attic RTX 3060, NVIDIA 550.54: right in 1 checks; the worst prefill.layer.1: error 4e-06, limit "
        "0.0001\n");
    assert_string_equal(ERR(&c), "");
    child_finish(&c);
    run(&c, f, "--json");
    child_expect(&c, "right", 0, NULL, NULL);
    o = child_json(&c);
    assert_true(json_is_true(json_object_get(o, "right")));
    assert_int_equal(json_array_size(json_object_get(o, "workers")), 2);
    assert_true(json_is_true(json_object_get(worker(o, 1), "right")));
    assert_string_equal(json_string_value(json_object_get(worker(o, 1), "worker")), "attic");
    assert_int_equal(json_integer_value(json_object_get(worker(o, 0), "checks")), 2);
    assert_true(json_is_null(json_object_get(worker(o, 0), "first_wrong")));
    assert_true(json_is_null(json_object_get(worker(o, 0), "why")));
    json_decref(o);
    child_finish(&c);
}

static void test_wrong(void **state)
{
    static const struct esp_msg_verify_report reports[] = {
        {.worker = "w0",
         .layer = "vision.layer.0",
         .error = 1e-6,
         .done = 1,
         .total = 4,
         .n_workers = 2,
         .n_left = 2,
         GPU},
        {.worker = "w0",
         .layer = "vision.layer.1",
         .error = 0.25,
         .done = 2,
         .total = 4,
         .n_workers = 2,
         .n_left = 2,
         GPU},
        {.worker = "w0",
         .layer = "vision.layer.2",
         .error = 1e9,
         .done = 3,
         .total = 4,
         .n_workers = 2,
         .n_left = 2,
         GPU},
        {.worker = "w1",
         .layer = "prefill.layer.1",
         .error = 4e-6,
         .done = 1,
         .total = 1,
         .n_workers = 2,
         .n_left = 1,
         GPU},
        {.worker = "w0",
         .layer = "vision.layer.3",
         .error = 1e-6,
         .done = 4,
         .total = 4,
         .n_workers = 2,
         .n_left = 0,
         GPU},
    };
    struct fake *f = *state;
    struct child c;
    json_t *o, *first;

    f->reports = reports;
    f->n_reports = 5;
    run(&c, f, NULL);
    child_expect(
        &c, "wrong", 1,
        "espalier verify: w0 computes wrongly, first in vision.layer.1; do not use it (RTX 3060, NVIDIA "
        "550.54)\n",
        "w0 RTX 3060, NVIDIA 550.54: WRONG, first in vision.layer.1: error 0.25, limit 0.0001; 2 of 4 "
        "checks deviate, most vision.layer.2: error 1e+09, limit 0.0001\n");
    child_expect(&c, "wrong", 1, NULL, "w1 RTX 3060, NVIDIA 550.54: right in 1 checks");
    child_finish(&c);
    run(&c, f, "--json");
    child_expect(&c, "wrong", 1, "w0 computes wrongly", NULL);
    o = child_json(&c);
    assert_true(json_is_false(json_object_get(o, "right")));
    assert_true(json_is_false(json_object_get(worker(o, 0), "right")));
    assert_true(json_is_true(json_object_get(worker(o, 1), "right")));
    assert_int_equal(json_integer_value(json_object_get(worker(o, 0), "wrong")), 2);
    first = json_object_get(worker(o, 0), "first_wrong");
    assert_string_equal(json_string_value(json_object_get(first, "layer")), "vision.layer.1");
    assert_true(json_real_value(json_object_get(first, "error")) == 0.25);
    assert_true(json_real_value(json_object_get(first, "limit")) == 1e-4);
    json_decref(o);
    child_finish(&c);
}

static void test_could_not(void **state)
{
    static const struct esp_msg_verify_report reports[] = {
        {.worker = "w0",
         .layer = "vision.layer.0",
         .error = 1e-6,
         .done = 1,
         .total = 4,
         .n_workers = 2,
         .n_left = 2,
         GPU},
        {.worker = "w1",
         .n_workers = 2,
         .n_left = 1,
         .why = "no free KV block",
         .device = "RTX 3060",
         .driver = "NVIDIA 550.54"},
        {.worker = "w0",
         .n_workers = 2,
         .n_left = 0,
         .why = "the model was placed anew meanwhile: ask again",
         .device = "RTX 3060",
         .driver = "NVIDIA 550.54"},
    };
    static const struct esp_msg_verify_report too_few[] = {{.worker = "w0",
                                                            .layer = "vision.layer.0",
                                                            .error = 1e-6,
                                                            .done = 1,
                                                            .total = 1,
                                                            .n_workers = 2,
                                                            .n_left = 0,
                                                            GPU}};
    struct fake *f = *state;
    struct child c;
    json_t *o;

    f->reports = reports;
    f->n_reports = 3;
    run(&c, f, NULL);
    child_expect(&c, "could not", 1, "espalier verify: w0 was not checked\n",
                 "w1 RTX 3060, NVIDIA 550.54: it could not be checked: no free KV block\n");
    child_expect(&c, "could not", 1, NULL,
                 "w0 RTX 3060, NVIDIA 550.54: it could not be checked whole: the model was");
    child_finish(&c);
    run(&c, f, "--json");
    child_expect(&c, "could not", 1, "w0 was not checked", NULL);
    o = child_json(&c);
    assert_true(json_is_false(json_object_get(o, "right")));
    assert_true(json_is_null(json_object_get(worker(o, 1), "right")));
    assert_string_equal(json_string_value(json_object_get(worker(o, 1), "why")), "no free KV block");
    json_decref(o);
    child_finish(&c);

    f->reports = too_few; /* a coordinator that ends before all have spoken */
    f->n_reports = 1;
    run(&c, f, NULL);
    child_expect(&c, "too few", 1, "1 of 2 workers were checked", "w0 RTX");
    child_finish(&c);

    f->refuse = true;
    run(&c, f, NULL);
    child_expect(&c, "refused", 1, "espalier verify: another verification is under way", NULL);
    assert_string_equal(OUT(&c), "");
    child_finish(&c);
}

static void interrupt(struct script *s, struct child *c)
{
    struct fake *f = s->self;

    if (strstr(ERR(c), "verifying: 1 of 2 checks") && !f->interrupted) /* a second one would end it at once */
        f->interrupted = kill(c->pid, SIGINT) == 0;
}

static void test_cancel(void **state)
{
    static const struct esp_msg_verify_report reports[] = {{.worker = "w0",
                                                            .layer = "vision.layer.0",
                                                            .error = 1e-6,
                                                            .done = 1,
                                                            .total = 2,
                                                            .n_workers = 1,
                                                            .n_left = 1,
                                                            GPU}};
    struct fake *f = *state;
    struct child c;

    f->reports = reports;
    f->n_reports = 1;
    f->script.printed = interrupt;
    child_start_on_terminal(&c, ESPALIER, (const char *[]){"verify", "--connect", f->endpoint, NULL});
    child_wait(&c, &f->script);
    child_expect(&c, "cancel", 130, "espalier verify: cancelled", NULL);
    assert_int_equal(f->n_cancel, 1);
    child_finish(&c);
}

/* The real thing, a cluster that is started for it: lavapipe is right. */
static void test_real(void **state)
{
    struct child c;
    json_t *o;

    child_run(&c, ESPALIER,
              (const char *[]){"verify", "--model", TINY, "--split", "1/1,1/2", "--json", NULL});
    child_expect(&c, "tiny", 0, NULL, NULL);
    o = child_json(&c);
    assert_true(json_is_true(json_object_get(o, "right")));
    assert_int_equal(json_array_size(json_object_get(o, "workers")), 2);
    for (size_t i = 0; i < 2;
         i++) { /* a layer of the encoder, and of each decoder layer both ways to run it */
        assert_true(json_integer_value(json_object_get(worker(o, i), "checks")) >= 3);
        assert_true(json_is_true(json_object_get(worker(o, i), "right")));
    }
    json_decref(o);
    child_finish(&c);
}

static void test_usage(void **state)
{
    struct child c;

    child_run(&c, ESPALIER, (const char *[]){"verify", NULL});
    child_expect(&c, "no model", 2, "no model: give --model DIR", NULL);
    child_finish(&c);
    child_run(&c, ESPALIER, (const char *[]){"verify", "--model", TINY, "now", NULL});
    child_expect(&c, "an argument", 2, "'now': no such argument", NULL);
    child_finish(&c);
    child_run(&c, ESPALIER, (const char *[]){"verify", "--model", TINY, "--keys", "k", NULL});
    child_expect(&c, "keys", 2, "--keys goes with --connect", NULL);
    child_finish(&c);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, fake_setup, fake_teardown)
    const struct CMUnitTest tests[] = {TEST(test_right),
                                       TEST(test_wrong),
                                       TEST(test_could_not),
                                       TEST(test_cancel),
                                       cmocka_unit_test(test_real),
                                       cmocka_unit_test(test_usage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
