#include "cli/eval_data.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/input.h"
#include "model/json.h"
#include "picture/image.h"
#include "proto/wire.h"

#define MAX_FILE     ((size_t)1 << 30) /* bytes */
#define MAX_EXAMPLES 10000000u
#define MAX_OBJECTS  1000u /* of an example */
#define MAX_LABEL    255u  /* bytes */
#define LEAST_HUMANS 4u    /* below, nobody could agree with three others where one is left out */
#define MOST_HUMANS  100u

static const char *const task_names[ESP_EVAL_N_TASKS] = {"caption", "answer", "detect",
                                                         "segment", "ocr",    "other"};

const char *esp_eval_task_name(enum esp_eval_task task)
{
    return task_names[task];
}

bool esp_eval_task_of(enum esp_eval_task *out, const char *name)
{
    for (int i = 0; i < ESP_EVAL_N_TASKS; i++) {
        if (strcmp(name, task_names[i]) == 0) {
            *out = (enum esp_eval_task)i;
            return true;
        }
    }
    return false;
}

/* What is being read. */
struct reading {
    struct esp_eval_data *data;
    const char *path; /* of the file */
    uint32_t n_room;  /* examples that there is room for */
    uint32_t n_picture_room;
    json_t *known;   /* picture's name -> its number */
    char place[512]; /* "FILE:LINE" */
    crypto_generichash_state hash;
    struct esp_term *term;
    struct esp_err *err;
};

