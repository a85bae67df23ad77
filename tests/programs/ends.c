/* ends HOW: ends in this way, after the move. */
#include "pause.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

static void last(void) { say("at exit"); }

int main(int argc, char **argv) {
    int how = argc > 1 ? atoi(argv[1]) : 0, p[2];
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    atexit(last);
    moment();
    switch (how) {
    case 0: exit(77);
    case 1: abort();
    case 2: *(volatile int *)8 = 1; break;
    case 3: pipe(p), close(p[0]), TRY(write(p[1], "x", 1)); break;
    case 4: raise(SIGTERM); break;
    case 5: raise(SIGRTMIN + 2); break;
    case 6: kill(getpid(), SIGKILL); break;
    case 7: __builtin_trap();
    case 8: signal(SIGPIPE, SIG_IGN), pipe(p), close(p[0]), TRY(write(p[1], "x", 1)), _exit(300);
    case 9: alarm(1), pause(); break;
    case 10: raise(SIGTSTP), say("continued"); break;
    }
    return 5;
}
