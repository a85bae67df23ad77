/* hundred_processes: 99 children wait at one pipe and say who they are when it is closed. */
#include "rows.h"

int main(void) {
    enum { MANY = 99 };
    int go[2], children[MANY], right = 0, parent = getpid();
    char byte;
    MUST(pipe(go));
    for (int i = 0; i < MANY; i++)
        children[i] = CHILD({
            int self = getpid();
            close(go[1]);
            MUST(read(go[0], &byte, 1) + 1);
            self == getpid() && getppid() == parent ? i : 255;
        });
    for (int i = 0; i < MANY; i++)
        wait_blocked(children[i], SYS_read);
    journey();
    close(go[1]);
    for (int i = 0; i < MANY; i++)
        right += ended(children[i]) == i;
    IS(right == MANY);
    return 0;
}
