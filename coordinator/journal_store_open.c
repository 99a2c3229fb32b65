/* A journal's file: ours alone, of this version and this model, and what was left in it. */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/journal_store_state.h"

#define APPLICATION 0x4573704a /* "EspJ" */
#define SCHEMA      1
#define PAGE        4096
#define WAL_LIMIT   "67108864" /* bytes that the write-ahead log keeps when it begins anew */

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
        return esp_journal_db_fail(j, "opening", err);
    sqlite3_extended_result_codes(j->db, 1);
    sqlite3_db_config(j->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    snprintf(limit, sizeof limit, "PRAGMA max_page_count=%llu",
             (unsigned long long)((max_bytes ? max_bytes : ESP_JOURNAL_MAX_BYTES) / PAGE));
    st = esp_journal_exec(j,
                          "PRAGMA trusted_schema=OFF; PRAGMA locking_mode=EXCLUSIVE; PRAGMA page_size=4096;"
                          "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA foreign_keys=ON; PRAGMA synchronous=NORMAL;"
                          "PRAGMA journal_size_limit=" WAL_LIMIT,
                          err);
    if (!st)
        st = esp_journal_exec(j, "PRAGMA journal_mode=WAL", err);
    if (!st)
        st = esp_journal_exec(j, limit, err);
    return st;
}

static esp_status prepare_all(struct esp_journal_store *j, struct esp_err *err)
{
    for (int i = 0; i < ESP_N_SQL; i++)
        if (sqlite3_prepare_v3(j->db, esp_journal_sql[i], -1, SQLITE_PREPARE_PERSISTENT, &j->stmt[i], NULL) !=
            SQLITE_OK)
            return esp_journal_db_fail(j, "preparing", err);
    return ESP_OK;
}

/* Ours, and of this version; an empty file becomes that. */
static esp_status check_schema(struct esp_journal_store *j, struct esp_err *err)
{
    int64_t n_things, application = 0, version = 0;
    char set[96];
    esp_status st = esp_journal_number(j, "SELECT count(*) FROM sqlite_master", &n_things, err);

    if (!st)
        st = esp_journal_number(j, "PRAGMA application_id", &application, err);
    if (!st)
        st = esp_journal_number(j, "PRAGMA user_version", &version, err);
    if (st)
        return st;
    if (n_things == 0 && application == 0 && version == 0) {
        snprintf(set, sizeof set, "PRAGMA application_id=%d; PRAGMA user_version=%d", APPLICATION, SCHEMA);
        st = esp_journal_exec(j, schema, err);
        return st ? st : esp_journal_exec(j, set, err);
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
        return esp_journal_db_fail(j, "reading", err);
    sqlite3_bind_blob(s, 1, model, ESP_JOURNAL_MODEL_BYTES, SQLITE_STATIC);
    st = esp_journal_step(j, s, &same, err);
    sqlite3_finalize(s);
    if (st || same)
        return st;
    st = esp_journal_number(j, "SELECT count(*) FROM session", &n, err);
    if (!st)
        st = esp_journal_exec(j, "DELETE FROM session; DELETE FROM model", err);
    if (st)
        return st;
    j->n_other = (uint32_t)n;
    if (sqlite3_prepare_v2(j->db, "INSERT INTO model(id) VALUES(?1)", -1, &s, NULL) != SQLITE_OK)
        return esp_journal_db_fail(j, "writing", err);
    sqlite3_bind_blob(s, 1, model, ESP_JOURNAL_MODEL_BYTES, SQLITE_STATIC);
    st = esp_journal_step(j, s, NULL, err);
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
    sqlite3_stmt *s = NULL, *forget = j->stmt[ESP_SQL_FORGET];
    int64_t n = 0, *bad = NULL;
    uint32_t n_max, n_bad = 0;
    esp_status st = esp_journal_number(j, "SELECT count(*) FROM session", &n, err);
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
        st = esp_journal_db_fail(j, "reading", err);
    while (!st && j->n_left + n_bad < n_max && !(st = esp_journal_step(j, s, &row, err)) && row) {
        if (read_left(&j->left[j->n_left], s))
            j->n_left++;
        else
            bad[n_bad++] = sqlite3_column_int64(s, 0);
    }
    sqlite3_finalize(s);
    for (uint32_t i = 0; !st && i < n_bad; i++) {
        sqlite3_bind_int64(forget, 1, bad[i]);
        st = esp_journal_step(j, forget, NULL, err);
    }
    if (!st) /* what belongs to nobody, if others have been at the file */
        st = esp_journal_exec(j,
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
        st = esp_journal_exec(j, "BEGIN IMMEDIATE", err);
    if (!st)
        st = check_schema(j, err);
    if (!st)
        st = check_model(j, model, err);
    if (!st)
        st = prepare_all(j, err);
    if (!st)
        st = read_list(j, err);
    if (!st)
        st = esp_journal_exec(j, "COMMIT", err);
    if (st)
        goto done;
    *out = j;
    j = NULL;
done:
    esp_journal_store_close(&j);
    return st;
}
