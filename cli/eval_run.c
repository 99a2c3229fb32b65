#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/eval.h"
#include "cli/figures.h"
#include "cli/input.h"
#include "cli/signals.h"
#include "proto/clock.h"

#define REDRAW_MS   200 /* of the progress bar */
#define N_REFUSALS  8   /* of one example, for want of room, before that is its failure */
#define REFUSED_MS  250 /* before the next try of one that was refused alone */
#define N_HOPELESS  20  /* failures from the start, and nothing else, after which it is given up */
#define BAR_COLUMNS 24

/* A picture's file while requests about it are under way. */
struct file {
    uint32_t n_ref;
    void *bytes;
    size_t n_bytes;
    char *name; /* for messages that cross the wire */
};

struct job {
    struct running *run;
    struct esp_asking *asking; /* NULL: the job is free */
    uint32_t example;
    bool accepted;
    struct file *file;
    struct esp_msg request;
};

struct running {
    struct esp_eval *eval;
    struct job *jobs; /* eval->in_flight */
    uint32_t n_under_way;
    uint32_t window; /* how many may be: less than in_flight after refusals */
    uint32_t n_well; /* answers since it was changed */
    uint32_t next;   /* of eval->todo */
    uint32_t *again; /* examples that were refused, the next one last; room for in_flight */
    uint32_t n_again;
    uint8_t *n_refused; /* of each example of the data */
    struct file *file;  /* of the picture asked about last, and which that is */
    uint32_t picture;
    int64_t began_ms; /* when the first request was taken on; -1: none yet */
};

/* ---- pictures ---- */

static void drop_file(struct file *file)
{
    if (!file || --file->n_ref > 0)
        return;
    free(file->bytes);
    free(file->name);
    free(file);
}

static esp_status take_file(struct file **out, struct running *run, uint32_t picture, struct esp_err *err)
{
    const struct esp_eval_picture *p = &run->eval->data.pictures[picture];
    struct file *file = run->file;
    esp_status st;

    if (!file || run->picture != picture) {
        file = calloc(1, sizeof *file);
        if (!file)
            return esp_fail(err, ESP_E_NOMEM, "%s: out of memory", p->path);
        file->n_ref = 1; /* run's */
        file->name = esp_input_wire_name(p->path, run->eval->ask.where.connect != NULL);
        st = file->name ? esp_input_picture(&file->bytes, &file->n_bytes, p->path, err)
                        : esp_fail(err, ESP_E_NOMEM, "%s: out of memory", p->path);
        if (st) {
            drop_file(file);
            return st;
        }
        drop_file(run->file);
        run->file = file;
        run->picture = picture;
    }
    file->n_ref++;
    *out = file;
    return ESP_OK;
}

/* ---- progress ---- */

static void show(const struct running *run)
{
    struct esp_eval *eval = run->eval;
    const uint32_t n_now = eval->n_done + eval->n_failed;
    const uint32_t n_before = eval->n_which - eval->n_todo;
    const uint32_t n_all = eval->n_which, n_ended = n_before + n_now;
    const int columns = (int)((uint64_t)BAR_COLUMNS * n_ended / n_all);
    const double seconds = run->began_ms < 0 ? 0 : (double)(esp_now_ms() - run->began_ms) / 1000;
    const double rate = seconds > 0 ? n_now / seconds : 0;
    char failed[32] = "", left[64] = "";

    if (n_now == 0) /* what the cluster says is better */
        return;
    if (eval->n_failed)
        snprintf(failed, sizeof failed, ", %u failed", eval->n_failed);
    if (rate > 0)
        snprintf(left, sizeof left, "  %.1f/s  %s left", rate,
                 esp_figure_seconds((n_all - n_ended) / rate).s);
    esp_term_progress(&eval->ask.term, "%.*s%.*s %3u %%  %u of %u%s%s", columns, "########################",
                      BAR_COLUMNS - columns, "........................", (uint32_t)(100ull * n_ended / n_all),
                      n_ended, n_all, left, failed);
}