static esp_status wrong(struct reading *r, esp_status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static esp_status wrong(struct reading *r, esp_status code, const char *fmt, ...)
{
    char text[sizeof r->err->text];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return esp_fail(r->err, code, "%s: %s", r->place, text);
}

static esp_status no_memory(struct reading *r)
{
    return wrong(r, ESP_E_NOMEM, "out of memory");
}

/* ---- fields ---- */

/* A string of some field, copied. `where` names it. */
static esp_status read_text(char **out, struct reading *r, const json_t *value, const char *where,
                            size_t least, size_t most)
{
    char shown[ESP_SHOWN];
    const char *text = json_string_value(value);

    if (!value || json_is_null(value))
        return wrong(r, ESP_E_FORMAT, "%s is missing", where);
    if (!text)
        return wrong(r, ESP_E_FORMAT, "%s: found %s, expected a string", where,
                     esp_json_describe(shown, value));
    if (strlen(text) < least || strlen(text) > most)
        return wrong(r, ESP_E_FORMAT, "%s has %zu bytes, takes %zu to %zu", where, strlen(text), least, most);
    *out = strdup(text);
    return *out ? ESP_OK : no_memory(r);
}

/* A list of at most `most`. */
static esp_status read_list(const json_t **out, size_t *n, struct reading *r, const json_t *value,
                            const char *where, size_t least, size_t most)
{
    char shown[ESP_SHOWN];

    if (!value || json_is_null(value))
        return wrong(r, ESP_E_FORMAT, "%s is missing", where);
    if (!json_is_array(value))
        return wrong(r, ESP_E_FORMAT, "%s: found %s, expected a list", where,
                     esp_json_describe(shown, value));
    *n = json_array_size(value);
    if (*n < least || *n > most)
        return wrong(r, ESP_E_FORMAT, "%s: a list of %zu, takes %zu to %zu", where, *n, least, most);
    *out = value;
    return ESP_OK;
}

static esp_status read_answers(struct esp_eval_example *e, struct reading *r, const json_t *value)
{
    const json_t *list;
    size_t n;
    esp_status st = read_list(&list, &n, r, value, "answers", LEAST_HUMANS, MOST_HUMANS);

    if (st)
        return st;
    e->answers = calloc(n, sizeof *e->answers);
    if (!e->answers)
        return no_memory(r);
    for (size_t i = 0; st == ESP_OK && i < n; i++) {
        char where[32];

        snprintf(where, sizeof where, "answers[%zu]", i);
        st = read_text(&e->answers[i], r, json_array_get(list, i), where, 0, ESP_MAX_TEXT);
        e->n_answers++;
    }
    return st;
}

static esp_status read_box(double box[4], struct reading *r, const json_t *value, const char *where,
                           const struct esp_eval_picture *picture)
{
    const json_t *list;
    size_t n;
    esp_status st = read_list(&list, &n, r, value, where, 4, 4);

    if (st)
        return st;
    for (size_t i = 0; i < 4; i++) {
        char shown[ESP_SHOWN];
        const json_t *one = json_array_get(list, i);

        if (!json_is_number(one))
            return wrong(r, ESP_E_FORMAT, "%s: found %s, expected a number", where,
                         esp_json_describe(shown, one));
        box[i] = json_number_value(one);
    }
    if (!(box[0] >= 0 && box[0] < box[2] && box[2] <= picture->height && box[1] >= 0 && box[1] < box[3] &&
          box[3] <= picture->width))
        return wrong(
            r, ESP_E_FORMAT,
            "%s [%g, %g, %g, %g]: takes y0, x0, y1, x1 with y0 < y1 and x0 < x1 inside the picture's "
            "%u x %u pixels (height x width)",
            where, box[0], box[1], box[2], box[3], picture->height, picture->width);
    return ESP_OK;
}

static esp_status read_counts(struct esp_rle *out, struct reading *r, const json_t *value, const char *where,
                              const struct esp_eval_picture *picture)
{
    const size_t most = (size_t)picture->height * picture->width + 2;
    const json_t *list;
    uint32_t *counts;
    size_t n;
    struct esp_err cause;
    esp_status st;

    if (json_is_string(value)) {
        st = esp_rle_from_string(out, json_string_value(value), picture->height, picture->width, &cause);
        return st ? wrong(r, st, "%s: %s", where, cause.text) : ESP_OK;
    }
    st = read_list(&list, &n, r, value, where, 1, most);
    if (st)
        return st;
    counts = calloc(n, sizeof *counts);
    if (!counts)
        return no_memory(r);
    for (size_t i = 0; st == ESP_OK && i < n; i++) {
        const json_t *one = json_array_get(list, i);

        if (!json_is_integer(one) || json_integer_value(one) < 0 || json_integer_value(one) > UINT32_MAX)
            st = wrong(r, ESP_E_FORMAT, "%s[%zu]: no number of pixels", where, i);
        else
            counts[i] = (uint32_t)json_integer_value(one);
    }
    if (st == ESP_OK) {
        st = esp_rle_from_counts(out, counts, n, picture->height, picture->width, &cause);
        if (st)
            st = wrong(r, st, "%s: %s", where, cause.text);
    }
    free(counts);
    return st;
}

static esp_status read_mask(struct esp_rle *out, struct reading *r, const json_t *value, const char *where,
                            const struct esp_eval_picture *picture)
{
    char shown[ESP_SHOWN], inner[64];
    const json_t *size, *h, *w;
    size_t n;
    esp_status st;

    if (!value || json_is_null(value))
        return wrong(r, ESP_E_FORMAT, "%s is missing: to segment, each object needs one", where);
    if (!json_is_object(value))
        return wrong(r, ESP_E_FORMAT, "%s: found %s, expected an object", where,
                     esp_json_describe(shown, value));
    snprintf(inner, sizeof inner, "%s.size", where);
    st = read_list(&size, &n, r, json_object_get(value, "size"), inner, 2, 2);
    if (st)
        return st;
    h = json_array_get(size, 0);
    w = json_array_get(size, 1);
    if (!json_is_integer(h) || !json_is_integer(w) || json_integer_value(h) != picture->height ||
        json_integer_value(w) != picture->width)
        return wrong(r, ESP_E_FORMAT, "%s: must be the picture's [%u, %u] (height, width)", inner,
                     picture->height, picture->width);
    snprintf(inner, sizeof inner, "%s.counts", where);
    return read_counts(out, r, json_object_get(value, "counts"), inner, picture);
}

static esp_status read_objects(struct esp_eval_example *e, struct reading *r, const json_t *value)
{
    const struct esp_eval_picture *picture = &r->data->pictures[e->picture];
    const json_t *list;
    size_t n;
    esp_status st = read_list(&list, &n, r, value, "objects", 0, MAX_OBJECTS);

    if (st)
        return st;
    e->objects = calloc(n ? n : 1, sizeof *e->objects);
    if (!e->objects)
        return no_memory(r);
    for (size_t i = 0; st == ESP_OK && i < n; i++) {
        const json_t *one = json_array_get(list, i);
        struct esp_eval_object *o = &e->objects[e->n_objects++];
        char where[48], shown[ESP_SHOWN];

        snprintf(where, sizeof where, "objects[%zu]", i);
        if (!json_is_object(one))
            return wrong(r, ESP_E_FORMAT, "%s: found %s, expected an object", where,
                         esp_json_describe(shown, one));
        snprintf(where, sizeof where, "objects[%zu].label", i);
        st = read_text(&o->label, r, json_object_get(one, "label"), where, 1, MAX_LABEL);
        snprintf(where, sizeof where, "objects[%zu].box", i);
        if (st == ESP_OK)
            st = read_box(o->box, r, json_object_get(one, "box"), where, picture);
        snprintf(where, sizeof where, "objects[%zu].mask", i);
        if (st == ESP_OK && e->task == ESP_EVAL_SEGMENT)
            st = read_mask(&o->mask, r, json_object_get(one, "mask"), where, picture);
    }
    return st;
}

/* ---- pictures ---- */

static char *path_of(const char *file, const char *name)
{
    const char *slash = strrchr(file, '/');
    char *path = NULL;

    if (name[0] == '/' || !slash)
        return strdup(name);
    return asprintf(&path, "%.*s/%s", (int)(slash - file), file, name) < 0 ? NULL : path;
}

/* Reads a picture that has not been named before. Takes the name. */
static esp_status add_picture(struct reading *r, char *name)
{
    struct esp_eval_data *data = r->data;
    struct esp_eval_picture *p;
    void *bytes = NULL;
    size_t n = 0;
    struct esp_err cause;
    esp_status st;

    if (data->n_pictures == r->n_picture_room) {
        const uint32_t more = r->n_picture_room ? 2 * r->n_picture_room : 256;
        struct esp_eval_picture *grown = realloc(data->pictures, more * sizeof *grown);

        if (!grown) {
            free(name);
            return no_memory(r);
        }
        data->pictures = grown;
        r->n_picture_room = more;
    }
    p = &data->pictures[data->n_pictures++];
    *p = (struct esp_eval_picture){.name = name, .path = path_of(r->path, name)};
    if (!p->path || json_object_set_new(r->known, name, json_integer(data->n_pictures - 1)) != 0)
        return no_memory(r);
    if (strcmp(p->path, "-") == 0)
        return wrong(r, ESP_E_FORMAT, "image: standard input is no place for it");
    st = esp_input_picture(&bytes, &n, p->path, &cause);
    if (st)
        return wrong(r, st, "image: %s", cause.text);
    st = esp_image_size(&p->width, &p->height, bytes, n, NULL, &cause);
    if (st)
        st = wrong(r, st, "image: %s: %s", p->path, cause.text);
    else {
        uint8_t hash[ESP_EVAL_HASH_BYTES];

        crypto_generichash(hash, sizeof hash, bytes, n, NULL, 0);
        crypto_generichash_update(&r->hash, hash, sizeof hash);
    }
    free(bytes);
    if (r->term)
        esp_term_progress(r->term, "reading the set: %u pictures", data->n_pictures);
    return st;
}

static esp_status read_picture(struct esp_eval_example *e, struct reading *r, const json_t *value)
{
    const json_t *known;
    char *name;
    esp_status st = read_text(&name, r, value, "image", 1, 4096);

    if (st)
        return st;
    known = json_object_get(r->known, name);
    if (known) {
        e->picture = (uint32_t)json_integer_value(known);
        free(name);
        return ESP_OK;
    }
    e->picture = r->data->n_pictures;
    return add_picture(r, name);
}

/* ---- lines ---- */

static enum esp_eval_task task_of(const char *prompt)
{
    char word[16];
    enum esp_eval_task task = ESP_EVAL_OTHER;

    if (sscanf(prompt, "%15s", word) == 1)
        (void)esp_eval_task_of(&task, word);
    return task;
}

static esp_status read_example(struct esp_eval_example *e, struct reading *r, const json_t *o)
{
    esp_status st = read_text(&e->prompt, r, json_object_get(o, "prompt"), "prompt", 1, ESP_MAX_TEXT);
    const json_t *answers = json_object_get(o, "answers");

    if (st == ESP_OK)
        st = read_text(&e->answer, r, json_object_get(o, "answer"), "answer", 0, ESP_MAX_TEXT);
    if (st == ESP_OK) {
        e->task = task_of(e->prompt);
        st = read_picture(e, r, json_object_get(o, "image"));
    }
    if (st == ESP_OK && e->task == ESP_EVAL_ANSWER && answers && !json_is_null(answers))
        st = read_answers(e, r, answers);
    if (st == ESP_OK && (e->task == ESP_EVAL_DETECT || e->task == ESP_EVAL_SEGMENT))
        st = read_objects(e, r, json_object_get(o, "objects"));
    return st;
}

static bool is_blank(const char *line, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strchr(" \t\r", line[i]) || !line[i])
            return false;
    return true;
}

