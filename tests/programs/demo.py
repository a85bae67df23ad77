"""demo.py TEXT RESULT ADDRESS PORT: works through a text, line by line: counts its words, has a server over one connection
compute each line's checksum, writes both to RESULT, and prints how far it is and, at the end, the most frequent words."""
import collections
import re
import socket
import sys
import time

text, result, address, port = sys.argv[1:]
words = collections.Counter()
server = socket.create_connection((address, int(port)))
answers = server.makefile()
with open(text) as lines, open(result, "w") as out:
    for n, line in enumerate(lines, 1):
        words.update(re.findall(r"[a-z]{5,}", line.lower()))
        server.sendall(line.rstrip().encode() + b"\n")
        checksum = answers.readline().split()[-1]
        out.write(f"{n} {checksum} {len(line.split())}\n")
        out.flush()
        if n % 50 == 0:
            print(f"line {n}, {sum(words.values())} words so far", flush=True)
        time.sleep(0.008)
print("most frequent:", ", ".join(f"{word} ({times})" for word, times in words.most_common(5)))
