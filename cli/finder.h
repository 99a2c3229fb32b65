/* What finder.c and findings.c share; nobody else includes it. */
#ifndef ESP_CLI_FINDER_H
#define ESP_CLI_FINDER_H

#include "cli/findings.h"

/** The mask codec, opened when it is first needed; NULL where there is none, which is then said on stderr once. */
const struct esp_codec *esp_finder_codec(struct esp_finder *finder, struct esp_term *term);

#endif
