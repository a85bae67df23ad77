"""compute.py ROUNDS: a long computation that prints nothing; its result is its exit status."""
import sys

x, y = 1, 1.0
for _ in range(int(sys.argv[1])):
    x = (x * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
    y = y * 0.999 + (x >> 60)
sys.exit(((x >> 33) + int(y)) % 100 + 1)
