/* thread_attributes: names, signal masks, alternative stacks, nice values and TIDs of three threads. */
#include "rows.h"

static int go[3][2], tids[3];
static char stacks[3][32 << 10];

static void *one(void *argument) {
    int n = (intptr_t)argument, got_nice;
    char name[16] = "row thread 0", got[16], byte;
    stack_t stack = {.ss_sp = stacks[n], .ss_size = sizeof stacks[n]}, got_stack;
    sigset_t mask, got_mask;
    name[11] += n;
    prctl(PR_SET_NAME, name);
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + n);
    sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &mask, 0);
    MUST(sigaltstack(&stack, 0));
    setpriority(PRIO_PROCESS, gettid(), n + 1);
    __atomic_store_n(&tids[n], gettid(), __ATOMIC_SEQ_CST);
    MUST(read(go[n][0], &byte, 1));
    prctl(PR_GET_NAME, got);
    pthread_sigmask(SIG_SETMASK, 0, &got_mask);
    MUST(sigaltstack(0, &got_stack));
    got_nice = getpriority(PRIO_PROCESS, 0);
    say("thread %d, %s", n, got);
    IS(tids[n] == gettid());
    IS(!memcmp(&mask, &got_mask, 8));
    IS(got_stack.ss_sp == stacks[n] && got_stack.ss_size == sizeof stacks[n] && !(got_stack.ss_flags & SS_DISABLE));
    IS(got_nice == n + 1);
    return 0;
}

int main(void) {
    pthread_t threads[3];
    for (intptr_t i = 0; i < 3; i++) {
        MUST(pipe(go[i]));
        threads[i] = start(one, (void *)i);
        while (!__atomic_load_n(&tids[i], __ATOMIC_SEQ_CST))
            sched_yield();
        wait_blocked(tids[i], SYS_read);
    }
    journey();
    for (int i = 0; i < 3; i++)
        MUST(write(go[i][1], "x", 1)), pthread_join(threads[i], 0);
    return 0;
}
