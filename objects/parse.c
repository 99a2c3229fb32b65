#include "objects/parse.h"

#include <stdlib.h>
#include <string.h>

enum token_kind { NO_TOKEN, LOC, SEG, BROKEN };

struct token {
    enum token_kind kind;
    uint32_t code;
    size_t n_bytes;
};

/* A run of tokens, with spaces at most between them. */
struct run {
    size_t at, end; /* bytes of the answer; end is behind the last token */
    uint32_t n_loc, n_seg;
    uint16_t loc[4];
    int32_t seg[ESP_N_SEG];
    bool seg_first; /* a <seg> in front of a <loc> */
    size_t broken;  /* where the first broken token stands; SIZE_MAX: none */
    size_t n_broken;
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* The token that begins at p. "<loc" and "<seg" need a digit behind them to be taken for an attempt at one. */
static struct token token_at(const char *p)
{
    struct token t = {NO_TOKEN, 0, 0};
    uint32_t n_digits = 0, want, limit;
    const char *q;

    if (strncmp(p, "<loc", 4) != 0 && strncmp(p, "<seg", 4) != 0)
        return t;
    q = p + 4;
    if (!is_digit(*q))
        return t;
    want = p[1] == 'l' ? 4 : 3;
    limit = p[1] == 'l' ? ESP_LOC_BINS : ESP_SEG_CODES;
    for (; is_digit(*q); q++) {
        n_digits++;
        if (n_digits <= want)
            t.code = t.code * 10 + (uint32_t)(*q - '0');
    }
    t.kind = p[1] == 'l' ? LOC : SEG;
    if (*q != '>' || n_digits != want || t.code >= limit)
        t.kind = BROKEN;
    t.n_bytes = (size_t)(q - p) + (*q == '>');
    return t;
}

static void run_add(struct run *run, const struct token *t, size_t at)
{
    switch (t->kind) {
    case LOC:
        if (run->n_loc < 4)
            run->loc[run->n_loc] = (uint16_t)t->code;
        run->seg_first |= run->n_seg > 0;
        run->n_loc++;
        break;
    case SEG:
        if (run->n_seg < ESP_N_SEG)
            run->seg[run->n_seg] = (int32_t)t->code;
        run->n_seg++;
        break;
    default:
        if (run->broken == SIZE_MAX) {
            run->broken = at;
            run->n_broken = t->n_bytes;
        }
    }
    run->end = at + t->n_bytes;
}

/* The run that begins at `at`, where a token stands. */
static struct run run_at(const char *answer, size_t at)
{
    struct run run = {.at = at, .broken = SIZE_MAX};

