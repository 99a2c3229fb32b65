#include "cli/trace.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tensor {
    char name[128];
    const char *dtype;
    json_int_t shape[2];
    size_t n_dim;
    const void *data;
    size_t n_bytes;
};

/* Pictures by the coordinator's ids, which grow: the rank of this one among those traced. */
static uint32_t image_rank(const struct esp_reply *reply, uint64_t image)
{
    uint32_t rank = 0;

    for (uint32_t i = 0; i < reply->n_traces; i++) {
        uint64_t other = reply->traces[i]->trace.image;
        bool first = other != 0 && other < image;
        for (uint32_t j = 0; first && j < i; j++)
            first = reply->traces[j]->trace.image != other;
        rank += first;
    }
    return rank;
}

static void golden_name(char *out, size_t n_out, const struct esp_reply *reply, const struct esp_msg_trace *t)
{
    const char *dot = strchr(t->name, '.');

    if (dot)
        snprintf(out, n_out, "%.*s.%u%s", (int)(dot - t->name), t->name,
                 t->image ? image_rank(reply, t->image) : 0, dot);
    else
        snprintf(out, n_out, "%s", t->name);
}

static uint32_t gather(struct tensor *tensors, const struct esp_reply *reply)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < reply->n_traces; i++) {
        const struct esp_msg *m = reply->traces[i];
        struct tensor *t = &tensors[n];
        bool twice = false;

        golden_name(t->name, sizeof t->name, reply, &m->trace);
        for (uint32_t j = 0; j < n; j++)
            twice |= strcmp(tensors[j].name, t->name) == 0;
        if (twice)
            continue;
        t->dtype = "F32";
        t->n_dim = 2;
        t->shape[0] = m->trace.rows;
        t->shape[1] = m->trace.width;
        t->data = m->blob[0].data;
        t->n_bytes = m->blob[0].n_bytes;
        n++;
    }
    return n;
}

/* Header text, padded with spaces so that the data starts at a multiple of 8. */
static esp_status make_header(char **out, const struct tensor *tensors, uint32_t n, struct esp_err *err)
{
    json_t *root = json_object();
    size_t at = 0, n_text, n_padded;
    char *text = NULL, *grown;
    bool ok = root != NULL;

    for (uint32_t i = 0; ok && i < n; i++) {
        const struct tensor *t = &tensors[i];
        json_t *shape =
            t->n_dim == 2 ? json_pack("[II]", t->shape[0], t->shape[1]) : json_pack("[I]", t->shape[0]);
        json_t *entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", t->dtype, "shape", shape, "data_offsets",
                                  (json_int_t)at, (json_int_t)(at + t->n_bytes));
        at += t->n_bytes;
        ok = entry && json_object_set_new(root, t->name, entry) == 0;
    }
    if (ok)
        text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!text)
        return esp_fail(err, ESP_E_NOMEM, "trace: out of memory");
    n_text = strlen(text);
    n_padded = esp_round_up(n_text, 8);
    grown = realloc(text, n_padded + 1);
    if (!grown) {
        free(text);
        return esp_fail(err, ESP_E_NOMEM, "trace: out of memory");
    }
    memset(grown + n_text, ' ', n_padded - n_text);
    grown[n_padded] = '\0';
    *out = grown;
    return ESP_OK;
}

static bool put_u64(FILE *f, uint64_t v)
{
    unsigned char b[8];
    for (int i = 0; i < 8; i++)
        b[i] = (unsigned char)(v >> (8 * i));
    return fwrite(b, 1, sizeof b, f) == sizeof b;
}

esp_status esp_trace_write(const char *path, const struct esp_reply *reply, bool has_image_token,
                           uint32_t image_token, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const struct esp_msg_accepted *a = &reply->accepted->accepted;
    struct tensor *tensors = calloc((size_t)reply->n_traces + 1, sizeof *tensors);
    size_t n_ids = (size_t)a->image_tokens + a->n_prompt_ids;
    uint32_t *ids = calloc(n_ids + 1, sizeof *ids);
    char *header = NULL;
    FILE *f = NULL;
    uint32_t n;
    bool ok;

    if (!tensors || !ids) {
        st = esp_fail(err, ESP_E_NOMEM, "trace: out of memory");
        goto done;
    }
    n = gather(tensors, reply);
    if (has_image_token) {
        for (size_t i = 0; i < n_ids; i++)
            ids[i] = i < a->image_tokens ? image_token : a->prompt_ids[i - a->image_tokens];
        tensors[n++] = (struct tensor){.name = "prefill.0.ids",
                                       .dtype = "I32",
                                       .shape = {(json_int_t)n_ids},
                                       .n_dim = 1,
                                       .data = ids,
                                       .n_bytes = n_ids * sizeof *ids};
    }
    st = make_header(&header, tensors, n, err);
    if (st)
        goto done;
    f = fopen(path, "wbe");
    if (!f) {
        st = esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
        goto done;
    }
    ok = put_u64(f, strlen(header)) && fputs(header, f) >= 0;
    for (uint32_t i = 0; ok && i < n; i++)
        ok = fwrite(tensors[i].data, 1, tensors[i].n_bytes, f) == tensors[i].n_bytes;
    ok = fclose(f) == 0 && ok;
    if (!ok)
        st = esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
done:
    free(header);
    free(ids);
    free(tensors);
    return st;
}
