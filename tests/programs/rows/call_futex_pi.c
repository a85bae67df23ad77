/* call_futex_pi: a mutex with priority inheritance is held by the first thread, two others wait for it. */
#include "rows.h"

static pthread_mutex_t mutex;
static int tids[2], got;

static void *waits(void *which) {
    tids[(intptr_t)which] = gettid();
    int right = pthread_mutex_lock(&mutex) == 0;
    got += 1;
    right &= (mutex.__data.__lock & 0x3fffffff) == gettid();
    pthread_mutex_unlock(&mutex);
    return (void *)(intptr_t)right;
}

int main(void) {
    pthread_mutexattr_t attributes;
    pthread_t threads[2];
    void *right[2];
    pthread_mutexattr_init(&attributes), pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&mutex, &attributes);
    pthread_mutex_lock(&mutex);
    for (intptr_t i = 0; i < 2; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], SYS_futex);
    }
    journey();
    IS(got == 0);
    IS(pthread_mutex_lock(&mutex) == EDEADLK);
    IS(pthread_mutex_unlock(&mutex) == 0);
    pthread_join(threads[0], &right[0]), pthread_join(threads[1], &right[1]);
    IS(right[0] && right[1] && got == 2);
    IS(pthread_mutex_lock(&mutex) == 0 && pthread_mutex_unlock(&mutex) == 0);
    return 0;
}
