/* eventfd: counters, one of them a semaphore, one shared with a child that waits for it. */
#include "rows.h"
#include <sys/eventfd.h>

int main(void) {
    unsigned long value = 0, five = 5;
    int plain = MUST(eventfd(7, EFD_CLOEXEC)), semaphore = MUST(eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK)), shared = MUST(eventfd(0, 0));
    int large = MUST(eventfd(0, EFD_NONBLOCK));
    MUST(write(large, &(unsigned long){-2UL}, 8));
    int child = CHILD({ read(shared, &value, 8) == 8 && value == 5 ? 34 : 1; });
    journey_while(child, SYS_read);
    IS(read(plain, &value, 8) == 8 && value == 7);
    IS(read(semaphore, &value, 8) == 8 && value == 1 && read(semaphore, &value, 8) == 8);
    IS(read(semaphore, &value, 8) == -1 && errno == EAGAIN);
    IS(write(large, &five, 8) == -1 && errno == EAGAIN);
    IS(read(large, &value, 8) == 8 && value == -2UL);
    MUST(write(shared, &five, 8));
    IS(ended(child) == 34);
    return 0;
}
