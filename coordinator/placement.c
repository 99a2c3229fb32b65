#include "coordinator/placement.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/cut.h"

#define MAX_PIECE_BYTES (UINT64_C(1) << 50) /* 256 layers of it, twice, still count in 64 bits */

double esp_place_round_rate(double rate)
{
    return pow(1.25, round(log(rate) / log(1.25)));
}

void esp_place_options_init(struct esp_place_options *options, uint32_t kv_tokens)
{
    *options = (struct esp_place_options){
        .kv_tokens = kv_tokens, .slack = 0.05, .hop_seconds = 100e-6, .hop_bandwidth = 1e9};
}

/* ---- words ---- */

struct text {
    char s[96];
};

static struct text human(uint64_t n_bytes)
{
    struct text t;
    if (n_bytes >= UINT64_C(1) << 30)
        snprintf(t.s, sizeof t.s, "%.1f GiB", (double)n_bytes / (double)(1 << 30));
    else
        snprintf(t.s, sizeof t.s, "%.1f MiB", (double)n_bytes / (double)(1 << 20));
    return t;
}

static struct text name_of(const struct esp_place_worker *workers, uint32_t w)
{
    struct text t;
    if (workers[w].name)
        snprintf(t.s, sizeof t.s, "%.64s", workers[w].name);
    else
        snprintf(t.s, sizeof t.s, "worker %" PRIu32, w);
    return t;
}

/* "w0 4.0 GiB, w1 2.0 GiB, and 3 more" into buf: as many as a message bears. */
static void list_memory(char *buf, size_t n_buf, const struct esp_place_worker *workers, uint32_t n_worker)
{
    size_t at = 0;

    buf[0] = '\0';
    for (uint32_t w = 0; w < n_worker && at < n_buf; w++) {
        if (w == 6 && n_worker > 7) {
            snprintf(buf + at, n_buf - at, ", and %" PRIu32 " more", n_worker - w);
            return;
        }
        int n = snprintf(buf + at, n_buf - at, "%s%s %s", w ? ", " : "", name_of(workers, w).s,
                         human(workers[w].memory_bytes).s);
        at += n > 0 ? (size_t)n : 0;
    }
}

/* ---- numbers ---- */

static double work_seconds(const struct esp_work *work, const struct esp_place_worker *w)
{
    return fmax(work->flop / w->matmul_rate, work->n_bytes / w->bandwidth);
}

static double piece_seconds(const struct esp_piece_cost *piece, const struct esp_place_worker *w,
                            uint32_t n_answer)
{
    return work_seconds(&piece->encode, w) + work_seconds(&piece->prefill, w) +
           n_answer * work_seconds(&piece->decode, w);
}

/* A placement at work: the inputs, and the same as plain numbers for the search. */
struct planner {
    const struct esp_model_cost *cost;
    const struct esp_place_options *options;
    const struct esp_place_worker *given; /* as reported */
    uint32_t n_worker;
    struct esp_place_worker *rounded; /* rates rounded */
    struct esp_cut_worker *worker;
    struct esp_cut_problem problem;
};

