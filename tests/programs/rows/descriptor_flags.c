/* descriptor_flags: close-on-exec and every status flag, each on a descriptor of its own. */
#include "rows.h"

int main(void) {
    static const int flags[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_APPEND, O_RDWR | O_NONBLOCK, O_RDWR | O_SYNC,
        O_RDWR | O_DSYNC, O_RDONLY | O_NOATIME, O_RDONLY | O_CLOEXEC, O_RDWR | O_NOFOLLOW, O_WRONLY | O_ASYNC};
    enum { MANY = sizeof flags / sizeof *flags };
    int fds[MANY], status[MANY], own[MANY];
    char name[16];
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "file%d", i);
        fds[i] = MUST(open(name, flags[i] | O_CREAT, 0600));
        if (flags[i] & O_ASYNC)
            MUST(fcntl(fds[i], F_SETOWN, getpid())), MUST(fcntl(fds[i], F_SETSIG, SIGURG));
        status[i] = fcntl(fds[i], F_GETFL), own[i] = fcntl(fds[i], F_GETFD);
    }
    int twin = MUST(fcntl(fds[0], F_DUPFD_CLOEXEC, 40));
    journey();
    for (int i = 0; i < MANY; i++)
        say("%d: %s", i, fcntl(fds[i], F_GETFL) == status[i] && fcntl(fds[i], F_GETFD) == own[i] ? "yes" : "NO");
    IS(twin == 40 && fcntl(twin, F_GETFD) == FD_CLOEXEC && fcntl(fds[0], F_GETFD) == 0);
    IS(fcntl(fds[MANY - 1], F_GETOWN) == getpid() && fcntl(fds[MANY - 1], F_GETSIG) == SIGURG);
    IS(write(fds[0], "x", 1) == -1 && errno == EBADF);
    return 0;
}
