/* signals: counts what it receives: SIGUSR1 and a real-time signal with its value in handlers, SIGALRM from its own timer,
   SIGUSR2 blocked and found pending; SIGTERM ends it. */
#include <signal.h>
#include <sys/time.h>
#include "pause.h"

static volatile sig_atomic_t usr1, rt, alarms, term;
static void count(int s, siginfo_t *info, void *context) {
    (void)context, (void)info;
    usr1 += s == SIGUSR1, rt += s == SIGRTMIN + 3, alarms += s == SIGALRM, term += s == SIGTERM;
}

int main(void) {
    struct sigaction action = {.sa_sigaction = count, .sa_flags = SA_SIGINFO};
    sigset_t block, old, pending;
    sigemptyset(&block), sigaddset(&block, SIGUSR2), sigaddset(&block, SIGTERM), sigaddset(&block, SIGUSR1);
    sigaddset(&block, SIGRTMIN + 3), sigaddset(&block, SIGALRM);
    for (int i = 0, s[] = {SIGUSR1, SIGRTMIN + 3, SIGALRM, SIGTERM}; i < 4; i++)
        sigaction(s[i], &action, 0);
    sigprocmask(SIG_BLOCK, &block, &old);
    struct itimerval every = {{0, 50000}, {0, 50000}};
    setitimer(ITIMER_REAL, &every, 0);
    say("ready");
    sigset_t open = block;
    sigdelset(&open, SIGUSR1), sigdelset(&open, SIGRTMIN + 3), sigdelset(&open, SIGALRM), sigdelset(&open, SIGTERM);
    for (int seen = 0, ten = 0; !term;) {
        sigsuspend(&open);
        if (alarms >= 10 && !ten)
            ten = 1, say("ten alarms");
        if (usr1 + rt != seen)
            seen = usr1 + rt, say("usr1 %d rt %d", (int)usr1, (int)rt);
    }
    sigpending(&pending);
    say("usr2 %s", sigismember(&pending, SIGUSR2) ? "pending" : "none");
    return 0;
}
