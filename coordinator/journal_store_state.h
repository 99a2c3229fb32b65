/* What journal_store.c (sessions come and go) and journal_store_open.c (what a file must be, and what was left in it) share;
 * nobody else includes it. */
#ifndef ESP_COORDINATOR_JOURNAL_STORE_STATE_H
#define ESP_COORDINATOR_JOURNAL_STORE_STATE_H

#include <sqlite3.h>

#include "coordinator/journal_store.h"

enum {
    ESP_SQL_BEGIN,
    ESP_SQL_COMMIT,
    ESP_SQL_ROLLBACK,
    ESP_SQL_ADD,
    ESP_SQL_FIND_PICTURE,
    ESP_SQL_ADD_PICTURE,
    ESP_SQL_USE,
    ESP_SQL_PROGRESS,
    ESP_SQL_FORGET,
    ESP_SQL_REQUEST,
    ESP_SQL_PICTURES,
    ESP_SQL_RECORDS,
    ESP_N_SQL
};

/** Their text, to be prepared when a file is opened. */
extern const char *const esp_journal_sql[ESP_N_SQL];

struct esp_journal_store {
    char path[1024];
    sqlite3 *db;
    sqlite3_stmt *stmt[ESP_N_SQL];
    struct esp_journal_left *left;
    uint32_t n_left, n_other, n_bad;
};

/** The cause of SQLite's last failure. @param what  it was about */
esp_status esp_journal_db_fail(const struct esp_journal_store *store, const char *what, struct esp_err *err);

/** Statements without results. */
esp_status esp_journal_exec(struct esp_journal_store *store, const char *text, struct esp_err *err);

/** The first column of the first row, a number; 0 without any. */
esp_status esp_journal_number(struct esp_journal_store *store, const char *text, int64_t *out,
                              struct esp_err *err);

/** One step of a statement; true in *row (may be NULL) if it gave one. Resets it otherwise. */
esp_status esp_journal_step(struct esp_journal_store *store, sqlite3_stmt *statement, bool *row,
                            struct esp_err *err);

#endif
