/* Which address a worker tells others. No network is needed: a connected datagram socket sends nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <netdb.h>

#include <cmocka.h>

#include "worker/address.h"

/* A root that debootstrap made has no /etc/hosts: there no name resolves, and that is not ours to fail on. */
static bool names_resolve(void)
{
    struct addrinfo *found = NULL;
    const bool yes = getaddrinfo("localhost", "5550", NULL, &found) == 0;

    if (yes)
        freeaddrinfo(found);
    else
        print_message("localhost does not resolve here: that name is expected to be refused\n");
    return yes;
}

static void test_towards(void **state)
{
    const bool names = names_resolve();
    const struct {
        const char *endpoint, *address; /* NULL: refused */
        esp_status status;
    } cases[] = {
        {"tcp://127.0.0.1:5550", "127.0.0.1", ESP_OK},
        {"tcp://localhost:5550", NULL, names ? ESP_OK : ESP_E_IO}, /* either family */
        {"ipc:///tmp/x", NULL, ESP_E_ARG},
        {"tcp://127.0.0.1", NULL, ESP_E_ARG},
        {"tcp://127.0.0.1:", NULL, ESP_E_ARG},
        {"tcp://:5550", NULL, ESP_E_ARG},
        {"tcp://[::1:5550", NULL, ESP_E_ARG},
        {"tcp://127.0.0.1:no-such-port", NULL, ESP_E_IO},
        {"tcp://256.1.1.1.invalid:5550", NULL, ESP_E_IO},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[64] = "";
        struct esp_err err = {0};

        assert_int_equal(esp_address_towards(out, sizeof out, cases[i].endpoint, &err), cases[i].status);
        if (cases[i].address)
            assert_string_equal(out, cases[i].address);
        if (cases[i].status)
            assert_non_null(strstr(err.text, cases[i].endpoint));
    }
}

static void test_advertise(void **state)
{
    static const struct {
        const char *bound, *told;
    } cases[] = {
        {"tcp://0.0.0.0:4711", "tcp://10.0.0.7:4711"},    {"tcp://[::]:4711", "tcp://10.0.0.7:4711"},
        {"tcp://10.0.0.8:4711", "tcp://10.0.0.8:4711"},   {"tcp://127.0.0.1:4711", "tcp://127.0.0.1:4711"},
        {"tcp://[fe80::2]:4711", "tcp://[fe80::2]:4711"}, {"ipc:///tmp/x", "ipc:///tmp/x"},
    };
    char out[32];
    struct esp_err err;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(esp_address_advertise(out, sizeof out, cases[i].bound, "10.0.0.7", &err), ESP_OK);
        assert_string_equal(out, cases[i].told);
    }
    assert_int_equal(esp_address_advertise(out, 8, "tcp://0.0.0.0:4711", "10.0.0.7", &err), ESP_E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_towards), cmocka_unit_test(test_advertise)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
