/* The mask codec: where findings.c and eval.c get it from. */
#ifndef ESP_CLI_FINDER_H
#define ESP_CLI_FINDER_H

#include "cli/findings.h"

/** The mask codec, opened when it is first needed; NULL where there is none, which is then said on stderr once. */
const struct esp_codec *esp_finder_codec(struct esp_finder *finder, struct esp_term *term);

/**
 * Where a codec lies that nobody has named: beside the model, else among what is installed. False: nowhere.
 * @param model  its directory; NULL: none is known
 */
bool esp_finder_codec_path(char *out, size_t n_out, const char *model);

#endif
