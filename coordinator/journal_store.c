/* What of SQLite is used, and how: journal_store.h. */
#include "coordinator/journal_store.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define APPLICATION 0x4573704a /* "EspJ" */
#define SCHEMA      1
#define PAGE        4096
#define WAL_LIMIT   "67108864"          /* bytes that the write-ahead log keeps when it begins anew */
#define MAX_RECORDS ((size_t)512 << 20) /* bytes of a session's */
#define SLACK_PAGES 4096                /* unused ones that the file may keep when nobody is left in it */
#define HASH_BYTES  32

/* The trigger: a picture goes with the last session that asks about it. */
static const char schema[] =
    "CREATE TABLE model(id BLOB NOT NULL);"
    "CREATE TABLE session(id INTEGER PRIMARY KEY, ticket BLOB NOT NULL UNIQUE, member INTEGER NOT NULL,"
    " key BLOB NOT NULL, user TEXT NOT NULL, request BLOB NOT NULL, created INTEGER NOT NULL);"
    "CREATE TABLE picture(id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, file BLOB NOT NULL);"
    "CREATE TABLE uses(session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE, nth INTEGER NOT NULL,"
    " picture INTEGER NOT NULL REFERENCES picture, PRIMARY KEY(session, nth)) WITHOUT ROWID;"
    "CREATE INDEX uses_picture ON uses(picture);"
    "CREATE TABLE progress(session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE,"
    " nth INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY(session, nth)) WITHOUT ROWID;"
    "CREATE TRIGGER unused AFTER DELETE ON uses BEGIN DELETE FROM picture WHERE id = old.picture"
    " AND NOT EXISTS (SELECT 1 FROM uses WHERE picture = old.picture); END;";

enum {
    SQL_BEGIN,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_ADD,
    SQL_FIND_PICTURE,
    SQL_ADD_PICTURE,
    SQL_USE,
    SQL_PROGRESS,
    SQL_FORGET,
    SQL_REQUEST,
    SQL_PICTURES,
    SQL_RECORDS,
    N_SQL
};

#define SQL_NEXT_RECORD "(SELECT coalesce(max(nth), 0) + 1 FROM progress WHERE session = ?1)"
static const char *const sql[N_SQL] = {
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

struct esp_journal_store {
    char path[1024];
    sqlite3 *db;
    sqlite3_stmt *stmt[N_SQL];
    struct esp_journal_left *left;
    uint32_t n_left, n_other, n_bad;
};

/* ---- SQLite ---- */

static esp_status db_fail(const struct esp_journal_store *j, const char *what, struct esp_err *err)
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

static esp_status exec(struct esp_journal_store *j, const char *text, struct esp_err *err)
{
    return sqlite3_exec(j->db, text, NULL, NULL, NULL) == SQLITE_OK ? ESP_OK : db_fail(j, "setting up", err);
}

/* The first column of the first row, a number; 0 without any. */
static esp_status number(struct esp_journal_store *j, const char *text, int64_t *out, struct esp_err *err)
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
        esp_status st = db_fail(j, "reading", err);
        sqlite3_finalize(s);
        return st;
    }
    sqlite3_finalize(s);
    return ESP_OK;
}

/* One step of a statement; true in *row if it gave one. Resets it otherwise. */
static esp_status step(struct esp_journal_store *j, sqlite3_stmt *s, bool *row, struct esp_err *err)
{
    const int rc = sqlite3_step(s);
    esp_status st = ESP_OK;

    if (row)
        *row = rc == SQLITE_ROW;
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        st = db_fail(j, "writing", err);
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
    sqlite3_stmt *find = j->stmt[SQL_FIND_PICTURE], *add = j->stmt[SQL_ADD_PICTURE], *use = j->stmt[SQL_USE];
    uint8_t hash[HASH_BYTES];
    int64_t id = 0;
    bool row;
    esp_status st;

    crypto_generichash(hash, sizeof hash, file->data, file->n_bytes, NULL, 0);
    sqlite3_bind_blob(find, 1, hash, sizeof hash, SQLITE_STATIC);
    st = step(j, find, &row, err);
    if (st)
        return st;
    if (row) {
        id = sqlite3_column_int64(find, 0);
        done_with(find);
    } else {
        sqlite3_bind_blob(add, 1, hash, sizeof hash, SQLITE_STATIC);
        sqlite3_bind_blob(add, 2, file->data, (int)file->n_bytes,
                          SQLITE_STATIC); /* at most ESP_MAX_IMAGE_FILE */
        st = step(j, add, NULL, err);
        if (st)
            return st;
        id = sqlite3_last_insert_rowid(j->db);
    }
    sqlite3_bind_int64(use, 1, (sqlite3_int64)session);
    sqlite3_bind_int64(use, 2, nth);
    sqlite3_bind_int64(use, 3, id);
    return step(j, use, NULL, err);
}

