#include "proto/endpoint.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "proto/link.h"

/* The host of tcp://HOST:PORT, without brackets; false when there is none or it is not of this form. */
static bool tcp_host(char *host, size_t n_host, bool *bracketed, const char *endpoint)
{
    const char *start = endpoint + strlen("tcp://"), *end;
    size_t n;

    *bracketed = *start == '[';
    start += *bracketed;
    end = *bracketed ? strchr(start, ']') : strrchr(start, ':');
    if (!end || (*bracketed && end[1] != ':'))
        return false;
    n = (size_t)(end - start);
    if (n == 0 || n >= n_host)
        return false;
    memcpy(host, start, n);
    host[n] = '\0';
    return true;
}

static bool starts_with(const char *s, const char *head)
{
    return strncmp(s, head, strlen(head)) == 0;
}

bool esp_endpoint_is_ipv4(const char *endpoint)
{
    char host[ESP_MAX_ENDPOINT + 1];
    struct in_addr a;
    bool bracketed;

    return starts_with(endpoint, "tcp://") && tcp_host(host, sizeof host, &bracketed, endpoint) &&
           !bracketed && (strcmp(host, "localhost") == 0 || inet_pton(AF_INET, host, &a) == 1);
}

bool esp_endpoint_is_local(const char *endpoint)
{
    char host[ESP_MAX_ENDPOINT + 1];
    struct in6_addr a6;
    struct in_addr a;
    bool bracketed;

    if (starts_with(endpoint, "ipc://") || starts_with(endpoint, "inproc://"))
        return true;
    if (!starts_with(endpoint, "tcp://") || !tcp_host(host, sizeof host, &bracketed, endpoint))
        return false;
    if (bracketed)
        return inet_pton(AF_INET6, host, &a6) == 1 && IN6_IS_ADDR_LOOPBACK(&a6);
    if (strcmp(host, "localhost") == 0)
        return true;
    /* Numbers only: a name such as 127.0.0.1.example.com is a stranger. */
    return inet_pton(AF_INET, host, &a) == 1 && (ntohl(a.s_addr) >> 24) == 127;
}

bool esp_endpoint_has_port(const char *endpoint)
{
    const char *port = strrchr(endpoint, ':') + 1; /* there is one: tcp:// */
    size_t n = strspn(port, "0123456789");

    return !starts_with(endpoint, "tcp://") || strcmp(port, "*") == 0 ||
           (n > 0 && n <= 5 && !port[n] && atoi(port) <= 65535);
}
