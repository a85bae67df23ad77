/* oom_score: the adjustment, and that it may be raised. */
#include "rows.h"

static int write_(const char *path, const char *text) {
    int fd = open(path, O_WRONLY), n = write(fd, text, strlen(text));
    return close(fd), n;
}

int main(void) {
    MUST(write_("/proc/self/oom_score_adj", "321"));
    int child = CHILD({ MUST(write_("/proc/self/oom_score_adj", "654")); pause(); 0; });
    char text[16], path[64];
    journey_while(child, SYS_pause);
    slurp("/proc/self/oom_score_adj", text, 16);
    IS(atoi(text) == 321);
    snprintf(path, sizeof path, "/proc/%d/oom_score_adj", child);
    slurp(path, text, 16);
    IS(atoi(text) == 654);
    IS(write_("/proc/self/oom_score_adj", "400") == 3);
    slurp("/proc/self/oom_score_adj", text, 16);
    IS(atoi(text) == 400);
    MUST(kill(child, SIGTERM));
    IS(ended(child) == 1000 + SIGTERM);
    return 0;
}
