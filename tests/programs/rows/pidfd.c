/* pidfd: of a child that lives, of one that has ended, and of the process itself. */
#include "rows.h"
#include <poll.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

int main(void) {
    siginfo_t info = {0};
    int alive = CHILD({ pause(); 0; }), dead = CHILD(36);
    int fds[3] = {MUST(syscall(SYS_pidfd_open, alive, 0)), MUST(syscall(SYS_pidfd_open, dead, 0)), MUST(syscall(SYS_pidfd_open, getpid(), 0))};
    MUST(waitid(P_PID, dead, &info, WEXITED | WNOWAIT));
    journey_while(alive, SYS_pause);
    IS(poll(&(struct pollfd){fds[1], POLLIN, 0}, 1, 0) == 1 && poll(&(struct pollfd){fds[0], POLLIN, 0}, 1, 0) == 0);
    IS(syscall(SYS_pidfd_send_signal, fds[2], 0, 0, 0) == 0);
    IS(waitid(P_PIDFD, fds[1], &info, WEXITED) == 0 && info.si_pid == dead && info.si_status == 36);
    IS(syscall(SYS_pidfd_send_signal, fds[0], SIGTERM, 0, 0) == 0);
    IS(poll(&(struct pollfd){fds[0], POLLIN, 0}, 1, 20000) == 1);
    IS(ended(alive) == 1000 + SIGTERM);
    IS(syscall(SYS_pidfd_send_signal, fds[0], 0, 0, 0) == -1 && errno == ESRCH);
    return 0;
}