static esp_status read_line(struct reading *r, const char *line, size_t n, uint32_t number)
{
    struct esp_eval_data *data = r->data;
    struct esp_eval_example *e;
    json_t *o;
    esp_status st;

    if (is_blank(line, n))
        return ESP_OK;
    snprintf(r->place, sizeof r->place, "%.400s:%u", r->path, number);
    if (data->n_examples == MAX_EXAMPLES)
        return wrong(r, ESP_E_LIMIT, "more than %u examples", MAX_EXAMPLES);
    if (data->n_examples == r->n_room) {
        const uint32_t more = r->n_room ? 2 * r->n_room : 256;
        struct esp_eval_example *grown = realloc(data->examples, more * sizeof *grown);

        if (!grown)
            return no_memory(r);
        data->examples = grown;
        r->n_room = more;
    }
    st = esp_json_parse(&o, line, n, r->place, r->err);
    if (st)
        return st;
    e = &data->examples[data->n_examples++];
    *e = (struct esp_eval_example){.line = number};
    st = read_example(e, r, o);
    json_decref(o);
    return st;
}

static esp_status read_lines(struct reading *r, const char *text, size_t n)
{
    esp_status st = ESP_OK;
    uint32_t number = 1;

    for (const char *line = text, *end; st == ESP_OK && line < text + n; line = end + 1, number++) {
        end = memchr(line, '\n', n - (size_t)(line - text));
        if (!end)
            end = text + n;
        st = read_line(r, line, (size_t)(end - line), number);
    }
    if (st == ESP_OK && r->data->n_examples == 0)
        st = esp_fail(r->err, ESP_E_FORMAT, "%s: no examples in it", r->path);
    return st;
}

