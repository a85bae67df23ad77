/* call_read: a read from a pipe is in progress; a handler that is installed without SA_RESTART must not be needed. */
#include "rows.h"

int main(void) {
    char text[8] = {0};
    journey();
    IS(read(0, text, sizeof text) == 0);
    return 0;
}
