#include "coordinator/meter.h"

#include <math.h>
#include <string.h>

static int64_t slot_of(double time)
{
    return (int64_t)floor(time / ESP_METER_SLOT_S);
}

/* Makes `slot` the newest, unless there is a newer one: those that it leaves behind the window are emptied. */
static void reach(struct esp_meter *m, int64_t slot)
{
    if (slot - m->newest >= ESP_METER_SLOTS)
        memset(m->amount, 0, sizeof m->amount);
    else
        for (int64_t i = m->newest + 1; i <= slot; i++)
            m->amount[i % ESP_METER_SLOTS] = 0;
    if (slot > m->newest)
        m->newest = slot;
}

void esp_meter_add(struct esp_meter *meter, double from, double to, double amount)
{
    const int64_t last = slot_of(to);
    int64_t first = slot_of(from);

    if (!isfinite(amount) || amount < 0 || !(from >= 0) || !(to >= from))
        return;
    reach(meter, last);
    if (first <= meter->newest - ESP_METER_SLOTS)
        first = meter->newest - ESP_METER_SLOTS + 1;
    for (int64_t i = first; i <= last; i++) {
        const double lo = fmax(from, (double)i * ESP_METER_SLOT_S),
                     hi = fmin(to, (double)(i + 1) * ESP_METER_SLOT_S);

        meter->amount[i % ESP_METER_SLOTS] += to > from ? amount * (hi - lo) / (to - from) : amount;
    }
}

double esp_meter_rate(struct esp_meter *meter, double now)
{
    const int64_t slot = slot_of(now);
    const double begin = (double)(slot - ESP_METER_SLOTS + 1) * ESP_METER_SLOT_S;
    double sum = 0;

    reach(meter, slot);
    for (int i = 0; i < ESP_METER_SLOTS; i++)
        sum += meter->amount[i];
    return sum / (now - begin);
}
