/* The coordinator among workers and clients that lie, stall, fail and vanish: nobody else may suffer. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/coordinator_rig.h"

static struct esp_msg_request request(uint64_t id, uint32_t max_tokens)
{
    return (struct esp_msg_request){.id = id, .prompt = "caption en", .max_tokens = max_tokens};
}

static bool holds_work(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->n_held > 0;
}

static bool got_error(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->error != ESP_OK;
}

struct at_epoch {
    int worker;
    uint64_t epoch;
};

static bool reached_epoch(struct rig *rig, void *arg)
{
    const struct at_epoch *a = arg;

    return rig->w[a->worker].place.epoch >= a->epoch;
}

static void until_epoch(struct rig *rig, int worker, uint64_t epoch)
{
    struct at_epoch a = {worker, epoch};

    rig_until(rig, reached_epoch, &a, "a new placement");
}

/* A request goes through: nothing that came before has harmed the cluster. */
static void works(struct rig *rig, int client, uint64_t id)
{
    struct esp_msg_request r = request(id, 4);

    rig_request(rig, client, &r, NULL);
    rig_take(rig, client, ESP_MSG_DONE);
    rig_until_free(rig);
}

/* ---- lies ---- */

enum lie {
    LIE_NO_ROWS,
    LIE_ROW,
    LIE_FEW,
    LIE_VOCAB,
    LIE_FULL,
    LIE_STEP,
    LIE_EPOCH,
    LIE_NOT_MINE,
    LIE_STORED
};

static const struct {
    enum lie lie;
    const char *label, *fragment; /* of the Error that the liar is sent */
} lies[] = {{LIE_NO_ROWS, "no rows", "0 rows, asked for 1"},
            {LIE_ROW, "another row", "where row"},
            {LIE_FEW, "a candidate too few", "candidates, asked for"},
            {LIE_VOCAB, "an id outside of the vocabulary", "id 5568, the vocabulary has 5568"},
            {LIE_FULL, "all logits unasked", "full rows, asked for 0"},
            {LIE_STEP, "a step that has not been", "not on its way"},
            {LIE_EPOCH, "an epoch that has not been", "the present one is"},
            {LIE_NOT_MINE, "the result of one that has no head", "not on its way"},
            {LIE_STORED, "a picture nobody sent", "stored a picture"}};

/* Sends what the row says instead of the result of the step that w0 holds; who lied. */
static int tell_lie(struct rig *rig, enum lie lie)
{
    struct esp_msg out, stored = {.kind = ESP_MSG_STORED};
    const struct esp_row_result *row;
    static float full[RIG_VOCAB];
    int who = 1; /* has the head */

    rig_result(rig, &out, &rig->w[0].held[0]);
    row = &out.result.rows[0];
    switch (lie) {
    case LIE_NO_ROWS:
        rig_result_finish(&out);
        out.kind = ESP_MSG_RESULT;
        out.result.epoch = rig->w[0].held[0].step.epoch;
        out.result.step = rig->w[0].held[0].step.id;
        break;
    case LIE_ROW:
        ((struct esp_row_result *)row)->row--;
        break;
    case LIE_FEW:
        ((struct esp_row_result *)row)->n--;
        break;
    case LIE_VOCAB:
        ((uint32_t *)row->ids)[0] = RIG_VOCAB;
        break;
    case LIE_FULL:
        out.result.n_full = 1;
        out.result.vocab = RIG_VOCAB;
        out.n_blobs = 1;
        out.blob[0] = (struct esp_blob){.data = full, .n_bytes = sizeof full};
        break;
    case LIE_STEP:
        out.result.step += 10;
        break;
    case LIE_EPOCH:
        out.result.epoch += 1;
        break;
    case LIE_NOT_MINE:
        who = 0;
        break;
    case LIE_STORED:
        stored.stored = (struct esp_msg_stored){.epoch = out.result.epoch, .image = 12345};
        rig_send(rig, 0, &stored);
        rig_result_finish(&out);
        return 0;
    }
    rig_send(rig, who, &out);
    if (lie == LIE_FULL)
        out.n_blobs = 0;
    rig_result_finish(&out);
    return who;
}

