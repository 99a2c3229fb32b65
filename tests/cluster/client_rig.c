#include "tests/cluster/client_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

int fake_setup(void **state)
{
    static struct fake f;

    memset(&f, 0, sizeof f);
    script_open(&f.script, &f.net, f.dir, sizeof f.dir, f.endpoint, sizeof f.endpoint);
    f.script.self = &f;
    *state = &f;
    return 0;
}

int fake_teardown(void **state)
{
    struct fake *f = *state;

    script_close(&f->script, &f->net, f->dir);
    rmdir(f->dir);
    return 0;
}

void fake_tell(struct fake *f, struct esp_msg *msg)
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

void fake_tell_accepted(struct fake *f)
{
    static struct esp_msg m = {.kind = ESP_MSG_ACCEPTED};
    m.accepted = (struct esp_msg_accepted){f->session, 5, 32, 2, prompt_ids, stages};
    fake_tell(f, &m);
}

void fake_tell_token(struct fake *f, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_TOKEN};
    m.token = (struct esp_msg_token){f->session, f->n_sent, 100 + f->n_sent, -0.1 - f->n_sent, text};
    f->n_sent++;
    fake_tell(f, &m);
}

static const struct esp_stage_time times[2] = {{"w0", 0.5, 1.5, 100}, {"w1", 0.25, 2.5, 200}};

void fake_tell_done(struct fake *f, const struct esp_hypothesis *all, uint32_t n)
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
    fake_tell(f, &m);
}

void fake_tell_error(struct fake *f, esp_status code, const char *text)
{
    static struct esp_msg m = {.kind = ESP_MSG_ERROR};
    m.error = (struct esp_msg_error){.code = code, .text = text, .session = f->session};
    fake_tell(f, &m);
}

bool fake_is_request(struct fake *f, const struct esp_peer *from, const struct esp_msg *msg)
{
    static struct esp_msg m = {.kind = ESP_MSG_STATUS};

    f->client = *from;
    if (msg->kind == ESP_MSG_STATUS_QUERY) {
        m.status = (struct esp_msg_status){.id = msg->status_query.id, .epoch = 1, .ready = true};
        fake_tell(f, &m);
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

void fake_ask(struct child *c, struct fake *f, const char *program, const char *const *args)
{
    const char *all[64] = {args[0], "--connect", f->endpoint};
    size_t n = 3;

    for (size_t i = 1; args[i]; i++)
        all[n++] = args[i];
    all[n] = NULL;
    child_start(c, program, NULL, all);
    child_wait(c, &f->script);
}
