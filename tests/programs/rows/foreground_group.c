/* foreground_group: a shell's job control: its own group and those of its jobs, one in the background, one stopped, take
   turns at the terminal, in the modes that it has set. */
#include "rows.h"
#include <sys/ioctl.h>
#include <termios.h>

static int job(int stop, int from) {
    char byte;
    int child = CHILD({ setpgid(0, 0); if (stop) raise(SIGTSTP); MUST(read(from, &byte, 1)); tcgetpgrp(0) == getpgrp() ? 7 : 1; });
    setpgid(child, child);
    return child;
}

int main(void) {
    int go[2], status;
    struct termios modes, now;
    signal(SIGTTOU, SIG_IGN);
    if (getpgrp() != getpid()) /* the plain run begins its session */
        MUST(setpgid(0, 0));
    MUST(tcsetpgrp(0, getpid()));
    MUST(pipe(go));
    int runs = job(0, go[0]), stopped = job(1, go[0]);
    IS(waitpid(stopped, &status, WUNTRACED) == stopped && WSTOPSIG(status) == SIGTSTP);
    MUST(tcgetattr(0, &modes));
    modes.c_lflag &= ~(ECHOCTL | ICANON), modes.c_iflag &= ~ICRNL;
    modes.c_cc[VMIN] = 3, modes.c_cc[VTIME] = 2, modes.c_cc[VINTR] = 7;
    MUST(tcsetattr(0, TCSANOW, &modes));
    IS(tcgetpgrp(0) == getpid());
    journey();
    IS(tcgetpgrp(0) == getpid() && getpgrp() == getpid());
    IS(tcgetattr(0, &now) == 0 && !memcmp(&now, &modes, offsetof(struct termios, c_line)) && !memcmp(now.c_cc, modes.c_cc, 19));
    IS(getpgid(runs) == runs && getpgid(stopped) == stopped);
    for (int i = 0; i < 2; i++) {
        int child = i ? stopped : runs;
        IS(tcsetpgrp(0, child) == 0 && tcgetpgrp(0) == child);
        MUST(kill(-child, SIGCONT));
        MUST(write(go[1], "x", 1));
        while (waitpid(child, &status, 0) == -1 && errno == EINTR)
            ;
        IS(WEXITSTATUS(status) == 7);
        IS(tcsetpgrp(0, getpid()) == 0);
    }
    return 0;
}
