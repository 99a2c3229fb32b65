#include "model/shard_index.h"

#include <stdlib.h>
#include <string.h>

#include "model/json.h"

struct esp_shard_index {
    json_t *root; /* keeps the strings */
    size_t n_entry, n_file;
    struct esp_shard_entry *entry;
    const char **file;
};

/* What a name could reach beyond the directory is not ours to open. */
static bool plain_file_name(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           strlen(name) < 256;
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static esp_status parse(struct esp_shard_index *x, const char *text, size_t n_bytes, const char *path,
                        struct esp_err *err)
{
    json_t *map, *value;
    const char *tensor;
    char shown[ESP_SHOWN], found[ESP_SHOWN];
    esp_status st = esp_json_parse(&x->root, text, n_bytes, path, err);

    if (st)
        return st;
    map = json_object_get(x->root, "weight_map");
    if (!json_is_object(map))
        return esp_fail(err, ESP_E_FORMAT,
                        "%s: weight_map: found %s, expected an object of tensor and file names", path,
                        map ? esp_json_describe(found, map) : "nothing");
    x->entry = calloc(json_object_size(map) + 1, sizeof *x->entry);
    x->file = calloc(json_object_size(map) + 1, sizeof(char *));
    if (!x->entry || !x->file)
        return esp_fail(err, ESP_E_NOMEM, "%s: %zu names", path, json_object_size(map));
    json_object_foreach(map, tensor, value)
    {
        if (!json_is_string(value) || !plain_file_name(json_string_value(value)))
            return esp_fail(err, ESP_E_FORMAT,
                            "%s: weight_map: %s: found %s, expected the name of a file beside it", path,
                            esp_shown(shown, tensor), esp_json_describe(found, value));
        x->file[x->n_entry] = json_string_value(value);
        x->entry[x->n_entry++] = (struct esp_shard_entry){tensor, json_string_value(value)};
    }
    qsort(x->file, x->n_entry, sizeof *x->file, compare_strings);
    for (size_t i = 0; i < x->n_entry; i++) {
        if (i == 0 || strcmp(x->file[x->n_file - 1], x->file[i]) != 0)
            x->file[x->n_file++] = x->file[i];
    }
    if (x->n_file == 0 || x->n_file > ESP_MAX_SHARDS)
        return esp_fail(err, ESP_E_FORMAT, "%s: weight_map: names %zu files, expected 1..%u", path, x->n_file,
                        ESP_MAX_SHARDS);
    return ESP_OK;
}

esp_status esp_shard_index_parse(struct esp_shard_index **out, const char *text, size_t n_bytes,
                                 const char *path, struct esp_err *err)
{
    struct esp_shard_index *x = calloc(1, sizeof *x);
    esp_status st;

    *out = NULL;
    if (!x)
        return esp_fail(err, ESP_E_NOMEM, "%s: its description", path);
    st = parse(x, text, n_bytes, path, err);
    if (st)
        esp_shard_index_destroy(&x);
    *out = x;
    return st;
}

void esp_shard_index_destroy(struct esp_shard_index **index)
{
    struct esp_shard_index *x = *index;

    *index = NULL;
    if (!x)
        return;
    free(x->entry);
    free(x->file);
    json_decref(x->root);
    free(x);
}

size_t esp_shard_index_n_file(const struct esp_shard_index *index)
{
    return index->n_file;
}

const char *esp_shard_index_file(const struct esp_shard_index *index, size_t i)
{
    return index->file[i];
}

size_t esp_shard_index_n_entry(const struct esp_shard_index *index)
{
    return index->n_entry;
}

struct esp_shard_entry esp_shard_index_entry(const struct esp_shard_index *index, size_t i)
{
    return index->entry[i];
}
