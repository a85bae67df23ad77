/* received: says what comes with each signal that it receives, by a handler and by sigwaitinfo; a read goes on meanwhile. */
#include "pause.h"
#include <signal.h>

static void show(const char *how, const siginfo_t *info) {
    char line[100];
    int length = sprintf(line, "%s %d code %d value %d by %s\n", how, info->si_signo, info->si_code,
        info->si_code == SI_QUEUE ? info->si_value.sival_int : 0, info->si_uid == getuid() ? "me" : "another");
    (void)!write(1, line, length);
}
static void on_signal(int signal, siginfo_t *info, void *context) { (void)signal, (void)context, show("handler", info); }

int main(void) {
    sigset_t wait;
    siginfo_t info;
    char text[20] = {0};
    for (int i = 0, s[] = {SIGUSR1, SIGRTMIN, SIGRTMIN + 5}; i < 3; i++)
        sigaction(s[i], &(struct sigaction){.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART}, 0);
    moment();
    say("reading");
    TRY(read(0, text, 20));
    sigemptyset(&wait), sigaddset(&wait, SIGUSR2), sigaddset(&wait, SIGRTMIN + 1), sigprocmask(SIG_BLOCK, &wait, 0);
    TRY(sigtimedwait(&wait, &info, &(struct timespec){0, 50000000}));
    say("waiting");
    for (int i = 0; i < 3; i++)
        if (sigtimedwait(&wait, &info, &(struct timespec){20, 0}) > 0)
            show("waited", &info);
    return 0;
}
