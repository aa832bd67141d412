/* What is counted between two reports, and the time it is counted in. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "histogram.h"

#define SECOND UINT64_C(1000000000)

struct tally {
    uint64_t started, last; /* when the command came, when the last delivery or opening was */
    uint64_t deliveries, duplicates, disorder, damaged, gaps, closed, refused, unavailable;
    uint64_t opened, bytes, slow_deliveries, slow_gaps, slow_closed;
    uint64_t published, failed;
    struct histogram latency, first_byte, ready, answer;
    double cpu;
    char problem[256];
};
extern struct tally tally;

void die(const char *what);
uint64_t clock_now(void);
double cpu_seconds(void);
void start_tally(void);

/* Keep the first problem's text for the report. */
void note_problem(const char *what, const char *text, size_t length);