    for (;;) {
        const struct token t = token_at(answer + at);

        if (t.kind == NO_TOKEN)
            return run;
        run_add(&run, &t, at);
        at += t.n_bytes;
        while (is_space(answer[at]))
            at++;
    }
}

/* Why the run makes no object: false where it makes one. */
static bool run_is_bad(char why[128], const struct run *run, const char *answer)
{
    const uint16_t *b = run->loc;
    struct esp_err err = {.text = ""}; /* for its formatting */

    if (run->broken != SIZE_MAX)
        esp_fail(&err, ESP_E_FORMAT,
                 "%.*s%s is no token: there are <loc0000> to <loc1023> and <seg000> to <seg127>",
                 run->n_broken < 24 ? (int)run->n_broken : 24, answer + run->broken,
                 run->n_broken < 24 ? "" : "...");
    else if (run->n_loc == 0)
        esp_fail(&err, ESP_E_FORMAT, "%u <seg> without a box in front", run->n_seg);
    else if (run->seg_first)
        esp_fail(&err, ESP_E_FORMAT, "a <seg> in front of a <loc>");
    else if (run->n_loc != 4)
        esp_fail(&err, ESP_E_FORMAT, "%u <loc>: a box has 4", run->n_loc);
    else if (run->n_seg != 0 && run->n_seg != ESP_N_SEG)
        esp_fail(&err, ESP_E_FORMAT, "%u <seg>: a mask has %u", run->n_seg, ESP_N_SEG);
    else if (b[2] < b[0] || b[3] < b[1])
        esp_fail(&err, ESP_E_FORMAT, "the box ends before it begins: %s %u to %u", b[2] < b[0] ? "y" : "x",
                 b[2] < b[0] ? b[0] : b[1], b[2] < b[0] ? b[2] : b[3]);
    else if (b[2] == b[0] || b[3] == b[1])
        esp_fail(&err, ESP_E_FORMAT, "the box has no %s: %s %u to %u", b[2] == b[0] ? "height" : "width",
                 b[2] == b[0] ? "y" : "x", b[2] == b[0] ? b[0] : b[1], b[2] == b[0] ? b[2] : b[3]);
    else
        return false;
    memcpy(why, err.text, 127);
    why[127] = '\0';
    return true;
}

/* ---- the lists that grow ---- */

static bool grow(void **list, size_t n, size_t n_each)
{
    size_t n_bytes;
    void *grown;

    if (n & (n - 1)) /* room for the next power of two is there */
        return true;
    if (!esp_mul(&n_bytes, n ? n * 2 : 1, n_each))
        return false;
    grown = realloc(*list, n_bytes);
    if (!grown)
        return false;
    *list = grown;
    return true;
}

static bool add_object(struct esp_objects *out, const struct run *run, const char *label, size_t n_label,
                       size_t end)
{
    struct esp_object o = {.label = strndup(label, n_label), .has_seg = run->n_seg > 0, .at = run->at};

    if (!o.label || !grow((void **)&out->object, out->n_objects, sizeof o)) {
        free(o.label);
        return false;
    }
    o.n_bytes = end - run->at;
    memcpy(o.loc, run->loc, sizeof o.loc);
    memcpy(o.seg, run->seg, sizeof o.seg);
    out->object[out->n_objects++] = o;
    return true;
}

static bool add_malformed(struct esp_objects *out, const char *answer, size_t at, size_t end, const char *why)
{
    struct esp_malformed m = {.text = strndup(answer + at, end - at), .at = at};

    if (!m.text || !grow((void **)&out->malformed, out->n_malformed, sizeof m)) {
        free(m.text);
        return false;
    }
    memcpy(m.why, why, sizeof m.why);
    out->malformed[out->n_malformed++] = m;
    return true;
}

/* Appends a piece of plain text to out->text, which has room for the answer and " ; " for each ";" in it. */
static void add_text(struct esp_objects *out, size_t *n, const char *piece, size_t n_piece)
{
    if (n_piece == 0)
        return;
    if (*n > 0) {
        memcpy(out->text + *n, " ; ", 3);
        *n += 3;
    }
    memcpy(out->text + *n, piece, n_piece);
    *n += n_piece;
    out->text[*n] = '\0';
}

/* [*lo, hi) without the spaces at its ends. */
static size_t trim(const char *text, size_t *lo, size_t hi)
{
    while (*lo < hi && is_space(text[*lo]))
        ++*lo;
    while (*lo < hi && is_space(text[hi - 1]))
        hi--;
    return hi;
}

/* Where the text that begins at `at` ends: at a ";", a token or the end. */
static size_t text_end(const char *answer, size_t at)
{
    while (answer[at] && answer[at] != ';' && token_at(answer + at).kind == NO_TOKEN)
        at++;
    return at;
}

/* The run at `at` and its label. @return where it ends, or SIZE_MAX without memory */
static size_t take_run(struct esp_objects *out, const char *answer, size_t at)
{
    const struct run run = run_at(answer, at);
    const size_t end = text_end(answer, run.end);
    size_t label = run.end, label_end = trim(answer, &label, end);
    char why[128];
    bool ok;

    if (label_end == label)
        label_end = label = run.end;
    ok = run_is_bad(why, &run, answer) ? add_malformed(out, answer, at, label_end, why)
                                       : add_object(out, &run, answer + label, label_end - label, label_end);
    return ok ? end : SIZE_MAX;
}

static bool has_token(const char *answer)
{
    for (const char *p = answer; (p = strchr(p, '<')); p++)
        if (token_at(p).kind != NO_TOKEN)
            return true;
    return false;
}

esp_status esp_objects_parse(struct esp_objects *out, const char *answer, struct esp_err *err)
{
    const size_t n = strlen(answer);
    size_t at = 0, n_text = 0, n_room;

    memset(out, 0, sizeof *out);
    /* A piece of text needs a ";" or a token in front of the next one, and " ; " is two bytes more than a ";". */
    if (esp_mul(&n_room, n, 3) && esp_add(&n_room, n_room, 1))
        out->text = calloc(n_room, 1);
    if (!out->text)
        goto no_memory;
    if (!has_token(answer)) {
        memcpy(out->text, answer, n);
        return ESP_OK;
    }
    while (answer[at]) {
        size_t lo = at, hi;

        if (token_at(answer + at).kind != NO_TOKEN) {
            at = take_run(out, answer, at);
            if (at == SIZE_MAX)
                goto no_memory;
        } else {
            at = text_end(answer, at);
            hi = trim(answer, &lo, at);
            add_text(out, &n_text, answer + lo, hi - lo);
        }
        at += answer[at] == ';';
    }
    return ESP_OK;
no_memory:
    esp_objects_finish(out);
    return esp_fail(err, ESP_E_NOMEM, "objects of an answer of %zu bytes: out of memory", n);
}

void esp_objects_finish(struct esp_objects *objects)
{
    for (size_t i = 0; i < objects->n_objects; i++)
        free(objects->object[i].label);
    for (size_t i = 0; i < objects->n_malformed; i++)
        free(objects->malformed[i].text);
    free(objects->object);
    free(objects->malformed);
    free(objects->text);
    memset(objects, 0, sizeof *objects);
}

/* ---- boxes ---- */

void esp_box_pixels(double box[4], const uint16_t loc[4], uint32_t height, uint32_t width)
{
    for (int i = 0; i < 4; i++)
        box[i] = (double)loc[i] / ESP_LOC_BINS * (i % 2 ? width : height);
}

static double box_area(const double b[4])
{
    return b[2] > b[0] && b[3] > b[1] ? (b[2] - b[0]) * (b[3] - b[1]) : 0;
}

double esp_box_iou(const double a[4], const double b[4])
{
    const double both[4] = {a[0] > b[0] ? a[0] : b[0], a[1] > b[1] ? a[1] : b[1], a[2] < b[2] ? a[2] : b[2],
                            a[3] < b[3] ? a[3] : b[3]};
    const double common = box_area(both), all = box_area(a) + box_area(b) - common;

    return all > 0 ? common / all : 0;
}
