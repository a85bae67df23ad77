/* signalfd: signals that are pending when the journey begins are read from it afterwards, with what came with them. */
#include "rows.h"
#include <poll.h>
#include <sys/signalfd.h>

int main(void) {
    struct signalfd_siginfo info;
    sigset_t mask;
    sigemptyset(&mask), sigaddset(&mask, SIGUSR1), sigaddset(&mask, SIGRTMIN + 2), sigaddset(&mask, SIGCHLD);
    MUST(sigprocmask(SIG_BLOCK, &mask, 0));
    int fd = MUST(signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC));
    MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){77}));
    journey();
    IS(poll(&(struct pollfd){fd, POLLIN, 0}, 1, 0) == 1);
    IS(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGRTMIN + 2 && info.ssi_int == 77);
    IS(info.ssi_pid == getpid() && info.ssi_uid == getuid() && info.ssi_code == SI_QUEUE);
    IS(read(fd, &info, sizeof info) == -1 && errno == EAGAIN);
    MUST(raise(SIGUSR1));
    IS(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1);
    int child = CHILD({ 35; });
    IS(poll(&(struct pollfd){fd, POLLIN, 0}, 1, 10000) == 1);
    IS(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGCHLD && info.ssi_pid == child && info.ssi_status == 35);
    IS(ended(child) == 35);
    return 0;
}
