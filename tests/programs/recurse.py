"""recurse.py DEPTH: a deep recursion through C frames (`map`) that prints on the way down and up."""
import sys
import time

sys.setrecursionlimit(100000)
depth = int(sys.argv[1])


def down(level):
    if level % 10 == 0:
        print("down", level, flush=True)
    time.sleep(0.006)
    total = list(map(down, [level + 1]))[0] if level < depth else 0
    if level % 10 == 0:
        print("up", level, total, flush=True)
    time.sleep(0.006)
    return (total * 3 + level) % 2**64


print(down(1), flush=True)
