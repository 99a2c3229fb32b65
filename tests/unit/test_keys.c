/* Keys: their text, hostile files, and a role's directory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/keys.h"

#define K1 "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7" /* a pair of keys from ZeroMQ's manual */
#define K2 "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"

static char dir[32];

static int setup(void **state)
{
    strcpy(dir, "/tmp/espalier-test-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    return rmdir(dir); /* each test takes its files away */
}

static const char *path(const char *name)
{
    static char out[4][128];
    static int turn;

    turn = (turn + 1) % 4;
    snprintf(out[turn], sizeof out[0], "%s/%s", dir, name);
    return out[turn];
}

static void put(const char *name, const char *text, mode_t mode)
{
    FILE *f = fopen(path(name), "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path(name), mode), 0);
}

static void test_z85(void **state)
{
    /* RFC 32's own example, four times over. */
    static const uint8_t hello[8] = {0x86, 0x4f, 0xd2, 0x6f, 0xb5, 0x59, 0xf7, 0x5b};
    uint8_t key[ESP_KEY_BYTES], got[ESP_KEY_BYTES], zero[ESP_KEY_BYTES] = {0};
    char text[ESP_KEY_TEXT + 1];

    for (size_t i = 0; i < sizeof key; i++)
        key[i] = hello[i % 8];
    esp_key_format(text, key);
    assert_string_equal(text, "HelloWorldHelloWorldHelloWorldHelloWorld");
    assert_true(esp_key_parse(got, text, ESP_KEY_TEXT));
    assert_memory_equal(got, key, sizeof key);
    memset(key, 0xff, sizeof key);
    esp_key_format(text, key);
    assert_true(esp_key_parse(got, text, ESP_KEY_TEXT));
    assert_memory_equal(got, key, sizeof key);

    assert_false(esp_key_parse(got, text, ESP_KEY_TEXT - 1));
    assert_memory_equal(got, zero, sizeof zero);
    assert_false(esp_key_parse(got, "%nSc1%nSc1%nSc1%nSc1%nSc1%nSc1%nSc1%nSc1", ESP_KEY_TEXT)); /* 2^32 */
    assert_true(esp_key_parse(got, "%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0", ESP_KEY_TEXT));  /* 2^32 - 1 */
    text[7] = '"'; /* not of Z85 */
    assert_false(esp_key_parse(got, text, ESP_KEY_TEXT));
    text[7] = '\0';
    assert_false(esp_key_parse(got, text, ESP_KEY_TEXT));
}

static void test_pairs(void **state)
{
    uint8_t public_key[ESP_KEY_BYTES], secret[ESP_KEY_BYTES], again[ESP_KEY_BYTES];
    struct esp_err err;

    assert_true(esp_key_parse(secret, K2, ESP_KEY_TEXT));
    assert_int_equal(esp_key_public(public_key, secret, &err), ESP_OK);
    assert_true(esp_key_parse(again, K1, ESP_KEY_TEXT));
    assert_true(esp_key_equal(public_key, again));

    assert_int_equal(esp_key_pair_make(public_key, secret, &err), ESP_OK);
    assert_int_equal(esp_key_public(again, secret, &err), ESP_OK);
    assert_true(esp_key_equal(public_key, again));
}

static const struct {
    const char *text;
    bool secret;
    esp_status status;
    const char *expect; /* fragment of the cause */
} texts[] = {
    {"", false, ESP_OK, NULL},
    {"# nothing\n\n \t\r\n", false, ESP_OK, NULL},
    {"public a " K1, false, ESP_OK, NULL},
    {"public a " K1 "\r\npublic b " K2 "\r\n", false, ESP_OK, NULL},
    {"\t secret  a\t" K2 " \n", true, ESP_OK, NULL},
    {"secret a " K2, false, ESP_E_FORMAT, "line 1: a secret key, where a public one belongs"},
    {"#\npublic a " K1, true, ESP_E_FORMAT, "line 2: a public key, where a secret one belongs"},
    {"a " K1, false, ESP_E_FORMAT, "line 1: does not begin with 'public'"},
    {"publica " K1, false, ESP_E_FORMAT, "does not begin with 'public'"},
    {"public", false, ESP_E_FORMAT, "a name has 1 to 63"},
    {"public ../../etc " K1, false, ESP_E_FORMAT, "a name has"},
    {"public .. " K1, false, ESP_E_FORMAT, "a name has"},
    {"public -rf " K1, false, ESP_E_FORMAT, "a name has"},
    {"public a\x1b[0m " K1, false, ESP_E_FORMAT, "a name has"},
    {"public 0123456789012345678901234567890123456789012345678901234567890123 " K1, false, ESP_E_FORMAT,
     "a name has"},
    {"public a", false, ESP_E_FORMAT, "line 1: a: not a key"},
    {"public a " K1 "0", false, ESP_E_FORMAT, "not a key"},
    {"public a #####>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", false, ESP_E_FORMAT, "not a key"},
    {"public a " K1 " " K2, false, ESP_E_FORMAT, "something follows the key"},
    {"public a " K1 "\npublic a " K2, false, ESP_E_FORMAT, "line 2: a is there already"},
    {"public a " K1 "\npublic b " K1, false, ESP_E_FORMAT, "line 2: b is there already, by name or by key"},
};

static void test_texts(void **state)
{
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const size_t n = strlen(texts[i].text);
        char *exact = malloc(n ? n : 1); /* so that a sanitizer sees the first byte too many */
        struct esp_key_list list;
        struct esp_err err = {0};

        assert_non_null(exact);
        memcpy(exact, texts[i].text, n);
        if (esp_key_list_parse(&list, exact, n, texts[i].secret, &err) != texts[i].status ||
            (texts[i].expect && !strstr(err.text, texts[i].expect)))
            fail_msg("\"%s\": \"%s\", expected \"%s\"", texts[i].text, err.text,
                     texts[i].expect ? texts[i].expect : "no failure");
        if (texts[i].status) {
            assert_null(list.at);
            assert_null(strstr(err.text, K2)); /* a cause may be shown to anyone */
        }
        esp_key_list_finish(&list);
        free(exact);
    }
}

static void test_too_many(void **state)
{
    struct esp_key_list list = {0};
    struct esp_err err;

    for (uint32_t i = 0; i < ESP_KEYS_A_FILE; i++) {
        uint8_t key[ESP_KEY_BYTES] = {(uint8_t)i, (uint8_t)(i >> 8)};
        char name[16];
        snprintf(name, sizeof name, "n%u", i);
        assert_int_equal(esp_key_list_add(&list, name, key, &err), ESP_OK);
    }
    assert_int_equal(esp_key_list_add(&list, "more", (const uint8_t[ESP_KEY_BYTES]){[31] = 1}, &err),
                     ESP_E_LIMIT);
    esp_key_list_finish(&list);
}

/* ---- files ---- */

static void test_secret_mode(void **state)
{
    static const struct {
        mode_t mode;
        esp_status status;
    } cases[] = {{0600, ESP_OK}, {0400, ESP_OK}, {0640, ESP_E_ARG}, {0604, ESP_E_ARG}, {0620, ESP_E_ARG}};
    struct esp_key_list list;
    struct esp_err err;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put("secret", "secret a " K2 "\n", cases[i].mode);
        assert_int_equal(esp_key_file_read(&list, path("secret"), true, &err), cases[i].status);
        if (cases[i].status) {
            assert_non_null(strstr(err.text, "chmod 600"));
            assert_non_null(strstr(err.text, dir));
        }
        esp_key_list_finish(&list);
    }
    unlink(path("secret"));
}

