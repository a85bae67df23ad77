/* timerfd: one that has expired some times, one that goes on for what is left, one that is off, and an absolute one. */
#include "rows.h"
#include <poll.h>
#include <sys/timerfd.h>

static int timer(int clock, int flags, double first, double every) {
    struct itimerspec when = {{every, (every - (long)every) * 1e9}, {first, (first - (long)first) * 1e9}};
    int fd = MUST(timerfd_create(clock, TFD_NONBLOCK | TFD_CLOEXEC));
    MUST(timerfd_settime(fd, flags, &when, 0));
    return fd;
}

int main(void) {
    unsigned long value = 0;
    struct itimerspec left;
    int expired = timer(CLOCK_MONOTONIC, 0, 0.001, 1000), off = timer(CLOCK_BOOTTIME, 0, 0, 0);
    double start_ = seconds(CLOCK_MONOTONIC);
    int later = timer(CLOCK_MONOTONIC, 0, 2, 0), at = timer(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, start_ + 2, 0);
    int wall = timer(CLOCK_REALTIME, 0, 5000, 0), never = timer(CLOCK_BOOTTIME, 0, 5000, 7);
    poll(&(struct pollfd){expired, POLLIN, 0}, 1, -1);
    journey();
    IS(read(expired, &value, 8) == 8 && value == 1);
    IS(read(expired, &value, 8) == -1 && errno == EAGAIN);
    IS(timerfd_gettime(expired, &left) == 0 && left.it_interval.tv_sec == 1000 && left.it_value.tv_sec > 900);
    IS(timerfd_gettime(off, &left) == 0 && left.it_value.tv_sec + left.it_value.tv_nsec == 0);
    IS(timerfd_gettime(wall, &left) == 0 && left.it_value.tv_sec > 4900 && left.it_value.tv_sec < 5000);
    IS(timerfd_gettime(never, &left) == 0 && left.it_value.tv_sec > 4900 && left.it_interval.tv_sec == 7);
    IS(poll((struct pollfd[]){{later, POLLIN, 0}}, 1, 20000) == 1 && seconds(CLOCK_MONOTONIC) >= start_ + 2 - LAG);
    IS(poll((struct pollfd[]){{at, POLLIN, 0}}, 1, 1000) == 1);
    IS(read(later, &value, 8) == 8 && value == 1 && read(at, &value, 8) == 8 && value == 1);
    return 0;
}
