/*
 * The worker's net thread: its loop and clock. What others say is serve_in.c, what we say serve_out.c; moving layers is
 * serve_move.c, the check of our own device serve_verify.c.
 *
 * It owns every socket: the control link to the coordinator, the data link on which stages before us dial in,
 * up to three links to stages after us, and one to each worker that layers go to. It never computes; worker/runner.h
 * does. What may be said when is the table `rules` in serve_in.c: who sent it, what, in which states; what is not in it
 * is refused.
 *
 * Order is kept end to end: one queue into the runner, one out, one outbox a link. A message that a link
 * refuses waits in its outbox, and until it has left, no new data is taken from stages before us, so that the
 * pressure travels back to the coordinator, whose credit bounds what is under way.
 *
 * A placement has an epoch, the coordinator's number, and a generation, our own: a coordinator that restarts
 * counts epochs from one again, and what is under way from the old one must not pass for new.
 */
#include "worker/serve_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "worker/address.h"

#define SEND_AGAIN_MS    2   /* nothing tells when a full queue has room */
#define HANDSHAKE_MS     200 /* nor when a key was refused */
#define MESSAGES_A_ROUND 64  /* of one link, before the others have their turn */

void esp_serve_end(struct esp_serve *s, esp_status status, const char *text)
{
    if (s->end)
        return;
    s->end = true;
    s->end_status = status;
    if (status)
        esp_fail(&s->end_err, status, "%s", text);
}

static bool flush(struct esp_serve *s)
{
    struct esp_outbox *boxes[] = {&s->control, &s->next_enc, &s->features, &s->next_dec};
    struct esp_err err;
    bool waiting = false;

    for (size_t i = 0; i < sizeof boxes / sizeof boxes[0]; i++) {
        while (esp_outbox_flush(boxes[i], &err) != ESP_OK)
            esp_log(s->log, ESP_LOG_ERROR, "epoch=%" PRIu64 " send_failed cause=\"%s\"", s->epoch, err.text);
        waiting |= boxes[i]->n_pending > 0;
    }
    return waiting;
}

/** When the coordinator has been silent for too long. */
static uint64_t silent_at_ns(const struct esp_serve *s)
{
    return s->heard_ns + s->timeout_ns + esp_serve_weights_patience_ns(s);
}

static void check_clock(struct esp_serve *s)
{
    uint64_t now = esp_now_ns();

    esp_serve_check_keys(s);
    if (s->end)
        return;
    if (s->joined && now > silent_at_ns(s))
        esp_serve_lose(s, "silent");
    else if (!s->joined && now - s->hello_ns >= s->hello_wait_ns)
        esp_serve_hello(s);
    else if (s->joined && now - s->beat_ns >= s->heartbeat_ns)
        esp_serve_beat(s, 0);
}

/** Milliseconds until check_clock has something to do, rounded up. */
static int next_clock_ms(const struct esp_serve *s)
{
    uint64_t now = esp_now_ns();
    uint64_t at = s->joined ? s->beat_ns + s->heartbeat_ns : s->hello_ns + s->hello_wait_ns;

    if (s->joined && at > silent_at_ns(s))
        at = silent_at_ns(s);
    if (at <= now)
        return 0;
    at = (at - now + ESP_NS_A_MS - 1) / ESP_NS_A_MS;
    return at > 60000 ? 60000 : (int)at;
}

