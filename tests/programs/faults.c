/* faults: what is wrong with a call is said as at home: bad addresses, descriptors, lengths, names. */
#include "pause.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define RAW(name, ...) TRY(syscall(SYS_##name, __VA_ARGS__))

int main(void) {
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *bad = page + 4096;
    char *edge = bad - 4;
    int pipe_[2];
    munmap(bad, 4096);
    moment();
    int fd = open("f", O_RDWR | O_CREAT, 0600), w = open("f", O_WRONLY), none = 77;
    TRY(write(fd, "0123456789", 10) + pipe(pipe_));
    RAW(read, none, bad, 1), RAW(read, w, bad, 1), RAW(pread64, fd, bad, 10, 0), RAW(pread64, fd, edge, 10, 0);
    RAW(pread64, fd, page, 5, -1), RAW(pread64, pipe_[0], page, 5, 0), RAW(pread64, fd, page, -1L, 0);
    RAW(write, fd, bad, 5), RAW(pwrite64, fd, edge, 10, 0), RAW(write, pipe_[0], page, 1), RAW(write, none, bad, 0);
    RAW(write, fd, bad, 0), RAW(read, fd, bad, 0), RAW(writev, fd, bad, 2), RAW(writev, fd, page, -1), RAW(readv, none, bad, 1);
    struct iovec v[2] = {{page, 3}, {bad, 3}}, negative = {page, -1};
    RAW(pwritev, fd, v, 2, 0, 0), RAW(preadv, fd, v, 2, 0, 0), RAW(preadv, fd, v, 1025, 0, 0), RAW(writev, fd, &negative, 1);
    RAW(open, bad, 0, 0), RAW(stat, "f", bad), RAW(stat, bad, page), RAW(fstat, none, bad), RAW(fstat, fd, bad);
    RAW(newfstatat, none, "f", page, 0), RAW(newfstatat, AT_FDCWD, "f", page, 0x8000000), RAW(statx, AT_FDCWD, "f", 0, 0, bad);
    RAW(getdents64, fd, page, 100), RAW(getdents64, none, page, 100), RAW(getcwd, bad, 100), RAW(getcwd, page, 0);
    RAW(readlink, "f", page, 10), RAW(readlink, "f", page, 0), RAW(readlink, bad, page, 10), RAW(rename, "f", bad), RAW(rename, "none", "f/x");
    RAW(pipe2, bad, 0), RAW(pipe2, page, -1), RAW(dup, none), RAW(dup2, none, 5), RAW(dup3, fd, fd, 0), RAW(dup2, fd, -1), RAW(dup2, fd, 1 << 30);
    RAW(close, none), RAW(close, -1), RAW(lseek, pipe_[0], 0, 0), RAW(lseek, fd, 0, 99), RAW(lseek, fd, -1L, 0), RAW(ftruncate, fd, -1L);
    RAW(fcntl, none, F_GETFD), RAW(fcntl, fd, F_DUPFD, -1), RAW(fcntl, fd, F_GETLK, bad), RAW(fcntl, fd, F_GETLK, 0), RAW(fcntl, none, F_GETLK, bad);
    RAW(ioctl, fd, TIOCGWINSZ, page), RAW(ioctl, none, TIOCGWINSZ, bad), RAW(ioctl, pipe_[0], FIONREAD, bad), RAW(ioctl, pipe_[0], FIONREAD, page);
    RAW(poll, bad, 1, 0), RAW(poll, page, 1 << 30, 0), RAW(poll, bad, 0, 0), RAW(select, -1, 0, 0, 0, 0), RAW(select, 2000, page, 0, 0, page);
    struct timeval odd = {0, -5};
    RAW(select, 0, 0, 0, 0, &odd), RAW(select, 3, bad, 0, 0, 0), RAW(ppoll, page, 0, &odd, 0, 8), RAW(ppoll, page, 0, 0, page, 5);
    RAW(pselect6, 0, 0, 0, 0, &odd, 0), RAW(epoll_wait, fd, page, 1, 0), RAW(epoll_wait, none, page, 0, 0);
    int ep = epoll_create1(0);
    RAW(epoll_wait, ep, page, 0, 0), RAW(epoll_wait, ep, page, 1 << 30, 0), RAW(epoll_ctl, ep, 1, fd, page), RAW(epoll_ctl, ep, 1, ep, page);
    RAW(epoll_ctl, ep, 1, none, page), RAW(epoll_ctl, ep, 1, pipe_[0], bad), RAW(epoll_ctl, ep, 9, pipe_[0], page), RAW(epoll_ctl, ep, 2, pipe_[0], 0);
    RAW(socket, 99, 1, 0), RAW(socket, 2, 99, 0), RAW(connect, fd, page, 16), RAW(bind, none, bad, 16), RAW(listen, fd, 1);
    int s = socket(AF_INET, SOCK_STREAM, 0), u = socket(AF_UNIX, SOCK_DGRAM, 0);
    RAW(connect, s, bad, 16), RAW(connect, s, page, -1), RAW(connect, s, page, 3), RAW(connect, s, page, 4096), RAW(accept, s, 0, 0), RAW(accept, s, page, bad);
    RAW(getsockopt, s, 1, 3, page, bad), RAW(getsockopt, s, 1, 3, bad, page), RAW(getsockopt, s, 1, 999, page, edge), RAW(setsockopt, s, 1, 2, bad, 4);
    RAW(setsockopt, s, 1, 2, page, 1), RAW(getsockname, s, bad, edge), RAW(getsockname, s, page, 0), RAW(getpeername, s, page, page);
    RAW(sendto, u, page, 5, 0, 0, 0), RAW(sendto, u, bad, 5, 0, 0, 0), RAW(recvfrom, u, page, 5, MSG_DONTWAIT, 0, 0), RAW(sendmsg, u, bad, 0), RAW(recvmsg, fd, bad, 0);
    RAW(sendmsg, none, bad, 0), RAW(sendmmsg, u, bad, 3, 0), RAW(recvmmsg, u, bad, 0, 0, 0), RAW(shutdown, s, 1), RAW(shutdown, s, 9);
    RAW(getxattr, "f", bad, page, 5), RAW(setxattr, "f", "user.x", bad, 5, 0), RAW(setxattr, "f", "nonsense", page, 5, 0), RAW(setxattr, "f", "user.x", page, 1 << 20, 0);
    RAW(utimensat, AT_FDCWD, "f", bad, 0), RAW(mkdir, "/", 0700), RAW(rmdir, "."), RAW(unlink, "/"), RAW(symlink, "", "x"), RAW(link, bad, bad);
    RAW(wait4, -1, 0, 1, 0), RAW(waitid, 99, 0, page, 4, 0), RAW(kill, 1 << 22, 0), RAW(tgkill, -1, 1, 0), RAW(setpgid, -1, 0), RAW(getpgid, 1 << 22), RAW(getpriority, 9, 0);
    RAW(prctl, 9999, 0, 0, 0, 0), RAW(getitimer, 9, page), RAW(getitimer, 0, bad), RAW(prlimit64, 0, 99, 0, page), RAW(uname, bad), RAW(memfd_create, bad, 0), RAW(truncate, bad, 0);
    RAW(eventfd2, 0, -1), RAW(timerfd_create, 99, 0), RAW(timerfd_settime, fd, 0, page, 0), RAW(inotify_add_watch, fd, "f", 1), RAW(copy_file_range, fd, 0, pipe_[1], 0, 1, 0);
    RAW(sendfile, fd, none, 0, 1), RAW(splice, fd, 0, fd, 0, 1, 0), RAW(fallocate, fd, 0, 0, -1L), RAW(flock, fd, 99), RAW(umask, 0), TRY(syscall(999, 0));
    return 0;
}
