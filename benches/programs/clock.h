/* What the programs share: a clock in nanoseconds, and a way out. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static inline void fail(const char *what) {
    perror(what);
    exit(1);
}
