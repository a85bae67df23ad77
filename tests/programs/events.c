/* events: datagrams, pairs, pipes, and descriptors that count events and time, made after the move. */
#include "pause.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>

static int ready(int fd, int events, int timeout) {
    struct pollfd one = {fd, events, 0};
    poll(&one, 1, timeout);
    return one.revents;
}

int main(void) {
    char text[5000] = {0};
    int p[2], n = 0;
    unsigned long value = 3;
    moment();
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, from;
    socklen_t length = sizeof at;
    int one = socket(AF_INET, SOCK_DGRAM, 0), two = socket(AF_INET, SOCK_DGRAM, 0);
    TRY(bind(one, (void *)&at, sizeof at) + getsockname(one, (void *)&at, &length));
    TRY(sendto(two, "datagram", 8, 0, (void *)&at, sizeof at)), TRY(sendto(two, 0, 0, 0, (void *)&at, sizeof at));
    TRY(ioctl(one, FIONREAD, &n) + n), TRY(recvfrom(one, text, 3, MSG_TRUNC, (void *)&from, &length));
    say("  %.8s from %s %d", text, inet_ntoa(from.sin_addr), length);
    TRY(recv(one, text, 10, 0)), TRY(ready(one, POLLIN | POLLOUT, 0));
    struct sockaddr_un name = {AF_UNIX, "unix-socket"}, said;
    int unix_ = socket(AF_UNIX, SOCK_DGRAM, 0), other = socket(AF_UNIX, SOCK_DGRAM, 0);
    TRY(bind(unix_, (void *)&name, sizeof name)), TRY(bind(other, (void *)&name, sizeof name));
    length = sizeof said;
    TRY(sendto(other, "x", 1, 0, (void *)&name, sizeof name) + getsockname(unix_, (void *)&said, &length));
    say("  %s %d", said.sun_path, length);
    TRY(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p) + send(p[0], "one", 3, 0) + send(p[0], "four", 4, 0));
    TRY(read(p[1], text, 2)), TRY(read(p[1], text, 100)), TRY(close(p[0])), TRY(read(p[1], text, 1)), TRY(ready(p[1], POLLIN, -1));
    TRY(pipe2(p, O_NONBLOCK)), TRY(read(p[0], text, 1)), TRY(fcntl(p[1], F_SETPIPE_SZ, 4096)), TRY(write(p[1], text, 5000));
    TRY(ready(p[1], POLLOUT, 0)), TRY(ready(p[0], POLLIN, 0)), TRY(close(p[0])), TRY(ready(p[1], POLLOUT, 0));
    int event = eventfd(2, EFD_NONBLOCK | EFD_SEMAPHORE);
    TRY(write(event, &value, 8)), TRY(read(event, &value, 8)), TRY(value), TRY(ready(event, POLLIN, 0)), TRY(read(event, &value, 4));
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {{0, 20000000}, {0, 20000000}}, left;
    TRY(timerfd_settime(timer, 0, &every, 0)), TRY(ready(timer, POLLIN, 2000)), TRY(read(timer, &value, 8)), TRY(value >= 1);
    TRY(timerfd_gettime(timer, &left) + left.it_interval.tv_nsec), TRY(read(timer, &value, 8));
    int notify = inotify_init1(IN_NONBLOCK);
    TRY(mkdir("watched", 0700) + inotify_add_watch(notify, "watched", IN_CREATE | IN_DELETE | IN_MOVE));
    TRY(close(creat("watched/new", 0600)) + rename("watched/new", "watched/old") + unlink("watched/old"));
    TRY(ready(notify, POLLIN, 1000)), TRY(n = read(notify, text, sizeof text));
    for (char *here = text; here < text + n; here += sizeof(struct inotify_event) + ((struct inotify_event *)here)->len)
        say("  %x %s", ((struct inotify_event *)here)->mask, ((struct inotify_event *)here)->name);
    TRY(read(notify, text, sizeof text)), TRY(inotify_rm_watch(notify, 9));
    return 0;
}
