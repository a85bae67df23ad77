"""lines.py FILE: reads a file line by line and prints each with its number."""
import sys
import time

with open(sys.argv[1]) as source:
    for n, line in enumerate(source, 1):
        print(f"{n}: {line.rstrip()}", flush=True)
        time.sleep(0.05)
