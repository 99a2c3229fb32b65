#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/report.h"

#define SIGN_MS                                                                                              \
    60000 /* for the coordinator's first answer: one that has just been started opens the checkpoint */

static const struct esp_command_help help = {
    .name = "verify",
    .synopsis = "--connect ENDPOINT | --model DIR [options]",
    .about =
        "Runs a built-in input through the layers of every worker and compares what each layer makes of "
        "it with\n"
        "the same arithmetic in float64 on the worker's CPU. Names, for each worker, the first layer that "
        "deviates:\n"
        "a device or driver that computes wrongly. The cluster goes on serving meanwhile.\n",
    .examples = "  espalier verify --connect tcp://10.0.0.5:5550 --keys keys\n"
                "  espalier verify --model DIR --device 0,1 --json\n",
};

struct verify {
    struct esp_ask ask;
    struct esp_verified *worker; /* in the order in which they first spoke */
    uint32_t n_workers;          /* that have spoken */
    uint32_t n_expected;
    esp_status st; /* of taking a report */
    struct esp_err err;
};

/* ---- reports ---- */

static struct esp_verified *find(struct verify *v, const struct esp_msg_verify_report *r)
{
    struct esp_verified *grown, *w;

    for (uint32_t i = 0; i < v->n_workers; i++)
        if (strcmp(v->worker[i].worker, r->worker) == 0)
            return &v->worker[i];
    grown = realloc(v->worker, (v->n_workers + 1) * sizeof *grown);
    if (!grown)
        return NULL;
    v->worker = grown;
    w = &grown[v->n_workers++];
    memset(w, 0, sizeof *w);
    snprintf(w->worker, sizeof w->worker, "%s", r->worker);
    snprintf(w->device, sizeof w->device, "%s", r->device);
    snprintf(w->driver, sizeof w->driver, "%s", r->driver);
    return w;
}

static void keep(struct esp_verified_layer *to, const struct esp_msg_verify_report *r)
{
    to->error = r->error;
    to->limit = r->limit;
    snprintf(to->name, sizeof to->name, "%s", r->layer);
}

static void take(struct esp_verified *w, const struct esp_msg_verify_report *r)
{
    const bool wrong = !(r->error <= r->limit);

    if (!r->layer[0]) {
        w->failed = true;
        esp_fail(&w->why, ESP_E_DEVICE, "%s", r->why[0] ? r->why : "it says no reason");
        return;
    }
    w->n_done = r->done;
    w->n_total = r->total;
    w->n_wrong += wrong;
    if (w->worst.name[0] == '\0' || r->error * w->worst.limit > w->worst.error * r->limit)
        keep(&w->worst, r); /* measured by what is allowed */
    if (wrong && w->n_wrong == 1)
        keep(&w->first_wrong, r);
}

static void show_progress(struct verify *v)
{
    uint64_t n_done = 0, n_total = 0;

    for (uint32_t i = 0; i < v->n_workers; i++) {
        n_done += v->worker[i].n_done;
        n_total += v->worker[i].n_total;
    }
    if (n_total > 0)
        esp_term_progress(&v->ask.term, "verifying: %llu of %llu checks", (unsigned long long)n_done,
                          (unsigned long long)n_total);
}

static bool heard(void *self, const struct esp_msg *msg)
{
    struct verify *v = self;
    struct esp_verified *w;

    if (msg->kind == ESP_MSG_WAITING) {
        esp_ask_waiting(&v->ask, &msg->waiting);
        return false;
    }
    if (msg->kind != ESP_MSG_VERIFY_REPORT)
        return false;
    v->n_expected = msg->verify_report.n_workers;
    w = find(v, &msg->verify_report);
    if (!w) {
        v->st = esp_fail(&v->err, ESP_E_NOMEM, "out of memory");
        return true;
    }
    take(w, &msg->verify_report);
    show_progress(v);
    return msg->verify_report.n_left == 0;
}

/* ---- what comes of them ---- */

static void print_layer(const char *before, const struct esp_verified_layer *l)
{
    printf("%s%s: error %.2g, limit %.2g", before, l->name, l->error, l->limit);
}

