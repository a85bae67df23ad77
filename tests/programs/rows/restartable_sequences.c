/* restartable_sequences: the kernel goes on writing the CPU's number into the area that the C library registered. */
#include "rows.h"
#include <sys/rseq.h>

static struct rseq *area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }
static int tid, go[2];

static int lives(void) {
    cpu_set_t all, one;
    int right = 0, cpus = 0;
    sched_getaffinity(0, sizeof all, &all);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all)) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            cpus++, right += *(volatile unsigned *)&area()->cpu_id == cpu;
        }
    sched_setaffinity(0, sizeof all, &all);
    return right == cpus;
}

static void *other(void *none) {
    char byte;
    tid = gettid();
    MUST(read(go[0], &byte, 1));
    IS(lives());
    return none;
}

int main(void) {
    IS(__rseq_size >= 20 && lives());
    MUST(pipe(go));
    pthread_t thread = start(other, 0);
    while (!*(volatile int *)&tid)
        sched_yield();
    journey_while(tid, SYS_read);
    IS(lives());
    /* It is registered: once more is an error. */
    IS(syscall(SYS_rseq, area(), 32, 0, 0x53053053) == -1 && (errno == EBUSY || errno == EINVAL));
    MUST(write(go[1], "x", 1));
    pthread_join(thread, 0);
    return 0;
}
