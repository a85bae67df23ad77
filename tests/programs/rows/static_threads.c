/* static_threads: a program without a dynamic linker, with four threads at a mutex. */
#include "rows.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int sum, tids[4];

static void *one(void *tid) {
    __atomic_store_n((int *)tid, gettid(), __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&mutex);
    sum += *(int *)tid == gettid();
    pthread_mutex_unlock(&mutex);
    return tid;
}

int main(void) {
    pthread_t threads[4];
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < 4; i++) {
        threads[i] = start(one, &tids[i]);
        while (!__atomic_load_n(&tids[i], __ATOMIC_SEQ_CST))
            sched_yield();
        wait_blocked(tids[i], SYS_futex);
    }
    journey();
    IS(sum == 0);
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], 0);
    IS(sum == 4);
    return 0;
}
