/* two_threads: a second thread waits for the first one, each with its own thread-local data. */
#include "rows.h"

static __thread int mine;
static int go[2];

static void *other(void *tid) {
    char byte;
    mine = 2;
    *(int *)tid = gettid();
    MUST(read(go[0], &byte, 1));
    IS(mine == 2);
    IS(gettid() == *(int *)tid && getpid() != gettid());
    return &go;
}

int main(void) {
    int tid = 0;
    void *result;
    mine = 1;
    MUST(pipe(go));
    pthread_t thread = start(other, &tid);
    while (!*(volatile int *)&tid)
        sched_yield();
    journey_while(tid, SYS_read);
    IS(mine == 1 && gettid() == getpid());
    MUST(write(go[1], "x", 1));
    pthread_join(thread, &result);
    IS(result == &go);
    return 0;
}
