/* child: a child process that sleeps; the parent counts to 30, then ends it. */
#include <signal.h>
#include <sys/wait.h>
#include "pause.h"

int main(void) {
    pid_t pid = fork();
    for (; pid == 0;)
        pause_ms(1000);
    for (int i = 1; i <= 30; i++) {
        say("%d", i);
        pause_ms(50);
    }
    kill(pid, SIGKILL);
    return waitpid(pid, 0, 0) == pid ? 0 : 1;
}
