/* renamed_file: an open file that has another name by now, and one that another file was renamed over. */
#include "rows.h"

int main(void) {
    char text[16] = {0};
    int renamed = MUST(open("first", O_RDWR | O_CREAT | O_TRUNC, 0600)), covered = MUST(open("third", O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(write(renamed, "renamed", 7)), MUST(write(covered, "covered", 7));
    MUST(rename("first", "second"));
    int other = MUST(open("fourth", O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(write(other, "fourth", 6)), MUST(rename("fourth", "third"));
    journey();
    IS(pread(renamed, text, 15, 0) == 7 && !strcmp(text, "renamed"));
    IS(pread(covered, text, 15, 0) == 7 && !strcmp(text, "covered"));
    IS(write(renamed, " again", 6) == 6);
    int second = open("second", O_RDONLY), third = open("third", O_RDONLY);
    IS(read(second, text, 15) == 13 && !strcmp(text, "renamed again"));
    IS(read(third, text, 15) == 6 && !strncmp(text, "fourth", 6));
    IS(access("first", F_OK) == -1 && access("fourth", F_OK) == -1);
    return 0;
}
