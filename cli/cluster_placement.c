#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cluster.h"
#include "cli/figures.h"
#include "cli/report.h"

/* One of the three figures of a plan. */
enum piece { ENCODE, PREFILL, DECODE };

static double piece_of(const struct esp_stage_plan *plan, enum piece piece)
{
    return piece == ENCODE ? plan->encode : piece == PREFILL ? plan->prefill : plan->decode;
}

static int by_first_enc(const void *a, const void *b)
{
    const uint32_t x = (*(const struct esp_worker_status *const *)a)->stage.enc_lo,
                   y = (*(const struct esp_worker_status *const *)b)->stage.enc_lo;
    return (x > y) - (x < y);
}

static int by_first_dec(const void *a, const void *b)
{
    const uint32_t x = (*(const struct esp_worker_status *const *)a)->stage.dec_lo,
                   y = (*(const struct esp_worker_status *const *)b)->stage.dec_lo;
    return (x > y) - (x < y);
}

uint32_t esp_placement_chain(const struct esp_worker_status **out, const struct esp_msg_status *s,
                             bool decoder)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_workers; i++) {
        const struct esp_stage_info *g = &s->workers[i].stage;

        if (decoder ? g->dec_lo < g->dec_hi : g->enc_lo < g->enc_hi)
            out[n++] = &s->workers[i];
    }
    if (n > 0)
        qsort(out, n, sizeof(const struct esp_worker_status *), decoder ? by_first_dec : by_first_enc);
    return n;
}

/*
 * The busiest stage: the bottleneck is the largest of encode + prefill + n * decode, where n, the tokens of a typical
 * answer, is the same for all. So the n that would make a stage as busy is the least for the one that is.
 */
const struct esp_worker_status *esp_placement_busiest(const struct esp_msg_status *s)
{
    const struct esp_worker_status *busiest = NULL;
    double least = INFINITY;

    for (uint32_t i = 0; i < s->n_workers && s->bottleneck > 0; i++) {
        const struct esp_stage_plan *p = &s->workers[i].predicted;
        const double left = s->bottleneck - p->encode - p->prefill;
        double n = INFINITY;

        if (left <= s->bottleneck * 1e-9)
            n = 0;
        else if (p->decode > 0)
            n = left / p->decode;
        if (n < least) {
            least = n;
            busiest = &s->workers[i];
        }
    }
    return busiest;
}

/* "1.23 s", with a star on the slowest of several. */
static const char *cell(char out[40], const struct esp_worker_status *const *chain, uint32_t n, uint32_t i,
                        enum piece piece, bool measured)
{
    double mine = 0, most = 0;

    for (uint32_t k = 0; k < n; k++) {
        const double v = piece_of(measured ? &chain[k]->measured : &chain[k]->predicted, piece);

        most = v > most ? v : most;
        mine = k == i ? v : mine;
    }
    snprintf(out, 40, "%s%s", esp_figure_seconds(mine).s, n > 1 && mine > 0 && mine == most ? "*" : " ");
    return out;
}

/* The sum over a chain; a stage that is not known makes it unknown. */
static struct esp_figure sum(const struct esp_worker_status *const *chain, uint32_t n, enum piece piece,
                             bool measured)
{
    double all = 0;

    for (uint32_t i = 0; i < n; i++) {
        const double v = piece_of(measured ? &chain[i]->measured : &chain[i]->predicted, piece);

        if (!(v > 0))
            return esp_figure_seconds(0);
        all += v;
    }
    return esp_figure_seconds(all);
}

static void print_encoder(const struct esp_worker_status *const *chain, uint32_t n, int width)
{
    char p[40], m[40];

    printf("\n%-9s %-*s %-8s %11s %11s\n", "encoder", width, "worker", "layers", "picture", "measured");
    for (uint32_t i = 0; i < n; i++)
        printf("%-9u %-*s %-8s %12s%12s\n", i + 1, width, chain[i]->name,
               esp_figure_layers(chain[i]->stage.enc_lo, chain[i]->stage.enc_hi).s,
               cell(p, chain, n, i, ENCODE, false), cell(m, chain, n, i, ENCODE, true));
    printf("%-9s %-*s %-8s %11s %11s\n", "", width, "", "all", sum(chain, n, ENCODE, false).s,
           sum(chain, n, ENCODE, true).s);
}

