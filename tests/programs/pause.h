/* What the C test programs share: a pause that is not cut short by signals, and lines that come out at once. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline void pause_ms(int ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&t, &t) == -1 && errno == EINTR)
        ;
}

__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

/* The moment of the move: says ready, and waits for a line on stdin. */
static inline void moment(void) {
    char byte = 0;
    say("ready");
    while (byte != '\n' && read(0, &byte, 1) == 1)
        ;
}

/* Makes a call that gives -1 for an error, and prints what came of it. */
#define TRY(call) tried(#call, (call))
static inline void tried(const char *call, long result) {
    say("%-44.44s %ld %s", call, result, result < 0 ? strerror(errno) : "");
}
