#include <stdio.h>
#include <string.h>

#include "cli/answer.h"
#include "cli/ask.h"
#include "cli/command.h"
#include "cli/decoding.h"
#include "cli/findings.h"
#include "cli/report.h"
#include "cli/show.h"
#include "cli/trace.h"

static const struct esp_command_help help = {
    .name = "run",
    .synopsis = "--model DIR --image FILE [options] [--] PROMPT",
    .about =
        "Answers a prompt about one or more pictures. The prompt is a task prefix as PaliGemma knows it\n"
        "(\"caption en\", \"answer en how many dogs\", \"detect cat\"), - reads it from standard input.\n"
        "Without --connect, a coordinator and workers are started on this machine and ended with the "
        "command.\n"
        "The answer goes to standard output as it comes, everything else to standard error.\n",
    .examples = "  espalier run --model paligemma-3b-mix-224 --image cat.jpg \"caption en\"\n"
                "  espalier run --model paligemma-3b-mix-224 --image a.png --image b.png --json \"answer en "
                "is it the same\"\n"
                "  espalier run -m DIR -i street.jpg -o found.png \"detect car ; person\"\n"
                "  espalier run --connect tcp://10.0.0.5:5550 --image cat.jpg --beams 4 \"caption en\"\n"
                "  espalier run -m DIR -i cat.jpg --temperature 0.8 --top-p 0.95 --seed 7 --best-of 4 "
                "\"caption en\"\n",
};

struct run {
    struct esp_ask ask;
    struct esp_decoding decoding;
    struct esp_answer answer;
    struct esp_finder finder;
    struct esp_loc_scores scores;
};

static int check(struct run *run)
{
    const struct esp_finder *f = &run->finder;
    const char *idle = f->output ? "-o" : f->masks ? "--masks" : f->show ? "--show" : NULL;
    struct esp_err err;

    if (esp_decoding_check(&run->decoding, &err))
        return esp_args_bad(&help, "%s", err.text);
    if (idle && run->ask.images.n == 0)
        return esp_args_bad(&help, "%s: there is no picture; give --image FILE", idle);
    return esp_ask_check(&help, &run->ask);
}

/* ---- while it runs ---- */

static void on_accepted(void *self, const struct esp_msg_accepted *accepted)
{
    struct run *run = self;
    esp_ask_tell_stages(&run->ask, accepted);
}

static void on_waiting(void *self, const struct esp_msg_waiting *waiting)
{
    struct run *run = self;

    if (!run->answer.streamed)
        esp_ask_waiting(&run->ask, waiting);
}

static esp_status on_token(void *self, const struct esp_msg_token *token, struct esp_err *err)
{
    struct run *run = self;
    const esp_status st = esp_loc_scores_add(&run->scores, token->text, token->logprob, err);

    if (st)
        return st;
    return run->ask.json ? ESP_OK : esp_answer_token(&run->answer, token->text, err);
}

/* What the answer found. Boxes and masks only where somebody gets to see them. */
static esp_status read_found(struct esp_findings *found, struct run *run, const char *text,
                             const struct esp_finding_picture *picture, struct esp_err *err)
{
    const struct esp_finder *f = &run->finder;
    const bool wanted =
        run->ask.json || run->ask.verbose || run->ask.term.progress || f->output || f->masks || f->show;

    return esp_findings_read(found, &run->finder, &run->ask.term, run->decoding.suffix, text, &run->scores,
                             wanted ? picture : NULL, err);
}

static esp_status print_json(const struct run *run, const struct esp_reply *reply,
                             const struct esp_findings *found, struct esp_err *err)
{
    json_t *json;
    const esp_status st = esp_report_run(&json, reply, found, esp_decoding_several(&run->decoding), err);

    return st ? st : esp_report_print(json, err);
}

static void tell(struct run *run, const struct esp_reply *reply, const struct esp_findings *found)
{
    struct esp_ask *ask = &run->ask;
    const bool talkative = ask->verbose || ask->term.progress;

    if (!ask->json || ask->verbose)
        esp_findings_tell_malformed(found, &ask->term);
    if (talkative && (!ask->json || ask->verbose)) {
        esp_findings_tell(found, &ask->term);
        if (found->said.n_objects > 0 && ask->n_blobs > 1)
            esp_term_line(&ask->term, "taken to be of the first picture, %s", ask->images.at[0]);
    }
    if (talkative)
        esp_answer_tell_timing(&ask->term, reply);
}

/* On standard output, or on standard error where the answer's JSON or a file takes that. */
static esp_status show(struct run *run, const struct esp_findings *found,
                       const struct esp_finding_picture *picture, struct esp_err *err)
{
    FILE *to = run->ask.term.screen && !run->ask.json ? stdout : stderr;
    struct esp_image image;
    esp_status st = esp_findings_draw(&image, found, picture, err);

    if (st)
        return st;
    esp_term_clear(&run->ask.term);
    st = esp_show(to, &image, err);
    esp_image_finish(&image);
    if (st == ESP_E_UNSUPPORTED) {
        esp_term_line(&run->ask.term, "--show: %s", err->text);
        st = ESP_OK;
    }
    return st;
}

