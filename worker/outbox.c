#include "worker/outbox.h"

#include <stdlib.h>

struct esp_pending {
    struct esp_pending *next;
    struct esp_msg msg;
    struct esp_shared *blob;
    size_t n_bytes;
    struct esp_work *owner;
};

void esp_work_unref(struct esp_work **work)
{
    if (*work && --(*work)->n_users == 0)
        esp_work_destroy(work);
    *work = NULL;
}

static void pending_destroy(struct esp_pending *p)
{
    esp_shared_unref(p->blob);
    esp_work_unref(&p->owner);
    free(p);
}

esp_status esp_outbox_open(struct esp_outbox *box, struct esp_net *net, const char *identity,
                           const char *endpoint, const uint8_t *server_key, int hwm, int linger_ms,
                           struct esp_err *err)
{
    const struct esp_link_options options = {.type = ESP_LINK_DIAL,
                                             .identity = identity,
                                             .hwm = hwm,
                                             .linger_ms = linger_ms,
                                             .server_key = server_key};
    esp_status st;

    esp_outbox_close(box);
    st = esp_link_create(&box->link, net, &options, err);
    if (!st)
        st = esp_link_connect(box->link, endpoint, err);
    if (st)
        esp_link_destroy(&box->link);
    return st;
}

void esp_outbox_close(struct esp_outbox *box)
{
    while (box->first) {
        struct esp_pending *p = box->first;
        box->first = p->next;
        pending_destroy(p);
    }
    box->last = NULL;
    box->n_pending = 0;
    esp_link_destroy(&box->link);
}

static void release_shared(void *data, void *hint)
{
    (void)data;
    esp_shared_unref(hint);
}

/** One try. The link consumes a reference in every case, so it gets one of its own. */
static esp_status send_now(struct esp_outbox *box, const struct esp_msg *msg, struct esp_shared *blob,
                           size_t n_bytes, struct esp_err *err)
{
    struct esp_msg copy;

    if (!box->link)
        return esp_fail(err, ESP_E_CLOSED, "%s has nowhere to go", esp_msg_name(msg->kind));
    copy = *msg;
    copy.n_blobs = 0;
    copy.store = NULL;
    if (blob) {
        esp_shared_ref(blob);
        copy.blob[0] = (struct esp_blob){.data = esp_shared_data(blob), n_bytes, release_shared, blob};
        copy.n_blobs = 1;
    }
    return esp_link_send(box->link, NULL, &copy, err);
}

esp_status esp_outbox_put(struct esp_outbox *box, const struct esp_msg *msg, struct esp_shared *blob,
                          size_t n_bytes, struct esp_work *owner, struct esp_err *err)
{
    struct esp_pending *p;

    if (!box->first) {
        esp_status st = send_now(box, msg, blob, n_bytes, err);
        if (st != ESP_E_LIMIT)
            return st;
    }
    p = calloc(1, sizeof *p);
    if (!p)
        return esp_fail(err, ESP_E_NOMEM, "%s: no memory to keep it", esp_msg_name(msg->kind));
    p->msg = *msg;
    p->n_bytes = n_bytes;
    if (blob) {
        esp_shared_ref(blob);
        p->blob = blob;
    }
    if (owner) {
        owner->n_users++;
        p->owner = owner;
    }
    if (box->last)
        box->last->next = p;
    else
        box->first = p;
    box->last = p;
    box->n_pending++;
    return ESP_OK;
}

esp_status esp_outbox_try(struct esp_outbox *box, const struct esp_msg *msg, struct esp_err *err)
{
    if (box->first)
        return esp_fail(err, ESP_E_LIMIT, "%s: others wait", esp_msg_name(msg->kind));
    return send_now(box, msg, NULL, 0, err);
}

esp_status esp_outbox_flush(struct esp_outbox *box, struct esp_err *err)
{
    while (box->first) {
        struct esp_pending *p = box->first;
        esp_status st = send_now(box, &p->msg, p->blob, p->n_bytes, err);

        if (st == ESP_E_LIMIT)
            return ESP_OK;
        box->first = p->next;
        if (!box->first)
            box->last = NULL;
        box->n_pending--;
        pending_destroy(p);
        if (st)
            return st;
    }
    return ESP_OK;
}

void esp_outbox_purge(struct esp_outbox *box, uint64_t generation)
{
    struct esp_pending **at = &box->first;

    box->last = NULL;
    while (*at) {
        struct esp_pending *p = *at;
        uint64_t g = p->owner ? p->owner->generation : 0;

        if (g == 0 || g == generation) {
            box->last = p;
            at = &p->next;
        } else {
            *at = p->next;
            box->n_pending--;
            pending_destroy(p);
        }
    }
}
