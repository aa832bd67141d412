#define _GNU_SOURCE
#include "streams.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "events.h"
#include "loop.h"
#include "server.h"
#include "tally.h"

enum {
    CARRY_BYTES = 4 << 20, /* The longest incomplete line or head. */
    SLOW_TICKS = 10,       /* Reads a second of a slow stream. */
};

enum chunk_phase { SIZE, EXTENSION, DATA, AFTER_DATA, TRAILER };
enum block { HAS_EVENT = 1, IS_GAP = 2, IS_UNAVAILABLE = 4, IS_DAMAGED = 8 };

struct stream *streams;
int stream_top, opening;
int64_t owed;
unsigned slow_bytes = 1024;
char ids[IDS][ID_BYTES];

static struct channel *channels;
static uint32_t channels_count;
static int *slow_fds, slow_count;
static uint64_t slow_tick;
static char last_id[ID_BYTES]; /* of the recorded stream's current block */
static char buffer[CARRY_BYTES + READ_BYTES];

void make_streams(int files_limit) {
    streams = calloc((size_t)files_limit, sizeof *streams);
    slow_fds = calloc((size_t)files_limit, sizeof *slow_fds);
    if (!streams || !slow_fds) die("malloc");
}

struct channel *channel_at(uint32_t number) {
    if (number >= channels_count) {
        channels = realloc(channels, (number + 1) * sizeof *channels);
        if (!channels) die("realloc");
        for (; channels_count <= number; channels_count++)
            channels[channels_count] = (struct channel){.next = FIRST_NUMBER};
    }
    return &channels[number];
}

void close_stream(int fd) {
    struct stream *s = &streams[fd];
    if (s->state == FREE) return;
    if (!s->open) opening--;
    free(s->carry);
    memset(s, 0, sizeof *s);
    close(fd);
}

void lose_stream(int fd, const char *why) {
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
        /* A state that stands for events is not one of them. */
        if (!(s->block & IS_GAP)) take_data(s, at + 5 + (at[5] == ' '), end);
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

void read_stream(int fd, size_t most) {
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

uint64_t slow_streams_due(void) { return slow_count ? slow_tick : UINT64_MAX; }

void read_slow_streams(uint64_t now) {
    if (!slow_count || now < slow_tick) return;
    slow_tick = now + SECOND / SLOW_TICKS;
    for (int i = slow_count - 1; i >= 0; i--) read_stream(slow_fds[i], slow_bytes / SLOW_TICKS);
}

void close_streams(void) {
    for (int fd = 0; fd < stream_top; fd++) close_stream(fd);
    slow_count = stream_top = 0;
    owed = 0;
    for (uint32_t i = 0; i < channels_count; i++) channels[i].subscribers = 0;
}

void forgive_streams(void) {
    owed = 0;
    for (int fd = 0; fd < stream_top; fd++) {
        if (streams[fd].state == FREE) continue;
        streams[fd].expected = channel_at(streams[fd].channel)->next;
        streams[fd].holes = 0;
    }
}
