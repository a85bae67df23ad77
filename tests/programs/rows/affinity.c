/* affinity: of a thread and of the process, where there are two CPUs. */
#include "rows.h"

static int tid, go[2];
static cpu_set_t all, first, last, now;

static void *other(void *none) {
    char byte;
    MUST(sched_setaffinity(0, sizeof last, &last));
    tid = gettid();
    MUST(read(go[0], &byte, 1));
    MUST(sched_getaffinity(0, sizeof now, &now));
    IS(CPU_EQUAL(&now, &last));
    return none;
}

int main(void) {
    int from = -1, to = -1;
    MUST(sched_getaffinity(0, sizeof all, &all)), MUST(pipe(go));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all))
            from = from < 0 ? cpu : from, to = cpu;
    CPU_SET(from, &first), CPU_SET(to, &last);
    pthread_t thread = start(other, 0);
    MUST(sched_setaffinity(0, sizeof first, &first));
    while (!*(volatile int *)&tid)
        sched_yield();
    journey_while(tid, SYS_read);
    MUST(sched_getaffinity(0, sizeof now, &now));
    IS(CPU_EQUAL(&now, &first) && sched_getcpu() == from);
    MUST(write(go[1], "x", 1)), pthread_join(thread, 0);
    IS(sched_setaffinity(0, sizeof all, &all) == 0);
    return 0;
}
