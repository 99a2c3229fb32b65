#include "cli/cluster.h"

#include <stdio.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/signals.h"

#define DEFAULT_CONNECT "tcp://127.0.0.1:5550"
#define DEFAULT_WATCH_S 2

static const struct esp_command_help help = {
    .name = "cluster",
    .synopsis = "status | placement | drain NODE [options]",
    .about =
        "Looks at a running cluster, and takes workers out of it.\n\n"
        "  status      workers, their devices, layers and memory, what they are doing, and how much of it\n"
        "  placement   the stages in order, the time each is predicted to take and has taken, and whether\n"
        "              fewer workers would answer one request faster\n"
        "  drain NODE  moves a worker's layers to others, with the state of the sessions that run on them, "
        "so\n"
        "              that the worker may be stopped\n",
    .examples = "  espalier cluster status\n"
                "  espalier cluster status --connect tcp://10.0.0.5:5550 --keys keys --watch\n"
                "  espalier cluster placement --json\n"
                "  espalier cluster drain w2\n",
};

static const struct {
    const char *name;
    esp_status (*run)(struct esp_cluster_ask *ask, struct esp_client *client, struct esp_err *err);
    bool takes_node;
} commands[] = {
    {"status", esp_cluster_status, false},
    {"placement", esp_cluster_placement, false},
    {"drain", esp_cluster_drain, true},
};

#define N_COMMANDS (sizeof commands / sizeof commands[0])

static int choose(size_t *which, struct esp_cluster_ask *ask, char **rest, int n_rest)
{
    size_t c = 0;

    while (n_rest > 0 && c < N_COMMANDS && strcmp(rest[0], commands[c].name) != 0)
        c++;
    if (n_rest == 0 || c == N_COMMANDS)
        return esp_args_bad(&help, "expected 'status', 'placement' or 'drain NODE'%s%s",
                            n_rest > 0 ? ", not " : "", n_rest > 0 ? rest[0] : "");
    if (commands[c].takes_node && n_rest == 1)
        return esp_args_bad(&help, "%s whom? 'espalier cluster status' shows their names", commands[c].name);
    if (n_rest > 1 + commands[c].takes_node)
        return esp_args_bad(&help, "%s: '%s' is one argument too many", commands[c].name,
                            rest[1 + commands[c].takes_node]);
    if (commands[c].takes_node) {
        ask->worker = rest[1];
        if (!*ask->worker || strlen(ask->worker) > ESP_MAX_NAME)
            return esp_args_bad(&help, "'%s': a worker's name has 1 to %d bytes", ask->worker, ESP_MAX_NAME);
    }
    if (ask->watch_s > 0 && commands[c].run != esp_cluster_status)
        return esp_args_bad(&help, "--watch goes with status, not with %s", commands[c].name);
    *which = c;
    return ESP_ARGS_GO_ON;
}

static esp_status connect_and_run(size_t which, struct esp_cluster_ask *ask, struct esp_err *err)
{
    struct esp_client *client = NULL;
    esp_status st = esp_signals_install(err);

    if (st == ESP_OK)
        st = esp_client_create(&client, ask->endpoint, ask->keys, NULL, &ask->term, err);
    if (st == ESP_OK)
        st = commands[which].run(ask, client, err);
    esp_client_destroy(&client);
    return st;
}

int esp_command_cluster(int argc, char **argv)
{
    struct esp_cluster_ask ask = {.endpoint = DEFAULT_CONNECT, .timeout_s = 5};
    bool watch = false;
    uint32_t every = DEFAULT_WATCH_S;
    struct esp_arg options[] = {
        {"connect", 0, ESP_ARG_TEXT, "ENDPOINT",
         "Where the coordinator serves. Default: " DEFAULT_CONNECT ".", &ask.endpoint, 0, 0, false, NULL},
        {"keys", 0, ESP_ARG_TEXT, "DIR",
         "This client's keys ('espalier keygen'), for a cluster that has keys.", &ask.keys, 0, 0, false,
         NULL},
        {"timeout", 0, ESP_ARG_U32, "SECONDS", "How long to wait for its answer. Default: 5.", &ask.timeout_s,
         1, 3600, false, NULL},
        {"watch", 'w', ESP_ARG_U32_OPT, "[SECONDS]",
         "status: look again every so many seconds (2), until Ctrl-C.", &every, 1, 86400, false, &watch},
        {"json", 0, ESP_ARG_FLAG, NULL, "One JSON object on standard output; with --watch, one a line.",
         &ask.json, 0, 0, false, NULL},
    };
    const struct esp_arg_group groups[] = {{"Options", options, sizeof options / sizeof options[0]},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest, name[64];
    int n_rest, r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    size_t which = 0;

    ask.watch_s = watch ? every : 0;
    if (r == ESP_ARGS_GO_ON)
        r = choose(&which, &ask, rest, n_rest);
    if (r != ESP_ARGS_GO_ON)
        return r;
    esp_term_init(&ask.term);
    r = 0;
    snprintf(name, sizeof name, "cluster %s", commands[which].name);
    if (connect_and_run(which, &ask, &err))
        r = esp_ask_failed(&ask.term, name, &err);
    esp_term_clear(&ask.term);
    return r;
}
