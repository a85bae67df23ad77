/* call_futex: FUTEX_WAIT without end, with a relative and an absolute timeout, and one that two processes share. */
#include "rows.h"
#include <linux/futex.h>

static int word, other, tids[3];
static double since;

static void *waits(void *which) {
    int n = (intptr_t)which;
    struct timespec left = {3, 0}, at;
    clock_gettime(CLOCK_MONOTONIC, &at), at.tv_sec += 3;
    tids[n] = gettid();
    long got = n == 0 ? syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0)
        : n == 1      ? syscall(SYS_futex, &other, FUTEX_WAIT_PRIVATE, 0, &left, 0, 0)
                      : syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &at, 0, 8);
    return (void *)(intptr_t)(n == 0 ? got == 0 : got == -1 && errno == ETIMEDOUT && seconds(CLOCK_MONOTONIC) >= since + 3);
}

int main(void) {
    pthread_t threads[3];
    void *right[3];
    int *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(shared);
    int child = CHILD({
        long got = 0;
        while (!*(volatile int *)shared && got == 0)
            got = syscall(SYS_futex, shared, FUTEX_WAIT, 0, 0, 0, 0);
        got == 0 || errno == EAGAIN ? 40 : 1;
    });
    wait_blocked(child, SYS_futex);
    since = seconds(CLOCK_MONOTONIC);
    for (intptr_t i = 0; i < 3; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], SYS_futex);
    }
    journey();
    /* The third one waits for another bit. */
    IS(woken(&word, FUTEX_WAKE_BITSET_PRIVATE, 4, 1));
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], &right[i]);
    IS(right[0]), IS(right[1]), IS(right[2]);
    *shared = 1;
    syscall(SYS_futex, shared, FUTEX_WAKE, 1, 0, 0, 0);
    IS(ended(child) == 40);
    return 0;
}
