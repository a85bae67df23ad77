/* call_lock: F_SETLKW, F_OFD_SETLKW and flock wait for locks that another process holds; a fourth wait is interrupted. */
#include "rows.h"
#include <sys/file.h>

static int pipes[2], tids[4];
static void nothing(int n) {}

static int lock(int fd, int command, int type, int at) {
    return fcntl(fd, command, &(struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1});
}

static void *waits(void *which) {
    int n = (intptr_t)which, fd = open("locked", O_RDWR);
    tids[n] = gettid();
    errno = 0;
    int got = n == 0 ? lock(fd, F_SETLKW, F_WRLCK, 0) : n == 1 ? lock(fd, F_OFD_SETLKW, F_WRLCK, 1) :
        n == 2 ? flock(fd, LOCK_EX) : lock(fd, F_SETLKW, F_RDLCK, 3);
    return (void *)(intptr_t)(n < 3 ? got == 0 : got == -1 && errno == EINTR);
}

int main(void) {
    static const long calls[] = {SYS_fcntl, SYS_fcntl, SYS_flock, SYS_fcntl};
    pthread_t threads[4];
    void *right[4];
    char byte;
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = nothing}, 0);
    int fd = MUST(open("locked", O_RDWR | O_CREAT | O_TRUNC, 0600)), held[2];
    MUST(pipe(pipes)), MUST(pipe(held));
    int holder = CHILD({
        int own = open("locked", O_RDWR);
        close(pipes[1]);
        for (int at = 0; at < 4; at++)
            lock(own, F_SETLK, F_WRLCK, at);
        flock(own, LOCK_EX);
        write(held[1], "x", 1) == 1 && read(pipes[0], &byte, 1) == 0 ? 40 : 1;
    });
    MUST(read(held[0], &byte, 1));
    for (intptr_t i = 0; i < 4; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], calls[i]);
    }
    journey();
    pthread_kill(threads[3], SIGUSR1), pthread_join(threads[3], &right[3]);
    IS(lock(fd, F_SETLK, F_RDLCK, 0) == -1 && (errno == EAGAIN || errno == EACCES));
    close(pipes[1]);
    IS(ended(holder) == 40);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], &right[i]);
    IS(right[0]), IS(right[1]), IS(right[2]), IS(right[3]);
    return 0;
}
