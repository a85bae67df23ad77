/* tid_address: the word that the kernel clears when a thread ends, also one that the thread has chosen itself. */
#include "rows.h"
#include <linux/futex.h>

static int own, tid, go[2];

static void *other(void *none) {
    char byte;
    int was = tid = syscall(SYS_set_tid_address, &own);
    own = was;
    MUST(read(go[0], &byte, 1));
    /* Not by returning: the C library would wait for its own word. */
    syscall(SYS_exit, 0);
    return none;
}

int main(void) {
    MUST(pipe(go));
    start(other, 0);
    while (!*(volatile int *)&own)
        sched_yield();
    journey_while(own, SYS_read);
    IS(own == tid);
    MUST(write(go[1], "x", 1));
    syscall(SYS_futex, &own, FUTEX_WAIT, tid, &(struct timespec){20, 0}, 0, 0);
    IS(*(volatile int *)&own == 0);
    /* The word is cleared a moment before the number is free. */
    while (syscall(SYS_tgkill, getpid(), tid, 0) == 0)
        sched_yield();
    IS(errno == ESRCH);
    IS(syscall(SYS_set_tid_address, &own) == gettid());
    return 0;
}
