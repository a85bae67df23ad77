/* names: a directory listing that the move cuts in two, and what one does with names. */
#include "pause.h"
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

int main(void) {
    char text[PATH_MAX] = {0};
    struct stat s;
    struct statx x;
    struct statvfs v;
    mkdir("many", 0755);
    for (int i = 0; i < 3000; i++)
        sprintf(text, "many/file-with-a-name-%d", i), close(creat(text, 0600));
    DIR *many = opendir("many");
    int seen = 0;
    for (; seen < 40 && readdir(many); seen++)
        ;
    long place = telldir(many);
    moment();
    while (readdir(many))
        seen++;
    say("seen %d", seen);
    seekdir(many, place);
    for (seen = 40; readdir(many);)
        seen++;
    rewinddir(many);
    say("seen %d, first %s", seen, readdir(many)->d_name);
    TRY(umask(027));
    TRY(mkdir("d", 0777));
    TRY(stat("d", &s));
    TRY(s.st_mode);
    TRY(symlink("d", "s") + link("many/file-with-a-name-0", "d/hard"));
    TRY(fstatat(AT_FDCWD, "s", &s, AT_SYMLINK_NOFOLLOW));
    TRY(s.st_size);
    TRY(statx(AT_FDCWD, "d/hard", 0, STATX_ALL, &x));
    say("  %d links, size %lld, mode %o, mask %x", x.stx_nlink, x.stx_size, x.stx_mode, x.stx_mask & STATX_BASIC_STATS);
    TRY(statx(dirfd(many), "", AT_EMPTY_PATH, STATX_TYPE, &x));
    TRY(readlink("s", text, 0) + readlink("s", text, 3));
    TRY(readlink("d", text, 3));
    TRY(access("d/hard", X_OK) + faccessat(AT_FDCWD, "s/hard", R_OK, 0));
    TRY(renameat2(AT_FDCWD, "d/hard", AT_FDCWD, "s", RENAME_NOREPLACE));
    TRY(renameat2(AT_FDCWD, "d", AT_FDCWD, "s", RENAME_EXCHANGE));
    TRY(chdir("s"));
    say("  cwd %s", strrchr(getcwd(text, sizeof text), '/'));
    TRY(getcwd(text, 2) ? 1 : -1);
    TRY(fchdir(dirfd(many)));
    say("  cwd %s", strrchr(getcwd(text, sizeof text), '/'));
    TRY(rmdir("../many") + unlink("../many"));
    struct timespec times[2] = {{1000, 5}, {2000, 7}};
    TRY(utimensat(AT_FDCWD, "../s/hard", times, 0));
    TRY(stat("../s/hard", &s));
    say("  atime %ld mtime %ld.%ld", s.st_atim.tv_sec, s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
    TRY(setxattr("../s/hard", "user.one", "value", 5, 0) + setxattr("../s/hard", "user.two", 0, 0, XATTR_CREATE));
    TRY(setxattr("../s/hard", "user.two", "", 0, XATTR_CREATE));
    TRY(getxattr("../s/hard", "user.one", text, 100) + getxattr("../s/hard", "user.one", 0, 0));
    TRY(getxattr("../s/hard", "user.one", text, 2));
    TRY(listxattr("../s/hard", text, sizeof text));
    TRY(removexattr("../s/hard", "user.none"));
    TRY(statvfs("/", &v) + truncate("../s/hard", -1));
    return 0;
}
