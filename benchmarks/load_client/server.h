/* The server that is under load, and what requests to it look like. */
#pragma once
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct server {
    struct sockaddr_in address;
    char host[64], stream[512], publish[512], batch[512], channel[256], headers[1024];
    bool block; /* a stream is open with its first block, not with its head */
};
extern struct server server;

/* Copy a template, each `@` replaced by the channel's number; returns the length. */
size_t fill(char *to, size_t size, const char *template, uint32_t channel);

/* Return the value of a header, its name given in small letters with its colon; NULL without. */
char *find_header(char *head, const char *name);