static esp_status check(const struct planner *pl, struct esp_err *err)
{
    const struct esp_model_cost *c = pl->cost;
    const struct esp_piece_cost *pieces[] = {&c->enc_layer, &c->dec_layer, &c->patch,
                                             &c->projector, &c->embed,     &c->head};

    if (pl->n_worker == 0)
        return esp_fail(err, ESP_E_ARG,
                        "no worker to place the model on: start one with --workers or espalier-worker");
    if (pl->n_worker > ESP_PLACE_MAX_WORKERS)
        return esp_fail(err, ESP_E_ARG, "%" PRIu32 " workers, a placement takes %d", pl->n_worker,
                        ESP_PLACE_MAX_WORKERS);
    if (c->n_enc == 0 || c->n_dec == 0 || c->n_enc > ESP_MAX_LAYERS || c->n_dec > ESP_MAX_LAYERS)
        return esp_fail(err, ESP_E_ARG,
                        "%" PRIu32 " encoder and %" PRIu32 " decoder layers: takes 1 to %d of each", c->n_enc,
                        c->n_dec, ESP_MAX_LAYERS);
    if (pl->options->kv_tokens == 0)
        return esp_fail(err, ESP_E_ARG, "a KV cache of 0 tokens");
    for (uint32_t w = 0; w < pl->n_worker; w++) {
        const struct esp_place_worker *v = &pl->given[w];
        if (!(v->bandwidth > 0.0 && v->bandwidth < 1e30) || !(v->matmul_rate > 0.0 && v->matmul_rate < 1e30))
            return esp_fail(err, ESP_E_ARG, "%s reports %g bytes/s and %g flop/s: no rates to plan with",
                            name_of(pl->given, w).s, v->bandwidth, v->matmul_rate);
    }
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        if (pieces[i]->weight_bytes > MAX_PIECE_BYTES)
            return esp_fail(err, ESP_E_LIMIT, "a piece of the model of %s", human(pieces[i]->weight_bytes).s);
    if (c->kv_token_bytes > MAX_PIECE_BYTES / pl->options->kv_tokens ||
        c->enc_scratch_bytes > MAX_PIECE_BYTES || c->dec_scratch_bytes > MAX_PIECE_BYTES ||
        c->head_scratch_bytes > MAX_PIECE_BYTES)
        return esp_fail(err, ESP_E_LIMIT, "a KV cache or scratch beyond %s", human(MAX_PIECE_BYTES).s);
    return ESP_OK;
}

#define ALIKE 2.0 /* rates of equal devices that share cores with others measure apart by this */

/* The rate to plan worker w with; `second` picks the matmul rate. */
static double planned_rate(const struct planner *pl, uint32_t w, bool second)
{
    double own = second ? pl->given[w].matmul_rate : pl->given[w].bandwidth, low = own, high = own, sum = 0.0;
    uint32_t n = 0;

    for (uint32_t v = 0; pl->given[w].device && v < pl->n_worker; v++) {
        double rate = second ? pl->given[v].matmul_rate : pl->given[v].bandwidth;
        if (!pl->given[v].device || strcmp(pl->given[v].device, pl->given[w].device) != 0)
            continue;
        low = fmin(low, rate);
        high = fmax(high, rate);
        sum += log(rate);
        n++;
    }
    return esp_place_round_rate(n && high <= ALIKE * low ? exp(sum / n) : own);
}

static esp_status planner_init(struct planner *pl, struct esp_err *err)
{
    const struct esp_model_cost *c = pl->cost;

    pl->rounded = calloc(pl->n_worker, sizeof *pl->rounded);
    pl->worker = calloc(pl->n_worker, sizeof *pl->worker);
    if (!pl->rounded || !pl->worker)
        return esp_fail(err, ESP_E_NOMEM, "placing layers on %" PRIu32 " workers", pl->n_worker);
    for (uint32_t w = 0; w < pl->n_worker; w++) {
        struct esp_place_worker *v = &pl->rounded[w];
        uint64_t alloc = pl->given[w].max_alloc_bytes ? pl->given[w].max_alloc_bytes : UINT64_MAX;
        *v = pl->given[w];
        v->bandwidth = planned_rate(pl, w, false);
        v->matmul_rate = planned_rate(pl, w, true);
        pl->worker[w] = (struct esp_cut_worker){.memory_bytes = v->memory_bytes,
                                                .no_enc = c->enc_layer.alloc_bytes > alloc,
                                                .no_dec = c->dec_layer.alloc_bytes > alloc,
                                                .no_table = c->embed.alloc_bytes > alloc,
                                                .enc_seconds = piece_seconds(&c->enc_layer, v, c->n_answer),
                                                .dec_seconds = piece_seconds(&c->dec_layer, v, c->n_answer),
                                                .role_seconds = {piece_seconds(&c->patch, v, c->n_answer),
                                                                 piece_seconds(&c->projector, v, c->n_answer),
                                                                 piece_seconds(&c->embed, v, c->n_answer),
                                                                 piece_seconds(&c->head, v, c->n_answer)}};
    }
    pl->problem = (struct esp_cut_problem){.n_worker = pl->n_worker,
                                           .n_enc = c->n_enc,
                                           .n_dec = c->n_dec,
                                           .worker = pl->worker,
                                           .enc_bytes = c->enc_layer.weight_bytes,
                                           .dec_bytes = c->dec_layer.weight_bytes +
                                                        c->kv_token_bytes * pl->options->kv_tokens,
                                           .role_bytes = {c->patch.weight_bytes, c->projector.weight_bytes, 0,
                                                          c->head.weight_bytes + c->head_scratch_bytes},
                                           .table_bytes = c->embed.weight_bytes,
                                           .enc_stage_bytes = c->enc_scratch_bytes,
                                           .dec_stage_bytes = c->dec_scratch_bytes,
                                           .slack = pl->options->slack > 0.0 ? pl->options->slack : 0.0};
    return ESP_OK;
}

