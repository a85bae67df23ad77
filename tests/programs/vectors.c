/* vectors ROUNDS: keeps values in all of the widest registers that the CPU has (zmm0..zmm31 and k5, or ymm0..ymm15) over a
   long loop without a system call, then compares. */
#include "pause.h"

enum { BYTES = 64 };
static unsigned long in[32][8] __attribute__((aligned(BYTES))), out[32][8] __attribute__((aligned(BYTES)));

#define SIXTEEN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define OTHERS(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)

__attribute__((target("avx512f,avx512bw"))) static int zmm(unsigned long rounds) {
    unsigned long mask = 0x123456789abcdef0;
#define LOAD_Z(n) "vmovdqa64 " #n "*64(%2), %%zmm" #n "\n"
#define STORE_Z(n) "vmovdqa64 %%zmm" #n ", " #n "*64(%3)\n"
    __asm__ volatile(SIXTEEN(LOAD_Z) OTHERS(LOAD_Z) "kmovq %1, %%k5\n"
                     "1: dec %0\n jnz 1b\n" SIXTEEN(STORE_Z) OTHERS(STORE_Z) "xor %1, %1\n kmovq %%k5, %1\n"
                     : "+r"(rounds), "+r"(mask) : "r"(in), "r"(out) : "memory", "cc", "k5");
    return memcmp(in, out, sizeof in) || mask != 0x123456789abcdef0;
}

__attribute__((target("avx"))) static int ymm(unsigned long rounds) {
#define LOAD_Y(n) "vmovdqa " #n "*32(%1), %%ymm" #n "\n"
#define STORE_Y(n) "vmovdqa %%ymm" #n ", " #n "*32(%2)\n"
    __asm__ volatile(SIXTEEN(LOAD_Y) "1: dec %0\n jnz 1b\n" SIXTEEN(STORE_Y)
                     : "+r"(rounds) : "r"(in), "r"(out) : "memory", "cc");
    return memcmp(in, out, 16 * 32);
}

int main(int argc, char **argv) {
    unsigned long rounds = argc > 1 ? strtoul(argv[1], 0, 10) : 4000000000UL;
    for (int i = 0; i < 32; i++)
        for (int j = 0; j < 8; j++)
            in[i][j] = 0x0101010101010101UL * (unsigned long)(i * 8 + j) ^ 0xdeadbeefUL;
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    say(wide ? "ready with zmm" : "ready with ymm");
    say((wide ? zmm(rounds) : ymm(rounds)) ? "registers changed" : "registers kept");
    return 0;
}
