/* signals_interrupt: a read that each of these interrupts: a POSIX timer, one for this thread, another thread by kill and by
   pthread_kill, a timer of the CPU time that another thread uses, the process itself before it reads. */
#include "rows.h"
#include <sys/time.h>

enum { KILL = 1, THREAD, BURN, END };
static volatile int got, order;
static int none[2], main_tid;
static pthread_t reader;
static void note(int n) { got = n; }

/* The other thread blocks every signal, so that they are for the reader. It sends again and again: one may come too early. */
static void *other(void *unused) {
    for (int now; (now = order) != END;) {
        if (now == KILL)
            MUST(kill(getpid(), SIGUSR1));
        if (now == THREAD)
            MUST(-pthread_kill(reader, SIGUSR2));
        if (now != BURN)
            usleep(20000);
    }
    return unused;
}

/* Whether a read of an empty pipe is interrupted by this signal. */
static int interrupted(int by, int next) {
    char byte;
    got = 0, order = next;
    int is = read(none[0], &byte, 1) == -1 && errno == EINTR && got == by;
    order = 0;
    return is;
}

static timer_t make(int number, int tid) {
    timer_t timer;
    struct sigevent event = {.sigev_notify = tid ? SIGEV_THREAD_ID : SIGEV_SIGNAL, .sigev_signo = number};
    event._sigev_un._tid = tid;
    MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
    return timer;
}

int main(void) {
    struct itimerspec soon = {{0, 0}, {0, 50000000}};
    sigset_t all, old;
    for (int i = 0, s[] = {SIGUSR1, SIGUSR2, SIGALRM, SIGRTMIN, SIGPROF}; i < 5; i++)
        sigaction(s[i], &(struct sigaction){.sa_handler = note}, 0);
    MUST(pipe(none)), main_tid = gettid(), reader = pthread_self();
    sigfillset(&all), pthread_sigmask(SIG_BLOCK, &all, &old);
    pthread_t thread = start(other, 0);
    pthread_sigmask(SIG_SETMASK, &old, 0);
    timer_t any = make(SIGALRM, 0), own = make(SIGRTMIN, main_tid);
    journey();
    IS(timer_settime(any, 0, &soon, 0) == 0 && interrupted(SIGALRM, 0));
    IS(timer_settime(own, 0, &soon, 0) == 0 && interrupted(SIGRTMIN, 0));
    IS(interrupted(SIGUSR1, KILL)), IS(interrupted(SIGUSR2, THREAD));
    IS(setitimer(ITIMER_PROF, &(struct itimerval){{0, 0}, {0, 100000}}, 0) == 0 && interrupted(SIGPROF, BURN));
    order = END, pthread_join(thread, 0);
    IS(timer_delete(any) == 0 && timer_delete(own) == 0);
    return 0;
}
