/* queue PID SIGNAL VALUE: sends a signal with a value. */
#include "pause.h"
#include <signal.h>

int main(int argc, char **argv) {
    union sigval value = {.sival_int = argc > 3 ? atoi(argv[3]) : 0};
    return argc > 3 ? sigqueue(atoi(argv[1]), atoi(argv[2]), value) != 0 : 2;
}
