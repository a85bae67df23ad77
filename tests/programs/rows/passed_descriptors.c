/* passed_descriptors: descriptors in flight (SCM_RIGHTS): of a file, of a pipe, with bytes around them. */
#include "rows.h"
#include <sys/socket.h>

static union { struct cmsghdr header; char room[CMSG_SPACE(2 * sizeof(int))]; } control;
static char text[32];
static struct iovec data = {text, 5};
static struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};

int main(void) {
    int pair[2], pipes[2], fds[2], file = MUST(open("passed", O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair)), MUST(pipe(pipes));
    MUST(write(file, "a passed file", 13)), MUST(lseek(file, 2, SEEK_SET)), MUST(write(pipes[1], "in the pipe", 11));
    control.header = (struct cmsghdr){CMSG_LEN(2 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    fds[0] = file, fds[1] = pipes[0];
    memcpy(CMSG_DATA(&control.header), fds, sizeof fds), memcpy(text, "bytes", 5);
    MUST(write(pair[0], "before", 6)), MUST(sendmsg(pair[0], &message, 0)), MUST(write(pair[0], "after", 5));
    close(file), close(pipes[0]), close(pipes[1]);
    journey();
    IS(read(pair[1], text, 6) == 6 && !strncmp(text, "before", 6));
    message.msg_controllen = sizeof control, data.iov_len = 32, memset(&control, 0, sizeof control);
    IS(recvmsg(pair[1], &message, MSG_CMSG_CLOEXEC) == 5 && !strncmp(text, "bytes", 5));
    IS(control.header.cmsg_type == SCM_RIGHTS && control.header.cmsg_len == CMSG_LEN(2 * sizeof(int)));
    memcpy(fds, CMSG_DATA(&control.header), sizeof fds);
    IS(fcntl(fds[0], F_GETFD) == FD_CLOEXEC);
    IS(read(fds[0], text, 32) == 11 && !strncmp(text, "passed file", 11));
    IS(read(fds[1], text, 32) == 11 && !strncmp(text, "in the pipe", 11) && read(fds[1], text, 32) == 0);
    IS(read(pair[1], text, 32) == 5 && !strncmp(text, "after", 5));
    return 0;
}