/* What the answer found, and its files. */
static esp_status take_found(struct esp_findings *found, struct run *run, const struct esp_reply *reply,
                             const struct esp_finding_picture *picture, struct esp_err *err)
{
    struct esp_term *told = run->ask.json && !run->ask.verbose ? NULL : &run->ask.term;
    esp_status st = read_found(found, run, reply->done->done.best.text, picture, err);

    return st ? st : esp_findings_save(found, picture, run->finder.masks, run->finder.output, told, err);
}

/* @param picture  the first one; NULL: none. The answer is printed whatever becomes of its files: text first, since its
 * line is open, JSON behind them, since it names them. */
static esp_status finish(struct run *run, const struct esp_reply *reply,
                         const struct esp_finding_picture *picture, struct esp_err *err)
{
    const struct esp_ask *ask = &run->ask;
    struct esp_findings found = {0};
    struct esp_err later;
    esp_status st = ESP_OK, taken;

    if (ask->trace)
        st = esp_trace_write(ask->trace, reply, ask->has_config, ask->config.image_token, err);
    if (st == ESP_OK && !ask->json)
        st = esp_answer_end(&run->answer, reply->done->done.best.text, err);
    if (st)
        return st;
    taken = take_found(&found, run, reply, picture, &later);
    if (ask->json)
        st = print_json(run, reply, &found, err);
    if (st == ESP_OK)
        tell(run, reply, &found);
    if (st == ESP_OK && taken) {
        *err = later;
        st = taken;
    }
    if (st == ESP_OK && run->finder.show)
        st = show(run, &found, picture, err);
    esp_findings_finish(&found);
    return st;
}

static esp_status answer(struct run *run, struct esp_err *err)
{
    esp_status st;
    const struct esp_client_hooks hooks = {run, on_accepted, on_waiting, on_token};
    struct esp_reply reply = {0};
    static struct esp_msg request; /* large: an entry for each possible picture */

    request.kind = ESP_MSG_REQUEST;
    esp_decoding_fill(&request.request, &run->decoding);
    request.request.trace = run->ask.trace != NULL;
    run->finder.model = run->ask.where.model;
    st = esp_finder_open(&run->finder, &run->ask.images, err);
    if (st == ESP_OK)
        st = esp_ask_open(&run->ask, &request, err);
    if (st == ESP_OK)
        st = esp_client_ask(&reply, run->ask.client, &request, &hooks, err);
    if (st == ESP_OK) {
        const struct esp_finding_picture first = {run->ask.blob[0], request.blob[0].n_bytes,
                                                  run->ask.images.n > 0 ? run->ask.images.at[0] : NULL};

        st = finish(run, &reply, run->ask.n_blobs > 0 ? &first : NULL, err);
    }
    if (st)
        esp_answer_break(&run->answer);
    esp_reply_finish(&reply);
    esp_loc_scores_finish(&run->scores);
    esp_finder_close(&run->finder);
    return st;
}

int esp_command_run(int argc, char **argv)
{
    static struct run run;
    struct esp_arg where[ESP_N_CLUSTER_ARGS], input[ESP_N_INPUT_ARGS], decoding[ESP_N_DECODING_ARGS],
        output[ESP_N_OUTPUT_ARGS], found[ESP_N_FINDINGS_ARGS + ESP_N_FINDINGS_FILE_ARGS];
    const struct esp_arg_group groups[] = {
        {"Input", input, ESP_N_INPUT_ARGS},    {"Decoding", decoding, ESP_N_DECODING_ARGS},
        {"Output", output, ESP_N_OUTPUT_ARGS}, {"Boxes and masks", found, sizeof found / sizeof found[0]},
        {"Where", where, ESP_N_CLUSTER_ARGS},  {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    run.answer.term = &run.ask.term;
    esp_where_args(&run.ask.where, where);
    esp_input_args(&run.ask, input);
    esp_decoding_args(&run.decoding, decoding);
    esp_output_args(&run.ask, output);
    esp_findings_args(&run.finder, found);
    esp_findings_file_args(&run.finder, found + ESP_N_FINDINGS_ARGS);
    r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    if (r == ESP_ARGS_GO_ON && n_rest != 1)
        r = n_rest == 0 ? esp_args_bad(&help, "no prompt: give it as the last argument, \"caption en\"")
                        : esp_args_bad(&help, "one prompt, not %d: quote it (\"%s ...\")", n_rest, rest[0]);
    if (r == ESP_ARGS_GO_ON) {
        run.ask.prompt = rest[0];
        r = check(&run);
    }
    if (r == ESP_ARGS_GO_ON) {
        esp_term_init(&run.ask.term);
        r = answer(&run, &err) ? esp_ask_failed(&run.ask.term, help.name, &err) : 0;
        esp_ask_close(&run.ask);
    }
    esp_args_free(groups);
    return r;
}
