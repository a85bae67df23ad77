"""count.py N: counts to N, a line and a short sleep each."""
import sys
import time

for i in range(1, int(sys.argv[1]) + 1):
    print(i, flush=True)
    time.sleep(0.06)
sys.exit(3)
