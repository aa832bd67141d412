/* The load of the benchmarks: thousands of subscribers and the publisher in one process.
 *
 * It takes commands on stdin, one a line, as `name`, TAB, `key=value`, TAB, ..., and answers each
 * with one JSON object on stdout:
 *
 *   server   where the server is, and what requests to it look like
 *   events   what is published: `size` bytes of JSON, or the lines of a file
 *   open     open streams and wait until they are open (and have caught up, with `after`)
 *   publish  publish, wait until everything has arrived, and report
 *   wait     read for some seconds
 *   close    close all streams
 *
 * Every event is `{"n":NUMBER,"t":TIME,REST`. The number goes up by one in each channel, the time
 * is CLOCK_MONOTONIC in nanoseconds when it was to be published, and REST is known. A delivery is
 * a complete block with such an event in it, byte for byte; every stream checks that the number
 * goes up by exactly one.
 *
 * It does not judge: what is missing, doubled, out of order or damaged is counted and reported.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum {
    READ_BYTES = 262144,
    CARRY_BYTES = 4 << 20,  /* The longest incomplete line or head. */
    EVENTS = 256,           /* Between two looks at the publisher: some 300 us of work. */
    IDS = 1024,             /* Events whose SSE ids are remembered. */
    ID_BYTES = 64,
    PORTS_PER_ADDRESS = 8000,
    SLOW_TICKS = 10,        /* Reads a second of a slow stream. */
    PUBLISHERS = 1024,
    PIPELINE = 4096,
    BUCKETS = 64 * 64,
    ERAS = 64,
};

/* All numbers and times have the same length, so all events of a size do. */
#define FIRST_NUMBER UINT64_C(1000000000)
#define TIME_OFFSET UINT64_C(1000000000000000000)
#define NUMBER_DIGITS 10
#define TIME_DIGITS 19
#define PREFIX_BYTES (5 + NUMBER_DIGITS + 5 + TIME_DIGITS + 1) /* {"n":...,"t":..., */
#define SECOND UINT64_C(1000000000)

/* How long nothing may happen before what is still owed counts as missing. */
static uint64_t patience = 10 * SECOND;

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t clock_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

/* ---- Percentiles: logarithmic buckets, each within 1.6 % of its values ---- */

struct histogram {
    uint64_t count, most;
    uint64_t buckets[BUCKETS];
};

static void add(struct histogram *h, uint64_t value) {
    unsigned bucket;
    if (value < 64) {
        bucket = (unsigned)value;
    } else {
        unsigned exponent = 63 - (unsigned)__builtin_clzll(value);
        bucket = (exponent - 5) * 64 + ((value >> (exponent - 6)) & 63);
    }
    h->buckets[bucket]++;
    h->count++;
    if (value > h->most) h->most = value;
}

static double percentile_ms(const struct histogram *h, double part) {
    uint64_t wanted = (uint64_t)(part * (double)h->count), seen = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        seen += h->buckets[bucket];
        if (seen > wanted) {
            if (bucket < 64) return bucket / 1e6;
            unsigned exponent = bucket / 64 + 5;
            uint64_t width = UINT64_C(1) << (exponent - 6);
            return (double)((64 + bucket % 64) * width + width / 2) / 1e6;
        }
    }
    return (double)h->most / 1e6;
}

/* ---- What is counted between two reports ---- */

static struct {
    uint64_t started, last; /* when the command came, when the last delivery or opening was */
    uint64_t deliveries, duplicates, disorder, damaged, gaps, closed, refused, unavailable;
    uint64_t opened, bytes, slow_deliveries, slow_gaps, slow_closed, slow_bytes;
    uint64_t published, requests, failed;
    struct histogram latency, first_byte, ready, answer;
    double cpu;
    char problem[256];
} tally;

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* What came since the last report, between two commands, is counted with the next. */
static void start_tally(void) {
    tally.started = tally.last = clock_now();
    tally.cpu = cpu_seconds();
}

static void note_problem(const char *what, const char *text, size_t length) {
    if (tally.problem[0]) return;
    int at = snprintf(tally.problem, sizeof tally.problem, "%s: ", what);
    for (size_t i = 0; i < length && at < (int)sizeof tally.problem - 1; i++) {
        char c = text[i]; /* Only what needs no escape in JSON. */
        tally.problem[at++] = c >= ' ' && c < 127 && c != '"' && c != '\\' ? c : ' ';
    }
}

/* ---- Channels, streams, publishers ---- */

