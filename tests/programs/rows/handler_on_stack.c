/* handler_on_stack: the journey is made inside of a handler on its alternative stack, which then returns. */
#include "rows.h"
#include <ucontext.h>

static char room[256 << 10];
static volatile int inside;

static void handler(int n, siginfo_t *info, void *context) {
    stack_t now;
    sigset_t mask;
    journey();
    inside = 1;
    IS((char *)&now > room && (char *)&now < room + sizeof room);
    IS(sigaltstack(0, &now) == 0 && now.ss_flags & SS_ONSTACK && now.ss_sp == room && now.ss_size == sizeof room);
    IS(sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, 0) == -1 && errno == EPERM);
    sigprocmask(SIG_SETMASK, 0, &mask);
    IS(sigismember(&mask, SIGUSR1) && sigismember(&mask, SIGHUP) && !sigismember(&mask, SIGUSR2));
    IS(info->si_signo == SIGUSR1 && info->si_pid == getpid());
}

int main(void) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
    sigset_t mask;
    double number = 1.5;
    sigaddset(&action.sa_mask, SIGHUP);
    MUST(sigaltstack(&stack, 0)), MUST(sigaction(SIGUSR1, &action, 0));
    for (int i = 0; i < 20; i++)
        number = number * 1.25 + getpid() * 0;
    raise(SIGUSR1);
    IS(inside && number > 130.1 && number < 130.2);
    IS(sigaltstack(0, &stack) == 0 && stack.ss_flags == 0);
    sigprocmask(SIG_SETMASK, 0, &mask);
    IS(!sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGHUP));
    return 0;
}
