/* The publisher: its connections, with requests under way on each. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PUBLISHERS = 1024,
    PIPELINE = 4096,
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

struct publishing {
    uint64_t events; /* in all; 0: as many as fit into the seconds */
    double seconds, rate;
    uint32_t channels, connections, depth, batch, window;
    bool one_at_a_time;
};

extern struct publisher *publishers;
extern int publishers_count;
extern int *publisher_of; /* by fd; -1 */

void make_publishers(int files_limit);
void open_publishers(const struct publishing *plan);
void close_publishers(void);

/* Publish the next `count` events in one request. */
void publish(struct publisher *p, const struct publishing *plan, uint32_t count, uint64_t now);

/* Return when an event is due, counted from the start, where there is a rate. */
uint64_t due_at(const struct publishing *plan, uint64_t event);
unsigned requests_under_way(void);
void flush_publisher(struct publisher *p);
void read_answers(struct publisher *p);
