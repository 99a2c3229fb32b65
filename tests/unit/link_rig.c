#include "tests/unit/link_rig.h"

#include <unistd.h>

char link_dir[] = "/tmp/esp-link-XXXXXX";
struct esp_net *link_net;

int link_setup(void **state)
{
    return mkdtemp(link_dir) && esp_net_create(&link_net, NULL) == ESP_OK ? 0 : -1;
}

int link_teardown(void **state)
{
    static const char *const names[] = {"s", "liar"};
    char path[64];

    esp_net_destroy(&link_net);
    for (int i = 0; i < 2; i++) { /* libzmq leaves them behind */
        snprintf(path, sizeof path, "%s/%s", link_dir, names[i]);
        unlink(path);
    }
    return rmdir(link_dir);
}

struct esp_link *link_open(const struct esp_link_options *options)
{
    struct esp_link *link;
    struct esp_err err = {0};

    if (esp_link_create(&link, link_net, options, &err) != ESP_OK)
        fail_msg("%s", err.text);
    return link;
}

struct esp_link *link_serve(char *endpoint, bool tcp, const struct esp_link_options *more)
{
    struct esp_link_options options = more ? *more : (struct esp_link_options){0};
    struct esp_err err = {0};
    struct esp_link *link;
    char ask[64];

    options.type = ESP_LINK_SERVE;
    link = link_open(&options);
    snprintf(ask, sizeof ask, "ipc://%s/s", link_dir);
    if (esp_link_bind(link, tcp ? "tcp://127.0.0.1:*" : ask, false, endpoint, &err) != ESP_OK)
        fail_msg("%s", err.text);
    return link;
}

struct esp_link *link_dial(const char *endpoint, const struct esp_link_options *more)
{
    struct esp_link_options options = more ? *more : (struct esp_link_options){0};
    struct esp_err err = {0};
    struct esp_link *link;

    options.type = ESP_LINK_DIAL;
    link = link_open(&options);
    if (esp_link_connect(link, endpoint, &err) != ESP_OK)
        fail_msg("%s", err.text);
    return link;
}

void link_send_to(struct esp_link *link, const struct esp_peer *to, const char *name)
{
    struct esp_msg msg = *esp_test_message_find(name);
    struct esp_err err = {0};

    if (esp_link_send(link, to, &msg, &err) != ESP_OK)
        fail_msg("send %s: %s", name, err.text);
}

esp_status link_next(struct esp_link *link, struct esp_peer *from, struct esp_msg *msg, struct esp_err *err)
{
    struct esp_wait wait = {.link = link};
    esp_status st = esp_link_wait(&wait, 1, PATIENCE_MS, err);

    if (st != ESP_OK || !wait.ready)
        fail_msg("wait: status %d: %s", st, err->text);
    return esp_link_recv(link, from, msg, err);
}

void link_expect(struct esp_link *link, struct esp_peer *from, enum esp_msg_kind kind)
{
    struct esp_msg msg;
    struct esp_err err = {0};

    if (link_next(link, from, &msg, &err) != ESP_OK)
        fail_msg("expected %s: %s", esp_msg_name(kind), err.text);
    assert_int_equal(msg.kind, kind);
    esp_msg_finish(&msg);
}

void link_expect_bad(struct esp_link *link, struct esp_peer *from, const char *what, const char *cause)
{
    struct esp_msg msg;
    struct esp_err err = {0};
    esp_status st = link_next(link, from, &msg, &err);

    if (st != ESP_E_PROTO || !strstr(err.text, cause))
        fail_msg("%s: status %d \"%s\", expected \"%s\"", what, st, err.text, cause);
    assert_null(msg.store);
}

void link_expect_nothing(struct esp_link *link)
{
    struct esp_msg msg;
    struct esp_peer from;

    assert_int_equal(esp_link_recv(link, &from, &msg, NULL), ESP_E_TIMEOUT);
}
