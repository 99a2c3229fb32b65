#include "tests/sim/crowd.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "picture/image.h"
#include "coordinator/resize.h"
#include "model/file.h"
#include "tests/sim/sim_model.h"

#define IMAGES "tests/golden/data/tiny/images/"

static const char *const files[CROWD_PICTURES] = {"scene_a.png",  "scene_b.png",  "exact.png", "grey.png",
                                                  "jpeg_444.jpg", "jpeg_420.jpg", "wide.png",  "tall.png"};

static void must(esp_status st, const struct esp_err *err, const char *what)
{
    if (st)
        fail_msg("%s: %s", what, err->text);
}

static void *get(size_t n, size_t n_bytes)
{
    void *p = calloc(n ? n : 1, n_bytes);

    assert_non_null(p);
    return p;
}

static void load_pictures(struct crowd *c)
{
    const struct esp_config *config = esp_checkpoint_config(c->f->ck);
    const size_t n_pixel = (size_t)3 * config->vision.image_size * config->vision.image_size;
    float *pixels = get(n_pixel, sizeof *pixels);

    for (int i = 0; i < CROWD_PICTURES; i++) {
        struct esp_image image;
        struct esp_err err;
        char path[128];

        snprintf(path, sizeof path, IMAGES "%s", files[i]);
        snprintf(c->picture[i].name, sizeof c->picture[i].name, "%s", files[i]);
        must(esp_file_read(&c->picture[i].bytes, &c->picture[i].n_bytes, path, 1 << 20, &err), &err, path);
        must(esp_image_decode(&image, c->picture[i].bytes, c->picture[i].n_bytes, NULL, &err), &err, path);
        must(esp_image_preprocess(pixels, &image, config, &err), &err, path);
        esp_image_finish(&image);
        c->picture[i].hash = sim_picture(pixels, n_pixel);
    }
    free(pixels);
}

/* Its connection stands once it has an answer. */
static void await(struct crowd *c, uint32_t i)
{
    struct esp_msg msg = {.kind = ESP_MSG_STATUS_QUERY, .status_query = {.id = 1}};
    const double end = fleet_now() + FLEET_DEADLINE_S;
    struct esp_err err;
    bool there = false;

    must(esp_link_send(c->link[i], NULL, &msg, &err), &err, "a client");
    while (!there) {
        esp_link_wait(&(struct esp_wait){.link = c->link[i]}, 1, 100, NULL);
        there = !esp_link_recv(c->link[i], NULL, &msg, &err);
        esp_msg_finish(&msg);
        if (!there && fleet_now() > end)
            fail_msg("client %u gets no answer", i);
    }
}

void crowd_open(struct crowd *c, struct fleet *f, uint32_t n_clients)
{
    const struct esp_link_options dial = {.type = ESP_LINK_DIAL, .hwm = 4096};
    struct esp_err err;

    assert_true(n_clients <= CROWD_CLIENTS);
    memset(c, 0, sizeof *c);
    c->f = f;
    c->n_clients = n_clients;
    load_pictures(c);
    for (uint32_t i = 0; i < n_clients; i++) {
        must(esp_link_create(&c->link[i], f->net, &dial, &err), &err, "a client");
        must(esp_link_connect(c->link[i], f->at, &err), &err, "a client");
        await(c, i);
    }
}

struct crowd_ask *crowd_ask(struct crowd *c, uint32_t client, int picture, uint32_t max_tokens)
{
    static const char *const words[] = {"what", "colour", "is the",  "sky over",
                                        "this", "house",  "and who", "stands"};
    struct esp_msg msg = {.kind = ESP_MSG_REQUEST};
    const char *names[1];
    struct crowd_ask *a = get(1, sizeof *a);
    char prompt[256] = "";
    struct esp_err err;

    c->ask = realloc(c->ask, (c->n_asks + 1) * sizeof *c->ask);
    assert_non_null(c->ask);
    c->ask[c->n_asks++] = a;
    a->id = c->n_asks;
    a->client = client;
    a->picture = picture;
    a->max_tokens = max_tokens;
    a->tok = get(max_tokens, sizeof *a->tok);
    a->at = get(max_tokens, sizeof *a->at);
    for (uint64_t i = 0; i <= a->id * 7 % 11; i++)
        snprintf(prompt + strlen(prompt), sizeof prompt - strlen(prompt), "%s ", words[(a->id + i) % 8]);
    snprintf(prompt + strlen(prompt), sizeof prompt - strlen(prompt), "%" PRIu64, a->id);
    msg.request = (struct esp_msg_request){.id = a->id, .prompt = prompt, .max_tokens = max_tokens};
    if (picture >= 0) {
        names[0] = c->picture[picture].name;
        msg.request.n_images = msg.n_blobs = 1;
        msg.request.image_names = names;
        msg.blob[0] =
            (struct esp_blob){.data = c->picture[picture].bytes, .n_bytes = c->picture[picture].n_bytes};
    }
    a->sent = fleet_now();
    must(esp_link_send(c->link[client], NULL, &msg, &err), &err, "a request");
    return a;
}

static void on_accepted(struct crowd_ask *a, const struct esp_msg_accepted *m)
{
    if (a->prompt) { /* told again, it must be the same */
        assert_int_equal(m->n_prompt_ids, a->n_prompt);
        return;
    }
    a->n_prompt = m->n_prompt_ids;
    a->prompt = get(a->n_prompt, sizeof *a->prompt);
    memcpy(a->prompt, m->prompt_ids, a->n_prompt * sizeof *a->prompt);
}

