/* The subscribers: opening streams, reading them, and what each has still to get. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    READ_BYTES = 262144,
    IDS = 1024, /* Events whose SSE ids are remembered. */
    ID_BYTES = 64,
};

struct channel {
    uint64_t next;        /* number of the next event */
    uint32_t subscribers; /* slow ones not counted */
};

enum state { FREE, CONNECTING, HEAD, BODY };

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

struct opening {
    uint32_t streams, channels, window, after;
    int receive_buffer;
    bool slow, raw, record;
    char headers[1024];
};

extern struct stream *streams; /* by fd */
extern int stream_top, opening; /* the fds in use end here; streams that are not open yet */
extern int64_t owed;            /* deliveries that are still to come */
extern unsigned slow_bytes;     /* what a slow stream reads in a second */
extern char ids[IDS][ID_BYTES]; /* of the recorded stream, by number of the event */
extern const struct opening *opening_plan;

void make_streams(int files_limit);
struct channel *channel_at(uint32_t number);
void connect_stream(const struct opening *plan, uint32_t index);

/* Ask for the stream, at once or when epoll says that the connection stands. */
void send_request(int fd, const struct opening *plan);
void read_stream(int fd, size_t most);
void lose_stream(int fd, const char *why);
void close_stream(int fd);
void close_streams(void);

/* Wait no longer for what is owed; what comes later all the same counts as a duplicate. */
void forgive_streams(void);

/* Slow streams are read by the clock: when next, UINT64_MAX where there are none. */
uint64_t slow_streams_due(void);
void read_slow_streams(uint64_t now);
