#include "cli/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/figures.h"
#include "cli/finder.h"
#include "cli/report.h"
#include "cli/report_json.h"
#include "cli/signals.h"
#include "model/checkpoint.h"
#include "objects/codec.h"

#define IN_FLIGHT      32 /* enough that several stages have batches to work on, and a next one to come in */
#define MOST_IN_FLIGHT 512

static const struct esp_command_help help = {
    .name = "eval",
    .synopsis = "--model DIR --data FILE [options]",
    .about =
        "Runs a set of examples (pictures, prompts, expected answers; a JSON object a line) through a "
        "cluster, many\n"
        "at once, and prints how right the answers are: docs/cli.md says what is measured of each task.\n"
        "With --out, each answer is kept in a file of JSON lines, and the same command goes on where it was "
        "stopped.\n",
    .examples =
        "  espalier eval --model DIR --data scenes/scenes.jsonl --out results.jsonl\n"
        "  espalier eval --connect tcp://10.0.0.5:5550 --data scenes.jsonl --task detect,segment --json\n",
};

struct options {
    struct esp_eval eval;
    const char *data, *out;
    uint32_t limit; /* 0: none */
    struct esp_texts tasks;
    const char *codec_path; /* NULL: not named */
    struct esp_codec *codec;
    struct esp_eval_header header;
};

/* ---- what is to do ---- */

static int check(struct options *o)
{
    struct esp_err err;

    if (!o->data)
        return esp_args_bad(&help, "no examples: give --data FILE, JSON lines with image, prompt and answer");
    for (uint32_t i = 0; i < o->tasks.n; i++) {
        enum esp_eval_task task;

        if (!esp_eval_task_of(&task, o->tasks.at[i]))
            return esp_args_bad(
                &help, "--task: no such task as %s; there are caption, answer, detect, segment, ocr, other",
                o->tasks.at[i]);
    }
    if (esp_decoding_check(&o->eval.decoding, &err))
        return esp_args_bad(&help, "%s", err.text);
    return esp_ask_check(&help, &o->eval.ask);
}

static bool is_asked_for(const struct options *o, enum esp_eval_task task)
{
    bool some = o->tasks.n == 0;

    for (uint32_t i = 0; i < o->tasks.n; i++)
        some |= strcmp(o->tasks.at[i], esp_eval_task_name(task)) == 0;
    return some;
}

/* The examples that count, and room for what becomes of them. */
static esp_status choose(struct options *o, struct esp_err *err)
{
    struct esp_eval *eval = &o->eval;
    const uint32_t n = eval->data.n_examples;

    eval->scores = calloc(n, sizeof *eval->scores);
    eval->which = calloc(n, sizeof *eval->which);
    eval->todo = calloc(n, sizeof *eval->todo);
    if (!eval->scores || !eval->which || !eval->todo)
        return esp_fail(err, ESP_E_NOMEM, "%u examples: out of memory", n);
    for (uint32_t i = 0; i < n && (o->limit == 0 || eval->n_which < o->limit); i++)
        if (is_asked_for(o, eval->data.examples[i].task))
            eval->which[eval->n_which++] = i;
    if (eval->n_which == 0)
        return esp_fail(err, ESP_E_ARG, "%s: no example of the tasks asked for", o->data);
    return ESP_OK;
}

/* ---- masks ---- */

static esp_status draw_mask(void *self, uint8_t *out, uint32_t height, uint32_t width,
                            const int32_t seg[ESP_N_SEG], const double box[4], struct esp_err *err)
{
    float mask[ESP_CODEC_PIXELS];
    esp_status st = esp_codec_decode(mask, self, seg, err);

    return st ? st : esp_codec_paste(out, height, width, mask, box, err);
}

/* A codec, if an example needs one. */
static esp_status open_codec(struct options *o, struct esp_err *err)
{
    struct esp_eval *eval = &o->eval;
    const char *path = o->codec_path;
    char found[4096];
    uint32_t k = 0;
    esp_status st;

    while (k < eval->n_which && eval->data.examples[eval->which[k]].task != ESP_EVAL_SEGMENT)
        k++;
    if (k == eval->n_which)
        return ESP_OK;
    if (!path && esp_finder_codec_path(found, sizeof found, eval->ask.where.model))
        path = found;
    if (!path)
        return esp_fail(
            err, ESP_E_IO,
            "%s:%u: to compare masks there must be a " ESP_CODEC_FILE
            ", the one that the model was trained with: name it with --mask-codec, put it into the "
            "model's folder, or leave segment out with --task",
            o->data, eval->data.examples[eval->which[k]].line);
    st = esp_codec_open(&o->codec, path, err);
    if (st == ESP_OK)
        eval->masks = (struct esp_eval_masks){o->codec, draw_mask};
    return st;
}