static void test_lies(void **state)
{
    struct rig *rig = *state;

    rig_start(rig, "--split", "2/2,0/1", "--workers", "2", NULL);
    rig_join(rig, 2);
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct esp_msg_request r = request(i + 1, 5);
        static const uint32_t ban[] = {3};
        int liar;

        print_message("%s\n", lies[i].label);
        until_epoch(rig, 0, i + 1);
        rig->w[0].hold_work = true;
        r.sampling = (struct esp_msg_sampling){.ban = ban,
                                               .n_ban = 1}; /* so that more than one candidate is asked for */
        rig_request(rig, 0, &r, NULL);
        rig_until(rig, holds_work, &rig->w[0], "the step");
        liar = tell_lie(rig, lies[i].lie);
        rig_until(rig, got_error, &rig->w[liar], "an Error for the liar");
        if (!strstr(rig->w[liar].error_text, lies[i].fragment))
            fail_msg("%s: \"%s\", expected \"...%s...\"", lies[i].label, rig->w[liar].error_text,
                     lies[i].fragment);
        rig_drop_held(rig, 0);
        rig_vanish(rig, 0);
        rig_vanish(rig, 1);
        rig_join(rig, 2);
        rig_take(rig, 0, ESP_MSG_DONE); /* the request has only waited for honest ones */
        rig_until_free(rig);
    }
}

/* What comes of an older placement is dropped without a word. */
static void test_older_epoch(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 5);
    struct esp_msg old, bye = {.kind = ESP_MSG_BYE};

    rig_start(rig, "--workers", "3", "--split", "2/2,0/1", NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 3);
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, &rig->w[0], "the step");
    rig_result(rig, &old, &rig->w[0].held[0]);
    rig_drop_held(rig, 0);
    rig_send(rig, 1, &bye); /* w1 goes, w0 and w2 are placed anew */
    until_epoch(rig, 2, 2);
    rig_send(rig, 2, &old);
    rig_result_finish(&old);
    rig_take_greedy(rig, 0, 5);
    works(rig, 0, 2);
    assert_int_equal(rig->w[2].error, ESP_OK);
    assert_int_equal(rig->w[0].n_places, 2);
}

/* ---- silence and loss ---- */

/* A stage falls silent with a step: the rest take it over. */
static void test_silent_worker(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 5);
    long beat;

    rig_start(rig, "--workers", "2", "--heartbeat-ms", "50", "--timeout-ms", "2000", NULL);
    rig_join(rig, 2);
    rig->w[0].hold_work = rig->w[1].hold_work = true;
    rig_request(rig, 0, &r, NULL);
    while (!rig->w[0].n_held && !rig->w[1].n_held)
        rig_pump(rig, 20);
    beat = rig->beat_at;
    while (rig->beat_at == beat) /* who has the step says so, and so it is not lost between the two */
        rig_pump(rig, 20);
    rig->w[0].till_place = true;
    rig->w[1].mute = true;
    until_epoch(rig, 0, 2);
    rig_drop_held(rig, 1);
    assert_int_equal(rig->w[0].place.dec_hi - rig->w[0].place.dec_lo, 3); /* all of it */
    assert_true(rig->w[0].place.patch && rig->w[0].place.projector && rig->w[0].place.head);
    rig->w[1].mute = false;
    rig->w[1].place.embed = rig->w[1].place.head = false;
    rig_take_greedy(rig, 0, 5);
    works(rig, 0, 2);
    rig_until(rig, got_error, &rig->w[1], "it is told that it is out");
}

/* Its process is gone, and so is its connection. */
static void test_vanished_worker(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 5);
    const struct esp_msg *m;

    rig_start(rig, "--heartbeat-ms", "50", NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, &rig->w[0], "the step");
    rig_vanish(rig, 0);
    rig->w[0].hold_work = false;
    r.id = 2;
    rig_request(rig, 0, &r, NULL); /* waits for somebody, as does the first one */
    do
        m = rig_take(rig, 0, ESP_MSG_WAITING);
    while (strcmp(m->waiting.what, "waiting for workers") != 0);
    rig_hello(rig, 0); /* the same name again */
    rig_take_greedy(rig, 0, 5);
    rig_take_greedy(rig, 0, 5);
    rig_until_free(rig);
}

/* A worker that took the coordinator for lost says Hello again, before anyone has missed it. */
static void test_hello_again(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 5);

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, &rig->w[0], "the step");
    rig_drop_held(rig, 0);
    rig_hello_again(rig, 0);
    rig_take_greedy(rig, 0, 5);
    r.id = 2;
    rig_request(rig, 0, &r, NULL);
    rig_take_greedy(rig, 0, 5);
    assert_true(rig->w[0].welcome);
    rig_until_free(rig);
}

