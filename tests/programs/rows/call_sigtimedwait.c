/* call_sigtimedwait: one thread waits for a signal for ever, one for a time, one is in sigsuspend, one in pause. */
#include "rows.h"

static int tids[4];
static double since;
static volatile int handled;
static void count(int n) { handled++; }

static void *waits(void *which) {
    int n = (intptr_t)which, right;
    siginfo_t info = {0};
    sigset_t set;
    sigemptyset(&set);
    if (n < 2)
        sigaddset(&set, SIGRTMIN + n);
    tids[n] = gettid();
    if (n == 0)
        right = sigwaitinfo(&set, &info) == SIGRTMIN && info.si_value.sival_int == 99;
    else if (n == 1)
        right = sigtimedwait(&set, &info, &(struct timespec){3, 0}) == -1 && errno == EAGAIN && seconds(CLOCK_MONOTONIC) >= since + 3;
    else
        right = (n == 2 ? sigsuspend(&set) : pause()) == -1 && errno == EINTR;
    return (void *)(intptr_t)right;
}

int main(void) {
    static const long calls[] = {SYS_rt_sigtimedwait, SYS_rt_sigtimedwait, SYS_rt_sigsuspend, SYS_pause};
    pthread_t threads[4];
    void *right[4];
    sigset_t blocked;
    sigemptyset(&blocked), sigaddset(&blocked, SIGRTMIN), sigaddset(&blocked, SIGRTMIN + 1), sigaddset(&blocked, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &blocked, 0);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = count, .sa_flags = SA_RESTART}, 0), signal(SIGUSR2, count);
    since = seconds(CLOCK_MONOTONIC);
    for (intptr_t i = 0; i < 4; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], calls[i]);
    }
    journey();
    pthread_sigqueue(threads[0], SIGRTMIN, (union sigval){99}), pthread_kill(threads[2], SIGUSR1), pthread_kill(threads[3], SIGUSR2);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], &right[i]);
    IS(right[0]), IS(right[1]), IS(right[2]), IS(right[3]);
    IS(handled == 2);
    return 0;
}
