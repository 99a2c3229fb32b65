/**
 * The journal: what a coordinator has to know of its sessions to go on with them after it was killed.
 *
 * One SQLite file in WAL mode, for one coordinator at a time: the request as it came, the picture files (once
 * each, however many sessions ask about them), who asked, and records of what has been chosen so far
 * (decode.h: esp_decode_save). With synchronous=NORMAL what was committed survives the end of the process at
 * any moment; what the machine itself lost is only the latest.
 *
 * A thread of its own writes; the caller hands over and goes on. What is handed over while it writes goes into
 * one transaction together. Nobody has to wait for the disk, because decoding is deterministic: a session
 * that goes on from an older record, or from none, chooses the same tokens again, and tokens carry their
 * index. For the same reason a failure to write (a full disk) costs nothing but the journal of that session.
 *
 * What is read back is data like a peer's: a request must pass the protocol's checks, and records those of
 * esp_decode_load. One thread owns a journal.
 */
#ifndef ESP_COORDINATOR_JOURNAL_H
#define ESP_COORDINATOR_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/link.h"
#include "proto/status.h"
#include "proto/wire.h"

#define ESP_JOURNAL_MODEL_BYTES 32
#define ESP_JOURNAL_MAX_BYTES                                                                                \
    (UINT64_C(4) << 30) /* of the file; a session more is refused like a full disk */
#define ESP_JOURNAL_MAX_QUEUED ((size_t)512 << 20) /* bytes of requests that wait to be written */

struct esp_journal;

/** A session that an earlier coordinator left. */
struct esp_journal_left {
    uint64_t session;
    struct esp_peer owner;  /* member, key and user who may resume it; no routing id */
    struct esp_msg request; /* as it came, but n_blobs is 0: its files are read by esp_journal_load */
    uint64_t file_bytes;    /* of those */
};

/**
 * Opens the file, or makes it (mode 0600, like what SQLite puts beside it).
 *
 * @param model      what must be the same for a session to go on: sessions of another are dropped
 * @param max_bytes  of the file; 0: ESP_JOURNAL_MAX_BYTES
 * Errors: ESP_E_IO; ESP_E_ARG (another coordinator uses it); ESP_E_FORMAT (no journal, damaged, or another
 * version's), which names the file and the way out; ESP_E_NOMEM.
 */
esp_status esp_journal_open(struct esp_journal **out, const char *path,
                            const uint8_t model[ESP_JOURNAL_MODEL_BYTES], uint64_t max_bytes,
                            struct esp_err *err);

/** Writes what was handed over, and closes. Clears *journal. */
void esp_journal_close(struct esp_journal **journal);

/** Number i of the sessions that were left, in rising order; NULL behind the last. Borrowed. */
const struct esp_journal_left *esp_journal_left(const struct esp_journal *journal, uint32_t i);

/** How many were dropped at the opening: of another model; unreadable. */
void esp_journal_dropped(const struct esp_journal *journal, uint32_t *n_other, uint32_t *n_bad);

/** The list is done with: its memory is freed. */
void esp_journal_forget_left(struct esp_journal *journal);

/** Readable while esp_journal_take has something, or when the journal is idle again. */
int esp_journal_fd(const struct esp_journal *journal);

/** Something handed over is not written yet. Progress is better saved later, all of it in one record. */
bool esp_journal_busy(const struct esp_journal *journal);

/**
 * A session to remember.
 *
 * @param session  its id, above all those that were left
 * @param owner    its client: member, key and user are kept
 * @param request  a received Request with its files, taken whole in every case and cleared
 * Errors: ESP_E_LIMIT (too much waits to be written), ESP_E_NOMEM: it is not journalled.
 */
esp_status esp_journal_add(struct esp_journal *journal, uint64_t session, const struct esp_peer *owner,
                           struct esp_msg *request, struct esp_err *err);

/** A further record of a session. @param record  malloc'ed, taken in every case. Errors: ESP_E_NOMEM. */
esp_status esp_journal_progress(struct esp_journal *journal, uint64_t session, uint8_t *record,
                                size_t n_bytes, struct esp_err *err);

/** A session is over, or was not to be journalled after all. Without memory it stays until the next start. */
void esp_journal_forget(struct esp_journal *journal, uint64_t session);

/** Reads a session that was left: an event comes. Errors: ESP_E_NOMEM. */
esp_status esp_journal_load(struct esp_journal *journal, uint64_t session, struct esp_err *err);

enum esp_journal_what {
    ESP_JOURNAL_WRITTEN, /* the session is in the journal from here on */
    ESP_JOURNAL_LOST,    /* it, or a record of it, could not be written: err says why */
    ESP_JOURNAL_LOADED   /* the answer to esp_journal_load; err says what is wrong with it, if st is set */
};

/** What the thread has to tell of a session. */
struct esp_journal_event {
    uint64_t session;
    enum esp_journal_what what;
    esp_status st;
    struct esp_err err;
    struct esp_msg request; /* LOADED: with its files; esp_msg_finish it */
    uint8_t *records;       /* LOADED: all of them, one behind the other; free() it; NULL: none */
    size_t n_records;       /* bytes */
};

/** The next event, the caller's; false if there is none. */
bool esp_journal_take(struct esp_journal *journal, struct esp_journal_event *event);

/**
 * Where a coordinator that serves a tcp port keeps its journal when nothing else is said: coordinator-PORT.journal
 * in $STATE_DIRECTORY (systemd's), else $XDG_STATE_HOME/espalier, else ~/.local/state/espalier.
 * @param endpoint  as bound
 * Errors: ESP_E_ARG (not tcp), ESP_E_IO (no such place is named), ESP_E_LIMIT (a path too long).
 */
esp_status esp_journal_default_path(char *out, size_t n_out, const char *endpoint, struct esp_err *err);

#endif