struct channel {
    uint64_t next;         /* number of the next event */
    uint32_t subscribers;  /* slow ones not counted */
};

enum state { FREE, CONNECTING, HEAD, BODY };
enum chunk_phase { SIZE, EXTENSION, DATA, AFTER_DATA, TRAILER };
enum block { HAS_EVENT = 1, IS_GAP = 2, IS_UNAVAILABLE = 4, IS_DAMAGED = 8 };

struct stream {
    uint8_t state, chunked, chunk_phase, block;
    bool slow, raw, record, open, gapped;
    uint32_t channel;
    uint64_t expected;  /* number of the next event */
    uint64_t holes;     /* bit i: event expected-1-i has not come */
    uint64_t number, time; /* of the event in the block that is being read */
    uint64_t started, first_byte, chunk_left;
    char *carry;        /* an incomplete head or line */
    uint32_t carry_length, carry_size;
};

struct publisher {
    int fd;
    unsigned under_way;
    uint64_t sent[PIPELINE]; /* when, by number of the request */
    uint64_t first, next;    /* requests: the oldest without an answer, the next */
    char *out, *in;
    size_t out_length, out_sent, out_size, in_length, in_size;
    bool watches_out;
};

static struct {
    struct sockaddr_in address;
    char host[64], stream[512], publish[512], batch[512], channel[256], headers[1024];
    bool block; /* a stream is open with its first block, not with its head */
} server;

static struct channel *channels;
static uint32_t channels_count;
static struct stream *streams; /* by fd */
static int *slow_fds, slow_count, files_limit, epoll_fd, timer_fd, opening, stream_top;
static struct publisher *publishers;
static int publishers_count;
static int *publisher_of; /* by fd; -1 */
static int64_t owed; /* deliveries that are still to come */
static uint64_t slow_tick, source_count;
static unsigned slow_bytes = 1024;
static bool command_waits;
static char ids[IDS][ID_BYTES];
static char last_id[ID_BYTES]; /* of the recorded stream's current block */
static char buffer[CARRY_BYTES + READ_BYTES];

/* What the events of one command `events` end with, in turns; the last era is being published. */
struct era {
    char **rests;
    size_t *lengths, count;
};
static struct era eras[ERAS];
static int eras_count;

static void watch(int operation, int fd, uint32_t wanted) {
    struct epoll_event event = {.events = wanted, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) die("epoll_ctl");
}

static struct channel *channel_at(uint32_t number) {
    if (number >= channels_count) {
        channels = realloc(channels, (number + 1) * sizeof *channels);
        if (!channels) die("realloc");
        for (; channels_count <= number; channels_count++)
            channels[channels_count] = (struct channel){.next = FIRST_NUMBER};
    }
    return &channels[number];
}

/* Copy a template, each `@` replaced by the channel's number. */
static size_t fill(char *to, size_t size, const char *template, uint32_t channel) {
    size_t length = 0;
    for (; *template && length + 12 < size; template++) {
        if (*template == '@')
            length += (size_t)sprintf(to + length, "%" PRIu32, channel);
        else
            to[length++] = *template;
    }
    to[length] = 0;
    return length;
}

/* ---- Reading a stream ---- */

static void close_stream(int fd) {
    struct stream *s = &streams[fd];
    if (s->state == FREE) return;
    if (!s->open) opening--;
    free(s->carry);
    memset(s, 0, sizeof *s);
    close(fd);
}

static void lose_stream(int fd, const char *why) {
    struct stream *s = &streams[fd];
    note_problem("a stream ended", why, strlen(why));
    if (s->slow && s->open)
        tally.slow_closed++;
    else
        tally.closed++;
    for (int i = 0; i < slow_count; i++)
        if (slow_fds[i] == fd) slow_fds[i] = slow_fds[--slow_count];
    close_stream(fd);
}

static void become_open(int fd, uint64_t now) {
    struct stream *s = &streams[fd];
    s->open = true;
    opening--;
    tally.opened++;
    tally.last = now;
    add(&tally.ready, now - s->started);
    if (s->slow) {
        watch(EPOLL_CTL_DEL, fd, 0);
        slow_fds[slow_count++] = fd;
    }
}

