#include "tally.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

struct tally tally;

void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

uint64_t clock_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* What came since the last report, between two commands, is counted with the next. */
void start_tally(void) {
    tally.started = tally.last = clock_now();
    tally.cpu = cpu_seconds();
}

void note_problem(const char *what, const char *text, size_t length) {
    if (tally.problem[0]) return;
    int at = snprintf(tally.problem, sizeof tally.problem, "%s: ", what);
    for (size_t i = 0; i < length && at < (int)sizeof tally.problem - 1; i++) {
        char c = text[i]; /* Only what needs no escape in JSON. */
        tally.problem[at++] = c >= ' ' && c < 127 && c != '"' && c != '\\' ? c : ' ';
    }
}
