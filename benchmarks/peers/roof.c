/* The roof: what the kernel allows, as a server of server-sent events that does nothing else.
 *
 *     roof PORT          every event is sent to every stream before the next one is looked at
 *     roof PORT --join   all events that are waiting go out in one write to each stream
 *
 * GET of any path is a stream, and all streams are of one channel. POST /publish/... publishes
 * its body; POST /publish takes NDJSON, and of each line what `"data":` holds, which must be its
 * last member. It keeps no history and checks nothing: a measure, not a server for use.
 *
 * All frames lie in one log in memory, and a stream is a place in it. Streams at its end are in
 * `ready`, which a tight loop walks; those whose socket was full are in `behind` until they have
 * caught up. Nobody can be overtaken by the log: publishers wait for the last one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOG_BYTES (16u << 20) /* a power of two and whole pages; bounds how far one may be behind */
#define REQUEST_BYTES (8u << 20) /* the largest request, head and body */
#define EVENTS 1024
#define PATIENCE_MS 10000 /* for the last stream, when the log is full */

enum kind { NONE, LISTENER, REQUESTS, READY, BEHIND };

struct connection {
    enum kind kind;
    uint32_t index;  /* in `ready` or `behind` */
    uint64_t sent;   /* place in the log; of those behind */
    char *in;        /* requests: what came and was not dealt with */
    uint32_t length, size;
};

struct set {
    int *fds;
    uint32_t count;
};

static struct connection *connections; /* by fd */
static struct set ready, behind;
static char *frames;                    /* the log, mapped twice in a row: no frame wraps */
static uint64_t written, passed;        /* ends of the log, and of what `ready` got */
static uint64_t number;                 /* of the last event */
static int epoll_fd, joining, limit;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) die("epoll_ctl");
}

static void put(struct set *set, enum kind kind, int fd) {
    connections[fd].kind = kind;
    connections[fd].index = set->count;
    set->fds[set->count++] = fd;
}

static void take(struct set *set, int fd) {
    int last = set->fds[--set->count];
    set->fds[connections[fd].index] = last;
    connections[last].index = connections[fd].index;
}

static void drop(int fd) {
    struct connection *c = &connections[fd];
    if (c->kind == READY) take(&ready, fd);
    if (c->kind == BEHIND) take(&behind, fd);
    free(c->in);
    memset(c, 0, sizeof *c);
    close(fd);
}

/* Send the log from `from` on; returns the new place, or UINT64_MAX when the peer is gone. */
static uint64_t push(int fd, uint64_t from) {
    ssize_t n = send(fd, frames + (from & (LOG_BYTES - 1)), passed - from,
                     MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) return from + (uint64_t)n;
    return errno == EAGAIN || errno == EINTR ? from : UINT64_MAX;
}

static void catch_up(int fd) {
    struct connection *c = &connections[fd];
    uint64_t place = push(fd, c->sent);
    if (place == UINT64_MAX) {
        drop(fd);
        return;
    }
    c->sent = place;
    if (place == passed) {
        take(&behind, fd);
        put(&ready, READY, fd);
        watch(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLRDHUP);
    }
}