static void deliver(struct stream *s, uint64_t now) {
    uint64_t number = s->number;
    if (s->gapped && number > s->expected) {
        if (!s->slow) owed -= (int64_t)(number - s->expected);
        s->expected = number;
        s->gapped = false;
    }
    if (number == s->expected) {
        s->expected++;
        s->holes <<= 1;
    } else if (number > s->expected) {
        uint64_t skipped = number - s->expected;
        s->holes = skipped > 62 ? ~UINT64_C(1)
                                : s->holes << (skipped + 1) | ((UINT64_C(1) << skipped) - 1) << 1;
        s->expected = number + 1;
    } else {
        uint64_t back = s->expected - 1 - number;
        if (back > 63 || !(s->holes >> back & 1)) {
            tally.duplicates++;
            return;
        }
        s->holes &= ~(UINT64_C(1) << back);
        tally.disorder++;
    }
    tally.last = now;
    if (s->slow) {
        tally.slow_deliveries++;
        return;
    }
    owed--;
    tally.deliveries++;
    add(&tally.latency, now > s->time ? now - s->time : 0);
}

static uint64_t digits(const char *at, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; i++) {
        if (at[i] < '0' || at[i] > '9') return 0;
        value = value * 10 + (uint64_t)(at[i] - '0');
    }
    return value;
}

/* Say whether an event ends as it was published; slow streams may get those of earlier eras. */
static bool is_known(uint64_t number, const char *rest, size_t left) {
    for (const struct era *era = &eras[eras_count - 1]; era >= eras; era--) {
        size_t which = number % era->count, length = era->lengths[which];
        if ((left == length || left == length + 1) && !memcmp(rest, era->rests[which], length))
            return true;
    }
    return false;
}

/* Take the event of a `data:` line; what is in an envelope ends with one `}` more. */
static void take_data(struct stream *s, const char *at, const char *end) {
    if (end - at < 5 || memcmp(at, "{\"n\":", 5)) {
        if (!(at = memmem(at, (size_t)(end - at), "{\"n\":", 5))) return;
    }
    uint64_t number = 0, time = 0;
    if (end - at > PREFIX_BYTES) {
        number = digits(at + 5, NUMBER_DIGITS);
        time = digits(at + 5 + NUMBER_DIGITS + 5, TIME_DIGITS);
    }
    if (s->block & HAS_EVENT || number < FIRST_NUMBER || time < TIME_OFFSET) {
        s->block |= IS_DAMAGED;
        return;
    }
    if (!is_known(number, at + PREFIX_BYTES, (size_t)(end - at) - PREFIX_BYTES)) {
        s->block |= IS_DAMAGED;
        return;
    }
    s->number = number;
    s->time = time - TIME_OFFSET;
    s->block |= HAS_EVENT;
}

static void end_block(int fd, uint64_t now) {
    struct stream *s = &streams[fd];
    uint8_t block = s->block;
    s->block = 0;
    if (block & IS_DAMAGED) tally.damaged++;
    if (block & IS_UNAVAILABLE) tally.unavailable++;
    if (block & IS_GAP) {
        if (s->slow)
            tally.slow_gaps++;
        else
            tally.gaps++;
        s->gapped = true;
    }
    if ((block & HAS_EVENT) && !(block & IS_DAMAGED)) {
        deliver(s, now);
        if (s->record) memcpy(ids[s->number % IDS], last_id, ID_BYTES);
    }
    if (!s->open) become_open(fd, now);
}

static bool field_is(const char *at, const char *end, const char *text) {
    size_t length = strlen(text);
    return (size_t)(end - at) == length && !memcmp(at, text, length);
}

static void take_line(int fd, const char *at, const char *end, uint64_t now) {
    struct stream *s = &streams[fd];
    if (at == end) {
        end_block(fd, now);
        return;
    }
    const char *colon;
    switch (*at) {
    case 'd':
        if (end - at < 5 || memcmp(at, "data:", 5)) break;
        if (s->block & IS_UNAVAILABLE) note_problem("unavailable", at + 5, (size_t)(end - at - 5));
        take_data(s, at + 5 + (at[5] == ' '), end);
        break;
    case 'e':
        if ((colon = memchr(at, ':', (size_t)(end - at)))) {
            colon += 1 + (colon[1] == ' ');
            if (field_is(colon, end, "gap") || field_is(colon, end, "reset")) s->block |= IS_GAP;
            if (field_is(colon, end, "unavailable")) s->block |= IS_UNAVAILABLE;
        }
        break;
    case 'i':
        if (s->record && end - at > 4 && end - at - 4 < ID_BYTES) {
            memset(last_id, 0, sizeof last_id);
            memcpy(last_id, at + 4, (size_t)(end - at - 4));
        }
        break;
    }
}

