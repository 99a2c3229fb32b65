#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cluster.h"
#include "cli/figures.h"
#include "cli/report.h"
#include "cli/signals.h"
#include "model/wtype.h"

#define HOME        "\033[H"
#define CLEAR_LINE  "\033[K"
#define CLEAR_BELOW "\033[J"

static uint32_t n_running(const struct esp_msg_status *s)
{
    const uint64_t others = (uint64_t)s->n_queued + s->n_waiting;

    return s->n_sessions > others ? (uint32_t)(s->n_sessions - others) : 0;
}

static void print_totals(FILE *f, const struct esp_msg_status *s)
{
    fprintf(f, "%s%s%s, placement %llu%s%s, up %s%s%s\n", s->ready ? "ready" : "not ready",
            s->why[0] ? ": " : "", s->why, (unsigned long long)s->epoch, s->weights ? ", weights as " : "",
            s->weights ? esp_wtype_name((enum esp_wtype)s->weights) : "", esp_figure_seconds(s->uptime).s,
            s->doing[0] ? "; now " : "", s->doing);
    fprintf(f, "sessions: %u running, %u queued, %u waiting for room or workers; %.1f tokens/s\n",
            n_running(s), s->n_queued, s->n_waiting, s->tokens_per_second);
    if (s->kv_blocks > 0)
        fprintf(f, "KV cache: %llu of %llu blocks reserved (%.0f %%)\n",
                (unsigned long long)s->kv_used_blocks, (unsigned long long)s->kv_blocks,
                100.0 * (double)s->kv_used_blocks / (double)s->kv_blocks);
    fprintf(f,
            "so far: %llu requests, %llu tokens, %llu steps, %llu prefills, %llu pictures encoded and %llu "
            "from the cache\n",
            (unsigned long long)s->n_requests, (unsigned long long)s->n_tokens,
            (unsigned long long)s->n_steps, (unsigned long long)s->n_prefills,
            (unsigned long long)s->n_encodes, (unsigned long long)s->n_cached);
    fprintf(f,
            "        %llu stages lost, %llu sessions rebuilt, %llu placements carried on, %s of KV moved\n",
            (unsigned long long)s->n_losses, (unsigned long long)s->n_rebuilds,
            (unsigned long long)s->n_moves, esp_figure_bytes((double)s->kv_moved_bytes).s);
}

/* What a worker does not just now is told as "-". */
static void print_doing(FILE *f, const struct esp_worker_status *w, int width)
{
    char busy[16] = "-";

    if (w->stage.worker[0])
        snprintf(busy, sizeof busy, "%.0f %%", 100 * w->busy);
    fprintf(f, "%-*s %-9s %-8s %-8s %6s %6u %9s  %s, %s%s", width, w->name, w->state,
            esp_figure_layers(w->stage.enc_lo, w->stage.enc_hi).s,
            esp_figure_layers(w->stage.dec_lo, w->stage.dec_hi).s, busy, w->n_queued,
            esp_figure_seconds(w->rtt).s, w->device.name, w->device.driver,
            w->streams ? ", weights over the wire" : "");
    if (w->total_bytes > 0 && w->done_bytes < w->total_bytes)
        fprintf(f, ", %.0f %% loaded", 100.0 * (double)w->done_bytes / (double)w->total_bytes);
    if (w->cause[0])
        fprintf(f, ": %s", w->cause);
    fputc('\n', f);
}

static void print_memory(FILE *f, const struct esp_worker_status *w, int width)
{
    const struct esp_stage_info *g = &w->stage;
    const double used = (double)g->weight_bytes + (double)g->kv_bytes + (double)g->scratch_bytes;
    char blocks[64] = "-";

    if (w->kv_blocks > 0)
        snprintf(blocks, sizeof blocks, "%llu/%llu", (unsigned long long)w->kv_used_blocks,
                 (unsigned long long)w->kv_blocks);
    fprintf(f, "%-*s %10s %10s %10s %10s of %-10s %11s %9u %8u\n", width, w->name,
            esp_figure_bytes((double)g->weight_bytes).s, esp_figure_bytes((double)g->kv_bytes).s,
            esp_figure_bytes((double)g->scratch_bytes).s, esp_figure_bytes(used).s,
            esp_figure_bytes((double)w->device.memory_bytes).s, blocks, w->n_seqs, w->n_images);
}

