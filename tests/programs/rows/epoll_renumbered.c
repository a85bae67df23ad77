/* epoll_renumbered: what an epoll watches has another number by now, and its old number is something else's. */
#include "rows.h"
#include <sys/epoll.h>

int main(void) {
    int epoll = MUST(epoll_create1(0)), one[2], two[2];
    struct epoll_event event = {EPOLLIN, {.u64 = 0x123456789}};
    char byte;
    MUST(pipe(one)), MUST(pipe(two));
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, one[0], &event));
    MUST(dup2(one[0], 50)), MUST(dup2(two[0], one[0]));
    MUST(write(two[1], "x", 1));
    IS(epoll_wait(epoll, &event, 1, 0) == 0);
    journey();
    IS(epoll_wait(epoll, &event, 1, 0) == 0);
    MUST(write(one[1], "x", 1));
    IS(epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 0x123456789 && event.events == EPOLLIN);
    event.data.u64 = 7;
    IS(epoll_ctl(epoll, EPOLL_CTL_ADD, one[0], &event) == 0);
    IS(read(50, &byte, 1) == 1 && epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 7);
    return 0;
}
