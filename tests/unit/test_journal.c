/* The journal: what was handed over is there after any end of the process; what is damaged costs only itself. */
#include "coordinator/journal.h"
#include "tests/support/temp.h"

#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const uint8_t model[ESP_JOURNAL_MODEL_BYTES] = {1, 2, 3};
static const char picture_a[] = "a picture", picture_b[] = "another picture";

struct place {
    char dir[64], path[96];
};

static int setup(void **state)
{
    static struct place p;

    assert_int_equal(esp_temp_make(p.dir, sizeof p.dir), 0);
    snprintf(p.path, sizeof p.path, "%s/j", p.dir);
    *state = &p;
    return 0;
}

static int teardown(void **state)
{
    const struct place *p = *state;

    return esp_temp_remove(p->dir);
}

static struct esp_journal *open_with(const struct place *p, uint64_t max_bytes)
{
    struct esp_journal *j;
    struct esp_err err;

    if (esp_journal_open(&j, p->path, model, max_bytes, &err))
        fail_msg("%s", err.text);
    return j;
}

static void refused(const struct place *p, esp_status code, const char *fragment)
{
    struct esp_journal *j;
    struct esp_err err;

    assert_int_equal(esp_journal_open(&j, p->path, model, 0, &err), code);
    assert_null(j);
    if (!strstr(err.text, fragment) || !strstr(err.text, p->path))
        fail_msg("\"%s\", expected \"...%s...\"", err.text, fragment);
}

/* Waits until everything is written. */
static void settle(struct esp_journal *j)
{
    while (esp_journal_busy(j)) {
        struct esp_wait wait = {.fd = esp_journal_fd(j)};

        (void)esp_link_wait(&wait, 1, 100, NULL);
    }
}

/* The next event but that something was written. */
static bool take(struct esp_journal *j, struct esp_journal_event *e)
{
    while (esp_journal_take(j, e))
        if (e->what != ESP_JOURNAL_WRITTEN)
            return true;
    return false;
}

static void no_event(struct esp_journal *j)
{
    struct esp_journal_event e;

    settle(j);
    assert_false(take(j, &e));
}

/* The request of session n, with these pictures. */
static struct esp_msg request(uint64_t n, const char *a, const char *b)
{
    static const uint32_t ban[] = {3, 9};
    struct esp_msg m = {.kind = ESP_MSG_REQUEST};
    static const char *const names[] = {"a.png", "b.png"};

    m.request = (struct esp_msg_request){.id = 100 + n,
                                         .prompt = "caption en",
                                         .suffix = "a",
                                         .max_tokens = 7,
                                         .sampling = {.temperature = 0.5, .seed = n, .ban = ban, .n_ban = 2},
                                         .image_names = names,
                                         .ticket = {(uint8_t)n, [31] = 1}};
    if (a)
        m.blob[m.n_blobs++] = (struct esp_blob){.data = a, .n_bytes = strlen(a)};
    if (b)
        m.blob[m.n_blobs++] = (struct esp_blob){.data = b, .n_bytes = strlen(b)};
    m.request.n_images = m.n_blobs;
    return m;
}

static struct esp_peer owner(uint64_t n)
{
    struct esp_peer p = {.n = 3, .id = {1, 2, 3}, .member = ESP_MEMBER_CLIENT, .key = {(uint8_t)n}};

    snprintf(p.user, sizeof p.user, "user%d", (int)n);
    return p;
}

static void add(struct esp_journal *j, uint64_t n, const char *a, const char *b)
{
    struct esp_msg m = request(n, a, b);
    const struct esp_peer who = owner(n);

    assert_int_equal(esp_journal_add(j, n, &who, &m, NULL), ESP_OK);
    assert_int_equal(m.kind, ESP_MSG_NONE);
}

static void progress(struct esp_journal *j, uint64_t n, const char *text)
{
    assert_int_equal(esp_journal_progress(j, n, (uint8_t *)strdup(text), strlen(text), NULL), ESP_OK);
}

static struct esp_journal_event load(struct esp_journal *j, uint64_t n)
{
    struct esp_journal_event e;

