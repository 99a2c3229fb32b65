#include "tests/sim/alone.h"

#include "tests/sim/crowd.h"
#include "tests/sim/wire.h"

struct alone alone_measure(struct fleet *f, uint32_t n_tokens)
{
    struct wire *wire = wire_start(f->tcp, 1, esp_checkpoint_config(f->ck)->text.width);
    struct crowd_ask *a;
    struct crowd c;
    struct alone m;
    struct fleet_time begun, ended;

    crowd_open(&c, f, 1);
    a = crowd_ask(&c, 0, -1, n_tokens);
    while (a->n_tok == 0)
        crowd_pump(&c, 100); /* the prefill is nobody's token */
    fleet_time(f, &begun);
    crowd_finish(&c);
    fleet_time(f, &ended);
    m.starved = fleet_starved(f, &begun, &m.late);
    m.stages = (ended.taken - begun.taken) / (n_tokens - 1);
    m.token = crowd_gap(a, 0.5);
    m.p10 = crowd_gap(a, 0.1);
    m.p90 = crowd_gap(a, 0.9);
    m.wire = wire_stop(&wire);
    m.bound = m.stages + (f->n + 1) * m.wire;
    crowd_check(&c);
    crowd_close(&c);
    return m;
}
