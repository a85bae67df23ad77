/* path_of_link: O_PATH of a symbolic link itself. */
#include "rows.h"
#include <sys/stat.h>

int main(void) {
    struct stat stat_;
    char text[8] = {0};
    unlink("link");
    MUST(symlink("file", "link"));
    int fd = MUST(open("link", O_PATH | O_NOFOLLOW));
    journey();
    IS(fstat(fd, &stat_) == 0 && S_ISLNK(stat_.st_mode));
    IS(readlinkat(fd, "", text, sizeof text) == 4 && !strcmp(text, "file"));
    return 0;
}
