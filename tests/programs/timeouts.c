/* timeouts: waits with a timeout, stopped and continued, and hit by signals that are ignored or blocked, end when they should. */
#include "pause.h"
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>

static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

#define LASTS(ms, call) \
    do { \
        long then = now(), result = (call), ms_ = now() - then; \
        say("%-40.40s %ld %s %s", #call, result, result < 0 ? strerror(errno) : "", \
            ms_ < ms ? "too early" : ms_ < ms + 150 ? "in time" : "too late"); \
    } while (0)

int main(void) {
    struct epoll_event event;
    struct timespec ts = {0, 300000000};
    struct timeval tv = {0, 300000};
    sigset_t block;
    int ep;
    moment();
    ep = epoll_create1(0);
    sigemptyset(&block), sigaddset(&block, SIGALRM), sigprocmask(SIG_BLOCK, &block, 0);
    signal(SIGALRM, SIG_IGN);
    for (int round = 0; round < 2; round++) {
        /* Every 50 ms, a signal that is to change nothing: blocked, then ignored. */
        setitimer(ITIMER_REAL, &(struct itimerval){{0, 50000}, {0, 50000}}, 0);
        LASTS(300, poll(0, 0, 300));
        LASTS(300, ppoll(0, 0, &ts, 0));
        LASTS(300, select(0, 0, 0, 0, &tv));
        LASTS(300, pselect(0, 0, 0, 0, &ts, 0));
        LASTS(300, epoll_wait(ep, &event, 1, 300));
        LASTS(300, nanosleep(&ts, 0));
        LASTS(300, clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, 0));
        tv.tv_usec = 300000;
        setitimer(ITIMER_REAL, &(struct itimerval){0}, 0);
        sigprocmask(SIG_UNBLOCK, &block, 0);
    }
    return 0;
}
