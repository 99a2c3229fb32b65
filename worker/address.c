#include "worker/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/** Cuts tcp://HOST:PORT or tcp://[HOST]:PORT apart; false if it is none. */
static bool split(const char *endpoint, char *host, size_t n_host, const char **port)
{
    const char *start, *end;
    size_t n;

    if (strncmp(endpoint, "tcp://", 6) != 0)
        return false;
    start = endpoint + 6;
    end = strrchr(start, ':');
    if (!end || !end[1])
        return false;
    *port = end + 1;
    if (*start == '[') {
        if (end == start || end[-1] != ']')
            return false;
        start++;
        end--;
    }
    n = (size_t)(end - start);
    if (n == 0 || n >= n_host)
        return false;
    memcpy(host, start, n);
    host[n] = '\0';
    return true;
}

static esp_status local_of(char *out, size_t n_out, const struct addrinfo *to, struct esp_err *err)
{
    struct sockaddr_storage from = {0};
    socklen_t n_from = sizeof from;
    char text[INET6_ADDRSTRLEN];
    const void *bits;
    esp_status st = ESP_OK;
    int fd = socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return esp_fail(err, ESP_E_IO, "socket: %s", strerror(errno));
    if (connect(fd, to->ai_addr, to->ai_addrlen) != 0 ||
        getsockname(fd, (struct sockaddr *)&from, &n_from) != 0) {
        st = esp_fail(err, ESP_E_IO, "no route: %s", strerror(errno));
        goto done;
    }
    bits = from.ss_family == AF_INET6 ? (const void *)&((struct sockaddr_in6 *)&from)->sin6_addr
                                      : (const void *)&((struct sockaddr_in *)&from)->sin_addr;
    if (!inet_ntop(from.ss_family, bits, text, sizeof text)) {
        st = esp_fail(err, ESP_E_IO, "inet_ntop: %s", strerror(errno));
        goto done;
    }
    if ((size_t)snprintf(out, n_out, from.ss_family == AF_INET6 ? "[%s]" : "%s", text) >= n_out)
        st = esp_fail(err, ESP_E_ARG, "address %s does not fit", text);
done:
    close(fd);
    return st;
}

esp_status esp_address_towards(char *out, size_t n_out, const char *endpoint, struct esp_err *err)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM};
    struct addrinfo *found = NULL;
    const char *port;
    char host[256];
    esp_status st;
    int rc;

    if (!split(endpoint, host, sizeof host, &port))
        return esp_fail(err, ESP_E_ARG, "%s: not tcp://HOST:PORT", endpoint);
    rc = getaddrinfo(host, port, &hints, &found);
    if (rc != 0)
        return esp_fail(err, ESP_E_IO, "%s: %s", endpoint, gai_strerror(rc));
    st = esp_fail(err, ESP_E_IO, "no address");
    for (const struct addrinfo *a = found; a && st; a = a->ai_next)
        st = local_of(out, n_out, a, err);
    freeaddrinfo(found);
    if (st)
        esp_err_prefix(err, "%s: ", endpoint);
    return st;
}

esp_status esp_address_advertise(char *out, size_t n_out, const char *bound, const char *host,
                                 struct esp_err *err)
{
    char from[256];
    const char *port;
    int n;

    if (split(bound, from, sizeof from, &port) && (strcmp(from, "0.0.0.0") == 0 || strcmp(from, "::") == 0))
        n = snprintf(out, n_out, "tcp://%s:%s", host, port);
    else
        n = snprintf(out, n_out, "%s", bound);
    if (n < 0 || (size_t)n >= n_out)
        return esp_fail(err, ESP_E_ARG, "%s: too long an endpoint", bound);
    return ESP_OK;
}
