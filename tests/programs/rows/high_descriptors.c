/* high_descriptors: numbers above 1,024, as far as the limit goes. */
#include "rows.h"

int main(void) {
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    int fd = MUST(open("text", O_RDWR | O_CREAT | O_TRUNC, 0600)), last = limit.rlim_cur - 1;
    char text[8] = {0};
    MUST(write(fd, "high", 4));
    MUST(dup2(fd, 1500)), MUST(fcntl(fd, F_DUPFD_CLOEXEC, last));
    MUST(close(fd));
    journey();
    IS(pread(1500, text, 4, 0) == 4 && !strcmp(text, "high"));
    IS(lseek(last, 0, SEEK_CUR) == 4 && fcntl(last, F_GETFD) == FD_CLOEXEC && fcntl(1500, F_GETFD) == 0);
    IS(fcntl(1501, F_GETFD) == -1 && errno == EBADF);
    IS(dup2(1500, last + 1) == -1 && errno == EBADF);
    IS(open("text", O_RDONLY) == fd);
    return 0;
}
