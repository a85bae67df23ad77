/* posix_spawn: a spawned child in a group of its own runs on; another one is spawned afterwards. */
#include "rows.h"
#include <spawn.h>

extern char **environ;

int main(int argc, char **argv) {
    int go[2], children[2];
    char byte, number[8];
    if (argc > 1)
        return read(atoi(argv[1]), &byte, 1) == 1 && getpgrp() == getpid() && getenv("HOME") ? byte : 1;
    MUST(pipe(go));
    snprintf(number, sizeof number, "%d", go[0]);
    char *arguments[] = {"row", number, 0};
    posix_spawnattr_t group;
    posix_spawnattr_init(&group);
    posix_spawnattr_setflags(&group, POSIX_SPAWN_SETPGROUP);
    IS(posix_spawn(&children[0], "/proc/self/exe", 0, &group, arguments, environ) == 0);
    journey_while(children[0], SYS_read);
    MUST(write(go[1], "*", 1));
    IS(ended(children[0]) == '*');
    IS(posix_spawn(&children[1], "/proc/self/exe", 0, &group, arguments, environ) == 0);
    MUST(write(go[1], "+", 1));
    IS(ended(children[1]) == '+');
    return 0;
}
