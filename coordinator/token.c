#include "coordinator/token.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/spm_shim.h"
#include "coordinator/token_model.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */
#define SPACE_MARK  "\xe2\x96\x81" /* U+2581 */

struct esp_tokenizer {
    uint8_t *bytes; /* the file, into which model points */
    struct esp_token_model model;
    struct esp_spm *spm;
};

struct esp_detok {
    const struct esp_tokenizer *tok;
    uint8_t held[4]; /* the start of a character, not yet a whole one */
    size_t n_held;
    size_t n_text;
    char
        text[ESP_TOKEN_MAX_NAME + 4 * (sizeof REPLACEMENT - 1) + 1]; /* one piece after 4 bytes that failed */
};

/* ---- creation ---- */

/* Takes bytes, which come from malloc, whatever the outcome. */
static esp_status create_take(struct esp_tokenizer **out, uint8_t *bytes, size_t n_bytes, struct esp_err *err)
{
    struct esp_tokenizer *tok = calloc(1, sizeof *tok);
    esp_status st;

    *out = NULL;
    if (!tok) {
        free(bytes);
        return esp_fail(err, ESP_E_NOMEM, "tokenizer");
    }
    tok->bytes = bytes;
    n_bytes = esp_token_model_strip(bytes, n_bytes);
    st = esp_token_model_parse(&tok->model, bytes, n_bytes, err);
    if (!st)
        st = esp_spm_create(&tok->spm, bytes, n_bytes, err);
    if (!st) {
        *out = tok;
        tok = NULL;
    }
    esp_tokenizer_destroy(&tok);
    return st;
}

esp_status esp_tokenizer_create_from(struct esp_tokenizer **out, const void *bytes, size_t n_bytes,
                                     struct esp_err *err)
{
    uint8_t *copy;

    *out = NULL;
    if (n_bytes == 0)
        return esp_fail(err, ESP_E_FORMAT, "is empty");
    if (n_bytes > ESP_TOKEN_MAX_FILE)
        return esp_fail(err, ESP_E_LIMIT, "has %zu bytes, at most %zu", n_bytes, ESP_TOKEN_MAX_FILE);
    copy = malloc(n_bytes);
    if (!copy)
        return esp_fail(err, ESP_E_NOMEM, "tokenizer: %zu bytes", n_bytes);
    memcpy(copy, bytes, n_bytes);
    return create_take(out, copy, n_bytes, err);
}

/* A piece as SentencePiece's ModelProto has it: field 1 of the model; in it 1 name, 2 score (0), 3 type. All lengths are
 * below 128. */
static size_t put_piece(uint8_t *to, const char *name, enum esp_piece_type type)
{
    const size_t n = strlen(name);
    uint8_t *at = to;

    *at++ = 1 << 3 | 2;
    *at++ = (uint8_t)(n + 9);
    *at++ = 1 << 3 | 2;
    *at++ = (uint8_t)n;
    memcpy(at, name, n);
    at += n;
    *at++ = 2 << 3 | 5;
    memset(at, 0, 4);
    at += 4;
    *at++ = 3 << 3 | 0;
    *at++ = (uint8_t)type;
    return (size_t)(at - to);
}

esp_status esp_tokenizer_create_bytes(struct esp_tokenizer **out, struct esp_err *err)
{
    /* trainer_spec: BPE (field 3: 2), byte_fallback (field 35: 1); normalizer_spec: fields 3 to 5, spaces are only marked */
    static const uint8_t specs[] = {2 << 3 | 2, 5,      3 << 3, 2,      0x98, 0x02,   1, 3 << 3 | 2,
                                    6,          3 << 3, 0,      4 << 3, 0,    5 << 3, 1};
    static const struct {
        const char *name;
        enum esp_piece_type type;
    } first[] = {{"<pad>", ESP_PIECE_CONTROL},
                 {"<eos>", ESP_PIECE_CONTROL},
                 {"<bos>", ESP_PIECE_CONTROL},
                 {"<unk>", ESP_PIECE_UNKNOWN}};
    uint8_t bytes[261 * 24 + sizeof specs];
    size_t n = 0;
    char name[8];

    for (size_t i = 0; i < sizeof first / sizeof first[0]; i++)
        n += put_piece(bytes + n, first[i].name, first[i].type);
    for (unsigned b = 0; b < 256; b++) {
        snprintf(name, sizeof name, "<0x%02X>", b);
        n += put_piece(bytes + n, name, ESP_PIECE_BYTE);
    }
    n += put_piece(bytes + n, SPACE_MARK, ESP_PIECE_NORMAL);
    memcpy(bytes + n, specs, sizeof specs);
    return esp_tokenizer_create_from(out, bytes, n + sizeof specs, err);
}

