#include "tests/sim/wire.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/link.h"
#include "tests/sim/crowd.h"

#define MAX_TRIPS 20000
#define EVERY_US  10000

struct wire {
    char dir[64];
    struct esp_net *net;
    struct esp_link *here, *there;
    pthread_t ping, echo;
    atomic_bool stop;
    uint32_t n_rows, width;
    float *rows;
    uint32_t n_trips;
    double trip[MAX_TRIPS]; /* round, seconds */
};

/* Says back what it is told, until it is told to stop. */
static void *echo_main(void *arg)
{
    struct wire *w = arg;
    struct esp_peer from;
    struct esp_msg msg;
    bool on = true;

    while (on) {
        esp_link_wait(&(struct esp_wait){.link = w->there}, 1, -1, NULL);
        while (!esp_link_recv(w->there, &from, &msg, NULL)) {
            on = msg.kind != ESP_MSG_BYE;
            if (on)
                esp_link_send(w->there, &from, &msg, NULL);
            esp_msg_finish(&msg);
        }
    }
    return NULL;
}

static bool trip(struct wire *w, uint64_t id)
{
    const struct esp_seq_rows seq = {.seq = 1, .pos = 1, .n_tok = w->n_rows, .n_prefix = 1};
    struct esp_msg msg = {.kind = ESP_MSG_STEP, .n_blobs = 1};
    bool back = false;

    msg.step = (struct esp_msg_step){.epoch = 1,
                                     .id = id,
                                     .payload = ESP_PAYLOAD_ROWS,
                                     .rows = w->n_rows,
                                     .width = w->width,
                                     .n_seqs = 1,
                                     .seqs = &seq};
    msg.blob[0] =
        (struct esp_blob){.data = w->rows, .n_bytes = (size_t)w->n_rows * w->width * sizeof *w->rows};
    if (esp_link_send(w->here, NULL, &msg, NULL))
        return false;
    while (!back && !esp_link_wait(&(struct esp_wait){.link = w->here}, 1, 10000, NULL)) {
        back = !esp_link_recv(w->here, NULL, &msg, NULL);
        esp_msg_finish(&msg);
    }
    return back;
}

static void *ping_main(void *arg)
{
    struct wire *w = arg;
    struct esp_msg bye = {.kind = ESP_MSG_BYE, .bye = {.why = "done"}};

    prctl(PR_SET_TIMERSLACK, 1UL);
    trip(w, 1); /* the connection is made with the first */
    for (uint64_t id = 2; !atomic_load(&w->stop) && w->n_trips < MAX_TRIPS; id++) {
        const double begun = fleet_now();

        if (!trip(w, id))
            break;
        w->trip[w->n_trips++] = fleet_now() - begun;
        usleep(EVERY_US);
    }
    while (!atomic_load(&w->stop))
        usleep(EVERY_US);
    esp_link_send(w->here, NULL, &bye, NULL);
    return NULL;
}

struct wire *wire_start(bool tcp, uint32_t n_rows, uint32_t width)
{
    struct wire *w = calloc(1, sizeof *w);
    char at[ESP_MAX_ENDPOINT + 1];

    assert_non_null(w);
    strcpy(w->dir, "/tmp/esp-wire-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(at, sizeof at, tcp ? "tcp://127.0.0.1:*" : "ipc://%s/w", w->dir);
    w->n_rows = n_rows;
    w->width = width;
    w->rows = calloc((size_t)n_rows * width, sizeof *w->rows);
    assert_non_null(w->rows);
    assert_int_equal(esp_net_create(&w->net, NULL), ESP_OK);
    assert_int_equal(
        esp_link_create(&w->there, w->net, &(struct esp_link_options){.type = ESP_LINK_SERVE}, NULL), ESP_OK);
    assert_int_equal(esp_link_bind(w->there, at, false, at, NULL), ESP_OK);
    assert_int_equal(
        esp_link_create(&w->here, w->net, &(struct esp_link_options){.type = ESP_LINK_DIAL}, NULL), ESP_OK);
    assert_int_equal(esp_link_connect(w->here, at, NULL), ESP_OK);
    assert_int_equal(pthread_create(&w->echo, NULL, echo_main, w), 0);
    assert_int_equal(pthread_create(&w->ping, NULL, ping_main, w), 0);
    return w;
}

double wire_stop(struct wire **wire)
{
    struct wire *w = *wire;
    char path[80];
    double median;

    atomic_store(&w->stop, true);
    pthread_join(w->ping, NULL);
    pthread_join(w->echo, NULL);
    assert_true(w->n_trips > 0);
    median = crowd_quantile(w->trip, w->n_trips, 0.5) / 2;
    esp_link_destroy(&w->here);
    esp_link_destroy(&w->there);
    esp_net_destroy(&w->net);
    snprintf(path, sizeof path, "%s/w", w->dir);
    unlink(path);
    rmdir(w->dir);
    free(w->rows);
    free(w);
    *wire = NULL;
    return median;
}
