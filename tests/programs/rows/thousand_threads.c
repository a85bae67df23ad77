/* thousand_threads: 1,000 threads wait for one word to change, each knowing its own TID and number. */
#include "rows.h"
#include <linux/futex.h>

enum { MANY = 1000 };
static int ready, go, right, tids[MANY];
static __thread int number;

static void *one(void *argument) {
    number = (intptr_t)argument;
    tids[number] = gettid();
    __atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &go, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
    if (number == (intptr_t)argument && tids[number] == gettid())
        __atomic_add_fetch(&right, 1, __ATOMIC_SEQ_CST);
    return argument;
}

int main(void) {
    pthread_t threads[MANY];
    pthread_attr_t small;
    void *result;
    int joined = 0;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (intptr_t i = 0; i < MANY; i++)
        if (pthread_create(&threads[i], &small, one, (void *)i))
            return say("pthread_create: NO"), 1;
    while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < MANY)
        sched_yield();
    journey_while(tids[MANY - 1], SYS_futex);
    __atomic_store_n(&go, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &go, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
    for (intptr_t i = 0; i < MANY; i++)
        joined += !pthread_join(threads[i], &result) && result == (void *)i;
    IS(joined == MANY);
    IS(right == MANY);
    return 0;
}
