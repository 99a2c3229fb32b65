#include "cli/eval_results.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/report.h"
#include "cli/report_json.h"
#include "model/json.h"
#include "proto/wire.h"

#define FORMAT     1
#define MAX_LINE   (64u << 20) /* bytes */
#define READ_BYTES 65536
#define MAX_IDS    (1u << 20)

struct esp_eval_results {
    char *path;
    int fd;
    const struct esp_eval_data *data;
};

/* ---- what is there ---- */

struct reader {
    struct esp_eval_results *results;
    const struct esp_eval_header *header;
    esp_status (*heard)(void *self, uint32_t example, const struct esp_eval_answer *answer,
                        struct esp_err *err);
    void *self;
    uint32_t n_lines;
    char place[512]; /* "FILE:LINE" */
};

static json_t *hash_json(const uint8_t hash[32])
{
    char hex[65];

    return json_string(sodium_bin2hex(hex, sizeof hex, hash, 32));
}

static json_t *header_json(const struct esp_eval_header *header)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "espalier_eval", json_integer(FORMAT));
    SET(o, "data", hash_json(header->data));
    SET(o, "model", hash_json(header->model));
    SET(o, "weights", json_string(esp_wtype_name(header->weights)));
    SET(o, "decoding", json_incref(header->decoding));
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

static esp_status check_header(struct reader *r, const json_t *o, struct esp_err *err)
{
    static const struct {
        const char *key, *what;
    } parts[] = {{"data", "another set of examples (the file or a picture of it is not what it was)"},
                 {"model", "another model"},
                 {"weights", "weights held as another type"},
                 {"decoding", "other options of decoding"}};
    const json_t *format = json_object_get(o, "espalier_eval");
    json_t *ours;
    esp_status st = ESP_OK;

    if (!json_is_integer(format))
        return esp_fail(err, ESP_E_FORMAT, "%s: no results of 'espalier eval'; name another file with --out",
                        r->place);
    if (json_integer_value(format) != FORMAT)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s: results in format %lld, this program has format %d",
                        r->place, (long long)json_integer_value(format), FORMAT);
    ours = header_json(r->header);
    if (!ours)
        return esp_fail(err, ESP_E_NOMEM, "%s: out of memory", r->place);
    for (size_t i = 0; st == ESP_OK && i < sizeof parts / sizeof parts[0]; i++)
        if (!json_equal(json_object_get(o, parts[i].key), json_object_get(ours, parts[i].key)) &&
            (strcmp(parts[i].key, "weights") != 0 || json_object_get(o, "weights") ||
             r->header->weights != ESP_W_STORED))
            st = esp_fail(err, ESP_E_FORMAT, "%s: these are results of %s; name another file with --out",
                          r->place, parts[i].what);
    json_decref(ours);
    return st;
}

/* The number of the example that stands in that line of the data; false: none does. */
static bool example_of(uint32_t *out, const struct esp_eval_data *data, json_int_t line)
{
    uint32_t lo = 0, hi = data->n_examples;

    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;

        if (data->examples[mid].line < line)
            lo = mid + 1;
        else
            hi = mid;
    }
    *out = lo;
    return lo < data->n_examples && data->examples[lo].line == line;
}

static esp_status take_tokens(struct esp_eval_answer *answer, struct reader *r, const json_t *ids,
                              const json_t *logprobs, struct esp_err *err)
{
    const size_t n = json_array_size(ids);

    if (!json_is_array(ids) || !json_is_array(logprobs) || n != json_array_size(logprobs) || n > MAX_IDS)
        return esp_fail(err, ESP_E_FORMAT, "%s: ids and logprobs must be lists of one length", r->place);
    answer->ids = calloc(n + 1, sizeof *answer->ids);
    answer->logprobs = calloc(n + 1, sizeof *answer->logprobs);
    if (!answer->ids || !answer->logprobs)
        return esp_fail(err, ESP_E_NOMEM, "%s: out of memory", r->place);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(ids, i), *p = json_array_get(logprobs, i);

        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > UINT32_MAX ||
            !(json_is_null(p) || (json_is_number(p) && json_number_value(p) <= 1e-6)))
            return esp_fail(err, ESP_E_FORMAT, "%s: token %zu has no id or no log-probability", r->place, i);
        answer->ids[i] = (uint32_t)json_integer_value(id);
        answer->logprobs[i] = json_is_null(p) ? -INFINITY : json_number_value(p);
    }
    answer->n_ids = (uint32_t)n;
    return ESP_OK;
}

