/* growing_stack: the first thread's stack grows after the journey, an area with MAP_GROWSDOWN too, down to the limit. */
#include "rows.h"

__attribute__((noinline)) static long deep(int n) {
    volatile char room[4096];
    room[0] = n;
    return n ? deep(n - 1) + room[0] : 0;
}

int main(void) {
    char *hole = mmap(0, 4 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(hole), MUST(munmap(hole, 4 << 20));
    char *grows = mmap(hole + (3 << 20), 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
    MUST(grows);
    grows[0] = 17;
    journey();
    IS(deep(100) == 5050);
    IS(deep(1500) == deep(1500));
    IS(grows[0] == 17);
    for (int i = 1; i <= 100; i++)
        grows[-4096 * i] = i;
    IS(grows[0] == 17 && grows[-4096 * 50] == 50);
    int child = CHILD({ deep(100000); });
    IS(ended(child) == 1000 + SIGSEGV);
    return 0;
}
