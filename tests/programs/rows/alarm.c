/* alarm: what is left of it, and one that rings after the journey. */
#include "rows.h"

int main(void) {
    sigset_t mask;
    int got = 0;
    sigemptyset(&mask), sigaddset(&mask, SIGALRM);
    MUST(sigprocmask(SIG_BLOCK, &mask, 0));
    double set = seconds(CLOCK_MONOTONIC);
    alarm(3);
    journey();
    IS(sigwait(&mask, &got) == 0 && got == SIGALRM);
    /* Not before its time, and not started over. */
    IS(seconds(CLOCK_MONOTONIC) >= set + 3 - LAG);
    alarm(1000);
    int left = alarm(0);
    IS(left == 1000 || left == 999);
    return 0;
}
