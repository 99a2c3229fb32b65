#include <stdio.h>
#include <string.h>

#include "cli/answer.h"
#include "cli/ask.h"
#include "cli/command.h"
#include "cli/decoding.h"
#include "cli/report.h"
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
                "  espalier run --connect tcp://10.0.0.5:5550 --image cat.jpg --beams 4 \"caption en\"\n"
                "  espalier run -m DIR -i cat.jpg --temperature 0.8 --top-p 0.95 --seed 7 --best-of 4 "
                "\"caption en\"\n",
};

struct run {
    struct esp_ask ask;
    struct esp_decoding decoding;
    struct esp_answer answer;
};

static int check(struct run *run)
{
    struct esp_err err;

    if (esp_decoding_check(&run->decoding, &err))
        return esp_args_bad(&help, "%s", err.text);
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

    return run->ask.json ? ESP_OK : esp_answer_token(&run->answer, token->text, err);
}

static esp_status finish(struct run *run, const struct esp_reply *reply, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const struct esp_ask *ask = &run->ask;
    json_t *json;

    if (ask->trace)
        st = esp_trace_write(ask->trace, reply, ask->has_config, ask->config.image_token, err);
    if (st == ESP_OK && ask->json) {
        st = esp_report_run(&json, reply, esp_decoding_several(&run->decoding), err);
        if (st == ESP_OK)
            st = esp_report_print(json, err);
    } else if (st == ESP_OK) {
        st = esp_answer_end(&run->answer, reply->done->done.best.text, err);
    }
    if (st == ESP_OK && (run->ask.verbose || run->ask.term.progress))
        esp_answer_tell_timing(&run->ask.term, reply);
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
    st = esp_ask_open(&run->ask, &request, err);
    if (st == ESP_OK)
        st = esp_client_ask(&reply, run->ask.client, &request, &hooks, err);
    if (st == ESP_OK)
        st = finish(run, &reply, err);
    if (st)
        esp_answer_break(&run->answer);
    esp_reply_finish(&reply);
    return st;
}

int esp_command_run(int argc, char **argv)
{
    static struct run run;
    struct esp_arg where[ESP_N_CLUSTER_ARGS], input[ESP_N_INPUT_ARGS], decoding[ESP_N_DECODING_ARGS],
        output[ESP_N_OUTPUT_ARGS];
    const struct esp_arg_group groups[] = {{"Input", input, ESP_N_INPUT_ARGS},
                                           {"Decoding", decoding, ESP_N_DECODING_ARGS},
                                           {"Output", output, ESP_N_OUTPUT_ARGS},
                                           {"Where", where, ESP_N_CLUSTER_ARGS},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    run.answer.term = &run.ask.term;
    esp_where_args(&run.ask.where, where);
    esp_input_args(&run.ask, input);
    esp_decoding_args(&run.decoding, decoding);
    esp_output_args(&run.ask, output);
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
