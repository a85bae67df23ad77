/* guard_pages: guards inside an area (MADV_GUARD_INSTALL, Linux 6.13), and those of a thread's stack. */
#include "rows.h"
#include <setjmp.h>
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static sigjmp_buf back;
static void fault(int n) { siglongjmp(back, n); }
static int faults(volatile char *at) {
    int caught = sigsetjmp(back, 1);
    if (!caught)
        *at = 7;
    return caught == SIGSEGV;
}

int main(void) {
    char *map = mmap(0, 8 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(map);
    memset(map, 5, 8 << 12);
    /* Linux 6.13 and newer. */
    MUST(madvise(map + (2 << 12), 4096, MADV_GUARD_INSTALL)), MUST(madvise(map + (7 << 12), 4096, MADV_GUARD_INSTALL));
    signal(SIGSEGV, fault);
    journey();
    IS(map[0] == 5 && map[(2 << 12) - 1] == 5 && map[3 << 12] == 5);
    IS(!faults(map + (1 << 12)) && !faults(map + (6 << 12)));
    IS(faults(map + (2 << 12)) && faults(map + (7 << 12)));
    MUST(madvise(map + (2 << 12), 4096, MADV_GUARD_REMOVE));
    IS(map[2 << 12] == 0 && !faults(map + (2 << 12)));
    return 0;
}
