/* cpu_timers: setitimer of CPU time in user mode and of all, and a POSIX timer of CPU time. */
#include "rows.h"
#include <sys/time.h>

static volatile int prof, virt;
static void count(int n) { n == SIGPROF ? prof++ : virt++; }

int main(void) {
    struct itimerval cpu = {{0, 50000}, {0, 400000}}, all = {{0, 60000}, {0, 500000}}, left;
    struct itimerspec of_timer;
    timer_t timer;
    signal(SIGVTALRM, count), signal(SIGPROF, count);
    MUST(setitimer(ITIMER_VIRTUAL, &cpu, 0)), MUST(setitimer(ITIMER_PROF, &all, 0));
    MUST(timer_create(CLOCK_PROCESS_CPUTIME_ID, 0, &timer)), MUST(timer_settime(timer, 0, &(struct itimerspec){{0, 0}, {900, 0}}, 0));
    journey();
    IS(timer_gettime(timer, &of_timer) == 0 && of_timer.it_value.tv_sec > 800 && of_timer.it_value.tv_sec <= 900);
    IS(getitimer(ITIMER_VIRTUAL, &left) == 0 && left.it_interval.tv_usec == 50000 && left.it_value.tv_usec <= 420000);
    IS(getitimer(ITIMER_PROF, &left) == 0 && left.it_interval.tv_usec == 60000 && left.it_value.tv_usec > 0);
    for (double from = seconds(CLOCK_MONOTONIC); (virt < 3 || prof < 3) && seconds(CLOCK_MONOTONIC) < from + 20;)
        ;
    IS(virt >= 3 && prof >= 3);
    IS(setitimer(ITIMER_VIRTUAL, &(struct itimerval){{0, 0}, {0, 0}}, 0) == 0 && timer_delete(timer) == 0);
    return 0;
}