/* ---- from counts to stages ---- */

/* The workers of a tower along its chain: the first, those between by index, the last. Returns how many. */
static uint32_t chain(uint32_t *order, const struct planner *pl, const struct esp_cut *cut, bool dec)
{
    const uint32_t first = dec ? ESP_ROLE_EMBED : ESP_ROLE_PATCH,
                   last = dec ? ESP_ROLE_HEAD : ESP_ROLE_PROJECTOR;
    uint32_t n = 0;

    for (int part = 0; part < 3; part++)
        for (uint32_t w = 0; w < pl->n_worker; w++) {
            bool is_first = cut[w].roles & first, is_last = !is_first && cut[w].roles & last;
            if ((dec ? cut[w].n_dec : cut[w].n_enc) && (is_first ? 0 : is_last ? 2 : 1) == part)
                order[n++] = w;
        }
    return n;
}

static void fill_stage(struct esp_place_stage *s, const struct planner *pl, uint32_t w,
                       const struct esp_cut *cut)
{
    const struct esp_model_cost *c = pl->cost;
    const struct esp_place_worker *v = &pl->rounded[w];
    const struct esp_piece_cost *piece[] = {&c->enc_layer, &c->dec_layer, &c->patch,
                                            &c->projector, &c->embed,     &c->head};
    uint32_t count[6] = {cut->n_enc, cut->n_dec};

    *s = (struct esp_place_stage){.worker = w,
                                  .patch = cut->roles & ESP_ROLE_PATCH,
                                  .projector = cut->roles & ESP_ROLE_PROJECTOR,
                                  .embed = cut->roles & ESP_ROLE_EMBED,
                                  .head = cut->roles & ESP_ROLE_HEAD};
    for (uint32_t bit = 0; bit < 4; bit++)
        count[2 + bit] = cut->roles >> bit & 1;
    for (uint32_t i = 0; i < 6; i++) {
        s->encode_seconds += count[i] * work_seconds(&piece[i]->encode, v);
        s->prefill_seconds += count[i] * work_seconds(&piece[i]->prefill, v);
        s->decode_seconds += count[i] * work_seconds(&piece[i]->decode, v);
        s->weight_bytes += count[i] * piece[i]->weight_bytes;
    }
    if (s->head && !s->embed) /* the tied table is the head's weight too */
        s->weight_bytes += c->embed.weight_bytes;
    s->busy_seconds = s->encode_seconds + s->prefill_seconds + c->n_answer * s->decode_seconds;
    s->kv_bytes = cut->n_dec * c->kv_token_bytes * pl->options->kv_tokens;
    s->scratch_bytes = (cut->n_enc ? c->enc_scratch_bytes : 0) + (cut->n_dec ? c->dec_scratch_bytes : 0) +
                       (s->head ? c->head_scratch_bytes : 0);
}

