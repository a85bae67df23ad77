/* interval_timers: setitimer in real time. */
#include "rows.h"
#include <sys/time.h>

int main(void) {
    struct itimerval real = {{700, 0}, {5000, 0}}, left;
    sigset_t mask;
    int got = 0;
    sigemptyset(&mask), sigaddset(&mask, SIGALRM);
    MUST(sigprocmask(SIG_BLOCK, &mask, 0)), MUST(setitimer(ITIMER_REAL, &real, 0));
    journey();
    IS(getitimer(ITIMER_REAL, &left) == 0 && left.it_interval.tv_sec == 700 && left.it_value.tv_sec > 4900 && left.it_value.tv_sec < 5000);
    real = (struct itimerval){{0, 0}, {0, 1000}};
    IS(setitimer(ITIMER_REAL, &real, &left) == 0 && left.it_interval.tv_sec == 700);
    IS(sigwait(&mask, &got) == 0 && got == SIGALRM);
    IS(getitimer(ITIMER_REAL, &left) == 0 && left.it_value.tv_sec == 0 && left.it_value.tv_usec == 0);
    return 0;
}
