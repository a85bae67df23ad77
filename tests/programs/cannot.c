/* cannot WHAT: gets hold of something that can go to no other host, says so, and lets go of it after a line of input. */
#include "pause.h"
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static int get(const char *what) {
    char parameters[120] = {0}; /* struct io_uring_params */
    struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
    struct sock_fprog program = {1, &allow};
    if (!strcmp(what, "io_uring"))
        return syscall(425, 4, parameters);
    if (!strcmp(what, "userfaultfd"))
        return syscall(SYS_userfaultfd, O_CLOEXEC | 1);
    if (!strcmp(what, "raw"))
        return socket(AF_INET, SOCK_RAW, 1);
    if (!strcmp(what, "packet"))
        return socket(AF_PACKET, SOCK_DGRAM, 0);
    if (!strcmp(what, "namespace"))
        return unshare(CLONE_NEWUSER) ? -1 : open("/dev/null", 0);
    if (!strcmp(what, "filter"))
        return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) ? -1 : open("/dev/null", 0);
    return open(what, O_RDONLY);
}

int main(int argc, char **argv) {
    char byte;
    int held = get(argc > 1 ? argv[1] : "");
    if (held < 0)
        return say("none: %s", strerror(errno)), 3;
    moment();
    close(held);
    say("free");
    while (read(0, &byte, 1) == 1)
        ;
    return 0;
}