static void print_decoder(const struct esp_worker_status *const *chain, uint32_t n, int width)
{
    char p[40], pm[40], d[40], dm[40];

    printf("\n%-9s %-*s %-8s %11s %11s %11s %11s\n", "decoder", width, "worker", "layers", "prefill",
           "measured", "token", "measured");
    for (uint32_t i = 0; i < n; i++)
        printf("%-9u %-*s %-8s %12s%12s%12s%12s\n", i + 1, width, chain[i]->name,
               esp_figure_layers(chain[i]->stage.dec_lo, chain[i]->stage.dec_hi).s,
               cell(p, chain, n, i, PREFILL, false), cell(pm, chain, n, i, PREFILL, true),
               cell(d, chain, n, i, DECODE, false), cell(dm, chain, n, i, DECODE, true));
    printf("%-9s %-*s %-8s %11s %11s %11s %11s\n", "", width, "", "all", sum(chain, n, PREFILL, false).s,
           sum(chain, n, PREFILL, true).s, sum(chain, n, DECODE, false).s, sum(chain, n, DECODE, true).s);
}

static void print_verdict(const struct esp_msg_status *s, uint32_t n_stages)
{
    const struct esp_worker_status *busiest = esp_placement_busiest(s);

    printf("\nOne request alone (a picture, a short prompt, a short answer) is predicted to take %s.\n",
           esp_figure_seconds(s->latency).s);
    if (busiest)
        printf("The busiest stage is %s with %s of it: so often, at best, requests can follow each other.\n",
               busiest->name, esp_figure_seconds(s->bottleneck).s);
    if (s->fewer > 0)
        printf("%u worker%s alone would answer it faster, in %s. For many requests at once these %u do "
               "more.\n",
               s->fewer, s->fewer > 1 ? "s" : "", esp_figure_seconds(s->fewer_latency).s, n_stages);
    else if (n_stages > 1)
        printf("Fewer workers would not answer it faster.\n");
}

static uint32_t n_stages(const struct esp_msg_status *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_workers; i++)
        n += s->workers[i].stage.worker[0] != '\0';
    return n;
}

static void print_spares(const struct esp_msg_status *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_workers; i++)
        if (strcmp(s->workers[i].state, "spare") == 0)
            printf("%s%s", n++ == 0 ? "Spare: " : ", ", s->workers[i].name);
    if (n > 0)
        printf("\n");
}

static esp_status print_placement(const struct esp_msg_status *s, const struct esp_worker_status **chain,
                                  struct esp_err *err)
{
    int width = (int)strlen("worker");

    for (uint32_t i = 0; i < s->n_workers; i++)
        width = (int)strlen(s->workers[i].name) > width ? (int)strlen(s->workers[i].name) : width;
    printf("placement %llu, %s%s%s\n", (unsigned long long)s->epoch, s->ready ? "ready" : "not ready",
           s->why[0] ? ": " : "", s->why);
    print_encoder(chain, esp_placement_chain(chain, s, false), width);
    print_decoder(chain, esp_placement_chain(chain, s, true), width);
    print_verdict(s, n_stages(s));
    print_spares(s);
    if (fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

esp_status esp_cluster_placement(struct esp_cluster_ask *ask, struct esp_client *client, struct esp_err *err)
{
    const struct esp_worker_status **chain = NULL;
    struct esp_msg msg;
    const struct esp_msg_status *s = &msg.status;
    json_t *report;
    esp_status st = esp_client_status(&msg, client, (int)ask->timeout_s * 1000, err);

    if (st)
        return st;
    if (n_stages(s) == 0) {
        st = esp_fail(err, ESP_E_CLOSED, "there is no placement: %s", s->why[0] ? s->why : "nobody says why");
    } else if (ask->json) {
        st = esp_report_placement(&report, s, err);
        if (st == ESP_OK)
            st = esp_report_print(report, err);
    } else {
        chain = calloc(s->n_workers, sizeof *chain);
        st = chain ? print_placement(s, chain, err) : esp_fail(err, ESP_E_NOMEM, "out of memory");
    }
    free(chain);
    esp_msg_finish(&msg);
    return st;
}
