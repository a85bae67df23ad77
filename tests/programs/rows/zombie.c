/* zombie: children that have ended and were not waited for; one by a signal. */
#include "rows.h"

int main(void) {
    siginfo_t info = {0};
    struct rusage used;
    int status, one = CHILD(42), two = CHILD({ raise(SIGKILL); 0; });
    MUST(waitid(P_PID, one, &info, WEXITED | WNOWAIT));
    MUST(waitid(P_PID, two, &info, WEXITED | WNOWAIT));
    journey();
    MUST(waitid(P_PID, one, &info, WEXITED | WNOWAIT));
    IS(info.si_code == CLD_EXITED && info.si_status == 42 && info.si_pid == one);
    IS(kill(one, 0) == 0);
    IS(wait4(one, &status, 0, &used) == one && WEXITSTATUS(status) == 42);
    IS(waitpid(two, &status, 0) == two && WTERMSIG(status) == SIGKILL);
    IS(kill(one, 0) == -1 && errno == ESRCH);
    return 0;
}
