/* A warm placement: loaded in slices, between the work of the one that holds. */
#include "worker/runner_state.h"

#define ASK_AGAIN_NS UINT64_C(20000000) /* when bytes have not come yet */
#define WORK_A_SLICE 2 /* work that waits gets so much more of the thread's time than slices */
#define SLICE_NS     UINT64_C(50000000) /* a slice should not take longer: a slow disk's are smaller */
#define SLICE_LEAST  (UINT64_C(2) << 20)

void esp_runner_warm_begin(struct esp_runner *r, struct esp_work *work)
{
    r->warm = work;
    r->warm_begun_ns = esp_now_ns();
    r->warm_after_ns = r->slice_ns = r->worked_ns = r->progress_ns = 0;
    r->slice_bytes = ESP_SHELF_SLICE;
    r->warm_loaded = false;
    esp_runner_set_aside(r);
}

static void warm_end(struct esp_runner *r)
{
    struct esp_work *work = r->warm;

    if (!work)
        return;
    r->warm = NULL;
    work->load_seconds = 1e-9 * (double)(esp_now_ns() - r->warm_begun_ns);
    esp_runner_hand_back(r, work, false);
}

void esp_runner_warm_supersede(struct esp_runner *r)
{
    if (r->warm)
        r->warm->status = esp_fail(&r->warm->err, ESP_E_CANCELLED, "another placement came");
    warm_end(r);
}

/* The kernels too, one at a time: a compiler would have everybody wait when layers change hands. */
static void prepare(struct esp_runner *r, struct esp_work *work, const struct esp_stage_spec *spec)
{
    uint64_t start = esp_now_ns();
    struct esp_err err;
    esp_status st = esp_stage_prepare(r->shelf, spec, !r->stage, &err);

    r->slice_ns = esp_now_ns() - start;
    r->worked_ns = 0;
    if (st == ESP_E_TIMEOUT)
        return;
    if (st == ESP_E_DEVICE) { /* whatever else is wrong, the placement will say */
        work->status = esp_fail(&work->err, ESP_E_DEVICE, "%s", err.text);
        r->dead = true;
    }
    warm_end(r);
}

void esp_runner_warm_slice(struct esp_runner *r)
{
    struct esp_work *work = r->warm;
    const struct esp_stage_spec spec = esp_runner_spec(&work->msg.place);
    uint64_t start = esp_now_ns();
    struct esp_shelf_slice slice = {0};

    if (r->warm_loaded && !r->dead) {
        prepare(r, work, &spec);
        return;
    }
    if (r->dead)
        work->status = esp_fail(&work->err, ESP_E_DEVICE, "the device is lost");
    else
        work->status = esp_shelf_load(r->shelf, &spec, r->slice_bytes, &slice, &work->err);
    work->info.loaded_bytes += slice.loaded_bytes;
    work->info.weight_bytes = slice.weight_bytes;
    r->slice_ns = esp_now_ns() - start;
    if (r->slice_ns > SLICE_NS && r->slice_bytes > SLICE_LEAST)
        r->slice_bytes /= 2;
    else if (r->slice_ns < SLICE_NS / 4 && r->slice_bytes < ESP_SHELF_SLICE)
        r->slice_bytes *= 2;
    r->worked_ns = 0;
    r->warm_after_ns = 0;
    if (work->status == ESP_E_TIMEOUT) { /* not yet */
        work->status = ESP_OK;
        r->warm_after_ns = esp_now_ns() + ASK_AGAIN_NS;
    } else if (work->status == ESP_E_DEVICE) {
        r->dead = true;
    }
    if (slice.lacking_bytes > 0)
        esp_runner_tell_loading(r, work, work->info.loaded_bytes,
                                work->info.loaded_bytes + slice.lacking_bytes);
    r->warm_loaded = !work->status && !r->warm_after_ns && slice.lacking_bytes == 0;
    if (work->status)
        warm_end(r);
}

bool esp_runner_warm_due(const struct esp_runner *r, bool work_waits)
{
    if (!r->warm || (r->warm_after_ns && esp_now_ns() < r->warm_after_ns))
        return false;
    return !work_waits || r->worked_ns >= WORK_A_SLICE * r->slice_ns;
}
