/* interrupted: a timer's signal comes while each of these calls waits; what they give, with and without SA_RESTART. */
#include "pause.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>

static int p[2], pair[2], listener, ep;
static volatile int alarms, feed;
static void on_alarm(int signal) {
    (void)signal;
    /* The second one lets the call that was restarted end. */
    if (++alarms == 2 && feed)
        (void)!write(feed == 1 ? p[1] : pair[1], "x", 1);
}

#define WAITS(feeds, call) \
    do { \
        struct timeval now, then; \
        alarms = 0, feed = feeds; \
        gettimeofday(&then, 0); \
        setitimer(ITIMER_REAL, &(struct itimerval){{0, 60000}, {0, 60000}}, 0); \
        long result = (call); \
        int error = errno; \
        setitimer(ITIMER_REAL, &(struct itimerval){0}, 0); \
        gettimeofday(&now, 0); \
        long tenths = ((now.tv_sec - then.tv_sec) * 1000000 + now.tv_usec - then.tv_usec) / 30000; \
        say("%-48.48s %ld %s, %s, %s", #call, result, result < 0 ? strerror(error) : "", alarms > 1 ? "again" : "once", \
            tenths < 2 ? "too early" : tenths < 14 ? "in time" : "too late"); \
    } while (0)

static void all(void) {
    char text[8];
    struct pollfd fd = {p[0], POLLIN, 0};
    struct epoll_event event;
    struct timespec ten = {10, 0};
    struct timeval tv = {10, 0};
    fd_set set;
    WAITS(1, read(p[0], text, 8));
    WAITS(2, recv(pair[0], text, 8, 0));
    WAITS(1, poll(&fd, 1, 10000));
    WAITS(1, poll(&fd, 1, -1));
    WAITS(1, ppoll(&fd, 1, &ten, 0));
    say("  left %d", ten.tv_sec == 10 || ten.tv_sec == 9);
    FD_ZERO(&set);
    FD_SET(p[0], &set);
    WAITS(1, select(p[0] + 1, &set, 0, 0, &tv));
    say("  left %ld", tv.tv_sec);
    WAITS(1, epoll_wait(ep, &event, 1, 10000));
    WAITS(0, nanosleep(&(struct timespec){0, 180000000}, &ten));
    WAITS(0, clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){0, 150000000}, 0));
    WAITS(0, pause());
    WAITS(0, accept(listener, 0, 0));
    WAITS(0, recv(pair[1], text, 8, 0));
    fcntl(p[0], F_SETFL, O_NONBLOCK), (void)!read(p[0], text, 8), fcntl(p[0], F_SETFL, 0), recv(pair[0], text, 8, MSG_DONTWAIT);
}

int main(void) {
    struct sigaction action = {.sa_handler = on_alarm};
    moment();
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair), listener = socket(AF_UNIX, SOCK_STREAM, 0), ep = epoll_create1(0);
    bind(listener, (void *)&(struct sockaddr_un){AF_UNIX, "listener"}, sizeof(struct sockaddr_un)), listen(listener, 1);
    /* Without SA_RESTART read gives EINTR; with it, the calls that can never return end by their time. */
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 300000}, sizeof(struct timeval));
    setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 300000}, sizeof(struct timeval));
    pipe2(p, O_NONBLOCK), fcntl(p[0], F_SETFL, 0);
    epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &(struct epoll_event){EPOLLIN, {0}});
    sigaction(SIGALRM, &action, 0);
    all();
    say("with SA_RESTART");
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, 0);
    all();
    return 0;
}
