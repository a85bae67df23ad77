/* vector_registers: x87, SSE, AVX and protection key registers of two threads, over a blocking call. */
#include "rows.h"
#include <fenv.h>

static int tid, go[2], has_keys;

static unsigned rights(void) {
    unsigned low = 0, high;
    if (has_keys)
        asm volatile("rdpkru" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Fills every register, waits in a read of `fd`, and tells how many are as they were. */
__attribute__((noinline)) static int kept(int fd, double seed) {
    double in[4] = {seed, seed * 2, seed * 3, seed * 5}, out[16][4], x87 = seed * 7, back;
    int avx = __builtin_cpu_supports("avx"), same = 0, got = 0;
    char byte;
#define LOAD(n) "vmovupd (%[in]), %%ymm" #n "\n"
#define STORE(n) "vmovupd %%ymm" #n ", 32*" #n "(%[out])\n"
#define ALL(what) what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10) what(11) what(12) what(13) what(14) what(15)
    if (!avx)
        return 17;
    asm volatile("fldl %[x87]\n" ALL(LOAD) "1: xor %%eax, %%eax\n syscall\n cmp $1, %%rax\n jl 1b\n" ALL(STORE) "fstpl %[back]"
                 : [back] "=m"(back), "=&a"(got) : [x87] "m"(x87), [in] "r"(in), [out] "r"(out), "D"((long)fd), "S"(&byte), "d"(1L) : "rcx", "r11", "memory");
    for (int i = 0; i < 16; i++)
        same += !memcmp(in, out[i], sizeof in);
    return same + (back == x87);
}

static void *other(void *none) {
    fesetround(FE_UPWARD), tid = gettid();
    int same = kept(go[0], 1.25);
    IS(same == 17 && fegetround() == FE_UPWARD);
    return none;
}

int main(void) {
    int key = pkey_alloc(0, PKEY_DISABLE_WRITE);
    has_keys = key >= 0;
    unsigned before = rights();
    MUST(pipe(go)), fesetround(FE_TOWARDZERO);
    pthread_t thread = start(other, 0);
    while (!*(volatile int *)&tid)
        sched_yield();
    journey_while(tid, SYS_read);
    IS(fegetround() == FE_TOWARDZERO);
    IS(rights() == before && (!has_keys || pkey_get(key) == PKEY_DISABLE_WRITE));
    MUST(write(go[1], "x", 1)), pthread_join(thread, 0);
    return 0;
}
