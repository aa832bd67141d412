/* Percentiles from logarithmic buckets, each within 1.6 % of its values. */
#pragma once
#include <stdint.h>

enum { BUCKETS = 64 * 64 };

struct histogram {
    uint64_t count, most;
    uint64_t buckets[BUCKETS];
};

static inline void add(struct histogram *h, uint64_t value) {
    unsigned bucket;
    if (value < 64) {
        bucket = (unsigned)value;
    } else {
        unsigned exponent = 63 - (unsigned)__builtin_clzll(value);
        bucket = (exponent - 5) * 64 + ((value >> (exponent - 6)) & 63);
    }
    h->buckets[bucket]++;
    h->count++;
    if (value > h->most) h->most = value;
}

static inline double percentile_ms(const struct histogram *h, double part) {
    uint64_t wanted = (uint64_t)(part * (double)h->count), seen = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        seen += h->buckets[bucket];
        if (seen > wanted) {
            if (bucket < 64) return bucket / 1e6;
            unsigned exponent = bucket / 64 + 5;
            uint64_t width = UINT64_C(1) << (exponent - 6);
            return (double)((64 + bucket % 64) * width + width / 2) / 1e6;
        }
    }
    return (double)h->most / 1e6;
}