/* ---- failures that a worker reports ---- */

static void test_step_error(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 5), other = request(2, 5);
    struct esp_msg error = {.kind = ESP_MSG_ERROR};

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, &rig->w[0], "the step");
    rig_request(rig, 1, &other, NULL);
    rig_take(rig, 1, ESP_MSG_ACCEPTED);
    error.error = (struct esp_msg_error){
        .code = ESP_E_LIMIT, .text = "layer 2: KV cache full", .epoch = 1, .step = rig->w[0].held[0].step.id};
    rig_send(rig, 0, &error);
    rig_send(rig, 0, &error); /* twice does no harm */
    rig_take_error(rig, 0, 1, ESP_E_LIMIT, "worker w0: layer 2: KV cache full");
    while (rig->w[0].n_held < 2)
        rig_pump(rig, 20);
    esp_msg_finish(&rig->w[0].held[0]);
    rig->w[0].held[0] = rig->w[0].held[1];
    rig->w[0].n_held = 1;
    rig->last_step = 1; /* the refused one */
    rig_resume(rig, 0);
    rig_take(rig, 1, ESP_MSG_DONE);
    works(rig, 0, 3);
}

/* A step of three requests fails, for the fault of none that would show when they are alone: all have their answers. */
static void test_shared_step_error(void **state)
{
    struct rig *rig = *state;
    struct esp_msg error = {.kind = ESP_MSG_ERROR};

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    for (uint64_t id = 1; id <= 3; id++) {
        struct esp_msg_request r = request(id, 40);

        rig_request(rig, 0, &r, NULL);
        rig_take(rig, 0, ESP_MSG_ACCEPTED);
    }
    rig->w[0].n_does = 6; /* all three are past their prompts by then */
    rig_resume(rig, 0);
    rig_until(rig, holds_work, &rig->w[0], "a step of all three");
    assert_int_equal(rig->w[0].held[0].step.n_seqs, 3);
    rig->last_step = rig->w[0].held[0].step.id;
    error.error = (struct esp_msg_error){
        .code = ESP_E_LIMIT, .text = "layer 2: KV cache full", .epoch = 1, .step = rig->last_step};
    rig_drop_held(rig, 0);
    rig_send(rig, 0, &error);
    for (uint64_t id = 1; id <= 3; id++)
        assert_int_equal(rig_take_greedy(rig, 0, 40)->done.rebuilds, 1);
    rig_until_free(rig);
}

static void test_image_error(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 5);
    struct esp_msg error = {.kind = ESP_MSG_ERROR};

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    rig_until(rig, holds_work, &rig->w[0], "the picture");
    error.error = (struct esp_msg_error){.code = ESP_E_NUMBERS,
                                         .text = "layer 1: not finite",
                                         .epoch = 1,
                                         .image = rig->w[0].held[0].encode.image};
    rig_send(rig, 0, &error);
    rig_take_error(rig, 0, 1, ESP_E_NUMBERS, "worker w0: layer 1: not finite");
    esp_msg_finish(&rig->w[0].held[0]);
    rig->w[0].n_held = 0;
    rig->w[0].hold_work = false;
    r.id = 2;
    rig_request(rig, 0, &r, "scene_a.png", NULL); /* a failure is not kept */
    rig_take(rig, 0, ESP_MSG_DONE);
    rig_until_free(rig);
}

/* Nobody can load the model: whoever waits is told why, and whoever asks later. */
static void test_load_failure(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 5);
    struct esp_msg error = {.kind = ESP_MSG_ERROR};

    rig_start(rig, NULL);
    rig->w[0].hold_ready = true;
    rig_request(rig, 0, &r, NULL);
    rig_join(rig, 1);
    error.error =
        (struct esp_msg_error){.code = ESP_E_NOMEM, .text = "412 MiB: out of device memory", .epoch = 1};
    rig_send(rig, 0, &error);
    rig_take_error(rig, 0, 1, ESP_E_NOMEM, "worker w0: 412 MiB: out of device memory");
    r.id = 2;
    rig_request(rig, 0, &r, NULL);
    rig_take_error(rig, 0, 2, ESP_E_NOMEM, "worker w0: 412 MiB");
    rig_hello(rig, 1); /* somebody who can */
    until_epoch(rig, 1, 2);
    works(rig, 0, 3);
}