    assert_int_equal(esp_journal_load(j, n, NULL), ESP_OK);
    settle(j);
    assert_true(take(j, &e));
    assert_int_equal(e.what, ESP_JOURNAL_LOADED);
    assert_int_equal(e.session, n);
    return e;
}

static void has(struct esp_journal *j, uint64_t n, const char *a, const char *b, const char *records)
{
    struct esp_journal_event e = load(j, n);
    const struct esp_msg_request *r = &e.request.request;
    const char *const want[] = {a, b};

    if (e.st)
        fail_msg("session %d: %s", (int)n, e.err.text);
    assert_int_equal(r->id, 100 + n);
    assert_string_equal(r->prompt, "caption en");
    assert_string_equal(r->suffix, "a");
    assert_int_equal(r->max_tokens, 7);
    assert_true(r->sampling.temperature == 0.5 && r->sampling.seed == n);
    assert_int_equal(r->sampling.n_ban, 2);
    assert_int_equal(r->sampling.ban[1], 9);
    assert_int_equal(e.request.n_blobs, (a != NULL) + (b != NULL));
    for (uint32_t i = 0; i < e.request.n_blobs; i++) {
        assert_int_equal(e.request.blob[i].n_bytes, strlen(want[i]));
        assert_memory_equal(e.request.blob[i].data, want[i], strlen(want[i]));
        assert_string_equal(r->image_names[i], i ? "b.png" : "a.png");
    }
    assert_int_equal(e.n_records, strlen(records));
    if (e.n_records)
        assert_memory_equal(e.records, records, e.n_records);
    esp_msg_finish(&e.request);
    free(e.records);
}

static void left(const struct esp_journal *j, uint32_t i, uint64_t n, uint64_t file_bytes)
{
    const struct esp_journal_left *l = esp_journal_left(j, i);
    const struct esp_peer who = owner(n);

    assert_non_null(l);
    assert_int_equal(l->session, n);
    assert_int_equal(l->request.request.id, 100 + n);
    assert_int_equal(l->request.request.ticket[0], n);
    assert_int_equal(l->owner.n, 0);
    assert_int_equal(l->owner.member, who.member);
    assert_memory_equal(l->owner.key, who.key, ESP_KEY_BYTES);
    assert_string_equal(l->owner.user, who.user);
    assert_true(l->file_bytes == file_bytes);
}

/* By SQLite itself, while nobody has the file open. */
static int64_t query(const struct place *p, const char *text)
{
    sqlite3 *db;
    sqlite3_stmt *s;
    int64_t n = -1;

    assert_int_equal(sqlite3_open(p->path, &db), SQLITE_OK);
    if (sqlite3_prepare_v2(db, text, -1, &s, NULL) != SQLITE_OK)
        fail_msg("%s: %s", text, sqlite3_errmsg(db));
    if (sqlite3_step(s) == SQLITE_ROW)
        n = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    sqlite3_close(db);
    return n;
}

/* ---- what is there ---- */

