/*
 * The worker's conversation: the check of its own device (worker/verify.h).
 *
 * Device work goes through the runner like everybody's, a tower at a time, so that steps pass in between. The reference
 * takes the CPU seconds, so it is computed on a thread of its own at low priority, which hands each answer to the net
 * thread by way of the runner's finished work. A new placement or conversation ends the check, and so does another
 * Verify: who asks anew waits for nothing else any more. One check at a time.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "worker/serve_state.h"
#include "worker/verify.h"

#define NICE 10 /* of the thread, and of those that it starts */

struct esp_check {
    uint64_t id, epoch, generation;
    struct esp_runner *runner;
    /* While the device is at it the runner's work holds `verify`; then the thread has it until it is joined. */
    bool has_thread;
    pthread_t thread;
    struct esp_verify *verify;
    bool has_next; /* what was asked for meanwhile begins when this one has ended */
    struct esp_msg_verify next;
    struct esp_work *last; /* the thread's last word; there from the start, so that it can be said */
    atomic_bool stop;
};

/* The thread, if there is one, has ended or is about to. */
static void end_check(struct esp_serve *s)
{
    struct esp_check *c = s->check;

    if (c->has_thread)
        pthread_join(c->thread, NULL);
    esp_verify_destroy(&c->verify);
    esp_work_destroy(&c->last);
    free(c);
    s->check = NULL;
}

static void tell_failed(struct esp_serve *s, uint64_t id, uint64_t epoch, esp_status code, const char *text)
{
    struct esp_msg msg = {.kind = ESP_MSG_ERROR};
    struct esp_work *note;

    esp_log(s->log, ESP_LOG_WARN, "epoch=%" PRIu64 " verify=%" PRIu64 " failed cause=\"%s\"", epoch, id,
            text);
    msg.error.code = code;
    msg.error.epoch = epoch;
    msg.error.session = id;
    note = esp_work_create(&msg);
    if (!note)
        return; /* the one who asked has a deadline */
    esp_fail(&note->err, code, "%s", text);
    note->msg.error.text = note->err.text;
    esp_serve_tell(s, note);
}

/* The next piece for the device. Takes verify. */
static esp_status push(struct esp_serve *s, struct esp_verify **verify, struct esp_err *err)
{
    struct esp_msg msg = {.kind = ESP_MSG_VERIFY, .verify = {s->check->id, s->check->epoch}};
    struct esp_work *work = esp_work_create(&msg);

    if (!work) {
        esp_verify_destroy(verify);
        return esp_fail(err, ESP_E_NOMEM, "no memory to queue a check");
    }
    work->verify = *verify;
    *verify = NULL;
    work->generation = s->generation;
    esp_runner_push(s->runner, work);
    return ESP_OK;
}

static esp_status begin_check(struct esp_serve *s, const struct esp_msg_verify *m, struct esp_err *err)
{
    struct esp_msg last = {.kind = ESP_MSG_VERIFY, .verify = *m};
    struct esp_verify *verify;
    esp_status st = esp_verify_create(&verify, err);

    if (st)
        return st;
    s->check = calloc(1, sizeof *s->check);
    if (s->check)
        s->check->last = esp_work_create(&last);
    if (!s->check || !s->check->last) {
        free(s->check);
        s->check = NULL;
        esp_verify_destroy(&verify);
        return esp_fail(err, ESP_E_NOMEM, "no memory for a check");
    }
    s->check->id = m->id;
    s->check->epoch = m->epoch;
    s->check->generation = s->check->last->generation = s->generation;
    s->check->runner = s->runner;
    st = push(s, &verify, err);
    if (st)
        end_check(s);
    return st;
}

static void ask(struct esp_serve *s, const struct esp_msg_verify *m)
{
    struct esp_err err;
    esp_status st = ESP_OK;

    if (m->epoch != s->epoch || s->state != ESP_READY)
        st = esp_fail(&err, ESP_E_ARG, "nothing is placed here in epoch %" PRIu64, m->epoch);
    else if (!esp_serve_has_room(s, ESP_FROM_CONTROL))
        st = esp_fail(&err, ESP_E_LIMIT, "too much work queued");
    if (!st)
        st = begin_check(s, m, &err);
    if (st)
        tell_failed(s, m->id, m->epoch, st, err.text);
    else
        esp_log(s->log, ESP_LOG_DEBUG, "epoch=%" PRIu64 " verify=%" PRIu64 " begins", m->epoch, m->id);
}

