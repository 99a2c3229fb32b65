/* What of SQLite is used, and how: journal_store.h. */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/journal_store_state.h"

#define MAX_RECORDS ((size_t)512 << 20) /* bytes of a session's */
#define SLACK_PAGES 4096                /* unused ones that the file may keep when nobody is left in it */
#define HASH_BYTES  32

#define SQL_NEXT_RECORD "(SELECT coalesce(max(nth), 0) + 1 FROM progress WHERE session = ?1)"
const char *const esp_journal_sql[ESP_N_SQL] = {
    "BEGIN IMMEDIATE",
    "COMMIT",
    "ROLLBACK",
    "INSERT INTO session(id, ticket, member, key, user, request, created) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    "SELECT id FROM picture WHERE hash = ?1",
    "INSERT INTO picture(hash, file) VALUES(?1, ?2)",
    "INSERT INTO uses(session, nth, picture) VALUES(?1, ?2, ?3)",
    "INSERT INTO progress(session, nth, record) VALUES(?1, " SQL_NEXT_RECORD ", ?2)",
    "DELETE FROM session WHERE id = ?1",
    "SELECT request FROM session WHERE id = ?1",
    "SELECT file FROM uses JOIN picture ON picture.id = uses.picture WHERE session = ?1 ORDER BY nth",
    "SELECT record FROM progress WHERE session = ?1 ORDER BY nth",
};

/* ---- SQLite ---- */

esp_status esp_journal_db_fail(const struct esp_journal_store *j, const char *what, struct esp_err *err)
{
    const int code = j->db ? sqlite3_errcode(j->db) : SQLITE_NOMEM;

    switch (code & 0xff) {
    case SQLITE_NOMEM:
        return esp_fail(err, ESP_E_NOMEM, "journal %s: %s", j->path, what);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return esp_fail(err, ESP_E_ARG,
                        "journal %s: another coordinator uses it: give each its own --journal FILE", j->path);
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return esp_fail(err, ESP_E_FORMAT, "journal %s: %s: move it away, and the sessions in it are lost",
                        j->path, sqlite3_errmsg(j->db));
    default:
        return esp_fail(err, ESP_E_IO, "journal %s: %s: %s", j->path, what, sqlite3_errmsg(j->db));
    }
}

esp_status esp_journal_exec(struct esp_journal_store *j, const char *text, struct esp_err *err)
{
    return sqlite3_exec(j->db, text, NULL, NULL, NULL) == SQLITE_OK
               ? ESP_OK
               : esp_journal_db_fail(j, "setting up", err);
}

esp_status esp_journal_number(struct esp_journal_store *j, const char *text, int64_t *out,
                              struct esp_err *err)
{
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(j->db, text, -1, &s, NULL);

    *out = 0;
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(s);
        if (rc == SQLITE_ROW)
            *out = sqlite3_column_int64(s, 0);
    }
    if (rc != SQLITE_ROW && rc != SQLITE_DONE) {
        esp_status st = esp_journal_db_fail(j, "reading", err);
        sqlite3_finalize(s);
        return st;
    }
    sqlite3_finalize(s);
    return ESP_OK;
}

esp_status esp_journal_step(struct esp_journal_store *j, sqlite3_stmt *s, bool *row, struct esp_err *err)
{
    const int rc = sqlite3_step(s);
    esp_status st = ESP_OK;

    if (row)
        *row = rc == SQLITE_ROW;
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        st = esp_journal_db_fail(j, "writing", err);
    if (rc != SQLITE_ROW || !row) {
        sqlite3_reset(s);
        sqlite3_clear_bindings(s); /* what was bound is the caller's memory */
    }
    return st;
}

static void done_with(sqlite3_stmt *s)
{
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
}

/* ---- sessions ---- */

static esp_status write_picture(struct esp_journal_store *j, uint64_t session, uint32_t nth,
                                const struct esp_blob *file, struct esp_err *err)
{
    sqlite3_stmt *find = j->stmt[ESP_SQL_FIND_PICTURE], *add = j->stmt[ESP_SQL_ADD_PICTURE],
                 *use = j->stmt[ESP_SQL_USE];
    uint8_t hash[HASH_BYTES];
    int64_t id = 0;
    bool row;
    esp_status st;

    crypto_generichash(hash, sizeof hash, file->data, file->n_bytes, NULL, 0);
    sqlite3_bind_blob(find, 1, hash, sizeof hash, SQLITE_STATIC);
    st = esp_journal_step(j, find, &row, err);
    if (st)
        return st;
    if (row) {
        id = sqlite3_column_int64(find, 0);
        done_with(find);
    } else {
        sqlite3_bind_blob(add, 1, hash, sizeof hash, SQLITE_STATIC);
        sqlite3_bind_blob(add, 2, file->data, (int)file->n_bytes,
                          SQLITE_STATIC); /* at most ESP_MAX_IMAGE_FILE */
        st = esp_journal_step(j, add, NULL, err);
        if (st)
            return st;
        id = sqlite3_last_insert_rowid(j->db);
    }
    sqlite3_bind_int64(use, 1, (sqlite3_int64)session);
    sqlite3_bind_int64(use, 2, nth);
    sqlite3_bind_int64(use, 3, id);
    return esp_journal_step(j, use, NULL, err);
}

