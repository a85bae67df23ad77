/* file_locks: a POSIX record lock, an open file description lock and flock; a child that asks is refused. */
#include "rows.h"
#include <sys/file.h>

static int refused(const char *name, int command, int from) {
    struct flock lock = {F_WRLCK, SEEK_SET, from, 10};
    int fd = open(name, O_RDWR);
    return (command ? fcntl(fd, command, &lock) : flock(fd, LOCK_EX | LOCK_NB)) == -1;
}

int main(void) {
    const char *names[] = {"posix", "description", "flock"};
    struct flock range = {F_WRLCK, SEEK_SET, 100, 10};
    int fds[3];
    for (int i = 0; i < 3; i++)
        fds[i] = MUST(open(names[i], O_RDWR | O_CREAT, 0600));
    MUST(fcntl(fds[0], F_SETLK, &range)), MUST(fcntl(fds[1], F_OFD_SETLK, &range)), MUST(flock(fds[2], LOCK_SH));
    journey();
    int child = CHILD({ refused("posix", F_SETLK, 105) + 2 * refused("posix", F_SETLK, 110) + 4 * refused("description", F_OFD_SETLK, 105) +
        8 * refused("description", F_OFD_SETLK, 50) + 16 * refused("flock", 0, 0); });
    IS(ended(child) == 1 + 4 + 16);
    range.l_type = F_UNLCK;
    MUST(fcntl(fds[0], F_SETLK, &range)), MUST(fcntl(fds[1], F_OFD_SETLK, &range)), MUST(flock(fds[2], LOCK_UN));
    child = CHILD({ refused("posix", F_SETLK, 105) + refused("description", F_OFD_SETLK, 105) + refused("flock", 0, 0); });
    IS(ended(child) == 0);
    return 0;
}
