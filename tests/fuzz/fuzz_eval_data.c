/* A set of examples, beside the pictures of tests/golden/data/tiny: what is taken is inside its picture. */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "cli/eval_data.h"

static void check(const struct esp_eval_data *data)
{
    uint32_t line = 0;

    for (uint32_t i = 0; i < data->n_examples; i++) {
        const struct esp_eval_example *e = &data->examples[i];
        const struct esp_eval_picture *p;

        if (e->line <= line || e->picture >= data->n_pictures || !e->prompt[0] || !e->answer)
            abort();
        line = e->line;
        p = &data->pictures[e->picture];
        for (uint32_t j = 0; j < e->n_objects; j++) {
            const struct esp_eval_object *o = &e->objects[j];

            if (!o->label[0] || !(o->box[0] >= 0 && o->box[0] < o->box[2] && o->box[2] <= p->height) ||
                !(o->box[1] >= 0 && o->box[1] < o->box[3] && o->box[3] <= p->width))
                abort();
            if (e->task == ESP_EVAL_SEGMENT && (o->mask.height != p->height || o->mask.width != p->width))
                abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    char *exact = malloc(n_bytes ? n_bytes : 1);
    struct esp_err err = {.text = ""};
    struct esp_eval_data set;

    if (!exact)
        abort();
    if (n_bytes)
        memcpy(exact, data, n_bytes);
    if (esp_eval_data_parse(&set, exact, n_bytes, "tests/golden/data/tiny/set.jsonl", NULL, &err) == ESP_OK)
        check(&set);
    else if (!err.text[0] || set.n_examples || set.n_pictures)
        abort();
    esp_eval_data_finish(&set);
    free(exact);
    return 0;
}
