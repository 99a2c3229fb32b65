/**
 * Packed matrices on disk: quantised ones, for that takes longer than reading, and others where files serve as the device's
 * memory. A file is named by all that its bytes
 * follow from (worker/packed_key.h), so it is right for whoever asks for that name, and never out of date.
 *
 * A file is a matrix's packed bytes in units, as devices have them, then a sum of each unit, then what the file is and a sum
 * of that. Each unit is held against its sum when it is read or laid; what is damaged, or no such file, is removed, and
 * packed again. The sums find what a disk or a power cut did, not what somebody meant: the directory is the user's own.
 *
 * One thread, but where said.
 */
#ifndef ESP_WORKER_PACKED_H
#define ESP_WORKER_PACKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/log.h"
#include "proto/status.h"

#define ESP_PACKED_NAME_BYTES  32
#define ESP_PACKED_LIMIT_BYTES (UINT64_C(32) << 30) /* where nobody says: some 3B models of both types */

struct esp_known;
struct esp_packed;
struct esp_packed_file;

/**
 * @param dir          made if it is missing
 * @param limit_bytes  of all files: those that were not used for the longest time go first, those of this process never
 * @param all          matrices that are packed as they are stored, too
 * @param log          borrowed until destroy
 * Errors: ESP_E_IO (it cannot be made or written to), ESP_E_NOMEM.
 */
esp_status esp_packed_open(struct esp_packed **out, const char *dir, uint64_t limit_bytes, bool all,
                           const struct esp_log *log, struct esp_err *err);
/** No file of it may be open. NULL is fine. */
void esp_packed_destroy(struct esp_packed **packed);

bool esp_packed_takes_all(const struct esp_packed *packed);

/** What is known of files whose matrices it has, in the same directory. */
struct esp_known *esp_packed_known(struct esp_packed *packed);

/** What has come of it since the start. */
struct esp_packed_count {
    uint64_t used, used_bytes; /* matrices read to their end */
    uint64_t laid;             /* of these: some of it at least was laid */
    uint64_t kept, kept_bytes; /* written */
    uint64_t damaged;          /* found to be, and removed */
    uint64_t failed;           /* could not be written */
};
void esp_packed_count(const struct esp_packed *packed, struct esp_packed_count *out);

/**
 * Opens a matrix's file for reading.
 * @param out  NULL on failure
 * Errors: ESP_E_CLOSED (it is not there), ESP_E_FORMAT (it was and is no such file: logged, removed), ESP_E_IO, ESP_E_NOMEM.
 */
esp_status esp_packed_find(struct esp_packed_file **out, struct esp_packed *packed,
                           const uint8_t name[ESP_PACKED_NAME_BYTES], uint32_t n_unit, uint64_t unit_bytes,
                           struct esp_err *err);
/**
 * Has the file's own pages appear at `to`, where units [unit, unit + n) are to go, instead of what memory is there: nothing
 * is copied, and processes that do so with one file share it. They are private: what is written there stays there. esp_packed_read
 * to such places checks and no more.
 * @param to  of the caller's own anonymous mapping, which may be unmapped at any time; up to the end of its last page
 * Errors: ESP_E_UNSUPPORTED (units and pages do not fit, or the system refuses: `to` is fresh memory as before), ESP_E_NOMEM (and now
 * there is no memory).
 */
esp_status esp_packed_lay(struct esp_packed_file *file, uint32_t unit, uint32_t n, void *to,
                          struct esp_err *err);
/**
 * Fresh memory again in place of what was laid last, from unit `unit` on; what lies before stays. For a file that turned out
 * damaged: to write to a page that cannot be read would be a signal. Errors: ESP_E_NOMEM (there is no memory now).
 */
esp_status esp_packed_unlay(struct esp_packed_file *file, uint32_t unit, struct esp_err *err);
/** Of what was laid last: the kernel brings in what is not in memory of the n_bytes from unit `unit` on. A hint; each byte is asked
 * for once. */
void esp_packed_soon(struct esp_packed_file *file, uint32_t unit, uint64_t n_bytes);
/** Whether unit `unit` was laid to `to`. */
bool esp_packed_is_laid(const struct esp_packed_file *file, uint32_t unit, const void *to);
/** Units [unit, unit + n) to `to`. Any thread. Errors: ESP_E_FORMAT (damaged: give it up with esp_packed_damaged). */
esp_status esp_packed_read(const struct esp_packed_file *file, uint32_t unit, uint32_t n, void *to,
                           struct esp_err *err);

/**
 * Begins a file; all of its units are to be written, in any order.
 * Errors: ESP_E_IO, ESP_E_LIMIT (those in use leave too little room), ESP_E_NOMEM. The first is logged; the caller goes on
 * without.
 */
esp_status esp_packed_begin(struct esp_packed_file **out, struct esp_packed *packed,
                            const uint8_t name[ESP_PACKED_NAME_BYTES], uint32_t n_unit, uint64_t unit_bytes,
                            struct esp_err *err);
/** Any thread, each unit once. What fails (a full disk) is remembered: esp_packed_close drops the file. */
void esp_packed_write(struct esp_packed_file *file, uint32_t unit, uint32_t n, const void *from);

/**
 * Ends with a file, NULL too. One that was being written gets its name if `whole` and all went well; else it is dropped.
 */
void esp_packed_close(struct esp_packed_file **file, bool whole);
/** Ends with a file that could not be read to its end: logs why, removes it. */
void esp_packed_damaged(struct esp_packed_file **file, const char *why);

/** The sum of a unit: another one for sure if one aligned 8-byte word differs, and by all odds if more do. */
uint64_t esp_packed_sum(const void *data, size_t n_bytes);

#endif
