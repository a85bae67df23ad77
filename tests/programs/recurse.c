/* recurse DEPTH: a deep recursion, 16 KiB of stack a level, that prints on the way down and up and checks its frames. */
#include "pause.h"

static unsigned long down(int level, int depth) {
    volatile unsigned char frame[16 << 10];
    for (unsigned i = 0; i < sizeof frame; i++)
        frame[i] = (unsigned char)(level * 31 + i);
    if (level % 10 == 0)
        say("down %d", level);
    pause_ms(6);
    unsigned long sum = level < depth ? down(level + 1, depth) : 0;
    for (unsigned i = 0; i < sizeof frame; i++)
        if (frame[i] != (unsigned char)(level * 31 + i))
            say("level %d: byte %u of the frame is wrong", level, i);
    if (level % 10 == 0)
        say("up %d: %lu", level, sum);
    pause_ms(6);
    return sum * 3 + (unsigned long)level;
}

int main(int argc, char **argv) {
    say("%lu", down(1, argc > 1 ? atoi(argv[1]) : 400));
    return 0;
}
