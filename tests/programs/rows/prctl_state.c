/* prctl_state: what prctl(2) sets: name, dumpable, death signal, no_new_privs, THP, timer slack, subreaper, keepcaps, machine checks. */
#include "rows.h"

static int get(int option) {
    int value = -1;
    return prctl(option, &value, 0, 0, 0) == 0 ? value : -1;
}

int main(void) {
    char name[16] = {0};
    MUST(prctl(PR_SET_NAME, "a row's name")), MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2)), MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)), MUST(prctl(PR_SET_TIMERSLACK, 123456)), MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
    MUST(prctl(PR_SET_KEEPCAPS, 1));
    journey();
    IS(prctl(PR_GET_NAME, name) == 0 && !strcmp(name, "a row's name"));
    IS(get(PR_GET_PDEATHSIG) == SIGUSR2);
    IS(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    IS(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
    IS(prctl(PR_GET_TIMERSLACK) == 123456);
    IS(get(PR_GET_CHILD_SUBREAPER) == 1);
    IS(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY);
    IS(prctl(PR_GET_KEEPCAPS) == 1);
    IS(prctl(PR_GET_DUMPABLE) == 1);
    return 0;
}
