/* call_nanosleep: relative and absolute sleeps go on for what is left; one is interrupted and says what is left of it. */
#include "rows.h"

static int tids[3];
static double since;
static void nothing(int n) {}

static void *sleeps(void *which) {
    int n = (intptr_t)which, right;
    struct timespec three = {3, 0}, long_ = {1000, 0}, at, left = {0};
    clock_gettime(CLOCK_BOOTTIME, &at), at.tv_sec += 3;
    tids[n] = gettid();
    if (n == 0)
        right = nanosleep(&three, 0) == 0 && seconds(CLOCK_MONOTONIC) >= since + 3;
    else if (n == 1)
        right = clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &at, 0) == 0 && seconds(CLOCK_BOOTTIME) >= at.tv_sec;
    else
        right = nanosleep(&long_, &left) == -1 && errno == EINTR && left.tv_sec > 900 && left.tv_sec < 1000;
    return (void *)(intptr_t)right;
}

int main(void) {
    pthread_t threads[3];
    void *right[3];
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = nothing}, 0);
    since = seconds(CLOCK_MONOTONIC);
    for (intptr_t i = 0; i < 3; i++) {
        threads[i] = start(sleeps, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], SYS_clock_nanosleep);
    }
    journey();
    pthread_kill(threads[2], SIGUSR1);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], &right[i]);
    IS(right[0]), IS(right[1]), IS(right[2]);
    return 0;
}