esp_status esp_serve_verify(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                            struct esp_err *err)
{
    esp_serve_verify_stop(s);
    if (s->check) { /* its thread has yet to notice */
        s->check->next = msg->verify;
        s->check->has_next = true;
    } else {
        ask(s, &msg->verify);
    }
    return ESP_OK; /* what is wrong is told: it is no failure of the placement */
}

/* ---- the thread ---- */

static bool stopped(void *arg)
{
    struct esp_check *c = arg;

    return atomic_load(&c->stop);
}

/* Hands the net thread what was found. */
static esp_status hand_over(const struct esp_check *c, const struct esp_verify_result *r, uint32_t i,
                            struct esp_err *err)
{
    struct esp_msg msg = {.kind = ESP_MSG_VERIFIED};
    struct esp_work *work = esp_work_create(&msg);

    if (!work)
        return esp_fail(err, ESP_E_NOMEM, "no memory for what was found");
    esp_fail(&work->err, ESP_OK, "%s", r->layer); /* keeps the text while the message waits */
    work->generation = c->generation;
    work->msg.verified = (struct esp_msg_verified){.id = c->id,
                                                   .epoch = c->epoch,
                                                   .layer = work->err.text,
                                                   .error = r->error,
                                                   .limit = r->limit,
                                                   .done = i + 1,
                                                   .total = esp_verify_n_parts(c->verify)};
    esp_runner_post(c->runner, work);
    return ESP_OK;
}

static void *check_main(void *arg)
{
    struct esp_check *c = arg;
    const uint32_t n = esp_verify_n_parts(c->verify);
    struct esp_work *last = c->last;
    esp_status st = ESP_OK;

    /* Of this thread alone, on Linux. If it may not be, the check costs others more. */
    (void)setpriority(PRIO_PROCESS, 0, NICE);
    for (uint32_t i = 0; !st && i < n; i++) {
        struct esp_verify_result r;

        st = stopped(c) ? ESP_E_CANCELLED : esp_verify_part(c->verify, i, stopped, c, &r, &last->err);
        if (!st)
            st = hand_over(c, &r, i, &last->err);
    }
    c->last = NULL; /* before it can be taken: c is the net thread's then */
    last->status = st;
    esp_runner_post(c->runner, last);
    return NULL;
}

/* ---- what comes back ---- */

static void ran_on_device(struct esp_serve *s, struct esp_work *w)
{
    struct esp_check *c = s->check;
    struct esp_err err = w->err;
    esp_status st = w->status;
    int rc;

    if (!c || c->has_thread || w->generation != c->generation)
        return; /* the check ended while the device was at it */
    if (!st && w->more) {
        st = push(s, &w->verify, &err);
        if (!st)
            return;
    }
    if (!st) {
        c->verify = w->verify;
        w->verify = NULL;
        rc = pthread_create(&c->thread, NULL, check_main, c);
        c->has_thread = rc == 0;
        if (rc)
            st = esp_fail(&err, ESP_E_IO, "pthread_create: %s", strerror(rc));
    }
    if (st) {
        tell_failed(s, c->id, c->epoch, st, err.text);
        end_check(s);
    }
}

void esp_serve_verify_ran(struct esp_serve *s, struct esp_work *w)
{
    struct esp_msg_verify next;
    bool has_next;

    if (w->verify) {
        ran_on_device(s, w);
        return;
    }
    /* The thread's last word. */
    if (w->generation == s->generation && w->status && w->status != ESP_E_CANCELLED)
        tell_failed(s, w->msg.verify.id, w->msg.verify.epoch, w->status, w->err.text);
    else
        esp_log(s->log, ESP_LOG_DEBUG, "epoch=%" PRIu64 " verify=%" PRIu64 " ends", w->msg.verify.epoch,
                w->msg.verify.id);
    next = s->check->next;
    has_next = s->check->has_next;
    end_check(s);
    if (has_next)
        ask(s, &next);
}

void esp_serve_verify_stop(struct esp_serve *s)
{
    if (s->check && s->check->has_thread)
        atomic_store(&s->check->stop, true); /* its last word ends it */
    else if (s->check)
        end_check(s); /* what the runner still has of it comes back to nobody */
}

void esp_serve_verify_finish(struct esp_serve *s)
{
    if (!s->check)
        return;
    atomic_store(&s->check->stop, true);
    end_check(s);
}