static void test_round_trip(void **state)
{
    const struct place *p = *state;
    struct esp_journal *j = open_with(p, 0);
    struct esp_journal_event written;
    struct stat info;
    uint32_t other, bad;

    assert_null(esp_journal_left(j, 0));
    add(j, 1, picture_a, NULL);
    settle(j);
    assert_true(esp_journal_take(j, &written));
    assert_int_equal(written.what, ESP_JOURNAL_WRITTEN);
    assert_int_equal(written.session, 1);
    assert_false(esp_journal_take(j, &written));
    add(j, 2, picture_a, picture_b);
    add(j, 3, NULL, NULL);
    add(j, 4, picture_b, picture_b);
    progress(j, 1, "one");
    settle(j);
    progress(j, 2, "zwei");
    progress(j, 1, ", two");
    esp_journal_forget(j, 3);
    no_event(j);
    esp_journal_close(&j);
    assert_int_equal(stat(p->path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(query(p, "SELECT count(*) FROM picture"), 2); /* each but once */

    j = open_with(p, 0);
    esp_journal_dropped(j, &other, &bad);
    assert_int_equal(other + bad, 0);
    left(j, 0, 1, strlen(picture_a));
    left(j, 1, 2, strlen(picture_a) + strlen(picture_b));
    left(j, 2, 4, 2 * strlen(picture_b));
    assert_null(esp_journal_left(j, 3));
    esp_journal_forget_left(j);
    has(j, 1, picture_a, NULL, "one, two");
    has(j, 2, picture_a, picture_b, "zwei");
    has(j, 4, picture_b, picture_b, "");
    progress(j, 4, "four"); /* they go on */
    esp_journal_forget(j, 1);
    esp_journal_forget(j, 2);
    no_event(j);
    esp_journal_close(&j);
    assert_int_equal(query(p, "SELECT count(*) FROM picture"), 1); /* nobody asks about the other any more */

    j = open_with(p, 0);
    left(j, 0, 4, 2 * strlen(picture_b));
    assert_null(esp_journal_left(j, 1));
    has(j, 4, picture_b, picture_b, "four");
    esp_journal_forget(j, 4);
    esp_journal_close(&j); /* writes what was handed over */
    assert_int_equal(query(p, "SELECT (SELECT count(*) FROM session) + (SELECT count(*) FROM picture)"
                              " + (SELECT count(*) FROM uses) + (SELECT count(*) FROM progress)"),
                     0);
}

/* A coordinator in a process of its own: does what it is told by `act`, says so, and waits for its end. */
static pid_t other_process(const struct place *p, void (*act)(struct esp_journal *j))
{
    int fd[2];
    char byte;
    pid_t pid;

    assert_int_equal(pipe(fd), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct esp_journal *j;

        if (esp_journal_open(&j, p->path, model, 0, NULL))
            _exit(1);
        act(j);
        settle(j);
        if (write(fd[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(fd[1]);
    assert_int_equal(read(fd[0], &byte, 1), 1);
    close(fd[0]);
    return pid;
}

static void kill_it(pid_t pid)
{
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void ask_twice(struct esp_journal *j)
{
    add(j, 1, picture_a, picture_b);
    add(j, 2, NULL, NULL);
    progress(j, 1, "x");
    settle(j);
    progress(j, 1, "y");
}

static void go_on(struct esp_journal *j)
{
    progress(j, 1, "z");
    esp_journal_forget(j, 2);
}

static void test_killed(void **state)
{
    const struct place *p = *state;
    struct esp_journal *j;

    kill_it(other_process(p, ask_twice));
    kill_it(other_process(p, go_on)); /* what is in the write-ahead log is found by a second one too */
    j = open_with(p, 0);
    left(j, 0, 1, strlen(picture_a) + strlen(picture_b));
    assert_null(esp_journal_left(j, 1));
    has(j, 1, picture_a, picture_b, "xyz");
    esp_journal_close(&j);
}

static void test_second_coordinator(void **state)
{
    const struct place *p = *state;
    const pid_t first = other_process(p, ask_twice);
    struct esp_journal *j;

    refused(p, ESP_E_ARG, "another coordinator uses it: give each its own --journal FILE");
    refused(p, ESP_E_ARG, "another coordinator"); /* having asked has not loosened the lock */
    kill_it(first);
    j = open_with(p, 0);
    has(j, 1, picture_a, picture_b, "xy");
    esp_journal_close(&j);
}

static void test_other_model(void **state)
{
    const struct place *p = *state;
    static const uint8_t another[ESP_JOURNAL_MODEL_BYTES] = {9};
    struct esp_journal *j = open_with(p, 0);
    uint32_t other, bad;

    ask_twice(j);
    esp_journal_close(&j);
    assert_int_equal(esp_journal_open(&j, p->path, another, 0, NULL), ESP_OK);
    esp_journal_dropped(j, &other, &bad);
    assert_int_equal(other, 2);
    assert_null(esp_journal_left(j, 0));
    esp_journal_close(&j);
    j = open_with(p, 0); /* and it does not come back */
    assert_null(esp_journal_left(j, 0));
    esp_journal_dropped(j, &other, &bad);
    assert_int_equal(other + bad, 0);
    esp_journal_close(&j);
}

/* ---- damage ---- */

/* Rows that cannot be ours are dropped at the opening; their neighbours are not. */
static void test_bad_sessions(void **state)
{
    const struct place *p = *state;
    static const char *const damage[] = {
        "UPDATE session SET request = x'00112233' WHERE id = 1",
        "UPDATE session SET request = x'' WHERE id = 1",
        "UPDATE session SET request = zeroblob(100000) WHERE id = 1",
        "UPDATE session SET request = substr(request, 1, length(request) - 1) WHERE id = 1",
        "UPDATE session SET ticket = x'01' WHERE id = 1",
        "UPDATE session SET ticket = zeroblob(32) WHERE id = 1",
        "UPDATE session SET key = x'01' WHERE id = 1",
        "UPDATE session SET key = 'text that is as long as a key is' WHERE id = 1", /* 32 bytes: taken as they are */
        "UPDATE session SET member = 2 WHERE id = 1",
        "UPDATE session SET member = -1 WHERE id = 1",
        "UPDATE session SET user = 'a name that is far longer than any that an allow list may hold, by all "
        "means'"
        " WHERE id = 1",
        "DELETE FROM uses WHERE session = 1 AND nth = 0",
        "INSERT INTO uses SELECT 1, 7, picture FROM uses WHERE session = 1",
        "UPDATE session SET id = -5 WHERE id = 1",
    };

    for (size_t i = 0; i < sizeof damage / sizeof damage[0]; i++) {
        const bool harmless = strstr(damage[i], "as they are") || strstr(damage[i], "as long as a key");
        struct esp_journal *j = open_with(p, 0);
        uint32_t other, bad;

        print_message("%s\n", damage[i]);
        add(j, 1, picture_a, NULL);
        add(j, 2, NULL, NULL);
        progress(j, 2, "two");
        no_event(j);
        esp_journal_close(&j);
        query(p, damage[i]);
        j = open_with(p, 0);
        esp_journal_dropped(j, &other, &bad);
        assert_int_equal(bad, !harmless);
        left(j, harmless, 2, 0);
        assert_null(esp_journal_left(j, 1 + harmless));
        has(j, 2, NULL, NULL, "two");
        esp_journal_forget(j, 1);
        esp_journal_forget(j, 2);
        no_event(j);
        esp_journal_close(&j);
        assert_int_equal(query(p, "SELECT count(*) FROM session"), 0);
        assert_int_equal(query(p, "SELECT count(*) FROM picture"), 0);
    }
}

/* What shows when a session is read: an event says so. */
static void test_bad_pictures(void **state)
{
    const struct place *p = *state;
    struct esp_journal *j = open_with(p, 0);
    struct esp_journal_event e;

    ask_twice(j);
    esp_journal_close(&j);
    query(p, "UPDATE picture SET file = x'' WHERE id = 2");
    j = open_with(p, 0);
    e = load(j, 1);
    assert_int_equal(e.st, ESP_E_FORMAT);
    assert_non_null(strstr(e.err.text, "number 2 of its pictures is none"));
    assert_null(e.records);
    has(j, 2, NULL, NULL, "");
    e = load(j, 99);
    assert_int_equal(e.st, ESP_E_FORMAT);
    esp_journal_close(&j);
}

static void write_file(const struct place *p, const char *text, size_t n)
{
    FILE *f = fopen(p->path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static void test_no_journal(void **state)
{
    const struct place *p = *state;
    static char zeros[8192];
    struct place nowhere = *p;

    write_file(
        p,
        "no database at all, but rather more than the hundred bytes of a header, so that it is not taken "
        "for a new one",
        100);
    refused(p, ESP_E_FORMAT, "move it away");
    write_file(p, zeros, sizeof zeros);
    refused(p, ESP_E_FORMAT, "");
    unlink(p->path);
    query(p, "CREATE TABLE mine(x)");
    refused(p, ESP_E_FORMAT, "some other program's");
    unlink(p->path);
    esp_journal_close(&(struct esp_journal *){open_with(p, 0)});
    query(p, "PRAGMA user_version = 99");
    refused(p, ESP_E_FORMAT, "of version 99");
    snprintf(nowhere.path, sizeof nowhere.path, "%s/no/j", p->dir);
    refused(&nowhere, ESP_E_IO, "No such file");
    snprintf(nowhere.path, sizeof nowhere.path, "%s", p->dir);
    refused(&nowhere, ESP_E_IO, "");
    snprintf(nowhere.path, sizeof nowhere.path, "/dev/null");
    refused(&nowhere, ESP_E_IO, "not a regular file");
}

/* A full disk costs the session that found it full, and nobody else. */
static void test_full(void **state)
{
    enum { BIG = 3 << 20 };
    const struct place *p = *state;
    struct esp_journal *j = open_with(p, 1 << 20);
    char *big = malloc(BIG + 1);
    struct esp_journal_event e;
    uint32_t n = 0;

    assert_non_null(big);
    memset(big, 'x', BIG);
    big[BIG] = '\0';
    add(j, 1, picture_a, NULL);
    add(j, 2, big, NULL);
    add(j, 3, picture_b, NULL);
    progress(j, 3, "three");
    progress(j, 2, "two"); /* of one that is not there */
    settle(j);
    while (take(j, &e)) {
        assert_int_equal(e.what, ESP_JOURNAL_LOST);
        assert_int_equal(e.session, 2);
        assert_int_equal(e.st, ESP_E_IO);
        if (n++ == 0)
            assert_non_null(strstr(e.err.text, "full"));
    }
    assert_int_equal(n, 2);
    big[100000] = '\0'; /* room for some: until the file is full, and when somebody leaves, again */
    for (uint64_t s = 10; s < 30; s++) {
        memset(big, (int)('a' + s - 10), 100000);
        add(j, s, big, NULL);
        settle(j); /* before the bytes change */
    }
    for (n = 0; take(j, &e); n++)
        assert_int_equal(e.st, ESP_E_IO);
    assert_in_range(n, 9, 19);
    esp_journal_forget(j, 10);
    add(j, 40, big, NULL);
    no_event(j);
    esp_journal_close(&j);
    j = open_with(p, 0);
    has(j, 1, picture_a, NULL, "");
    has(j, 3, picture_b, NULL, "three");
    has(j, 40, big, NULL, "");
    esp_journal_close(&j);
    free(big);
}

/* ---- where ---- */

static void test_default_path(void **state)
{
    const struct place *p = *state;
    static const char *const names[] = {"STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"};
    char *kept[3], path[256], want[256], base[128];
    struct stat info;
    static const struct {
        const char *set, *under; /* the variable, and what comes under its folder */
    } cases[] = {
        {"HOME", "/.local/state/espalier"}, {"XDG_STATE_HOME", "/espalier"}, {"STATE_DIRECTORY", ""}};

    for (int i = 0; i < 3; i++) {
        const char *v = getenv(names[i]);
        kept[i] = v ? strdup(v) : NULL;
        unsetenv(names[i]);
    }
    assert_int_equal(esp_journal_default_path(path, sizeof path, "tcp://127.0.0.1:5550", NULL), ESP_E_IO);
    for (size_t i = 0; i < 3; i++) { /* each goes before those above it */
        snprintf(base, sizeof base, "%s/%s", p->dir, cases[i].set);
        setenv(cases[i].set, base, 1);
        assert_int_equal(esp_journal_default_path(path, sizeof path, "tcp://[::1]:5550", NULL), ESP_OK);
        snprintf(want, sizeof want, "%s%s/coordinator-5550.journal", base, cases[i].under);
        assert_string_equal(path, want);
        *strrchr(path, '/') = '\0';
        assert_int_equal(stat(path, &info), 0);
        assert_int_equal(info.st_mode & 0777, 0700);
    }
    assert_int_equal(esp_journal_default_path(path, sizeof path, "ipc:///tmp/c", NULL), ESP_E_ARG);
    assert_int_equal(esp_journal_default_path(path, 40, "tcp://127.0.0.1:5550", NULL), ESP_E_LIMIT);
    for (int i = 0; i < 3; i++) {
        if (kept[i])
            setenv(names[i], kept[i], 1);
        else
            unsetenv(names[i]);
        free(kept[i]);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),  TEST(test_killed),       TEST(test_second_coordinator),
        TEST(test_other_model), TEST(test_bad_sessions), TEST(test_bad_pictures),
        TEST(test_no_journal),  TEST(test_full),         TEST(test_default_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
