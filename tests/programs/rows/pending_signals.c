/* pending_signals: blocked signals, sent to the process and to each of two threads, with what came with them. */
#include "rows.h"

static int tid, go[2];
static sigset_t all;

static siginfo_t next(int number) {
    siginfo_t info = {0};
    sigset_t one;
    sigemptyset(&one), sigaddset(&one, number);
    /* The C library would make SI_USER of SI_TKILL. */
    if (syscall(SYS_rt_sigtimedwait, &one, &info, &(struct timespec){0, 0}, 8) != number)
        info.si_signo = 0;
    return info;
}

static void *other(void *none) {
    char byte;
    tid = gettid();
    MUST(syscall(SYS_tgkill, getpid(), tid, SIGUSR2));
    MUST(read(go[0], &byte, 1));
    siginfo_t info = next(SIGUSR2);
    IS(info.si_signo == SIGUSR2 && info.si_code == SI_TKILL && info.si_pid == getpid());
    IS(next(SIGHUP).si_signo == 0);
    return none;
}

int main(void) {
    siginfo_t info, queued = {.si_code = SI_QUEUE, .si_value.sival_ptr = (void *)0x123456789a};
    char byte = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, 0);
    MUST(pipe(go));
    pthread_t thread = start(other, 0);
    while (!*(volatile int *)&tid)
        sched_yield();
    wait_blocked(tid, SYS_read);
    MUST(sigqueue(getpid(), SIGUSR1, (union sigval){4711})), MUST(kill(getpid(), SIGTERM));
    MUST(syscall(SYS_tgkill, getpid(), gettid(), SIGHUP)), MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGRTMIN, &queued));
    journey();
    info = next(SIGUSR1);
    IS(info.si_code == SI_QUEUE && info.si_value.sival_int == 4711 && info.si_pid == getpid() && info.si_uid == getuid());
    info = next(SIGTERM);
    IS(info.si_code == SI_USER && info.si_pid == getpid());
    IS(next(SIGHUP).si_code == SI_TKILL);
    IS(next(SIGRTMIN).si_value.sival_ptr == (void *)0x123456789a);
    IS(next(SIGUSR2).si_signo == 0);
    MUST(write(go[1], &byte, 1));
    pthread_join(thread, 0);
    return 0;
}
