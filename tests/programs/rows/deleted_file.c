/* deleted_file: open files without a name, one of them never had any; read, written and grown. */
#include "rows.h"
#include <sys/stat.h>

int main(void) {
    struct stat stat_;
    char text[32] = {0};
    int gone = MUST(open("gone", O_RDWR | O_CREAT | O_TRUNC, 0640)), never = MUST(open(".", O_RDWR | O_TMPFILE, 0600));
    MUST(write(gone, "deleted contents", 16)), MUST(unlink("gone")), MUST(write(never, "temporary", 9));
    int again = MUST(open("gone", O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(write(again, "another", 7));
    MUST(lseek(gone, 8, SEEK_SET));
    int twin = MUST(dup(gone));
    journey();
    IS(read(twin, text, 8) == 8 && !strcmp(text, "contents"));
    IS(fstat(gone, &stat_) == 0 && stat_.st_nlink == 0 && stat_.st_size == 16 && (stat_.st_mode & 0777) == 0640);
    IS(pread(never, text, 16, 0) == 9 && !strncmp(text, "temporary", 9));
    IS(write(gone, " and more", 9) == 9 && lseek(twin, 0, SEEK_CUR) == 25);
    memset(text, 0, sizeof text);
    IS(pread(again, text, 16, 0) == 7 && !strcmp(text, "another"));
    IS(unlink("gone") == 0);
    return 0;
}
