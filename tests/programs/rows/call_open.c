/* call_open: opening a FIFO waits for the other end: a reader's, a writer's, and one that a signal interrupts. */
#include "rows.h"
#include <sys/stat.h>

static const char *const names[] = {"to read", "to write", "never"};
static int tids[3];
static void nothing(int n) {}

static void *opens(void *which) {
    int n = (intptr_t)which;
    char text[8] = {0};
    tids[n] = gettid();
    errno = 0;
    int fd = open(names[n], n == 1 ? O_WRONLY | O_CLOEXEC : O_RDONLY);
    int right = n == 0 ? fd >= 0 && read(fd, text, 8) == 5 && !strcmp(text, "hello") :
        n == 1 ? fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && write(fd, "hello", 5) == 5 : fd == -1 && errno == EINTR;
    return (void *)(intptr_t)right;
}

int main(void) {
    pthread_t threads[3];
    void *right[3];
    char text[8] = {0};
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = nothing}, 0);
    for (intptr_t i = 0; i < 3; i++) {
        unlink(names[i]), MUST(mkfifo(names[i], 0600));
        threads[i] = start(opens, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], SYS_openat);
    }
    journey();
    pthread_kill(threads[2], SIGUSR1);
    int to = open("to read", O_WRONLY), from = open("to write", O_RDONLY);
    IS(to >= 0 && write(to, "hello", 5) == 5);
    IS(from >= 0 && read(from, text, 8) == 5 && !strcmp(text, "hello"));
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], &right[i]);
    IS(right[0]), IS(right[1]), IS(right[2]);
    return 0;
}
