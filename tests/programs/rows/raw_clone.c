/* raw_clone: a thread made with clone(2) and one with clone3(2), without the C library's knowledge. */
#include "rows.h"
#include <linux/futex.h>
#include <linux/sched.h>

static const unsigned long FLAGS = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
    CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
static int go, tids[2], seen[2];
static char stacks[2][8192] __attribute__((aligned(16)));

/* Only raw calls: a thread without thread-local storage of its own. */
static long raw(long n, long a, long b, long c, long d) {
    register long r10 asm("r10") = d, r8 asm("r8") = 0, r9 asm("r9") = 0;
    asm volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return n;
}
__attribute__((used, noreturn, no_stack_protector)) static void body(long which) {
    while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST))
        raw(SYS_futex, (long)&go, FUTEX_WAIT, 0, 0);
    seen[which] = raw(SYS_gettid, 0, 0, 0, 0);
    for (;;)
        raw(SYS_exit, 0, 0, 0, 0);
}
static long make(int which) {
    char *top = stacks[which] + sizeof stacks[which];
    struct clone_args args = {.flags = FLAGS, .parent_tid = (long)&tids[which], .child_tid = (long)&tids[which],
        .stack = (long)stacks[which], .stack_size = sizeof stacks[which]};
    long n = which ? SYS_clone3 : SYS_clone, one = which ? (long)&args : (long)FLAGS, two = which ? sizeof args : (long)top;
    register long r10 asm("r10") = (long)&tids[which];
    register long r12 asm("r12") = which;
    asm volatile("syscall\n test %%rax, %%rax\n jnz 1f\n xor %%ebp, %%ebp\n mov %%r12, %%rdi\n call body\n 1:"
                 : "+a"(n) : "D"(one), "S"(two), "d"(&tids[which]), "r"(r10), "r"(r12) : "rcx", "r11", "memory");
    return n;
}

int main(void) {
    int made[2] = {MUST(make(0)), MUST(make(1))};
    wait_blocked(made[0], SYS_futex);
    journey_while(made[1], SYS_futex);
    IS(tids[0] == made[0] && tids[1] == made[1]);
    __atomic_store_n(&go, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &go, FUTEX_WAKE, 2, 0, 0, 0);
    for (int i = 0, tid; i < 2; i++)
        while ((tid = __atomic_load_n(&tids[i], __ATOMIC_SEQ_CST)))
            syscall(SYS_futex, &tids[i], FUTEX_WAIT, tid, 0, 0, 0);
    IS(seen[0] == made[0] && seen[1] == made[1]);
    return 0;
}
