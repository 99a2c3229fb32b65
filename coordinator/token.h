/**
 * Text to ids and back: a checkpoint's tokenizer.model (SentencePiece BPE with byte fallback).
 *
 * Encoding is libsentencepiece's. Decoding is ours, because tokens come one at a time and a character may
 * span several byte pieces: a detokenizer keeps back what is not yet a character, and the pieces of text that
 * it gives are together what the library would give for all ids at once.
 *
 * A tokenizer does not change after its creation: any number of threads may use one.
 */
#ifndef ESP_COORDINATOR_TOKEN_H
#define ESP_COORDINATOR_TOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_TOKEN_MAX_TEXT ((size_t)1 << 20) /* bytes of text to encode in one call: a second of work */

struct esp_tokenizer;

/**
 * Reads a tokenizer.model. The file is checked before the library sees it (token_model.h).
 *
 * @param out   destroy with esp_tokenizer_destroy; NULL on failure
 * @param path  borrowed
 * Errors, which name the file: ESP_E_IO (missing, not a regular file, unreadable), ESP_E_FORMAT,
 * ESP_E_UNSUPPORTED (another kind of SentencePiece model), ESP_E_LIMIT (too large), ESP_E_NOMEM.
 */
esp_status esp_tokenizer_create(struct esp_tokenizer **out, const char *path, struct esp_err *err);

/** The same from n_bytes in memory, which are copied; errors name no file. */
esp_status esp_tokenizer_create_from(struct esp_tokenizer **out, const void *bytes, size_t n_bytes,
                                     struct esp_err *err);

/**
 * One of bytes alone, for a model without a vocabulary of its own (model/shape.h): ids 0 to 3 are <pad>, <eos>, <bos> and
 * <unk>, as PaliGemma has them, 4 + b is the byte b, and 260 the space. Errors: ESP_E_NOMEM.
 */
esp_status esp_tokenizer_create_bytes(struct esp_tokenizer **out, struct esp_err *err);

void esp_tokenizer_destroy(struct esp_tokenizer **tok);

/** Pieces, i.e. ids 0 .. n-1. `<image>` and the rows of the embedding behind it are not among them. */
uint32_t esp_tokenizer_n_piece(const struct esp_tokenizer *tok);

/** The name of a piece as the model spells it (U+2581 for a space), not NUL-terminated; NULL for other ids.
 */
const char *esp_tokenizer_piece(const struct esp_tokenizer *tok, uint32_t id, size_t *n_name);

/** The id of the piece of exactly that name ("<loc0123>"); false if there is none. */
bool esp_tokenizer_find(const struct esp_tokenizer *tok, uint32_t *id, const char *name);

/**
 * Text to ids, without BOS. Any bytes will do: what is not UTF-8 counts as U+FFFD, and a NUL is a character
 * like others. Control pieces (<eos>) and <image> written out are plain text.
 *
 * @param ids    *ids from malloc, never NULL on success; free with free()
 * @param n_ids  how many
 * @param text   borrowed, n_text bytes, may be NULL if n_text is 0
 * Errors: ESP_E_LIMIT (n_text above ESP_TOKEN_MAX_TEXT), ESP_E_NOMEM, ESP_E_INTERNAL.
 */
esp_status esp_tokenizer_encode(const struct esp_tokenizer *tok, uint32_t **ids, size_t *n_ids,
                                const char *text, size_t n_text, struct esp_err *err);

/**
 * A prompt without its image tokens: bos, the ids of the prefix, the ids of "\n" encoded on its own (so that
 * a prefix ending in newlines keeps its ids). Arguments and errors as esp_tokenizer_encode.
 */
esp_status esp_prompt_ids(const struct esp_tokenizer *tok, uint32_t **ids, size_t *n_ids, uint32_t bos,
                          const char *prefix, size_t n_prefix, struct esp_err *err);

/**
 * Ids to text: U+2581 becomes a space, byte pieces in a row become the characters that they spell, each byte
 * that belongs to none becomes U+FFFD; control pieces and ids that are no pieces have no text.
 *
 * @param text    *text from malloc, valid UTF-8 with a NUL after it (and perhaps NULs in it)
 * @param n_text  bytes without that NUL
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_tokenizer_decode(const struct esp_tokenizer *tok, char **text, size_t *n_text,
                                const uint32_t *ids, size_t n_ids, struct esp_err *err);

/* ---- one id at a time ---- */

struct esp_detok;

/** @param tok  borrowed, must outlive the detokenizer. Errors: ESP_E_NOMEM. */
esp_status esp_detok_create(struct esp_detok **out, const struct esp_tokenizer *tok, struct esp_err *err);
void esp_detok_destroy(struct esp_detok **detok);

/**
 * The text that id makes certain: valid UTF-8, maybe empty; bytes of an unfinished character wait for the
 * next id. Borrowed: it lives until the next call on detok, and *n_text bytes of it count (a NUL follows).
 * Cannot fail.
 */
const char *esp_detok_feed(struct esp_detok *detok, uint32_t id, size_t *n_text);

/** The end: what still waits, as U+FFFD. The detokenizer is then as new. */
const char *esp_detok_flush(struct esp_detok *detok, size_t *n_text);

#endif
