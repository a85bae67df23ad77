/* signal_handlers: handlers with their flags and masks, ignored signals, and a call that SA_RESTART restarts or not. */
#include "rows.h"

static volatile int order;
static void one(int n) { order = order * 10 + 1; }
static void two(int n, siginfo_t *info, void *context) {
    raise(SIGUSR1);
    order = order * 10 + (info->si_pid == getpid() ? 2 : 9);
}

int main(void) {
    struct sigaction first = {.sa_handler = one, .sa_flags = SA_RESTART | SA_NODEFER}, got;
    struct sigaction second = {.sa_sigaction = two, .sa_flags = SA_SIGINFO | SA_RESETHAND | SA_ONSTACK};
    sigaddset(&first.sa_mask, SIGHUP), sigaddset(&second.sa_mask, SIGUSR1), sigaddset(&second.sa_mask, SIGRTMIN + 9);
    MUST(sigaction(SIGUSR1, &first, 0)), MUST(sigaction(SIGUSR2, &second, 0));
    MUST(sigaction(SIGRTMAX, &second, 0));
    signal(SIGHUP, SIG_IGN), signal(SIGWINCH, SIG_IGN);
    journey();
    IS(sigaction(SIGUSR1, 0, &got) == 0 && got.sa_handler == one && (got.sa_flags & ~0x04000000) == first.sa_flags);
    IS(sigismember(&got.sa_mask, SIGHUP) && !sigismember(&got.sa_mask, SIGUSR1));
    IS(sigaction(SIGRTMAX, 0, &got) == 0 && got.sa_sigaction == two && (got.sa_flags & ~0x04000000) == second.sa_flags);
    IS(sigismember(&got.sa_mask, SIGUSR1) && sigismember(&got.sa_mask, SIGRTMIN + 9));
    raise(SIGUSR2);
    IS(order == 21);
    IS(sigaction(SIGUSR2, 0, &got) == 0 && got.sa_handler == SIG_DFL);
    raise(SIGHUP), raise(SIGWINCH), raise(SIGUSR1);
    IS(order == 211);
    int child = CHILD({ raise(SIGUSR2); 0; });
    IS(ended(child) == 1000 + SIGUSR2);
    return 0;
}
