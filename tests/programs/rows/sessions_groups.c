/* sessions_groups: a child that leads a session with a group of its own in it, and one in a group of the first. */
#include "rows.h"

int main(void) {
    int go[2], known[2], others[3];
    char byte;
    MUST(pipe(go)), MUST(pipe(known));
    int leader = CHILD({
        MUST(setsid());
        int member = CHILD({
            MUST(setpgid(0, 0));
            MUST(write(known[1], &(int){getpid()}, 4));
            close(go[1]);
            MUST(read(go[0], &byte, 1) + 1);
            getsid(0) == getppid() && getpgrp() == getpid() ? 5 : 1;
        });
        MUST(write(known[1], &(int){getpid()}, 4));
        close(go[1]);
        MUST(read(go[0], &byte, 1) + 1);
        getsid(0) == getpid() && getpgrp() == getpid() ? ended(member) : 2;
    });
    int grouped = CHILD({
        MUST(setpgid(0, 0));
        MUST(write(known[1], &(int){getpid()}, 4));
        close(go[1]);
        MUST(read(go[0], &byte, 1) + 1);
        getsid(0) == getsid(getppid()) && getpgrp() == getpid() ? 6 : 1;
    });
    for (int i = 0; i < 3; i++)
        MUST(read(known[0], &others[i], 4)), wait_blocked(others[i], SYS_read);
    int member = others[0] + others[1] + others[2] - leader - grouped;
    journey();
    IS(getsid(leader) == leader && getpgid(leader) == leader);
    IS(getsid(member) == leader && getpgid(member) == member);
    IS(getsid(grouped) == getsid(0) && getpgid(grouped) == grouped);
    IS(setpgid(leader, 0) == -1 && errno == EPERM);
    close(go[1]);
    IS(ended(leader) == 5);
    IS(ended(grouped) == 6);
    return 0;
}
