/* execute_only: code that may be run and not read, where the CPU has protection keys; PROT_EXEC alone elsewhere. */
#include "rows.h"
#include <setjmp.h>

static sigjmp_buf back;
static void fault(int n) { siglongjmp(back, n); }
static int unreadable(volatile char *at) {
    int caught = sigsetjmp(back, 1);
    if (!caught)
        (void)*at;
    return caught == SIGSEGV;
}

int main(void) {
    unsigned char *code = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(code);
    memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */
    MUST(mprotect(code, 4096, PROT_EXEC));
    signal(SIGSEGV, fault);
    int before = unreadable((char *)code);
    journey();
    IS(((int (*)(void))code)() == 42);
    IS(unreadable((char *)code) == before);
    MUST(mprotect(code, 4096, PROT_READ));
    IS(code[1] == 42);
    return 0;
}