static void test_odd_files(void **state)
{
    struct esp_key_list list;
    struct esp_err err;

    assert_int_equal(esp_key_file_read(&list, path("none"), false, &err), ESP_E_IO);
    assert_int_equal(esp_key_file_read(&list, dir, false, &err), ESP_E_IO);
    assert_int_equal(mkfifo(path("fifo"), 0600), 0);
    assert_int_equal(esp_key_file_read(&list, path("fifo"), false, &err), ESP_E_IO); /* and does not wait */
    unlink(path("fifo"));
    put("large", "# ", 0600);
    assert_int_equal(truncate(path("large"), ESP_KEY_FILE_MAX + 1), 0);
    assert_int_equal(esp_key_file_read(&list, path("large"), false, &err), ESP_E_LIMIT);
    unlink(path("large"));
}

static void test_write(void **state)
{
    struct esp_key_list list = {0}, got;
    uint8_t key[ESP_KEY_BYTES];
    struct stat info;
    struct esp_err err;

    assert_true(esp_key_parse(key, K2, ESP_KEY_TEXT));
    assert_int_equal(esp_key_list_add(&list, "a", key, &err), ESP_OK);
    for (int secret = 0; secret < 2; secret++) {
        put("key", "public old " K1, 0644); /* is replaced, its mode too */
        assert_int_equal(esp_key_file_write(path("key"), &list, secret, "mine", &err), ESP_OK);
        assert_int_equal(stat(path("key"), &info), 0);
        assert_int_equal(info.st_mode & 07777, secret ? 0600 : 0644);
        assert_int_equal(esp_key_file_read(&got, path("key"), secret, &err), ESP_OK);
        assert_int_equal(got.n, 1);
        assert_string_equal(got.at[0].name, "a");
        assert_true(esp_key_equal(got.at[0].key, key));
        esp_key_list_finish(&got);
    }
    unlink(path("key"));
    assert_int_equal(esp_key_file_write(path("no/such/dir"), &list, true, "mine", &err), ESP_E_IO);
    esp_key_list_finish(&list);
}

