/* ten_thousand_descriptors: 10,000 of them, of files, pipes and counters, each with its own state. */
#include "rows.h"
#include <sys/eventfd.h>

int main(void) {
    enum { MANY = 10000, BASE = 100 };
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = limit.rlim_max < BASE + MANY ? limit.rlim_max : BASE + MANY;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    int file = MUST(open("text", O_RDWR | O_CREAT | O_TRUNC, 0600)), right = 0, many = limit.rlim_cur - BASE;
    for (int i = 0; i < many; i++) {
        int fd = i % 4 == 0 ? MUST(open("text", O_RDONLY)) : i % 4 == 1 ? MUST(eventfd(i, EFD_NONBLOCK)) : MUST(dup(file));
        if (i % 4 == 0)
            MUST(lseek(fd, i, SEEK_SET));
        if (fd != BASE + i)
            MUST(dup3(fd, BASE + i, i % 8 ? 0 : O_CLOEXEC)), close(fd);
    }
    journey();
    for (int i = 0; i < many; i++) {
        int fd = BASE + i;
        unsigned long value = 0;
        right += i % 4 == 0 ? lseek(fd, 0, SEEK_CUR) == i && fcntl(fd, F_GETFD) == (i % 8 ? 0 : FD_CLOEXEC)
            : i % 4 == 1    ? read(fd, &value, 8) == 8 && value == i
                            : lseek(fd, 1, SEEK_CUR) > 0;
    }
    IS(right == many);
    IS(lseek(file, 0, SEEK_CUR) == many / 4 * 2 + (many % 4 > 2));
    return 0;
}