static void on_token(struct crowd *c, struct crowd_ask *a, const struct esp_msg_token *m)
{
    if (m->index != a->n_tok || a->n_tok == a->max_tokens)
        fail_msg("request %" PRIu64 ": token %u came where %u of %u was due", a->id, m->index, a->n_tok,
                 a->max_tokens);
    a->at[a->n_tok] = fleet_now();
    a->tok[a->n_tok++] = m->id;
    c->n_tokens++;
}

static void on_message(struct crowd *c, uint32_t client, const struct esp_msg *msg)
{
    const uint64_t id = msg->kind == ESP_MSG_ACCEPTED  ? msg->accepted.session
                        : msg->kind == ESP_MSG_WAITING ? msg->waiting.session
                        : msg->kind == ESP_MSG_TOKEN   ? msg->token.session
                        : msg->kind == ESP_MSG_DONE    ? msg->done.session
                        : msg->kind == ESP_MSG_ERROR   ? msg->error.session
                                                       : 0;
    struct crowd_ask *a = id >= 1 && id <= c->n_asks ? c->ask[id - 1] : NULL;

    if (msg->kind == ESP_MSG_ERROR)
        fail_msg("request %" PRIu64 " (%u tokens so far): %s", id, a ? a->n_tok : 0, msg->error.text);
    if (!a || a->client != client || a->ended)
        fail_msg("client %u was sent a %s for request %" PRIu64, client, esp_msg_name(msg->kind), id);
    switch (msg->kind) {
    case ESP_MSG_ACCEPTED:
        on_accepted(a, &msg->accepted);
        break;
    case ESP_MSG_TOKEN:
        on_token(c, a, &msg->token);
        break;
    case ESP_MSG_DONE:
        a->timing = msg->done;
        a->encode_skipped = a->picture >= 0 && msg->done.encode == 0;
        a->ended = true;
        a->ended_at = fleet_now();
        c->n_ended++;
        break;
    default:
        break; /* Waiting: for people */
    }
}

void crowd_pump(struct crowd *c, int ms)
{
    struct esp_wait waits[CROWD_CLIENTS];
    struct esp_err err;

    for (uint32_t i = 0; i < c->n_clients; i++)
        waits[i] = (struct esp_wait){.link = c->link[i]};
    esp_link_wait(waits, c->n_clients, ms, NULL);
    for (uint32_t i = 0; i < c->n_clients; i++) {
        struct esp_msg msg;
        esp_status st;

        while (waits[i].ready && (st = esp_link_recv(c->link[i], NULL, &msg, &err)) != ESP_E_TIMEOUT) {
            must(st, &err, "a client");
            on_message(c, i, &msg);
            esp_msg_finish(&msg);
        }
    }
}

void crowd_finish(struct crowd *c)
{
    uint64_t n = c->n_tokens;
    double since = fleet_now();

    while (c->n_ended < c->n_asks) {
        crowd_pump(c, 100);
        if (c->n_tokens != n) {
            n = c->n_tokens;
            since = fleet_now();
        } else if (fleet_now() - since > FLEET_DEADLINE_S) {
            struct esp_msg m;

            fleet_status(c->f, &m);
            fail_msg("%u of %u requests are answered, and nothing comes: %u sessions, %u queued, %s",
                     c->n_ended, c->n_asks, m.status.n_sessions, m.status.n_queued, m.status.why);
        }
    }
}

void crowd_check(struct crowd *c)
{
    const struct esp_config *config = esp_checkpoint_config(c->f->ck);

    for (uint32_t i = 0; i < c->n_asks; i++) {
        const struct crowd_ask *a = c->ask[i];
        uint32_t *want = get(a->max_tokens, sizeof *want);

        assert_int_equal(a->n_tok, a->max_tokens);
        assert_true(sim_expect(want, a->n_tok, config, a->picture >= 0 ? &c->picture[a->picture].hash : NULL,
                               a->picture >= 0, a->prompt, a->n_prompt));
        for (uint32_t t = 0; t < a->n_tok; t++)
            if (a->tok[t] != want[t])
                fail_msg("request %" PRIu64 ", picture %d: token %u of %u is %u, expected %u", a->id,
                         a->picture, t, a->n_tok, a->tok[t], want[t]);
        free(want);
    }
}

void crowd_close(struct crowd *c)
{
    for (uint32_t i = 0; i < c->n_clients; i++)
        esp_link_destroy(&c->link[i]);
    for (uint32_t i = 0; i < c->n_asks; i++) {
        free(c->ask[i]->prompt);
        free(c->ask[i]->tok);
        free(c->ask[i]->at);
        free(c->ask[i]);
    }
    free(c->ask);
    for (int i = 0; i < CROWD_PICTURES; i++)
        free(c->picture[i].bytes);
    memset(c, 0, sizeof *c);
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double crowd_quantile(double *of, size_t n, double q)
{
    qsort(of, n, sizeof *of, by_size);
    return of[(size_t)(q * (double)(n - 1) + 0.5)];
}

double crowd_gap(const struct crowd_ask *a, double q)
{
    double *gaps, gap;

    if (a->n_tok < 2)
        return 0;
    gaps = get(a->n_tok - 1, sizeof *gaps);
    for (uint32_t i = 0; i + 1 < a->n_tok; i++)
        gaps[i] = a->at[i + 1] - a->at[i];
    gap = crowd_quantile(gaps, a->n_tok - 1, q);
    free(gaps);
    return gap;
}
