/**
 * libzmq's calls that fail with EINTR when a signal comes, called again: each looks at its socket's mailbox first and
 * gives up there, before it has done anything. SA_RESTART doesn't spare them: the mailbox is waited for with poll.
 */
#ifndef ESP_PROTO_AGAIN_H
#define ESP_PROTO_AGAIN_H

#include <errno.h>
#include <zmq.h>

static inline int esp_zmq_bind(void *socket, const char *endpoint)
{
    int rc;

    do
        rc = zmq_bind(socket, endpoint);
    while (rc != 0 && zmq_errno() == EINTR);
    return rc;
}

static inline int esp_zmq_connect(void *socket, const char *endpoint)
{
    int rc;

    do
        rc = zmq_connect(socket, endpoint);
    while (rc != 0 && zmq_errno() == EINTR);
    return rc;
}

static inline int esp_zmq_monitor(void *socket, const char *endpoint, int events)
{
    int rc;

    do
        rc = zmq_socket_monitor(socket, endpoint, events);
    while (rc != 0 && zmq_errno() == EINTR);
    return rc;
}

#endif
