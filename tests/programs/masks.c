/* masks: calls that unblock a signal for their time only: pending before they begin, and sent while they wait. */
#include "pause.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>

static volatile int alarms, users;
static sigset_t during;
static void on_signal(int signal) {
    if (signal == SIGALRM)
        alarms++;
    else
        users++;
    sigprocmask(SIG_BLOCK, 0, &during);
}

static void after(const char *what, long result, int error) {
    sigset_t now, pending;
    sigprocmask(SIG_BLOCK, 0, &now), sigpending(&pending);
    say("%s %ld %s: alarms %d users %d, blocked %d %d, in handler %d %d, pending %d %d", what, result, result < 0 ? strerror(error) : "",
        alarms, users, sigismember(&now, SIGALRM), sigismember(&now, SIGUSR1), sigismember(&during, SIGALRM),
        sigismember(&during, SIGUSR1), sigismember(&pending, SIGALRM), sigismember(&pending, SIGUSR1));
    alarms = users = 0, sigemptyset(&during);
}

#define MASKED(call) \
    do { \
        long result = (call); \
        after(#call, result, errno); \
    } while (0)
static void soon(int ms) { setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {ms / 1000, ms % 1000 * 1000}}, 0); }

int main(void) {
    sigset_t block, none, user;
    int p[2], ready[2];
    sigemptyset(&none), sigemptyset(&block), sigaddset(&block, SIGALRM), sigaddset(&block, SIGUSR1), sigemptyset(&user), sigaddset(&user, SIGUSR1);
    for (int i = 0, s[] = {SIGALRM, SIGUSR1}; i < 2; i++)
        sigaction(s[i], &(struct sigaction){.sa_handler = on_signal, .sa_flags = SA_RESTART}, 0);
    moment();
    sigprocmask(SIG_SETMASK, &block, 0), sigemptyset(&during), pipe(p), pipe(ready), (void)!write(ready[1], "x", 1);
    struct pollfd fd = {p[0], POLLIN, 0}, ok = {ready[0], POLLIN, 0};
    struct timespec long_ = {5, 0}, short_ = {0, 50000000};
    int ep = epoll_create1(0);
    epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &(struct epoll_event){EPOLLIN, {0}});
    struct epoll_event event;
    soon(100);
    MASKED(ppoll(&fd, 1, &long_, &none));
    raise(SIGUSR1);
    MASKED(ppoll(&fd, 1, &long_, &none));
    raise(SIGUSR1);
    MASKED(ppoll(&fd, 1, &short_, &user));
    soon(60);
    MASKED(ppoll(&fd, 1, &long_, &user));
    MASKED(pselect(0, 0, 0, 0, &long_, &none));
    soon(100);
    MASKED(pselect(0, 0, 0, 0, &long_, &none));
    soon(100);
    MASKED(epoll_pwait(ep, &event, 1, 5000, &none));
    raise(SIGUSR1);
    MASKED(epoll_pwait(ep, &event, 1, 5000, &none));
    raise(SIGUSR1);
    MASKED(ppoll(&ok, 1, &long_, &none));
    raise(SIGUSR1);
    MASKED(ppoll(&ok, 1, &long_, &block));
    MASKED(sigsuspend(&none));
    soon(100);
    MASKED(sigsuspend(&none));
    sigprocmask(SIG_SETMASK, &none, 0);
    soon(100);
    MASKED(ppoll(&fd, 1, &(struct timespec){0, 300000000}, &block));
    return 0;
}