esp_status esp_journal_store_add(struct esp_journal_store *j, uint64_t session, const struct esp_peer *owner,
                                 const struct esp_msg *m, struct esp_err *err)
{
    sqlite3_stmt *add = j->stmt[SQL_ADD];
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
    st = step(j, add, NULL, err);
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
    sqlite3_stmt *s = j->stmt[SQL_PICTURES];
    esp_status st;
    bool row;

    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    while (!(st = step(j, s, &row, err)) && row) {
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
    sqlite3_stmt *s = j->stmt[SQL_RECORDS];
    esp_status st;
    bool row;

    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    while (!(st = step(j, s, &row, err)) && row) {
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
    sqlite3_stmt *s = j->stmt[SQL_REQUEST];
    struct esp_blob blobs[ESP_MAX_BLOBS];
    uint32_t n_blobs = 0;
    bool row = false;
    esp_status st = read_files(j, blobs, &n_blobs, session, err);

    if (!st) {
        sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
        st = step(j, s, &row, err);
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
    sqlite3_stmt *s = j->stmt[SQL_PROGRESS];

    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    sqlite3_bind_blob64(s, 2, record, n_bytes, SQLITE_STATIC);
    return step(j, s, NULL, err);
}

esp_status esp_journal_store_forget(struct esp_journal_store *j, uint64_t session, struct esp_err *err)
{
    sqlite3_stmt *s = j->stmt[SQL_FORGET];

    sqlite3_bind_int64(s, 1, (sqlite3_int64)session);
    return step(j, s, NULL, err);
}

esp_status esp_journal_store_begin(struct esp_journal_store *j, struct esp_err *err)
{
    return step(j, j->stmt[SQL_BEGIN], NULL, err);
}

esp_status esp_journal_store_commit(struct esp_journal_store *j, struct esp_err *err)
{
    return step(j, j->stmt[SQL_COMMIT], NULL, err);
}

void esp_journal_store_roll_back(struct esp_journal_store *j)
{
    if (!sqlite3_get_autocommit(j->db)) /* some failures have done it already */
        (void)step(j, j->stmt[SQL_ROLLBACK], NULL, NULL);
}

void esp_journal_store_shrink(struct esp_journal_store *j)
{
    int64_t n_sessions, n_free;

    if (number(j, "SELECT count(*) FROM (SELECT 1 FROM session LIMIT 1)", &n_sessions, NULL) == ESP_OK &&
        n_sessions == 0 && number(j, "PRAGMA freelist_count", &n_free, NULL) == ESP_OK &&
        n_free > SLACK_PAGES)
        (void)exec(j, "PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)", NULL);
}

/* ---- opening ---- */

/* A regular file that is ours alone, an empty one if there was none. */
static esp_status make_file(const char *path, struct esp_err *err)
{
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
    esp_status st = ESP_OK;
    struct stat info;

    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "journal %s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0)
        st = esp_fail(err, ESP_E_IO, "journal %s: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        st = esp_fail(err, ESP_E_IO, "journal %s: not a regular file", path);
    else if ((info.st_mode & 077) && fchmod(fd, 0600) != 0)
        st =
            esp_fail(err, ESP_E_IO, "journal %s: prompts are private, but its mode cannot be set to 0600: %s",
                     path, strerror(errno));
    close(fd); /* before SQLite has locks on it: closing any descriptor of a file lets go of them all */
    return st;
}

static esp_status open_db(struct esp_journal_store *j, uint64_t max_bytes, struct esp_err *err)
{
    char limit[96];
    esp_status st;

    if (sqlite3_open_v2(j->path, &j->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK)
        return db_fail(j, "opening", err);
    sqlite3_extended_result_codes(j->db, 1);
    sqlite3_db_config(j->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    snprintf(limit, sizeof limit, "PRAGMA max_page_count=%llu",
             (unsigned long long)((max_bytes ? max_bytes : ESP_JOURNAL_MAX_BYTES) / PAGE));
    st = exec(j,
              "PRAGMA trusted_schema=OFF; PRAGMA locking_mode=EXCLUSIVE; PRAGMA page_size=4096;"
              "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA foreign_keys=ON; PRAGMA synchronous=NORMAL;"
              "PRAGMA journal_size_limit=" WAL_LIMIT,
              err);
    if (!st)
        if (!st)
            st = exec(j, "PRAGMA journal_mode=WAL", err);
    if (!st)
        st = exec(j, limit, err);
    return st;
}

static esp_status prepare_all(struct esp_journal_store *j, struct esp_err *err)
{
    for (int i = 0; i < N_SQL; i++)
        if (sqlite3_prepare_v3(j->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &j->stmt[i], NULL) != SQLITE_OK)
            return db_fail(j, "preparing", err);
    return ESP_OK;
}

/* Ours, and of this version; an empty file becomes that. */
static esp_status check_schema(struct esp_journal_store *j, struct esp_err *err)
{
    int64_t n_things, application = 0, version = 0;
    char set[96];
    esp_status st = number(j, "SELECT count(*) FROM sqlite_master", &n_things, err);

    if (!st)
        st = number(j, "PRAGMA application_id", &application, err);
    if (!st)
        st = number(j, "PRAGMA user_version", &version, err);
    if (st)
        return st;
    if (n_things == 0 && application == 0 && version == 0) {
        snprintf(set, sizeof set, "PRAGMA application_id=%d; PRAGMA user_version=%d", APPLICATION, SCHEMA);
        st = exec(j, schema, err);
        return st ? st : exec(j, set, err);
    }
    if (application != APPLICATION)
        return esp_fail(err, ESP_E_FORMAT, "journal %s: some other program's database: choose another file",
                        j->path);
    if (version != SCHEMA)
        return esp_fail(
            err, ESP_E_FORMAT,
            "journal %s: of version %lld, this coordinator writes %d: move it away, and the sessions in "
            "it are lost",
            j->path, (long long)version, SCHEMA);
    return ESP_OK;
}

static esp_status check_model(struct esp_journal_store *j, const uint8_t *model, struct esp_err *err)
{
    sqlite3_stmt *s = NULL;
    int64_t n = 0;
    bool same = false;
    esp_status st = ESP_OK;

    if (sqlite3_prepare_v2(j->db, "SELECT 1 FROM model WHERE id = ?1", -1, &s, NULL) != SQLITE_OK)
        return db_fail(j, "reading", err);
    sqlite3_bind_blob(s, 1, model, ESP_JOURNAL_MODEL_BYTES, SQLITE_STATIC);
    st = step(j, s, &same, err);
    sqlite3_finalize(s);
    if (st || same)
        return st;
    st = number(j, "SELECT count(*) FROM session", &n, err);
    if (!st)
        st = exec(j, "DELETE FROM session; DELETE FROM model", err);
    if (st)
        return st;
    j->n_other = (uint32_t)n;
    if (sqlite3_prepare_v2(j->db, "INSERT INTO model(id) VALUES(?1)", -1, &s, NULL) != SQLITE_OK)
        return db_fail(j, "writing", err);
    sqlite3_bind_blob(s, 1, model, ESP_JOURNAL_MODEL_BYTES, SQLITE_STATIC);
    st = step(j, s, NULL, err);
    sqlite3_finalize(s);
    return st;
}

/* A row of the list, taken as it is: false if it cannot be one of ours. */
static bool read_left(struct esp_journal_left *out, sqlite3_stmt *s)
{
    static const uint8_t none[ESP_TICKET_BYTES];
    struct esp_blob blobs[ESP_MAX_BLOBS];
    const sqlite3_int64 id = sqlite3_column_int64(s, 0), n_files = sqlite3_column_int64(s, 6);
    const void *ticket = sqlite3_column_blob(s, 1), *key = sqlite3_column_blob(s, 3);
    const int n_ticket = sqlite3_column_bytes(s, 1), n_key = sqlite3_column_bytes(s, 3);
    const int member = sqlite3_column_int(s, 2);
    const unsigned char *user = sqlite3_column_text(s, 4);
    const int n_user = sqlite3_column_bytes(s, 4);
    const void *header = sqlite3_column_blob(s, 5);
    const sqlite3_int64 n_bytes = sqlite3_column_int64(s, 7);

    memset(out, 0, sizeof *out);
    if (id < 1 || n_ticket != ESP_TICKET_BYTES || n_key != ESP_KEY_BYTES || !user || n_user > ESP_MAX_NAME ||
        (member != ESP_MEMBER_NONE && member != ESP_MEMBER_CLIENT) || !header || n_files < 0 ||
        n_files > ESP_MAX_BLOBS || n_bytes < 0)
        return false;
    for (sqlite3_int64 i = 0; i < n_files; i++) /* the files themselves are looked at when they are loaded */
        blobs[i] = (struct esp_blob){.data = "", .n_bytes = 1};
    if (esp_wire_unpack(&out->request, header, (size_t)sqlite3_column_bytes(s, 5), blobs, (uint32_t)n_files,
                        NULL))
        return false;
    out->request.n_blobs = 0;
    if (out->request.kind != ESP_MSG_REQUEST || out->request.request.trace ||
        memcmp(out->request.request.ticket, none, sizeof none) == 0 ||
        memcmp(out->request.request.ticket, ticket, sizeof none) != 0) {
        esp_msg_finish(&out->request);
        return false;
    }
    out->session = (uint64_t)id;
    out->file_bytes = (uint64_t)n_bytes;
    out->owner.member = (enum esp_member)member;
    memcpy(out->owner.key, key, ESP_KEY_BYTES);
    memcpy(out->owner.user, user, (size_t)n_user + 1);
    return true;
}

static esp_status read_list(struct esp_journal_store *j, struct esp_err *err)
{
    static const char list[] =
        "SELECT id, ticket, member, key, user, request, (SELECT count(*) FROM uses WHERE session = "
        "session.id),"
        " (SELECT coalesce(sum(length(file)), 0) FROM uses JOIN picture ON picture.id = uses.picture"
        " WHERE session = session.id) FROM session ORDER BY id";
    sqlite3_stmt *s = NULL, *forget = j->stmt[SQL_FORGET];
    int64_t n = 0, *bad = NULL;
    uint32_t n_max, n_bad = 0;
    esp_status st = number(j, "SELECT count(*) FROM session", &n, err);
    bool row;

    if (st)
        return st;
    n_max = n < (1 << 20) ? (uint32_t)n : 1 << 20;
    j->left = calloc((size_t)n_max + 1, sizeof *j->left);
    bad = calloc((size_t)n_max + 1, sizeof *bad);
    if (!j->left || !bad) {
        free(bad);
        return esp_fail(err, ESP_E_NOMEM, "journal %s: %u sessions", j->path, n_max);
    }
    if (sqlite3_prepare_v2(j->db, list, -1, &s, NULL) != SQLITE_OK)
        st = db_fail(j, "reading", err);
    while (!st && j->n_left + n_bad < n_max && !(st = step(j, s, &row, err)) && row) {
        if (read_left(&j->left[j->n_left], s))
            j->n_left++;
        else
            bad[n_bad++] = sqlite3_column_int64(s, 0);
    }
    sqlite3_finalize(s);
    for (uint32_t i = 0; !st && i < n_bad; i++) {
        sqlite3_bind_int64(forget, 1, bad[i]);
        st = step(j, forget, NULL, err);
    }
    if (!st) /* what belongs to nobody, if others have been at the file */
        st = exec(j,
                  "DELETE FROM uses WHERE session NOT IN (SELECT id FROM session);"
                  "DELETE FROM progress WHERE session NOT IN (SELECT id FROM session);"
                  "DELETE FROM picture WHERE id NOT IN (SELECT picture FROM uses)",
                  err);
    j->n_bad = n_bad;
    free(bad);
    return st;
}

esp_status esp_journal_store_open(struct esp_journal_store **out, const char *path,
                                  const uint8_t model[ESP_JOURNAL_MODEL_BYTES], uint64_t max_bytes,
                                  struct esp_err *err)
{
    struct esp_journal_store *j = NULL;
    esp_status st;

    *out = NULL;
    if (sodium_init() < 0) {
        st = esp_fail(err, ESP_E_INTERNAL, "libsodium does not start");
        goto done;
    }
    j = calloc(1, sizeof *j);
    if (!j) {
        st = esp_fail(err, ESP_E_NOMEM, "the journal");
        goto done;
    }
    if (snprintf(j->path, sizeof j->path, "%s", path) >= (int)sizeof j->path) {
        st = esp_fail(err, ESP_E_ARG, "--journal: a path of more than %zu bytes", sizeof j->path - 1);
        goto done;
    }
    st = make_file(path, err);
    if (!st)
        st = open_db(j, max_bytes, err);
    if (!st)
        st = exec(j, "BEGIN IMMEDIATE", err);
    if (!st)
        st = check_schema(j, err);
    if (!st)
        st = check_model(j, model, err);
    if (!st)
        st = prepare_all(j, err);
    if (!st)
        st = read_list(j, err);
    if (!st)
        st = exec(j, "COMMIT", err);
    if (st)
        goto done;
    *out = j;
    j = NULL;
done:
    esp_journal_store_close(&j);
    return st;
}

void esp_journal_store_close(struct esp_journal_store **store)
{
    struct esp_journal_store *j = *store;

    if (!j)
        return;
    esp_journal_store_forget_left(j);
    for (int i = 0; i < N_SQL; i++)
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
