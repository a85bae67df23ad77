/* credentials: real, effective, saved and file-system ids, supplementary groups, as far as the user may have others. */
#include "rows.h"
#include <grp.h>
#include <sys/fsuid.h>
#include <sys/stat.h>

int main(void) {
    gid_t groups[70000], many[3] = {20, 30, 40};
    uid_t uid[3], uid_[3];
    gid_t gid[3], gid_[3];
    struct stat stat_;
    if (getuid() == 0) {
        MUST(setgroups(3, many)), MUST(setresgid(5, 6, 7));
        MUST(prctl(PR_SET_KEEPCAPS, 1)), MUST(setresuid(0, 1000, 0));
        /* Who has changed his ids may not read all of /proc/self otherwise. */
        MUST(prctl(PR_SET_DUMPABLE, 1));
    }
    MUST(getresuid(&uid[0], &uid[1], &uid[2])), MUST(getresgid(&gid[0], &gid[1], &gid[2]));
    int n = getgroups(70000, groups);
    gid_t *now = groups + n;
    journey();
    MUST(getresuid(&uid_[0], &uid_[1], &uid_[2])), MUST(getresgid(&gid_[0], &gid_[1], &gid_[2]));
    IS(!memcmp(uid, uid_, sizeof uid) && !memcmp(gid, gid_, sizeof gid));
    IS(getgroups(60000, now) == n && !memcmp(groups, now, n * sizeof *groups));
    IS(setfsuid(-1) == uid[1] && setfsgid(-1) == gid[1]);
    if (uid[0] == 0)
        IS(seteuid(0) == 0 && geteuid() == 0);
    else
        say("seteuid(0) == 0 && geteuid() == 0: yes");
    int fd = open("made", O_WRONLY | O_CREAT, 0600);
    IS(fstat(fd, &stat_) == 0 && stat_.st_uid == geteuid() && stat_.st_gid == gid[1]);
    return 0;
}