/* ---- in which order ---- */

struct place {
    uint32_t picture, example;
};

static int by_picture(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    if (x->picture != y->picture)
        return x->picture < y->picture ? -1 : 1;
    return (x->example > y->example) - (x->example < y->example);
}

static esp_status line_up(struct esp_eval *eval, struct esp_err *err)
{
    struct place *places = calloc(eval->n_which, sizeof *places);

    if (!places)
        return esp_fail(err, ESP_E_NOMEM, "%u examples: out of memory", eval->n_which);
    for (uint32_t k = 0; k < eval->n_which; k++) {
        const uint32_t i = eval->which[k];

        if (eval->scores[i].state != ESP_EVAL_DONE)
            places[eval->n_todo++] = (struct place){eval->data.examples[i].picture, i};
    }
    qsort(places, eval->n_todo, sizeof *places, by_picture);
    for (uint32_t k = 0; k < eval->n_todo; k++)
        eval->todo[k] = places[k].example;
    free(places);
    return ESP_OK;
}

/* ---- which model, which decoding ---- */

static json_t *decoding_json(const struct esp_decoding *d)
{
    const struct esp_msg_sampling *s = &d->sampling;
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "max_tokens", json_integer(d->max_tokens));
    SET(o, "temperature", json_real(s->temperature));
    SET(o, "top_k", json_integer(s->top_k));
    SET(o, "top_p", json_real(s->top_p));
    SET(o, "seed", json_integer((json_int_t)s->seed));
    SET(o, "best_of", json_integer(s->best_of));
    SET(o, "beams", json_integer(s->beams));
    SET(o, "length_penalty", s->has_length_penalty ? json_real(s->length_penalty) : json_null());
    SET(o, "ban", esp_json_ids(d->ban.at, d->ban.n));
    SET(o, "eos", s->has_eos ? json_integer(s->eos) : json_null());
    SET(o, "ignore_eos", json_boolean(s->ignore_eos));
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

/* The fingerprint of the model: of the directory given, of what a cluster elsewhere serves, and then both must agree. */
static esp_status identify(struct options *o, struct esp_err *err)
{
    struct esp_ask *ask = &o->eval.ask;
    struct esp_checkpoint *ck;
    struct esp_msg status;
    esp_status st = ESP_OK;

    memcpy(o->header.data, o->eval.data.hash, sizeof o->header.data);
    if (ask->where.weights)
        (void)esp_wtype_parse(&o->header.weights, ask->where.weights); /* which was checked */
    o->header.decoding = decoding_json(&o->eval.decoding);
    if (!o->header.decoding)
        return esp_fail(err, ESP_E_NOMEM, "options: out of memory");
    if (ask->where.model) {
        st =
            esp_ask_check_model("--model", ask->where.model, NULL, err); /* says best what is wrong with it */
        if (st == ESP_OK)
            st = esp_checkpoint_open(&ck, ask->where.model, err);
        if (st)
            return st;
        esp_checkpoint_fingerprint(ck, o->header.model);
        esp_checkpoint_destroy(&ck);
    }
    if (!ask->where.connect)
        return ESP_OK;
    st = esp_ask_connect(ask, NULL, err);
    if (st == ESP_OK)
        st = esp_client_status(&status, ask->client,
                               ask->where.patience_given ? (int)ask->where.patience * 1000 : 10000, err);
    if (st)
        return st;
    if (ask->where.model && memcmp(o->header.model, status.status.fingerprint, sizeof o->header.model) != 0)
        st =
            esp_fail(err, ESP_E_ARG, "%s serves another model than %s", ask->where.connect, ask->where.model);
    memcpy(o->header.model, status.status.fingerprint, sizeof o->header.model);
    o->header.weights = (enum esp_wtype)status.status.weights;
    esp_msg_finish(&status);
    return st;
}