/* Take the chunks' own lines out, in place; returns how much body is left. */
static size_t dechunk(struct stream *s, char *at, size_t length) {
    char *to = at, *end = at + length;
    while (at < end) {
        switch (s->chunk_phase) {
        case SIZE:
            if (*at == '\n') {
                s->chunk_phase = s->chunk_left ? DATA : TRAILER;
            } else if (*at == ';') {
                s->chunk_phase = EXTENSION;
            } else if (*at != '\r') {
                int digit = *at <= '9' ? *at - '0' : (*at | 32) - 'a' + 10;
                s->chunk_left = s->chunk_left * 16 + (uint64_t)digit;
            }
            at++;
            break;
        case EXTENSION:
            if (*at++ == '\n') s->chunk_phase = s->chunk_left ? DATA : TRAILER;
            break;
        case DATA: {
            size_t piece = (size_t)(end - at);
            if (piece > s->chunk_left) piece = s->chunk_left;
            if (to != at) memmove(to, at, piece);
            to += piece;
            at += piece;
            s->chunk_left -= piece;
            if (!s->chunk_left) s->chunk_phase = AFTER_DATA;
            break;
        }
        case AFTER_DATA:
            if (*at++ == '\n') s->chunk_phase = SIZE;
            break;
        default: /* TRAILER: the stream has ended. */
            at = end;
        }
    }
    return length - (size_t)(end - to);
}

static void keep(struct stream *s, const char *at, size_t length) {
    s->carry_length = (uint32_t)length;
    if (!length) return;
    if (length > CARRY_BYTES) die("a line is too long");
    if (s->carry_size < length) {
        s->carry_size = (uint32_t)(length + length / 2 + 256);
        free(s->carry);
        if (!(s->carry = malloc(s->carry_size))) die("malloc");
    }
    memcpy(s->carry, at, length);
}

static char *find_header(char *head, const char *name) {
    for (char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, strlen(name))) {
            char *value = line + 2 + strlen(name);
            while (*value == ' ') value++;
            return value;
        }
    return NULL;
}

/* Take the head of an answer; returns where its body begins, NULL when it is not complete. */
static char *take_head(int fd, char *at, size_t length) {
    struct stream *s = &streams[fd];
    char *end = memmem(at, length, "\r\n\r\n", 4);
    if (!end) return NULL;
    end[2] = 0;
    if (length < 12 || memcmp(at, "HTTP/1.", 7) || memcmp(at + 8, " 200", 4)) {
        tally.refused++;
        note_problem("a stream was refused", at, strcspn(at, "\r"));
        s->state = FREE;
        return end + 4;
    }
    char *coding = find_header(at, "transfer-encoding:");
    s->chunked = coding && !strncasecmp(coding, "chunked", 7);
    s->state = BODY;
    return end + 4;
}

static void read_stream(int fd, size_t most) {
    struct stream *s = &streams[fd];
    size_t had = s->carry_length;
    if (had) memcpy(buffer, s->carry, had);
    ssize_t n = recv(fd, buffer + had, most, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        lose_stream(fd, n ? strerror(errno) : "by the server");
        return;
    }
    uint64_t now = clock_now();
    tally.bytes += (uint64_t)n;
    if (s->slow) tally.slow_bytes += (uint64_t)n;
    char *start = buffer, *fresh = buffer + had;
    size_t length = (size_t)n;
    if (s->state == HEAD) {
        if (!s->first_byte) {
            s->first_byte = now;
            add(&tally.first_byte, now - s->started);
        }
        char *body = take_head(fd, buffer, had + length);
        if (!body) {
            keep(s, buffer, had + length);
            return;
        }
        if (s->state == FREE) {
            s->state = HEAD;
            close_stream(fd);
            return;
        }
        length = (size_t)(fresh + length - body);
        start = fresh = body;
        if (!server.block || s->raw) become_open(fd, now);
    }
    if (s->raw) {
        if (length) tally.last = now;
        s->carry_length = 0;
        return;
    }
    if (s->chunked) length = dechunk(s, fresh, length);
    char *end = fresh + length, *stop;
    while (start < end && (stop = memchr(start, '\n', (size_t)(end - start)))) {
        take_line(fd, start, stop - (stop > start && stop[-1] == '\r'), now);
        start = stop + 1;
    }
    if (s->chunked && s->chunk_phase == TRAILER)
        lose_stream(fd, "by the server");
    else
        keep(s, start, (size_t)(end - start));
}

