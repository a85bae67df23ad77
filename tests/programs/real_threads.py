"""real_threads.py [N]: four threads pass work through queues, beside timer threads; prints what comes out, in order: N lines,
or until its standard input ends."""
import hashlib
import itertools
import queue
import select
import sys
import threading
import time

n = int(sys.argv[1]) if len(sys.argv) > 1 else None
todo, done = queue.Queue(maxsize=8), queue.Queue()
over, lock, ticks = threading.Event(), threading.Lock(), [0]
local = threading.local()


def is_over(count):
    return count == n if n is not None else bool(select.select([sys.stdin], [], [], 0)[0])


def work():
    local.name = threading.current_thread().name
    while (piece := todo.get()) is not None:
        digest = str(piece).encode()
        for _ in range(3000):
            digest = hashlib.sha256(digest).digest()
        assert local.name == threading.current_thread().name
        done.put((piece, digest.hex()[:12]))


def feed():
    for piece in itertools.count():
        if over.is_set():
            break
        todo.put(piece)
    for _ in threads:
        todo.put(None)


def tick():
    with lock:
        ticks[0] += 1
    if not over.is_set():
        threading.Timer(0.02, tick).start()


threads = [threading.Thread(target=work, name=f"worker {i}") for i in range(4)]
for thread in [*threads, threading.Thread(target=feed)]:
    thread.start()
tick()
kept, last = {}, time.monotonic()
for count in itertools.count():
    if is_over(count):
        break
    while count not in kept:
        kept.update([done.get(timeout=30)])
    now = time.monotonic()
    assert now >= last, (now, last)
    last = now
    print(count, kept.pop(count), flush=True)
over.set()
for thread in threads:
    thread.join()
print("ticked" if ticks[0] > 1 else "no tick")
