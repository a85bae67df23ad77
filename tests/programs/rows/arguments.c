/* arguments: argv and environment as /proc shows them, also after the program has written over them; the executable. */
#include "rows.h"

extern char **environ;

int main(int argc, char **argv) {
    char before[300], after[300], exe[300] = {0}, exe_after[300] = {0};
    int end = strlen(argv[0]);
    argv[0][end - 1] = 'X';
    snprintf(environ[0], strlen(environ[0]) + 1, "ROW=written over");
    slurp("/proc/self/cmdline", before, sizeof before);
    MUST(readlink("/proc/self/exe", exe, sizeof exe - 1));
    journey();
    slurp("/proc/self/cmdline", after, sizeof after);
    IS(!strcmp(before, after) && after[end - 1] == 'X');
    slurp("/proc/self/environ", after, sizeof after);
    IS(!strncmp(after, environ[0], strlen(environ[0])));
    IS(readlink("/proc/self/exe", exe_after, sizeof exe_after - 1) > 0 && !strcmp(exe, exe_after));
    slurp("/proc/self/stat", before, sizeof before);
    IS(strstr(before, "(arguments)"));
    argv[0][end - 1] = 'Y';
    slurp("/proc/self/cmdline", after, sizeof after);
    IS(after[end - 1] == 'Y');
    return 0;
}
