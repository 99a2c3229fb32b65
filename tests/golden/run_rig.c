#include "tests/golden/run_rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/clock.h"

#define MAX_ARGS 80

const struct fixture rig_fixtures[RIG_N_FIXTURES] = {
    {"tiny", 2e-5, 2e-4, 2, 3},
    {"odd", 2e-5, 2e-4, 3, 4},
    {"tiny-pg2", 4e-5, 1e-3, 2, 4},
};

char rig_dir[32];

int rig_setup(void **state)
{
    strcpy(rig_dir, "/tmp/espalier-test-XXXXXX");
    if (!mkdtemp(rig_dir))
        return -1;
    return setenv("XDG_RUNTIME_DIR", rig_dir, 1);
}

int rig_teardown(void **state)
{
    return rmdir(rig_dir);
}

void rig_golden_open(struct golden *g, const struct fixture *f)
{
    char path[128];
    json_error_t why;

    g->f = f;
    snprintf(path, sizeof path, RIG_DATA "/%s/golden.json", f->name);
    g->cases = json_load_file(path, 0, &why);
    if (!g->cases)
        fail_msg("%s: %s", path, why.text);
    snprintf(path, sizeof path, RIG_DATA "/%s/golden.safetensors", f->name);
    g->tensors = esp_golden_open(path);
}

void rig_golden_close(struct golden *g)
{
    json_decref(g->cases);
    esp_golden_close(&g->tensors);
}

json_t *rig_case(const struct golden *g, const char *kind, size_t k)
{
    json_t *cases = json_object_get(g->cases, kind);

    assert_true(json_array_size(cases) > 0);
    return json_array_get(cases, k);
}

const char *rig_text(const json_t *one, const char *key)
{
    const char *text = json_string_value(json_object_get(one, key));

    if (!text)
        fail_msg("the case has no %s", key);
    return text;
}

json_t *rig_answer(struct child *asker, const char *label)
{
    json_error_t why;
    json_t *o;

    child_wait(asker, NULL);
    child_expect(asker, label, 0, NULL, NULL);
    o = json_loads(OUT(asker), 0, &why);
    if (!o)
        fail_msg("%s: not JSON: %s\n%s", label, why.text, OUT(asker));
    child_finish(asker);
    return o;
}

json_t *rig_run(const char *label, const char *const *args)
{
    struct child c;

    child_start(&c, ESPALIER, NULL, args);
    return rig_answer(&c, label);
}

struct esp_golden *rig_trace(const char *path)
{
    struct esp_golden *g = esp_golden_open(path);

    assert_int_equal(unlink(path), 0); /* it is mapped */
    return g;
}

static bool same_tensor(const struct fixture *f, const struct esp_golden *one, const struct esp_golden *other,
                        const char *name)
{
    const struct esp_tensor *a = esp_golden_tensor(one, "%s", name),
                            *b = esp_golden_tensor(other, "%s", name);
    const bool same = a->n_bytes == b->n_bytes && memcmp(a->data, b->data, a->n_bytes) == 0;

    if (!same)
        print_error("%s: %s differs, %llu and %llu bytes\n", f->name, name, (unsigned long long)a->n_bytes,
                    (unsigned long long)b->n_bytes);
    return same;
}

bool rig_same_trace(const struct fixture *f, const struct esp_golden *one, const struct esp_golden *other,
                    unsigned n_images)
{
    static const char *const vision[] = {"patch_embeddings", "embeddings", "post_layernorm", "projector"};
    static const char *const prefill[] = {"ids", "inputs_embeds", "norm", "logits"};
    char name[64];
    bool same = true;

    for (unsigned k = 0; k < n_images; k++) {
        for (unsigned i = 0; i < 4 + f->n_enc; i++) {
            if (i < 4)
                snprintf(name, sizeof name, "vision.%u.%s", k, vision[i]);
            else
                snprintf(name, sizeof name, "vision.%u.layer.%u", k, i - 4);
            same &= same_tensor(f, one, other, name);
        }
    }
    for (unsigned i = 0; i < 4 + f->n_dec; i++) {
        if (i < 4)
            snprintf(name, sizeof name, "prefill.0.%s", prefill[i]);
        else
            snprintf(name, sizeof name, "prefill.0.layer.%u", i - 4);
        same &= same_tensor(f, one, other, name);
    }
    return same;
}

void rig_up(struct cluster *c, const char *model, unsigned n_workers, const char *option)
{
    char workers[16];

    memset(c, 0, sizeof *c);
    snprintf(workers, sizeof workers, "%u", n_workers);
    snprintf(c->model, sizeof c->model, "%s", model);
    snprintf(c->endpoint, sizeof c->endpoint, "ipc://%s/up%u", rig_dir, n_workers);
    child_start(&c->up, ESPALIER, NULL,
                (const char *[]){"up", "--model", c->model, "--bind", c->endpoint, "--workers", workers,
                                 option, NULL});
    child_wait_for(&c->up, 0, "ready: ");
}

static void start_asking(struct child *asker, const struct cluster *c, const char *command, const char *trace,
                         const char *const *args)
{
    const char *all[MAX_ARGS] = {command, "--json", "--connect", c->endpoint, "--model", c->model};
    size_t n = 6;

    if (trace) {
        all[n++] = "--trace";
        all[n++] = trace;
    }
    for (; *args; args++) {
        assert_true(n < MAX_ARGS - 1);
        all[n++] = *args;
    }
    child_start(asker, ESPALIER, NULL, all);
}

void rig_ask_start(struct child *asker, const struct cluster *c, const char *command, const char *const *args)
{
    start_asking(asker, c, command, NULL, args);
}

json_t *rig_ask(const struct cluster *c, const char *command, struct esp_golden **trace,
                const char *const *args)
{
    struct child asker;
    char path[64];
    json_t *o;

    snprintf(path, sizeof path, "%s/trace", rig_dir);
    start_asking(&asker, c, command, trace ? path : NULL, args);
    o = rig_answer(&asker, command);
    if (trace)
        *trace = rig_trace(path);
    return o;
}

void rig_down(struct cluster *c)
{
    json_t *status = rig_run("cluster status",
                             (const char *[]){"cluster", "status", "--json", "--connect", c->endpoint, NULL});

    assert_true(json_is_true(json_object_get(status, "ready")));
    assert_int_equal(json_integer_value(json_object_get(status, "epoch")),
                     1); /* nobody was lost on the way */
    assert_int_equal(json_integer_value(json_object_get(status, "sessions")), 0);
    assert_int_equal(json_integer_value(json_object_get(status, "queued")), 0);
    json_decref(status);
    c->up.started_ms = esp_now_ms(); /* the deadline is for the end alone */
    kill(c->up.pid, SIGINT);
    child_wait(&c->up, NULL);
    child_expect(&c->up, "up", 0, NULL, NULL);
    child_finish(&c->up);
    unlink(c->endpoint + strlen("ipc://"));
}
