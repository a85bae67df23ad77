/* not_dumpable: a process that does not let others look at it (PR_SET_DUMPABLE 0). */
#include "rows.h"

int main(void) {
    say("begin");
    MUST(prctl(PR_SET_DUMPABLE, 0));
    moment();
    IS(prctl(PR_GET_DUMPABLE) == 0);
    return 0;
}
