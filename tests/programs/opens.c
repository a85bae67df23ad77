/* opens: files opened in every way, after the move. */
#include "pause.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/openat2.h>

static void flags(int fd) { say("  flags %o cloexec %d", fcntl(fd, F_GETFL), fcntl(fd, F_GETFD)); }

int main(void) {
    char text[64] = {0}, far[5000];
    struct stat s;
    memset(far, 'x', sizeof far - 1), far[sizeof far - 1] = 0;
    moment();
    mkdir("dir", 0755);
    int dir = open("dir", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    flags(dir);
    TRY(openat(dir, "new", O_CREAT | O_EXCL | O_WRONLY, 0640));
    TRY(openat(dir, "new", O_CREAT | O_EXCL | O_WRONLY, 0640));
    TRY(write(4, "0123456789", 10));
    int more = openat(dir, "new", O_WRONLY | O_APPEND | O_NONBLOCK);
    flags(more);
    TRY(lseek(more, 2, SEEK_SET));
    TRY(write(more, "abc", 3));
    TRY(lseek(more, 0, SEEK_CUR));
    TRY(pwrite(more, "def", 3, 0));
    TRY(pread(openat(dir, "new", O_RDONLY), text, 64, 0));
    say("  %s", text);
    TRY(open("dir/new", O_DIRECTORY));
    TRY(open("dir", O_RDWR));
    TRY(open("dir/new/x", O_RDONLY));
    TRY(open("none/x", O_CREAT | O_RDWR, 0600));
    TRY(open(far, O_RDONLY));
    far[300] = 0;
    TRY(open(far, O_RDONLY));
    TRY(open("", O_RDONLY));
    TRY(open((char *)8, O_RDONLY));
    TRY(openat(99, "new", O_RDONLY));
    TRY(openat(99, "/dev/null", O_RDONLY));
    int path = open("dir/new", O_PATH);
    flags(path);
    TRY(read(path, text, 1));
    TRY(fstat(path, &s));
    TRY(s.st_size);
    TRY(openat(path, "x", O_RDONLY));
    TRY(open("dir/new", O_RDWR | O_TRUNC));
    TRY(fstatat(dir, "new", &s, 0));
    TRY(s.st_size);
    TRY(symlink("new", "dir/link"));
    TRY(open("dir/link", O_RDONLY | O_NOFOLLOW));
    struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};
    TRY(syscall(SYS_openat2, dir, "new", &how, sizeof how));
    TRY(syscall(SYS_openat2, dir, "../x", &how, sizeof how));
    int hidden = open("dir", O_TMPFILE | O_RDWR, 0600);
    TRY(hidden);
    TRY(write(hidden, "tmp", 3));
    TRY(creat("dir/c", 0400));
    TRY(stat("dir/c", &s));
    TRY(s.st_mode);
    return 0;
}
