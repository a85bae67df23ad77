/* subreaper: an orphaned grandchild has become ours, and another one becomes it later. */
#include "rows.h"

int main(void) {
    int go[2], tell[2], orphan, late, parent = getpid();
    char byte;
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    MUST(pipe(go)), MUST(pipe(tell));
    int child = CHILD({
        int grandchild = CHILD({ close(go[1]); MUST(read(go[0], &byte, 1) + 1); getppid() == parent ? 8 : 1; });
        MUST(write(tell[1], &grandchild, 4));
        0;
    });
    MUST(read(tell[0], &orphan, 4));
    IS(ended(child) == 0);
    child = CHILD({
        int grandchild = CHILD({ close(go[1]); MUST(read(go[0], &byte, 1) + 1); 9; });
        MUST(write(tell[1], &grandchild, 4));
        close(go[1]);
        MUST(read(go[0], &byte, 1) + 1);
        0;
    });
    MUST(read(tell[0], &late, 4));
    wait_blocked(orphan, SYS_read), wait_blocked(late, SYS_read);
    journey_while(child, SYS_read);
    int is = 0;
    IS(prctl(PR_GET_CHILD_SUBREAPER, &is) == 0 && is == 1);
    close(go[1]);
    IS(ended(orphan) == 8);
    IS(ended(child) == 0);
    IS(ended(late) == 9);
    return 0;
}
