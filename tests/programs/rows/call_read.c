/* call_read: reads from a pipe and a socket are in progress in two threads; a third one is interrupted by a signal. */
#include "rows.h"
#include <sys/socket.h>

static int pipes[2][2], pair[2], tids[3];
static void nothing(int n) {}

static void *reader(void *which) {
    char text[16] = {0};
    int n = (intptr_t)which, right;
    tids[n] = gettid();
    if (n == 0)
        right = read(pipes[0][0], text, 16) == 4 && !strcmp(text, "pipe") && read(pipes[0][0], text, 16) == 0;
    else if (n == 1)
        right = recv(pair[1], text, 16, 0) == 6 && !strcmp(text, "socket") && recv(pair[1], text, 16, 0) == 0;
    else
        right = read(pipes[1][0], text, 16) == -1 && errno == EINTR;
    return (void *)(intptr_t)right;
}

int main(void) {
    pthread_t threads[3];
    void *right[3];
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = nothing}, 0);
    MUST(pipe(pipes[0])), MUST(pipe(pipes[1])), MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    for (intptr_t i = 0; i < 3; i++) {
        threads[i] = start(reader, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], i == 1 ? SYS_recvfrom : SYS_read);
    }
    journey();
    MUST(write(pipes[0][1], "pipe", 4)), MUST(write(pair[0], "socket", 6));
    close(pipes[0][1]), close(pair[0]);
    pthread_kill(threads[2], SIGUSR1);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], &right[i]);
    IS(right[0]), IS(right[1]), IS(right[2]);
    return 0;
}
