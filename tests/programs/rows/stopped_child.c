/* stopped_child: a stopped process stays stopped, goes on when told, and its parent sees both. */
#include "rows.h"

int main(void) {
    int status, go[2];
    char state, text[300], path[40], byte;
    MUST(pipe(go));
    int seen = CHILD({ raise(SIGSTOP); MUST(read(go[0], &byte, 1)); 3; });
    int unseen = CHILD({ raise(SIGSTOP); MUST(read(go[0], &byte, 1)); 4; });
    IS(waitpid(seen, &status, WUNTRACED) == seen && WSTOPSIG(status) == SIGSTOP);
    siginfo_t info;
    MUST(waitid(P_PID, unseen, &info, WSTOPPED | WNOWAIT));
    journey();
    snprintf(path, sizeof path, "/proc/%d/stat", seen);
    slurp(path, text, sizeof text);
    IS(sscanf(strrchr(text, ')'), ") %c", &state) == 1 && state == 'T');
    IS(waitpid(seen, &status, WUNTRACED | WNOHANG) == 0);
    IS(waitpid(unseen, &status, WUNTRACED | WNOHANG) == unseen && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    MUST(kill(seen, SIGCONT)), MUST(kill(unseen, SIGCONT));
    IS(waitpid(seen, &status, WCONTINUED) == seen && WIFCONTINUED(status));
    MUST(write(go[1], "xx", 2));
    IS(ended(seen) == 3);
    IS(ended(unseen) == 4);
    return 0;
}
