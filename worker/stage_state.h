/**
 * What stage*.c share: a stage's insides, and running its programs. Included by them alone, and by tests that break one.
 */
#ifndef ESP_WORKER_STAGE_STATE_H
#define ESP_WORKER_STAGE_STATE_H

#include "worker/batch.h"
#include "worker/kv.h"
#include "worker/program.h"
#include "worker/stage.h"

struct esp_stage {
    struct esp_shelf *shelf;
    bool on_shelf; /* esp_shelf_use was called */
    struct esp_vk *vk;
    const struct esp_checkpoint *ck;
    const struct esp_config *c;
    struct esp_stage_spec spec;
    bool enc, dec;
    struct esp_space space;
    struct esp_weights weights;
    struct esp_programs ps;
    struct esp_batch batch;
    uint32_t *step_words;   /* the batch's, where the step buffer lies in a device's own memory; else NULL */
    struct esp_kv *kv;      /* NULL without decoder layers */
    uint64_t *images;       /* id of each features slot; 0: free */
    uint32_t *vision_table; /* 0, 1, 2, ...: SigLIP's keys lie in order */
    struct esp_kv_append *appends; /* a step's, max_seqs of them */
    uint32_t *slots;               /* features slots of one sequence's images: a slot for every N rows */
    uint64_t weight_bytes, kv_bytes, scratch_bytes;
    bool stepping; /* the sealed batch is a step's, not a picture's */
    bool lost;
    bool took_kv, took_act; /* these buffers, and what is in them, are a former stage's */
    uint64_t rest_bytes;    /* retired: what it keeps on the device, as the shelf counts it */
    bool has_books;         /* kv holds the placement's sequences; false: it has yet to be told of them */
};

/**
 * Runs programs one after the other on the sealed batch and adds the time to out. `apart`: each command buffer in a
 * batch of its own. With `trace` one segment at a time, each looked at. After ESP_E_DEVICE the stage is lost.
 */
esp_status esp_stage_run(struct esp_stage *stage, const struct esp_program *const *programs,
                         uint32_t n_program, bool apart, bool trace, struct esp_stage_out *out,
                         struct esp_err *err);

/** The rows that a program left in the output buffer, into out->rows. Errors: ESP_E_NUMBERS, ESP_E_NOMEM. */
esp_status esp_stage_take_rows(struct esp_stage *stage, uint32_t n_row, uint32_t width,
                               struct esp_stage_out *out, struct esp_err *err);

/**
 * Ends a step or picture whose results are no finite numbers: clears what they left on the device, so that it reaches
 * nobody else, and fails with ESP_E_NUMBERS, naming where (printf). The last sealed batch is the one at fault.
 */
esp_status esp_stage_no_number(struct esp_stage *stage, struct esp_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/** Which features slot holds an image (0: a free one); ESP_NONE if none does. */
uint32_t esp_stage_image_slot(const struct esp_stage *stage, uint64_t image);

/** Uses no weights any more. The device must be done with them. */
void esp_stage_leave_shelf(struct esp_stage *stage);

/* ---- stage_move.c ---- */

/** Takes those buffers of a retired stage over that lie just as this one's will, and its books with them. */
void esp_stage_take_buffers(struct esp_stage *stage, struct esp_stage *former);

/** What a retired stage keeps is not to be counted on the shelf any more; the buffers are the caller's affair. */
void esp_stage_drop_rest(struct esp_stage *stage);

/** Copies the rest: books, KV of the layers that both have, features. Leaves with `former` what only it has. */
esp_status esp_stage_inherit(struct esp_stage *stage, struct esp_stage *former, struct esp_err *err);

#endif
