/* terminal: prints the window size at every SIGWINCH and every key read in raw mode, with its colours; q ends it. */
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include "pause.h"

static volatile sig_atomic_t resized = 1;
static void on_winch(int signal) { (void)signal, resized = 1; }

int main(void) {
    struct termios old, raw;
    struct sigaction action = {.sa_handler = on_winch};
    if (tcgetattr(0, &old) || !isatty(1) || !isatty(2))
        return 2;
    raw = old;
    cfmakeraw(&raw);
    tcsetattr(0, TCSANOW, &raw);
    sigaction(SIGWINCH, &action, 0);
    char key = 0;
    while (key != 'q') {
        struct winsize size;
        if (resized && !ioctl(0, TIOCGWINSZ, &size)) {
            resized = 0;
            printf("\033[32m%d x %d\033[0m\r\n", size.ws_col, size.ws_row);
        }
        fflush(stdout);
        if (read(0, &key, 1) == 1)
            printf("key %d\r\n", key);
        else if (errno != EINTR)
            return 3;
    }
    tcsetattr(0, TCSANOW, &old);
    printf("foreground %s\n", tcgetpgrp(0) == getpgrp() ? "yes" : "no");
    return 0;
}