/* The pass: one write to each stream that has got everything so far. */
static void pass(void) {
    uint64_t from = passed;
    passed = written;
    if (from == passed) return;
    for (uint32_t i = 0; i < ready.count;) {
        int fd = ready.fds[i];
        uint64_t place = push(fd, from);
        if (place == passed) {
            i++;
        } else if (place == UINT64_MAX) {
            drop(fd); /* The last one has moved to this place. */
        } else {
            take(&ready, fd);
            put(&behind, BEHIND, fd);
            connections[fd].sent = place;
            watch(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
        }
    }
}

static void make_room(size_t bytes) {
    if (written + bytes - passed > LOG_BYTES) pass();
    for (uint32_t i = 0; i < behind.count;) {
        int fd = behind.fds[i];
        if (written + bytes - connections[fd].sent <= LOG_BYTES) {
            i++;
            continue;
        }
        struct pollfd waiting = {.fd = fd, .events = POLLOUT};
        if (poll(&waiting, 1, PATIENCE_MS) == 0)
            drop(fd);
        else
            catch_up(fd);
    }
}

static void publish(const char *body, size_t length) {
    make_room(length + 64);
    char *at = frames + (written & (LOG_BYTES - 1)), *start = at;
    at += sprintf(at, "id: %llu\ndata: ", (unsigned long long)++number);
    at = mempcpy(at, body, length);
    *at++ = '\n';
    *at++ = '\n';
    written += (uint64_t)(at - start);
    if (!joining) pass();
}

static void publish_lines(const char *body, const char *end) {
    while (body < end) {
        const char *stop = memchr(body, '\n', (size_t)(end - body));
        if (!stop) stop = end;
        const char *data = memmem(body, (size_t)(stop - body), "\"data\":", 7);
        if (data) {
            const char *last = memrchr(data, '}', (size_t)(stop - data));
            data += 7;
            while (data < stop && *data == ' ') data++;
            if (last && last > data) publish(data, (size_t)(last - data));
        }
        body = stop + 1;
    }
}

static void become_stream(int fd) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n";
    struct connection *c = &connections[fd];
    free(c->in);
    c->in = NULL;
    c->length = c->size = 0;
    if (joining) pass(); /* All in `ready` are at one place. */
    if (send(fd, head, sizeof head - 1, MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof head - 1)
        drop(fd);
    else
        put(&ready, READY, fd);
}

static int answer(int fd) {
    static const char text[] = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
    return send(fd, text, sizeof text - 1, MSG_NOSIGNAL) == sizeof text - 1;
}

/* Deal with one request, when it is there as a whole; returns its length, 0 to wait for more,
 * -1 when the connection has become something else. */
static long request(int fd, char *at, size_t length) {
    char *end = memmem(at, length, "\r\n\r\n", 4);
    if (!end) return 0;
    if (!memcmp(at, "GET ", 4)) {
        become_stream(fd);
        return -1;
    }
    *end = 0;
    const char *field = strcasestr(at, "\r\ncontent-length:");
    size_t body = field ? strtoul(field + 17, NULL, 10) : 0;
    *end = '\r';
    size_t all = (size_t)(end + 4 - at) + body;
    if (memcmp(at, "POST /publish", 13) || all > REQUEST_BYTES) {
        drop(fd);
        return -1;
    }
    if (all > length) return 0;
    if (at[13] == '/')
        publish(end + 4, body);
    else
        publish_lines(end + 4, end + 4 + body);
    /* Joining, what other publishers sent meanwhile still comes into the same pass. */
    if (connections[fd].kind != REQUESTS || !answer(fd)) {
        drop(fd);
        return -1;
    }
    return (long)all;
}

static void read_requests(int fd) {
    struct connection *c = &connections[fd];
    if (c->size - c->length < 65536) {
        c->size = c->size ? c->size * 2 : 131072;
        if (!(c->in = realloc(c->in, c->size + 1))) die("realloc");
    }
    ssize_t n = recv(fd, c->in + c->length, c->size - c->length, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        drop(fd);
        return;
    }
    c->length += (uint32_t)n;
    uint32_t done = 0;
    while (done < c->length) {
        long one = request(fd, c->in + done, c->length - done);
        if (one < 0) return;
        if (!one) break;
        done += (uint32_t)one;
    }
    memmove(c->in, c->in + done, c->length -= done);
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= limit) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connections[fd].kind = REQUESTS;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP);
    }
}

static void react(int fd, uint32_t events) {
    char ignored[4096];
    switch (connections[fd].kind) {
    case LISTENER:
        accept_all(fd);
        break;
    case REQUESTS:
        read_requests(fd);
        break;
    case READY:
    case BEHIND:
        if (events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR))
            drop(fd);
        else if (events & EPOLLIN && recv(fd, ignored, sizeof ignored, MSG_DONTWAIT) == 0)
            drop(fd);
        else if (connections[fd].kind == BEHIND && events & EPOLLOUT)
            catch_up(fd);
        break;
    case NONE: /* Dropped by an event before this one. */
        break;
    }
}

static void listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(fd, 65535) < 0) die("listen");
    connections[fd].kind = LISTENER;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

static void map_log(void) {
    int fd = memfd_create("log", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, LOG_BYTES) < 0) die("memfd_create");
    frames = mmap(NULL, 2 * (size_t)LOG_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (frames == MAP_FAILED) die("mmap");
    for (int half = 0; half < 2; half++)
        if (mmap(frames + half * (size_t)LOG_BYTES, LOG_BYTES, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
            die("mmap");
    close(fd);
}

int main(int count, char **words) {
    struct rlimit files;
    struct epoll_event events[EVENTS];
    if (count < 2) {
        fprintf(stderr, "roof PORT [--join]\n");
        return 2;
    }
    joining = count > 2 && !strcmp(words[2], "--join");
    signal(SIGPIPE, SIG_IGN);
    getrlimit(RLIMIT_NOFILE, &files);
    limit = files.rlim_cur > 1000000 ? 1000000 : (int)files.rlim_cur;
    connections = calloc((size_t)limit, sizeof *connections);
    ready.fds = calloc((size_t)limit, sizeof(int));
    behind.fds = calloc((size_t)limit, sizeof(int));
    if (!connections || !ready.fds || !behind.fds) die("calloc");
    map_log();
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
    listen_on(atoi(words[1]));
    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) react(events[i].data.fd, events[i].events);
        pass();
    }
}
