/* self: what /proc says of the process, after the move. */
#include "pause.h"
#include <dirent.h>
#include <fcntl.h>

static char text[1 << 20];
static long slurp(const char *path) {
    int fd = open(path, O_RDONLY);
    long n = 0, got;
    while (fd >= 0 && n < (long)sizeof text - 1 && (got = read(fd, text + n, sizeof text - 1 - n)) > 0)
        n += got;
    text[n] = 0;
    n = fd < 0 ? -errno : n;
    close(fd);
    return n;
}

static void line(const char *key) {
    const char *at = strstr(text, key);
    say("%.*s", at ? (int)strcspn(at, "\n") : 1, at ? at : "-");
}

int main(int argc, char **argv) {
    static int data;
    int local, own;
    char name[256], path[64];
    moment();
    sprintf(path, "/proc/%d/status", getpid());
    TRY(slurp(path) > 500);
    const char *keys[] = {"Name:", "Umask:", "State:", "TracerPid:", "Uid:", "Gid:", "Threads:",
        "SigBlk:", "SigIgn:", "SigCgt:", "CapEff:", "Groups:"};
    int found = sscanf(strstr(text, "Tgid:"), "Tgid: %d Ngid: 0 Pid: %d PPid: %d", &own, &local, &data);
    say("%d %d %d %d", found, own == getpid(), local == getpid(), data == getppid());
    for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++)
        line(keys[i]);
    TRY(slurp("/proc/self/stat") > 100);
    sscanf(text, "%d %255s %*c %d %d", &own, name, &local, &data);
    say("%d %s %d %d", own == getpid(), name, local == getppid(), data == getpgrp());
    TRY(slurp("/proc/self/cmdline"));
    say("%s|%s", text, text + strlen(text) + 1);
    TRY(slurp("/proc/self/comm"));
    say("%s", text);
    TRY(readlink("/proc/self/exe", name, sizeof name));
    say("%s", name);
    TRY(slurp("/proc/self/environ") > 0);
    TRY(slurp("/proc/self/maps") > 0);
    unsigned long from, to, heap = (unsigned long)malloc(10), stack = (unsigned long)&local;
    for (char *at = text; sscanf(at, "%lx-%lx", &from, &to) == 2; at += strcspn(at, "\n") + 1) {
        int here = heap - from < to - from ? 1 : stack - from < to - from ? 2 : (unsigned long)&data - from < to - from ? 3 : 0;
        int end = strcspn(at, "\n");
        if (here)
            say("area %d %.4s %.7s", here, strchr(at, ' ') + 1, here == 3 ? "" : at + end - 7);
    }
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    for (struct dirent *entry; (entry = readdir(dir));)
        n++;
    say("%d descriptors", n);
    TRY(slurp("/proc/self/oom_score_adj") + slurp("/proc/self/cgroup") * 0 + (slurp("/proc/self/limits") > 0));
    line("Max open files");
    TRY(slurp("/proc/self/nothing"));
    TRY(slurp("/dev/null") + (slurp("/proc/meminfo") > 0) + (slurp("/proc/self/task") < 0));
    int random = open("/dev/urandom", O_RDONLY);
    TRY(read(random, text, 3 << 18));
    return 0;
}