esp_status esp_journal_store_add(struct esp_journal_store *j, uint64_t session, const struct esp_peer *owner,
                                 const struct esp_msg *m, struct esp_err *err)
{
    sqlite3_stmt *add = j->stmt[ESP_SQL_ADD];
    uint8_t *header = NULL;
    size_t n_header;
    esp_status st = esp_wire_pack(&header, &n_header, m, err);

    if (st)
        return st;
    sqlite3_bind_int64(add, 1, (sqlite3_int64)session);
    sqlite3_bind_blob(add, 2, m->request.ticket, ESP_TICKET_BYTES, SQLITE_STATIC);
    sqlite3_bind_int(add, 3, (int)owner->member);
    sqlite3_bind_blob(add, 4, owner->key, ESP_KEY_BYTES, SQLITE_STATIC);
    sqlite3_bind_text(add, 5, owner->user, -1, SQLITE_STATIC);
    sqlite3_bind_blob(add, 6, header, (int)n_header, SQLITE_STATIC); /* at most ESP_MAX_HEADER */
    sqlite3_bind_int64(add, 7, (sqlite3_int64)time(NULL));
    st = esp_journal_step(j, add, NULL, err);
    free(header);
    for (uint32_t i = 0; !st && i < m->n_blobs; i++)
        st = write_picture(j, session, i, &m->blob[i], err);
    return st;
}

static void free_blob(void *data, void *hint)
{
    (void)hint;
    free(data);
}

static esp_status read_files(struct esp_journal_store *j, struct esp_blob *blobs, uint32_t *n_blobs,
                             uint64_t session, struct esp_err *err)
{
    sqlite3_stmt *s = j->stmt[ESP_SQL_PICTURES];
    esp_status st;
    bool row;

    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    while (!(st = esp_journal_step(j, s, &row, err)) && row) {
        const void *data = sqlite3_column_blob(s, 0);
        const int n = sqlite3_column_bytes(s, 0);
        void *copy;

        if (*n_blobs == ESP_MAX_BLOBS || !data || n < 1 || (unsigned)n > ESP_MAX_IMAGE_FILE) {
            st = esp_fail(err, ESP_E_FORMAT, "number %u of its pictures is none", *n_blobs + 1);
        } else if (!(copy = malloc((size_t)n))) {
            st = esp_fail(err, ESP_E_NOMEM, "a picture of %d bytes", n);
        } else {
            memcpy(copy, data, (size_t)n);
            blobs[(*n_blobs)++] = (struct esp_blob){.data = copy, .n_bytes = (size_t)n, .release = free_blob};
            continue;
        }
        break;
    }
    done_with(s);
    return st;
}

static esp_status read_records(struct esp_journal_store *j, uint8_t **records, size_t *n_records,
                               uint64_t session, struct esp_err *err)
{
    sqlite3_stmt *s = j->stmt[ESP_SQL_RECORDS];
    esp_status st;
    bool row;

    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    while (!(st = esp_journal_step(j, s, &row, err)) && row) {
        const void *data = sqlite3_column_blob(s, 0);
        const size_t n = (size_t)sqlite3_column_bytes(s, 0);
        uint8_t *more;

        if (!data || n > MAX_RECORDS - *n_records) {
            st = esp_fail(err, ESP_E_FORMAT, "more than %zu bytes of records", MAX_RECORDS);
            break;
        }
        more = realloc(*records, *n_records + n);
        if (!more) {
            st = esp_fail(err, ESP_E_NOMEM, "%zu bytes of records", *n_records + n);
            break;
        }
        memcpy(more + *n_records, data, n);
        *records = more;
        *n_records += n;
    }
    done_with(s);
    return st;
}

