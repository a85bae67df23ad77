/* posix_timers: one that has overrun, one that waits, one that is off, one for a thread. */
#include "rows.h"

static timer_t make(clockid_t clock, int number, long first_ns, long every_ns, int tid) {
    timer_t timer;
    struct sigevent event = {.sigev_notify = tid ? SIGEV_THREAD_ID : SIGEV_SIGNAL, .sigev_signo = number, .sigev_value.sival_int = number * 3};
    struct itimerspec when = {{every_ns / 1000000000, every_ns % 1000000000}, {first_ns / 1000000000, first_ns % 1000000000}};
    event._sigev_un._tid = tid;
    MUST(timer_create(clock, &event, &timer)), MUST(timer_settime(timer, 0, &when, 0));
    return timer;
}

int main(void) {
    sigset_t mask;
    siginfo_t info;
    struct itimerspec left;
    sigemptyset(&mask);
    for (int i = 0; i < 4; i++)
        sigaddset(&mask, SIGRTMIN + i);
    MUST(sigprocmask(SIG_BLOCK, &mask, 0));
    timer_t fast = make(CLOCK_MONOTONIC, SIGRTMIN, 1000000, 1000000, 0), later = make(CLOCK_REALTIME, SIGRTMIN + 1, 5000000000000, 7000000000, 0);
    timer_t off = make(CLOCK_BOOTTIME, SIGRTMIN + 2, 0, 0, 0), own = make(CLOCK_MONOTONIC, SIGRTMIN + 3, 1000000, 0, gettid());
    /* Its signal stays pending, and each further expiry is an overrun of it. */
    for (double until = seconds(CLOCK_MONOTONIC) + 0.02; seconds(CLOCK_MONOTONIC) < until;)
        ;
    journey();
    IS(timer_settime(fast, 0, &(struct itimerspec){{0, 0}, {0, 0}}, 0) == 0);
    int got = sigtimedwait(&mask, &info, &(struct timespec){0, 0});
    if (got == SIGRTMIN) /* Since Linux 6.13 the signal of a timer that was changed is dropped. */
        got = info.si_overrun >= 10 ? sigtimedwait(&mask, &info, &(struct timespec){0, 0}) : 0;
    IS(got == SIGRTMIN + 3 && info.si_code == SI_TIMER && info.si_value.sival_int == (SIGRTMIN + 3) * 3);
    IS(timer_gettime(later, &left) == 0 && left.it_interval.tv_sec == 7 && left.it_value.tv_sec > 4900 && left.it_value.tv_sec < 5000);
    IS(timer_gettime(off, &left) == 0 && left.it_value.tv_sec + left.it_value.tv_nsec == 0);
    IS(timer_settime(fast, 0, &(struct itimerspec){{0, 1000000}, {0, 1000000}}, 0) == 0);
    for (double until = seconds(CLOCK_MONOTONIC) + 0.05; seconds(CLOCK_MONOTONIC) < until;)
        ;
    IS(sigtimedwait(&mask, &info, &(struct timespec){5, 0}) == SIGRTMIN && info.si_overrun >= 10 && timer_getoverrun(fast) == info.si_overrun);
    IS(timer_delete(fast) == 0 && timer_delete(later) == 0 && timer_delete(off) == 0 && timer_delete(own) == 0);
    return 0;
}
