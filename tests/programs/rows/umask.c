/* umask: of the process, and of a child; and the working directory of both. */
#include "rows.h"
#include <sys/stat.h>

int main(void) {
    struct stat stat_;
    char path[PATH_MAX], byte;
    int go[2];
    mkdir("here", 0700), mkdir("there", 0700), MUST(pipe(go));
    MUST(chdir("here"));
    umask(027);
    int child = CHILD({ umask(0); MUST(chdir("../there")); MUST(read(go[0], &byte, 1)); umask(0) == 0 && access("../there", F_OK) == 0 &&
        getcwd(path, sizeof path) && !strcmp(strrchr(path, '/'), "/there") ? 56 : 1; });
    journey_while(child, SYS_read);
    int fd = open("made", O_CREAT | O_RDWR, 0777);
    IS(fstat(fd, &stat_) == 0 && (stat_.st_mode & 0777) == 0750);
    IS(getcwd(path, sizeof path) && !strcmp(strrchr(path, '/'), "/here"));
    IS(access("../here/made", F_OK) == 0);
    MUST(write(go[1], "x", 1));
    IS(ended(child) == 56);
    IS(umask(0) == 027);
    return 0;
}
