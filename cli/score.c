#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/report.h"
#include "cli/trace.h"
#include "coordinator/token.h"

static const struct esp_command_help help = {
    .name = "score",
    .synopsis = "--model DIR --image FILE --prompt PROMPT --suffix TEXT [options]",
    .about = "Gives the log-likelihood of a suffix after pictures and a prompt: the natural logarithm of the "
             "probability\n"
             "of each of its tokens and, unless --no-eos is given, of the end token after them.\n",
    .examples =
        "  espalier score --model DIR --image cat.jpg --prompt \"caption en\" --suffix \"a cat on a mat\"\n"
        "  espalier score --connect tcp://10.0.0.5:5550 --image cat.jpg --prompt \"answer en is it a cat\" "
        "--suffix yes --json\n",
};

struct score {
    struct esp_ask ask;
    const char *suffix;
    bool no_eos;
};

static void on_accepted(void *self, const struct esp_msg_accepted *accepted)
{
    struct score *score = self;
    esp_ask_tell_stages(&score->ask, accepted);
}

static void on_waiting(void *self, const struct esp_msg_waiting *waiting)
{
    struct score *score = self;
    esp_ask_waiting(&score->ask, waiting);
}

/* The spelling of ids needs the model's tokenizer; without one the ids stand alone. */
static esp_status print_table(struct score *score, const struct esp_reply *reply, struct esp_err *err)
{
    const struct esp_hypothesis *h = &reply->done->done.best;
    double mean = h->n_logprobs ? h->sum / h->n_logprobs : 0;
    struct esp_tokenizer *tok = NULL;
    char path[4096];

    esp_term_clear(&score->ask.term);
    if (score->ask.where.model &&
        snprintf(path, sizeof path, "%s/tokenizer.model", score->ask.where.model) < (int)sizeof path)
        esp_tokenizer_create(&tok, path, NULL);
    printf("%8s  %12s  %s\n", "id", "logprob", tok ? "piece" : "");
    for (uint32_t i = 0; i < h->n_logprobs; i++) {
        size_t n = 0;
        const char *piece = i < h->n_ids && tok ? esp_tokenizer_piece(tok, h->ids[i], &n) : NULL;

        if (i < h->n_ids)
            printf("%8u  %12.6f  %.*s\n", h->ids[i], h->logprobs[i], (int)n, piece ? piece : "");
        else
            printf("%8s  %12.6f  (end)\n", "", h->logprobs[i]);
    }
    printf("sum %.6f, mean %.6f, perplexity %.6f\n", h->sum, mean, exp(-mean));
    esp_tokenizer_destroy(&tok);
    if (fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output cannot be written");
    return ESP_OK;
}

static esp_status answer(struct score *score, struct esp_err *err)
{
    esp_status st;
    struct esp_ask *ask = &score->ask;
    const struct esp_client_hooks hooks = {score, on_accepted, on_waiting, NULL};
    struct esp_reply reply = {0};
    static struct esp_msg request;
    json_t *json;

    request.kind = ESP_MSG_REQUEST;
    request.request.score = true;
    request.request.no_eos = score->no_eos;
    request.request.suffix = score->suffix;
    request.request.max_tokens = 1;
    request.request.trace = ask->trace != NULL;
    st = esp_ask_open(ask, &request, err);
    if (st == ESP_OK)
        st = esp_client_ask(&reply, ask->client, &request, &hooks, err);
    if (st == ESP_OK && ask->trace)
        st = esp_trace_write(ask->trace, &reply, ask->has_config, ask->config.image_token, err);
    if (st == ESP_OK && ask->json) {
        st = esp_report_score(&json, &reply, ask->has_config, ask->config.eos, err);
        if (st == ESP_OK)
            st = esp_report_print(json, err);
    } else if (st == ESP_OK) {
        st = print_table(score, &reply, err);
    }
    esp_reply_finish(&reply);
    return st;
}

int esp_command_score(int argc, char **argv)
{
    static struct score score;
    struct esp_arg where[ESP_N_CLUSTER_ARGS], input[ESP_N_INPUT_ARGS], output[ESP_N_OUTPUT_ARGS];
    struct esp_arg scored[] = {
        {"prompt", 'p', ESP_ARG_TEXT, "TEXT",
         "The prompt, - for standard input; may also be the last argument.", &score.ask.prompt, 0, 0, false,
         NULL},
        {"suffix", 0, ESP_ARG_TEXT, "TEXT", "What is scored. May be empty: then the end token alone.",
         &score.suffix, 0, 0, false, NULL},
        {"no-eos", 0, ESP_ARG_FLAG, NULL, "Leave the end token out.", &score.no_eos, 0, 0, false, NULL},
    };
    const struct esp_arg_group groups[] = {{"Input", input, ESP_N_INPUT_ARGS},
                                           {"Scoring", scored, sizeof scored / sizeof scored[0]},
                                           {"Output", output, ESP_N_OUTPUT_ARGS},
                                           {"Where", where, ESP_N_CLUSTER_ARGS},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    esp_where_args(&score.ask.where, where);
    esp_input_args(&score.ask, input);
    esp_output_args(&score.ask, output);
    r = esp_args_parse(&help, groups, argc, argv, &rest, &n_rest);
    if (r == ESP_ARGS_GO_ON) {
        if (n_rest + (score.ask.prompt != NULL) != 1)
            r = esp_args_bad(&help, "one prompt is needed: --prompt \"caption en\"");
        else if (!score.suffix)
            r = esp_args_bad(&help, "nothing to score: give --suffix TEXT");
        else if (score.no_eos && !*score.suffix)
            r = esp_args_bad(&help, "nothing to score: --suffix is empty and --no-eos leaves its end out");
    }
    if (r == ESP_ARGS_GO_ON) {
        if (n_rest == 1)
            score.ask.prompt = rest[0];
        r = esp_ask_check(&help, &score.ask);
    }
    if (r == ESP_ARGS_GO_ON) {
        esp_term_init(&score.ask.term);
        r = answer(&score, &err) ? esp_ask_failed(&score.ask.term, help.name, &err) : 0;
        esp_ask_close(&score.ask);
    }
    esp_args_free(groups);
    return r;
}