static esp_status read_answer(struct reader *r, const json_t *o, struct esp_err *err)
{
    const json_t *line = json_object_get(o, "line");
    const char *prompt = json_string_value(json_object_get(o, "prompt"));
    const char *text = json_string_value(json_object_get(o, "text"));
    const char *finish = json_string_value(json_object_get(o, "finish"));
    struct esp_eval_answer answer = {0};
    uint32_t example;
    esp_status st;

    if (!json_is_integer(line) || !example_of(&example, r->results->data, json_integer_value(line)) ||
        !prompt || strcmp(prompt, r->results->data->examples[example].prompt) != 0)
        return esp_fail(err, ESP_E_FORMAT, "%s: about no example of the set", r->place);
    if (json_is_string(json_object_get(o, "error"))) /* will be asked again */
        return ESP_OK;
    if (!text || !finish)
        return esp_fail(err, ESP_E_FORMAT, "%s: neither an answer nor an error", r->place);
    answer.text = strdup(text);
    answer.finish = strdup(finish);
    st = answer.text && answer.finish ? ESP_OK : esp_fail(err, ESP_E_NOMEM, "%s: out of memory", r->place);
    if (st == ESP_OK)
        st = take_tokens(&answer, r, json_object_get(o, "ids"), json_object_get(o, "logprobs"), err);
    if (st == ESP_OK)
        st = r->heard(r->self, example, &answer, err);
    esp_eval_answer_finish(&answer);
    return st;
}

static esp_status read_line(struct reader *r, const char *line, size_t n, struct esp_err *err)
{
    json_t *o;
    esp_status st;

    snprintf(r->place, sizeof r->place, "%.400s:%u", r->results->path, ++r->n_lines);
    st = esp_json_parse(&o, line, n, r->place, err);
    if (st)
        return st;
    st = r->n_lines == 1 ? check_header(r, o, err) : read_answer(r, o, err);
    json_decref(o);
    return st;
}

/* As every line is written: the same numbers give the same text, whatever jansson's own way is. NULL without memory. */
static char *line_text(const json_t *o)
{
    return json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17));
}

/* What a file without a single whole line may hold: nothing, or the beginning of our header. Nobody's work is cut off. */
static esp_status check_torn_header(struct reader *r, const char *bytes, size_t n, struct esp_err *err)
{
    json_t *o = header_json(r->header);
    char *text = o ? line_text(o) : NULL;
    esp_status st = ESP_OK;

    json_decref(o);
    if (!text)
        st = esp_fail(err, ESP_E_NOMEM, "%s: out of memory", r->results->path);
    else if (n > strlen(text) || memcmp(bytes, text, n) != 0)
        st = esp_fail(err, ESP_E_FORMAT, "%s: no results of 'espalier eval'; name another file with --out",
                      r->results->path);
    free(text);
    return st;
}

/* Every whole line. @param n_whole  bytes of them */
static esp_status read_lines(struct reader *r, off_t *n_whole, struct esp_err *err)
{
    char *buf = NULL;
    size_t n = 0, n_room = 0;
    esp_status st = ESP_OK;

    *n_whole = 0;
    while (st == ESP_OK) {
        char *start = buf, *end;
        ssize_t got;

        if (n_room - n < READ_BYTES) {
            char *grown = n > MAX_LINE ? NULL : realloc(buf, n_room + 2 * READ_BYTES);

            if (!grown) {
                st = esp_fail(err, n > MAX_LINE ? ESP_E_LIMIT : ESP_E_NOMEM,
                              "%s:%u: a line of more than %zu bytes", r->results->path, r->n_lines + 1, n);
                break;
            }
            buf = grown;
            n_room += 2 * READ_BYTES;
        }
        got = read(r->results->fd, buf + n, READ_BYTES);
        if (got < 0) {
            st = esp_fail(err, ESP_E_IO, "%s: %s", r->results->path, strerror(errno));
            break;
        }
        if (got == 0)
            break;
        start = buf;
        end = memchr(buf + n, '\n', (size_t)got);
        n += (size_t)got;
        while (st == ESP_OK && end) {
            st = read_line(r, start, (size_t)(end - start), err);
            *n_whole += end + 1 - start;
            start = end + 1;
            end = memchr(start, '\n', n - (size_t)(start - buf));
        }
        n -= (size_t)(start - buf);
        memmove(buf, start, n);
    }
    if (st == ESP_OK && r->n_lines == 0 && n > 0)
        st = check_torn_header(r, buf, n, err);
    free(buf);
    return st;
}

