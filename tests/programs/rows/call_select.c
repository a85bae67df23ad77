/* call_select: select without end, pselect with a timeout that goes on, and select that a signal interrupts. */
#include "rows.h"

#define WAIT SYS_pselect6 /* glibc makes select of it */

static int pipes[2], tids[3];
static double since;
static void nothing(int n) {}

static void *waits(void *which) {
    int n = (intptr_t)which;
    struct timespec three = {3, 0};
    struct timeval minute = {60, 0};
    fd_set set;
    FD_ZERO(&set);
    if (n != 1)
        FD_SET(pipes[0], &set);
    tids[n] = gettid();
    errno = 0;
    long got = n == 1 ? pselect(0, 0, 0, 0, &three, 0) : select(pipes[0] + 1, &set, 0, 0, n ? &minute : 0);
    int right = n == 0 ? got == 1 && FD_ISSET(pipes[0], &set) : n == 1 ? got == 0 && seconds(CLOCK_MONOTONIC) >= since + 3 - LAG : got == -1 && errno == EINTR;
    return (void *)(intptr_t)right;
}

int main(void) {
    pthread_t threads[3];
    void *right[3];
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = nothing, .sa_flags = SA_RESTART}, 0);
    MUST(pipe(pipes));
    since = seconds(CLOCK_MONOTONIC);
    for (intptr_t i = 0; i < 3; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], i == 1 ? SYS_pselect6 : WAIT);
    }
    journey();
    pthread_kill(threads[2], SIGUSR1), pthread_join(threads[2], &right[2]);
    MUST(write(pipes[1], "x", 1)), pthread_join(threads[0], &right[0]);
    pthread_join(threads[1], &right[1]);
    IS(right[0]), IS(right[1]), IS(right[2]);
    return 0;
}
