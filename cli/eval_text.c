#include "cli/eval_text.h"

#include <stdlib.h>
#include <string.h>

static double ratio(uint64_t part, uint64_t whole, bool nothing_wanted)
{
    return whole > 0 ? (double)part / (double)whole : nothing_wanted ? 1 : 0;
}

double esp_f1_precision(const struct esp_f1 *f)
{
    return ratio(f->n_both, f->n_got, f->n_wanted == 0);
}

double esp_f1_recall(const struct esp_f1 *f)
{
    return ratio(f->n_both, f->n_wanted, f->n_got == 0);
}

double esp_f1_value(const struct esp_f1 *f)
{
    return ratio(2 * f->n_both, f->n_got + f->n_wanted, true);
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static const char *trimmed(const char *text, size_t *n)
{
    while (is_space(*text))
        text++;
    *n = strlen(text);
    while (*n > 0 && is_space(text[*n - 1]))
        (*n)--;
    return text;
}

bool esp_same_text(const char *a, const char *b)
{
    size_t n_a, n_b;

    a = trimmed(a, &n_a);
    b = trimmed(b, &n_b);
    return n_a == n_b && memcmp(a, b, n_a) == 0;
}

static bool is_one_of(const char *word, const char *const *words)
{
    while (*words && strcmp(word, *words) != 0)
        words++;
    return *words != NULL;
}

static const char *const articles[] = {"a", "an", "the", NULL};

/* ---- captions ---- */

struct unit {
    const char *noun, *attribute; /* into the words' text; attribute "": the noun alone */
};

struct units {
    char *text;         /* the caption's words, each ended by a NUL */
    struct unit *units; /* one for each of them at most */
    size_t n;
};

static int by_words(const void *a, const void *b)
{
    const struct unit *x = a, *y = b;
    const int c = strcmp(x->noun, y->noun);

    return c ? c : strcmp(x->attribute, y->attribute);
}

/* A phrase of n words, one behind the other in text. */
static void add_phrase(struct units *u, const char *word, size_t n)
{
    const char *noun = word;
    size_t first = n > 0 && is_one_of(word, articles) ? 1 : 0;

    if (n == first)
        return;
    for (size_t i = 1; i < n; i++)
        noun += strlen(noun) + 1;
    for (size_t i = 0; i < n; i++, word += strlen(word) + 1)
        if (i >= first)
            u->units[u->n++] = (struct unit){noun, i + 1 < n ? word : ""};
}

static esp_status units_of(struct units *u, const char *caption, struct esp_err *err)
{
    static const char *const ends[] = {"and", "on", "with", NULL};
    const size_t n_text = strlen(caption);
    size_t n_phrase = 0; /* its words so far */
    char *phrase, *at;

    memset(u, 0, sizeof *u);
    u->text = phrase = at = malloc(n_text + 2);
    u->units = calloc(n_text / 2 + 1, sizeof *u->units);
    if (!u->text || !u->units)
        return esp_fail(err, ESP_E_NOMEM, "a caption: out of memory");
    for (;;) {
        char *word = at;

        while (is_space(*caption))
            caption++;
        while (*caption && *caption != ',' && !is_space(*caption))
            *at++ = lower(*caption++);
        *at = '\0';
        if (at > word && !is_one_of(word, ends)) {
            n_phrase++;
            at++;
            continue;
        }
        add_phrase(u, phrase, n_phrase);
        phrase = at = word;
        n_phrase = 0;
        if (*caption == ',')
            caption++;
        else if (!*caption)
            break;
    }
    if (u->n > 1)
        qsort(u->units, u->n, sizeof *u->units, by_words);
    return ESP_OK;
}

static void units_finish(struct units *u)
{
    free(u->text);
    free(u->units);
}

esp_status esp_caption_f1(struct esp_f1 *out, const char *got, const char *wanted, struct esp_err *err)
{
    struct units g = {0}, w = {0};
    esp_status st = units_of(&g, got, err);
    size_t i = 0, j = 0;

    memset(out, 0, sizeof *out);
    if (st == ESP_OK)
        st = units_of(&w, wanted, err);
    if (st == ESP_OK) {
        out->n_got = g.n;
        out->n_wanted = w.n;
        while (i < g.n && j < w.n) {
            const int c = by_words(&g.units[i], &w.units[j]);

            out->n_both += c == 0;
            i += c <= 0;
            j += c >= 0;
        }
    }
    units_finish(&g);
    units_finish(&w);
    return st;
}

/* ---- answers ---- */

static bool is_punctuation(char c)
{
    return c > ' ' && c < 0x7f && !is_digit(c) && !(lower(c) >= 'a' && lower(c) <= 'z');
}

/* The character that stands for text[i] before words are looked at; 0: none. */
static char plain(const char *text, size_t i)
{
    const char c = text[i];
    const bool between = i > 0 && is_digit(text[i - 1]) && is_digit(text[i + 1]);

    if (c == '\'' || (c == ',' && between))
        return '\0';
    if (is_space(c) || (is_punctuation(c) && !(c == '.' && between)))
        return ' ';
    return lower(c);
}

esp_status esp_answer_normal(char **out, const char *text, struct esp_err *err)
{
    const size_t n = strlen(text);
    char *flat = malloc(n + 1), *at = flat, *to;

    *out = NULL;
    if (!flat)
        return esp_fail(err, ESP_E_NOMEM, "an answer: out of memory");
    for (size_t i = 0; i < n; i++) {
        const char c = plain(text, i);

        if (c)
            *at++ = c;
    }
    *at = '\0';
    at = to = flat; /* words move forward only */
    while (*at) {
        char *word = at;
        size_t n_word;
        bool last;

        n_word = strcspn(at, " ");
        last = at[n_word] == '\0';
        at[n_word] = '\0';
        at += n_word + !last;
        if (n_word == 0 || is_one_of(word, articles))
            continue;
        if (to > flat)
            *to++ = ' ';
        memmove(to, word, n_word);
        to += n_word;
    }
    *to = '\0';
    *out = flat;
    return ESP_OK;
}

double esp_vqa_accuracy(const char *got, char *const *wanted, uint32_t n)
{
    uint32_t n_same = 0;
    double with, without; /* one who said the same is left out, or one who did not */

    for (uint32_t i = 0; i < n; i++)
        n_same += strcmp(got, wanted[i]) == 0;
    with = n_same > 3 ? 1 : n_same > 0 ? (double)(n_same - 1) / 3 : 0;
    without = n_same >= 3 ? 1 : (double)n_same / 3;
    return (n_same * with + (n - n_same) * without) / n;
}

/* ---- readings ---- */

/* The code points of text, which is UTF-8. NULL without memory. */
static uint32_t *code_points(const char *text, size_t *n_out)
{
    uint32_t *points = calloc(strlen(text) + 1, sizeof *points);
    size_t n = 0;

    for (; points && *text; text++) {
        const unsigned char c = (unsigned char)*text;

        if ((c & 0xc0) == 0x80 && n > 0)
            points[n - 1] = points[n - 1] << 6 | (c & 0x3f);
        else
            points[n++] = c; /* a lead byte and what follows it: not the number, but as good as it */
    }
    *n_out = n;
    return points;
}

esp_status esp_edit_distance(uint64_t *out, uint64_t *n_b, const char *a, const char *b, struct esp_err *err)
{
    size_t n = 0, m = 0;
    uint32_t *from = code_points(a, &n), *to = code_points(b, &m), *row = calloc(m + 1, sizeof *row);
    esp_status st = ESP_OK;

    if (!from || !to || !row) {
        st = esp_fail(err, ESP_E_NOMEM, "a text: out of memory");
        goto done;
    }
    for (size_t j = 0; j <= m; j++)
        row[j] = (uint32_t)j;
    for (size_t i = 1; i <= n; i++) { /* row[j]: what makes to[0 .. j) of from[0 .. i) */
        uint32_t across = row[0];

        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= m; j++) {
            const uint32_t above = row[j];
            uint32_t least = across + (from[i - 1] != to[j - 1]);

            if (above + 1 < least)
                least = above + 1;
            if (row[j - 1] + 1 < least)
                least = row[j - 1] + 1;
            across = above;
            row[j] = least;
        }
    }
    *out = row[m];
    if (n_b)
        *n_b = m;
done:
    free(from);
    free(to);
    free(row);
    return st;
}
