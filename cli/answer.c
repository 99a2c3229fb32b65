#include "cli/answer.h"

#include <string.h>

esp_status esp_answer_token(struct esp_answer *answer, const char *text, struct esp_err *err)
{
    const size_t n = strlen(text);

    answer->streamed |= n > 0;
    if (answer->n_sent + n < sizeof answer->sent)
        memcpy(answer->sent + answer->n_sent, text, n);
    answer->n_sent += n;
    return esp_term_text(answer->term, text, err);
}

esp_status esp_answer_end(struct esp_answer *answer, const char *text, struct esp_err *err)
{
    esp_status st = ESP_OK;

    if (answer->n_sent < sizeof answer->sent && strlen(text) >= answer->n_sent &&
        memcmp(text, answer->sent, answer->n_sent) == 0)
        st = esp_term_text(answer->term, text + answer->n_sent, err);
    return st ? st : esp_term_end(answer->term, err);
}

void esp_answer_break(struct esp_answer *answer)
{
    if (answer->streamed && !answer->term->at_start)
        (void)esp_term_end(answer->term, NULL);
}

void esp_answer_tell_timing(struct esp_term *term, const struct esp_reply *reply)
{
    const struct esp_msg_done *d = &reply->done->done;
    uint32_t n_prompt = reply->accepted->accepted.n_prompt_ids + reply->accepted->accepted.image_tokens;
    uint32_t n = d->best.n_ids + (d->best.n_logprobs > d->best.n_ids);

    esp_term_line(term, "load %.2f s, encode %.2f s, prefill %.2f s (%u tokens), decode %.2f s (%u tokens)",
                  d->load, d->encode, d->prefill, n_prompt, d->decode, n);
    if (d->images_cached > 0)
        esp_term_line(term, "pictures: %u from the cache", d->images_cached);
    if (d->rebuilds > 0)
        esp_term_line(term, "rebuilt %u time%s after the loss of a worker", d->rebuilds,
                      d->rebuilds > 1 ? "s" : "");
    if (n > 1 && d->decode > 0) /* the first token is the prefill's */
        esp_term_line(term, "%.2f tokens/s", (n - 1) / d->decode);
}
