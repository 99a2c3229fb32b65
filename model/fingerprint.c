/*
 * The fingerprint hashes values in an order of our own (role, then layer), never bytes of a header, so that
 * neither naming layout nor sharding nor JSON spelling matters. Samples rather than everything: two
 * checkpoints that differ in a way that training makes differ nearly everywhere, and a cluster should not
 * read 6 GB to say hello.
 */
#include <assert.h>
#include <sodium.h>
#include <string.h>

#include "model/checkpoint.h"
#include "model/hash.h"
#include "model/roles.h"

#define EDGE_BYTES  4096u
#define N_BLOCK     64u
#define BLOCK_BYTES 256u
#define WHOLE_BYTES (2 * EDGE_BYTES + N_BLOCK * BLOCK_BYTES)

static void hash_f32(crypto_generichash_state *h, float v)
{
    uint32_t bits;

    memcpy(&bits, &v, sizeof bits);
    esp_hash_u64(h, bits);
}

static void hash_config(crypto_generichash_state *h, const struct esp_config *c)
{
    const struct esp_vision_config *v = &c->vision;
    const struct esp_text_config *t = &c->text;
    const uint32_t whole[] = {v->width,      v->n_layer,    v->n_head,  v->mlp_dim, v->image_size,
                              v->patch_size, v->n_channel,  t->width,   t->n_layer, t->n_head,
                              t->n_kv_head,  t->head_dim,   t->mlp_dim, t->vocab,   t->window,
                              t->post_norms, c->image_token};
    const float real[] = {v->ln_eps,      t->rope_theta,   t->rms_eps,
                          t->query_scale, t->attn_softcap, t->final_softcap};

    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++)
        esp_hash_u64(h, whole[i]);
    for (size_t i = 0; i < sizeof real / sizeof real[0]; i++)
        hash_f32(h, real[i]);
    for (uint32_t i = 0; i < t->n_layer; i++)
        esp_hash_u64(h, t->sliding[i]);
}

/* Where block i of a large tensor's samples begins: evenly, from behind the first edge to before the last. */
static size_t block_at(size_t n_bytes, size_t i)
{
    const size_t room = n_bytes - 2 * EDGE_BYTES - BLOCK_BYTES;

    return EDGE_BYTES + room / (N_BLOCK - 1) * i;
}

/*
 * Has the kernel bring in what will be hashed of a tensor that is not in memory: a disk that is asked for thousands of pages
 * at once is many times faster than one that is asked for the next when the last has come.
 */
static void ask_for(const struct esp_tensor *t)
{
    const size_t n = t->n_bytes;

    if (n <= WHOLE_BYTES) {
        esp_tensor_soon(t, 0, n);
        return;
    }
    if (esp_tensor_is_here(t, block_at(n, N_BLOCK / 2))) /* and so are the others, most likely */
        return;
    esp_tensor_soon(t, 0, EDGE_BYTES);
    for (size_t i = 0; i < N_BLOCK; i++)
        esp_tensor_soon(t, block_at(n, i), BLOCK_BYTES);
    esp_tensor_soon(t, n - EDGE_BYTES, EDGE_BYTES);
}

static void hash_tensor(crypto_generichash_state *h, const struct esp_tensor *t, enum esp_role role,
                        uint32_t layer)
{
    const unsigned char *p = t->data;
    size_t n = t->n_bytes;

    esp_hash_u64(h, (uint64_t)role);
    esp_hash_u64(h, layer);
    esp_hash_u64(h, (uint64_t)t->dtype);
    esp_hash_u64(h, t->n_dim);
    for (uint32_t i = 0; i < t->n_dim; i++)
        esp_hash_u64(h, t->shape[i]);
    if (n <= WHOLE_BYTES) {
        esp_hash(h, p, n);
        return;
    }
    esp_hash(h, p, EDGE_BYTES);
    for (size_t i = 0; i < N_BLOCK; i++)
        esp_hash(h, p + block_at(n, i), BLOCK_BYTES);
    esp_hash(h, p + n - EDGE_BYTES, EDGE_BYTES);
}

void esp_checkpoint_fingerprint(const struct esp_checkpoint *ck, uint8_t out[ESP_FINGERPRINT_BYTES])
{
    static const char domain[] = "espalier checkpoint 1"; /* a new number for a new way to compute it */
    const struct esp_config *config = esp_checkpoint_config(ck);
    crypto_generichash_state h;
    int rc;

    rc = crypto_generichash_init(&h, NULL, 0, ESP_FINGERPRINT_BYTES); /* fails for bad lengths alone */
    assert(rc == 0);
    esp_hash(&h, domain, sizeof domain);
    hash_config(&h, config);
    for (int role = 0; role < ESP_N_ROLE; role++)
        for (uint32_t i = 0; i < esp_role_count(config, (enum esp_role)role); i++)
            ask_for(esp_checkpoint_tensor(ck, (enum esp_role)role, i));
    for (int role = 0; role < ESP_N_ROLE; role++) {
        for (uint32_t i = 0; i < esp_role_count(config, (enum esp_role)role); i++)
            hash_tensor(&h, esp_checkpoint_tensor(ck, (enum esp_role)role, i), (enum esp_role)role, i);
    }
    rc = crypto_generichash_final(&h, out, ESP_FINGERPRINT_BYTES);
    assert(rc == 0);
    (void)rc;
}