static esp_status read_file(uint8_t **out, size_t *n_out, const char *path, struct esp_err *err)
{
    esp_status st = ESP_OK;
    uint8_t *bytes = NULL;
    size_t n_bytes = 0, n_read = 0;
    struct stat info;
    /* Non-blocking, so that a FIFO in the file's place cannot keep us waiting. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "%s", strerror(errno));
    if (fstat(fd, &info)) {
        st = esp_fail(err, ESP_E_IO, "%s", strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        st = esp_fail(err, ESP_E_IO, "is not a regular file");
        goto done;
    }
    if (info.st_size <= 0) {
        st = esp_fail(err, ESP_E_FORMAT, "is empty");
        goto done;
    }
    if ((uintmax_t)info.st_size > ESP_TOKEN_MAX_FILE) {
        st = esp_fail(err, ESP_E_LIMIT, "has %ju bytes, at most %zu", (uintmax_t)info.st_size,
                      ESP_TOKEN_MAX_FILE);
        goto done;
    }
    n_bytes = (size_t)info.st_size;
    bytes = malloc(n_bytes);
    if (!bytes) {
        st = esp_fail(err, ESP_E_NOMEM, "%zu bytes", n_bytes);
        goto done;
    }
    while (n_read < n_bytes) {
        const ssize_t n = read(fd, bytes + n_read, n_bytes - n_read);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            st = esp_fail(err, ESP_E_IO, "%s", n < 0 ? strerror(errno) : "got shorter while it was read");
            goto done;
        }
        n_read += (size_t)n;
    }
    *out = bytes;
    *n_out = n_bytes;
    bytes = NULL;
done:
    free(bytes);
    close(fd);
    return st;
}

esp_status esp_tokenizer_create(struct esp_tokenizer **out, const char *path, struct esp_err *err)
{
    uint8_t *bytes = NULL;
    size_t n_bytes = 0;
    esp_status st;

    *out = NULL;
    st = read_file(&bytes, &n_bytes, path, err);
    if (!st)
        st = create_take(out, bytes, n_bytes, err);
    if (st)
        esp_err_prefix(err, "%s: ", path);
    return st;
}

void esp_tokenizer_destroy(struct esp_tokenizer **tok)
{
    if (!tok || !*tok)
        return;
    esp_spm_destroy(&(*tok)->spm);
    esp_token_model_finish(&(*tok)->model);
    free((*tok)->bytes);
    free(*tok);
    *tok = NULL;
}

/* ---- pieces ---- */

uint32_t esp_tokenizer_n_piece(const struct esp_tokenizer *tok)
{
    return tok->model.n_piece;
}

const char *esp_tokenizer_piece(const struct esp_tokenizer *tok, uint32_t id, size_t *n_name)
{
    if (id >= tok->model.n_piece)
        return NULL;
    *n_name = tok->model.piece[id].n_name;
    return tok->model.piece[id].name;
}

bool esp_tokenizer_find(const struct esp_tokenizer *tok, uint32_t *id, const char *name)
{
    return esp_token_model_find(&tok->model, id, name, strlen(name));
}

/* ---- text to ids ---- */

esp_status esp_tokenizer_encode(const struct esp_tokenizer *tok, uint32_t **ids, size_t *n_ids,
                                const char *text, size_t n_text, struct esp_err *err)
{
    *ids = NULL;
    *n_ids = 0;
    if (n_text > ESP_TOKEN_MAX_TEXT)
        return esp_fail(err, ESP_E_LIMIT, "a text of %zu bytes, at most %zu", n_text, ESP_TOKEN_MAX_TEXT);
    return esp_spm_encode(tok->spm, ids, n_ids, n_text ? text : "", n_text, err);
}

esp_status esp_prompt_ids(const struct esp_tokenizer *tok, uint32_t **ids, size_t *n_ids, uint32_t bos,
                          const char *prefix, size_t n_prefix, struct esp_err *err)
{
    uint32_t *front = NULL, *separator = NULL, *all = NULL;
    size_t n_front, n_separator;
    esp_status st;

    *ids = NULL;
    *n_ids = 0;
    st = esp_tokenizer_encode(tok, &front, &n_front, prefix, n_prefix, err);
    if (!st)
        st = esp_tokenizer_encode(tok, &separator, &n_separator, "\n", 1, err);
    if (st)
        goto done;
    all = malloc((1 + n_front + n_separator) * sizeof *all); /* few: ESP_TOKEN_MAX_TEXT bounds them */
    if (!all) {
        st = esp_fail(err, ESP_E_NOMEM, "prompt");
        goto done;
    }
    all[0] = bos;
    memcpy(all + 1, front, n_front * sizeof *all);
    memcpy(all + 1 + n_front, separator, n_separator * sizeof *all);
    *ids = all;
    *n_ids = 1 + n_front + n_separator;
done:
    free(front);
    free(separator);
    return st;
}

/* ---- ids to text ---- */

esp_status esp_detok_create(struct esp_detok **out, const struct esp_tokenizer *tok, struct esp_err *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return esp_fail(err, ESP_E_NOMEM, "detokenizer");
    (*out)->tok = tok;
    return ESP_OK;
}

void esp_detok_destroy(struct esp_detok **detok)
{
    if (!detok)
        return;
    free(*detok);
    *detok = NULL;
}

static void emit(struct esp_detok *detok, const void *bytes, size_t n)
{
    memcpy(detok->text + detok->n_text, bytes, n);
    detok->n_text += n;
}

/* Gives out of the held bytes what is decided: whole characters, and one U+FFFD for each byte that starts
 * none. At the end of a run of bytes (`last`) a mere start is none either. */
static void settle(struct esp_detok *detok, bool last)
{
    while (detok->n_held > 0) {
        int len = esp_utf8_len(detok->held, detok->n_held);

        if (len == 0 && !last)
            return;
        if (len > 0) {
            emit(detok, detok->held, (size_t)len);
        } else {
            emit(detok, REPLACEMENT, sizeof REPLACEMENT - 1);
            len = 1;
        }
        detok->n_held -= (size_t)len;
        memmove(detok->held, detok->held + len, detok->n_held);
    }
}

static void emit_piece(struct esp_detok *detok, const struct esp_piece *piece)
{
    for (size_t i = 0; i < piece->n_name;) {
        if (piece->n_name - i >= 3 && memcmp(piece->name + i, SPACE_MARK, 3) == 0) {
            emit(detok, " ", 1);
            i += 3;
        } else {
            emit(detok, piece->name + i, 1);
            i++;
        }
    }
}

const char *esp_detok_feed(struct esp_detok *detok, uint32_t id, size_t *n_text)
{
    const struct esp_token_model *model = &detok->tok->model;
    const struct esp_piece *piece = id < model->n_piece ? &model->piece[id] : NULL;

    detok->n_text = 0;
    if (piece && piece->type == ESP_PIECE_BYTE) {
        detok->held[detok->n_held++] = piece->byte; /* settle left at most 3 */
        settle(detok, false);
    } else {
        settle(detok, true);
        if (piece && piece->type == ESP_PIECE_UNKNOWN)
            emit(detok, model->unk_surface, model->n_unk_surface);
        else if (piece && piece->type != ESP_PIECE_CONTROL)
            emit_piece(detok, piece);
    }
    detok->text[detok->n_text] = 0;
    *n_text = detok->n_text;
    return detok->text;
}

const char *esp_detok_flush(struct esp_detok *detok, size_t *n_text)
{
    detok->n_text = 0;
    settle(detok, true);
    detok->text[detok->n_text] = 0;
    *n_text = detok->n_text;
    return detok->text;
}

esp_status esp_tokenizer_decode(const struct esp_tokenizer *tok, char **text, size_t *n_text,
                                const uint32_t *ids, size_t n_ids, struct esp_err *err)
{
    struct esp_detok detok = {.tok = tok};
    char *all = NULL;
    size_t n_all = 0, room = 0;

    *text = NULL;
    *n_text = 0;
    for (size_t i = 0; i <= n_ids; i++) {
        size_t n;
        const char *more = i < n_ids ? esp_detok_feed(&detok, ids[i], &n) : esp_detok_flush(&detok, &n);

        if (n_all + n + 1 > room) {
            char *larger;

            room = 2 * room + sizeof detok.text;
            larger = realloc(all, room);
            if (!larger) {
                free(all);
                return esp_fail(err, ESP_E_NOMEM, "text of %zu tokens", n_ids);
            }
            all = larger;
        }
        memcpy(all + n_all, more, n);
        n_all += n;
    }
    all[n_all] = 0;
    *text = all;
    *n_text = n_all;
    return ESP_OK;
}
