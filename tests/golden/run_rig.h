/**
 * Clusters of real processes that answer as the reference did: `espalier up` with a golden checkpoint, asked
 * by `espalier run` and `espalier score`. What cannot go on fails the test.
 */
#ifndef ESP_TESTS_GOLDEN_RUN_RIG_H
#define ESP_TESTS_GOLDEN_RUN_RIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "tests/cluster/cli_child.h"
#include "tests/support/golden.h"

#define RIG_DATA "tests/golden/data"

/** A golden checkpoint and how close to it float32 arithmetic comes: its README, "Tolerances". */
struct fixture {
    const char *name;
    double decoder_tol;    /* relative L2 of decoder rows and logits */
    double logprob_tol;    /* natural logarithms, one by one */
    unsigned n_enc, n_dec; /* layers */
};

#define RIG_N_FIXTURES 3
extern const struct fixture rig_fixtures[RIG_N_FIXTURES];

#define RIG_VISION_TOL 5e-6 /* relative L2 of the vision tower and of the embeddings */
#define RIG_SCORE_TOL  1e-4 /* of beam scores, which are means */

/** golden.json and golden.safetensors of the fixture. */
struct golden {
    const struct fixture *f;
    json_t *cases;
    struct esp_golden *tensors;
};

void rig_golden_open(struct golden *g, const struct fixture *f);
void rig_golden_close(struct golden *g);

/** Case k of a kind ("generate"); NULL when there are not as many. */
json_t *rig_case(const struct golden *g, const char *kind, size_t k);

/** A text of a case; fails without. */
const char *rig_text(const json_t *one, const char *key);

/** Makes a directory for sockets and traces, and XDG_RUNTIME_DIR of what is started; sets rig_dir. */
int rig_setup(void **state);

/** Fails if anything that was started left something there. */
int rig_teardown(void **state);

extern char rig_dir[32];

/** Runs the program to its end, which must be status 0, and parses its stdout. The caller frees with
 * json_decref. */
json_t *rig_run(const char *label, const char *const *args);

/** The trace that a command was told to write to the path; the file is removed, its content stays until
 * esp_golden_close. */
struct esp_golden *rig_trace(const char *path);

/** Whether two traces of the fixture with as many pictures hold the same bits; tells each tensor that
 * differs. */
bool rig_same_trace(const struct fixture *f, const struct esp_golden *one, const struct esp_golden *other,
                    unsigned n_images);

/** A running `espalier up`; with different numbers of workers there may be several at a time. */
struct cluster {
    struct child up;
    char endpoint[64];
    char model[64];
};

/** Starts one with as many workers and, unless NULL, one more option; returns when it is ready. */
void rig_up(struct cluster *c, const char *model, unsigned n_workers, const char *option);

/**
 * Asks it: `espalier COMMAND --connect ... ARGS`.
 *
 * @param trace  where to leave the opened trace, or NULL
 * @return       what the command printed
 */
json_t *rig_ask(const struct cluster *c, const char *command, struct esp_golden **trace,
                const char *const *args);

/** The same in two halves, so that several can ask at a time; no trace. */
void rig_ask_start(struct child *asker, const struct cluster *c, const char *command,
                   const char *const *args);
json_t *rig_answer(struct child *asker, const char *label);

/** Nothing is left in it of all requests; ends it by Ctrl-C, which must be a good end. */
void rig_down(struct cluster *c);

#endif