static double hop(const struct planner *pl, double n_bytes)
{
    const struct esp_place_options *o = pl->options;
    return o->hop_seconds + (o->hop_bandwidth > 0.0 ? n_bytes / o->hop_bandwidth : 0.0);
}

/* enc and dec: the chains, as workers. */
static void build(struct esp_placement *out, const struct planner *pl, const struct esp_cut *cut,
                  const uint32_t *enc, uint32_t n_enc_stage, const uint32_t *dec, uint32_t n_dec_stage)
{
    const struct esp_model_cost *c = pl->cost;
    uint32_t stage_of[ESP_PLACE_MAX_WORKERS], lo = 0;

    *out = (struct esp_placement){.n_enc_stage = n_enc_stage, .n_dec_stage = n_dec_stage};
    for (uint32_t w = 0; w < pl->n_worker; w++)
        stage_of[w] = UINT32_MAX;
    for (uint32_t i = 0; i < n_enc_stage + n_dec_stage; i++) {
        uint32_t w = i < n_enc_stage ? enc[i] : dec[i - n_enc_stage];
        if (stage_of[w] == UINT32_MAX) {
            stage_of[w] = out->n_stage;
            fill_stage(&out->stage[out->n_stage++], pl, w, &cut[w]);
        }
    }
    for (uint32_t i = 0; i < n_enc_stage; i++) {
        struct esp_place_stage *s = &out->stage[stage_of[enc[i]]];
        out->enc_order[i] = stage_of[enc[i]];
        s->enc_lo = lo;
        s->enc_hi = lo += cut[enc[i]].n_enc;
    }
    lo = 0;
    for (uint32_t i = 0; i < n_dec_stage; i++) {
        struct esp_place_stage *s = &out->stage[stage_of[dec[i]]];
        out->dec_order[i] = stage_of[dec[i]];
        s->dec_lo = lo;
        s->dec_hi = lo += cut[dec[i]].n_dec;
    }
    for (uint32_t w = 0; w < pl->n_worker; w++)
        if (stage_of[w] == UINT32_MAX)
            out->spare[out->n_spare++] = w;
    for (uint32_t i = 0; i < out->n_stage; i++) {
        const struct esp_place_stage *s = &out->stage[i];
        out->encode_seconds += s->encode_seconds;
        out->prefill_seconds += s->prefill_seconds;
        out->decode_seconds += s->decode_seconds;
        out->bottleneck_seconds = fmax(out->bottleneck_seconds, s->busy_seconds);
    }
    out->encode_seconds += (n_enc_stage - 1) * hop(pl, c->enc_hop_bytes);
    if (enc[n_enc_stage - 1] != dec[0])
        out->encode_seconds += hop(pl, c->feature_hop_bytes);
    out->prefill_seconds += (n_dec_stage - 1) * hop(pl, c->prefill_hop_bytes);
    out->decode_seconds += (n_dec_stage - 1) * hop(pl, c->decode_hop_bytes);
    if (n_dec_stage > 1)
        out->decode_seconds += hop(pl, 4.0); /* the token goes back to the first */
    out->latency_seconds = out->encode_seconds + out->prefill_seconds + c->n_answer * out->decode_seconds;
}

/* ---- what cannot be ---- */

