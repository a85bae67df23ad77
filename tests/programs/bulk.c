/* bulk: much at once, by one call, in both directions; holes, vectors, copies between descriptors. */
#include "pause.h"
#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { MUCH = 5 << 20 };
static unsigned char in[MUCH + 4096], out[MUCH + 4096];
static unsigned long sum(const unsigned char *bytes, long n) {
    unsigned long sum = 0;
    for (long i = 0; i < n; i++)
        sum = sum * 31 + bytes[i];
    return sum;
}

int main(void) {
    struct iovec v[50];
    int pair[2], pipe_[2];
    for (int i = 0; i < MUCH; i++)
        out[i] = i * 2654435761u >> 23;
    moment();
    int fd = open("big", O_RDWR | O_CREAT | O_TRUNC, 0600), to = open("copy", O_RDWR | O_CREAT | O_TRUNC, 0600);
    TRY(write(fd, out, MUCH));
    TRY(lseek(fd, 0, SEEK_CUR));
    TRY(lseek(fd, 100, SEEK_SET));
    TRY(read(fd, in, MUCH + 4096));
    TRY(sum(in, MUCH));
    TRY(pread(fd, in, MUCH, 1));
    TRY(pwrite(fd, out, MUCH, 4096));
    for (int i = 0; i < 50; i++)
        v[i] = (struct iovec){out + i * 50000, i == 7 ? 0 : 50000};
    TRY(pwritev(fd, v, 50, 77));
    for (int i = 0; i < 50; i++)
        v[i].iov_base = in + i * 60000;
    TRY(preadv2(fd, v, 50, 70, 0));
    TRY(sum(in, 3000000));
    TRY(pread(fd, in, MUCH + 4096, 0));
    TRY(sum(in, MUCH + 4096));
    off_t at = 10, there = 3 << 20;
    TRY(sendfile(to, fd, &at, MUCH));
    TRY(at);
    TRY(copy_file_range(fd, &at, to, &there, 12345, 0));
    TRY(there);
    TRY(ftruncate(to, 20 << 20));
    TRY(pwrite(to, "end", 3, 19 << 20));
    TRY(lseek(to, 10 << 20, SEEK_DATA));
    TRY(lseek(to, 12 << 20, SEEK_HOLE));
    TRY(lseek(to, 30 << 20, SEEK_DATA));
    TRY(fallocate(to, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 1 << 20));
    TRY(pread(to, in, MUCH, 0));
    TRY(sum(in, MUCH));
    TRY(fallocate(to, 0, 0, 21 << 20));
    TRY(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) + pipe2(pipe_, O_NONBLOCK));
    long wrote = write(pair[0], out, MUCH), got = read(pair[1], in, MUCH);
    say("socket %d %d", wrote == got && wrote > 0, sum(in, got) == sum(out, got));
    TRY(write(pipe_[1], out, MUCH));
    TRY(splice(pipe_[0], 0, to, &there, 40000, 0));
    TRY(read(pipe_[0], in, MUCH));
    TRY(fsync(to) + fdatasync(to) + syncfs(to) + posix_fadvise(to, 0, 0, POSIX_FADV_RANDOM));
    return 0;
}
