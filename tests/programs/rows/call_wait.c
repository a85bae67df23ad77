/* call_wait: wait4 for a child and waitid for any, in progress in two processes. */
#include "rows.h"

int main(void) {
    int go[2], children[2];
    char byte;
    MUST(pipe(go));
    for (int i = 0; i < 2; i++)
        children[i] = CHILD({
            siginfo_t info = {0};
            int status = 0, child = CHILD({ close(go[1]); MUST(read(go[0], &byte, 1) + 1); 41; });
            close(go[1]);
            if (i)
                MUST(waitid(P_ALL, 0, &info, WEXITED));
            i ? (info.si_pid == child && info.si_code == CLD_EXITED && info.si_status == 41 ? 51 : 1)
              : (wait4(child, &status, 0, 0) == child && WEXITSTATUS(status) == 41 ? 50 : 1);
        });
    wait_blocked(children[0], SYS_wait4);
    journey_while(children[1], SYS_waitid);
    close(go[1]);
    IS(ended(children[0]) == 50);
    IS(ended(children[1]) == 51);
    return 0;
}
