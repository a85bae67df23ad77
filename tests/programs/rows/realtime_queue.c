/* realtime_queue: 300 queued real-time signals of three numbers, each with a value; their order stays. */
#include "rows.h"

int main(void) {
    enum { MANY = 300 };
    int right = 0;
    siginfo_t info;
    sigset_t mask;
    sigemptyset(&mask);
    for (int i = 1; i <= 3; i++)
        sigaddset(&mask, SIGRTMIN + i);
    MUST(sigprocmask(SIG_BLOCK, &mask, 0));
    for (int i = 0; i < MANY; i++)
        MUST(sigqueue(getpid(), SIGRTMIN + 1 + (MANY - i) % 3, (union sigval){i}));
    journey();
    /* Lower numbers first, each in the order of sending. */
    for (int n = 0; n < 3; n++)
        for (int i = 0; i < MANY; i++)
            if ((MANY - i) % 3 == n)
                right += sigtimedwait(&mask, &info, &(struct timespec){0, 0}) == SIGRTMIN + 1 + n && info.si_value.sival_int == i;
    IS(right == MANY);
    IS(sigtimedwait(&mask, &info, &(struct timespec){0, 0}) == -1 && errno == EAGAIN);
    return 0;
}
