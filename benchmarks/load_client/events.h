/* What is published: `{"n":NUMBER,"t":TIME,REST`, all of the same length but for REST. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FIRST_NUMBER UINT64_C(1000000000)
#define TIME_OFFSET UINT64_C(100000000000000000)
#define NUMBER_DIGITS 10
#define TIME_DIGITS 18 /* From 19 digits on a JSON number needs more care than most readers take. */
#define PREFIX_BYTES (5 + NUMBER_DIGITS + 5 + TIME_DIGITS + 1) /* {"n":...,"t":..., */

/* Publish `size` bytes of JSON, or the lines of a file in turns, from now on. */
void set_size(size_t size);
void set_lines(const char *path);

/* Give what is published one of so many keys from now on, in turns; 0: none. */
extern uint32_t keys_count;

/* Return how long what follows number and time is. */
size_t rest_length(uint64_t number);

/* Write an event that is due at `time`; returns its length. */
size_t write_event(char *to, uint64_t number, uint64_t time);

/* Say whether an event ends as it was published; slow streams may get those of earlier eras. */
bool is_known(uint64_t number, const char *rest, size_t left);
