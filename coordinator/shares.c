#include "coordinator/shares.h"

#include <stdlib.h>
#include <string.h>

bool esp_same_client(const struct esp_peer *a, const struct esp_peer *b)
{
    if (a->member != b->member)
        return false;
    if (a->member != ESP_MEMBER_NONE) /* however many connections he makes */
        return memcmp(a->key, b->key, sizeof a->key) == 0;
    return esp_peer_equal(a, b);
}

struct esp_share *esp_shares_wait(struct esp_shares *shares, const struct esp_peer *peer)
{
    struct esp_share *s = shares->first;

    while (s && !esp_same_client(&s->peer, peer))
        s = s->next;
    if (!s) {
        s = calloc(1, sizeof *s);
        if (!s)
            return NULL;
        s->peer = *peer;
        s->next = shares->first;
        shares->first = s;
    }
    if (s->n_waiting == 0 && s->spent < shares->now)
        s->spent = shares->now;
    s->n_waiting++;
    shares->n_waiting++;
    return s;
}

void esp_shares_leave(struct esp_shares *shares, struct esp_share **share, uint64_t cost, bool given)
{
    if (given) {
        if ((*share)->spent > shares->now)
            shares->now = (*share)->spent;
        (*share)->spent += cost;
    }
    (*share)->n_waiting--;
    shares->n_waiting--;
    *share = NULL;
    /* Who would come back as anybody new does need not be remembered. */
    for (struct esp_share **p = &shares->first; *p;) {
        struct esp_share *s = *p;

        if (s->n_waiting == 0 && (shares->n_waiting == 0 || s->spent <= shares->now)) {
            *p = s->next;
            free(s);
        } else {
            p = &s->next;
        }
    }
}

void esp_shares_finish(struct esp_shares *shares)
{
    while (shares->first) {
        struct esp_share *s = shares->first;

        shares->first = s->next;
        free(s);
    }
    memset(shares, 0, sizeof *shares);
}
