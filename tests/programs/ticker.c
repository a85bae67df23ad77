/* ticker: a timer that signals one of two threads, 30 times. */
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include "pause.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
static volatile pid_t ticking;
static volatile int ticks, strays;

static void on_tick(int number) {
    (void)number;
    if (syscall(SYS_gettid) == ticking)
        ticks++;
    else
        strays++;
}

static void *thread(void *none) {
    ticking = syscall(SYS_gettid);
    for (;;)
        pause_ms(1000);
    return none;
}

int main(void) {
    pthread_t made;
    timer_t timer;
    struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
    sigaction(SIGRTMIN + 2, &action, 0);
    pthread_create(&made, 0, thread, 0);
    while (!ticking)
        pause_ms(1);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2};
    event.sigev_notify_thread_id = ticking;
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    struct itimerspec each = {.it_value = {0, 100000000}, .it_interval = {0, 100000000}};
    timer_settime(timer, 0, &each, 0);
    for (int seen = 0; seen < 30;) {
        for (; seen < ticks && seen < 30; seen++)
            say("tick %d", seen + 1);
        pause_ms(10);
    }
    say("strays %d", strays);
    return 0;
}