void esp_cluster_print_status(FILE *f, const struct esp_msg_status *s)
{
    int width = (int)strlen("worker");

    print_totals(f, s);
    for (uint32_t i = 0; i < s->n_workers; i++)
        width = (int)strlen(s->workers[i].name) > width ? (int)strlen(s->workers[i].name) : width;
    if (s->n_workers == 0)
        return;
    fprintf(f, "\n%-*s %-9s %-8s %-8s %6s %6s %9s  %s\n", width, "worker", "state", "encoder", "decoder",
            "busy", "queue", "rtt", "device");
    for (uint32_t i = 0; i < s->n_workers; i++)
        print_doing(f, &s->workers[i], width);
    fprintf(f, "\n%-*s %10s %10s %10s %10s    %-10s %11s %9s %8s\n", width, "worker", "weights", "KV",
            "scratch", "memory", "budget", "KV blocks", "sequences", "pictures");
    for (uint32_t i = 0; i < s->n_workers; i++)
        print_memory(f, &s->workers[i], width);
}

/* Over what stands on the terminal, without a moment in which nothing does. */
static esp_status redraw(const char *text, struct esp_err *err)
{
    fputs(HOME, stdout);
    while (*text) {
        const size_t n = strcspn(text, "\n");

        printf("%.*s" CLEAR_LINE "\n", (int)n, text);
        text += n + (text[n] == '\n');
    }
    fputs(CLEAR_BELOW, stdout);
    if (fflush(stdout) != 0 || ferror(stdout))
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

static esp_status show(const struct esp_cluster_ask *ask, const struct esp_msg_status *s, bool first,
                       struct esp_err *err)
{
    const bool over = ask->watch_s > 0 && ask->term.screen;
    esp_status st = ESP_OK;
    char *text = NULL;
    size_t n_text = 0;
    json_t *report;
    FILE *f;

    if (ask->json) {
        st = esp_report_status(&report, s, err);
        return st ? st : esp_report_print(report, err);
    }
    f = open_memstream(&text, &n_text);
    if (!f)
        return esp_fail(err, ESP_E_NOMEM, "out of memory");
    if (!first && !over)
        fputc('\n', f);
    esp_cluster_print_status(f, s);
    if (fclose(f) != 0)
        st = esp_fail(err, ESP_E_NOMEM, "out of memory");
    else if (over)
        st = redraw(text, err);
    else if (fputs(text, stdout) == EOF || fflush(stdout) != 0)
        st = esp_fail(err, ESP_E_IO, "standard output cannot be written");
    free(text);
    return st;
}

esp_status esp_cluster_status(struct esp_cluster_ask *ask, struct esp_client *client, struct esp_err *err)
{
    bool first = true;

    for (;;) {
        struct esp_msg msg;
        esp_status st = esp_client_status(&msg, client, (int)ask->timeout_s * 1000, err);

        if (st == ESP_OK) {
            st = show(ask, &msg.status, first, err);
            esp_msg_finish(&msg);
            first = false;
        } else if (st == ESP_E_TIMEOUT && !first) { /* it may come back, and has before */
            esp_term_line(&ask->term, "%s", err->text);
            st = ESP_OK;
        }
        if (st == ESP_OK && ask->watch_s > 0)
            st = esp_client_sleep(client, (int)ask->watch_s * 1000, err);
        if (st == ESP_E_CANCELLED && ask->watch_s > 0 && esp_signals_stop())
            return ESP_OK; /* there is no other end to it */
        if (st || ask->watch_s == 0)
            return st;
    }
}