static esp_status read_request(struct esp_journal_store *j, struct esp_msg *request, uint64_t session,
                               struct esp_err *err)
{
    sqlite3_stmt *s = j->stmt[ESP_SQL_REQUEST];
    struct esp_blob blobs[ESP_MAX_BLOBS];
    uint32_t n_blobs = 0;
    bool row = false;
    esp_status st = read_files(j, blobs, &n_blobs, session, err);

    if (!st) {
        sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
        st = esp_journal_step(j, s, &row, err);
    }
    if (!st && !row)
        st = esp_fail(err, ESP_E_FORMAT, "it is not there");
    if (!st)
        st = esp_wire_unpack(request, sqlite3_column_blob(s, 0), (size_t)sqlite3_column_bytes(s, 0), blobs,
                             n_blobs, err);
    done_with(s);
    if (st) {
        for (uint32_t i = 0; i < n_blobs; i++)
            free((void *)blobs[i].data);
        return st;
    }
    if (request->kind != ESP_MSG_REQUEST)
        return esp_fail(err, ESP_E_FORMAT, "it is a %s", esp_msg_name(request->kind));
    return ESP_OK;
}

esp_status esp_journal_store_read(struct esp_journal_store *j, struct esp_msg *request, uint8_t **records,
                                  size_t *n_records, uint64_t session, struct esp_err *err)
{
    esp_status st;

    memset(request, 0, sizeof *request);
    *records = NULL;
    *n_records = 0;
    st = read_request(j, request, session, err);
    if (!st)
        st = read_records(j, records, n_records, session, err);
    if (st) {
        esp_msg_finish(request);
        free(*records);
        *records = NULL;
        *n_records = 0;
    }
    return st;
}

esp_status esp_journal_store_progress(struct esp_journal_store *j, uint64_t session, const uint8_t *record,
                                      size_t n_bytes, struct esp_err *err)
{
    sqlite3_stmt *s = j->stmt[ESP_SQL_PROGRESS];

    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    sqlite3_bind_blob64(s, 2, record, n_bytes, SQLITE_STATIC);
    return esp_journal_step(j, s, NULL, err);
}

esp_status esp_journal_store_forget(struct esp_journal_store *j, uint64_t session, struct esp_err *err)
{
    sqlite3_stmt *s = j->stmt[ESP_SQL_FORGET];

    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    return esp_journal_step(j, s, NULL, err);
}

esp_status esp_journal_store_begin(struct esp_journal_store *j, struct esp_err *err)
{
    return esp_journal_step(j, j->stmt[ESP_SQL_BEGIN], NULL, err);
}

esp_status esp_journal_store_commit(struct esp_journal_store *j, struct esp_err *err)
{
    return esp_journal_step(j, j->stmt[ESP_SQL_COMMIT], NULL, err);
}

void esp_journal_store_roll_back(struct esp_journal_store *j)
{
    if (!sqlite3_get_autocommit(j->db)) /* some failures have done it already */
        (void)esp_journal_step(j, j->stmt[ESP_SQL_ROLLBACK], NULL, NULL);
}

void esp_journal_store_shrink(struct esp_journal_store *j)
{
    int64_t n_sessions, n_free;

    if (esp_journal_number(j, "SELECT count(*) FROM (SELECT 1 FROM session LIMIT 1)", &n_sessions, NULL) ==
            ESP_OK &&
        n_sessions == 0 && esp_journal_number(j, "PRAGMA freelist_count", &n_free, NULL) == ESP_OK &&
        n_free > SLACK_PAGES)
        (void)esp_journal_exec(j, "PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)", NULL);
}

void esp_journal_store_close(struct esp_journal_store **store)
{
    struct esp_journal_store *j = *store;

    if (!j)
        return;
    esp_journal_store_forget_left(j);
    for (int i = 0; i < ESP_N_SQL; i++)
        sqlite3_finalize(j->stmt[i]);
    sqlite3_close(j->db);
    free(j);
    *store = NULL;
}

const struct esp_journal_left *esp_journal_store_left(const struct esp_journal_store *j, uint32_t i)
{
    return i < j->n_left ? &j->left[i] : NULL;
}

void esp_journal_store_dropped(const struct esp_journal_store *j, uint32_t *n_other, uint32_t *n_bad)
{
    *n_other = j->n_other;
    *n_bad = j->n_bad;
}

void esp_journal_store_forget_left(struct esp_journal_store *j)
{
    for (uint32_t i = 0; i < j->n_left; i++)
        esp_msg_finish(&j->left[i].request);
    free(j->left);
    j->left = NULL;
    j->n_left = 0;
}