static void on_accepted(void *self, const struct esp_msg_accepted *accepted)
{
    struct job *job = self;
    struct running *run = job->run;

    job->accepted = true;
    if (run->began_ms >= 0)
        return;
    run->began_ms = esp_now_ms();
    esp_ask_tell_stages(&run->eval->ask, accepted);
}

static void on_waiting(void *self, const struct esp_msg_waiting *waiting)
{
    struct job *job = self;
    struct esp_eval *eval = job->run->eval;

    if (eval->n_done + eval->n_failed == 0 && job == job->run->jobs)
        esp_ask_waiting(&eval->ask, waiting);
}

/* ---- asking ---- */

static void free_job(struct job *job)
{
    drop_file(job->file);
    job->file = NULL;
    job->asking = NULL;
    job->run->n_under_way--;
}

static esp_status begin(struct running *run, uint32_t example, struct esp_err *err)
{
    const struct esp_eval_example *e = &run->eval->data.examples[example];
    struct job *job = run->jobs;
    struct esp_client_hooks hooks = {.accepted = on_accepted, .waiting = on_waiting};
    struct esp_msg_request *r;
    esp_status st;

    while (job->asking)
        job++;
    st = take_file(&job->file, run, e->picture, err);
    if (st)
        return st;
    job->run = run;
    job->example = example;
    job->accepted = false;
    memset(&job->request, 0, sizeof job->request);
    job->request.kind = ESP_MSG_REQUEST;
    r = &job->request.request;
    esp_decoding_fill(r, &run->eval->decoding);
    r->prompt = e->prompt;
    r->n_images = job->request.n_blobs = 1;
    r->image_names = (const char *const *)&job->file->name;
    job->request.blob[0] = (struct esp_blob){.data = job->file->bytes, .n_bytes = job->file->n_bytes};
    hooks.self = job;
    run->n_under_way++;
    st = esp_client_begin(&job->asking, run->eval->ask.client, &job->request, &hooks, err);
    if (st)
        free_job(job);
    return st;
}

static esp_status fill(struct running *run, struct esp_err *err)
{
    esp_status st = ESP_OK;

    while (st == ESP_OK && run->n_under_way < run->window) {
        if (run->n_again > 0)
            st = begin(run, run->again[--run->n_again], err);
        else if (run->next < run->eval->n_todo)
            st = begin(run, run->eval->todo[run->next++], err);
        else
            break;
    }
    return st;
}

/* ---- what came ---- */

static esp_status copy_answer(struct esp_eval_answer *out, const struct esp_hypothesis *h,
                              struct esp_err *err)
{
    *out = (struct esp_eval_answer){.text = strdup(h->text),
                                    .finish = strdup(h->finish),
                                    .ids = calloc(h->n_ids + 1u, sizeof *out->ids),
                                    .logprobs = calloc(h->n_ids + 1u, sizeof *out->logprobs),
                                    .n_ids = h->n_ids};
    if (!out->text || !out->finish || !out->ids || !out->logprobs) {
        esp_eval_answer_finish(out);
        return esp_fail(err, ESP_E_NOMEM, "an answer: out of memory");
    }
    for (uint32_t i = 0; i < h->n_ids; i++) {
        out->ids[i] = h->ids[i];
        out->logprobs[i] = h->logprobs[i] < 0 ? h->logprobs[i] : 0; /* whatever a peer says */
    }
    return ESP_OK;
}

static esp_status answered(struct running *run, uint32_t example, const struct esp_hypothesis *best,
                           struct esp_err *err)
{
    struct esp_eval *eval = run->eval;
    const struct esp_eval_example *e = &eval->data.examples[example];
    struct esp_eval_score *score = &eval->scores[example];
    struct esp_eval_answer answer;
    esp_status st = copy_answer(&answer, best, err);

    if (st)
        return st;
    esp_eval_score_finish(score);
    st = esp_eval_score_make(score, e, &eval->data.pictures[e->picture], &answer, &eval->masks, err);
    if (st == ESP_OK && eval->results)
        st = esp_eval_results_answer(eval->results, example, &answer, esp_eval_score_json(score, e), err);
    esp_eval_answer_finish(&answer);
    eval->n_done++;
    if (run->window < eval->in_flight && ++run->n_well > run->window) {
        run->window++;
        run->n_well = 0;
    }
    return st;
}