/* ---- Opening streams ---- */

struct opening {
    uint32_t streams, channels, window, after;
    int receive_buffer;
    bool slow, raw, record;
    char headers[1024];
};

static void send_request(int fd, const struct opening *plan) {
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

static void connect_stream(const struct opening *plan, uint32_t index) {
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

/* ---- Publishing ---- */

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

static void flush_publisher(struct publisher *p) {
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

static void read_answers(struct publisher *p) {
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

static size_t write_event(char *to, uint64_t number, uint64_t time) {
    const struct era *era = &eras[eras_count - 1];
    size_t which = number % era->count;
    int length = sprintf(to, "{\"n\":%" PRIu64 ",\"t\":%" PRIu64 ",", number, time + TIME_OFFSET);
    memcpy(to + length, era->rests[which], era->lengths[which]);
    return (size_t)length + era->lengths[which];
}

struct publishing {
    uint64_t events; /* in all; 0: as many as fit into the seconds */
    double seconds, rate;
    uint32_t channels, connections, depth, batch, window;
    bool one_at_a_time;
};

static uint64_t due_at(const struct publishing *plan, uint64_t event) {
    return tally.started + (uint64_t)((double)event / plan->rate * 1e9);
}

/* Publish the next `count` events in one request. */
static void publish(struct publisher *p, const struct publishing *plan, uint32_t count,
                    uint64_t now) {
    static char *body;
    static size_t body_size;
    char target[600];
    size_t length = 0;
    const char *type = "";
    for (uint32_t i = 0; i < count; i++) {
        uint32_t which = (uint32_t)(tally.published % plan->channels);
        struct channel *channel = channel_at(which);
        uint64_t time = plan->rate > 0 ? due_at(plan, tally.published) : now;
        const struct era *era = &eras[eras_count - 1];
        reserve(&body, &body_size, length + 1024 + era->lengths[channel->next % era->count]);
        if (plan->batch > 1) {
            length += (size_t)sprintf(body + length, "{\"channel\":\"");
            length += fill(body + length, 300, server.channel, which);
            length += (size_t)sprintf(body + length, "\",\"data\":");
        }
        length += write_event(body + length, channel->next++, time);
        if (plan->batch > 1) length += (size_t)sprintf(body + length, "}\n");
        owed += channel->subscribers;
        tally.published++;
        if (plan->batch == 1) fill(target, sizeof target, server.publish, which);
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
    tally.requests++;
    flush_publisher(p);
}

static void open_publishers(const struct publishing *plan) {
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

static void close_publishers(void) {
    for (int i = 0; i < publishers_count; i++) {
        if (publishers[i].fd < 0) continue;
        publisher_of[publishers[i].fd] = -1;
        close(publishers[i].fd);
    }
    publishers_count = 0;
}

static unsigned requests_under_way(void) {
    unsigned count = 0;
    for (int i = 0; i < publishers_count; i++) count += publishers[i].under_way;
    return count;
}

/* ---- The loop ---- */

static const struct opening *opening_plan;

static void read_slow_streams(uint64_t now) {
    if (!slow_count || now < slow_tick) return;
    slow_tick = now + SECOND / SLOW_TICKS;
    for (int i = slow_count - 1; i >= 0; i--) read_stream(slow_fds[i], slow_bytes / SLOW_TICKS);
}

/* Wait for whatever comes first, until `until` at the latest, and deal with it. */
static void turn(uint64_t until) {
    static uint64_t armed;
    struct epoll_event events[EVENTS];
    if (slow_count && slow_tick < until) until = slow_tick;
    if (until != armed) {
        struct itimerspec when = {.it_value = {.tv_sec = (time_t)(until / SECOND),
                                               .tv_nsec = (long)(until % SECOND)}};
        if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0) die("timerfd_settime");
        armed = until;
    }
    int count = epoll_wait(epoll_fd, events, EVENTS, -1);
    if (count < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < count; i++) {
        int fd = events[i].data.fd;
        if (fd == timer_fd) {
            uint64_t ticks;
            if (read(timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
            armed = 0;
        } else if (fd == STDIN_FILENO) {
            command_waits = true;
        } else if (publisher_of[fd] >= 0) {
            struct publisher *p = &publishers[publisher_of[fd]];
            if (events[i].events & EPOLLOUT) flush_publisher(p);
            if (p->fd >= 0 && events[i].events & ~(uint32_t)EPOLLOUT) read_answers(p);
        } else if (streams[fd].state == CONNECTING) {
            send_request(fd, opening_plan);
        } else if (streams[fd].state != FREE) {
            read_stream(fd, READ_BYTES);
        }
    }
    read_slow_streams(clock_now());
}

/* ---- Commands ---- */

static char *words[64];
static int words_count;

static const char *word(const char *key, const char *fallback) {
    size_t length = strlen(key);
    for (int i = 1; i < words_count; i++)
        if (!strncmp(words[i], key, length) && words[i][length] == '=') return words[i] + length + 1;
    return fallback;
}

static double number_of(const char *key, double fallback) {
    const char *text = word(key, NULL);
    return text ? strtod(text, NULL) : fallback;
}

static void copy_word(char *to, size_t size, const char *key) {
    snprintf(to, size, "%s", word(key, ""));
}

static void join_headers(char *to, size_t size) {
    size_t length = 0;
    to[0] = 0;
    for (int i = 1; i < words_count; i++)
        if (!strncmp(words[i], "header=", 7) && length < size)
            length += (size_t)snprintf(to + length, size - length, "%s\r\n", words[i] + 7);
}

static void print_percentiles(const char *name, const struct histogram *h) {
    printf(", \"%s_p50_ms\": %.4f, \"%s_p99_ms\": %.4f, \"%s_max_ms\": %.4f", name,
           percentile_ms(h, 0.5), name, percentile_ms(h, 0.99), name, (double)h->most / 1e6);
}

static void report(void) {
    double seconds = (double)(clock_now() - tally.started) / 1e9;
    double active = (double)(tally.last - tally.started) / 1e9;
    printf("{\"seconds\": %.6f, \"active_seconds\": %.6f", seconds, active);
    printf(", \"deliveries\": %" PRIu64 ", \"deliveries_per_second\": %.1f", tally.deliveries,
           active > 0 ? (double)tally.deliveries / active : 0);
    printf(", \"missing\": %" PRId64 ", \"duplicates\": %" PRIu64 ", \"disorder\": %" PRIu64, owed,
           tally.duplicates, tally.disorder);
    printf(", \"damaged\": %" PRIu64 ", \"gaps\": %" PRIu64 ", \"closed\": %" PRIu64,
           tally.damaged, tally.gaps, tally.closed);
    printf(", \"refused\": %" PRIu64 ", \"unavailable\": %" PRIu64, tally.refused,
           tally.unavailable);
    printf(", \"opened\": %" PRIu64 ", \"opened_per_second\": %.1f", tally.opened,
           active > 0 ? (double)tally.opened / active : 0);
    printf(", \"published\": %" PRIu64 ", \"requests\": %" PRIu64 ", \"failed\": %" PRIu64,
           tally.published, tally.requests, tally.failed);
    printf(", \"published_per_second\": %.1f",
           active > 0 ? (double)tally.published / active : 0);
    printf(", \"bytes\": %" PRIu64 ", \"slow_bytes\": %" PRIu64, tally.bytes, tally.slow_bytes);
    printf(", \"slow_deliveries\": %" PRIu64 ", \"slow_gaps\": %" PRIu64
           ", \"slow_closed\": %" PRIu64,
           tally.slow_deliveries, tally.slow_gaps, tally.slow_closed);
    print_percentiles("latency", &tally.latency);
    print_percentiles("first_byte", &tally.first_byte);
    print_percentiles("ready", &tally.ready);
    print_percentiles("answer", &tally.answer);
    printf(", \"load_cpu_share\": %.4f", seconds > 0 ? (cpu_seconds() - tally.cpu) / seconds : 0);
    printf(", \"problem\": \"%s\"}\n", tally.problem);
    fflush(stdout);
    memset(&tally, 0, sizeof tally);
    if (!owed) return;
    /* Each lack is reported once; what comes later all the same counts as a duplicate. */
    owed = 0;
    for (int fd = 0; fd < stream_top; fd++) {
        if (streams[fd].state == FREE) continue;
        streams[fd].expected = channel_at(streams[fd].channel)->next;
        streams[fd].holes = 0;
    }
}

static void command_server(void) {
    snprintf(server.host, sizeof server.host, "%s", word("host", "127.0.0.1"));
    server.address.sin_family = AF_INET;
    server.address.sin_port = htons((uint16_t)number_of("port", 80));
    if (inet_pton(AF_INET, server.host, &server.address.sin_addr) != 1) die("the host's address");
    copy_word(server.stream, sizeof server.stream, "stream");
    copy_word(server.publish, sizeof server.publish, "publish");
    copy_word(server.batch, sizeof server.batch, "batch");
    copy_word(server.channel, sizeof server.channel, "channel");
    server.block = number_of("block", 0) != 0;
    slow_bytes = (unsigned)number_of("slow_bytes", 1024);
    patience = (uint64_t)(number_of("patience", 10) * 1e9);
    join_headers(server.headers, sizeof server.headers);
    report();
}

static void add_rest(struct era *era, const char *text, size_t length) {
    era->rests = realloc(era->rests, (era->count + 1) * sizeof *era->rests);
    era->lengths = realloc(era->lengths, (era->count + 1) * sizeof *era->lengths);
    if (!era->rests || !era->lengths) die("realloc");
    if (!(era->rests[era->count] = malloc(length + 1))) die("malloc");
    memcpy(era->rests[era->count], text, length);
    era->rests[era->count][length] = 0;
    era->lengths[era->count++] = length;
}

static struct era *next_era(void) {
    if (eras_count == ERAS) die("too many commands `events`");
    return &eras[eras_count++];
}

static void set_size(size_t size) {
    static const char start[] = "\"pad\":\"";
    if (size < PREFIX_BYTES + 10) size = PREFIX_BYTES + 10;
    size_t length = size - PREFIX_BYTES;
    char *text = malloc(length + 1);
    if (!text) die("malloc");
    memset(text, 'x', length);
    memcpy(text, start, 7);
    memcpy(text + length - 2, "\"}", 2);
    add_rest(next_era(), text, length);
    free(text);
}

static void command_events(void) {
    const char *path = word("file", NULL);
    if (path) {
        char *line = NULL;
        size_t size = 0;
        ssize_t length;
        FILE *file = fopen(path, "r");
        struct era *era = next_era();
        if (!file) die(path);
        while ((length = getline(&line, &size, file)) > 0)
            add_rest(era, line, (size_t)length - (line[length - 1] == '\n'));
        free(line);
        fclose(file);
    } else {
        set_size((size_t)number_of("size", 200));
    }
    report();
}

static bool still_patient(uint64_t now) { return now < tally.last + patience; }

static void command_open(void) {
    struct opening plan = {
        .streams = (uint32_t)number_of("streams", 1), .channels = (uint32_t)number_of("channels", 1),
        .window = (uint32_t)number_of("window", 256), .after = (uint32_t)number_of("after", 0),
        .receive_buffer = (int)number_of("receive_buffer", 0), .slow = number_of("slow", 0) != 0,
        .raw = number_of("raw", 0) != 0, .record = number_of("record", 0) != 0,
    };
    join_headers(plan.headers, sizeof plan.headers);
    opening_plan = &plan;
    uint32_t index = 0;
    uint64_t now;
    while ((index < plan.streams || opening || (plan.after && owed)) &&
           still_patient(now = clock_now())) {
        /* A few at a time, so that answers are read, and first bytes timed, in between. */
        for (int few = 0; few < 32 && index < plan.streams && opening < (int)plan.window; few++)
            connect_stream(&plan, index++);
        bool more = index < plan.streams && opening < (int)plan.window;
        turn(more ? now : now + SECOND / 10);
    }
    if (opening > 0) note_problem("streams", "not all of them opened", 22);
    tally.closed += (uint64_t)opening;
    for (int fd = 0; opening > 0 && fd < stream_top; fd++)
        if (streams[fd].state != FREE && !streams[fd].open) close_stream(fd);
    opening_plan = NULL;
    report();
}

/* Return how many events may be published now, in one request of this connection. */
static uint32_t events_due(const struct publishing *plan, const struct publisher *p, uint64_t now,
                           uint32_t subscribers) {
    if (p->fd < 0 || p->under_way >= plan->depth || p->watches_out) return 0;
    if (plan->one_at_a_time && (owed || requests_under_way())) return 0;
    uint64_t count = plan->batch;
    if (plan->events && plan->events - tally.published < count)
        count = plan->events - tally.published;
    if (plan->rate > 0) {
        uint64_t due = (uint64_t)((double)(now - tally.started) / 1e9 * plan->rate) + 1;
        if (due <= tally.published) return 0;
        if (due - tally.published < count) count = due - tally.published;
    }
    if (subscribers && plan->window && owed >= (int64_t)plan->window * subscribers) return 0;
    return (uint32_t)count;
}

static bool publishing_is_over(const struct publishing *plan, uint64_t now) {
    if (plan->events && tally.published >= plan->events) return true;
    if (plan->seconds > 0 && now >= tally.started + (uint64_t)(plan->seconds * 1e9)) return true;
    for (int i = 0; i < publishers_count; i++)
        if (publishers[i].fd >= 0) return false;
    return true;
}

static void command_publish(void) {
    struct publishing plan = {
        .events = (uint64_t)number_of("events", 0), .seconds = number_of("seconds", 0),
        .rate = number_of("rate", 0), .channels = (uint32_t)number_of("channels", 1),
        .connections = (uint32_t)number_of("connections", 1),
        .depth = (uint32_t)number_of("depth", 1), .batch = (uint32_t)number_of("batch", 1),
        .window = (uint32_t)number_of("window", 0),
        .one_at_a_time = number_of("one_at_a_time", 0) != 0,
    };
    if (plan.connections > PUBLISHERS || plan.depth > PIPELINE) die("too many connections");
    uint32_t subscribers = 0; /* of a channel, on average */
    for (uint32_t i = 0; i < plan.channels; i++) subscribers += channel_at(i)->subscribers;
    subscribers = (subscribers + plan.channels - 1) / plan.channels;
    open_publishers(&plan);
    tally.started = tally.last = clock_now();
    tally.cpu = cpu_seconds();
    for (;;) {
        uint64_t now = clock_now(), until = now + SECOND / 10;
        bool over = publishing_is_over(&plan, now);
        if (over && !owed && !requests_under_way()) break;
        if ((owed || requests_under_way()) && !still_patient(now)) break;
        for (int i = 0; !over && i < publishers_count; i++) {
            uint32_t count = events_due(&plan, &publishers[i], now, subscribers);
            if (count) publish(&publishers[i], &plan, count, now);
            over = publishing_is_over(&plan, now);
        }
        if (plan.rate > 0 && !over) {
            uint64_t next = due_at(&plan, tally.published) + 1;
            if (next > now && next < until) until = next;
        }
        turn(until);
    }
    close_publishers();
    report();
}

static void command_wait(void) {
    uint64_t until = clock_now() + (uint64_t)(number_of("seconds", 1) * 1e9);
    while (clock_now() < until) turn(until);
    report();
}

static void command_close(void) {
    for (int fd = 0; fd < stream_top; fd++) close_stream(fd);
    slow_count = stream_top = 0;
    owed = 0;
    for (uint32_t i = 0; i < channels_count; i++) channels[i].subscribers = 0;
    report();
}

static void run_command(char *line) {
    static const struct {
        const char *name;
        void (*run)(void);
    } commands[] = {
        {"server", command_server}, {"events", command_events}, {"open", command_open},
        {"publish", command_publish}, {"wait", command_wait}, {"close", command_close},
    };
    words_count = 0;
    line[strcspn(line, "\n")] = 0;
    for (char *at = strtok(line, "\t"); at && words_count < 64; at = strtok(NULL, "\t"))
        words[words_count++] = at;
    start_tally();
    for (size_t i = 0; words_count && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(commands[i].name, words[0])) {
            commands[i].run();
            return;
        }
    fprintf(stderr, "load: unknown command\n");
    exit(2);
}

int main(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    getrlimit(RLIMIT_NOFILE, &files);
    files_limit = files.rlim_cur > 1000000 ? 1000000 : (int)files.rlim_cur;
    signal(SIGPIPE, SIG_IGN);
    streams = calloc((size_t)files_limit, sizeof *streams);
    slow_fds = calloc((size_t)files_limit, sizeof *slow_fds);
    publishers = calloc(PUBLISHERS, sizeof *publishers);
    publisher_of = malloc((size_t)files_limit * sizeof *publisher_of);
    if (!streams || !slow_fds || !publishers || !publisher_of) die("malloc");
    memset(publisher_of, -1, (size_t)files_limit * sizeof *publisher_of);
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
    if ((timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0)
        die("timerfd_create");
    watch(EPOLL_CTL_ADD, timer_fd, EPOLLIN);
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN);
    set_size(200);
    setvbuf(stdin, NULL, _IONBF, 0);
    char line[8192];
    for (;;) {
        while (!command_waits) turn(clock_now() + SECOND);
        command_waits = false;
        if (!fgets(line, sizeof line, stdin)) return 0;
        run_command(line);
        command_waits = false;
    }
}
