/* unix_credentials: who is at the other end (SO_PEERCRED), and the sender of each message (SCM_CREDENTIALS). */
#include "rows.h"
#include <sys/socket.h>

static union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(struct ucred))]; } control;
static char text[32];
static struct iovec data = {text, 32};
static struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control};

static struct ucred next(int fd) {
    struct ucred who = {0};
    message.msg_controllen = sizeof control;
    if (recvmsg(fd, &message, MSG_DONTWAIT) > 0 && message.msg_controllen && control.header.cmsg_type == SCM_CREDENTIALS)
        memcpy(&who, CMSG_DATA(&control.header), sizeof who);
    return who;
}

int main(void) {
    int pair[2], yes = 1, got = 0, go[2];
    struct ucred who;
    socklen_t length = sizeof who;
    char byte;
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)), MUST(pipe(go));
    MUST(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes));
    MUST(send(pair[0], "queued", 6, 0));
    int child = CHILD({ MUST(send(pair[0], "by the child", 12, 0)); MUST(read(go[0], &byte, 1)); send(pair[0], "later", 5, 0) == 5 ? 33 : 1; });
    journey_while(child, SYS_read);
    IS(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &who, &length) == 0 && who.pid == getpid() && who.uid == getuid());
    length = sizeof got;
    IS(getsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &got, &length) == 0 && got == 1);
    who = next(pair[1]);
    IS(!strncmp(text, "queued", 6) && who.pid == getpid() && who.uid == getuid() && who.gid == getgid());
    who = next(pair[1]);
    IS(!strncmp(text, "by the child", 12) && who.pid == child && who.uid == getuid());
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 33);
    who = next(pair[1]);
    IS(!strncmp(text, "later", 5) && who.pid == child);
    return 0;
}
