/* trap_signal: SIGTRAP caught, ignored, and blocked while it waits: injected code traps too, and must not take that away. */
#include "rows.h"

static volatile int traps, code;
static void count(int n, siginfo_t *info, void *context) { traps += n == SIGTRAP, code = info->si_code; }

static void catch_it(void) {
    struct sigaction action = {.sa_sigaction = count, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaddset(&action.sa_mask, SIGUSR1);
    MUST(sigaction(SIGTRAP, &action, 0));
}

static int is_caught(void) {
    struct sigaction got;
    return sigaction(SIGTRAP, 0, &got) == 0 && got.sa_sigaction == count && (got.sa_flags & ~0x04000000) == (SA_SIGINFO | SA_RESTART) &&
           sigismember(&got.sa_mask, SIGUSR1);
}

static void *thread(void *go) {
    char byte;
    MUST(read(*(int *)go, &byte, 1));
    raise(SIGTRAP);
    return go;
}

int main(void) {
    int go[3][2], ready[2];
    char byte = 0;
    sigset_t trap;
    sigemptyset(&trap), sigaddset(&trap, SIGTRAP);
    for (int i = 0; i < 3; i++)
        MUST(pipe(go[i]));
    MUST(pipe(ready));
    int ignoring = CHILD({ signal(SIGTRAP, SIG_IGN); MUST(write(ready[1], "x", 1)); MUST(read(go[0][0], &byte, 1)); raise(SIGTRAP); 7; });
    int blocking = CHILD({
        catch_it(), sigprocmask(SIG_BLOCK, &trap, 0), kill(getpid(), SIGTRAP), MUST(write(ready[1], "x", 1)), MUST(read(go[1][0], &byte, 1));
        int before = traps;
        sigprocmask(SIG_UNBLOCK, &trap, 0);
        before == 0 && traps == 1 && code == SI_USER && is_caught() ? 8 : 9;
    });
    MUST(read(ready[0], &byte, 1)), MUST(read(ready[0], &byte, 1));
    catch_it();
    pthread_t other = start(thread, &go[2][0]);
    journey();
    IS(is_caught());
    raise(SIGTRAP), MUST(write(go[2][1], &byte, 1)), pthread_join(other, 0);
    __asm__ volatile("int3");
    IS(traps == 3 && is_caught());
    MUST(write(go[0][1], &byte, 1)), MUST(write(go[1][1], &byte, 1));
    IS(ended(ignoring) == 7), IS(ended(blocking) == 8);
    return 0;
}
