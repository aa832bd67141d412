#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "loop.h"
#include "server.h"
#include "streams.h"
#include "tally.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { PORTS_PER_ADDRESS = 8000 };

const struct opening *opening_plan;

void send_request(int fd, const struct opening *plan) {
    struct stream *s = &streams[fd];
    char target[600], request[4096], resume[ID_BYTES + 32] = "";
    fill(target, sizeof target, server.stream, s->channel);
    if (plan->after)
        snprintf(resume, sizeof resume, "Last-Event-ID: %s\r\n", ids[(s->expected - 1) % IDS]);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: %s:%d\r\nAccept: text/event-stream\r\n%s%s\r\n",
                          target, server.host, ntohs(server.address.sin_port), resume,
                          plan->headers);
    ssize_t n = send(fd, request, (size_t)length, MSG_NOSIGNAL);
    if (n == length) {
        bool waited = s->state == CONNECTING;
        s->state = HEAD;
        watch(waited ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, EPOLLIN);
    } else if (n < 0 && errno == EAGAIN && s->state != CONNECTING) {
        s->state = CONNECTING;
        watch(EPOLL_CTL_ADD, fd, EPOLLOUT);
    } else if (n >= 0 || errno != EAGAIN) {
        lose_stream(fd, n < 0 ? strerror(errno) : "a request did not fit");
    }
}

void connect_stream(const struct opening *plan, uint32_t index) {
    static uint64_t source_count;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) die("socket");
    if (fd >= files_limit) die("too many files");
    if (plan->receive_buffer)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &plan->receive_buffer, sizeof(int));
    if (ntohl(server.address.sin_addr.s_addr) >> 24 == 127) {
        /* Ports of closed connections rest for a minute: take other addresses meanwhile. */
        uint32_t number = (uint32_t)(source_count++ / PORTS_PER_ADDRESS % 200);
        struct sockaddr_in source = {.sin_family = AF_INET};
        source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + number);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&source, sizeof source) < 0) die("bind");
    }
    struct stream *s = &streams[fd];
    struct channel *channel = channel_at(index % plan->channels);
    *s = (struct stream){
        .state = HEAD, .slow = plan->slow, .raw = plan->raw, .record = plan->record,
        .channel = index % plan->channels, .expected = channel->next - plan->after,
        .started = clock_now(),
    };
    if (fd >= stream_top) stream_top = fd + 1;
    opening++;
    if (!plan->slow && !plan->raw) {
        channel->subscribers++;
        owed += plan->after;
    }
    if (connect(fd, (struct sockaddr *)&server.address, sizeof server.address) < 0 &&
        errno != EINPROGRESS) {
        lose_stream(fd, strerror(errno));
        return;
    }
    send_request(fd, plan);
}