/* A worker that failed and was started again, with what it lacked, before anyone noticed that it had gone. */
static void test_failed_begins_anew(void **state)
{
    struct rig *rig = *state;
    struct esp_msg error = {.kind = ESP_MSG_ERROR};
    struct esp_msg_request r = request(1, 5);

    rig_start(rig, NULL);
    rig->w[0].hold_ready = true;
    rig_request(rig, 0, &r, NULL);
    rig_join(rig, 1);
    error.error =
        (struct esp_msg_error){.code = ESP_E_NOMEM, .text = "412 MiB: out of device memory", .epoch = 1};
    rig_send(rig, 0, &error);
    rig_take_error(rig, 0, 1, ESP_E_NOMEM, "worker w0: 412 MiB");
    rig->w[0].hold_ready = false;
    rig_hello_again(rig, 0);
    until_epoch(rig, 0, 2);
    works(rig, 0, 2);
}

/* What breaks between two stages takes a step or a picture with it, and both stages are well: they say so. */
static void test_lost_work(void **state)
{
    struct rig *rig = *state;
    static const char *const pictures[] = {NULL, "scene_a.png"};

    rig_start(rig, "--heartbeat-ms", "50", "--timeout-ms", "1000", NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    for (size_t i = 0; i < 2; i++) {
        struct esp_msg_request r = request(1 + 2 * i, 5);

        rig->w[0].hold_work = true;
        rig_request(rig, 0, &r, pictures[i], NULL);
        rig_until(rig, holds_work, &rig->w[0], "the work");
        rig_drop_held(rig, 0);
        until_epoch(rig, 0, 2 + i);
        rig_take_greedy(rig, 0, 5);
        works(rig, 0, r.id + 1);
    }
}

/* ---- clients ---- */

static void test_cancel(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 50);

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    r.sampling.beams = 3;
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, &rig->w[0], "the step");
    rig_cancel(rig, 0, 1);
    rig_take_error(rig, 0, 1, ESP_E_CANCELLED, "cancelled"); /* at once; the step is still out */
    rig_cancel(rig, 0, 1);                                   /* too late, no harm */
    assert_int_equal(rig->w[0].n_held, 1);
    rig_resume(rig, 0);
    rig_until_free(rig);
    assert_int_equal(rig->last_step, 1);
    works(rig, 0, 2);
}

static void test_cancel_before(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 50);

    rig_start(rig, NULL);
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    rig_take(rig, 0, ESP_MSG_WAITING);
    rig_cancel(rig, 0, 1);
    rig_take_error(rig, 0, 1, ESP_E_CANCELLED, "cancelled");
    rig_join(rig, 1);
    works(rig, 0, 2);
    assert_int_equal(rig->n_encodes, 0);
}

/* No session is alive any more, by client 1's question. */
static bool nobody_asks(struct rig *rig, void *id)
{
    struct esp_msg msg = {.kind = ESP_MSG_STATUS_QUERY, .status_query = {.id = ++*(uint64_t *)id}};

    rig_dial(rig, 1);
    assert_int_equal(esp_link_send(rig->c[1].link, NULL, &msg, NULL), ESP_OK);
    return rig_take(rig, 1, ESP_MSG_STATUS)->status.n_sessions == 0;
}

static void test_client_vanishes(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 200);
    uint64_t id = 1000;

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    r.sampling.ignore_eos = true;
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, &rig->w[0], "the step");
    rig_hang_up(rig, 0);
    rig_until(rig, nobody_asks, &id, "the end of the request");
    rig_resume(rig, 0);
    rig_until_free(rig);
    assert_int_equal(rig->last_step, 1); /* the one that was out */
    works(rig, 1, 1);
}

static bool all_steps(struct rig *rig, void *n)
{
    return rig->last_step >= *(const uint64_t *)n;
}

