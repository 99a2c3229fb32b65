/* An answer's text: every byte of it is an object's, a malformed one's, or plain text, and boxes are boxes. */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "objects/parse.h"

static void check(const struct esp_objects *o, const char *answer, size_t n)
{
    size_t end = 0;

    for (size_t i = 0; i < o->n_objects; i++) {
        const struct esp_object *b = &o->object[i];

        if (b->at < end || b->n_bytes < 36 || b->n_bytes > n - b->at ||
            memcmp(answer + b->at, "<loc", 4) != 0)
            abort();
        if (b->loc[0] >= b->loc[2] || b->loc[1] >= b->loc[3] || b->loc[2] >= ESP_LOC_BINS ||
            b->loc[3] >= ESP_LOC_BINS)
            abort();
        for (int s = 0; s < ESP_N_SEG; s++)
            if (b->seg[s] < 0 || b->seg[s] >= ESP_SEG_CODES)
                abort();
        if (strlen(b->label) > b->n_bytes || strchr(b->label, ';'))
            abort();
        end = b->at + b->n_bytes;
    }
    for (size_t i = 0; i < o->n_malformed; i++)
        if (!o->malformed[i].why[0] || o->malformed[i].at >= n ||
            strncmp(answer + o->malformed[i].at, o->malformed[i].text, strlen(o->malformed[i].text)) != 0)
            abort();
    if (o->n_objects + o->n_malformed == 0 && strcmp(o->text, answer) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    char *answer = malloc(n_bytes + 1);
    struct esp_objects objects;

    if (!answer)
        abort();
    if (n_bytes)
        memcpy(answer, data, n_bytes);
    answer[n_bytes] = '\0';
    if (esp_objects_parse(&objects, answer, NULL) != ESP_OK)
        abort();
    check(&objects, answer, strlen(answer));
    esp_objects_finish(&objects);
    free(answer);
    return 0;
}
