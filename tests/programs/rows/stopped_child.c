/* stopped_child: a stopped process stays stopped, by its signal, goes on when told, and its parent sees both once; it can
   be stopped and continued again. */
#include "rows.h"

static int waited(int pid, int *status, int flags) { return waitpid(pid, status, WUNTRACED | WCONTINUED | flags); }

static char state(int pid) {
    char text[300], path[40], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    slurp(path, text, sizeof text);
    sscanf(strrchr(text, ')'), ") %c", &state);
    return state;
}

static volatile int told;
static void count(int signal) { told++; }

int main(void) {
    int status, go[2];
    char byte;
    MUST(pipe(go));
    int seen = CHILD({ raise(SIGSTOP); MUST(read(go[0], &byte, 1)); 3; });
    int unseen = CHILD({ setpgid(0, 0); raise(SIGTSTP); MUST(read(go[0], &byte, 1)); 4; });
    IS(waitpid(seen, &status, WUNTRACED) == seen && WSTOPSIG(status) == SIGSTOP);
    siginfo_t info;
    MUST(waitid(P_PID, unseen, &info, WSTOPPED | WNOWAIT));
    signal(SIGCHLD, count);
    journey();
    IS(told == 0);
    IS(state(seen) == 'T' && state(unseen) == 'T');
    IS(waited(seen, &status, WNOHANG) == 0);
    IS(waited(unseen, &status, WNOHANG) == unseen && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTSTP);
    IS(waited(unseen, &status, WNOHANG) == 0);
    for (int round = 0; round < 2; round++) {
        MUST(kill(seen, SIGCONT)), MUST(kill(unseen, SIGCONT));
        IS(waited(seen, &status, 0) == seen && WIFCONTINUED(status));
        IS(waited(unseen, &status, 0) == unseen && WIFCONTINUED(status));
        MUST(kill(seen, SIGSTOP)), MUST(kill(unseen, SIGTSTP));
        IS(waited(seen, &status, 0) == seen && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        IS(waited(unseen, &status, 0) == unseen && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTSTP);
    }
    MUST(kill(seen, SIGCONT)), MUST(kill(unseen, SIGCONT));
    MUST(write(go[1], "xx", 2));
    IS(ended(seen) == 3);
    IS(ended(unseen) == 4);
    return 0;
}
