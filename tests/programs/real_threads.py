"""real_threads.py N: four threads pass N pieces of work through queues, beside a timer thread; prints what came out, in order."""
import hashlib
import queue
import sys
import threading
import time

n = int(sys.argv[1])
todo, done = queue.Queue(maxsize=8), queue.PriorityQueue()
lock, ticks = threading.Lock(), [0]
local = threading.local()


def work():
    local.name = threading.current_thread().name
    while (piece := todo.get()) is not None:
        digest = str(piece).encode()
        for _ in range(3000):
            digest = hashlib.sha256(digest).digest()
        assert local.name == threading.current_thread().name
        done.put((piece, digest.hex()[:12]))


def tick():
    with lock:
        ticks[0] += 1
    if not over.wait(0.02):
        tick_again()


def tick_again():
    timer = threading.Timer(0.01, tick)
    timer.daemon = True
    timer.start()


over = threading.Event()
threads = [threading.Thread(target=work, name=f"worker {i}") for i in range(4)]
for thread in threads:
    thread.start()
tick_again()


def feed():
    for piece in range(n):
        todo.put(piece)
    for _ in threads:
        todo.put(None)


threading.Thread(target=feed).start()
last = time.monotonic()
kept = {}
for expected in range(n):
    while expected not in kept:
        piece, digest = done.get(timeout=30)
        kept[piece] = digest
    now = time.monotonic()
    assert now >= last, (now, last)
    last = now
    print(expected, kept.pop(expected), flush=True)
for thread in threads:
    thread.join()
over.set()
print("ticked" if ticks[0] else "no tick")
