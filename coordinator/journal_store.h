/**
 * The journal's file: one SQLite database, for one coordinator at a time. The journal's thread uses it (journal.h);
 * every call may take as long as the disk likes.
 *
 * Exclusive locking: a second coordinator on the same file would resume the same sessions; and SQLite then needs
 * no shared memory beside the file. The lock ends with the process, however that ends.
 */
#ifndef ESP_COORDINATOR_JOURNAL_STORE_H
#define ESP_COORDINATOR_JOURNAL_STORE_H

#include "coordinator/journal.h"

struct esp_journal_store;

/** As esp_journal_open. */
esp_status esp_journal_store_open(struct esp_journal_store **out, const char *path,
                                  const uint8_t model[ESP_JOURNAL_MODEL_BYTES], uint64_t max_bytes,
                                  struct esp_err *err);
void esp_journal_store_close(struct esp_journal_store **store);

/** As esp_journal_left, esp_journal_dropped, esp_journal_forget_left; apart from all that follows. */
const struct esp_journal_left *esp_journal_store_left(const struct esp_journal_store *store, uint32_t i);
void esp_journal_store_dropped(const struct esp_journal_store *store, uint32_t *n_other, uint32_t *n_bad);
void esp_journal_store_forget_left(struct esp_journal_store *store);

/* Changes are made within a transaction. ESP_E_IO for a full disk, and the rest of esp_journal_open's errors. */
esp_status esp_journal_store_begin(struct esp_journal_store *store, struct esp_err *err);
esp_status esp_journal_store_commit(struct esp_journal_store *store, struct esp_err *err);
void esp_journal_store_roll_back(struct esp_journal_store *store);

esp_status esp_journal_store_add(struct esp_journal_store *store, uint64_t session,
                                 const struct esp_peer *owner, const struct esp_msg *request,
                                 struct esp_err *err);
esp_status esp_journal_store_progress(struct esp_journal_store *store, uint64_t session,
                                      const uint8_t *record, size_t n_bytes, struct esp_err *err);
esp_status esp_journal_store_forget(struct esp_journal_store *store, uint64_t session, struct esp_err *err);

/**
 * Reads a session. @param request  esp_msg_finish it, @param records  free() it; both as in an esp_journal_event, and
 * zeroed on failure. Errors: also ESP_E_FORMAT, ESP_E_PROTO (what is there is none), ESP_E_NOMEM.
 */
esp_status esp_journal_store_read(struct esp_journal_store *store, struct esp_msg *request, uint8_t **records,
                                  size_t *n_records, uint64_t session, struct esp_err *err);

/** A file that pictures have made large becomes small again if nobody is left in it. Outside of a transaction. */
void esp_journal_store_shrink(struct esp_journal_store *store);

#endif
