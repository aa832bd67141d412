/* The one epoll that streams, publishers, the clock and the commands wait on. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

extern int files_limit; /* fds are below it */
extern bool command_waits;

void make_loop(void);
void watch(int operation, int fd, uint32_t wanted);

/* Wait for whatever comes first, until `until` at the latest, and deal with it. */
void turn(uint64_t until);
