#define _GNU_SOURCE
#include "publishers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "events.h"
#include "loop.h"
#include "server.h"
#include "streams.h"
#include "tally.h"

struct publisher *publishers;
int publishers_count;
int *publisher_of;

void make_publishers(int files_limit) {
    publishers = calloc(PUBLISHERS, sizeof *publishers);
    publisher_of = malloc((size_t)files_limit * sizeof *publisher_of);
    if (!publishers || !publisher_of) die("malloc");
    memset(publisher_of, -1, (size_t)files_limit * sizeof *publisher_of);
}

static void reserve(char **at, size_t *size, size_t wanted) {
    if (*size >= wanted) return;
    *size = wanted * 2;
    if (!(*at = realloc(*at, *size))) die("realloc");
}

static void lose_publisher(struct publisher *p, const char *why) {
    note_problem("a publisher's connection ended", why, strlen(why));
    tally.failed += p->under_way ? p->under_way : 1;
    publisher_of[p->fd] = -1;
    close(p->fd);
    p->fd = -1;
    p->under_way = 0;
}

void flush_publisher(struct publisher *p) {
    while (p->out_sent < p->out_length) {
        ssize_t n = send(p->fd, p->out + p->out_sent, p->out_length - p->out_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            lose_publisher(p, strerror(errno));
            return;
        }
        p->out_sent += (size_t)n;
    }
    bool wants_out = p->out_sent < p->out_length;
    if (wants_out != p->watches_out)
        watch(EPOLL_CTL_MOD, p->fd, wants_out ? EPOLLIN | EPOLLOUT : EPOLLIN);
    p->watches_out = wants_out;
    if (!wants_out) p->out_sent = p->out_length = 0;
}

/* Return the length of the body in chunks that begins here, 0 when it is not complete. */
static size_t chunked_length(const char *at, const char *end) {
    const char *start = at;
    while (at < end) {
        char *digits_end;
        const char *line = memmem(at, (size_t)(end - at), "\r\n", 2);
        if (!line) return 0;
        size_t size = strtoul(at, &digits_end, 16);
        at = line + 2 + size + 2;
        if (!size) return at <= end ? (size_t)(at - start) : 0;
    }
    return 0;
}

/* Return the length of the complete answer at the start of what came in, 0 when there is none. */
static size_t answer_length(struct publisher *p, int *status) {
    p->in[p->in_length] = 0;
    char *end = memmem(p->in, p->in_length, "\r\n\r\n", 4);
    if (!end || p->in_length < 12) return 0;
    char kept = end[2];
    end[2] = 0;
    *status = atoi(p->in + 9);
    char *length = find_header(p->in, "content-length:");
    char *coding = find_header(p->in, "transfer-encoding:");
    size_t body = length ? strtoul(length, NULL, 10) : 0;
    end[2] = kept;
    size_t head = (size_t)(end + 4 - p->in);
    if (coding && *status != 204) {
        body = chunked_length(end + 4, p->in + p->in_length);
        return body ? head + body : 0;
    }
    return head + body <= p->in_length ? head + body : 0;
}

void read_answers(struct publisher *p) {
    reserve(&p->in, &p->in_size, p->in_length + 65536 + 1);
    ssize_t n = recv(p->fd, p->in + p->in_length, p->in_size - p->in_length - 1, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        lose_publisher(p, n ? strerror(errno) : "by the server");
        return;
    }
    p->in_length += (size_t)n;
    uint64_t now = clock_now();
    size_t length;
    int status = 0;
    while (p->in_length && (length = answer_length(p, &status))) {
        if (status < 200 || status > 299) {
            tally.failed++;
            note_problem("a publication was refused", p->in, length);
        }
        if (p->under_way) {
            p->under_way--;
            add(&tally.answer, now - p->sent[p->first++ % PIPELINE]);
        }
        tally.last = now;
        p->in_length -= length;
        memmove(p->in, p->in + length, p->in_length);
    }
}

uint64_t due_at(const struct publishing *plan, uint64_t event) {
    return tally.started + (uint64_t)((double)event / plan->rate * 1e9);
}

void publish(struct publisher *p, const struct publishing *plan, uint32_t count, uint64_t now) {
    static char *body;
    static size_t body_size;
    char target[600];
    size_t length = 0;
    const char *type = "";
    for (uint32_t i = 0; i < count; i++) {
        uint32_t which = (uint32_t)(tally.published % plan->channels);
        struct channel *channel = channel_at(which);
        uint64_t time = plan->rate > 0 ? due_at(plan, tally.published) : now;
        reserve(&body, &body_size, length + 1024 + rest_length(channel->next));
        if (plan->batch > 1) {
            length += (size_t)sprintf(body + length, "{\"channel\":\"");
            length += fill(body + length, 300, server.channel, which);
            if (keys_count)
                length += (size_t)sprintf(body + length, "\",\"key\":\"%" PRIu64,
                                          channel->next % keys_count);
            length += (size_t)sprintf(body + length, "\",\"data\":");
        }
        uint64_t number = channel->next;
        length += write_event(body + length, channel->next++, time);
        if (plan->batch > 1) length += (size_t)sprintf(body + length, "}\n");
        owed += channel->subscribers;
        tally.published++;
        if (plan->batch == 1) {
            size_t end = fill(target, sizeof target - 32, server.publish, which);
            if (keys_count) sprintf(target + end, "?key=%" PRIu64, number % keys_count);
        }
    }
    if (plan->batch > 1) {
        strcpy(target, server.batch);
        type = "Content-Type: application/x-ndjson\r\n";
    }
    reserve(&p->out, &p->out_size, p->out_length + length + 4096);
    p->out_length += (size_t)sprintf(
        p->out + p->out_length, "POST %s HTTP/1.1\r\nHost: %s:%d\r\n%sContent-Length: %zu\r\n\r\n",
        target, server.host, ntohs(server.address.sin_port), *type ? type : server.headers, length);
    memcpy(p->out + p->out_length, body, length);
    p->out_length += length;
    p->sent[p->next++ % PIPELINE] = now;
    p->under_way++;
    flush_publisher(p);
}

void open_publishers(const struct publishing *plan) {
    publishers_count = (int)plan->connections;
    for (int i = 0; i < publishers_count; i++) {
        struct publisher *p = &publishers[i];
        int on = 1;
        p->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (p->fd < 0 || p->fd >= files_limit) die("socket");
        if (connect(p->fd, (struct sockaddr *)&server.address, sizeof server.address) < 0)
            die("connect");
        setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        fcntl(p->fd, F_SETFL, O_NONBLOCK);
        publisher_of[p->fd] = i;
        watch(EPOLL_CTL_ADD, p->fd, EPOLLIN);
        p->under_way = 0;
        p->first = p->next = 0;
        p->out_length = p->out_sent = p->in_length = 0;
        p->watches_out = false;
    }
}

void close_publishers(void) {
    for (int i = 0; i < publishers_count; i++) {
        if (publishers[i].fd < 0) continue;
        publisher_of[publishers[i].fd] = -1;
        close(publishers[i].fd);
    }
    publishers_count = 0;
}

unsigned requests_under_way(void) {
    unsigned count = 0;
    for (int i = 0; i < publishers_count; i++) count += publishers[i].under_way;
    return count;
}