/* ---- a role's directory ---- */

static void test_roles(void **state)
{
    static const struct {
        enum esp_member member;
        const char *without; /* NULL: all are there */
        const char *expect;
    } cases[] = {
        {ESP_MEMBER_COORDINATOR, NULL, NULL},
        {ESP_MEMBER_WORKER, NULL, NULL},
        {ESP_MEMBER_CLIENT, NULL, NULL},
        {ESP_MEMBER_CLIENT, "workers.allow", NULL}, /* it needs none */
        {ESP_MEMBER_COORDINATOR, "coordinator.public", NULL},
        {ESP_MEMBER_COORDINATOR, "secret", "not a coordinator's keys"},
        {ESP_MEMBER_CLIENT, "coordinator.public", "coordinator.public: No such file"},
        {ESP_MEMBER_WORKER, "workers.allow", "workers.allow: No such file"},
        {ESP_MEMBER_COORDINATOR, "clients.allow", "clients.allow: No such file"},
    };
    static const char *const files[] = {"secret", "coordinator.public", "workers.allow", "clients.allow"};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_keys *keys = NULL;
        struct esp_err err = {0};
        uint8_t k1[ESP_KEY_BYTES];
        esp_status st;

        put("secret", "secret me " K2 "\n", 0600);
        put("coordinator.public", "public coordinator " K1 "\n", 0644);
        put("workers.allow", "public w " K1 "\n", 0644);
        put("clients.allow", "public c " K2 "\n", 0644);
        if (cases[i].without)
            unlink(path(cases[i].without));
        st = esp_keys_open(&keys, dir, cases[i].member, &err);
        if (cases[i].expect) {
            assert_int_equal(st, ESP_E_IO);
            assert_non_null(strstr(err.text, cases[i].expect));
            assert_null(keys);
        } else {
            if (st)
                fail_msg("%s", err.text);
            assert_true(esp_key_parse(k1, K1, ESP_KEY_TEXT));
            assert_string_equal(keys->name, "me");
            assert_true(esp_key_equal(keys->public_key, k1));
            assert_true(esp_key_equal(keys->coordinator, k1));
            assert_int_equal(keys->workers.n, cases[i].member != ESP_MEMBER_CLIENT);
            assert_int_equal(keys->clients.n, cases[i].member == ESP_MEMBER_COORDINATOR);
        }
        esp_keys_destroy(&keys);
        for (size_t f = 0; f < sizeof files / sizeof files[0]; f++)
            unlink(path(files[f]));
    }
}

static void test_identity(void **state)
{
    struct esp_keys a = {.secret = {1}}, b = {.secret = {2}};
    char one[ESP_MAX_NAME + 18], two[ESP_MAX_NAME + 18];

    esp_keys_identity(one, &a, "gpu1");
    assert_int_equal(strlen(one), strlen("gpu1/") + 16);
    assert_memory_equal(one, "gpu1/", 5);
    esp_keys_identity(two, &a, "gpu1");
    assert_string_equal(one, two);
    esp_keys_identity(two, &b, "gpu1");
    assert_string_not_equal(one, two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_z85),      cmocka_unit_test(test_pairs),       cmocka_unit_test(test_texts),
        cmocka_unit_test(test_too_many), cmocka_unit_test(test_secret_mode), cmocka_unit_test(test_odd_files),
        cmocka_unit_test(test_write),    cmocka_unit_test(test_roles),       cmocka_unit_test(test_identity),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
