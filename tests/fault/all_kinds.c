#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/fault/all_kinds.h"

struct esp_msg_request request_of_kind(uint32_t i, uint64_t id)
{
    static const struct esp_msg_sampling sampling[N] = {
        {.ignore_eos = true},
        {.temperature = 1, .seed = 4, .ignore_eos = true},
        {.temperature = 0.7, .top_k = 20, .seed = 11, .best_of = 4},
        {.beams = 3},
        {.beams = 3, .has_length_penalty = true, .length_penalty = 1},
        {.temperature = 0}};

    return (struct esp_msg_request){.id = id,
                                    .prompt = i % 2 ? "caption en" : "answer en what",
                                    .max_tokens = TOKENS,
                                    .suffix = i == 0 || i == 5 ? "a cow" : NULL,
                                    .score = i == 5,
                                    .sampling = sampling[i]};
}

const char *picture_of_kind(uint32_t i)
{
    return i == 2 ? "scene_b.png" : i < 3 ? "scene_a.png" : NULL;
}

void ask_all(struct rig *rig, uint64_t first)
{
    for (uint32_t i = 0; i < N; i++) {
        struct esp_msg_request r = request_of_kind(i, first + i);

        rig_request(rig, 0, &r, picture_of_kind(i), NULL);
    }
}

void write_down(char *out, const struct esp_msg_done *d)
{
    size_t n = 0;

    for (uint32_t i = 0; i <= d->n_hypotheses; i++) {
        const struct esp_hypothesis *h = i ? &d->hypotheses[i - 1] : &d->best;

        for (uint32_t k = 0; k < h->n_ids; k++)
            n += (size_t)snprintf(out + n, TEXT - n, "%u ", h->ids[k]);
        for (uint32_t k = 0; k < h->n_logprobs; k++)
            n += (size_t)snprintf(out + n, TEXT - n, "%.17g ", h->logprobs[k]);
        n += (size_t)snprintf(out + n, TEXT - n, "%s %s %.17g|", h->text, h->finish, h->score);
        assert_true(n < TEXT / 2);
    }
}

void take_all(struct rig *rig, uint64_t first, char (*out)[TEXT])
{
    for (uint32_t i = 0; i < N; i++) {
        const struct esp_msg *m = rig_take(rig, 0, ESP_MSG_DONE);

        assert_true(m->done.session >= first && m->done.session < first + N);
        write_down(out[m->done.session - first], &m->done);
    }
    /* What streams has come once, in order, and is what is in the answer. */
    for (uint64_t id = first; id < first + N; id++) {
        uint32_t n = 0;

        for (uint32_t k = 0; k < rig->c[0].n_inbox; k++) {
            const struct esp_msg *m = rig->c[0].inbox[k];

            if (m->kind == ESP_MSG_TOKEN && m->token.session == id)
                assert_int_equal(m->token.index, n++);
            if (m->kind == ESP_MSG_DONE && m->done.session == id && id < first + 2)
                assert_int_equal(n, m->done.best.n_ids);
        }
        assert_int_equal(n, id < first + 2 ? TOKENS : 0);
    }
}

void compare_all(char (*got)[TEXT], char (*want)[TEXT], const char *what)
{
    for (uint32_t i = 0; i < N; i++)
        if (strcmp(got[i], want[i]) != 0)
            fail_msg("%s: request %u: %s\nundisturbed: %s", what, i, got[i], want[i]);
}
