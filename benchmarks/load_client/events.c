#define _GNU_SOURCE
#include "events.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tally.h"

enum { ERAS = 64 };

/* What the events of one command `events` end with, in turns; the last era is being published. */
struct era {
    char **rests;
    size_t *lengths, count;
};
static struct era eras[ERAS];
static int eras_count;
uint32_t keys_count;

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

void set_size(size_t size) {
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

void set_lines(const char *path) {
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
}

size_t rest_length(uint64_t number) {
    const struct era *era = &eras[eras_count - 1];
    return era->lengths[number % era->count];
}

size_t write_event(char *to, uint64_t number, uint64_t time) {
    const struct era *era = &eras[eras_count - 1];
    size_t which = number % era->count;
    int length = sprintf(to, "{\"n\":%" PRIu64 ",\"t\":%" PRIu64 ",", number, time + TIME_OFFSET);
    memcpy(to + length, era->rests[which], era->lengths[which]);
    return (size_t)length + era->lengths[which];
}

bool is_known(uint64_t number, const char *rest, size_t left) {
    for (const struct era *era = &eras[eras_count - 1]; era >= eras; era--) {
        size_t which = number % era->count, length = era->lengths[which];
        if ((left == length || left == length + 1) && !memcmp(rest, era->rests[which], length))
            return true;
    }
    return false;
}
