/* pipe_blocked: a child waits for something to read, another one for room to write the rest of what it has. */
#include "rows.h"

int main(void) {
    enum { MANY = 200000 };
    static char text[MANY + 1];
    int empty[2], full[2], n = 0, got, sum = 0;
    MUST(pipe(empty)), MUST(pipe(full));
    int reader = CHILD({ close(empty[1]); read(empty[0], text, 100) == 5 && !strcmp(text, "bytes") ? 30 : 1; });
    int writer = CHILD({
        close(full[0]);
        for (int i = 0; i < MANY; i++)
            text[i] = i % 101;
        /* A stop and a continue cut it short too: pipe(7). */
        while (n < MANY && (got = write(full[1], text + n, MANY - n)) > 0)
            n += got;
        n == MANY ? 31 : 1;
    });
    close(full[1]);
    wait_blocked(reader, SYS_read);
    journey_while(writer, SYS_write);
    MUST(write(empty[1], "bytes", 5));
    IS(ended(reader) == 30);
    while ((got = read(full[0], text + n, MANY + 1 - n)) > 0)
        n += got;
    for (int i = 0; i < MANY; i++)
        sum += text[i] == i % 101;
    IS(n == MANY && sum == MANY);
    IS(ended(writer) == 31);
    return 0;
}
