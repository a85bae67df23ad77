/* call_epoll_wait: epoll_wait without end in a thread, and epoll_pwait with a timeout in another. */
#include "rows.h"
#include <sys/epoll.h>

static int epoll, tids[2], empty;
static double since;

static void *waits(void *which) {
    int n = (intptr_t)which;
    struct epoll_event event = {0};
    tids[n] = gettid();
    long got = n ? epoll_pwait(empty, &event, 1, 3000, 0) : epoll_wait(epoll, &event, 1, -1);
    return (void *)(intptr_t)(n ? got == 0 && seconds(CLOCK_MONOTONIC) >= since + 3 - LAG : got == 1 && event.data.u64 == 0x987654321);
}

int main(void) {
    pthread_t threads[2];
    void *right[2];
    int pipes[2];
    struct epoll_event event = {EPOLLIN, {.u64 = 0x987654321}};
    epoll = MUST(epoll_create1(0)), empty = MUST(epoll_create1(0)), MUST(pipe(pipes));
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event));
    since = seconds(CLOCK_MONOTONIC);
    for (intptr_t i = 0; i < 2; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], i ? SYS_epoll_pwait : SYS_epoll_wait);
    }
    journey();
    MUST(write(pipes[1], "x", 1));
    pthread_join(threads[0], &right[0]), pthread_join(threads[1], &right[1]);
    IS(right[0]), IS(right[1]);
    return 0;
}
