/* itself: a program that does nothing but look at itself. */
#include "rows.h"

int main(void) {
    journey();
    return 0;
}
