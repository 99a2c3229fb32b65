#include "tests/sim/alone.h"

#include "tests/sim/crowd.h"
#include "tests/sim/wire.h"

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
