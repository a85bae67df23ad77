/* path_descriptor: O_PATH of a file and of a directory. */
#include "rows.h"
#include <sys/stat.h>

int main(void) {
    struct stat stat_;
    char text[8] = {0}, link_path[32];
    int fd = MUST(open("file", O_WRONLY | O_CREAT | O_TRUNC, 0600));
    MUST(write(fd, "path", 4)), close(fd);
    mkdir("directory", 0700);
    MUST(close(MUST(open("directory/inside", O_WRONLY | O_CREAT, 0600))));
    int file = MUST(open("file", O_PATH)), directory = MUST(open("directory", O_PATH | O_DIRECTORY | O_CLOEXEC));
    journey();
    IS(read(file, text, 4) == -1 && errno == EBADF);
    IS(fstat(file, &stat_) == 0 && stat_.st_size == 4 && fcntl(file, F_GETFL) & O_PATH);
    IS(faccessat(directory, "inside", F_OK, 0) == 0);
    snprintf(link_path, sizeof link_path, "/proc/self/fd/%d", file);
    IS((fd = open(link_path, O_RDONLY)) >= 0 && read(fd, text, 8) == 4 && !strcmp(text, "path"));
    IS(fchdir(directory) == 0 && access("inside", F_OK) == 0);
    return 0;
}
