/* call_message: recvmsg waits, recv with a timeout and MSG_WAITALL with half of what it wants; a sender waits for room. */
#include "rows.h"
#include <sys/socket.h>
#include <sys/time.h>

static int pairs[4][2], tids[4];
static double since;
static char block[4096];

static void *waits(void *which) {
    int n = (intptr_t)which, right, sent = 0;
    char text[16] = {0};
    struct iovec parts[2] = {{text, 3}, {text + 8, 8}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    tids[n] = gettid();
    errno = 0;
    if (n == 0)
        right = recvmsg(pairs[0][1], &message, 0) == 6 && !memcmp(text, "mes", 3) && !memcmp(text + 8, "sag", 3) && message.msg_flags == 0;
    else if (n == 1)
        right = recv(pairs[1][1], text, 16, 0) == -1 && errno == EAGAIN && seconds(CLOCK_MONOTONIC) >= since + 3 - LAG;
    else if (n == 2) {
        /* A stop and a continue cut it short too. */
        for (int got = 1; sent < 8 && got > 0; sent += got)
            got = recv(pairs[2][1], text + sent, 8 - sent, MSG_WAITALL);
        right = !memcmp(text, "halfhalf", 8);
    } else {
        while (sent < 200 && send(pairs[3][0], block, sizeof block, 0) == sizeof block)
            sent++;
        right = sent == 200;
    }
    return (void *)(intptr_t)right;
}

int main(void) {
    static const long calls[] = {SYS_recvmsg, SYS_recvfrom, SYS_recvfrom, SYS_sendto};
    pthread_t threads[4];
    void *right[4];
    for (int i = 0; i < 4; i++)
        MUST(socketpair(AF_UNIX, i == 2 ? SOCK_STREAM : SOCK_SEQPACKET, 0, pairs[i]));
    MUST(setsockopt(pairs[1][1], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){3, 0}, sizeof(struct timeval)));
    since = seconds(CLOCK_MONOTONIC);
    for (intptr_t i = 0; i < 4; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], calls[i]);
    }
    MUST(write(pairs[2][0], "half", 4));
    journey();
    MUST(write(pairs[0][0], "messag", 6)), MUST(write(pairs[2][0], "half", 4));
    int got = 0;
    while (got < 200 && recv(pairs[3][1], block, sizeof block, 0) == sizeof block)
        got++;
    IS(got == 200);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], &right[i]);
    IS(right[0]), IS(right[1]), IS(right[2]), IS(right[3]);
    return 0;
}
