/* scheduling_policy: SCHED_BATCH, SCHED_IDLE in a thread, reset on fork. */
#include "rows.h"

static int tid, go[2];

static void *other(void *none) {
    char byte;
    MUST(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}));
    tid = gettid();
    MUST(read(go[0], &byte, 1));
    IS(sched_getscheduler(0) == SCHED_IDLE);
    return none;
}

int main(void) {
    MUST(pipe(go)), MUST(sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &(struct sched_param){0}));
    pthread_t thread = start(other, 0);
    while (!*(volatile int *)&tid)
        sched_yield();
    journey_while(tid, SYS_read);
    IS(sched_getscheduler(0) == (SCHED_BATCH | SCHED_RESET_ON_FORK));
    IS(sched_getscheduler(tid) == SCHED_IDLE);
    MUST(write(go[1], "x", 1)), pthread_join(thread, 0);
    return 0;
}
