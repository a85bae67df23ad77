/* watched: a child that counts; its parent tells when it stops, goes on and ends. */
#include <signal.h>
#include <sys/wait.h>
#include "pause.h"

int main(void) {
    int status;
    pid_t pid = fork();
    for (int i = 1; pid == 0; i++) {
        say("%d", i);
        pause_ms(50);
    }
    while (waitpid(pid, &status, WUNTRACED | WCONTINUED) == pid) {
        if (WIFSTOPPED(status))
            say("stopped by %d", WSTOPSIG(status));
        else if (WIFCONTINUED(status))
            say("continued");
        else
            say("ended by %d", WTERMSIG(status));
    }
    return 0;
}
