#include "tests/cluster/coordinator_rig.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <fcntl.h>

#include <cmocka.h>

#include "proto/clock.h"

static void must(esp_status st, const struct esp_err *err, const char *what)
{
    if (st)
        fail_msg("%s: %s", what, err->text);
}

/* ---- the coordinator ---- */

int rig_setup(void **state)
{
    struct rig *rig = calloc(1, sizeof *rig);
    struct esp_checkpoint *ck = NULL;
    struct esp_err err;

    assert_non_null(rig);
    snprintf(rig->dir, sizeof rig->dir, "/tmp/esp-coord-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    snprintf(rig->at, sizeof rig->at, "ipc://%s/c", rig->dir);
    must(esp_net_create(&rig->net, &err), &err, "net");
    must(esp_checkpoint_open(&ck, RIG_MODEL, &err), &err, "checkpoint");
    esp_checkpoint_fingerprint(ck, rig->fingerprint);
    esp_checkpoint_destroy(&ck);
    for (int i = 0; i < RIG_WORKERS; i++) {
        snprintf(rig->w[i].name, sizeof rig->w[i].name, "w%d", i);
        snprintf(rig->w[i].endpoint, sizeof rig->w[i].endpoint, "ipc://%s/w%d", rig->dir, i);
        rig->w[i].kv_blocks = 4096 / RIG_BLOCK;
    }
    *state = rig;
    return 0;
}

void rig_start(struct rig *rig, const char *arg, ...)
{
    const char *argv[40] = {COORDINATOR, "--model", RIG_MODEL, "--bind", rig->at, "--die-with-parent"};
    int n = 6;
    va_list ap;
    char path[128];

    va_start(ap, arg);
    for (const char *a = arg; a && n < 39; a = va_arg(ap, const char *))
        argv[n++] = a;
    va_end(ap);
    snprintf(path, sizeof path, "%s/log", rig->dir);
    rig->pid = fork();
    assert_true(rig->pid >= 0);
    if (rig->pid == 0) {
        int fd = open(path, O_CREAT | O_WRONLY | O_APPEND, 0600);
        dup2(fd, 2);
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
}

void rig_reap(struct rig *rig)
{
    const int64_t until = esp_now_ms() + ESP_PATIENCE_MS;
    int status = 0;

    while (rig->pid && waitpid(rig->pid, &status, WNOHANG) == 0) {
        if (esp_now_ms() > until)
            kill(rig->pid, SIGKILL);
        rig_pump(rig, 10);
    }
    rig->pid = 0;
    rig->exit = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int rig_stop(struct rig *rig)
{
    kill(rig->pid, SIGTERM);
    rig_reap(rig);
    return rig->exit;
}

void rig_kill(struct rig *rig)
{
    kill(rig->pid, SIGKILL);
    assert_int_equal(waitpid(rig->pid, NULL, 0), rig->pid);
    rig->pid = 0;
}

bool rig_logged(const struct rig *rig, const char *text)
{
    static char log[1 << 20];
    char path[128];
    FILE *f;
    size_t n;

    snprintf(path, sizeof path, "%s/log", rig->dir);
    f = fopen(path, "r");
    if (!f)
        return false; /* not begun yet */
    n = fread(log, 1, sizeof log - 1, f);
    fclose(f);
    log[n] = '\0';
    return strstr(log, text) != NULL;
}

int rig_teardown(void **state)
{
    struct rig *rig = *state;
    char cmd[128];
    bool bad;

    if (rig->pid)
        rig_stop(rig);
    bad = rig->exit != 0;
    if (bad || getenv("ESP_TEST_VERBOSE")) {
        fprintf(stderr, "coordinator's exit status %d; its log:\n", rig->exit);
        snprintf(cmd, sizeof cmd, "cat %s/log >&2", rig->dir);
        if (system(cmd) != 0)
            fprintf(stderr, "(no log)\n");
    }
    for (int i = 0; i < RIG_WORKERS; i++)
        rig_vanish(rig, i);
    for (int i = 0; i < RIG_CLIENTS; i++)
        rig_hang_up(rig, i);
    rig_drop_seqs(rig);
    esp_net_destroy(&rig->net);
    snprintf(cmd, sizeof cmd, "rm -rf %s", rig->dir);
    if (system(cmd) != 0)
        bad = true;
    free(rig);
    return bad ? -1 : 0;
}

/* ---- workers ---- */

void rig_send(struct rig *rig, int i, struct esp_msg *msg)
{
    struct esp_err err;

    must(esp_link_send(rig->w[i].link, NULL, msg, &err), &err, esp_msg_name(msg->kind));
}

void rig_hello(struct rig *rig, int i)
{
    const struct esp_link_options options = {.type = ESP_LINK_DIAL};
    struct rig_worker *w = &rig->w[i];
    struct esp_err err;

    rig_vanish(rig, i);
    must(esp_link_create(&w->link, rig->net, &options, &err), &err, "link");
    must(esp_link_connect(w->link, rig->at, &err), &err, "connect");
    rig_hello_again(rig, i);
}

void rig_hello_again(struct rig *rig, int i)
{
    struct rig_worker *w = &rig->w[i];
    struct esp_msg msg = {.kind = ESP_MSG_HELLO};

    w->welcome = false;
    msg.hello = (struct esp_msg_hello){.name = w->name,
                                       .device = {.name = "fake device",
                                                  .driver = "fake 1.0",
                                                  .variant = "plain",
                                                  .type = 4,
                                                  .memory_bytes = 4ull << 30,
                                                  .max_alloc_bytes = 1ull << 30,
                                                  .bandwidth = 1e10,
                                                  .matmul_rate = 1e11},
                                       .endpoint = w->endpoint,
                                       .software = "test"};
    msg.hello.wants_weights = w->streams;
    msg.hello.epoch = w->had_epoch;
    if (!w->streams)
        memcpy(msg.hello.fingerprint, rig->fingerprint, sizeof msg.hello.fingerprint);
    rig_send(rig, i, &msg);
}

void rig_drop_held(struct rig *rig, int i)
{
    struct rig_worker *w = &rig->w[i];

    for (uint32_t k = 0; k < w->n_held; k++)
        esp_msg_finish(&w->held[k]);
    w->n_held = 0;
    w->hold_work = false;
}

void rig_vanish(struct rig *rig, int i)
{
    struct rig_worker *w = &rig->w[i];

    for (uint32_t k = 0; k < w->n_held; k++)
        esp_msg_finish(&w->held[k]);
    esp_link_destroy(&w->link);
    w->n_held = 0;
    w->welcome = w->bye = false;
    w->error = ESP_OK;
    memset(&w->place, 0, sizeof w->place);
}

/* -1: it has vanished, and what goes to it is lost. */
static int stage_with(struct rig *rig, bool embed, uint64_t epoch)
{
    for (int i = 0; i < RIG_WORKERS; i++)
        if (rig->w[i].link && rig->w[i].place.epoch == epoch &&
            (embed ? rig->w[i].place.embed : rig->w[i].place.head))
            return i;
    return -1;
}

static void work(struct rig *rig, struct esp_msg *msg)
{
    struct esp_msg out = {0};

    if (msg->kind == ESP_MSG_ENCODE) {
        const int to = stage_with(rig, true, msg->encode.epoch);
        const struct esp_stage_time times[] = {{"w0", 0, 0.5, 1000}};

        assert_int_equal(msg->encode.payload, ESP_PAYLOAD_PIXELS);
        assert_int_equal(msg->encode.width, 56);
        assert_true(rig->n_images < 256);
        rig->image[rig->n_images++] = msg->encode.image;
        rig->n_encodes++;
        out.kind = ESP_MSG_STORED;
        out.stored = (struct esp_msg_stored){
            .epoch = msg->encode.epoch, .image = msg->encode.image, .times = times, .n_times = 1};
        if (to >= 0)
            rig_send(rig, to, &out);
    } else if (stage_with(rig, false, msg->step.epoch) >= 0) {
        rig_result(rig, &out, msg);
        rig_send(rig, stage_with(rig, false, msg->step.epoch), &out);
        rig_result_finish(&out);
    }
}

void rig_resume(struct rig *rig, int i)
{
    struct rig_worker *w = &rig->w[i];

    w->hold_work = false;
    for (uint32_t k = 0; k < w->n_held; k++) {
        work(rig, &w->held[k]);
        esp_msg_finish(&w->held[k]);
    }
    w->n_held = 0;
}

static void on_place(struct rig *rig, int i, const struct esp_msg_place *p)
{
    struct rig_worker *w = &rig->w[i];
    struct esp_msg out = {.kind = ESP_MSG_LOADING};

    assert_true(p->epoch >= w->place.epoch);
    if (p->warm) {
        w->n_warm++;
        if (w->hold_warm)
            return;
        out.kind = w->refuse_warm ? ESP_MSG_ERROR : ESP_MSG_WARMED;
        if (w->refuse_warm)
            out.error =
                (struct esp_msg_error){.code = w->refuse_warm, .text = "no warming here", .epoch = p->epoch};
        else
            out.warmed = (struct esp_msg_warmed){.epoch = p->epoch, .loaded_bytes = 40, .weight_bytes = 100};
        rig_send(rig, i, &out);
        return;
    }
    if (p->carry)
        assert_int_equal(p->carry, w->place.epoch);
    for (int k = 0; k < RIG_WORKERS; k++) /* the first to hear of a new epoch: all forget the old one */
        if (rig->w[k].link && rig->w[k].place.epoch >= p->epoch)
            goto known;
    if (!p->carry)
        rig_drop_seqs(rig);
    rig->last_step = 0;
known:
    if (w->till_place)
        rig_drop_held(rig, i);
    w->till_place = false;
    w->place = *p;
    w->n_places++;
    w->n_moves = 0;
    snprintf(w->next_enc, sizeof w->next_enc, "%s", p->next_enc);
    snprintf(w->features_to, sizeof w->features_to, "%s", p->features_to);
    snprintf(w->next_dec, sizeof w->next_dec, "%s", p->next_dec);
    w->place.next_enc = w->next_enc;
    w->place.features_to = w->features_to;
    w->place.next_dec = w->next_dec;
    if (w->hold_ready)
        return;
    out.loading = (struct esp_msg_loading){.epoch = p->epoch, .done_bytes = 50, .total_bytes = 100};
    rig_send(rig, i, &out);
    out.kind = ESP_MSG_READY;
    out.ready = (struct esp_msg_ready){.epoch = p->epoch, .weight_bytes = 100, .load_seconds = 0.1};
    if (p->dec_lo < p->dec_hi) {
        out.ready.kv_blocks = w->kv_blocks;
        out.ready.block_tokens = RIG_BLOCK;
    }
    rig_send(rig, i, &out);
}

/* What one worker gives another is with all of them already: it is only said. */
static void on_move(struct rig *rig, int i, const struct esp_msg_move *m)
{
    struct rig_worker *w = &rig->w[i];
    struct esp_msg out = {.kind = ESP_MSG_MOVED};
    int to = 0;

    assert_int_equal(m->epoch, w->place.epoch);
    assert_true(w->place.carry > 0);
    assert_true(++w->n_moves <= w->place.n_moves);
    while (to < RIG_WORKERS && !(rig->w[to].link && strcmp(rig->w[to].endpoint, m->to) == 0))
        to++;
    assert_true(to < RIG_WORKERS && to != i);
    assert_true(m->dec_lo >= rig->w[to].place.dec_lo && m->dec_hi <= rig->w[to].place.dec_hi);
    if (w->hold_moves)
        return;
    for (uint32_t l = m->dec_lo; l < m->dec_hi; l++) {
        out.moved = (struct esp_msg_moved){.epoch = m->epoch, .layer = l, .kv_blocks = 2, .n_bytes = 1000};
        rig_send(rig, to, &out);
    }
    for (uint32_t k = 0; k < m->n_images; k++) {
        assert_true(rig->w[to].place.embed);
        out.kind = ESP_MSG_STORED;
        out.stored = (struct esp_msg_stored){.epoch = m->epoch, .image = m->images[k]};
        rig_send(rig, to, &out);
    }
}

static void on_worker(struct rig *rig, int i, struct esp_msg *msg)
{
    struct rig_worker *w = &rig->w[i];

    switch (msg->kind) {
    case ESP_MSG_WELCOME:
        w->welcome = true;
        break;
    case ESP_MSG_MANIFEST:
        w->n_manifests++;
        break;
    case ESP_MSG_CHUNK:
        w->n_chunks++;
        break;
    case ESP_MSG_HEARTBEAT:
        if (msg->heartbeat.stamp > 0 && !w->mute) {
            struct esp_msg echo = {.kind = ESP_MSG_HEARTBEAT};
            echo.heartbeat =
                (struct esp_msg_heartbeat){.epoch = w->place.epoch, .echo = msg->heartbeat.stamp};
            (void)esp_link_send(w->link, NULL, &echo, NULL);
        }
        break;
    case ESP_MSG_BYE:
        w->bye = true;
        break;
    case ESP_MSG_ERROR:
        if (w->error)
            break; /* it went on after the first one, and was told again */
        w->error = msg->error.code;
        snprintf(w->error_text, sizeof w->error_text, "%s", msg->error.text);
        break;
    case ESP_MSG_PLACE:
        on_place(rig, i, &msg->place);
        break;
    case ESP_MSG_VERIFY:
        w->verify = msg->verify;
        break;
    case ESP_MSG_MOVE:
        on_move(rig, i, &msg->move);
        break;
    case ESP_MSG_ENCODE:
    case ESP_MSG_STEP:
        assert_true(msg->kind == ESP_MSG_ENCODE ? w->place.patch : w->place.embed);
        if (w->n_does > 0 && --w->n_does == 0)
            w->hold_work = true;
        if (w->hold_work) {
            assert_true(w->n_held < RIG_HELD);
            w->held[w->n_held++] = *msg;
            memset(msg, 0, sizeof *msg);
        } else {
            work(rig, msg);
        }
        break;
    case ESP_MSG_RELEASE:
        assert_true(w->place.embed);
        for (uint32_t k = 0; k < msg->release.n_seqs; k++)
            rig_free_seq(rig, msg->release.seqs[k]);
        for (uint32_t k = 0; k < msg->release.n_images; k++)
            for (uint32_t j = 0; j < rig->n_images; j++)
                if (rig->image[j] == msg->release.images[k])
                    rig->image[j--] = rig->image[--rig->n_images];
        break;
    default:
        fail_msg("a worker was sent a %s", esp_msg_name(msg->kind));
    }
}

/* ---- pumping ---- */

void rig_pump(struct rig *rig, int ms)
{
    struct esp_wait waits[RIG_WORKERS + RIG_CLIENTS] = {0};
    uint32_t n = 0;

    if (esp_now_ms() >= rig->beat_at) {
        for (int i = 0; i < RIG_WORKERS; i++) {
            struct esp_msg msg = {.kind = ESP_MSG_HEARTBEAT};
            msg.heartbeat.epoch = rig->w[i].place.epoch;
            msg.heartbeat.n_queued = rig->w[i].n_held;
            if (rig->w[i].link && rig->w[i].welcome && !rig->w[i].mute)
                (void)esp_link_send(rig->w[i].link, NULL, &msg, NULL);
        }
        rig->beat_at = esp_now_ms() + 50;
    }
    for (int i = 0; i < RIG_WORKERS; i++)
        if (rig->w[i].link)
            waits[n++].link = rig->w[i].link;
    for (int i = 0; i < RIG_CLIENTS; i++)
        if (rig->c[i].link && !rig->c[i].asleep)
            waits[n++].link = rig->c[i].link;
    if (n > 0)
        (void)esp_link_wait(waits, n, ms < 20 ? ms : 20, NULL);
    for (int i = 0; i < RIG_WORKERS; i++) {
        struct esp_msg msg;
        struct esp_err err;
        esp_status st;

        while (rig->w[i].link && (st = esp_link_recv(rig->w[i].link, NULL, &msg, &err)) != ESP_E_TIMEOUT) {
            must(st, &err, "a worker's message");
            on_worker(rig, i, &msg);
            esp_msg_finish(&msg);
        }
    }
    for (int i = 0; i < RIG_CLIENTS; i++) {
        struct rig_client *c = &rig->c[i];
        struct esp_msg msg;
        struct esp_err err;
        esp_status st;

        while (c->link && !c->asleep && (st = esp_link_recv(c->link, NULL, &msg, &err)) != ESP_E_TIMEOUT) {
            must(st, &err, "a client's message");
            assert_true(c->n_inbox < RIG_INBOX);
            c->inbox[c->n_inbox] = malloc(sizeof msg);
            assert_non_null(c->inbox[c->n_inbox]);
            *c->inbox[c->n_inbox++] = msg;
        }
    }
}

void rig_until(struct rig *rig, bool (*cond)(struct rig *rig, void *arg), void *arg, const char *what)
{
    const int64_t until = esp_now_ms() + ESP_PATIENCE_MS;

    while (!cond(rig, arg)) {
        if (esp_now_ms() > until)
            fail_msg("waited in vain: %s", what);
        rig_pump(rig, 20);
    }
}

static bool is_welcome(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->welcome;
}

static bool all_placed(struct rig *rig, void *arg)
{
    const int n = *(int *)arg;

    for (int i = 0; i < n; i++)
        if (!rig->w[i].place.epoch)
            return false;
    return true;
}

void rig_join(struct rig *rig, int n)
{
    for (int i = 0; i < n; i++) {
        rig_hello(rig, i);
        rig_until(rig, is_welcome, &rig->w[i], "Welcome");
    }
    rig_until(rig, all_placed, &n, "a Place for every worker");
}

static bool nothing_held(struct rig *rig, void *arg)
{
    return rig_n_seqs(rig) == 0;
}

void rig_until_free(struct rig *rig)
{
    rig_until(rig, nothing_held, NULL, "every sequence released");
}

/* ---- clients ---- */

void rig_dial(struct rig *rig, int i)
{
    const struct esp_link_options options = {.type = ESP_LINK_DIAL};
    struct esp_err err;

    if (rig->c[i].link)
        return;
    must(esp_link_create(&rig->c[i].link, rig->net, &options, &err), &err, "link");
    must(esp_link_connect(rig->c[i].link, rig->at, &err), &err, "connect");
}

void rig_forget(struct rig *rig, int i)
{
    struct rig_client *c = &rig->c[i];

    for (uint32_t k = 0; k < c->n_inbox; k++) {
        esp_msg_finish(c->inbox[k]);
        free(c->inbox[k]);
    }
    c->n_inbox = c->n_read = 0;
}

void rig_hang_up(struct rig *rig, int i)
{
    struct rig_client *c = &rig->c[i];

    rig_forget(rig, i);
    esp_link_destroy(&c->link);
    memset(c, 0, sizeof *c);
}

static void *slurp(size_t *n, const char *path)
{
    FILE *f = fopen(path, "rb");
    char *data = malloc(1 << 20);

    if (!f || !data)
        fail_msg("%s: cannot be read", path);
    *n = fread(data, 1, 1 << 20, f);
    fclose(f);
    return data;
}

void rig_request(struct rig *rig, int i, struct esp_msg_request *request, ...)
{
    struct esp_msg msg = {.kind = ESP_MSG_REQUEST};
    const char *names[ESP_MAX_BLOBS];
    struct esp_err err;
    va_list ap;

    rig_dial(rig, i);
    msg.request = *request;
    va_start(ap, request);
    for (const char *name = va_arg(ap, const char *); name; name = va_arg(ap, const char *)) {
        char path[256];

        snprintf(path, sizeof path, "%s/%s", strchr(name, '/') ? "." : RIG_MODEL "/images", name);
        names[msg.n_blobs] = name;
        msg.blob[msg.n_blobs].data = slurp(&msg.blob[msg.n_blobs].n_bytes, path);
        msg.n_blobs++;
    }
    va_end(ap);
    msg.request.n_images = msg.n_blobs;
    msg.request.image_names = names;
    must(esp_link_send(rig->c[i].link, NULL, &msg, &err), &err, "request");
    for (uint32_t k = 0; k < msg.n_blobs; k++)
        free((void *)msg.blob[k].data);
}

void rig_cancel(struct rig *rig, int i, uint64_t session)
{
    struct esp_msg msg = {.kind = ESP_MSG_CANCEL};
    struct esp_err err;

    msg.cancel.session = session;
    must(esp_link_send(rig->c[i].link, NULL, &msg, &err), &err, "cancel");
}

void rig_come_back(struct rig *rig, int i, const uint8_t *ticket, uint64_t id, uint32_t have)
{
    struct esp_msg msg = {.kind = ESP_MSG_RESUME};
    struct esp_err err;

    rig_dial(rig, i);
    msg.resume = (struct esp_msg_resume){.id = id, .have = have};
    memcpy(msg.resume.ticket, ticket, sizeof msg.resume.ticket);
    must(esp_link_send(rig->c[i].link, NULL, &msg, &err), &err, "resume");
}

const struct esp_msg *rig_take(struct rig *rig, int i, enum esp_msg_kind kind)
{
    const int64_t until = esp_now_ms() + ESP_PATIENCE_MS;
    struct rig_client *c = &rig->c[i];

    for (;;) {
        while (c->n_read < c->n_inbox) {
            const struct esp_msg *m = c->inbox[c->n_read++];

            if (m->kind == kind)
                return m;
            if (m->kind == ESP_MSG_ERROR)
                fail_msg("client %d waits for a %s and got the error: %s", i, esp_msg_name(kind),
                         m->error.text);
            if (m->kind == ESP_MSG_DONE || m->kind == ESP_MSG_STATUS)
                fail_msg("client %d waits for a %s and got a %s", i, esp_msg_name(kind),
                         esp_msg_name(m->kind));
        }
        if (esp_now_ms() > until)
            fail_msg("client %d waits in vain for a %s", i, esp_msg_name(kind));
        rig_pump(rig, 20);
    }
}

const struct esp_msg *rig_take_greedy(struct rig *rig, int i, uint32_t max_tokens)
{
    const struct esp_msg *done = rig_take(rig, i, ESP_MSG_DONE), *accepted = NULL;
    const struct esp_hypothesis *h = &done->done.best;
    uint32_t tok[RIG_SEQ_TOKENS], n_tok = 0, n = 0;
    bool eos = false;

    for (uint32_t k = 0; k < rig->c[i].n_inbox; k++)
        if (rig->c[i].inbox[k]->kind == ESP_MSG_ACCEPTED &&
            rig->c[i].inbox[k]->accepted.session == done->done.session)
            accepted = rig->c[i].inbox[k];
    assert_non_null(accepted);
    while (n_tok < accepted->accepted.image_tokens)
        tok[n_tok++] = 5534; /* the image token */
    for (uint32_t k = 0; k < accepted->accepted.n_prompt_ids; k++)
        tok[n_tok++] = accepted->accepted.prompt_ids[k];
    for (; n < max_tokens && !eos; n++) {
        float logits[RIG_VOCAB];
        uint32_t best = 0;

        rig_logits(logits, tok, n_tok);
        for (uint32_t v = 1; v < RIG_VOCAB; v++)
            best = logits[v] > logits[best] ? v : best;
        eos = best == RIG_EOS;
        if (!eos) {
            assert_true(n < h->n_ids);
            assert_int_equal(h->ids[n], best);
            tok[n_tok++] = best;
        }
    }
    assert_int_equal(h->n_ids, n - eos);
    return done;
}

void rig_take_error(struct rig *rig, int i, uint64_t session, esp_status code, const char *fragment)
{
    const struct esp_msg *m = rig_take(rig, i, ESP_MSG_ERROR);

    if (m->error.session != session || m->error.code != code || !strstr(m->error.text, fragment))
        fail_msg("error of session %llu, %s: \"%s\"; expected session %llu, %s: \"...%s...\"",
                 (unsigned long long)m->error.session, esp_status_name(m->error.code), m->error.text,
                 (unsigned long long)session, esp_status_name(code), fragment);
}

uint32_t rig_count(const struct rig *rig, int i, enum esp_msg_kind kind)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < rig->c[i].n_inbox; k++)
        n += rig->c[i].inbox[k]->kind == kind;
    return n;
}
