/* locked_memory: mlock, mlock2 on fault, and what is mapped from now on. */
#include "rows.h"

static int has(char *at, const char *flag) {
    char line[16], *from, *flags;
    snprintf(line, sizeof line, "\n%lx-", (long)at);
    return slurp("/proc/self/smaps", scratch, VIEW) && (from = strstr(scratch, line)) && (flags = strstr(from, "VmFlags:")) &&
        (*strchrnul(flags, '\n') = 0, strstr(flags, flag));
}
static char *area(int protection) {
    char *map = mmap(0, 12288, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return MUST(map), MUST(mprotect(map + 4096, 4096, protection)), map + 4096;
}
static long locked(void) {
    slurp("/proc/self/status", scratch, VIEW);
    return atol(strstr(scratch, "VmLck:") + 6);
}

int main(void) {
    char *one = area(PROT_READ | PROT_WRITE), *two = area(PROT_READ | PROT_WRITE), *three = area(PROT_READ | PROT_WRITE);
    MUST(mlock(one, 4096)), MUST(mlock2(two, 4096, MLOCK_ONFAULT));
    one[0] = 1;
    IS(locked() == 8 && has(one, " lo") && has(two, " lo") && !has(three, " lo"));
    journey();
    IS(locked() == 8 && has(one, " lo") && has(two, " lo") && !has(three, " lo"));
    IS(one[0] == 1);
    IS(munlock(one, 4096) == 0 && locked() == 4);
    return 0;
}
