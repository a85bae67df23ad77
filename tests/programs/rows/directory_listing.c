/* directory_listing: a directory in the middle of its listing; no name comes twice and none is missing. */
#include "rows.h"
#include <sys/stat.h>

int main(void) {
    enum { MANY = 2000 };
    static char seen[MANY];
    char name[32];
    int n = 0, twice = 0;
    mkdir("many", 0700);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "many/entry-%d", i);
        MUST(close(MUST(open(name, O_WRONLY | O_CREAT, 0600))));
    }
    DIR *dir = opendir("many");
    for (struct dirent *entry; n < 700 && (entry = readdir(dir)); n++)
        if (!strncmp(entry->d_name, "entry-", 6))
            twice += seen[atoi(entry->d_name + 6)]++;
    journey();
    for (struct dirent *entry; (entry = readdir(dir)); n++)
        if (!strncmp(entry->d_name, "entry-", 6))
            twice += seen[atoi(entry->d_name + 6)]++;
    IS(n == MANY + 2 && twice == 0);
    rewinddir(dir);
    for (n = 0; readdir(dir); n++)
        ;
    IS(n == MANY + 2);
    return 0;
}
