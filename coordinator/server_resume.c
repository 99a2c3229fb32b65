/* Clients that come back: a session is whose knows its ticket. */
#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

/* ---- clients ---- */

struct esp_session *esp_server_ticket(const struct esp_server *sv, const uint8_t ticket[ESP_TICKET_BYTES])
{
    if (sodium_is_zero(ticket, ESP_TICKET_BYTES))
        return NULL;
    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next)
        if (!s->client_gone && !s->final_sent && sodium_memcmp(s->ticket, ticket, ESP_TICKET_BYTES) == 0)
            return s;
    return NULL;
}

/* With keys a ticket is good only in the hands that drew it. */
static bool same_member(const struct esp_peer *a, const struct esp_peer *b)
{
    return a->member == b->member && esp_key_equal(a->key, b->key);
}

/* Tokens from number `have` on are to be sent, whatever has been sent before. The text of a token depends on those
 * before it, so they are gone through again. */
static void rewind_to(struct esp_session *s, uint32_t have)
{
    size_t n;

    if (have == 0)
        s->accepted_sent = false; /* that may have been lost too */
    s->n_have = have;
    if (have == s->n_tokens_sent)
        return;
    s->n_tokens_sent = 0;
    free(s->token_text);
    s->token_text = NULL;
    if (s->detok)
        (void)esp_detok_flush(s->detok, &n);
}

void esp_server_on_resume(struct esp_server *sv, const struct esp_peer *from,
                          const struct esp_msg_resume *resume)
{
    struct esp_session *s = esp_server_ticket(sv, resume->ticket), *other;
    const double now = esp_now_seconds();
    bool moved;

    if (!s || !same_member(&s->client, from)) {
        esp_server_tell_error(sv, from, resume->id, ESP_E_CLOSED, "no such request is being answered here");
        return;
    }
    moved = !esp_peer_equal(&s->client, from) || s->request != resume->id;
    other = esp_sched_find(sv->sched, from, resume->id);
    if (moved && (other || s->trace)) { /* what was traced before would be missing */
        esp_server_tell_error(sv, from, resume->id, other ? ESP_E_ARG : ESP_E_CLOSED,
                              other ? "another request with this number is still being answered"
                                    : "a request with a trace cannot be resumed");
        return;
    }
    if (moved) {
        esp_log(sv->log, ESP_LOG_DEBUG, "session=%" PRIu64 " resumed request=%" PRIu64 " have=%" PRIu32,
                s->id, resume->id, resume->have);
        s->client = *from;
        s->request = resume->id;
        s->away = false;
    }
    rewind_to(s, resume->have);
    esp_server_tell_soon(s, now);
}
