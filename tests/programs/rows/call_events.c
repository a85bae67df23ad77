/* call_events: reads of an eventfd, a timerfd and an inotify instance are in progress, and a write to a full eventfd. */
#include "rows.h"
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>

static int fds[4], tids[4];

static void *waits(void *which) {
    int n = (intptr_t)which;
    uint64_t value = 1;
    union { struct inotify_event event; char room[sizeof(struct inotify_event) + NAME_MAX + 1]; } news;
    tids[n] = gettid();
    int right = n < 2 ? read(fds[n], &value, 8) == 8 && value == (n ? 1 : 7) :
        n == 2 ? read(fds[n], &news, sizeof news) > 0 && news.event.mask == IN_CREATE && !strcmp(news.event.name, "new") :
        write(fds[n], &value, 8) == 8;
    return (void *)(intptr_t)right;
}

int main(void) {
    pthread_t threads[4];
    void *right[4];
    uint64_t value = UINT64_MAX - 1;
    struct itimerspec later = {.it_value = {2, 500000000}};
    unlink("new");
    fds[0] = MUST(eventfd(0, 0)), fds[1] = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
    fds[2] = MUST(inotify_init()), fds[3] = MUST(eventfd(0, 0));
    MUST(inotify_add_watch(fds[2], ".", IN_CREATE)), MUST(write(fds[3], &value, 8));
    MUST(timerfd_settime(fds[1], 0, &later, 0));
    double due = seconds(CLOCK_MONOTONIC) + 2.5;
    for (intptr_t i = 0; i < 4; i++) {
        threads[i] = start(waits, (void *)i);
        while (!*(volatile int *)&tids[i])
            sched_yield();
        wait_blocked(tids[i], i == 3 ? SYS_write : SYS_read);
    }
    journey();
    value = 7;
    IS(write(fds[0], &value, 8) == 8);
    close(MUST(open("new", O_RDWR | O_CREAT, 0600)));
    IS(read(fds[3], &value, 8) == 8 && value == UINT64_MAX - 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], &right[i]);
    IS(seconds(CLOCK_MONOTONIC) >= due - LAG);
    IS(right[0]), IS(right[1]), IS(right[2]), IS(right[3]);
    return 0;
}
