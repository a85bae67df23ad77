/* capabilities: all five sets, in a thread that has given some away; what was given away stays so. */
#include "rows.h"
#include <linux/capability.h>
#include <sys/stat.h>

static struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
static struct __user_cap_data_struct sets[2], now[2];

int main(void) {
    MUST(syscall(SYS_capget, &header, sets));
    if (getuid() == 0) {
        MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME));
        sets[0].effective &= ~(1 << CAP_CHOWN), sets[0].permitted &= ~(1 << CAP_KILL), sets[0].effective &= ~(1 << CAP_KILL);
        sets[0].inheritable = 1 << CAP_FOWNER | 1 << CAP_SETUID;
        MUST(syscall(SYS_capset, &header, sets));
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_FOWNER, 0, 0));
    }
    int root = getuid() == 0;
    journey();
    IS(syscall(SYS_capget, &header, now) == 0 && !memcmp(sets, now, sizeof now));
    IS(!root || prctl(PR_CAPBSET_READ, CAP_SYS_TIME) == 0);
    IS(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_FOWNER, 0, 0) == root);
    close(MUST(open("file", O_CREAT | O_WRONLY, 0600)));
    IS(chown("file", 12, 34) == -1 && (errno == EPERM || errno == EINVAL));
    sets[0].effective |= 1 << CAP_CHOWN;
    IS((syscall(SYS_capset, &header, sets) == 0) == root);
    sets[0].permitted |= 1 << CAP_KILL;
    IS(syscall(SYS_capset, &header, sets) == -1 && errno == EPERM);
    return 0;
}
