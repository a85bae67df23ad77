/* signalfd_loop: a thread waits with epoll and reads signals from a descriptor: of another thread, of a timer, with data. */
#include "rows.h"
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/time.h>

static int fd, epoll, tid, stop[2];
static volatile int many;
static struct signalfd_siginfo got[16];

static void *loop(void *none) {
    struct epoll_event event;
    tid = gettid();
    for (;;) {
        if (epoll_wait(epoll, &event, 1, -1) == -1 && errno == EINTR)
            continue;
        if (event.data.u64 == 8)
            return none;
        for (int n; (n = read(fd, got + many, sizeof *got)) == sizeof *got;)
            many++;
    }
}

/* Waits until the loop has read that many. */
static int read_by_loop(int all) {
    for (double from = seconds(CLOCK_MONOTONIC); many < all && seconds(CLOCK_MONOTONIC) < from + 20;)
        usleep(1000);
    return many == all;
}

int main(void) {
    sigset_t mask;
    int pid = getpid();
    sigemptyset(&mask), sigaddset(&mask, SIGUSR1), sigaddset(&mask, SIGALRM), sigaddset(&mask, SIGTERM), sigaddset(&mask, SIGRTMIN + 2);
    MUST(pthread_sigmask(SIG_BLOCK, &mask, 0));
    fd = MUST(signalfd(-1, &mask, SFD_NONBLOCK)), epoll = MUST(epoll_create1(0)), MUST(pipe(stop));
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN | EPOLLET, {.u64 = 7}}));
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, stop[0], &(struct epoll_event){EPOLLIN, {.u64 = 8}}));
    pthread_t thread = start(loop, 0);
    while (!*(volatile int *)&tid)
        sched_yield();
    journey_while(tid, SYS_epoll_wait);
    IS(kill(pid, SIGTERM) == 0 && read_by_loop(1));
    IS(got[0].ssi_signo == SIGTERM && got[0].ssi_code == SI_USER && (int)got[0].ssi_pid == pid && got[0].ssi_uid == getuid());
    for (int i = 0; i < 5; i++)
        MUST(sigqueue(pid, SIGRTMIN + 2, (union sigval){70 + i}));
    IS(read_by_loop(6));
    for (int i = 0; i < 5; i++)
        IS((int)got[i + 1].ssi_signo == SIGRTMIN + 2 && got[i + 1].ssi_code == SI_QUEUE && got[i + 1].ssi_int == 70 + i);
    IS(setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 50000}}, 0) == 0 && read_by_loop(7) && got[6].ssi_signo == SIGALRM);
    MUST(write(stop[1], "x", 1));
    pthread_join(thread, 0);
    /* What is let in is delivered, and not read. */
    MUST(kill(pid, SIGUSR1)), signal(SIGUSR1, SIG_IGN), pthread_sigmask(SIG_UNBLOCK, &mask, 0);
    IS(read(fd, got, sizeof *got) == -1 && errno == EAGAIN);
    return 0;
}
