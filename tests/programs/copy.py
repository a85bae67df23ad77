"""copy.py IN OUT: reads a file line by line and writes another, in capitals and numbered; says how far it is."""
import sys
import time

with open(sys.argv[1]) as source, open(sys.argv[2], "w") as target:
    for n, line in enumerate(source, 1):
        target.write(f"{n} {line.upper()}")
        target.flush()
        print("wrote", n, flush=True)
        time.sleep(0.05)