static esp_status too_big(const struct planner *pl, struct esp_err *err)
{
    const struct esp_model_cost *c = pl->cost;
    const struct esp_cut all = {.n_enc = c->n_enc, .n_dec = c->n_dec, .roles = 15};
    struct esp_place_stage s;
    char have[256];
    bool no_enc = true, no_dec = true, no_table = true;

    for (uint32_t w = 0; w < pl->n_worker; w++) {
        no_enc &= pl->worker[w].no_enc;
        no_dec &= pl->worker[w].no_dec;
        no_table &= pl->worker[w].no_table;
    }
    if (no_enc || no_dec || no_table)
        return esp_fail(
            err, ESP_E_NOMEM,
            "%s takes an allocation of %s, and no worker can make one (%s: %s at most): use smaller "
            "weights or another device",
            no_table ? "the embedding table"
            : no_dec ? "a decoder layer"
                     : "an encoder layer",
            human(no_table ? c->embed.alloc_bytes
                  : no_dec ? c->dec_layer.alloc_bytes
                           : c->enc_layer.alloc_bytes)
                .s,
            name_of(pl->given, 0).s, human(pl->given[0].max_alloc_bytes).s);
    fill_stage(&s, pl, 0, &all);
    list_memory(have, sizeof have, pl->given, pl->n_worker);
    return esp_fail(
        err, ESP_E_NOMEM,
        "the model needs %s (weights %s, KV cache of %" PRIu32
        " tokens %s, scratch %s), more where split, and does not fit: %s. Add workers or memory, ask for "
        "fewer tokens of context, or load smaller weights",
        human(s.weight_bytes + s.kv_bytes + s.scratch_bytes).s, human(s.weight_bytes).s,
        pl->options->kv_tokens, human(s.kv_bytes).s, human(s.scratch_bytes).s, have);
}

/* ---- the two ways to counts ---- */

/* By hand: stage i on worker i, both chains in that order. */
static esp_status follow_split(struct esp_placement *out, const struct planner *pl, struct esp_cut *cut,
                               struct esp_err *err)
{
    const struct esp_split *split = pl->options->split;
    uint32_t enc[ESP_PLACE_MAX_WORKERS], dec[ESP_PLACE_MAX_WORKERS], n_enc = 0, n_dec = 0, sum_enc = 0,
                                                                     sum_dec = 0;

    if (split->n_stage > pl->n_worker)
        return esp_fail(err, ESP_E_ARG, "--split names %" PRIu32 " stages, there are %" PRIu32 " workers",
                        split->n_stage, pl->n_worker);
    for (uint32_t i = 0; i < split->n_stage; i++) {
        cut[i] = (struct esp_cut){.n_enc = split->stage[i].n_enc, .n_dec = split->stage[i].n_dec};
        sum_enc += cut[i].n_enc;
        sum_dec += cut[i].n_dec;
        if (cut[i].n_enc)
            enc[n_enc++] = i;
        if (cut[i].n_dec)
            dec[n_dec++] = i;
    }
    if (sum_enc != pl->cost->n_enc || sum_dec != pl->cost->n_dec)
        return esp_fail(err, ESP_E_ARG,
                        "--split sums to %" PRIu32 "/%" PRIu32 " layers, must sum to %" PRIu32 "/%" PRIu32
                        " (encoder/decoder)",
                        sum_enc, sum_dec, pl->cost->n_enc, pl->cost->n_dec);
    cut[enc[0]].roles |= ESP_ROLE_PATCH;
    cut[enc[n_enc - 1]].roles |= ESP_ROLE_PROJECTOR;
    cut[dec[0]].roles |= ESP_ROLE_EMBED;
    cut[dec[n_dec - 1]].roles |= ESP_ROLE_HEAD;
    for (uint32_t i = 0; i < split->n_stage; i++) {
        if (!esp_cut_fits(&pl->problem, i, &cut[i])) {
            uint64_t need = esp_cut_bytes(&pl->problem, &cut[i]);
            if (need <= pl->given[i].memory_bytes)
                return esp_fail(err, ESP_E_NOMEM,
                                "--split: stage %" PRIu32
                                " holds a tensor larger than the %s that %s can allocate",
                                i, human(pl->given[i].max_alloc_bytes).s, name_of(pl->given, i).s);
            return esp_fail(err, ESP_E_NOMEM,
                            "--split: stage %" PRIu32 " (%" PRIu32 "/%" PRIu32
                            ") needs %s with KV cache and scratch, %s has %s: give it fewer layers",
                            i, cut[i].n_enc, cut[i].n_dec, human(need).s, name_of(pl->given, i).s,
                            human(pl->given[i].memory_bytes).s);
        }
    }
    build(out, pl, cut, enc, n_enc, dec, n_dec);
    return ESP_OK;
}

