/* fork_tree: child and grandchild, joined by pipes, pass a number down and up again. */
#include "rows.h"

int main(void) {
    int down[2][2], up[2][2], number = 1, self = getpid();
    for (int i = 0; i < 2; i++)
        MUST(pipe(down[i])), MUST(pipe(up[i]));
    int child = CHILD({
        int parent = getpid(), grandchild = CHILD({
            int n, right = getppid() == parent && getsid(0) == getsid(self);
            MUST(read(down[1][0], &n, sizeof n));
            n = n * 10 + 3 + 5 * !(right && getppid() == parent);
            MUST(write(up[1][1], &n, sizeof n));
            n;
        });
        int n;
        MUST(read(down[0][0], &n, sizeof n));
        n = n * 10 + 2 + 5 * (getppid() != self);
        MUST(write(down[1][1], &n, sizeof n));
        MUST(read(up[1][0], &n, sizeof n));
        n = n * 10 + 2;
        MUST(write(up[0][1], &n, sizeof n));
        ended(grandchild);
    });
    journey_while(child, SYS_read);
    MUST(write(down[0][1], &number, sizeof number));
    MUST(read(up[0][0], &number, sizeof number));
    IS(number == 1232);
    IS(ended(child) == 123);
    IS(waitpid(-1, 0, 0) == -1 && errno == ECHILD);
    return 0;
}
