#include "tests/sim/alone.h"

#include <stdio.h>
#include <string.h>

#include "tests/sim/crowd.h"
#include "tests/sim/wire.h"

void alone_start(struct fleet *f, uint32_t n_stages, const struct sim_profile *profile)
{
    char split[256] = "", n[16];
    const char *args[] = {"--workers", n, "--split", split, "--context", "512", "--kv-tokens", "4096", NULL};

    snprintf(n, sizeof n, "%u", n_stages);
    for (uint32_t i = 0, lo = 0; i < n_stages; i++) {
        const uint32_t hi = FLEET_DEC_LAYERS * (i + 1) / n_stages;

        snprintf(split + strlen(split), sizeof split - strlen(split), "%s%d/%u", i ? "," : "",
                 i ? 0 : FLEET_ENC_LAYERS, hi - lo);
        lo = hi;
    }
    fleet_start(f, true, args);
    for (uint32_t i = 0; i < n_stages; i++)
        fleet_add(f, FLEET_THREAD, profile);
    fleet_until_ready(f, n_stages);
}

static double taken(struct fleet *f)
{
    double s = 0;

    for (uint32_t i = 0; i < f->n; i++)
        s += 1e-9 * (double)atomic_load(&f->w[i].device.count.taken_ns);
    return s;
}

struct alone alone_measure(struct fleet *f, uint32_t n_tokens)
{
    struct wire *wire = wire_start(f->tcp, 1, esp_checkpoint_config(f->ck)->text.width);
    struct crowd_ask *a;
    struct crowd c;
    struct alone m;
    double begun;

    crowd_open(&c, f, 1);
    a = crowd_ask(&c, 0, -1, n_tokens);
    while (a->n_tok == 0)
        crowd_pump(&c, 100); /* the prefill is nobody's token */
    begun = taken(f);
    crowd_finish(&c);
    m.stages = (taken(f) - begun) / (n_tokens - 1);
    m.token = crowd_gap(a, 0.5);
    m.p10 = crowd_gap(a, 0.1);
    m.p90 = crowd_gap(a, 0.9);
    m.wire = wire_stop(&wire);
    m.bound = m.stages + (f->n + 1) * m.wire;
    crowd_check(&c);
    crowd_close(&c);
    return m;
}
