/* files DIR: says ready, waits for a line on stdin, then tries what one can do with files and prints every result. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include "pause.h"

static int named(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static void list(const char *dir) {
    struct dirent **names;
    int n = scandir(dir, &names, named, alphasort);
    for (int i = 0; i < n; i++)
        say("  entry %s", names[i]->d_name);
}

int main(int argc, char **argv) {
    char go[16], text[64] = {0};
    int held = open("held", O_RDWR | O_CREAT | O_TRUNC, 0640);
    if (argc < 2 || held < 0 || write(held, "0123456789", 10) != 10)
        return 2;
    say("ready");
    if (!fgets(go, sizeof go, stdin))
        return 3;
    TRY(lseek(held, 4, SEEK_SET));
    TRY(read(held, text, 3));
    say("  %s", text);
    TRY(pwrite(held, "ABC", 3, 8));
    TRY(ftruncate(held, 9));
    TRY(lseek(held, 0, SEEK_END));
    struct stat stat_;
    TRY(fstat(held, &stat_));
    say("  size %ld mode %o", (long)stat_.st_size, stat_.st_mode);
    TRY(mkdir(argv[1], 0750));
    TRY(mkdir(argv[1], 0750));
    TRY(chdir(argv[1]));
    int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    TRY(write(log, "one\n", 4));
    TRY(lseek(log, 0, SEEK_SET));
    TRY(write(log, "two\n", 4));
    TRY(close(log));
    TRY(write(log, "x", 1));
    TRY(rename("log", "log.1"));
    TRY(symlink("log.1", "link"));
    TRY(readlink("link", text, sizeof text));
    TRY(link("log.1", "hard"));
    TRY(stat("link", &stat_));
    say("  size %ld links %ld", (long)stat_.st_size, (long)stat_.st_nlink);
    list(".");
    TRY(truncate("hard", 3));
    TRY(unlink("hard"));
    TRY(unlink("hard"));
    TRY(open("log", O_RDONLY));
    TRY(access("log.1", W_OK));
    TRY(chmod("log.1", 0600));
    TRY(unlink("link"));
    list(".");
    TRY(rmdir("."));
    TRY(open("/proc/nothing", O_RDONLY));
    TRY(open(".", O_WRONLY));
    TRY(pread(held, text, sizeof text, 100));
    say("  cwd %s", getcwd(text, sizeof text) ? strrchr(text, '/') : "?");
    return 0;
}
