"""ball.py FILE: as ball.c: checks what it holds, counts its timer's signals, writes numbers to stdout and to FILE until SIGTERM."""
import os
import random
import signal
import sys
import time
import zlib

alarms, term = 0, False


def count(number, frame):
    global alarms, term
    alarms += number == signal.SIGALRM
    term |= number == signal.SIGTERM


signal.signal(signal.SIGALRM, count)
signal.signal(signal.SIGTERM, count)
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
data = random.Random(1).randbytes(8 << 20)
table = {n: str(n) * 3 for n in range(20000)}
crc = zlib.crc32(data)
i = 0
with open(sys.argv[1], "w") as out:
    while not term:
        i += 1
        if zlib.crc32(data) != crc or table[i % 20000] != str(i % 20000) * 3:
            sys.exit("bad memory")
        print(i, flush=True)
        print(i, file=out, flush=True)
        time.sleep(0.005)
signal.setitimer(signal.ITIMER_REAL, 0)  # Python takes its handlers away before it ends
print("done" if alarms else "bad: no alarm came", flush=True)
