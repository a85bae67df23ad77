/* nice: of two threads and a child; it can be raised further. */
#include "rows.h"

static int tid, go[2];

static void *other(void *none) {
    char byte;
    setpriority(PRIO_PROCESS, tid = gettid(), 11);
    MUST(read(go[0], &byte, 1));
    IS(getpriority(PRIO_PROCESS, 0) == 11);
    return none;
}

int main(void) {
    MUST(pipe(go)), MUST(setpriority(PRIO_PROCESS, 0, 3));
    pthread_t thread = start(other, 0);
    int child = CHILD({ setpriority(PRIO_PROCESS, 0, 7); pause(); 0; });
    while (!*(volatile int *)&tid)
        sched_yield();
    wait_blocked(tid, SYS_read);
    journey_while(child, SYS_pause);
    IS(getpriority(PRIO_PROCESS, 0) == 3);
    IS(getpriority(PRIO_PROCESS, child) == 7);
    IS(setpriority(PRIO_PROCESS, 0, 4) == 0 && getpriority(PRIO_PROCESS, getpid()) == 4);
    MUST(write(go[1], &(char){0}, 1)), pthread_join(thread, 0);
    MUST(kill(child, SIGTERM));
    IS(ended(child) == 1000 + SIGTERM);
    return 0;
}