/* The workers with layers of a tower by their first one; false unless they follow each other from 0 to n. */
static bool chain_of(uint32_t *order, uint32_t *n_order, const struct esp_place_share *shares,
                     uint32_t n_worker, bool dec, uint32_t n)
{
    uint32_t at = 0;

    *n_order = 0;
    while (at < n) {
        uint32_t next = n_worker;

        for (uint32_t w = 0; w < n_worker; w++)
            if ((dec ? shares[w].dec_lo : shares[w].enc_lo) == at &&
                (dec ? shares[w].dec_hi : shares[w].enc_hi) > at)
                next = w;
        if (next == n_worker)
            return false;
        order[(*n_order)++] = next;
        at = dec ? shares[next].dec_hi : shares[next].enc_hi;
    }
    for (uint32_t w = 0; w < n_worker; w++) /* nobody else has any */
        at += dec ? shares[w].dec_hi - shares[w].dec_lo : shares[w].enc_hi - shares[w].enc_lo;
    return at == 2 * n;
}

static esp_status follow_shares(struct esp_placement *out, const struct planner *pl, struct esp_cut *cut,
                                const struct esp_place_share *shares, struct esp_err *err)
{
    uint32_t enc[ESP_PLACE_MAX_WORKERS], dec[ESP_PLACE_MAX_WORKERS], n_enc, n_dec;

    for (uint32_t w = 0; w < pl->n_worker; w++) {
        const struct esp_place_share *s = &shares[w];

        if (s->enc_lo > s->enc_hi || s->enc_hi > pl->cost->n_enc || s->dec_lo > s->dec_hi ||
            s->dec_hi > pl->cost->n_dec)
            return esp_fail(err, ESP_E_ARG, "%s: layers [%u,%u) and [%u,%u)", name_of(pl->given, w).s,
                            s->enc_lo, s->enc_hi, s->dec_lo, s->dec_hi);
        cut[w] = (struct esp_cut){.n_enc = s->enc_hi - s->enc_lo, .n_dec = s->dec_hi - s->dec_lo};
    }
    if (!chain_of(enc, &n_enc, shares, pl->n_worker, false, pl->cost->n_enc) ||
        !chain_of(dec, &n_dec, shares, pl->n_worker, true, pl->cost->n_dec))
        return esp_fail(err, ESP_E_ARG, "shares that do not make up the model");
    cut[enc[0]].roles |= ESP_ROLE_PATCH;
    cut[enc[n_enc - 1]].roles |= ESP_ROLE_PROJECTOR;
    cut[dec[0]].roles |= ESP_ROLE_EMBED;
    cut[dec[n_dec - 1]].roles |= ESP_ROLE_HEAD;
    for (uint32_t w = 0; w < pl->n_worker; w++)
        if ((cut[w].n_enc || cut[w].n_dec) && !esp_cut_fits(&pl->problem, w, &cut[w]))
            return esp_fail(err, ESP_E_NOMEM,
                            "%s cannot hold encoder layers [%u,%u) and decoder layers [%u,%u)",
                            name_of(pl->given, w).s, shares[w].enc_lo, shares[w].enc_hi, shares[w].dec_lo,
                            shares[w].dec_hi);
    build(out, pl, cut, enc, n_enc, dec, n_dec);
    return ESP_OK;
}

static esp_status search(struct esp_placement *out, bool *fits, const struct planner *pl, struct esp_cut *cut,
                         struct esp_err *err)
{
    uint32_t enc[ESP_PLACE_MAX_WORKERS], dec[ESP_PLACE_MAX_WORKERS], n_enc, n_dec;
    esp_status st = esp_cut_search(cut, fits, NULL, &pl->problem, err);

    if (st || !*fits)
        return st;
    n_enc = chain(enc, pl, cut, false);
    n_dec = chain(dec, pl, cut, true);
    build(out, pl, cut, enc, n_enc, dec, n_dec);
    return ESP_OK;
}

