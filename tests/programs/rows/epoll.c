/* epoll: level- and edge-triggered, one-shot, with their data; one epoll inside another. */
#include "rows.h"
#include <sys/epoll.h>

static struct epoll_event events[8];
static int add(int epoll, int fd, unsigned what, unsigned long data) {
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){what, {.u64 = data}});
}
/* The data of what is ready, as digits in order. */
static long ready(int epoll) {
    long all = 0;
    int n = epoll_wait(epoll, events, 8, 0);
    for (long wanted = 1; wanted < 10; wanted++)
        for (int i = 0; i < n; i++)
            if (events[i].data.u64 >> 32 == 0xabcd && (unsigned)events[i].data.u64 == wanted)
                all = all * 10 + wanted;
    return all;
}

int main(void) {
    int inner = MUST(epoll_create1(EPOLL_CLOEXEC)), outer = MUST(epoll_create1(0)), pipes[4][2];
    char text[8];
    for (int i = 0; i < 4; i++)
        MUST(pipe(pipes[i])), MUST(write(pipes[i][1], "x", 1));
    unsigned long data = 0xabcdUL << 32;
    MUST(add(inner, pipes[0][0], EPOLLIN, data + 1)), MUST(add(inner, pipes[1][0], EPOLLIN | EPOLLET, data + 2));
    MUST(add(inner, pipes[2][0], EPOLLIN | EPOLLONESHOT, data + 3)), MUST(add(outer, inner, EPOLLIN, data + 5));
    IS(ready(inner) == 123 && ready(inner) == 1);
    MUST(add(inner, pipes[3][0], EPOLLIN | EPOLLRDHUP, data + 4));
    journey();
    IS(ready(inner) == 14);
    IS(ready(outer) == 5);
    IS(read(pipes[0][0], text, 8) == 1 && ready(inner) == 4);
    MUST(write(pipes[1][1], "y", 1));
    IS(ready(inner) == 24 && ready(inner) == 4);
    MUST(epoll_ctl(inner, EPOLL_CTL_MOD, pipes[2][0], &(struct epoll_event){EPOLLIN, {.u64 = data + 6}}));
    IS(ready(inner) == 46);
    close(pipes[3][0]);
    IS(ready(inner) == 6);
    IS(add(inner, pipes[1][0], EPOLLIN, 0) == -1 && errno == EEXIST);
    return 0;
}
