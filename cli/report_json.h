/* What report*.c and eval*.c, which write JSON, share; nobody else includes it. */
#ifndef ESP_CLI_REPORT_JSON_H
#define ESP_CLI_REPORT_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "cli/findings.h"
#include "proto/status.h"
#include "proto/wire.h"

/* json_object_set_new takes a NULL value for an error, so a chain of these needs one look at the end. */
#define SET(object, key, value) (ok &= json_object_set_new((object), (key), (value)) == 0)

/** A number, or null where it is not finite. NULL without memory. */
json_t *esp_json_number(double v);

/** A list of n of them; NULL without memory. */
json_t *esp_json_numbers(const double *v, size_t n);

/** Sets what is told of a stage everywhere; false without memory. */
bool esp_json_set_stage(json_t *o, const struct esp_stage_info *stage);

/** Sets what an answer found: objects and malformed; false without memory. */
bool esp_json_set_findings(json_t *o, const struct esp_findings *found);

/** *out = o where ok, or frees it and says that there is no memory. */
esp_status esp_json_hand_over(json_t **out, json_t *o, bool ok, struct esp_err *err);

#endif
