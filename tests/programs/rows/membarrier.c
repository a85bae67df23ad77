/* membarrier: registrations, without which the expedited commands are refused. */
#include "rows.h"
#include <linux/membarrier.h>

static int barrier(int command) { return syscall(SYS_membarrier, command, 0, 0); }

int main(void) {
    MUST(barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)), MUST(barrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED));
    IS(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) == -1 && errno == EPERM);
    int registered = barrier(512) /* MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3 */;
    journey();
    IS(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0);
    IS(barrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED) == 0);
    IS(barrier(512) == registered);
    IS(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) == -1 && errno == EPERM);
    return 0;
}