/* A client that sleeps through its answer loses no token of it, and holds up nobody. */
static void test_client_sleeps(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 1800);
    const struct esp_msg *m;
    uint64_t n = 1800;
    uint32_t n_tokens = 0;

    rig_start(rig, "--context", "2000", "--kv-tokens", "4000", NULL);
    rig_join(rig, 1);
    r.sampling.ignore_eos = true;
    rig_request(rig, 0, &r, NULL);
    rig_take(rig, 0, ESP_MSG_ACCEPTED);
    rig->c[0].asleep = true;
    rig_until(rig, all_steps, &n, "the answer computed");
    rig_until_free(rig);
    works(rig, 1, 1);
    rig->c[0].asleep = false;
    m = rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(m->done.best.n_ids, 1800);
    for (uint32_t i = 0; i < rig->c[0].n_inbox; i++) {
        const struct esp_msg *t = rig->c[0].inbox[i];

        if (t->kind != ESP_MSG_TOKEN)
            continue;
        assert_int_equal(t->token.index, n_tokens);
        assert_int_equal(t->token.id, m->done.best.ids[n_tokens]);
        n_tokens++;
    }
    assert_int_equal(n_tokens, 1800);
}

/* Messages at the wrong time or from the wrong side. */
static void test_strangers(void **state)
{
    struct rig *rig = *state;
    struct esp_msg result = {.kind = ESP_MSG_RESULT}, token = {.kind = ESP_MSG_TOKEN};
    struct esp_msg_request r = request(1, 4);

    rig_start(rig, NULL);
    rig_join(rig, 1);
    rig_dial(rig, 1);
    result.result = (struct esp_msg_result){.epoch = 1, .step = 1};
    assert_int_equal(esp_link_send(rig->c[1].link, NULL, &result, NULL), ESP_OK);
    rig_take_error(rig, 1, 0, ESP_E_CLOSED, "say hello first");
    token.token.session = 1;
    token.token.text = "x";
    assert_int_equal(esp_link_send(rig->c[1].link, NULL, &token, NULL), ESP_OK);
    rig_take_error(rig, 1, 0, ESP_E_PROTO, "token");
    rig_hello(rig, 1);
    while (!rig->w[1].welcome)
        rig_pump(rig, 20);
    token.kind = ESP_MSG_ACCEPTED; /* a worker that talks like a coordinator */
    memset(&token.accepted, 0, sizeof token.accepted);
    token.accepted.session = 1;
    rig_send(rig, 1, &token);
    rig_until(rig, got_error, &rig->w[1], "an Error");
    assert_int_equal(rig->w[1].error, ESP_E_PROTO);
    rig->w[0].hold_work = true;
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, &rig->w[0], "the step");
    rig_request(rig, 0, &r, NULL); /* the same number again, while it is being answered */
    rig_take_error(rig, 0, 1, ESP_E_ARG, "still being answered");
    rig_resume(rig, 0);
    rig_take(rig, 0, ESP_MSG_DONE);
    rig_until_free(rig);
}

static void test_hello_refused(void **state)
{
    struct rig *rig = *state;

    rig_start(rig, NULL);
    rig_join(rig, 1);
    strcpy(rig->w[1].name, "w0");
    rig_hello(rig, 1);
    rig_until(rig, got_error, &rig->w[1], "an Error");
    assert_int_equal(rig->w[1].error, ESP_E_ARG);
    assert_non_null(strstr(rig->w[1].error_text, "named w0"));
    rig->fingerprint[3] ^= 1;
    rig_hello(rig, 2);
    rig->fingerprint[3] ^= 1;
    rig_until(rig, got_error, &rig->w[2], "an Error");
    assert_int_equal(rig->w[2].error, ESP_E_FORMAT);
    assert_non_null(strstr(rig->w[2].error_text, "another checkpoint"));
    works(rig, 0, 1);
}

static bool got_bye(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->bye;
}

static void test_shutdown(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, 50);

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, NULL);
    rig_until(rig, holds_work, &rig->w[0], "the step");
    assert_int_equal(rig_stop(rig), 0);
    rig_until(rig, got_bye, &rig->w[0], "Bye");
    rig_take_error(rig, 0, 1, ESP_E_CLOSED, "shutting down");
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_lies),
        CASE(test_older_epoch),
        CASE(test_silent_worker),
        CASE(test_vanished_worker),
        CASE(test_shared_step_error),
        CASE(test_step_error),
        CASE(test_image_error),
        CASE(test_load_failure),
        CASE(test_cancel),
        CASE(test_cancel_before),
        CASE(test_client_vanishes),
        CASE(test_client_sleeps),
        CASE(test_strangers),
        CASE(test_hello_refused),
        CASE(test_hello_again),
        CASE(test_shutdown),
        CASE(test_failed_begins_anew),
        CASE(test_lost_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
