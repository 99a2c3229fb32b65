/**
 * How right a text is: what `espalier eval` measures of captions, answers and readings. Pure.
 *
 * Case counts for nothing in captions and answers (ASCII letters), and for something everywhere else.
 */
#ifndef ESP_CLI_EVAL_TEXT_H
#define ESP_CLI_EVAL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

/** What an F1 is made of; those of many texts add up to the micro-average. */
struct esp_f1 {
    uint64_t n_both, n_got, n_wanted;
};

/** n_both / n_got, n_both / n_wanted, and their harmonic mean 2 n_both / (n_got + n_wanted); 1 where all are 0. */
double esp_f1_precision(const struct esp_f1 *f);
double esp_f1_recall(const struct esp_f1 *f);
double esp_f1_value(const struct esp_f1 *f);

/** Equal but for white space at either end. */
bool esp_same_text(const char *a, const char *b);

/**
 * What a caption says, as units that can be counted. It is cut into phrases at commas and at the words "and", "on" and
 * "with". Of a phrase a leading article (a, an, the) is dropped; its last word is a noun, the others are attributes. Its units
 * are the noun and each pair of noun and attribute. Both captions' units are multisets, n_both is what they share.
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_caption_f1(struct esp_f1 *out, const char *got, const char *wanted, struct esp_err *err);

/**
 * An answer in the form in which answers are compared: lower case, without articles and punctuation, words separated by
 * one space. Apostrophes and commas between digits vanish, a full stop between digits stays, other punctuation separates.
 * @param out  malloc'ed, the caller's; NULL on failure
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_answer_normal(char **out, const char *text, struct esp_err *err);

/**
 * Accuracy of an answer where n people have answered: over every choice of n - 1 of them, the mean of
 * min(those who said the same / 3, 1). All in normal form.
 * Source: VQA, arXiv 1505.00468 section 4, as its evaluation averages it.
 * @param n  at least 2
 */
double esp_vqa_accuracy(const char *got, char *const *wanted, uint32_t n);

/**
 * The least number of characters to insert, remove or replace that makes b of a. Characters are code points.
 * @param n_b  characters of b; may be NULL
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_edit_distance(uint64_t *out, uint64_t *n_b, const char *a, const char *b, struct esp_err *err);

#endif