static esp_status loop(struct esp_serve *s, struct esp_err *err)
{
    bool waiting = false, moving = false;

    esp_serve_hello(s);
    while (!s->end) {
        struct esp_wait waits[5] = {{.link = s->control.link},
                                    {.fd = esp_runner_fd(s->runner)},
                                    {.fd = s->opt->stop_fd},
                                    {.fd = esp_serve_weights_fd(s)},
                                    {.link = s->data}};
        /* Without a stop descriptor the runner's is asked for twice, which does no harm. */
        bool take_data = !waiting && esp_serve_has_room(s, ESP_FROM_DATA);
        int timeout_ms = next_clock_ms(s);
        struct esp_work *work;
        esp_status st;

        if (s->opt->stop_fd < 0)
            waits[2].fd = waits[1].fd;
        if (s->opt->keys && !s->joined && timeout_ms > HANDSHAKE_MS)
            timeout_ms = HANDSHAKE_MS;
        if ((waiting || moving) && timeout_ms > SEND_AGAIN_MS)
            timeout_ms = SEND_AGAIN_MS;
        st = esp_link_wait(waits, take_data ? 5 : 4, timeout_ms, err);
        if (st && st != ESP_E_TIMEOUT)
            return st;
        if (s->opt->stop_fd >= 0 && waits[2].ready) {
            esp_log(s->log, ESP_LOG_INFO, "stopping");
            esp_serve_end(s, ESP_OK, "");
            break;
        }
        while (!s->end && (work = esp_runner_take(s->runner)))
            esp_serve_finish(s, work);
        for (int i = 0; i < MESSAGES_A_ROUND && !s->end && esp_serve_read_control(s); i++)
            ;
        for (int i = 0; i < MESSAGES_A_ROUND && !s->end && take_data &&
                        esp_serve_has_room(s, ESP_FROM_DATA) && esp_serve_read_data(s);
             i++)
            ;
        esp_serve_weights_ask(s);
        waiting = flush(s);
        moving = esp_serve_pump_moves(s); /* two that move layers to each other must both go on reading */
        if (!s->end)
            check_clock(s);
    }
    return s->end_status;
}

esp_status esp_worker_serve(const struct esp_worker_options *options, struct esp_shelf *shelf,
                            bool *still_busy, struct esp_err *err)
{
    struct esp_serve *s = calloc(1, sizeof *s);
    char bound[ESP_MAX_ENDPOINT + 1];
    esp_status st;

    *still_busy = false;
    if (!s)
        return esp_fail(err, ESP_E_NOMEM, "worker: out of memory");
    s->opt = options;
    s->log = options->log;
    s->state = ESP_IDLE;
    st = esp_net_create(&s->net, err);
    if (st)
        goto done;
    if (options->keys)
        st = esp_net_secure(s->net, options->keys, s->log, err);
    if (st)
        goto done;
    st = esp_link_create(&s->data, s->net, &(struct esp_link_options){.type = ESP_LINK_SERVE}, err);
    if (st)
        goto done;
    st = esp_link_bind(s->data, options->bind, options->insecure, bound, err);
    if (st)
        goto done;
    st = esp_address_advertise(s->endpoint, sizeof s->endpoint, bound,
                               options->advertise_host ? options->advertise_host : "127.0.0.1", err);
    if (st)
        goto done;
    st = esp_runner_create(&s->runner, shelf, options->name, s->log, err);
    if (!st)
        st = esp_serve_weights_open(s, err);
    if (st)
        goto done;
    st = loop(s, err);
    if (s->end && err)
        *err = s->end_err;
    if (s->joined) {
        struct esp_msg bye = {.kind = ESP_MSG_BYE, .bye = {.why = st ? s->end_err.text : "stopped"}};
        esp_outbox_try(&s->control, &bye, NULL); /* goes after an Error, if there was one */
    }
done:
    esp_serve_verify_finish(s);
    esp_outbox_close(&s->control);
    esp_outbox_close(&s->next_enc);
    esp_outbox_close(&s->features);
    esp_outbox_close(&s->next_dec);
    esp_serve_end_moves(s);
    esp_link_destroy(&s->data);
    esp_net_destroy(&s->net);
    if (s->runner && !esp_runner_stop(s->runner, options->stop_timeout_ms)) {
        *still_busy = true; /* and so the runner stays as it is */
        s->runner = NULL;
    }
    esp_runner_destroy(&s->runner);
    if (!*still_busy) /* else that thread asks it for weights */
        esp_serve_weights_close(s);
    free(s);
    return st;
}