static void print_worker(const struct esp_verified *w, int width)
{
    printf("%-*s %s, %s: ", width, w->worker, w->device, w->driver);
    if (w->n_wrong > 0) {
        print_layer("WRONG, first in ", &w->first_wrong);
        printf("; %u of %u checks deviate", w->n_wrong, w->n_done);
        if (w->n_wrong > 1)
            print_layer(", most ", &w->worst);
    } else if (!w->failed) {
        printf("right in %u checks", w->n_done);
        print_layer("; the worst ", &w->worst);
    }
    if (w->failed)
        printf("%sit could not be checked%s: %s", w->n_wrong > 0 ? "; then " : "",
               w->n_done > 0 && w->n_wrong == 0 ? " whole" : "", w->why.text);
    putchar('\n');
}

static esp_status print(const struct verify *v, struct esp_err *err)
{
    json_t *report;
    int width = 0;

    if (v->ask.json) {
        esp_status st = esp_report_verified(&report, v->worker, v->n_workers, err);
        return st ? st : esp_report_print(report, err);
    }
    for (uint32_t i = 0; i < v->n_workers; i++)
        width = (int)strlen(v->worker[i].worker) > width ? (int)strlen(v->worker[i].worker) : width;
    for (uint32_t i = 0; i < v->n_workers; i++)
        print_worker(&v->worker[i], width);
    if (fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

/* What the exit status says, in words. */
static esp_status judge(struct verify *v, struct esp_err *err)
{
    const struct esp_verified *bad = NULL, *failed = NULL;

    for (uint32_t i = 0; i < v->n_workers; i++) {
        const struct esp_verified *w = &v->worker[i];

        if (!bad && w->n_wrong > 0)
            bad = w;
        if (!failed && (w->failed || w->n_done != w->n_total))
            failed = w;
    }
    if (bad)
        return esp_fail(err, ESP_E_DEVICE, "%s computes wrongly, first in %s; do not use it (%s, %s)",
                        bad->worker, bad->first_wrong.name, bad->device, bad->driver);
    if (failed)
        return esp_fail(err, ESP_E_CLOSED, "%s was not checked", failed->worker);
    if (v->n_workers == 0 || v->n_workers != v->n_expected)
        return esp_fail(err, ESP_E_PROTO, "%u of %u workers were checked", v->n_workers, v->n_expected);
    return ESP_OK;
}

static esp_status verify(struct verify *v, struct esp_err *err)
{
    struct esp_msg order = {.kind = ESP_MSG_VERIFY_QUERY};
    esp_status st = esp_ask_connect(&v->ask, NULL, err);

    if (st == ESP_OK)
        st = esp_client_order(v->ask.client, &order, SIGN_MS, heard, v, err);
    esp_term_clear(&v->ask.term);
    if (st == ESP_OK && v->st) {
        *err = v->err;
        st = v->st;
    }
    if (st == ESP_OK)
        st = print(v, err);
    return st ? st : judge(v, err);
}

int esp_command_verify(int argc, char **argv)
{
    static struct verify v;
    struct esp_arg where[ESP_N_CLUSTER_ARGS];
    struct esp_arg output[] = {
        {"json", 0, ESP_ARG_FLAG, NULL, "One JSON object on standard output, at the end.", &v.ask.json, 0, 0,
         false, NULL},
        {"verbose", 'v', ESP_ARG_COUNT, NULL,
         "Pass on the info of the daemons started here; -vv and -vvv: their debug and trace.", &v.ask.verbose,
         0, 0, false, NULL},
    };
    const struct esp_arg_group groups[] = {{"Output", output, sizeof output / sizeof output[0]},
                                           {"Where", where, ESP_N_CLUSTER_ARGS},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    esp_where_args(&v.ask.where, where);
    r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    if (r == ESP_ARGS_GO_ON && n_rest > 0)
        r = esp_args_bad(&help, "'%s': no such argument", rest[0]);
    if (r == ESP_ARGS_GO_ON)
        r = esp_ask_check(&help, &v.ask);
    if (r == ESP_ARGS_GO_ON) {
        esp_term_init(&v.ask.term);
        r = verify(&v, &err) ? esp_ask_failed(&v.ask.term, help.name, &err) : 0;
        esp_ask_close(&v.ask);
        free(v.worker);
    }
    esp_args_free(groups);
    return r;
}
