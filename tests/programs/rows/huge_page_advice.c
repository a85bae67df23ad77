/* huge_page_advice: transparent huge pages wanted here and not wanted there. */
#include "rows.h"

/* The two-letter flags of the area, proc_pid_smaps(5). */
static int has(char *at, const char *flag) {
    char line[16], *from, *flags;
    snprintf(line, sizeof line, "\n%lx-", (long)at);
    return slurp("/proc/self/smaps", scratch, VIEW) && (from = strstr(scratch, line)) && (flags = strstr(from, "VmFlags:")) &&
        (*strchrnul(flags, '\n') = 0, strstr(flags, flag));
}

int main(void) {
    char *map = mmap(0, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *yes = (char *)(((long)map + (2 << 20)) & -(2L << 20)), *no = yes + (4 << 20);
    MUST(madvise(yes, 2 << 20, MADV_HUGEPAGE)), MUST(madvise(no, 2 << 20, MADV_NOHUGEPAGE));
    yes[0] = 1, yes[(2 << 20) - 1] = 2, no[0] = 3;
    IS(has(yes, " hg") && has(no, " nh"));
    journey();
    IS(yes[0] == 1 && yes[(2 << 20) - 1] == 2 && no[0] == 3);
    IS(has(yes, " hg") && has(no, " nh"));
    return 0;
}