/* ---- writing ---- */

/* Appends a line. Takes the object. */
static esp_status write_line(struct esp_eval_results *results, json_t *o, struct esp_err *err)
{
    char *text = o ? line_text(o) : NULL, *line = NULL;
    int n = text ? asprintf(&line, "%s\n", text) : -1;
    esp_status st = ESP_OK;

    json_decref(o);
    free(text);
    if (n < 0)
        return esp_fail(err, ESP_E_NOMEM, "%s: out of memory", results->path);
    for (const char *at = line; st == ESP_OK && n > 0;) {
        const ssize_t wrote = write(results->fd, at, (size_t)n);

        if (wrote > 0) {
            at += wrote;
            n -= (int)wrote;
        } else if (wrote == 0 || errno != EINTR) {
            st = esp_fail(err, ESP_E_IO, "%s: %s", results->path,
                          wrote < 0 ? strerror(errno) : "nothing written");
        }
    }
    free(line);
    return st;
}

static json_t *about(const struct esp_eval_results *results, uint32_t example)
{
    const struct esp_eval_example *e = &results->data->examples[example];
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "line", json_integer(e->line));
    SET(o, "image", json_string(results->data->pictures[e->picture].name));
    SET(o, "prompt", json_string(e->prompt));
    SET(o, "answer", json_string(e->answer));
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

esp_status esp_eval_results_answer(struct esp_eval_results *results, uint32_t example,
                                   const struct esp_eval_answer *answer, json_t *scores, struct esp_err *err)
{
    json_t *o = about(results, example);
    bool ok = o != NULL;

    SET(o, "text", json_string(answer->text));
    SET(o, "ids", esp_json_ids(answer->ids, answer->n_ids));
    SET(o, "logprobs", esp_json_numbers(answer->logprobs, answer->n_ids));
    SET(o, "finish", json_string(answer->finish));
    SET(o, "scores", scores);
    if (!ok) {
        json_decref(o);
        o = NULL;
    }
    return write_line(results, o, err);
}

esp_status esp_eval_results_failure(struct esp_eval_results *results, uint32_t example, const char *why,
                                    struct esp_err *err)
{
    json_t *o = about(results, example);
    bool ok = o != NULL;

    SET(o, "error", json_string(why));
    if (!ok) {
        json_decref(o);
        o = NULL;
    }
    return write_line(results, o, err);
}

/* ---- opening ---- */

static esp_status open_file(struct esp_eval_results *results, struct esp_err *err)
{
    struct stat info;

    results->fd = open(results->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0666);
    if (results->fd < 0 || fstat(results->fd, &info) != 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", results->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return esp_fail(err, ESP_E_IO, "%s: not a regular file", results->path);
    if (flock(results->fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? esp_fail(err, ESP_E_ARG, "%s: another evaluation is writing to it", results->path)
                   : esp_fail(err, ESP_E_IO, "%s: %s", results->path, strerror(errno));
    return ESP_OK;
}

esp_status esp_eval_results_open(struct esp_eval_results **out, const char *path,
                                 const struct esp_eval_data *data, const struct esp_eval_header *header,
                                 esp_status (*heard)(void *self, uint32_t example,
                                                     const struct esp_eval_answer *answer,
                                                     struct esp_err *err),
                                 void *self, struct esp_err *err)
{
    struct esp_eval_results *results = calloc(1, sizeof *results);
    struct reader r = {.results = results, .header = header, .heard = heard, .self = self};
    off_t n_whole = 0;
    esp_status st;

    *out = NULL;
    if (results) {
        results->fd = -1;
        results->data = data;
        results->path = strdup(path);
    }
    if (!results || !results->path) {
        esp_eval_results_close(&results);
        return esp_fail(err, ESP_E_NOMEM, "%s: out of memory", path);
    }
    st = open_file(results, err);
    if (st == ESP_OK)
        st = read_lines(&r, &n_whole, err);
    if (st == ESP_OK && ftruncate(results->fd, n_whole) != 0)
        st = esp_fail(err, ESP_E_IO, "%s: %s", path, strerror(errno));
    if (st == ESP_OK && r.n_lines == 0)
        st = write_line(results, header_json(header), err);
    if (st)
        esp_eval_results_close(&results);
    *out = results;
    return st;
}

void esp_eval_results_close(struct esp_eval_results **results)
{
    if (!*results)
        return;
    if ((*results)->fd >= 0)
        close((*results)->fd);
    free((*results)->path);
    free(*results);
    *results = NULL;
}
