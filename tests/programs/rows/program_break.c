/* program_break: the break stays where it was, and grows and shrinks from there. */
#include "rows.h"

int main(void) {
    say("the C library's heap is there");
    char *start_ = sbrk(3 << 20);
    strcpy(start_ + (2 << 20), "in the heap");
    char *before = sbrk(0);
    journey();
    IS(sbrk(0) == before);
    IS(!strcmp(start_ + (2 << 20), "in the heap"));
    IS(sbrk(1 << 20) == before);
    IS(before[0] == 0 && before[(1 << 20) - 1] == 0);
    before[5] = 5;
    IS(brk(start_) == 0 && sbrk(0) == start_);
    IS(sbrk(4 << 20) == start_ && start_[2 << 20] == 0);
    return 0;
}