static esp_status heard_before(void *self, uint32_t example, const struct esp_eval_answer *answer,
                               struct esp_err *err)
{
    struct esp_eval *eval = self;
    const struct esp_eval_example *e = &eval->data.examples[example];

    if (e->task == ESP_EVAL_SEGMENT && !eval->masks.draw)
        return ESP_OK; /* not asked for this time */
    esp_eval_score_finish(&eval->scores[example]);
    return esp_eval_score_make(&eval->scores[example], e, &eval->data.pictures[e->picture], answer,
                               &eval->masks, err);
}

/* The largest request: a cluster started here has room for as many of it as are under way. */
static esp_status start(struct esp_eval *eval, struct esp_err *err)
{
    struct esp_msg_request largest = {.n_images = 1, .prompt = ""};

    esp_decoding_fill(&largest, &eval->decoding);
    for (uint32_t k = 0; k < eval->n_todo; k++) {
        const char *prompt = eval->data.examples[eval->todo[k]].prompt;

        if (strlen(prompt) > strlen(largest.prompt))
            largest.prompt = prompt;
    }
    eval->ask.at_once = eval->in_flight;
    return esp_ask_connect(&eval->ask, &largest, err);
}

/* ---- the end ---- */

static json_t *report(const struct options *o, const struct esp_eval_metrics *metrics)
{
    const struct esp_eval *eval = &o->eval;
    const uint32_t n_now = eval->n_done + eval->n_failed;
    char hex[65];
    json_t *json = esp_eval_metrics_json(metrics);
    bool ok = json != NULL;

    SET(json, "complete", json_boolean(metrics->n_done == metrics->n));
    SET(json, "asked", json_integer(n_now));
    SET(json, "seconds", esp_json_number(eval->seconds));
    SET(json, "per_second", esp_json_number(eval->seconds > 0 ? n_now / eval->seconds : NAN));
    for (size_t i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", o->header.data[i]);
    SET(json, "data", json_string(hex));
    for (size_t i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", o->header.model[i]);
    SET(json, "model", json_string(hex));
    SET(json, "weights", json_string(esp_wtype_name(o->header.weights)));
    if (ok)
        return json;
    json_decref(json);
    return NULL;
}

/* Metrics of what there is, whatever kept the rest away, and how to get it. */
static esp_status finish(struct options *o, struct esp_err *err)
{
    struct esp_eval *eval = &o->eval;
    struct esp_eval_metrics metrics;
    const uint32_t n_now = eval->n_done + eval->n_failed;
    esp_status st = esp_eval_add_up(&metrics, &eval->data, eval->scores, eval->which, eval->n_which, err);

    if (st)
        return st;
    esp_term_clear(&eval->ask.term);
    if (eval->ask.json) {
        st = esp_report_print(report(o, &metrics), err);
    } else {
        esp_eval_metrics_print(&metrics);
        if (fflush(stdout) != 0)
            st = esp_fail(err, ESP_E_IO, "standard output cannot be written");
    }
    if (n_now > 0 && eval->seconds > 0 && (eval->ask.verbose || eval->ask.term.progress))
        esp_term_line(&eval->ask.term, "%u examples in %s, %.1f a second", n_now,
                      esp_figure_seconds(eval->seconds).s, n_now / eval->seconds);
    if (metrics.n_done < metrics.n && o->out)
        esp_term_line(&eval->ask.term,
                      "%u of %u examples have no answer; the same command goes on with them (%s)",
                      metrics.n - metrics.n_done, metrics.n, o->out);
    else if (metrics.n_done < metrics.n)
        esp_term_line(&eval->ask.term,
                      "%u of %u examples have no answer; with --out FILE the command could go on with them",
                      metrics.n - metrics.n_done, metrics.n);
    return st;
}

/* @param begun  set once there may be something to report */
static esp_status evaluate(struct options *o, bool *begun, struct esp_err *err)
{
    struct esp_eval *eval = &o->eval;
    esp_status st = esp_eval_data_read(&eval->data, o->data, &eval->ask.term, err);

    if (st == ESP_OK)
        st = choose(o, err);
    if (st == ESP_OK)
        st = open_codec(o, err);
    if (st == ESP_OK)
        st = identify(o, err);
    if (st == ESP_OK && o->out)
        st = esp_eval_results_open(&eval->results, o->out, &eval->data, &o->header, heard_before, eval, err);
    if (st == ESP_OK)
        st = line_up(eval, err);
    if (st)
        return st;
    *begun = true;
    if (eval->n_todo == 0)
        return ESP_OK;
    if (eval->n_todo < eval->n_which)
        esp_term_line(&eval->ask.term, "%s has %u of %u answers; going on", o->out,
                      eval->n_which - eval->n_todo, eval->n_which);
    if (!eval->ask.client)
        st = start(eval, err);
    return st ? st : esp_eval_run(eval, err);
}

static void close_all(struct options *o)
{
    struct esp_eval *eval = &o->eval;

    esp_ask_close(&eval->ask);
    esp_eval_results_close(&eval->results);
    for (uint32_t i = 0; eval->scores && i < eval->data.n_examples; i++)
        esp_eval_score_finish(&eval->scores[i]);
    free(eval->scores);
    free(eval->which);
    free(eval->todo);
    esp_eval_data_finish(&eval->data);
    esp_codec_destroy(&o->codec);
    json_decref(o->header.decoding);
}

static int run(struct options *o)
{
    struct esp_eval *eval = &o->eval;
    struct esp_err err = {0}, late = {0};
    bool begun = false;
    esp_status st;
    int r = 0;

    esp_term_init(&eval->ask.term);
    st = evaluate(o, &begun, &err);
    if (begun && finish(o, &late) && st == ESP_OK) {
        st = late.code;
        err = late;
    }
    if (st)
        r = esp_ask_failed(&eval->ask.term, help.name, &err);
    else if (eval->n_failed > 0)
        r = ESP_EXIT_FAILED;
    close_all(o);
    return r;
}

int esp_command_eval(int argc, char **argv)
{
    static struct options o;
    struct esp_arg where[ESP_N_CLUSTER_ARGS], decoding[ESP_N_DECODING_ARGS], output[ESP_N_OUTPUT_ARGS];
    struct esp_arg set[] = {
        {"data", 0, ESP_ARG_TEXT, "FILE",
         "The examples: JSON lines with image, prompt, answer and, to detect and segment, objects.", &o.data,
         0, 0, false, NULL},
        {"task", 0, ESP_ARG_LIST, "TASK,...",
         "Only these: caption, answer, detect, segment, ocr, other (by the prompt's first word).", &o.tasks,
         0, 0, false, NULL},
        {"limit", 0, ESP_ARG_U32, "N", "Only the first N examples (of those tasks).", &o.limit, 1, UINT32_MAX,
         false, NULL},
        {"in-flight", 0, ESP_ARG_U32, "N", "Requests under way at once, 1 to 512. Default: 32.",
         &o.eval.in_flight, 1, MOST_IN_FLIGHT, false, NULL},
        {"mask-codec", 0, ESP_ARG_TEXT, "FILE",
         "What makes masks of <seg...> tokens, a " ESP_CODEC_FILE
         ". Default: that of the model's folder, else that of what is installed.",
         &o.codec_path, 0, 0, false, NULL},
        {"out", 'o', ESP_ARG_TEXT, "FILE",
         "Keep each answer there, a JSON object a line, and go on from what is there already.", &o.out, 0, 0,
         false, NULL},
    };
    const struct esp_arg_group groups[] = {{"Examples", set, sizeof set / sizeof set[0]},
                                           {"Decoding", decoding, ESP_N_DECODING_ARGS - 1},
                                           {"Output", output, ESP_N_OUTPUT_ARGS - 1},
                                           {"Where", where, ESP_N_CLUSTER_ARGS},
                                           {NULL, NULL, 0}};
    char **rest;
    int n_rest, r;

    o.eval.in_flight = IN_FLIGHT;
    esp_where_args(&o.eval.ask.where, where);
    esp_decoding_args(&o.eval.decoding, decoding);
    esp_args_drop(decoding, ESP_N_DECODING_ARGS, "suffix"); /* the examples say what is asked */
    esp_output_args(&o.eval.ask, output);
    esp_args_drop(output, ESP_N_OUTPUT_ARGS, "trace");
    r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    if (r == ESP_ARGS_GO_ON && n_rest > 0)
        r = esp_args_bad(&help, "what is '%s'? The examples come with --data FILE", rest[0]);
    if (r == ESP_ARGS_GO_ON)
        r = check(&o);
    if (r == ESP_ARGS_GO_ON)
        r = run(&o);
    esp_args_free(groups);
    return r;
}
