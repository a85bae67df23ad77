/* host_name: name of the host and of the kernel, as the program has seen them at home. */
#include "rows.h"
#include <sys/utsname.h>

int main(void) {
    struct utsname before, after;
    char name[100], again[100];
    MUST(uname(&before)), MUST(gethostname(name, sizeof name));
    journey();
    IS(uname(&after) == 0 && !memcmp(&before, &after, sizeof before));
    IS(gethostname(again, sizeof again) == 0 && !strcmp(name, again));
    slurp("/proc/sys/kernel/hostname", again, sizeof again);
    IS(!strncmp(name, again, strlen(name)));
    return 0;
}
