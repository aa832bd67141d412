/* The load of the benchmarks: thousands of subscribers and the publisher in one process.
 *
 * It takes commands on stdin, one a line, as `name`, TAB, `key=value`, TAB, ..., and answers each
 * with one JSON object on stdout:
 *
 *   server   where the server is, and what requests to it look like
 *   events   what is published: `size` bytes of JSON, or the lines of a file; with one of `keys`
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
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "events.h"
#include "loop.h"
#include "publishers.h"
#include "server.h"
#include "streams.h"
#include "tally.h"

/* How long nothing may happen before what is still owed counts as missing. */
static uint64_t patience = 10 * SECOND;

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

static void print_percentile(const char *name, const struct histogram *h, double part) {
    printf(", \"%s\": %.4f", name, percentile_ms(h, part));
}

static void report(void) {
    double seconds = (double)(clock_now() - tally.started) / 1e9;
    double active = (double)(tally.last - tally.started) / 1e9;
    printf("{\"active_seconds\": %.6f", active);
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
    printf(", \"published\": %" PRIu64 ", \"failed\": %" PRIu64, tally.published, tally.failed);
    printf(", \"published_per_second\": %.1f",
           active > 0 ? (double)tally.published / active : 0);
    printf(", \"bytes\": %" PRIu64, tally.bytes);
    printf(", \"slow_deliveries\": %" PRIu64 ", \"slow_gaps\": %" PRIu64
           ", \"slow_closed\": %" PRIu64,
           tally.slow_deliveries, tally.slow_gaps, tally.slow_closed);
    print_percentile("latency_p50_ms", &tally.latency, 0.5);
    print_percentile("latency_p99_ms", &tally.latency, 0.99);
    printf(", \"latency_max_ms\": %.4f", (double)tally.latency.most / 1e6);
    print_percentile("first_byte_p50_ms", &tally.first_byte, 0.5);
    print_percentile("first_byte_p99_ms", &tally.first_byte, 0.99);
    print_percentile("ready_p50_ms", &tally.ready, 0.5);
    print_percentile("ready_p99_ms", &tally.ready, 0.99);
    print_percentile("answer_p99_ms", &tally.answer, 0.99);
    printf(", \"load_cpu_share\": %.4f", seconds > 0 ? (cpu_seconds() - tally.cpu) / seconds : 0);
    printf(", \"problem\": \"%s\"}\n", tally.problem);
    fflush(stdout);
    memset(&tally, 0, sizeof tally);
    if (owed) forgive_streams(); /* Each lack is reported once. */
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

static void command_events(void) {
    const char *path = word("file", NULL);
    keys_count = (uint32_t)number_of("keys", 0);
    if (path)
        set_lines(path);
    else
        set_size((size_t)number_of("size", 200));
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
    close_streams();
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
    signal(SIGPIPE, SIG_IGN);
    make_loop();
    make_streams(files_limit);
    make_publishers(files_limit);
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
