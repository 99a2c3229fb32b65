/**
 * How the operations become dispatches; ops.c, ops_matmul.c and ops_attention.c include it, nobody else.
 */
#ifndef ESP_WORKER_LAUNCH_H
#define ESP_WORKER_LAUNCH_H

#include "worker/ops.h"
#include "worker/vk_pipe.h"

#define ESP_CHECK_PUSH(s) _Static_assert(sizeof(struct s) <= ESP_PUSH_MAX, #s)

/** A dispatch to be: what varies from operation to operation. */
struct esp_launch {
    const struct esp_kernel_code *code; /* NULL: the device's class has none, an error */
    const uint32_t *spec;
    uint32_t n_spec;
    const void *push;
    uint32_t push_bytes;
    uint32_t chunk; /* of the weights it reads */
    struct esp_grid grid;
    struct esp_profile_work work;
};

/** Records it, behind a barrier; rec->st takes an error, and once it has one nothing is recorded. */
void esp_launch(struct esp_rec *rec, const struct esp_launch *launch);

/** The addresses every push structure begins with. */
#define ESP_PUSH_ADDRESSES(rec, chunk_)                                                                      \
    .step = (rec)->space->step.addr, .act = (rec)->space->act.addr, .w = (rec)->space->chunk[chunk_]->addr,  \
    .vec = (rec)->space->vec.addr, .kv = (rec)->space->kv.addr

static inline const struct esp_kernel_code *esp_launch_find(const struct esp_rec *rec, enum esp_kernel kernel,
                                                            enum esp_wtype weights)
{
    return esp_kernel_find(kernel, rec->space->vk->cls, weights);
}

/** The word of the step buffer that holds how many rows there are. */
static inline uint32_t esp_count_word(enum esp_count count)
{
    return count == ESP_COUNT_WANTS ? ESP_STEP_N_WANTS : ESP_STEP_N_ROWS;
}

static inline uint32_t esp_div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

#endif
