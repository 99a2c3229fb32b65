#include <stdio.h>
#include <string.h>

#include "cli/ask.h"
#include "cli/command.h"
#include "cli/report.h"
#include "cli/trace.h"

#define DEFAULT_MAX_TOKENS 128
#define MAX_SEQS           128 /* beams or samples: what a coordinator takes */

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
    struct esp_msg_sampling sampling;
    struct esp_ids ban;
    const char *suffix;
    uint32_t max_tokens;
    bool streamed; /* text went out already */
    char sent[ESP_MAX_TEXT + 1];
    size_t n_sent; /* of the text; more than fits: not comparable */
};

#define N_DECODING 12

static void decoding_args(struct run *run, struct esp_arg args[N_DECODING])
{
    struct esp_msg_sampling *s = &run->sampling;
    const struct esp_arg table[N_DECODING] = {
        {"max-tokens", 'n', ESP_ARG_U32, "N", "Tokens of the answer at most, its end included. Default: 128.",
         &run->max_tokens, 1, 1u << 20, false, NULL},
        {"temperature", 't', ESP_ARG_REAL, "T",
         "Sample at this temperature; 0, the default, takes the likeliest token.", &s->temperature, 0, 100,
         false, NULL},
        {"top-k", 0, ESP_ARG_U32, "K", "Sample among the K likeliest tokens. 0: all.", &s->top_k, 0, 1u << 20,
         false, NULL},
        {"top-p", 0, ESP_ARG_REAL, "P",
         "Sample among the likeliest tokens that make up P together. 0 and 1: all.", &s->top_p, 0, 1, false,
         NULL},
        {"seed", 's', ESP_ARG_U64, "S",
         "Seed of the sampling; the same seed gives the same answer. Default: 0.", &s->seed, 0, 0, false,
         NULL},
        {"best-of", 0, ESP_ARG_U32, "N", "Sample N answers, give the one with the best mean log-probability.",
         &s->best_of, 1, MAX_SEQS, false, NULL},
        {"beams", 'b', ESP_ARG_U32, "N",
         "Beam search with N beams. Alone by big_vision's rule: the likeliest whole answer.", &s->beams, 1,
         MAX_SEQS, false, NULL},
        {"length-penalty", 0, ESP_ARG_REAL, "P",
         "Beam search by the Hugging Face rule: score = log-probability / length^P.", &s->length_penalty, -10,
         10, false, &s->has_length_penalty},
        {"suffix", 0, ESP_ARG_TEXT, "TEXT", "The answer's beginning; decoding goes on from it.", &run->suffix,
         0, 0, false, NULL},
        {"ban", 0, ESP_ARG_IDS, "ID,...", "Ids that must not be chosen ('espalier tokenize' gives ids).",
         &run->ban, 0, UINT32_MAX, false, NULL},
        {"eos", 0, ESP_ARG_U32, "ID", "The id that ends the answer. Default: the model's.", &s->eos, 0,
         UINT32_MAX, false, &s->has_eos},
        {"ignore-eos", 0, ESP_ARG_FLAG, NULL, "Go on to --max-tokens whatever comes.", &s->ignore_eos, 0, 0,
         false, NULL},
    };
    memcpy(args, table, sizeof table);
}

static int check(struct run *run)
{
    const struct esp_msg_sampling *s = &run->sampling;
    bool beams = s->beams > 1;

    if (beams && s->temperature > 0)
        return esp_args_bad(&help, "--beams does not sample: leave out --temperature, or --beams");
    if (beams && (s->top_k > 0 || s->top_p > 0))
        return esp_args_bad(&help, "--beams does not sample: leave out --%s",
                            s->top_k > 0 ? "top-k" : "top-p");
    if (beams && s->best_of > 1)
        return esp_args_bad(&help, "--beams and --best-of exclude each other");
    if (s->has_length_penalty && !beams)
        return esp_args_bad(&help,
                            "--length-penalty is a rule of beam search: give --beams N with N above 1");
    if (!(s->temperature > 0) && s->best_of > 1)
        return esp_args_bad(&help, "--best-of without --temperature would give the same answer %u times",
                            s->best_of);
    if (!(s->temperature > 0) && (s->top_k > 0 || s->top_p > 0))
        return esp_args_bad(&help, "--%s has no effect without --temperature: the likeliest token is taken",
                            s->top_k > 0 ? "top-k" : "top-p");
    if (s->ignore_eos && s->has_eos)
        return esp_args_bad(&help, "--eos and --ignore-eos exclude each other");
    if (run->ban.n > ESP_MAX_BANS)
        return esp_args_bad(&help, "--ban: %u ids, at most %u", run->ban.n, ESP_MAX_BANS);
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

    if (!run->streamed)
        esp_ask_waiting(&run->ask, waiting);
}

