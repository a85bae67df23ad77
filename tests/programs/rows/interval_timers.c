/* interval_timers: setitimer in real time, in CPU time of the process and with the kernel's, all three running. */
#include "rows.h"
#include <sys/time.h>

static volatile int prof, virt;
static void count(int n) { n == SIGPROF ? prof++ : virt++; }

int main(void) {
    struct itimerval real = {{700, 0}, {5000, 0}}, cpu = {{0, 50000}, {0, 400000}}, all = {{0, 60000}, {0, 500000}}, left;
    sigset_t mask;
    signal(SIGVTALRM, count), signal(SIGPROF, count);
    sigemptyset(&mask), sigaddset(&mask, SIGALRM);
    MUST(sigprocmask(SIG_BLOCK, &mask, 0));
    MUST(setitimer(ITIMER_REAL, &real, 0)), MUST(setitimer(ITIMER_VIRTUAL, &cpu, 0)), MUST(setitimer(ITIMER_PROF, &all, 0));
    journey();
    IS(getitimer(ITIMER_REAL, &left) == 0 && left.it_interval.tv_sec == 700 && left.it_value.tv_sec > 4900 && left.it_value.tv_sec < 5000);
    IS(getitimer(ITIMER_VIRTUAL, &left) == 0 && left.it_interval.tv_usec == 50000 && left.it_value.tv_usec <= 420000);
    IS(getitimer(ITIMER_PROF, &left) == 0 && left.it_interval.tv_usec == 60000 && left.it_value.tv_usec > 0);
    for (double from = seconds(CLOCK_MONOTONIC); (virt < 3 || prof < 3) && seconds(CLOCK_MONOTONIC) < from + 20;)
        ;
    IS(virt >= 3 && prof >= 3);
    real = (struct itimerval){{0, 0}, {0, 1000}};
    IS(setitimer(ITIMER_REAL, &real, &left) == 0 && left.it_interval.tv_sec == 700);
    int got = 0;
    IS(sigwait(&mask, &got) == 0 && got == SIGALRM);
    IS(setitimer(ITIMER_VIRTUAL, &(struct itimerval){{0, 0}, {0, 0}}, 0) == 0);
    return 0;
}
