/* threads: a second thread that sleeps; the first one counts to 30. */
#include <pthread.h>
#include "pause.h"

static void *sleeper(void *none) {
    for (;;)
        pause_ms(1000);
    return none;
}

int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, sleeper, 0);
    for (int i = 1; i <= 30; i++) {
        say("%d", i);
        pause_ms(50);
    }
    return 0;
}
