/* messages: descriptors and credentials in messages, vectors, many messages by one call; descriptors copied and flagged. */
#include "pause.h"
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>

static void show(const char *what, struct msghdr *m, long n) {
    say("%s %ld %s flags %x control %zu name %d", what, n, n < 0 ? strerror(errno) : "", m->msg_flags, m->msg_controllen, m->msg_namelen);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c && n >= 0; c = CMSG_NXTHDR(m, c))
        say("  level %d type %d length %zu, first %d", c->cmsg_level, c->cmsg_type, (size_t)c->cmsg_len, *(int *)CMSG_DATA(c) > 2);
}

int main(void) {
    int p[2], file, one = 1;
    char control[200], a[4] = "", b[50] = "", big[200000];
    union { char bytes[CMSG_SPACE(2 * sizeof(int))]; struct cmsghdr header; } rights = {0};
    moment();
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, p));
    TRY(setsockopt(p[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
    file = open("passed", O_RDWR | O_CREAT, 0600);
    struct iovec out[2] = {{"messa", 5}, {"ge", 2}}, in[2] = {{a, 3}, {b, 50}};
    rights.header = (struct cmsghdr){CMSG_LEN(2 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(&rights.header), (int[]){file, 1}, 8);
    struct msghdr send = {.msg_iov = out, .msg_iovlen = 2, .msg_control = &rights, .msg_controllen = sizeof rights};
    struct msghdr receive = {.msg_iov = in, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
    TRY(sendmsg(p[0], &send, 0)), TRY(sendmsg(p[0], &send, 0));
    show("peek", &receive, recvmsg(p[1], &receive, MSG_PEEK | MSG_CMSG_CLOEXEC));
    receive.msg_controllen = sizeof control;
    show("whole", &receive, recvmsg(p[1], &receive, 0));
    say("  %s|%s", a, b);
    int passed = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&receive); c; c = CMSG_NXTHDR(&receive, c))
        if (c->cmsg_type == SCM_RIGHTS)
            passed = *(int *)CMSG_DATA(c);
    TRY(write(passed, "through it", 10)), TRY(pread(file, b, 50, 0)), TRY(fcntl(passed, F_GETFD));
    receive.msg_controllen = 20;
    show("short", &receive, recvmsg(p[1], &receive, 0));
    receive.msg_control = 0, receive.msg_controllen = 0;
    show("none", &receive, recvmsg(p[1], &receive, MSG_DONTWAIT));
    TRY(socketpair(AF_UNIX, SOCK_DGRAM, 0, p));
    struct mmsghdr many[40] = {0};
    struct iovec parts[40];
    for (int i = 0; i < 40; i++)
        parts[i] = (struct iovec){big + i * 5000, i * 100}, many[i].msg_hdr = (struct msghdr){.msg_iov = parts + i, .msg_iovlen = 1};
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    int sent = sendmmsg(p[0], many, 40, 0);
    say("many %d, the last whole %d", sent > 1, many[sent - 1].msg_len == (sent - 1) * 100);
    memset(big, 1, sizeof big);
    int got = recvmmsg(p[1], many, 40, MSG_WAITFORONE, 0), bytes = 0;
    for (int i = 0; i < got; i++)
        bytes += many[i].msg_len;
    say("many %d, together %d", got == sent, bytes == sent * (sent - 1) * 50);
    TRY(dup(file) > file), TRY(dup2(file, 60)), TRY(dup2(60, 60)), TRY(dup3(60, 61, O_CLOEXEC)), TRY(fcntl(61, F_GETFD));
    TRY(lseek(60, 5, SEEK_SET)), TRY(lseek(61, 0, SEEK_CUR)), TRY(fcntl(60, F_DUPFD_CLOEXEC, 100)), TRY(fcntl(100, F_GETFD));
    TRY(fcntl(61, F_SETFD, 0)), TRY(fcntl(61, F_SETFL, O_APPEND | O_NONBLOCK)), TRY(fcntl(60, F_GETFL)), TRY(fcntl(60, F_SETOWN, getpid()));
    TRY(fcntl(60, F_GETOWN) == getpid()), TRY(close_range(55, 70, 0)), TRY(fcntl(61, F_GETFD)), TRY(dup2(file, 100)), TRY(fcntl(100, F_GETFD));
    return 0;
}
