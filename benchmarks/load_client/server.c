#define _GNU_SOURCE
#include "server.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

struct server server;

size_t fill(char *to, size_t size, const char *template, uint32_t channel) {
    size_t length = 0;
    for (; *template && length + 12 < size; template++) {
        if (*template == '@')
            length += (size_t)sprintf(to + length, "%" PRIu32, channel);
        else
            to[length++] = *template;
    }
    to[length] = 0;
    return length;
}

char *find_header(char *head, const char *name) {
    for (char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, strlen(name))) {
            char *value = line + 2 + strlen(name);
            while (*value == ' ') value++;
            return value;
        }
    return NULL;
}
