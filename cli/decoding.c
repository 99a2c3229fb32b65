#include "cli/decoding.h"

#include <string.h>

#define DEFAULT_MAX_TOKENS 128
#define MAX_SEQS           128 /* beams or samples: what a coordinator takes */

void esp_decoding_args(struct esp_decoding *d, struct esp_arg args[ESP_N_DECODING_ARGS])
{
    struct esp_msg_sampling *s = &d->sampling;
    const struct esp_arg table[ESP_N_DECODING_ARGS] = {
        {"max-tokens", 'n', ESP_ARG_U32, "N", "Tokens of the answer at most, its end included. Default: 128.",
         &d->max_tokens, 1, 1u << 20, false, NULL},
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
        {"suffix", 0, ESP_ARG_TEXT, "TEXT", "The answer's beginning; decoding goes on from it.", &d->suffix,
         0, 0, false, NULL},
        {"ban", 0, ESP_ARG_IDS, "ID,...", "Ids that must not be chosen ('espalier tokenize' gives ids).",
         &d->ban, 0, UINT32_MAX, false, NULL},
        {"eos", 0, ESP_ARG_U32, "ID", "The id that ends the answer. Default: the model's.", &s->eos, 0,
         UINT32_MAX, false, &s->has_eos},
        {"ignore-eos", 0, ESP_ARG_FLAG, NULL, "Go on to --max-tokens whatever comes.", &s->ignore_eos, 0, 0,
         false, NULL},
    };

    d->max_tokens = DEFAULT_MAX_TOKENS;
    memcpy(args, table, sizeof table);
}

esp_status esp_decoding_check(const struct esp_decoding *d, struct esp_err *err)
{
    const struct esp_msg_sampling *s = &d->sampling;
    bool beams = s->beams > 1;

    if (beams && s->temperature > 0)
        return esp_fail(err, ESP_E_ARG, "--beams does not sample: leave out --temperature, or --beams");
    if (beams && (s->top_k > 0 || s->top_p > 0))
        return esp_fail(err, ESP_E_ARG, "--beams does not sample: leave out --%s",
                        s->top_k > 0 ? "top-k" : "top-p");
    if (beams && s->best_of > 1)
        return esp_fail(err, ESP_E_ARG, "--beams and --best-of exclude each other");
    if (s->has_length_penalty && !beams)
        return esp_fail(err, ESP_E_ARG,
                        "--length-penalty is a rule of beam search: give --beams N with N above 1");
    if (!(s->temperature > 0) && s->best_of > 1)
        return esp_fail(err, ESP_E_ARG, "--best-of without --temperature would give the same answer %u times",
                        s->best_of);
    if (!(s->temperature > 0) && (s->top_k > 0 || s->top_p > 0))
        return esp_fail(err, ESP_E_ARG,
                        "--%s has no effect without --temperature: the likeliest token is taken",
                        s->top_k > 0 ? "top-k" : "top-p");
    if (s->ignore_eos && s->has_eos)
        return esp_fail(err, ESP_E_ARG, "--eos and --ignore-eos exclude each other");
    if (d->ban.n > ESP_MAX_BANS)
        return esp_fail(err, ESP_E_ARG, "--ban: %u ids, at most %u", d->ban.n, ESP_MAX_BANS);
    return ESP_OK;
}

void esp_decoding_fill(struct esp_msg_request *request, const struct esp_decoding *d)
{
    request->max_tokens = d->max_tokens;
    request->sampling = d->sampling;
    request->sampling.ban = d->ban.at;
    request->sampling.n_ban = d->ban.n;
    request->suffix = d->suffix;
}

bool esp_decoding_several(const struct esp_decoding *d)
{
    return d->sampling.beams > 1 || d->sampling.best_of > 1;
}
