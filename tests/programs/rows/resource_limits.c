/* resource_limits: soft and hard limits of everything, lowered by the process; they are obeyed. */
#include "rows.h"

int main(void) {
    struct rlimit before[RLIM_NLIMITS], now;
    int same = 0;
    signal(SIGXFSZ, SIG_IGN);
    MUST(setrlimit(RLIMIT_FSIZE, &(struct rlimit){5000, 1 << 20})), MUST(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}));
    MUST(setrlimit(RLIMIT_NOFILE, &(struct rlimit){40, 200})), MUST(setrlimit(RLIMIT_STACK, &(struct rlimit){4 << 20, 6 << 20}));
    MUST(setrlimit(RLIMIT_CPU, &(struct rlimit){500, 600})), MUST(setrlimit(RLIMIT_DATA, &(struct rlimit){1L << 33, 1L << 34}));
    for (int i = 0; i < RLIM_NLIMITS; i++)
        MUST(getrlimit(i, &before[i]));
    journey();
    for (int i = 0; i < RLIM_NLIMITS; i++)
        same += getrlimit(i, &now) == 0 && now.rlim_cur == before[i].rlim_cur && now.rlim_max == before[i].rlim_max;
    IS(same == RLIM_NLIMITS);
    int fd = MUST(open("limited", O_RDWR | O_CREAT | O_TRUNC, 0600));
    static char text[8000];
    IS(write(fd, text, 8000) == 5000);
    IS(write(fd, text, 1) == -1 && errno == EFBIG);
    IS(dup2(fd, 40) == -1 && errno == EBADF);
    IS(setrlimit(RLIMIT_NOFILE, &(struct rlimit){200, 200}) == 0 && dup2(fd, 199) == 199);
    return 0;
}
