/*
 * tokenizer.model looked through before libsentencepiece sees it.
 *
 * The file is a protobuf message (sentencepiece_model.proto: ModelProto). The library takes much of it on
 * trust: a rule table is walked with the offsets that it contains, 65 user-defined symbols that begin alike
 * overrun an array, a NUL in a piece throws. So its wire format is read here first, and only what a PaliGemma
 * tokenizer may be gets through: BPE, no rule tables, bounded counts and lengths, pieces that are distinct,
 * non-empty UTF-8. What the detokenizer needs is kept.
 */
#ifndef ESP_COORDINATOR_TOKEN_MODEL_H
#define ESP_COORDINATOR_TOKEN_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_TOKEN_MAX_FILE  ((size_t)64 << 20) /* bytes; PaliGemma's has 4.3 million */
#define ESP_TOKEN_MAX_PIECE (1u << 20)         /* pieces; PaliGemma's has 257152 */
#define ESP_TOKEN_MAX_NAME  1024u              /* bytes of one piece */
#define ESP_TOKEN_MAX_NEST  64u /* user-defined symbols of which each begins with the one before */

/* ModelProto.SentencePiece.Type */
enum esp_piece_type {
    ESP_PIECE_NORMAL = 1,
    ESP_PIECE_UNKNOWN = 2,
    ESP_PIECE_CONTROL = 3,
    ESP_PIECE_USER_DEFINED = 4,
    ESP_PIECE_UNUSED = 5,
    ESP_PIECE_BYTE = 6
};

struct esp_piece {
    const char *name; /* n_name bytes inside the file, no NUL at the end */
    uint16_t n_name;
    uint8_t type;
    uint8_t byte; /* of ESP_PIECE_BYTE */
};

struct esp_token_model {
    struct esp_piece *piece; /* [n_piece], index is id */
    uint32_t *by_name;       /* [n_piece], ids in the order of their names' bytes */
    uint32_t n_piece;
    const char *unk_surface; /* what <unk> looks like in text; inside the file, or a constant */
    size_t n_unk_surface;
};

/**
 * Takes out of a model's bytes, in place, what is no use to us: self-tests, which the library would run and
 * report on stderr, and unknown parts. Returns how many bytes are left; from the first damaged field on all
 * stay.
 */
size_t esp_token_model_strip(uint8_t *bytes, size_t n_bytes);

/**
 * Reads and checks a model.
 *
 * @param out    the caller's; filled on success (release with esp_token_model_finish), zeroed on failure
 * @param bytes  borrowed for as long as *out lives
 * Errors, about the content: ESP_E_FORMAT, ESP_E_UNSUPPORTED (a SentencePiece model of another kind),
 * ESP_E_LIMIT, ESP_E_NOMEM. Safe from any thread.
 */
esp_status esp_token_model_parse(struct esp_token_model *out, const uint8_t *bytes, size_t n_bytes,
                                 struct esp_err *err);

/** Frees the tables, not the bytes. */
void esp_token_model_finish(struct esp_token_model *model);

/** The id of the piece of that name in *id; false if there is none. */
bool esp_token_model_find(const struct esp_token_model *model, uint32_t *id, const char *name, size_t n_name);

/**
 * The length of the UTF-8 character at the start of n bytes: 1 to 4; 0 if the bytes, all of them, may be the
 * start of a longer one; -1 if they can begin none (surrogates, overlong forms and what lies above U+10FFFF
 * included).
 */
int esp_utf8_len(const uint8_t *bytes, size_t n);

#endif
