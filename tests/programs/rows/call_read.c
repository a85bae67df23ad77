/* call_read: reads from a pipe and from a socket are in progress in two threads; one of them is then interrupted. */
#include "rows.h"
#include <sys/socket.h>

static int pipes[2], pair[2], tids[2];
static void nothing(int n) {}

static void *reader(void *which) {
    char text[16] = {0};
    int n = (intptr_t)which;
    tids[n] = gettid();
    long got = n ? recv(pair[1], text, 16, 0) : read(pipes[0], text, 16);
    say("thread %d got %ld %s", n, got, text);
    got = n ? recv(pair[1], text, 16, 0) : read(pipes[0], text, 16);
    say("thread %d got %ld, %s", n, got, got < 0 ? strerror(errno) : text);
    return 0;
}

int main(void) {
    pthread_t threads[2];
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = nothing}, 0);
    MUST(pipe(pipes)), MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    for (intptr_t i = 0; i < 2; i++)
        threads[i] = start(reader, (void *)i);
    while (!*(volatile int *)&tids[0] || !*(volatile int *)&tids[1])
        sched_yield();
    wait_blocked(tids[0], SYS_read);
    journey_while(tids[1], SYS_recvfrom);
    MUST(write(pipes[1], "pipe", 4));
    wait_blocked(tids[0], SYS_read);
    pthread_kill(threads[0], SIGUSR1), pthread_join(threads[0], 0);
    MUST(write(pair[0], "socket", 6));
    wait_blocked(tids[1], SYS_recvfrom);
    close(pair[0]), pthread_join(threads[1], 0);
    return 0;
}
