/* call_futex_requeue: two threads wait at one word and are requeued to another; one waits to be requeued to a PI mutex. */
#include "rows.h"
#include <linux/futex.h>

static int first, second, pi, tids[3];

static void *waits(void *which) {
    int n = (intptr_t)which;
    tids[n] = gettid();
    if (n == 2)
        return (void *)(intptr_t)(syscall(SYS_futex, &first, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, 0, &pi, 0) == 0 && (pi & 0x3fffffff) == gettid() &&
            syscall(SYS_futex, &pi, FUTEX_UNLOCK_PI_PRIVATE, 0, 0, 0, 0) == 0);
    return (void *)(intptr_t)(syscall(SYS_futex, &second, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0) == 0);
}

int main(void) {
    pthread_t threads[3];
    void *right[3];
    static int third;
    for (intptr_t i = 0; i < 3; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], SYS_futex);
    }
    /* One of them is at another word than it asked for. */
    IS(syscall(SYS_futex, &second, FUTEX_CMP_REQUEUE_PRIVATE, 0, 1, &third, 0) == 1);
    journey();
    for (int n = 0; n < 2; sched_yield())
        n += syscall(SYS_futex, &second, FUTEX_WAKE_PRIVATE, 5, 0, 0, 0) + syscall(SYS_futex, &third, FUTEX_WAKE_PRIVATE, 5, 0, 0, 0);
    pthread_join(threads[0], &right[0]), pthread_join(threads[1], &right[1]);
    while (syscall(SYS_futex, &first, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, 0, &pi, 0) != 1)
        sched_yield();
    pthread_join(threads[2], &right[2]);
    IS(right[0]), IS(right[1]), IS(right[2]);
    return 0;
}
