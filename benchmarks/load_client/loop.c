#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "publishers.h"
#include "streams.h"
#include "tally.h"

enum { EVENTS = 256 }; /* Between two looks at the publisher: some 300 us of work. */

int files_limit;
bool command_waits;
static int epoll_fd, timer_fd;

void make_loop(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    getrlimit(RLIMIT_NOFILE, &files);
    files_limit = files.rlim_cur > 1000000 ? 1000000 : (int)files.rlim_cur;
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
    if ((timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0)
        die("timerfd_create");
    watch(EPOLL_CTL_ADD, timer_fd, EPOLLIN);
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN);
}

void watch(int operation, int fd, uint32_t wanted) {
    struct epoll_event event = {.events = wanted, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) die("epoll_ctl");
}

void turn(uint64_t until) {
    static uint64_t armed;
    struct epoll_event events[EVENTS];
    if (slow_streams_due() < until) until = slow_streams_due();
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
