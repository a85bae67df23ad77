/* reads HOW: has a signalfd, and does something with its signals: below 10 what can be done away, else what brings it home. */
#include "pause.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <time.h>

static volatile int seen;
static void handler(int n) { seen = n; }

static void next(int fd) {
    struct signalfd_siginfo info = {0};
    struct pollfd wait = {fd, POLLIN, 0};
    TRY(poll(&wait, 1, 10000)), TRY(read(fd, &info, sizeof info));
    say("signal %d code %d value %d, of itself %d", info.ssi_signo, info.ssi_code, info.ssi_int, (int)info.ssi_pid == getpid());
}

int main(int argc, char **argv) {
    int how = argc > 1 ? atoi(argv[1]) : 0, ends[2];
    struct timespec now = {0, 0};
    sigset_t all, most, old;
    timer_t timer;
    sigfillset(&all), sigdelset(&all, SIGUSR2), sigdelset(&all, SIGINT), most = all, sigdelset(&most, SIGUSR1);
    signal(SIGUSR1, handler), signal(SIGUSR2, handler), signal(SIGRTMIN, handler), TRY(pipe(ends));
    sigprocmask(SIG_BLOCK, &all, 0);
    int fd = signalfd(-1, &all, SFD_NONBLOCK);
    moment();
    switch (how) {
    case 0: TRY(kill(getpid(), SIGTERM)), next(fd); break;
    case 1: TRY(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){7})), next(fd); break;
    case 2: TRY(close(ends[0])), TRY(write(ends[1], "x", 1)), next(fd); break;
    case 3: sigaddset(&all, SIGINT), TRY(sigprocmask(SIG_SETMASK, &all, &old)), TRY(sigismember(&old, SIGTERM)); break;
    case 4: TRY(kill(getpid(), SIGUSR2)), TRY(raise(SIGUSR2)), TRY(seen); break;
    case 5: TRY(sigemptyset(&old)), sigaddset(&old, SIGUSR2), TRY(sigtimedwait(&old, 0, &now)); break;
    case 6: alarm(1), next(fd); break;
    case 10: TRY(raise(SIGUSR1)), next(fd); break;
    case 11: kill(getpid(), SIGUSR1), TRY(sigpending(&old)), TRY(sigismember(&old, SIGUSR1)), next(fd); break;
    case 12: kill(getpid(), SIGUSR1), TRY(sigprocmask(SIG_SETMASK, &most, 0)), TRY(seen); break;
    case 13: kill(getpid(), SIGTERM), TRY(sigtimedwait(&all, 0, &now)); break;
    case 14: kill(getpid(), SIGUSR1), TRY(ppoll(0, 0, 0, &most)), TRY(seen); break;
    case 15:
        TRY(timer_create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN}, &timer));
        TRY(timer_settime(timer, 0, &(struct itimerspec){{0, 0}, {0, 1000000}}, 0)), next(fd);
        break;
    case 16: kill(getpid(), SIGUSR1), TRY(sigsuspend(&most)), TRY(seen); break;
    }
    moment();
    TRY(read(fd, &all, 1));
    return 0;
}