/* There was no room for it. It is asked again, and fewer at once are. */
static esp_status refused(struct running *run, uint32_t example, struct esp_err *err)
{
    const bool alone = run->n_under_way == 0;

    run->n_refused[example]++;
    run->again[run->n_again++] = example;
    run->window = alone ? 1 : run->n_under_way;
    run->n_well = 0;
    return alone ? esp_client_sleep(run->eval->ask.client, REFUSED_MS, err) : ESP_OK;
}

static esp_status failed(struct running *run, uint32_t example, const struct esp_err *why,
                         struct esp_err *err)
{
    struct esp_eval *eval = run->eval;
    esp_status st = ESP_OK;

    eval->scores[example].state = ESP_EVAL_FAILED;
    if (eval->n_failed++ == 0 || eval->ask.verbose)
        esp_term_line(&eval->ask.term, "line %u failed: %s", eval->data.examples[example].line, why->text);
    if (eval->results)
        st = esp_eval_results_failure(eval->results, example, why->text, err);
    if (st == ESP_OK && eval->n_failed >= N_HOPELESS && eval->n_done == 0)
        st = esp_fail(err, why->code, "%u examples have failed and none went well; the last one: %s",
                      eval->n_failed, why->text);
    return st;
}

static esp_status ended(struct running *run, struct esp_asking *asking, struct esp_err *err)
{
    struct job *job = run->jobs;
    struct esp_reply reply;
    struct esp_err why;
    uint32_t example;
    bool accepted;
    esp_status st;

    while (job->asking != asking)
        job++;
    example = job->example;
    accepted = job->accepted;
    st = esp_client_take(&reply, &asking, &why);
    free_job(job);
    if (st == ESP_OK) {
        st = answered(run, example, &reply.done->done.best, err);
        esp_reply_finish(&reply);
        return st;
    }
    if (st == ESP_E_LIMIT && !accepted && run->n_refused[example] < N_REFUSALS)
        return refused(run, example, err);
    if (st == ESP_E_CLOSED || st == ESP_E_TIMEOUT || (st == ESP_E_CANCELLED && esp_signals_stop())) {
        *err = why; /* nobody is there to ask for the next one */
        return st;
    }
    return failed(run, example, &why, err);
}

static esp_status go(struct running *run, struct esp_err *err)
{
    struct esp_client *client = run->eval->ask.client;
    esp_status st = fill(run, err);

    while (st == ESP_OK && run->n_under_way > 0) {
        struct esp_asking *asking;

        st = esp_client_next(&asking, client, run->eval->ask.term.progress ? REDRAW_MS : -1, err);
        if (st == ESP_OK && asking)
            st = ended(run, asking, err);
        if (st == ESP_OK)
            st = fill(run, err);
        show(run);
    }
    esp_term_clear(&run->eval->ask.term);
    return st;
}

esp_status esp_eval_run(struct esp_eval *eval, struct esp_err *err)
{
    struct running run = {.eval = eval, .window = eval->in_flight, .began_ms = -1};
    esp_status st;

    run.jobs = calloc(eval->in_flight, sizeof *run.jobs);
    run.again = calloc(eval->in_flight, sizeof *run.again);
    run.n_refused = calloc(eval->data.n_examples, sizeof *run.n_refused);
    st = run.jobs && run.again && run.n_refused ? go(&run, err) : esp_fail(err, ESP_E_NOMEM, "out of memory");
    if (run.began_ms >= 0)
        eval->seconds = (double)(esp_now_ms() - run.began_ms) / 1000;
    if (st == ESP_E_CLOSED || st == ESP_E_TIMEOUT) /* nobody to tell */
        esp_client_forget(eval->ask.client);
    else
        esp_client_give_up(eval->ask.client);
    for (uint32_t i = 0; run.jobs && i < eval->in_flight; i++)
        if (run.jobs[i].asking)
            free_job(&run.jobs[i]);
    drop_file(run.file);
    free(run.jobs);
    free(run.again);
    free(run.n_refused);
    return st;
}