esp_status esp_eval_data_parse(struct esp_eval_data *out, const char *text, size_t n_bytes, const char *path,
                               struct esp_term *term, struct esp_err *err)
{
    struct esp_err cause;
    struct reading r = {.data = out, .path = path, .term = term, .err = err ? err : &cause};
    esp_status st;

    memset(out, 0, sizeof *out);
    if (sodium_init() < 0)
        return esp_fail(err, ESP_E_INTERNAL, "libsodium cannot be used");
    r.known = json_object();
    crypto_generichash_init(&r.hash, NULL, 0, ESP_EVAL_HASH_BYTES);
    crypto_generichash_update(&r.hash, (const unsigned char *)text, n_bytes);
    st = r.known ? read_lines(&r, text, n_bytes) : esp_fail(err, ESP_E_NOMEM, "%s: out of memory", path);
    crypto_generichash_final(&r.hash, out->hash, ESP_EVAL_HASH_BYTES);
    json_decref(r.known);
    if (st)
        esp_eval_data_finish(out);
    return st;
}

esp_status esp_eval_data_read(struct esp_eval_data *out, const char *path, struct esp_term *term,
                              struct esp_err *err)
{
    struct esp_err cause;
    void *text;
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    esp_status st;

    memset(out, 0, sizeof *out);
    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    st = esp_input_read(&text, &n, fd, path, 1 << 20, MAX_FILE, err ? err : &cause);
    close(fd);
    if (st == ESP_OK)
        st = esp_eval_data_parse(out, text, n, path, term, err);
    free(text);
    return st;
}

void esp_eval_data_finish(struct esp_eval_data *data)
{
    for (uint32_t i = 0; i < data->n_examples; i++) {
        struct esp_eval_example *e = &data->examples[i];

        free(e->prompt);
        free(e->answer);
        for (uint32_t j = 0; j < e->n_answers; j++)
            free(e->answers[j]);
        free(e->answers);
        for (uint32_t j = 0; j < e->n_objects; j++) {
            free(e->objects[j].label);
            esp_rle_finish(&e->objects[j].mask);
        }
        free(e->objects);
    }
    for (uint32_t i = 0; i < data->n_pictures; i++) {
        free(data->pictures[i].name);
        free(data->pictures[i].path);
    }
    free(data->examples);
    free(data->pictures);
    memset(data, 0, sizeof *data);
}
