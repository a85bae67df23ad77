/* shared_memory: anonymous memory shared between a process and its child, under different protection. */
#include "rows.h"

int main(void) {
    int go[2];
    char byte;
    volatile int *shared = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(shared);
    MUST(pipe(go));
    shared[0] = 1;
    int child = CHILD({
        shared[1000] = 2;
        MUST(read(go[0], &byte, 1));
        int right = shared[0] == 3 && shared[100000] == 4;
        shared[1000] = 5;
        right ? 11 : 1;
    });
    wait_blocked(child, SYS_read);
    MUST(mprotect((char *)shared + (1 << 19), 1 << 19, PROT_READ));
    journey();
    IS(shared[0] == 1 && shared[1000] == 2 && shared[2000] == 0);
    MUST(mprotect((char *)shared + (1 << 18), 3 << 18, PROT_READ | PROT_WRITE));
    shared[0] = 3, shared[100000] = 4;
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 11);
    IS(shared[1000] == 5);
    return 0;
}
