#include <stdio.h>
#include <string.h>

#include "cli/cluster.h"
#include "cli/figures.h"
#include "cli/report.h"

struct drain {
    struct esp_cluster_ask *ask;
    esp_status st;
    struct esp_err err; /* of printing */
};

static esp_status print_drained(const struct esp_msg_drained *d, struct esp_err *err)
{
    if (d->n_layers == 0)
        printf("%s had no layers to give away.\n", d->worker);
    else
        printf("%s gave away %u layers, %s of KV cache and the features of %u pictures in %s;\nno step went "
               "out for %s. Placement %llu does without it.\n",
               d->worker, d->n_layers, esp_figure_bytes((double)d->kv_bytes).s, d->n_images,
               esp_figure_seconds(d->seconds).s, esp_figure_seconds(d->pause).s,
               (unsigned long long)d->epoch);
    if (fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

static bool heard(void *self, const struct esp_msg *msg)
{
    struct drain *drain = self;
    struct esp_cluster_ask *ask = drain->ask;
    json_t *report;

    if (msg->kind == ESP_MSG_WAITING) {
        if (msg->waiting.total > 0)
            esp_term_progress(&ask->term, "%s: %llu of %llu", msg->waiting.what,
                              (unsigned long long)msg->waiting.done, (unsigned long long)msg->waiting.total);
        else
            esp_term_progress(&ask->term, "%s", msg->waiting.what);
        return false;
    }
    if (msg->kind != ESP_MSG_DRAINED)
        return false;
    esp_term_clear(&ask->term);
    if (ask->json) {
        drain->st = esp_report_drained(&report, &msg->drained, &drain->err);
        if (drain->st == ESP_OK)
            drain->st = esp_report_print(report, &drain->err);
    } else {
        drain->st = print_drained(&msg->drained, &drain->err);
    }
    return true;
}

esp_status esp_cluster_drain(struct esp_cluster_ask *ask, struct esp_client *client, struct esp_err *err)
{
    struct drain drain = {.ask = ask};
    struct esp_msg order = {.kind = ESP_MSG_DRAIN};
    esp_status st;

    order.drain.worker = ask->worker;
    st = esp_client_order(client, &order, (int)ask->timeout_s * 1000, heard, &drain, err);
    if (st == ESP_OK && drain.st) {
        *err = drain.err;
        st = drain.st;
    }
    return st;
}
