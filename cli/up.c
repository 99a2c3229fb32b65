#include <stdio.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/signals.h"

#define DEFAULT_BIND "tcp://127.0.0.1:5550"
#define LOOK_MS      250   /* between two looks at a cluster that is not ready */
#define WATCH_MS     2000  /* and at one that is */
#define STATUS_MS    60000 /* its own end is noticed at once; this is for one that hangs */

static const struct esp_command_help help = {
    .name = "up",
    .synopsis = "--model DIR [--bind ENDPOINT] [--workers N] [options]",
    .about = "Starts a coordinator and workers on this machine, says how to connect when they are ready, and "
             "keeps them\n"
             "until Ctrl-C. A worker that ends is reported; the others go on.\n",
    .examples = "  espalier up --model paligemma-3b-mix-224\n"
                "  espalier up --model DIR --device 0,1 --bind tcp://127.0.0.1:7000\n"
                "  espalier run --connect tcp://127.0.0.1:5550 --image cat.jpg \"caption en\"\n",
};

struct up {
    struct esp_where where;
    const char *bind;
    bool insecure;
    unsigned verbose;
    struct esp_term term;
    struct esp_embed *embed;
    struct esp_client *client;
    bool ready;
};

static void tell(struct up *up, const struct esp_msg_status *s)
{
    uint64_t done = 0, total = 0;

    for (uint32_t i = 0; i < s->n_workers; i++) {
        done += s->workers[i].done_bytes;
        total += s->workers[i].total_bytes;
    }
    if (s->ready && !up->ready) {
        for (uint32_t i = 0; i < s->n_workers; i++)
            esp_term_line(&up->term, "%s: %s on %s%s", s->workers[i].name, s->workers[i].state,
                          s->workers[i].device.name, s->workers[i].stage.software ? " (software)" : "");
        esp_term_clear(&up->term);
        printf("ready: espalier run --connect %s%s%s%s --image FILE PROMPT\n", esp_embed_endpoint(up->embed),
               up->where.keys ? " --keys " : "", up->where.keys ? up->where.keys : "",
               up->where.keys ? "/clients/local" : "");
        fflush(stdout);
    } else if (!s->ready && up->ready) {
        esp_term_line(&up->term, "espalier up: not ready: %s", s->why);
    } else if (!s->ready && total > 0) {
        esp_term_progress(&up->term, "loading weights: %.0f %%, %.0f of %.0f MiB",
                          100.0 * (double)done / (double)total, (double)done / (1 << 20),
                          (double)total / (1 << 20));
    } else if (!s->ready) {
        esp_term_progress(&up->term, "%s", s->why[0] ? s->why : "starting");
    }
    up->ready = s->ready;
}

/* A look at the cluster, then a pause. A worker's end is said and survived while others live. */
static esp_status watch(struct up *up, struct esp_err *err)
{
    struct esp_msg status;
    struct esp_err more;
    esp_status st = esp_client_status(&status, up->client, STATUS_MS, err);

    if (st == ESP_OK) {
        tell(up, &status.status);
        esp_msg_finish(&status);
        st = esp_client_sleep(up->client, up->ready ? WATCH_MS : LOOK_MS, err);
    }
    if (st != ESP_E_CLOSED)
        return st;
    if (!esp_embed_headless(up->embed) && esp_embed_n_alive(up->embed) > 0) {
        esp_term_line(&up->term, "espalier up: %s; %u of %u workers are left", err->text,
                      esp_embed_n_alive(up->embed), up->where.workers);
        return ESP_OK;
    }
    while (esp_embed_pump(up->embed, &more) ==
           ESP_E_CLOSED) { /* who else ended: the coordinator comes last */
        esp_term_line(&up->term, "espalier up: %s", err->text);
        *err = more;
    }
    return st;
}

static esp_status up_and_stay(struct up *up, struct esp_err *err)
{
    struct esp_embed_options options;
    char keys[1024];
    esp_status st = esp_ask_check_model("--model", up->where.model, NULL, err);

    if (st == ESP_OK)
        st = esp_signals_install(err);
    if (st)
        return st;
    esp_where_embed_options(&up->where, up->verbose, &options);
    options.bind = up->bind;
    options.insecure = up->insecure;
    if (up->where.keys && snprintf(keys, sizeof keys, "%s/clients/local", up->where.keys) >= (int)sizeof keys)
        return esp_fail(err, ESP_E_ARG, "--keys %s: too long a path", up->where.keys);
    st = esp_embed_start(&up->embed, &options, &up->term, err);
    if (st == ESP_OK)
        st = esp_client_create(&up->client, esp_embed_endpoint(up->embed), up->where.keys ? keys : NULL,
                               up->embed, &up->term, err);
    while (st == ESP_OK)
        st = watch(up, err);
    return st;
}

int esp_command_up(int argc, char **argv)
{
    struct up up = {.bind = DEFAULT_BIND};
    struct esp_arg where[ESP_N_CLUSTER_ARGS];
    struct esp_arg service[] = {
        {"bind", 0, ESP_ARG_TEXT, "ENDPOINT",
         "Where the coordinator serves clients and further workers. Default: " DEFAULT_BIND ".", &up.bind, 0,
         0, false, NULL},
        {"insecure", 0, ESP_ARG_FLAG, NULL,
         "Serve an endpoint that other machines reach: whoever reaches it may use it.", &up.insecure, 0, 0,
         false, NULL},
        {"verbose", 'v', ESP_ARG_COUNT, NULL, "Pass on the daemons' info; -vv and -vvv: debug and trace.",
         &up.verbose, 0, 0, false, NULL},
    };
    struct esp_arg_group groups[] = {
        {"Service", service, sizeof service / sizeof service[0]}, {"Cluster", where, 0}, {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    esp_where_args(&up.where, where);
    for (size_t i = 0; i < ESP_N_CLUSTER_ARGS;
         i++) { /* all but --connect's: this is what others connect to */
        if (strcmp(where[i].name, "connect") == 0 || strcmp(where[i].name, "patience") == 0)
            continue;
        where[groups[1].n++] = where[i];
        if (strcmp(where[i].name, "context") == 0)
            where[groups[1].n - 1].help = "Longest sequence, image tokens included.";
        if (strcmp(where[i].name, "keys") == 0)
            where[groups[1].n - 1].help =
                "What 'espalier keygen --out DIR' made, whole: encrypts every link and lets in "
                "only those it names. The workers here use DIR/workers/w0, w1, ..., this "
                "command itself DIR/clients/local.";
    }
    r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    if (r == ESP_ARGS_GO_ON && n_rest > 0)
        r = esp_args_bad(&help, "'%s': no such argument", rest[0]);
    if (r == ESP_ARGS_GO_ON)
        r = esp_where_check(&help, &up.where);
    if (r == ESP_ARGS_GO_ON && !esp_endpoint_is_local(up.bind) && !up.insecure && !up.where.keys)
        r = esp_args_bad(
            &help,
            "--bind %s can be reached from elsewhere, without keys: make some ('espalier keygen') and give "
            "--keys DIR, or add --insecure to allow it",
            up.bind);
    if (r == ESP_ARGS_GO_ON) {
        esp_term_init(&up.term);
        r = 0;
        if (up_and_stay(&up, &err) &&
            !(err.code == ESP_E_CANCELLED && esp_signals_stop())) /* Ctrl-C is its end */
            r = esp_ask_failed(&up.term, help.name, &err);
        esp_term_clear(&up.term);
        esp_client_destroy(&up.client);
        esp_embed_stop(&up.embed);
    }
    esp_args_free(groups);
    return r;
}
