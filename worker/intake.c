#include "worker/intake.h"

#include <assert.h>
#include <string.h>

void esp_intake_begin(struct esp_intake *in, uint32_t lo, uint32_t hi, uint32_t had_lo, uint32_t had_hi)
{
    assert(lo <= hi && hi - lo <= ESP_MAX_LAYERS);
    memset(in, 0, sizeof *in);
    in->lo = lo;
    in->hi = hi;
    for (uint32_t l = lo; l < hi; l++) {
        in->layer[l - lo].open = l < had_lo || l >= had_hi;
        in->n_left += in->layer[l - lo].open;
    }
}

esp_status esp_intake_check(const struct esp_intake *in, const struct esp_msg_kv_blocks *msg,
                            const struct esp_peer *from, struct esp_err *err)
{
    const struct esp_intake_layer *l;
    char who[64];

    if (msg->layer < in->lo || msg->layer >= in->hi || !in->layer[msg->layer - in->lo].open)
        return esp_fail(err, ESP_E_PROTO, "KV of layer %u, which is not waited for", msg->layer);
    l = &in->layer[msg->layer - in->lo];
    if (l->next > 0 && !esp_peer_equal(from, &l->from))
        return esp_fail(err, ESP_E_PROTO, "KV of layer %u, which comes from %s", msg->layer,
                        esp_peer_text(&l->from, who, sizeof who));
    if (msg->first != l->next || (l->next > 0 && msg->total_blocks != l->total))
        return esp_fail(err, ESP_E_PROTO, "KV of layer %u: blocks from %u of %u, expected from %u of %u",
                        msg->layer, msg->first, msg->total_blocks, l->next,
                        l->next > 0 ? l->total : msg->total_blocks);
    return ESP_OK;
}

bool esp_intake_took(struct esp_intake *in, const struct esp_msg_kv_blocks *msg, uint64_t n_bytes_here,
                     const struct esp_peer *from, uint64_t *n_bytes)
{
    struct esp_intake_layer *l = &in->layer[msg->layer - in->lo];

    l->from = *from;
    l->total = msg->total_blocks;
    l->next += msg->n_blocks;
    l->n_bytes += n_bytes_here;
    *n_bytes = l->n_bytes;
    if (l->next < l->total)
        return false;
    l->open = false;
    in->n_left--;
    return true;
}
