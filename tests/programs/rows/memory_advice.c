/* memory_advice: MADV_* that sticks to an area: not for children, not in core files, wiped on fork, read ahead or not. */
#include "rows.h"

static int has(char *at, const char *flag) {
    char line[16], *from, *flags;
    snprintf(line, sizeof line, "\n%lx-", (long)at);
    return slurp("/proc/self/smaps", scratch, VIEW) && (from = strstr(scratch, line)) && (flags = strstr(from, "VmFlags:")) &&
        (*strchrnul(flags, '\n') = 0, strstr(flags, flag));
}

int main(void) {
    static const struct { int advice; const char *flag; } all[] = {{MADV_DONTFORK, " dc"}, {MADV_DONTDUMP, " dd"},
        {MADV_WIPEONFORK, " wf"}, {MADV_SEQUENTIAL, " sr"}, {MADV_RANDOM, " rr"}};
    char *at[5];
    int status, right = 0;
    for (int i = 0; i < 5; i++) {
        char *map = mmap(0, 12288, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        MUST(map), MUST(mprotect(at[i] = map + 4096, 4096, PROT_READ | PROT_WRITE));
        at[i][0] = i + 1;
        MUST(madvise(at[i], 4096, all[i].advice));
        right += has(at[i], all[i].flag);
    }
    IS(right == 5);
    journey();
    for (int i = 0; i < 5; i++) {
        say("advice %d: %s", all[i].advice, has(at[i], all[i].flag) && at[i][0] == i + 1 ? "yes" : "NO");
    }
    int child = CHILD({ at[2][0] == 0 && at[1][0] == 2 ? 16 : 1; });
    IS(ended(child) == 16);
    child = CHILD({ at[0][0]; });
    IS(waitpid(-1, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    return 0;
}
