/* controlling_terminal: a child group in the foreground of the terminal, and one in the background. */
#include "rows.h"
#include <sys/ioctl.h>
#include <termios.h>

int main(void) {
    int go[2], self = getpgrp();
    struct winsize size;
    struct termios modes, now;
    char byte;
    signal(SIGTTOU, SIG_IGN);
    MUST(pipe(go));
    int child = CHILD({ setpgid(0, 0); close(go[1]); MUST(read(go[0], &byte, 1) + 1); tcgetpgrp(0) == getpgrp() ? 7 : 1; });
    setpgid(child, child);
    MUST(tcgetattr(0, &modes));
    modes.c_lflag &= ~ECHO;
    MUST(tcsetattr(0, TCSANOW, &modes));
    IS(tcgetpgrp(0) == self && tcgetsid(0) == getsid(0));
    journey_while(child, SYS_read);
    IS(tcgetpgrp(0) == self && tcgetsid(0) == getsid(0));
    IS(tcgetattr(0, &now) == 0 && now.c_lflag == modes.c_lflag);
    IS(ioctl(0, TIOCGWINSZ, &size) == 0 && size.ws_col == 80 && size.ws_row == 24);
    int tty = open("/dev/tty", O_RDWR);
    IS(tty >= 0 && isatty(tty));
    IS(tcsetpgrp(0, child) == 0);
    IS(tcgetpgrp(tty) == child);
    close(go[1]);
    IS(ended(child) == 7);
    IS(tcsetpgrp(0, self) == 0);
    return 0;
}