static esp_status on_token(void *self, const struct esp_msg_token *token, struct esp_err *err)
{
    struct run *run = self;
    size_t n = strlen(token->text);

    if (run->ask.json)
        return ESP_OK;
    run->streamed |= n > 0;
    if (run->n_sent + n < sizeof run->sent)
        memcpy(run->sent + run->n_sent, token->text, n);
    run->n_sent += n;
    return esp_term_text(&run->ask.term, token->text, err);
}

/* What the stream did not hold: everything (beams), or a last character whose bytes were incomplete. */
static esp_status print_rest(struct run *run, const struct esp_msg_done *done, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const char *text = done->best.text;

    if (run->n_sent < sizeof run->sent && strlen(text) >= run->n_sent &&
        memcmp(text, run->sent, run->n_sent) == 0)
        st = esp_term_text(&run->ask.term, text + run->n_sent, err);
    return st ? st : esp_term_end(&run->ask.term, err);
}

static void tell_timing(struct run *run, const struct esp_reply *reply)
{
    const struct esp_msg_done *d = &reply->done->done;
    uint32_t n_prompt = reply->accepted->accepted.n_prompt_ids + reply->accepted->accepted.image_tokens;
    uint32_t n = d->best.n_ids + (d->best.n_logprobs > d->best.n_ids);

    if (!run->ask.verbose && !run->ask.term.progress)
        return;
    esp_term_line(&run->ask.term,
                  "load %.2f s, encode %.2f s, prefill %.2f s (%u tokens), decode %.2f s (%u tokens)",
                  d->load, d->encode, d->prefill, n_prompt, d->decode, n);
    if (d->images_cached > 0)
        esp_term_line(&run->ask.term, "pictures: %u from the cache", d->images_cached);
    if (d->rebuilds > 0)
        esp_term_line(&run->ask.term, "rebuilt %u time%s after the loss of a worker", d->rebuilds,
                      d->rebuilds > 1 ? "s" : "");
    if (n > 1 && d->decode > 0) /* the first token is the prefill's */
        esp_term_line(&run->ask.term, "%.2f tokens/s", (n - 1) / d->decode);
}

static esp_status finish(struct run *run, const struct esp_reply *reply, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const struct esp_ask *ask = &run->ask;
    json_t *json;

    if (ask->trace)
        st = esp_trace_write(ask->trace, reply, ask->has_config, ask->config.image_token, err);
    if (st == ESP_OK && ask->json) {
        st = esp_report_run(&json, reply, run->sampling.beams > 1 || run->sampling.best_of > 1, err);
        if (st == ESP_OK)
            st = esp_report_print(json, err);
    } else if (st == ESP_OK) {
        st = print_rest(run, &reply->done->done, err);
    }
    if (st == ESP_OK)
        tell_timing(run, reply);
    return st;
}

static esp_status answer(struct run *run, struct esp_err *err)
{
    esp_status st;
    const struct esp_client_hooks hooks = {run, on_accepted, on_waiting, on_token};
    struct esp_reply reply = {0};
    static struct esp_msg request; /* large: an entry for each possible picture */

    request.kind = ESP_MSG_REQUEST;
    request.request.max_tokens = run->max_tokens;
    request.request.sampling = run->sampling;
    request.request.sampling.ban = run->ban.at;
    request.request.sampling.n_ban = run->ban.n;
    request.request.suffix = run->suffix;
    request.request.trace = run->ask.trace != NULL;
    st = esp_ask_open(&run->ask, &request, err);
    if (st == ESP_OK)
        st = esp_client_ask(&reply, run->ask.client, &request, &hooks, err);
    if (st == ESP_OK)
        st = finish(run, &reply, err);
    if (st && run->streamed && !run->ask.term.at_start) { /* the error starts on a line of its own */
        struct esp_err ignored;
        esp_term_end(&run->ask.term, &ignored);
    }
    esp_reply_finish(&reply);
    return st;
}

int esp_command_run(int argc, char **argv)
{
    static struct run run;
    struct esp_arg where[ESP_N_CLUSTER_ARGS], input[ESP_N_INPUT_ARGS], decoding[N_DECODING],
        output[ESP_N_OUTPUT_ARGS];
    const struct esp_arg_group groups[] = {{"Input", input, ESP_N_INPUT_ARGS},
                                           {"Decoding", decoding, N_DECODING},
                                           {"Output", output, ESP_N_OUTPUT_ARGS},
                                           {"Where", where, ESP_N_CLUSTER_ARGS},
                                           {NULL, NULL, 0}};
    struct esp_err err = {0};
    char **rest;
    int n_rest, r;

    run.max_tokens = DEFAULT_MAX_TOKENS;
    esp_where_args(&run.ask.where, where);
    esp_input_args(&run.ask, input);
    decoding_args(&run, decoding);
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