/*
 * Whether the quickest one to four workers alone would answer a single request sooner: a pipeline gains
 * throughput, but its hops, and slow workers in it, cost the lone request time.
 */
static esp_status ask_fewer(struct esp_placement *out, const struct planner *pl, struct esp_err *err)
{
    struct esp_place_worker some[4];
    struct esp_cut cut[4];
    struct esp_placement *other = malloc(sizeof *other);
    bool taken[ESP_PLACE_MAX_WORKERS] = {false};
    esp_status st = ESP_OK;

    if (!other)
        return esp_fail(err, ESP_E_NOMEM, "placing layers on %" PRIu32 " workers", pl->n_worker);
    for (uint32_t m = 1; m <= 4 && m < out->n_stage; m++) {
        struct planner fewer = {.cost = pl->cost, .options = pl->options, .given = some, .n_worker = m};
        uint32_t next = UINT32_MAX;
        double least = INFINITY;
        bool fits = false;
        for (uint32_t w = 0; w < pl->n_worker; w++) {
            const struct esp_cut_worker *v = &pl->worker[w];
            double whole =
                pl->cost->n_enc * v->enc_seconds + pl->cost->n_dec * v->dec_seconds + v->role_seconds[3];
            if (!taken[w] && whole < least) {
                least = whole;
                next = w;
            }
        }
        taken[next] = true;
        some[m - 1] = pl->given[next];
        st = planner_init(&fewer, err);
        if (!st)
            st = search(other, &fits, &fewer, cut, err);
        free(fewer.rounded);
        free(fewer.worker);
        if (st)
            break;
        if (fits &&
            other->latency_seconds < (out->fewer ? out->fewer_seconds : out->latency_seconds * 0.99)) {
            out->fewer = other->n_stage;
            out->fewer_seconds = other->latency_seconds;
        }
    }
    free(other);
    return st;
}

static esp_status place(struct esp_placement *out, const struct esp_model_cost *cost,
                        const struct esp_place_worker *workers, uint32_t n_worker,
                        const struct esp_place_options *options, const struct esp_place_share *shares,
                        struct esp_err *err)
{
    struct planner pl = {.cost = cost, .options = options, .given = workers, .n_worker = n_worker};
    struct esp_placement *placed = NULL;
    struct esp_cut *cut = NULL;
    bool fits = true;
    esp_status st = check(&pl, err);

    if (!st)
        st = planner_init(&pl, err);
    if (st)
        goto done;
    cut = calloc(n_worker, sizeof *cut);
    placed = calloc(1, sizeof *placed);
    if (!cut || !placed) {
        st = esp_fail(err, ESP_E_NOMEM, "placing layers on %" PRIu32 " workers", n_worker);
        goto done;
    }
    st = shares           ? follow_shares(placed, &pl, cut, shares, err)
         : options->split ? follow_split(placed, &pl, cut, err)
                          : search(placed, &fits, &pl, cut, err);
    if (!st && !fits)
        st = too_big(&pl, err);
    if (!st && !shares)
        st = ask_fewer(placed, &pl, err);
    if (!st)
        *out = *placed;
done:
    free(cut);
    free(placed);
    free(pl.rounded);
    free(pl.worker);
    return st;
}

esp_status esp_place(struct esp_placement *out, const struct esp_model_cost *cost,
                     const struct esp_place_worker *workers, uint32_t n_worker,
                     const struct esp_place_options *options, struct esp_err *err)
{
    return place(out, cost, workers, n_worker, options, NULL, err);
}

esp_status esp_place_as(struct esp_placement *out, const struct esp_model_cost *cost,
                        const struct esp_place_worker *workers, uint32_t n_worker,
                        const struct esp_place_options *options, const struct esp_place_share *shares,
                        struct esp_err *err)
{
    return place(out, cost, workers, n_worker, options, shares, err);
}
