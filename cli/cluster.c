#include <stdio.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/report.h"
#include "cli/signals.h"

#define DEFAULT_CONNECT "tcp://127.0.0.1:5550"

static const struct esp_command_help help = {
    .name = "cluster",
    .synopsis = "status [--connect ENDPOINT] [--json]",
    .about = "Shows a running cluster: its workers, their devices, which layers each holds, what they are "
             "doing.\n",
    .examples = "  espalier cluster status\n"
                "  espalier cluster status --connect tcp://10.0.0.5:5550 --json\n",
};

static void print_table(const struct esp_msg_status *s)
{
    printf("%s%s%s, placement %llu, %u sessions, %u queued\n", s->ready ? "ready" : "not ready",
           s->why[0] ? ": " : "", s->why, (unsigned long long)s->epoch, s->n_sessions, s->n_queued);
    if (s->n_workers > 0)
        printf("%-16s %-8s %-9s %-9s %10s %10s  %s\n", "worker", "state", "encoder", "decoder", "weights",
               "memory", "device");
    for (uint32_t i = 0; i < s->n_workers; i++) {
        const struct esp_worker_status *w = &s->workers[i];
        char enc[32] = "-", dec[32] = "-";

        if (w->stage.enc_hi > w->stage.enc_lo)
            snprintf(enc, sizeof enc, "%u-%u", w->stage.enc_lo, w->stage.enc_hi - 1);
        if (w->stage.dec_hi > w->stage.dec_lo)
            snprintf(dec, sizeof dec, "%u-%u", w->stage.dec_lo, w->stage.dec_hi - 1);
        printf("%-16s %-8s %-9s %-9s %6.0f MiB %6.0f MiB  %s", w->name, w->state, enc, dec,
               (double)w->stage.weight_bytes / (1 << 20), (double)w->device.memory_bytes / (1 << 20),
               w->device.name);
        if (w->total_bytes > 0 && w->done_bytes < w->total_bytes)
            printf(" (%.0f %% loaded)", 100.0 * (double)w->done_bytes / (double)w->total_bytes);
        putchar('\n');
    }
}

static esp_status show(const char *endpoint, const char *keys, bool json, uint32_t timeout_s,
                       struct esp_term *term, struct esp_err *err)
{
    struct esp_client *client = NULL;
    struct esp_msg status = {0};
    json_t *report;
    esp_status st = esp_signals_install(err);

    if (st == ESP_OK)
        st = esp_client_create(&client, endpoint, keys, NULL, term, err);
    if (st == ESP_OK)
        st = esp_client_status(&status, client, (int)timeout_s * 1000, err);
    if (st == ESP_OK && json) {
        st = esp_report_status(&report, &status.status, err);
        if (st == ESP_OK)
            st = esp_report_print(report, err);
    } else if (st == ESP_OK) {
        print_table(&status.status);
        if (fflush(stdout) != 0)
            st = esp_fail(err, ESP_E_IO, "standard output cannot be written");
    }
    esp_msg_finish(&status);
    esp_client_destroy(&client);
    return st;
}

int esp_command_cluster(int argc, char **argv)
{
    const char *endpoint = DEFAULT_CONNECT, *keys = NULL;
    bool json = false;
    uint32_t timeout_s = 5;
    struct esp_arg options[] = {
        {"connect", 0, ESP_ARG_TEXT, "ENDPOINT",
         "Where the coordinator serves. Default: " DEFAULT_CONNECT ".", &endpoint, 0, 0, false, NULL},
        {"keys", 0, ESP_ARG_TEXT, "DIR",
         "This client's keys ('espalier keygen'), for a cluster that has keys.", &keys, 0, 0, false, NULL},
        {"timeout", 0, ESP_ARG_U32, "SECONDS", "How long to wait for its answer. Default: 5.", &timeout_s, 1,
         3600, false, NULL},
        {"json", 0, ESP_ARG_FLAG, NULL, "One JSON object on standard output.", &json, 0, 0, false, NULL},
    };
    const struct esp_arg_group groups[] = {{"Options", options, sizeof options / sizeof options[0]},
                                           {NULL, NULL, 0}};
    struct esp_term term;
    struct esp_err err = {0};
    char **rest;
    int n_rest, r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);

    if (r != ESP_ARGS_GO_ON)
        return r;
    if (n_rest != 1 || strcmp(rest[0], "status") != 0)
        return esp_args_bad(&help, "expected 'status'%s%s", n_rest > 0 ? ", not " : "",
                            n_rest > 0 ? rest[0] : "");
    esp_term_init(&term);
    return show(endpoint, keys, json, timeout_s, &term, &err) ? esp_ask_failed(&term, "cluster status", &err)
                                                              : 0;
}
